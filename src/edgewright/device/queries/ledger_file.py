"""The device's ledger on the disk, outside the slots: what was spent stays spent, over restarts and rollbacks.

It is kept twice, with the same content. A debit is complete when both copies are on the disk, so one that rots
loses nothing. When neither can be read, or both are gone though there was a first use, nothing is answered any
more: whoever enrols the device anew, or restores it whole from before, begins a new budget.
"""

import hashlib
import threading
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from edgewright.contract.query.query import DeviceQueryLimits, Query, QueryTemplate
from edgewright.contract.refusal import Refusal, RefusedError
from edgewright.contract.schema import decode_record
from edgewright.device.filesystem import FileSystem
from edgewright.privacy.budget_ledger import PrivacyLedger, debit_budget, find_answer

__all__ = ["LedgerFile"]

_LEDGER_FILES = ("privacy.0", "privacy.1")
_USED_MARK_FILE = "privacy.used"
_ANSWERS_FOLDER = "privacy.answers"
_RE_ENROL_HINT = "Enrol the device anew; that begins a new budget."


@dataclass(slots=True)
class LedgerFile:
    """The ledger, and the answers that may have to be sent again.

    Attributes:
        folder: That holds them.
        files: The disk.
        limits: Of this device.
        ledger: As it is on the disk.
        outdated_copies: Names of copies that are damaged, gone or old; they are written before anything is sent.

    Raises:
        RefusedError: The ledger is damaged, or gone though it was used.
    """

    folder: Path
    files: FileSystem
    limits: DeviceQueryLimits
    ledger: PrivacyLedger = field(init=False)
    outdated_copies: tuple[str, ...] = field(init=False, default=())
    _lock: threading.Lock = field(init=False, default_factory=threading.Lock)

    def __post_init__(self) -> None:
        """Read the copy that knows of more."""
        found: dict[str, PrivacyLedger] = {}
        rotten = False
        for name in _LEDGER_FILES:
            try:
                found[name] = _decode_ledger(self.files.read(self.folder / name))
            except FileNotFoundError:
                continue
            except (OSError, ValueError):
                rotten = True
        if not found and (rotten or self._was_used()):
            raise RefusedError(
                "budget",
                "ledger",
                "what this device has told is not known any more: its ledger is lost",
                remedy=_RE_ENROL_HINT,
            )
        self.ledger = max(found.values(), key=lambda ledger: ledger.total_answers, default=PrivacyLedger())
        self.outdated_copies = (
            tuple(name for name in _LEDGER_FILES if found.get(name) != self.ledger) if found else ()
        )

    def debit(self, query: Query, template: QueryTemplate, answer: bytes, *, now: float) -> Refusal | None:
        """Take an answer's cost off the budget; on None it and the answer are on the disk, and it may be sent.

        Args:
            query: That is answered.
            template: That the offline keys signed.
            answer: From `privacy.sum.contribute`, as bytes.
            now: Seconds since 1970, UTC: the lesser of the clock and the latest signed time.

        Raises:
            OSError: The disk is full or broken; nothing may be sent.
        """
        with self._lock:
            after = debit_budget(self.ledger, query, template, self.limits, answer=answer, now=now)
            if isinstance(after, Refusal):
                return after
            if after is not self.ledger:
                self._mark_first_use()
                # The answer first: an entry without its answer could never be sent, and would cost nevertheless.
                self.files.write(self.folder / _ANSWERS_FOLDER / after.answers[-1].answer_sha256, answer)
                # Spent from here on, whether or not it can be written: what could not be is written before the
                # next.
                self.ledger, self.outdated_copies = after, _LEDGER_FILES
            self._write()
            return None

    def stored_answer(self, query: Query) -> bytes | None:
        """Return what was answered to a question, to be sent again; None if it was not answered.

        Raises:
            RefusedError: It was answered, and the answer is not known any more.
        """
        entry = find_answer(self.ledger, query)
        if entry is None:
            return None
        try:
            content = self.files.read(self.folder / _ANSWERS_FOLDER / entry.answer_sha256)
        except OSError:
            content = b""
        if hashlib.sha256(content).hexdigest() != entry.answer_sha256:
            raise RefusedError(
                "budget", f"query {query.id}", "it was answered, and the answer is lost: another would tell more"
            )
        with self._lock:
            self._write()
        return content

    def delete_answers(self, retained_digests: tuple[str, ...] = ()) -> None:
        """Remove answers that need not be sent again, but for those with these digests; their cost stays."""
        folder = self.folder / _ANSWERS_FOLDER
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.name not in retained_digests:
                self.files.remove(path)

    def _mark_first_use(self) -> None:
        """Leave the mark of the first use, after there is a ledger that could be missed."""
        if not self._was_used():
            (self.folder / _ANSWERS_FOLDER).mkdir(parents=True, exist_ok=True)
            self.outdated_copies = _LEDGER_FILES
            self._write()
            self.files.write(self.folder / _USED_MARK_FILE, b"")

    def _write(self) -> None:
        """Bring the ledger into each copy that is behind it."""
        body = msgspec.json.encode(self.ledger)
        content = hashlib.sha256(body).hexdigest().encode() + b"\n" + body
        for name in self.outdated_copies:
            self.files.write(self.folder / name, content)
            self.outdated_copies = self.outdated_copies[1:]

    def _was_used(self) -> bool:
        try:
            self.files.read(self.folder / _USED_MARK_FILE)
        except FileNotFoundError:
            return False
        except OSError:
            return True
        return True


def _decode_ledger(content: bytes) -> PrivacyLedger:
    line, _, body = content.partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != line:
        raise ValueError("the checksum does not hold")
    return decode_record(body, type=PrivacyLedger)
