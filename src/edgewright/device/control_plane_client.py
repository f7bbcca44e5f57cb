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

from edgewright.contract.api.device_api import PROOF, CheckedIn, CheckingIn, Enrolled, Enrolling, Problem
from edgewright.contract.errors import InputError, WorkError
from edgewright.contract.names import checked_name
from edgewright.contract.schema import decode_record
from edgewright.trust.keys.device_identity import DeviceKey, device_id_of

__all__ = ["Answer", "Door", "UnansweredError", "join", "send"]

_OK = 200
_PIECE = 1 << 16
# Of what the control plane says to a device, bytes; and for all of it, seconds.
_LARGEST, _PATIENCE_S = 1 << 16, 30.0
_LONGEST_REASON, _LONGEST_AUDIENCE = 300, 200
_JSON = {"Content-Type": "application/json"}

Said = TypeVar("Said", bound=msgspec.Struct)


class UnansweredError(WorkError):
    """The server cannot be reached, or does not answer as it should."""

    code = "no_answer"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server answered.

    Attributes:
        status: Of HTTP.
        headers: By name.
        content: Its body.
    """

    status: int
    headers: Mapping[str, str]
    content: bytes


def send(
    pool: urllib3.PoolManager,
    url: str,
    body: bytes,
    *,
    largest: int = _LARGEST,
    patience_s: float = _PATIENCE_S,
    headers: Mapping[str, str] | None = None,
    method: str = "POST",
) -> Answer:
    """Send bytes, and return the answer.

    Args:
        pool: Of connections.
        url: Where to.
        body: The bytes.
        largest: Of the answer, bytes.
        patience_s: For the whole answer.
        headers: Of the request, beside the pool's.
        method: Of the request.

    Raises:
        UnansweredError: The server cannot be reached, is too slow, or answers more than that.
    """
    ends = time.monotonic() + patience_s
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
            while (piece := answer.read1(_PIECE)) and len(content) <= largest:
                content += piece
                if time.monotonic() > ends:
                    raise urllib3.exceptions.HTTPError("it is too slow")
            answer.drain_conn() if len(content) <= largest else answer.close()
        except urllib3.exceptions.HTTPError:
            answer.close()
            raise
    except urllib3.exceptions.HTTPError as error:
        raise UnansweredError(f"{url} cannot be reached: {error}", remedy="It is tried again.") from error
    if len(content) > largest:
        raise UnansweredError(f"{url} answered more than {largest} bytes", remedy="Ask whoever runs it.")
    return Answer(answer.status, answer.headers, bytes(content))


@dataclass(frozen=True, slots=True)
class Door:
    """A server that knows this device.

    Attributes:
        server: Its URL.
        audience: Whom requests are signed for.
        key: Of this device.
        pool: Of connections.
        now: The clock.
    """

    server: str
    audience: str
    key: DeviceKey
    pool: urllib3.PoolManager
    now: Callable[[], datetime.datetime]

    def ask(
        self, path: str, body: bytes = b"", *, largest: int = _LARGEST, patience_s: float = _PATIENCE_S
    ) -> Answer:
        """Send a signed request, and return the answer, whatever its status is.

        Args:
            path: From the server's own root on, such as `/device/check-in`; what a proxy puts before it is not
                signed.
            body: Of the request.
            largest: Of the answer, bytes.
            patience_s: For the whole answer.

        Raises:
            UnansweredError: The server cannot be reached, is too slow, or answers more than that.
        """
        proof = self.key.sign(self.audience, "POST", path, body, now=self.now())
        return send(
            self.pool,
            self.server.rstrip("/") + path,
            body,
            largest=largest,
            patience_s=patience_s,
            headers={**_JSON, PROOF: proof},
        )

    def check_in(self, said: CheckingIn) -> CheckedIn:
        """Say how this device is.

        Raises:
            UnansweredError: The server cannot be reached, or what it answers is nothing that it should.
            WorkError: It refuses.
        """
        return _said(self.ask("/device/check-in", msgspec.json.encode(said)), CheckedIn, self.server)


def join(pool: urllib3.PoolManager, server: str, token: str, key: DeviceKey) -> Enrolled:
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
    asking = msgspec.json.encode(Enrolling(token, key.public.hex()))
    enrolled = _said(send(pool, server.rstrip("/") + "/device/enrol", asking, headers=_JSON), Enrolled, server)
    try:
        checked_name("device class", enrolled.device_class)
        for name in filter(None, (enrolled.channel, *enrolled.labels)):
            checked_name("label or channel", name)
    except InputError as error:
        raise _unusable(server, error.message) from error
    if enrolled.device_id != device_id_of(key.public):
        raise _unusable(server, f"it calls this device {enrolled.device_id[:80]!r}")
    if not 0 < len(enrolled.audience) <= _LONGEST_AUDIENCE or not enrolled.audience.isprintable():
        raise _unusable(server, "it does not say whom requests are for")
    return enrolled


def _said(answer: Answer, kind: type[Said], server: str) -> Said:
    """Return what a server said, if it says that all is well."""
    if answer.status == _OK:
        found = _read(answer, kind)
        if found is None:
            raise _unusable(server, f"{len(answer.content)} bytes that are none of its answers")
        return found
    problem = _read(answer, Problem)
    if problem is None or not problem.message:
        raise UnansweredError(f"{server} answered {answer.status}", remedy="It is tried again.")
    raise WorkError(
        f"{server} refuses ({answer.status}): {_shown(problem.message)}",
        remedy=_shown(problem.remedy) or "Ask whoever runs it.",
    )


def _read(answer: Answer, kind: type[Said]) -> Said | None:
    try:
        return decode_record(answer.content, type=kind)
    except (msgspec.MsgspecError, InputError, ValueError, RecursionError):
        return None


def _shown(text: str) -> str:
    """Return what may be shown on a terminal of what a server says."""
    return "".join(letter for letter in text[:_LONGEST_REASON] if letter.isprintable())


def _unusable(server: str, why: str) -> UnansweredError:
    return UnansweredError(f"{server} does not answer as it should: {why}", remedy="Ask whoever runs it.")
