"""How often a certify split was looked at, over all runs on this machine.

Whoever tries candidates on the same samples until one passes proves nothing. So each new candidate that is judged
on a split is written down before its verdict is known, and look k may err with probability alpha / (k (k + 1))
only, which sums to alpha over any number of looks.

The split is known by the fingerprint of its data. Adding or changing samples gives another fingerprint and starts
anew, although the old samples are still in it: extending a split *because* a verdict was unwelcome is not counted
here. Nor are looks on other machines, or under another state folder.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgewright.contract.errors import InputError, OutputError
from edgewright.contract.schema import SCHEMA_VERSION
from edgewright.trust.fsync import fsync_path

__all__ = ["LookLedger", "alpha_of_look", "state_folder"]


def alpha_of_look(alpha: float, look: int) -> float:
    """Return what look number `look` may spend of alpha.

    >>> round(sum(alpha_of_look(0.05, look) for look in range(1, 10_000)), 4)
    0.05
    """
    if look < 1:
        raise ValueError(f"look {look}, they count from 1")
    return alpha / (look * (look + 1))


def state_folder(environment: Mapping[str, str]) -> Path:
    """Return where state is kept: EDGEWRIGHT_STATE, XDG_STATE_HOME/edgewright or ~/.local/state/edgewright.

    >>> state_folder({"XDG_STATE_HOME": "/var/state"}).as_posix()
    '/var/state/edgewright'
    """
    if own := environment.get("EDGEWRIGHT_STATE"):
        return Path(own)
    # The XDG specification has relative paths ignored.
    if (shared := environment.get("XDG_STATE_HOME")) and Path(shared).is_absolute():
        return Path(shared) / "edgewright"
    return Path.home() / ".local" / "state" / "edgewright"


@dataclass(frozen=True, slots=True)
class LookLedger:
    """The candidates that were judged on each certify split, in order, kept in `looks.json` in a folder."""

    folder: Path

    @property
    def path(self) -> Path:
        """The ledger's file."""
        return self.folder / "looks.json"

    def look(self, data: str, metric: str, candidate: str) -> int:
        """Write down a look and return its number from 1; the same candidate on the same data keeps its number.

        On return the look is on the disk. Processes exclude each other.

        Args:
            data: Fingerprint of the certify split.
            metric: The metric's name.
            candidate: Digest of the candidate.

        Raises:
            InputError: The ledger exists and cannot be understood.
            OutputError: The folder cannot be read or written.
        """
        try:
            with self._locked():
                looks = self._read()
                seen = looks.setdefault(f"{data}:{metric}", [])
                if candidate not in seen:
                    seen.append(candidate)
                    self._write(looks)
                return seen.index(candidate) + 1
        except OSError as error:
            raise OutputError(
                f"the ledger of looks at {self.path} cannot be kept: {error.strerror or error}",
                remedy="Make the folder writable, or name another in EDGEWRIGHT_STATE.",
            ) from error

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        # The ledger itself is replaced on each write, so the lock is a file of its own.
        with (self.folder / "looks.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _read(self) -> dict[str, list[str]]:
        try:
            content = json.loads(self.path.read_text("utf-8"))
            looks = content["looks"]
            if content["schema"] != SCHEMA_VERSION:
                raise ValueError(f"schema version {content['schema']}, but this version reads {SCHEMA_VERSION}")
            if not all(
                isinstance(seen, list) and all(isinstance(name, str) for name in seen) for seen in looks.values()
            ):
                raise ValueError("unknown content")
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"the ledger of looks at {self.path} is damaged: {error}",
                remedy="Restore it from a backup. Deleting it forgets how often the data was looked at: "
                "certificates from data used before would claim too much.",
            ) from error
        return dict(looks)

    def _write(self, looks: dict[str, list[str]]) -> None:
        # Only the lock's holder writes, so what a killed process left half written is simply written over.
        new = self.folder / "looks.new"
        with new.open("w", encoding="utf-8") as file:
            json.dump({"schema": SCHEMA_VERSION, "looks": looks}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.path)
        fsync_path(self.folder)
