"""Questions to the fleet: letters are taken and kept, steps are closed in time, sums are opened and kept.

What is kept in the database is the truth. A process that answers devices takes up from there what others took; the
one that decides closes a step and writes down whose letters were in it, so that all processes have the same roster.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import urllib3

from edgewright.contract.errors import EdgewrightError, OutputError
from edgewright.contract.query.permit import Questions
from edgewright.contract.query.query import Query, Template
from edgewright.contract.timestamps import time_of
from edgewright.device.queries.sum_client import UnansweredError, post
from edgewright.privacy.bit_packing import Words
from edgewright.privacy.private_sum import as_json, recover
from edgewright.privacy.protocol_params import terms_of
from edgewright.privacy.roster import DeclinedError, Enrolment, Terms
from edgewright.privacy.secagg_server import STEPS
from edgewright.server.controller.signed_plans import signed_in
from edgewright.server.services import Services
from edgewright.server.store.records import KeptLetter
from edgewright.trust.publishing.signed_queries import known_permit

__all__ = ["Asking", "Live", "live_queries"]

_PATIENCE_S = 20.0
_SENDER_BYTES = 32
# A sum is closed so long before its deadline, that the helper can still be asked, and asked again.
_MARGIN = 0.1


@dataclass(frozen=True, slots=True)
class Live:
    """A question that is asked.

    Attributes:
        model: That it is about.
        query: As it is signed.
        template: That permits it.
    """

    model: str
    query: Query
    template: Template


def live_queries(services: Services) -> list[Live]:
    """Return what is asked at present.

    Raises:
        TrustError: The repository cannot be believed.
    """
    repository, found = services.repository(), []
    for questions in signed_in(services, "questions", Questions):
        permit = known_permit(repository, questions.model, questions.device_class)
        for query in questions.queries:
            template = None if permit is None else permit.template(query)
            if template is not None:
                found.append(Live(questions.model, query, template))
    return found


@dataclass(slots=True)
class Asking:
    """Private sums of one process.

    Attributes:
        services: What it works with.
        answers: Whether devices' letters come to this process; it then shares the desk with whoever takes them.
    """

    services: Services
    answers: bool
    _open: dict[str, int] = field(init=False, default_factory=dict)
    _listed: dict[str, dict[str, bytes]] = field(init=False, default_factory=dict)
    _pool: urllib3.PoolManager = field(
        init=False, default_factory=lambda: urllib3.PoolManager(timeout=_PATIENCE_S, retries=False)
    )

    def tend(self, now_s: float) -> None:
        """Open desks for what is asked, and take up what other processes closed; for processes that answer."""
        live = {one.query.id: one for one in self._asked(now_s)}
        for one in live.values():
            terms = terms_of(one.query, one.template)
            closed = self._closed(terms)
            if self._open.get(terms.digest.hex()) != closed:
                self._rebuild(one, terms, closed)
        known = {terms_of(one.query, one.template).digest.hex() for one in live.values()}
        for gone in set(self._open) - known:
            del self._open[gone]

    def step(self, now_s: float) -> list[str]:
        """Close what is due, and open sums; for the process that decides. Return what was done, in words."""
        done = []
        for one in self._asked(now_s):
            try:
                if (words := self._step(one, now_s)) is not None:
                    done.append(words)
            except (DeclinedError, UnansweredError) as error:
                if now_s >= time_of(one.query.deadline).timestamp():
                    done.append(self._end(one, None, now_s, error.message))
        return done

    def _asked(self, now_s: float) -> Iterator[Live]:
        """Yield what is asked and has no result yet; each is written down once."""
        sums = self.services.store.sums
        for one in live_queries(self.services):
            kept = sums.get(one.query.id)
            if kept is None:
                sums.ask(one.query, one.template, one.model, now_s=now_s)
            elif kept.state != "open":
                continue
            yield one

    def _step(self, one: Live, now_s: float) -> str | None:
        begins, ends = (time_of(text).timestamp() for text in (one.query.window_end, one.query.deadline))
        if now_s < begins:
            return None
        terms = terms_of(one.query, one.template)
        closed = self._closed(terms)
        helped = one.query.backend == "helper"
        step = "gift" if helped else STEPS[closed]
        # Each step of several has its part of the time, and is closed before if all have said what they can.
        share = 1.0 if helped else (closed + 1) / (len(STEPS) - 1)
        due_s = begins + (ends - begins) * (1 - _MARGIN) * share
        awaited = self._wanted(one) if closed == 0 else len(self._senders(terms, STEPS[closed - 1]))
        asked = helped and self._marker(terms, "ask") is not None
        count = self.services.store.sums.count_letters(terms.digest.hex(), step) if step != "done" else awaited
        if not asked and count < awaited and now_s < due_s:
            return None
        if not self.answers or self._open.get(terms.digest.hex()) != closed:
            self._rebuild(one, terms, closed)
        desk = self.services.desk
        if helped:
            return self._end(one, self._helped(terms), now_s, "")
        if step != "done":
            desk.advance(terms)
            self._open[terms.digest.hex()] = closed + 1
        if closed + 1 >= len(STEPS) - 1:
            return self._end(one, desk.total(terms), now_s, "")
        return f"query {one.query.id}: step {STEPS[closed + 1]} begins"

    def _wanted(self, one: Live) -> int:
        """Return how many devices there are to wait for."""
        return min(len(self.services.store.devices.publics(one.template.device_class)), one.query.largest)

    def _helped(self, terms: Terms) -> tuple[Words, int]:
        """Ask the second operator, and return sum and number of devices."""
        desk = self.services.desk
        if not self.services.helper_url:
            raise DeclinedError("step", "the helper's address is not known; start the server with --helper")
        while True:
            content = desk.ask(terms)
            try:
                return desk.total(terms, post(self._pool, f"{self.services.helper_url}/help", content))
            except DeclinedError as error:
                if not error.culprits:
                    raise
                desk.leave_out(terms, error.culprits)

    def _end(self, one: Live, found: tuple[Words, int] | None, now_s: float, why: str) -> str:
        """Keep what came out, and forget the letters."""
        store, terms = self.services.store, terms_of(one.query, one.template)
        result, devices = None, None
        if found is not None:
            total, devices = found
            sums = recover(np.asarray(total).astype(np.uint32), one.template, one.query, devices)
            result = as_json(sums, one.query, one.template)
        if store.sums.end(one.query.id, result=result, devices=devices, now_s=now_s):
            said = {"devices": devices, "why": why}
            store.audit.write("controller", "end query", one.query.id, at_s=now_s, detail=said)
        store.sums.forget_letters(terms.digest.hex())
        self.services.desk.close(terms)
        self._open.pop(terms.digest.hex(), None)
        return f"query {one.query.id}: {f'{devices} devices' if found else f'no sum: {why}'}"

    def _rebuild(self, one: Live, terms: Terms, closed: int) -> None:
        """Take up what the database holds of a sum."""
        services, name = self.services, terms.digest.hex()
        enrolled = Enrolment(1, services.store.devices.publics(one.template.device_class))
        services.desk.close(terms)

        def keep(what: str, content: bytes) -> None:
            self._keep(terms, what, content)

        services.desk.open(terms, enrolled=enrolled, most=one.query.largest, keep=keep)
        services.desk.restore(terms, self._kept(terms))
        self._open[name] = closed

    def _kept(self, terms: Terms) -> dict[str, bytes]:
        """Return what was kept, by the names that a desk gives it; of closed steps what was in them."""
        name = terms.digest.hex()
        found: dict[str, bytes] = {}
        for step in ("gift", *STEPS[:-1]):
            marker = self._marker(terms, f"{step}.closed")
            among = None if marker is None else set(_split(marker))
            letters = {letter.sender: letter.body for letter in self._letters(terms, step)}
            if among is not None:
                letters = {sender: body for sender, body in letters.items() if sender in among}
                found[f"{step}.closed"] = b""
            self._listed.setdefault(name, {})[step] = b"".join(sorted(letters))
            found |= {f"{step}-{sender.hex()}": body for sender, body in letters.items()}
        if (ask := self._marker(terms, "ask")) is not None:
            found["ask"] = ask
        return found

    def _keep(self, terms: Terms, what: str, content: bytes) -> None:
        """Keep a letter, or that a step is closed and whose letters were in it."""
        name, now = terms.digest.hex(), self.services.now()
        step, found, sender = what.partition("-")
        if not found:
            sender = ""
            if what.endswith(".closed"):
                step = what.removesuffix(".closed")
                content = b"".join(self._senders(terms, step)) if self.answers else self._listed[name][step]
                step = what
        letter = KeptLetter(name, step, bytes.fromhex(sender), content, now)
        sums = self.services.store.sums
        try:
            if not sender:
                sums.put_marker(letter)
                return
            kept = sums.put_letter(letter)
        except EdgewrightError as error:
            raise OutputError(f"a letter cannot be kept: {error.message}", remedy="It is sent again.") from error
        if kept == "other":
            raise OutputError("another letter of this device was kept", remedy="It is not sent again.")

    def _closed(self, terms: Terms) -> int:
        """Return how many steps are closed."""
        return sum(self._marker(terms, f"{step}.closed") is not None for step in STEPS[:-1])

    def _marker(self, terms: Terms, step: str) -> bytes | None:
        found = self.services.store.sums.letters(terms.digest.hex(), step, after=b"", limit=1, marker=True)
        return found[0].body if found else None

    def _senders(self, terms: Terms, step: str) -> list[bytes]:
        return [letter.sender for letter in self._letters(terms, step)]

    def _letters(self, terms: Terms, step: str) -> Iterator[KeptLetter]:
        after = b""
        while page := self.services.store.sums.letters(terms.digest.hex(), step, after=after, limit=500):
            yield from page
            after = page[-1].sender


def _split(content: bytes) -> Iterator[bytes]:
    for begin in range(0, len(content), _SENDER_BYTES):
        yield content[begin : begin + _SENDER_BYTES]
