"""The control plane's door from the outside: what a device sends is signed, what it reads back is short and soon.

No redirect is followed and nothing is tried twice; whoever asks decides what becomes of an answer that is none.
"""

import datetime
import io
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import msgspec
import urllib3

from edgewright.contract.api.device_api import (
    PROOF,
    CheckInRequest,
    CheckInResponse,
    EnrolRequest,
    EnrolResponse,
    ErrorResponse,
)
from edgewright.contract.errors import InputError, WorkError
from edgewright.contract.names import checked_name
from edgewright.contract.schema import decode_record
from edgewright.trust.keys.device_identity import DeviceKey, device_id_of

__all__ = ["ControlPlaneClient", "HttpAnswer", "ServerUnavailableError", "enrol_with_token", "send_http"]

_OK = 200
_CHUNK_BYTES = 1 << 16
# Of what the control plane says to a device, bytes; and for all of it, seconds.
_MAX_REPLY_BYTES, _TIMEOUT_SECONDS = 1 << 16, 30.0
_MAX_REASON_LENGTH, _MAX_AUDIENCE_LENGTH = 300, 200
_JSON_HEADERS = {"Content-Type": "application/json"}

ServerMessage = TypeVar("ServerMessage", bound=msgspec.Struct)


class ServerUnavailableError(WorkError):
    """The server cannot be reached, or does not answer as it should."""

    code = "no_answer"


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """What a server answered.

    Attributes:
        status: Of HTTP.
        headers: By name.
        content: Its body.
    """

    status: int
    headers: Mapping[str, str]
    content: bytes


def send_http(
    pool: urllib3.PoolManager,
    url: str,
    body: bytes,
    *,
    max_bytes: int = _MAX_REPLY_BYTES,
    timeout_seconds: float = _TIMEOUT_SECONDS,
    headers: Mapping[str, str] | None = None,
    method: str = "POST",
) -> HttpAnswer:
    """Send bytes, and return the answer.

    Args:
        pool: Of connections.
        url: Where to.
        body: The bytes.
        max_bytes: Of the answer, bytes.
        timeout_seconds: For the whole answer.
        headers: Of the request, beside the pool's.
        method: Of the request.

    Raises:
        UnansweredError: The server cannot be reached, is too slow, or answers more than that.
    """
    ends = time.monotonic() + timeout_seconds
    content = bytearray()
    length = {} if method == "GET" else {"Content-Length": str(len(body))}
    try:
        answer = pool.request(
            method,
            url,
            # Block by block: the timeout is for each, and what is large takes its time.
            body=None if method == "GET" else io.BytesIO(body),
            headers={**pool.headers, **(headers or {}), **length},
            preload_content=False,
            decode_content=False,  # what is small on the wire must not be large here
            redirect=False,
        )
        try:
            # Whoever sends a byte now and then keeps a timeout per read for ever.
            while (piece := answer.read1(_CHUNK_BYTES)) and len(content) <= max_bytes:
                content += piece
                if time.monotonic() > ends:
                    raise urllib3.exceptions.HTTPError("it is too slow")
            answer.drain_conn() if len(content) <= max_bytes else answer.close()
        except urllib3.exceptions.HTTPError:
            answer.close()
            raise
    except urllib3.exceptions.HTTPError as error:
        raise ServerUnavailableError(f"{url} cannot be reached: {error}", remedy="It is tried again.") from error
    if len(content) > max_bytes:
        raise ServerUnavailableError(f"{url} answered more than {max_bytes} bytes", remedy="Ask whoever runs it.")
    return HttpAnswer(answer.status, answer.headers, bytes(content))


