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
from edgewright.contract.query.permit import QueryPermit
from edgewright.contract.query.query import Query, QueryTemplate, record_digest, timing_violation
from edgewright.contract.refusal import Refusal, RefusedError
from edgewright.contract.timestamps import parse_iso8601
from edgewright.device.encryption_keys import IDENTITY_KEY_FILE
from edgewright.device.enrolment import DeviceSettings
from edgewright.device.filesystem import FileSystem
from edgewright.device.queries.ledger_file import LedgerFile
from edgewright.device.queries.sum_client import MessageStore, ServerUnavailableError, SumClient
from edgewright.privacy.private_sum import contribution, query_objection
from edgewright.privacy.protocol_params import protocol_terms
from edgewright.privacy.roster import DeclinedError
from edgewright.trust.keys.device_identity import DeviceKey, load_or_create_device_key

__all__ = ["IDENTITY_KEY_FILE", "QueryResponder", "QuerySource", "is_addressed"]

_MESSAGE_FOLDER, _LAST_ROUND_FILE = "sums", "asked.json"

QuerySource = Callable[[Query, QueryTemplate], NDArray[np.float64]]
"""Returns what is summed, shape [values]; zeros where there is nothing."""


class _LastRound(msgspec.Struct, frozen=True):
    """What was asked last.

    Attributes:
        progress: How far each question is.
        refusals: Why others were not answered.
    """

    progress: dict[str, str] = {}
    refusals: dict[str, Refusal] = {}


@dataclass(slots=True)
class QueryResponder:
    """Answers questions.

    Attributes:
        state_folder: Of the device.
        settings: Of the device.
        files: The disk.
        pool: Of connections.
        ledger: What was spent.
        refusals: Why questions were not answered, by their id; of the last round.
    """

    state_folder: Path
    settings: DeviceSettings
    files: FileSystem
    pool: urllib3.PoolManager
    ledger: LedgerFile = field(init=False)
    refusals: dict[str, Refusal] = field(init=False, default_factory=dict)
    _query_key: DeviceKey = field(init=False)
    _messages: MessageStore = field(init=False)

    def __post_init__(self) -> None:
        """Read what was spent.

        Raises:
            RefusedError: It is not known any more: nothing is answered.
        """
        self.ledger = LedgerFile(self.state_folder, self.files, self.settings.query_limits)
        self._query_key = load_or_create_device_key(self.state_folder / IDENTITY_KEY_FILE)
        self._messages = MessageStore(self.state_folder / _MESSAGE_FOLDER)

    def answer_all(
        self,
        permit: QueryPermit,
        queries: tuple[Query, ...],
        release: str,
        collect_values: QuerySource,
        *,
        now: float,
    ) -> dict[str, str]:
        """Answer what may be answered, and return how far each question is that this device is asked.

        Args:
            permit: Of the offline keys.
            queries: Live ones.
            release: sha256 of the manifest of the release that answers here, "" for none.
            collect_values: Of what is summed.
            now: Seconds since 1970, UTC: the lesser of the clock and the latest signed time.
        """
        progress: dict[str, str] = {}
        self.refusals = {}
        for query in queries:
            template = permit.template(query)
            if not is_addressed(query, template, self.settings, release):
                continue
            try:
                progress[query.id] = self._answer_query(permit, query, template, collect_values, now)
            except DeclinedError as error:
                self.refusals[query.id] = Refusal("policy", f"query {query.id}", error.message)
            except RefusedError as error:
                self.refusals[query.id] = error.refusal
            except ServerUnavailableError:
                progress[query.id] = "not reached"
            except EdgewrightError as error:
                self.refusals[query.id] = Refusal("policy", f"query {query.id}", error.message)
            except OSError as error:
                self.refusals[query.id] = Refusal("disk", f"query {query.id}", str(error))
        self._delete_finished(permit, queries)
        self.record_progress(progress)
        return progress

    def _delete_finished(self, permit: QueryPermit, queries: tuple[Query, ...]) -> None:
        """Remove answers and letters of what is not asked any more; their cost stays."""
        asked = {record_digest(query) for query in queries}
        self.ledger.delete_answers(
            tuple(e.answer_sha256 for e in self.ledger.ledger.answers if e.query_digest in asked)
        )
        known = [(query, permit.template(query)) for query in queries]
        sums = []
        for query, template in known:
            with suppress(InputError):
                sums += [] if template is None else [protocol_terms(query, template).query_window_digest.hex()]
        self._messages.delete_except(sums)

    def record_progress(self, progress: Mapping[str, str]) -> None:
        """Keep what was asked last for the device's owner; other processes show it.

        Args:
            progress: How far each question is; under "" why nothing can be asked.
        """
        last = _LastRound(dict(progress), self.refusals)
        with suppress(OSError):
            if self._read_last_round() != last:
                self.files.write(self.state_folder / _LAST_ROUND_FILE, msgspec.json.encode(last))

    def _read_last_round(self) -> "_LastRound":
        try:
            return msgspec.json.decode(self.files.read(self.state_folder / _LAST_ROUND_FILE), type=_LastRound)
        except (OSError, msgspec.MsgspecError):
            return _LastRound()

    def _answer_query(
        self,
        permit: QueryPermit,
        query: Query,
        template: QueryTemplate | None,
        collect_values: QuerySource,
        now: float,
    ) -> str:
        about = f"query {query.id}"
        if template is None:
            raise RefusedError("policy", about, f"no template {query.template} is permitted")
        if reason := query_objection(query, template, self.settings.query_limits):
            raise RefusedError("policy", about, reason)
        if now < parse_iso8601(query.window_end).timestamp():
            return "not yet"
        if reason := timing_violation(query, template, now):
            raise RefusedError("expired", about, reason)
        terms = protocol_terms(query, template)

        def values() -> NDArray[np.uint32]:
            known = self.ledger.stored_answer(query)
            if known is not None:
                return np.frombuffer(known, np.uint32).copy()
            noised = contribution(collect_values(query, template), template, query, overwrite=True)
            refusal = self.ledger.debit(query, template, noised.tobytes(), now=now)
            if refusal is not None:
                raise RefusedError(refusal.code, refusal.file, refusal.reason)
            return noised

        client = SumClient(permit.server_url.rstrip("/"), self._query_key, self._messages, self.pool)
        if query.backend == "helper":
            return client.submit(terms, bytes.fromhex(permit.helper_public_key), values)
        return client.poll_step(terms, values)

    def report(self) -> dict[str, Any]:
        """Return what this device was asked, what it told, and what that cost, for its owner."""
        ledger, limits = self.ledger.ledger, self.settings.query_limits
        return {
            "public_key": self._query_key.public.hex(),
            "limits": limits,
            "total_rho": ledger.total_rho,
            "total_answers": ledger.total_answers,
            "answers": list(ledger.answers),
            "progress": self._read_last_round().progress,
            "refusals": self._read_last_round().refusals,
        }


def is_addressed(query: Query, template: QueryTemplate | None, settings: DeviceSettings, release: str) -> bool:
    """Whether a device is one of those asked; nothing that it saw has a part in this."""
    if query.release and query.release != release:
        return False
    labels: Mapping[str, str] = {} if template is None else template.selector.labels
    channel = "" if template is None else template.selector.channel
    asked = {**labels, **query.subgroup}
    if channel and channel != settings.channel:
        return False
    return all(settings.labels.get(name) == value for name, value in asked.items())
