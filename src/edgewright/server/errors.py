"""What whoever asked is told of an error: what they can mend, and nothing of how this machine looks."""

import json
import logging

from edgewright.contract.api.device_api import Problem
from edgewright.contract.errors import EdgewrightError, InputError, OutputError
from edgewright.server.store.database import GoneError
from edgewright.trust.keys.device_identity import UnknownError

__all__ = ["MissingError", "problem_of", "told"]

_LOG = logging.getLogger("edgewright.server")


class MissingError(InputError):
    """What was asked for is not there."""

    code = "not_found"


def problem_of(error: EdgewrightError) -> Problem:
    """Return what is told of an error."""
    return Problem(error.code, error.message, error.remedy)


def told(error: EdgewrightError) -> tuple[int, Problem]:
    """Return the status of HTTP and the problem; addresses, paths and what a database says are for the log."""
    if isinstance(error, UnknownError | MissingError):
        return 404, problem_of(error)
    if isinstance(error, InputError):
        return 400, problem_of(error)
    outside = error.__cause__ is not None and not isinstance(error.__cause__, EdgewrightError)
    if outside or isinstance(error, GoneError | OutputError):
        _LOG.error(json.dumps({"event": "failure", "error": type(error).__name__}), exc_info=error)
        what = "database" if isinstance(error, GoneError) else "database or the repository's store"
        return 503, Problem(error.code, f"the {what} does not answer", "Try again later.")
    return 409, problem_of(error)