@dataclass(frozen=True, slots=True)
class ControlPlaneClient:
    """A server that knows this device.

    Attributes:
        server: Its URL.
        audience: Whom requests are signed for.
        key: Of this device.
        pool: Of connections.
        clock: The clock.
    """

    server: str
    audience: str
    key: DeviceKey
    pool: urllib3.PoolManager
    clock: Callable[[], datetime.datetime]

    def request(
        self,
        path: str,
        body: bytes = b"",
        *,
        max_bytes: int = _MAX_REPLY_BYTES,
        timeout_seconds: float = _TIMEOUT_SECONDS,
    ) -> HttpAnswer:
        """Send a signed request, and return the answer, whatever its status is.

        Args:
            path: From the server's own root on, such as `/device/check-in`; what a proxy puts before it is not
                signed.
            body: Of the request.
            max_bytes: Of the answer, bytes.
            timeout_seconds: For the whole answer.

        Raises:
            UnansweredError: The server cannot be reached, is too slow, or answers more than that.
        """
        proof = self.key.sign(self.audience, "POST", path, body, now=self.clock())
        return send_http(
            self.pool,
            self.server.rstrip("/") + path,
            body,
            max_bytes=max_bytes,
            timeout_seconds=timeout_seconds,
            headers={**_JSON_HEADERS, PROOF: proof},
        )

    def check_in(self, request: CheckInRequest) -> CheckInResponse:
        """Say how this device is.

        Raises:
            UnansweredError: The server cannot be reached, or what it answers is nothing that it should.
            WorkError: It refuses.
        """
        return _parse_success(
            self.request("/device/check-in", msgspec.json.encode(request)), CheckInResponse, self.server
        )


def enrol_with_token(pool: urllib3.PoolManager, server: str, token: str, key: DeviceKey) -> EnrolResponse:
    """Enrol a device, and return what it is from now on; asking again with the same key and token is harmless.

    Args:
        pool: Of connections.
        server: Its URL.
        token: That enrols one device.
        key: Of the device.

    Raises:
        InputError: The token can be none.
        UnansweredError: The server cannot be reached, or what it answers is no enrolment of this device.
        WorkError: It refuses.
    """
    asking = msgspec.json.encode(EnrolRequest(token, key.public.hex()))
    enrolled = _parse_success(
        send_http(pool, server.rstrip("/") + "/device/enrol", asking, headers=_JSON_HEADERS), EnrolResponse, server
    )
    try:
        checked_name("device class", enrolled.device_class)
        for name in filter(None, (enrolled.channel, *enrolled.labels)):
            checked_name("label or channel", name)
    except InputError as error:
        raise _unusable_server(server, error.message) from error
    if enrolled.device_id != device_id_of(key.public):
        raise _unusable_server(server, f"it calls this device {enrolled.device_id[:80]!r}")
    if not 0 < len(enrolled.audience) <= _MAX_AUDIENCE_LENGTH or not enrolled.audience.isprintable():
        raise _unusable_server(server, "it does not say whom requests are for")
    return enrolled


def _parse_success(answer: HttpAnswer, record_type: type[ServerMessage], server: str) -> ServerMessage:
    """Return what a server said, if it says that all is well."""
    if answer.status == _OK:
        found = _decode_answer(answer, record_type)
        if found is None:
            raise _unusable_server(server, f"{len(answer.content)} bytes that are none of its answers")
        return found
    problem = _decode_answer(answer, ErrorResponse)
    if problem is None or not problem.message:
        raise ServerUnavailableError(f"{server} answered {answer.status}", remedy="It is tried again.")
    raise WorkError(
        f"{server} refuses ({answer.status}): {_printable(problem.message)}",
        remedy=_printable(problem.remedy) or "Ask whoever runs it.",
    )


def _decode_answer(answer: HttpAnswer, record_type: type[ServerMessage]) -> ServerMessage | None:
    try:
        return decode_record(answer.content, type=record_type)
    except (msgspec.MsgspecError, InputError, ValueError, RecursionError):
        return None


def _printable(text: str) -> str:
    """Return what may be shown on a terminal of what a server says."""
    return "".join(letter for letter in text[:_MAX_REASON_LENGTH] if letter.isprintable())


def _unusable_server(server: str, reason: str) -> ServerUnavailableError:
    return ServerUnavailableError(f"{server} does not answer as it should: {reason}", remedy="Ask whoever runs it.")
