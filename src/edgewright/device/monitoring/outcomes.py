"""What the application learns later of an answer: a tap, a correction, a defect. Bounded, and local.

Nothing of it leaves the device until a private sum asks for counts. Here it decides one thing: whether a release on
trial does worse than the proven one.
"""

import math
import threading
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from edgewright.contract.errors import InputError
from edgewright.contract.names import checked_name
from edgewright.device.filesystem import FileSystem

__all__ = ["OutcomeStore", "OutcomeTotal", "is_worse"]

_OUTCOMES_FILE = "outcomes.json"
_MAX_NAMES, _MAX_RELEASES = 32, 3
# Fewer outcomes on either side decide nothing.
_MIN_COUNT = 30


class OutcomeTotal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Values of one name under one release.

    Attributes:
        count: How many.
        total: Their sum; each lies between 0 and 1, and the greater the worse.
    """

    count: int = 0
    total: float = 0.0

    @property
    def mean(self) -> float:
        """Return their mean, 0 if there are none."""
        return self.total / self.count if self.count else 0.0


@dataclass(slots=True)
class OutcomeStore:
    """Outcomes by manifest and name.

    Attributes:
        folder: Holds them.
        files: The disk.
        totals: By the manifest's sha256, then by name.
        has_changed: Whether something is not on the disk yet.
    """

    folder: Path
    files: FileSystem
    totals: dict[str, dict[str, OutcomeTotal]]
    has_changed: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def read(cls, folder: Path, files: FileSystem) -> "OutcomeStore":
        """Return what the disk holds; what is damaged there is forgotten."""
        try:
            known = msgspec.json.decode(
                files.read(folder / _OUTCOMES_FILE), type=dict[str, dict[str, OutcomeTotal]]
            )
        except (OSError, msgspec.MsgspecError):
            known = {}
        return cls(folder, files, known)

    def add(self, manifest: str, name: str, value: float, *, retain: Container[str] = ()) -> None:
        """Count a value.

        Args:
            manifest: sha256 of the manifest of the release that it is about.
            name: What was observed.
            value: 0 to 1, the greater the worse.
            retain: Manifests whose outcomes are not forgotten to make room.

        Raises:
            InputError: The name or the value is none, or there are too many names.
        """
        checked_name("outcome", name)
        if not (math.isfinite(value) and 0 <= value <= 1):
            raise InputError(
                f"outcome {name!r} is {value}", remedy="Give a value from 0 to 1, the greater the worse."
            )
        with self._lock:
            names = self.totals.setdefault(manifest, {})
            if name not in names and len(names) >= _MAX_NAMES:
                raise InputError(
                    f"there are {len(names)} names of outcomes already", remedy="Count under one of them instead."
                )
            before = names.get(name, OutcomeTotal())
            names[name] = OutcomeTotal(before.count + 1, before.total + value)
            self.has_changed = True
            others = [old for old in self.totals if old != manifest and old not in retain]
            for old in others[: max(0, len(self.totals) - _MAX_RELEASES)]:
                del self.totals[old]

    def write(self) -> None:
        """Bring them to the disk.

        Raises:
            OSError: The disk is full or broken.
        """
        with self._lock:
            if not self.has_changed:
                return
            content, self.has_changed = msgspec.json.encode(self.totals), False
        self.files.write(self.folder / _OUTCOMES_FILE, content)

    def snapshot(self) -> dict[str, dict[str, OutcomeTotal]]:
        """Return all of them, by manifest and name, as they are now."""
        with self._lock:
            return {manifest: dict(names) for manifest, names in self.totals.items()}

    def for_release(self, manifest: str | None) -> Mapping[str, OutcomeTotal]:
        """Return the outcomes of a release, by name."""
        return self.totals.get(manifest or "", {})


def is_worse(trial: OutcomeTotal, proven: OutcomeTotal, *, margin: float, confidence: float) -> bool:
    """Whether a release is surely worse than another by more than a margin, however often that is asked.

    Hoeffding's bound (1963) for the difference of two means of values between 0 and 1; what may go wrong is split
    over all numbers of outcomes, so that looking at each of them is allowed.

    >>> is_worse(OutcomeTotal(200, 100.0), OutcomeTotal(200, 10.0), margin=0.05, confidence=0.95)
    True
    """
    if min(trial.count, proven.count) < _MIN_COUNT:
        return False
    seen = trial.count + proven.count
    alpha = (1 - confidence) / (seen * (seen + 1))
    spread = math.sqrt(math.log(1 / alpha) * (1 / trial.count + 1 / proven.count) / 2)
    return trial.mean - proven.mean - spread > margin
