"""What a device remembers: one record, kept twice, so that a torn or a rotten copy is no loss.

The record is written to the older of two files. Reading takes the newer one whose checksum holds. A device whose
copies are both gone has forgotten what it believed; it begins anew from the root that it was enrolled with.
"""

from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from edgewright.contract.refusal import Refusal
from edgewright.contract.rollout.plan import HealthRule
from edgewright.device.filesystem import FileSystem, checked_body, with_checksum
from edgewright.device.slots import InstalledRelease, Slots
from edgewright.device.update.state_machine import UpdateLifecycleState
from edgewright.trust.client.verification import TrustState

__all__ = ["Journal", "JournalRecord", "PostponedRelease"]

_JOURNAL_FILES = ("journal.0", "journal.1")


class PostponedRelease(msgspec.Struct, frozen=True):
    """A release that was refused for what may change by itself.

    Attributes:
        refusal: It was refused last.
        count: How often.
        not_before: Not tried again before, UTC, ISO 8601.
    """

    refusal: Refusal
    count: int
    not_before: str


class JournalRecord(msgspec.Struct, frozen=True):
    """What a device remembers. What a newer agent has added to it is ignored by an older one.

    Attributes:
        sequence: Rises with each write.
        state: Of the update.
        slots: What is installed.
        target: What is being installed, None if nothing.
        trust_state: What it believed of the repository.
        failed_releases: Why releases failed here, by their manifest's sha256; they are not tried again.
        last_refusal: What was refused last, None if nothing was since the last success.
        test_attempts: How often the wanted release was opened to be tested; one that takes the process along shows
            here.
        served_inferences: Inferences of the release on trial.
        trial_started_at: When its probation began, UTC, ISO 8601; "" if there is none.
        retest_not_before: When the wanted release is tested again after it failed for want of memory or in the heat,
            UTC, ISO 8601; "" for at once.
        handed_to_installer: Whether the platform's installer has taken the image.
        corrupt_releases: Manifests of releases in slots whose bytes were found broken and could not be mended yet.
        postponed_releases: Releases that were refused for what may change, by their manifest's sha256.
        boot_id: Which start of the platform it was when an image was handed to its installer.
        image_before: What ran then, in the installer's words.
        rollout_rules: What the rollout wants to be compared between the release on trial and the proven one.
        rollout_seen_at: When it first saw releases rolled out, UTC, ISO 8601, by their manifest's sha256; the newest
            few.
        min_version: Of the policy that it believed last.
        denied_manifests: By the policy that it believed last.
        retirement_notice: What serves though the offline keys would not have it installed any more.
        snapshot_digest: sha256 of the snapshot that it acted on last.
        metadata_checked_at: When it last believed what the server said, UTC, ISO 8601.
    """

    sequence: int = 0
    state: UpdateLifecycleState = UpdateLifecycleState.EMPTY
    slots: Slots = Slots()
    target: InstalledRelease | None = None
    trust_state: TrustState = TrustState()
    failed_releases: dict[str, Refusal] = {}
    last_refusal: Refusal | None = None
    test_attempts: int = 0
    served_inferences: int = 0
    trial_started_at: str = ""
    retest_not_before: str = ""
    handed_to_installer: bool = False
    corrupt_releases: tuple[str, ...] = ()
    postponed_releases: dict[str, PostponedRelease] = {}
    boot_id: str = ""
    image_before: str = ""
    rollout_rules: tuple[HealthRule, ...] = ()
    rollout_seen_at: dict[str, str] = {}
    min_version: str = "0"
    denied_manifests: tuple[str, ...] = ()
    retirement_notice: Refusal | None = None
    snapshot_digest: str = ""
    metadata_checked_at: str = ""


@dataclass(slots=True)
class Journal:
    """The record on the disk.

    Attributes:
        folder: That holds it.
        files: The disk.
        record: As it was read or written last.
        torn_copies: Names of copies that could not be read.
        is_lost: Whether there were copies and none could be read: what lies on the disk is then nobody's to remove.
        writable: Whether writing reaches the disk; who only looks on changes nothing there.
    """

    folder: Path
    files: FileSystem
    writable: bool = True
    record: JournalRecord = field(init=False)
    torn_copies: tuple[str, ...] = field(init=False, default=())
    is_lost: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        """Read the newer sound copy."""
        found: list[JournalRecord] = []
        torn: list[str] = []
        for name in _JOURNAL_FILES:
            try:
                content = self.files.read(self.folder / name)
            except FileNotFoundError:
                continue
            except OSError:
                torn.append(name)
                continue
            record = _decode_record(content)
            if record is None:
                torn.append(name)
            else:
                found.append(record)
        self.record = max(found, key=lambda record: record.sequence, default=JournalRecord())
        self.torn_copies = tuple(torn)
        self.is_lost = bool(torn) and not found

    def write(self, record: JournalRecord) -> JournalRecord:
        """Remember a record; it survives a power cut from the return on.

        Raises:
            OSError: The disk is full or broken; the record before is still there.
        """
        if not self.writable:
            self.record = record
            return record
        record = msgspec.structs.replace(record, sequence=self.record.sequence + 1)
        content = msgspec.json.encode(record)
        self.files.write(
            self.folder / _JOURNAL_FILES[record.sequence % len(_JOURNAL_FILES)], with_checksum(content)
        )
        self.record = record
        return record


def _decode_record(content: bytes) -> JournalRecord | None:
    body = checked_body(content)
    try:
        return None if body is None else msgspec.json.decode(body, type=JournalRecord)
    except msgspec.MsgspecError:
        return None
