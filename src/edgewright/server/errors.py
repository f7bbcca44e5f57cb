"""What whoever asked is told of an error: what they can mend, and nothing of how this machine looks."""

import json
import logging

from edgewright.contract.api.device_api import ErrorResponse
from edgewright.contract.errors import EdgewrightError, InputError, OutputError
from edgewright.server.store.database import DatabaseUnavailableError
from edgewright.trust.keys.device_identity import AuthenticationError

__all__ = ["NotFoundError", "error_body", "error_response"]

_LOG = logging.getLogger("edgewright.server")


class NotFoundError(InputError):
    """What was asked for is not there."""

    code = "not_found"


def error_body(error: EdgewrightError) -> ErrorResponse:
    """Return what is told of an error."""
    return ErrorResponse(error.code, error.message, error.remedy)


def error_response(error: EdgewrightError) -> tuple[int, ErrorResponse]:
    """Return the status of HTTP and the problem; addresses, paths and what a database says are for the log."""
    if isinstance(error, AuthenticationError | NotFoundError):
        return 404, error_body(error)
    if isinstance(error, InputError):
        return 400, error_body(error)
    outside = error.__cause__ is not None and not isinstance(error.__cause__, EdgewrightError)
    if outside or isinstance(error, DatabaseUnavailableError | OutputError):
        _LOG.error(json.dumps({"event": "failure", "error": type(error).__name__}), exc_info=error)
        what = "database" if isinstance(error, DatabaseUnavailableError) else "database or the repository's store"
        return 503, ErrorResponse(error.code, f"the {what} does not answer", "Try again later.")
    return 409, error_body(error)
