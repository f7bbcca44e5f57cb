"""What a device remembers: one record, kept twice, so that a torn or a rotten copy is no loss.

The record is written to the older of two files. Reading takes the newer one whose checksum holds. A device whose
copies are both gone has forgotten what it believed; it begins anew from the root that it was enrolled with.
"""

from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from edgewright.contract.refusal import Refusal
from edgewright.contract.rollout.plan import HealthRule
from edgewright.device.filesystem import Files, body_of, summed
from edgewright.device.slots import Installed, Slots
from edgewright.device.update.state_machine import State
from edgewright.trust.client.verification import Memory

__all__ = ["Journal", "Postponed", "Record"]

_NAMES = ("journal.0", "journal.1")


class Postponed(msgspec.Struct, frozen=True):
    """A release that was refused for what may change by itself.

    Attributes:
        why: It was refused last.
        count: How often.
        until: Not tried again before, UTC, ISO 8601.
    """

    why: Refusal
    count: int
    until: str


class Record(msgspec.Struct, frozen=True):
    """What a device remembers. What a newer agent has added to it is ignored by an older one.

    Attributes:
        sequence: Rises with each write.
        state: Of the update.
        slots: What is installed.
        wanted: What is being installed, None if nothing.
        memory: What it believed of the repository.
        failed: Why releases failed here, by their manifest's sha256; they are not tried again.
        last_refusal: What was refused last, None if nothing was since the last success.
        attempts: How often the wanted release was opened to be tested; one that takes the process along shows here.
        served: Inferences of the release on trial.
        trial_since: When its probation began, UTC, ISO 8601; "" if there is none.
        not_before: When the wanted release is tested again after it failed for want of memory or in the heat, UTC,
            ISO 8601; "" for at once.
        handed: Whether the platform's installer has taken the image.
        broken: Manifests of releases in slots whose bytes were found broken and could not be mended yet.
        postponed: Releases that were refused for what may change, by their manifest's sha256.
        boot: Which start of the platform it was when an image was handed to its installer.
        ran: What ran then, in the installer's words.
        rules: What the rollout wants to be compared between the release on trial and the proven one.
        seen: When it first saw releases rolled out, UTC, ISO 8601, by their manifest's sha256; the newest few.
        floor: Of the policy that it believed last.
        denied: By the policy that it believed last.
        notice: What serves though the offline keys would not have it installed any more.
        snapshot: sha256 of the snapshot that it acted on last.
        checked: When it last believed what the server said, UTC, ISO 8601.
    """

    sequence: int = 0
    state: State = State.EMPTY
    slots: Slots = Slots()
    wanted: Installed | None = None
    memory: Memory = Memory()
    failed: dict[str, Refusal] = {}
    last_refusal: Refusal | None = None
    attempts: int = 0
    served: int = 0
    trial_since: str = ""
    not_before: str = ""
    handed: bool = False
    broken: tuple[str, ...] = ()
    postponed: dict[str, Postponed] = {}
    boot: str = ""
    ran: str = ""
    rules: tuple[HealthRule, ...] = ()
    seen: dict[str, str] = {}
    floor: str = "0"
    denied: tuple[str, ...] = ()
    notice: Refusal | None = None
    snapshot: str = ""
    checked: str = ""


@dataclass(slots=True)
class Journal:
    """The record on the disk.

    Attributes:
        folder: That holds it.
        files: The disk.
        record: As it was read or written last.
        torn: Names of copies that could not be read.
        lost: Whether there were copies and none could be read: what lies on the disk is then nobody's to remove.
        keeps: Whether writing reaches the disk; who only looks on changes nothing there.
    """

    folder: Path
    files: Files
    keeps: bool = True
    record: Record = field(init=False)
    torn: tuple[str, ...] = field(init=False, default=())
    lost: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        """Read the newer sound copy."""
        found: list[Record] = []
        torn: list[str] = []
        for name in _NAMES:
            try:
                content = self.files.read(self.folder / name)
            except FileNotFoundError:
                continue
            except OSError:
                torn.append(name)
                continue
            record = _decoded(content)
            if record is None:
                torn.append(name)
            else:
                found.append(record)
        self.record = max(found, key=lambda record: record.sequence, default=Record())
        self.torn = tuple(torn)
        self.lost = bool(torn) and not found

    def write(self, record: Record) -> Record:
        """Remember a record; it survives a power cut from the return on.

        Raises:
            OSError: The disk is full or broken; the record before is still there.
        """
        if not self.keeps:
            self.record = record
            return record
        record = msgspec.structs.replace(record, sequence=self.record.sequence + 1)
        content = msgspec.json.encode(record)
        self.files.write(self.folder / _NAMES[record.sequence % len(_NAMES)], summed(content))
        self.record = record
        return record


def _decoded(content: bytes) -> Record | None:
    body = body_of(content)
    try:
        return None if body is None else msgspec.json.decode(body, type=Record)
    except msgspec.MsgspecError:
        return None
