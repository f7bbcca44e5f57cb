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
from edgewright.privacy.bit_packing import UnsignedArray
from edgewright.privacy.helper import HelperRequest, MaskedSubmission, MaskedSumCollector, MaskHelper
from edgewright.privacy.roster import (
    MAX_DEVICES,
    DeclinedError,
    DeclineReason,
    EnrolmentList,
    ProtocolTerms,
    SignedMessage,
    decode_message,
)
from edgewright.privacy.secagg_server import SERVER_STEPS, SecAggServer

__all__ = ["AggregationHandler", "AggregationRefusal", "AggregationService", "HelperService", "StoreMessage"]

AggregationHandler = Callable[[str, bytes], tuple[int, bytes]]
StoreMessage = Callable[[str, bytes], None]

_OK, _FORBIDDEN, _NOT_FOUND, _CONFLICT, _UNAVAILABLE = 200, 403, 404, 409, 503
_MESSAGES = ("submit", "advertise", "share", "mask", "reveal")
_HELPER_PATHS = ("submit",)
_SECAGG_PATHS = ("advertise", "share", "mask", "reveal", "participants", "inbox", "survivors")


class AggregationRefusal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Why there is no answer.

    Attributes:
        reason: The kind.
        message: For people.
        blamed_devices: Devices without which there could be one.
    """

    reason: DeclineReason
    message: str
    blamed_devices: tuple[bytes, ...] = ()


class AggregationService:
    """A server's sums. Devices come through `handle`, in threads; who runs the sums calls the other methods.

    All of them hold one lock, so that nobody slips into a sum while it is closed.
    """

    def __init__(self) -> None:
        self._sums: dict[str, SecAggServer | MaskedSumCollector] = {}
        self._keeps: dict[str, StoreMessage] = {}
        self._kept: set[tuple[str, str]] = set()
        self._unkept: dict[tuple[str, str], bytes] = {}
        self._lock = Lock()

    def open_sum(
        self,
        terms: ProtocolTerms,
        *,
        enrolment_list: EnrolmentList | None = None,
        max_devices: int = MAX_DEVICES,
        store_message: StoreMessage | None = None,
    ) -> SecAggServer | MaskedSumCollector:
        """Begin a sum, or return the one that was begun under these terms; to be looked at, not to be changed.

        Args:
            terms: Of the sum.
            enrolment_list: Devices that exist; of others nothing is taken.
            max_devices: Devices that may be in the sum.
            store_message: Stores what came under a name, for `restore_sum`; on return it survives a power cut.
        """
        name = terms.digest.hex()
        with self._lock:
            if name not in self._sums:
                fresh = SecAggServer if terms.degree else MaskedSumCollector
                self._sums[name] = fresh(terms, enrolment_list=enrolment_list, max_devices=max_devices)
                if store_message is not None:
                    self._keeps[name] = store_message
            return self._sums[name]

    def restore_sum(self, terms: ProtocolTerms, stored: Mapping[str, bytes]) -> None:
        """Take in again what an earlier process kept of a sum that is open.

        Args:
            terms: Of the sum.
            stored: By name.

        Raises:
            DeclinedError: It is not what was taken then.
        """
        with self._lock:
            found = self._sums[terms.digest.hex()]
            if isinstance(found, MaskedSumCollector):
                _replay_submissions(found, stored)
                return
            for step in SERVER_STEPS[:-1]:
                for name in sorted(stored):
                    if name.startswith(f"{step}-"):
                        found.accept(step, stored[name])
                if f"{step}.closed" in stored:
                    found.advance()

    def close_sum(self, terms: ProtocolTerms) -> None:
        """Forget a sum."""
        with self._lock:
            self._sums.pop(terms.digest.hex(), None)
            self._keeps.pop(terms.digest.hex(), None)

    def device_count(self, terms: ProtocolTerms) -> int:
        """Return how many have sent the letter that is awaited."""
        with self._lock:
            return self._sums[terms.digest.hex()].device_count

    def helper_request(self, terms: ProtocolTerms) -> bytes:
        """Return what to ask the helper, which is kept; nobody is let in from now on.

        Raises:
            DeclinedError: Too few devices sent something.
            OutputError: It, or a letter before, cannot be kept.
        """
        with self._lock:
            self._store_pending()
            content = self._mask_collector(terms).helper_request()
            self._store(terms.digest.hex(), "helper_request", content)
            return content

    def exclude(self, terms: ProtocolTerms, blamed_devices: Iterable[bytes]) -> None:
        """See `Gatherer.exclude`."""
        with self._lock:
            self._mask_collector(terms).exclude(blamed_devices)

    def advance(self, terms: ProtocolTerms) -> None:
        """Close the step that is open.

        Raises:
            DeclinedError: Too few devices are left for a sum.
            OutputError: That it is closed, or a letter before, cannot be kept.
        """
        with self._lock:
            self._store_pending()
            collector = self._secagg_server(terms)
            step = collector.step
            collector.advance()
            self._store(terms.digest.hex(), f"{step}.closed", b"")

    def unmask_sum(self, terms: ProtocolTerms, helper_response: bytes = b"") -> tuple[UnsignedArray, int]:
        """Return the sum, and how many devices are in it.

        Args:
            terms: Of the sum.
            helper_response: Of the helper, if there is one.

        Raises:
            DeclinedError: The answer is none to what was asked, or too few devices helped to unmask.
        """
        with self._lock:
            found = self._sums[terms.digest.hex()]
            if isinstance(found, MaskedSumCollector):
                return found.unmask_sum(helper_response), found.device_count
            return found.unmask_sum(), found.survivor_count

    def has_path(self, path: str) -> bool:
        """Return whether there is anything at a path, before its body is read."""
        return self._resolve(path) is not None

    def handle(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Answer a device.

        Args:
            path: Of the request.
            body: Of the request.

        Returns:
            Status of HTTP, and the body of the answer.
        """
        at = self._resolve(path)
        if at is None:
            return _NOT_FOUND, b""
        name, found, act = at
        with self._lock:
            try:
                answer = (
                    _handle_secagg(found, act, body)
                    if isinstance(found, SecAggServer)
                    else _handle_submission(found, act, body)
                )
                if act in _MESSAGES and answer is not None:
                    self._store_message(name, act, body)
            except DeclinedError as error:
                return _refusal(error)
            except OutputError:
                # The device sends it again: it has not been told that it arrived.
                return _UNAVAILABLE, b""
        return (_NOT_FOUND, b"") if answer is None else (_OK, answer)

    def _resolve(self, path: str) -> tuple[str, SecAggServer | MaskedSumCollector, str] | None:
        root, _, rest = path.strip("/").partition("/")
        name, _, act = rest.partition("/")
        found = self._sums.get(name)
        if root != "sums" or found is None:
            return None
        acts = _SECAGG_PATHS if isinstance(found, SecAggServer) else _HELPER_PATHS
        return (name, found, act) if act.partition("/")[0] in acts else None

    def _store_message(self, name: str, endpoint: str, body: bytes) -> None:
        """Keep a letter that was taken, once; what a full disk refused is tried again when it comes again."""
        sender = (
            decode_message(body, MaskedSubmission).sender
            if endpoint == "submit"
            else decode_message(body, SignedMessage).sender
        )
        letter = f"{endpoint}-{sender.hex()}"
        if (name, letter) in self._kept and (name, letter) not in self._unkept:
            return
        self._kept.add((name, letter))
        self._unkept[name, letter] = body
        self._store(name, letter, body)
        del self._unkept[name, letter]

    def _store_pending(self) -> None:
        for name, letter in list(self._unkept):
            self._store(name, letter, self._unkept[name, letter])
            del self._unkept[name, letter]

    def _store(self, name: str, entry: str, content: bytes) -> None:
        if name in self._keeps:
            self._keeps[name](entry, content)

    def _mask_collector(self, terms: ProtocolTerms) -> MaskedSumCollector:
        found = self._sums[terms.digest.hex()]
        if not isinstance(found, MaskedSumCollector):
            raise ValueError("a sum with neighbours asks no helper")
        return found

    def _secagg_server(self, terms: ProtocolTerms) -> SecAggServer:
        found = self._sums[terms.digest.hex()]
        if not isinstance(found, SecAggServer):
            raise ValueError("a sum with a helper has no steps")
        return found


