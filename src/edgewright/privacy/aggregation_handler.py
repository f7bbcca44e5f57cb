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

A helper's desk answers `/help` alone. A refusal is a record: 409 if it is for now, 403 if it is for good. 503 is
an answer without one: what came could not be stored, and is to come again.
"""

from collections.abc import Callable, Iterable, Mapping
from threading import Lock

import msgspec

from edgewright.contract.errors import OutputError
from edgewright.privacy.bit_packing import Words
from edgewright.privacy.helper import Ask, Gatherer, Gift, Helper
from edgewright.privacy.roster import MOST_DEVICES, DeclinedError, Enrolment, Letter, Reason, Terms, decode
from edgewright.privacy.secagg_server import STEPS, Collector

__all__ = ["Handle", "HelperDesk", "Keep", "Refused", "SumDesk"]

Handle = Callable[[str, bytes], tuple[int, bytes]]
Keep = Callable[[str, bytes], None]

_OK, _REFUSED, _NONE, _EARLY, _BUSY = 200, 403, 404, 409, 503
_LETTERS = ("gift", "join", "share", "mask", "reveal")
_GIFT_ACTS = ("gift",)
_STEP_ACTS = ("join", "share", "mask", "reveal", "roster", "inbox", "lists")


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
    """A server's sums. Devices come through `handle`, in threads; who runs the sums calls the other methods.

    All of them hold one lock, so that nobody slips into a sum while it is closed.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Collector | Gatherer] = {}
        self._keeps: dict[str, Keep] = {}
        self._kept: set[tuple[str, str]] = set()
        self._unkept: dict[tuple[str, str], bytes] = {}
        self._lock = Lock()

    def open(
        self,
        terms: Terms,
        *,
        enrolled: Enrolment | None = None,
        most: int = MOST_DEVICES,
        keep: Keep | None = None,
    ) -> Collector | Gatherer:
        """Begin a sum, or return the one that was begun under these terms; to be looked at, not to be changed.

        Args:
            terms: Of the sum.
            enrolled: Devices that exist; of others nothing is taken.
            most: Devices that may be in the sum.
            keep: Stores what came under a name, for `restore`; on return it survives a power cut.
        """
        name = terms.digest.hex()
        with self._lock:
            if name not in self._sums:
                fresh = Collector if terms.degree else Gatherer
                self._sums[name] = fresh(terms, enrolled=enrolled, most=most)
                if keep is not None:
                    self._keeps[name] = keep
            return self._sums[name]

    def restore(self, terms: Terms, kept: Mapping[str, bytes]) -> None:
        """Take in again what an earlier process kept of a sum that is open.

        Args:
            terms: Of the sum.
            kept: By name.

        Raises:
            DeclinedError: It is not what was taken then.
        """
        with self._lock:
            found = self._sums[terms.digest.hex()]
            if isinstance(found, Gatherer):
                _regather(found, kept)
                return
            for step in STEPS[:-1]:
                for name in sorted(kept):
                    if name.startswith(f"{step}-"):
                        found.take(step, kept[name])
                if f"{step}.closed" in kept:
                    found.advance()

    def close(self, terms: Terms) -> None:
        """Forget a sum."""
        with self._lock:
            self._sums.pop(terms.digest.hex(), None)
            self._keeps.pop(terms.digest.hex(), None)

    def devices(self, terms: Terms) -> int:
        """Return how many have sent the letter that is awaited."""
        with self._lock:
            return self._sums[terms.digest.hex()].devices

    def ask(self, terms: Terms) -> bytes:
        """Return what to ask the helper, which is kept; nobody is let in from now on.

        Raises:
            DeclinedError: Too few devices sent something.
            OutputError: It, or a letter before, cannot be kept.
        """
        with self._lock:
            self._keep_rest()
            content = self._gatherer(terms).ask()
            self._keep(terms.digest.hex(), "ask", content)
            return content

    def leave_out(self, terms: Terms, culprits: Iterable[bytes]) -> None:
        """See `Gatherer.leave_out`."""
        with self._lock:
            self._gatherer(terms).leave_out(culprits)

    def advance(self, terms: Terms) -> None:
        """Close the step that is open.

        Raises:
            DeclinedError: Too few devices are left for a sum.
            OutputError: That it is closed, or a letter before, cannot be kept.
        """
        with self._lock:
            self._keep_rest()
            collector = self._collector(terms)
            step = collector.step
            collector.advance()
            self._keep(terms.digest.hex(), f"{step}.closed", b"")

    def total(self, terms: Terms, answer: bytes = b"") -> tuple[Words, int]:
        """Return the sum, and how many devices are in it.

        Args:
            terms: Of the sum.
            answer: Of the helper, if there is one.

        Raises:
            DeclinedError: The answer is none to what was asked, or too few devices helped to unmask.
        """
        with self._lock:
            found = self._sums[terms.digest.hex()]
            if isinstance(found, Gatherer):
                return found.total(answer), found.devices
            return found.total(), found.survivors

    def knows(self, path: str) -> bool:
        """Return whether there is anything at a path, before its body is read."""
        return self._at(path) is not None

    def handle(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Answer a device.

        Args:
            path: Of the request.
            body: Of the request.

        Returns:
            Status of HTTP, and the body of the answer.
        """
        at = self._at(path)
        if at is None:
            return _NONE, b""
        name, found, act = at
        with self._lock:
            try:
                answer = (
                    _collected(found, act, body) if isinstance(found, Collector) else _gathered(found, act, body)
                )
                if act in _LETTERS and answer is not None:
                    self._keep_letter(name, act, body)
            except DeclinedError as error:
                return _refusal(error)
            except OutputError:
                # The device sends it again: it has not been told that it arrived.
                return _BUSY, b""
        return (_NONE, b"") if answer is None else (_OK, answer)

    def _at(self, path: str) -> tuple[str, Collector | Gatherer, str] | None:
        root, _, rest = path.strip("/").partition("/")
        name, _, act = rest.partition("/")
        found = self._sums.get(name)
        if root != "sums" or found is None:
            return None
        acts = _STEP_ACTS if isinstance(found, Collector) else _GIFT_ACTS
        return (name, found, act) if act.partition("/")[0] in acts else None

    def _keep_letter(self, name: str, act: str, body: bytes) -> None:
        """Keep a letter that was taken, once; what a full disk refused is tried again when it comes again."""
        sender = decode(body, Gift).sender if act == "gift" else decode(body, Letter).sender
        letter = f"{act}-{sender.hex()}"
        if (name, letter) in self._kept and (name, letter) not in self._unkept:
            return
        self._kept.add((name, letter))
        self._unkept[name, letter] = body
        self._keep(name, letter, body)
        del self._unkept[name, letter]

    def _keep_rest(self) -> None:
        for name, letter in list(self._unkept):
            self._keep(name, letter, self._unkept[name, letter])
            del self._unkept[name, letter]

    def _keep(self, name: str, what: str, content: bytes) -> None:
        if name in self._keeps:
            self._keeps[name](what, content)

    def _gatherer(self, terms: Terms) -> Gatherer:
        found = self._sums[terms.digest.hex()]
        if not isinstance(found, Gatherer):
            raise ValueError("a sum with neighbours asks no helper")
        return found

    def _collector(self, terms: Terms) -> Collector:
        found = self._sums[terms.digest.hex()]
        if not isinstance(found, Collector):
            raise ValueError("a sum with a helper has no steps")
        return found


class HelperDesk:
    """A helper's desk.

    Args:
        helper: Who answers.
    """

    def __init__(self, helper: Helper) -> None:
        self._helper = helper

    def knows(self, path: str) -> bool:
        """See `SumDesk.knows`."""
        return path == "/help"

    def handle(self, path: str, body: bytes) -> tuple[int, bytes]:
        """See `SumDesk.handle`."""
        if not self.knows(path):
            return _NONE, b""
        try:
            return _OK, self._helper.answer(body)
        except DeclinedError as error:
            return _refusal(error)


def _regather(gatherer: Gatherer, kept: Mapping[str, bytes]) -> None:
    ask = kept.get("ask")
    # Who was left out of the question stays out of it.
    asked = None if ask is None else {slip.sender.hex() for slip in decode(ask, Ask).slips}
    for name in sorted(kept):
        kind, _, sender = name.partition("-")
        if kind != "gift" or (asked is not None and sender not in asked):
            continue
        try:
            gatherer.take(kept[name])
        except DeclinedError:  # no longer enrolled, which matters only if the helper was asked for it
            if asked is not None:
                raise
    if ask is not None and gatherer.ask() != ask:
        raise DeclinedError("step", "what is kept is not what the helper was asked for")


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
