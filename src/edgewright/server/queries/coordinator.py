"""Questions to the fleet: letters are taken and kept, steps are closed in time, sums are opened and kept.

What is kept in the database is the truth. A process that answers devices takes up from there what others took; the
one that decides closes a step and writes down whose letters were in it, so that all processes have the same roster.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import urllib3

from edgewright.contract.errors import EdgewrightError, OutputError
from edgewright.contract.query.permit import LiveQueries
from edgewright.contract.query.query import Query, QueryTemplate
from edgewright.contract.timestamps import parse_iso8601
from edgewright.device.queries.sum_client import ServerUnavailableError, post_bytes
from edgewright.privacy.bit_packing import UnsignedArray
from edgewright.privacy.private_sum import recover_sum, sum_as_json
from edgewright.privacy.protocol_params import protocol_terms
from edgewright.privacy.roster import DeclinedError, EnrolmentList, ProtocolTerms
from edgewright.privacy.secagg_server import SERVER_STEPS
from edgewright.server.controller.signed_plans import read_signed_records
from edgewright.server.services import Services
from edgewright.server.store.records import StoredMessage
from edgewright.trust.publishing.signed_queries import current_permit

__all__ = ["LiveQuery", "QueryCoordinator", "live_queries"]

_TIMEOUT_SECONDS = 20.0
_SENDER_BYTES = 32
# A sum is closed so long before its deadline, that the helper can still be asked, and asked again.
_MARGIN = 0.1


@dataclass(frozen=True, slots=True)
class LiveQuery:
    """A question that is asked.

    Attributes:
        model: That it is about.
        query: As it is signed.
        template: That permits it.
    """

    model: str
    query: Query
    template: QueryTemplate


def live_queries(services: Services) -> list[LiveQuery]:
    """Return what is asked at present.

    Raises:
        TrustError: The repository cannot be believed.
    """
    repository, found = services.repository(), []
    for questions in read_signed_records(services, "questions", LiveQueries):
        permit = current_permit(repository, questions.model, questions.device_class)
        for query in questions.queries:
            template = None if permit is None else permit.template(query)
            if template is not None:
                found.append(LiveQuery(questions.model, query, template))
    return found


@dataclass(slots=True)
class QueryCoordinator:
    """Private sums of one process.

    Attributes:
        services: What it works with.
        handles_messages: Whether devices' letters come to this process; it then shares the desk with whoever takes
            them.
    """

    services: Services
    handles_messages: bool
    _open: dict[str, int] = field(init=False, default_factory=dict)
    _listed: dict[str, dict[str, bytes]] = field(init=False, default_factory=dict)
    _pool: urllib3.PoolManager = field(
        init=False, default_factory=lambda: urllib3.PoolManager(timeout=_TIMEOUT_SECONDS, retries=False)
    )

    def sync_open_sums(self, now: float) -> None:
        """Open desks for what is asked, and take up what other processes closed; for processes that answer."""
        live = {one.query.id: one for one in self._open_queries(now)}
        for one in live.values():
            terms = protocol_terms(one.query, one.template)
            closed = self._closed(terms)
            if self._open.get(terms.digest.hex()) != closed:
                self._rebuild(one, terms, closed)
        known = {protocol_terms(one.query, one.template).digest.hex() for one in live.values()}
        for gone in set(self._open) - known:
            del self._open[gone]

    def advance_sums(self, now: float) -> list[str]:
        """Close what is due, and open sums; for the process that decides. Return what was done, in words."""
        done = []
        for one in self._open_queries(now):
            try:
                if (words := self._advance(one, now)) is not None:
                    done.append(words)
            except (DeclinedError, ServerUnavailableError) as error:
                if now >= parse_iso8601(one.query.deadline).timestamp():
                    done.append(self._finish(one, None, now, error.message))
        return done

    def _open_queries(self, now: float) -> Iterator[LiveQuery]:
        """Yield what is asked and has no result yet; each is written down once."""
        sums = self.services.store.queries
        for one in live_queries(self.services):
            kept = sums.get(one.query.id)
            if kept is None:
                sums.store_query(one.query, one.template, one.model, now=now)
            elif kept.state != "open":
                continue
            yield one

    def _advance(self, one: LiveQuery, now: float) -> str | None:
        begins, ends = (parse_iso8601(text).timestamp() for text in (one.query.window_end, one.query.deadline))
        if now < begins:
            return None
        terms = protocol_terms(one.query, one.template)
        closed = self._closed(terms)
        helped = one.query.backend == "helper"
        step = "submit" if helped else SERVER_STEPS[closed]
        # Each step of several has its part of the time, and is closed before if all have said what they can.
        share = 1.0 if helped else (closed + 1) / (len(SERVER_STEPS) - 1)
        due_at = begins + (ends - begins) * (1 - _MARGIN) * share
        awaited = (
            self._expected_devices(one) if closed == 0 else len(self._senders(terms, SERVER_STEPS[closed - 1]))
        )
        asked = helped and self._marker(terms, "helper_request") is not None
        count = self.services.store.queries.count_messages(terms.digest.hex(), step) if step != "done" else awaited
        if not asked and count < awaited and now < due_at:
            return None
        if not self.handles_messages or self._open.get(terms.digest.hex()) != closed:
            self._rebuild(one, terms, closed)
        desk = self.services.aggregation
        if helped:
            return self._finish(one, self._ask_helper(terms), now, "")
        if step != "done":
            desk.advance(terms)
            self._open[terms.digest.hex()] = closed + 1
        if closed + 1 >= len(SERVER_STEPS) - 1:
            return self._finish(one, desk.unmask_sum(terms), now, "")
        return f"query {one.query.id}: step {SERVER_STEPS[closed + 1]} begins"

    def _expected_devices(self, one: LiveQuery) -> int:
        """Return how many devices there are to wait for."""
        return min(len(self.services.store.devices.public_keys(one.template.device_class)), one.query.max_cohort)

    def _ask_helper(self, terms: ProtocolTerms) -> tuple[UnsignedArray, int]:
        """Ask the second operator, and return sum and number of devices."""
        desk = self.services.aggregation
        if not self.services.helper_url:
            raise DeclinedError("step", "the helper's address is not known; start the server with --helper")
        while True:
            content = desk.helper_request(terms)
            try:
                return desk.unmask_sum(terms, post_bytes(self._pool, f"{self.services.helper_url}/help", content))
            except DeclinedError as error:
                if not error.culprits:
                    raise
                desk.exclude(terms, error.culprits)

    def _finish(self, one: LiveQuery, found: tuple[UnsignedArray, int] | None, now: float, reason: str) -> str:
        """Keep what came out, and forget the letters."""
        store, terms = self.services.store, protocol_terms(one.query, one.template)
        result, devices = None, None
        if found is not None:
            total, devices = found
            sums = recover_sum(np.asarray(total).astype(np.uint32), one.template, one.query, devices)
            result = sum_as_json(sums, one.query, one.template)
        if store.queries.finish_query(one.query.id, result=result, devices=devices, now=now):
            said = {"devices": devices, "reason": reason}
            store.audit.write("controller", "end query", one.query.id, at=now, detail=said)
        store.queries.delete_messages(terms.digest.hex())
        self.services.aggregation.close_sum(terms)
        self._open.pop(terms.digest.hex(), None)
        return f"query {one.query.id}: {f'{devices} devices' if found else f'no sum: {reason}'}"

    def _rebuild(self, one: LiveQuery, terms: ProtocolTerms, closed: int) -> None:
        """Take up what the database holds of a sum."""
        services, name = self.services, terms.digest.hex()
        enrolled = EnrolmentList(1, services.store.devices.public_keys(one.template.device_class))
        services.aggregation.close_sum(terms)

        def keep(what: str, content: bytes) -> None:
            self._store_message(terms, what, content)

        services.aggregation.open_sum(
            terms, enrolment_list=enrolled, max_devices=one.query.max_cohort, store_message=keep
        )
        services.aggregation.restore_sum(terms, self._stored_messages(terms))
        self._open[name] = closed

    def _stored_messages(self, terms: ProtocolTerms) -> dict[str, bytes]:
        """Return what was kept, by the names that a desk gives it; of closed steps what was in them."""
        name = terms.digest.hex()
        found: dict[str, bytes] = {}
        for step in ("submit", *SERVER_STEPS[:-1]):
            marker = self._marker(terms, f"{step}.closed")
            among = None if marker is None else set(_split(marker))
            letters = {letter.sender: letter.body for letter in self._messages(terms, step)}
            if among is not None:
                letters = {sender: body for sender, body in letters.items() if sender in among}
                found[f"{step}.closed"] = b""
            self._listed.setdefault(name, {})[step] = b"".join(sorted(letters))
            found |= {f"{step}-{sender.hex()}": body for sender, body in letters.items()}
        if (ask := self._marker(terms, "helper_request")) is not None:
            found["helper_request"] = ask
        return found

    def _store_message(self, terms: ProtocolTerms, what: str, content: bytes) -> None:
        """Keep a letter, or that a step is closed and whose letters were in it."""
        name, now = terms.digest.hex(), self.services.now()
        step, found, sender = what.partition("-")
        if not found:
            sender = ""
            if what.endswith(".closed"):
                step = what.removesuffix(".closed")
                content = (
                    b"".join(self._senders(terms, step)) if self.handles_messages else self._listed[name][step]
                )
                step = what
        letter = StoredMessage(name, step, bytes.fromhex(sender), content, now)
        sums = self.services.store.queries
        try:
            if not sender:
                sums.store_marker(letter)
                return
            kept = sums.store_message(letter)
        except EdgewrightError as error:
            raise OutputError(f"a letter cannot be kept: {error.message}", remedy="It is sent again.") from error
        if kept == "other":
            raise OutputError("another letter of this device was kept", remedy="It is not sent again.")

    def _closed(self, terms: ProtocolTerms) -> int:
        """Return how many steps are closed."""
        return sum(self._marker(terms, f"{step}.closed") is not None for step in SERVER_STEPS[:-1])

    def _marker(self, terms: ProtocolTerms, step: str) -> bytes | None:
        found = self.services.store.queries.messages(terms.digest.hex(), step, after=b"", limit=1, marker=True)
        return found[0].body if found else None

    def _senders(self, terms: ProtocolTerms, step: str) -> list[bytes]:
        return [letter.sender for letter in self._messages(terms, step)]

    def _messages(self, terms: ProtocolTerms, step: str) -> Iterator[StoredMessage]:
        after = b""
        while page := self.services.store.queries.messages(terms.digest.hex(), step, after=after, limit=500):
            yield from page
            after = page[-1].sender


def _split(content: bytes) -> Iterator[bytes]:
    for begin in range(0, len(content), _SENDER_BYTES):
        yield content[begin : begin + _SENDER_BYTES]
