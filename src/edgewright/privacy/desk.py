"""What a server and a helper answer over any transport: a path and a body to a status and a body. No sockets here.

A server's desk, for each sum under its terms' digest in hexadecimal:

=====================  ======================================  ==========================================
path                   body                                    answer
=====================  ======================================  ==========================================
/sums/ID/gift          a device's one message                  nothing (sums with a helper)
/sums/ID/join          a device's letter, and likewise         nothing (sums with neighbours)
                       share, mask, reveal
/sums/ID/roster        empty                                   the roster
/sums/ID/inbox/DEVICE  empty                                   what the device's neighbours sent to it
/sums/ID/lists         empty                                   survivors and dropouts
=====================  ======================================  ==========================================

A helper's desk answers `/help` alone. A refusal is a record: 409 if it is for now, 403 if it is for good.
"""

from collections.abc import Callable
from threading import Lock

import msgspec

from edgewright.privacy.collect import Collector
from edgewright.privacy.helper import Gatherer, Helper
from edgewright.privacy.roster import DeclinedError, Reason, Terms

__all__ = ["Handle", "HelperDesk", "Refused", "SumDesk"]

Handle = Callable[[str, bytes], tuple[int, bytes]]

_OK, _REFUSED, _NONE, _EARLY = 200, 403, 404, 409


class Refused(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Why there is no answer.

    Attributes:
        reason: The kind.
        message: For people.
        culprits: Devices without which there could be one.
    """

    reason: Reason
    message: str
    culprits: tuple[bytes, ...] = ()


class SumDesk:
    """A server's sums; who opens, advances and reads them calls their methods."""

    def __init__(self) -> None:
        self._sums: dict[str, Collector | Gatherer] = {}
        self._lock = Lock()

    def open(self, terms: Terms) -> Collector | Gatherer:
        """Begin a sum, or return the one that was begun under these terms."""
        with self._lock:
            fresh = Collector if terms.degree else Gatherer
            return self._sums.setdefault(terms.digest.hex(), fresh(terms))

    def close(self, terms: Terms) -> None:
        """Forget a sum."""
        self._sums.pop(terms.digest.hex(), None)

    def handle(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Answer a device.

        Args:
            path: Of the request.
            body: Of the request.

        Returns:
            Status of HTTP, and the body of the answer.
        """
        root, _, rest = path.strip("/").partition("/")
        name, _, act = rest.partition("/")
        found = self._sums.get(name)
        if root != "sums" or found is None:
            return _NONE, b""
        with self._lock:
            try:
                answer = (
                    _collected(found, act, body) if isinstance(found, Collector) else _gathered(found, act, body)
                )
            except DeclinedError as error:
                return _refusal(error)
        return (_NONE, b"") if answer is None else (_OK, answer)


class HelperDesk:
    """A helper's desk.

    Args:
        helper: Who answers.
    """

    def __init__(self, helper: Helper) -> None:
        self._helper = helper

    def handle(self, path: str, body: bytes) -> tuple[int, bytes]:
        """See `SumDesk.handle`."""
        if path != "/help":
            return _NONE, b""
        try:
            return _OK, self._helper.answer(body)
        except DeclinedError as error:
            return _refusal(error)


def _gathered(gatherer: Gatherer, act: str, body: bytes) -> bytes | None:
    if act != "gift":
        return None
    gatherer.take(body)
    return b""


def _collected(collector: Collector, act: str, body: bytes) -> bytes | None:
    if act in ("join", "share", "mask", "reveal"):
        collector.take(act, body)
        return b""
    if act == "roster":
        return collector.roster()
    if act == "lists":
        return collector.lists()
    verb, _, device = act.partition("/")
    if verb != "inbox":
        return None
    try:
        return collector.inbox(bytes.fromhex(device))
    except ValueError:
        return None


def _refusal(error: DeclinedError) -> tuple[int, bytes]:
    record = Refused(error.reason, error.message, error.culprits)
    return _EARLY if error.reason == "step" else _REFUSED, msgspec.msgpack.encode(record)
