"""Answering what the fleet is asked: the one way on which anything that comes from inputs leaves this device.

A question is answered if the offline keys permit it, if this device's own limits and its budget do, and if it is
one of those asked, which depends on labels and on the release that it runs, never on what it saw. What was counted
is clipped, noised and debited, and on the disk, before anything is sent; asked again, it sends the same bytes.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import urllib3
from numpy.typing import NDArray

from edgewright.contract.errors import EdgewrightError, InputError
from edgewright.contract.query.permit import Permit
from edgewright.contract.query.query import Query, Template, digest_of, untimely
from edgewright.contract.refusal import Refusal, RefusedError
from edgewright.contract.timestamps import time_of
from edgewright.device.encryption_keys import IDENTITY
from edgewright.device.enrolment import Settings
from edgewright.device.filesystem import Files
from edgewright.device.queries.ledger_file import LedgerFile
from edgewright.device.queries.sum_client import Kept, SumClient, UnansweredError
from edgewright.privacy.private_sum import contribute, objection
from edgewright.privacy.protocol_params import terms_of
from edgewright.privacy.roster import DeclinedError
from edgewright.trust.keys.device_identity import DeviceKey, new_device_key

__all__ = ["IDENTITY", "Source", "Uplink", "concerns"]

_LETTERS, _LAST = "sums", "asked.json"

Source = Callable[[Query, Template], NDArray[np.float64]]
"""Returns what is summed, shape [values]; zeros where there is nothing."""


class _Last(msgspec.Struct, frozen=True):
    """What was asked last.

    Attributes:
        asked: How far each question is.
        refused: Why others were not answered.
    """

    asked: dict[str, str] = {}
    refused: dict[str, Refusal] = {}


@dataclass(slots=True)
class Uplink:
    """Answers questions.

    Attributes:
        state: Of the device.
        settings: Of the device.
        files: The disk.
        pool: Of connections.
        ledger: What was spent.
        refused: Why questions were not answered, by their id; of the last round.
    """

    state: Path
    settings: Settings
    files: Files
    pool: urllib3.PoolManager
    ledger: LedgerFile = field(init=False)
    refused: dict[str, Refusal] = field(init=False, default_factory=dict)
    _key: DeviceKey = field(init=False)
    _letters: Kept = field(init=False)

    def __post_init__(self) -> None:
        """Read what was spent.

        Raises:
            RefusedError: It is not known any more: nothing is answered.
        """
        self.ledger = LedgerFile(self.state, self.files, self.settings.limits)
        self._key = new_device_key(self.state / IDENTITY)
        self._letters = Kept(self.state / _LETTERS)

    def answer_all(
        self, permit: Permit, queries: tuple[Query, ...], release: str, source: Source, *, now_s: float
    ) -> dict[str, str]:
        """Answer what may be answered, and return how far each question is that this device is asked.

        Args:
            permit: Of the offline keys.
            queries: Live ones.
            release: sha256 of the manifest of the release that answers here, "" for none.
            source: Of what is summed.
            now_s: Seconds since 1970, UTC: the lesser of the clock and the latest signed time.
        """
        progress: dict[str, str] = {}
        self.refused = {}
        for query in queries:
            template = permit.template(query)
            if not concerns(query, template, self.settings, release):
                continue
            try:
                progress[query.id] = self._answer(permit, query, template, source, now_s)
            except DeclinedError as error:
                self.refused[query.id] = Refusal("policy", f"query {query.id}", error.message)
            except RefusedError as error:
                self.refused[query.id] = error.refusal
            except UnansweredError:
                progress[query.id] = "not reached"
            except EdgewrightError as error:
                self.refused[query.id] = Refusal("policy", f"query {query.id}", error.message)
            except OSError as error:
                self.refused[query.id] = Refusal("disk", f"query {query.id}", str(error))
        self._forget(permit, queries)
        self.note(progress)
        return progress

    def _forget(self, permit: Permit, queries: tuple[Query, ...]) -> None:
        """Remove answers and letters of what is not asked any more; their cost stays."""
        asked = {digest_of(query) for query in queries}
        self.ledger.forget_answers(tuple(e.answer for e in self.ledger.ledger.entries if e.digest in asked))
        known = [(query, permit.template(query)) for query in queries]
        sums = []
        for query, template in known:
            with suppress(InputError):
                sums += [] if template is None else [terms_of(query, template).once.hex()]
        self._letters.forget(sums)

    def note(self, progress: Mapping[str, str]) -> None:
        """Keep what was asked last for the device's owner; other processes show it.

        Args:
            progress: How far each question is; under "" why nothing can be asked.
        """
        last = _Last(dict(progress), self.refused)
        with suppress(OSError):
            if self._last() != last:
                self.files.write(self.state / _LAST, msgspec.json.encode(last))

    def _last(self) -> "_Last":
        try:
            return msgspec.json.decode(self.files.read(self.state / _LAST), type=_Last)
        except (OSError, msgspec.MsgspecError):
            return _Last()

    def _answer(self, permit: Permit, query: Query, template: Template | None, source: Source, now_s: float) -> str:
        about = f"query {query.id}"
        if template is None:
            raise RefusedError("policy", about, f"no template {query.template} is permitted")
        if reason := objection(query, template, self.settings.limits):
            raise RefusedError("policy", about, reason)
        if now_s < time_of(query.window_end).timestamp():
            return "not yet"
        if reason := untimely(query, template, now_s):
            raise RefusedError("expired", about, reason)
        terms = terms_of(query, template)

        def values() -> NDArray[np.uint32]:
            known = self.ledger.answer(query)
            if known is not None:
                return np.frombuffer(known, np.uint32).copy()
            noised = contribute(source(query, template), template, query, overwrite=True)
            refusal = self.ledger.debit(query, template, noised.tobytes(), now_s=now_s)
            if refusal is not None:
                raise RefusedError(refusal.code, refusal.file, refusal.reason)
            return noised

        client = SumClient(permit.server.rstrip("/"), self._key, self._letters, self.pool)
        if query.backend == "helper":
            return client.give(terms, bytes.fromhex(permit.helper), values)
        return client.poll(terms, values)

    def shown(self) -> dict[str, Any]:
        """Return what this device was asked, what it told, and what that cost, for its owner."""
        ledger, limits = self.ledger.ledger, self.settings.limits
        return {
            "public_key": self._key.public.hex(),
            "limits": limits,
            "spent_rho_ever": ledger.rho_ever,
            "answers_ever": ledger.count_ever,
            "answered": list(ledger.entries),
            "asked": self._last().asked,
            "refused": self._last().refused,
        }


def concerns(query: Query, template: Template | None, settings: Settings, release: str) -> bool:
    """Whether a device is one of those asked; nothing that it saw has a part in this."""
    if query.release and query.release != release:
        return False
    labels: Mapping[str, str] = {} if template is None else template.selector.labels
    channel = "" if template is None else template.selector.channel
    asked = {**labels, **query.subgroup}
    if channel and channel != settings.channel:
        return False
    return all(settings.labels.get(name) == value for name, value in asked.items())