class HelperService:
    """A helper's desk.

    Args:
        helper: Who answers.
    """

    def __init__(self, helper: MaskHelper) -> None:
        self._helper = helper

    def has_path(self, path: str) -> bool:
        """See `SumDesk.has_path`."""
        return path == "/help"

    def handle(self, path: str, body: bytes) -> tuple[int, bytes]:
        """See `SumDesk.handle`."""
        if not self.has_path(path):
            return _NOT_FOUND, b""
        try:
            return _OK, self._helper.answer_request(body)
        except DeclinedError as error:
            return _refusal(error)


def _replay_submissions(collector: MaskedSumCollector, stored: Mapping[str, bytes]) -> None:
    ask = stored.get("helper_request")
    # Who was left out of the question stays out of it.
    asked = None if ask is None else {slip.sender.hex() for slip in decode_message(ask, HelperRequest).slips}
    for name in sorted(stored):
        kind, _, sender = name.partition("-")
        if kind != "submit" or (asked is not None and sender not in asked):
            continue
        try:
            collector.accept(stored[name])
        except DeclinedError:  # no longer enrolled, which matters only if the helper was asked for it
            if asked is not None:
                raise
    if ask is not None and collector.helper_request() != ask:
        raise DeclinedError("step", "what is kept is not what the helper was asked for")


def _handle_submission(collector: MaskedSumCollector, endpoint: str, body: bytes) -> bytes | None:
    if endpoint != "submit":
        return None
    collector.accept(body)
    return b""


def _handle_secagg(secagg_server: SecAggServer, endpoint: str, body: bytes) -> bytes | None:
    if endpoint in ("advertise", "share", "mask", "reveal"):
        secagg_server.accept(endpoint, body)
        return b""
    if endpoint == "participants":
        return secagg_server.participants()
    if endpoint == "survivors":
        return secagg_server.survivor_lists()
    verb, _, device = endpoint.partition("/")
    if verb != "inbox":
        return None
    try:
        return secagg_server.share_inbox(bytes.fromhex(device))
    except ValueError:
        return None


def _refusal(error: DeclinedError) -> tuple[int, bytes]:
    record = AggregationRefusal(error.reason, error.message, error.culprits)
    return _CONFLICT if error.reason == "step" else _FORBIDDEN, msgspec.msgpack.encode(record)
