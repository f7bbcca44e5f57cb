"""Whether the process before ended as it should: a mark lies on the disk for as long as one keeps the device.

A platform that was started anew took the process along without its fault: that tells of power, not of a model.
"""

import atexit
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgewright.device.filesystem import Files
from edgewright.device.host_info import boot_id

__all__ = ["Presence"]

_FILE = "running.json"
# With its number, for a forked one has the same.
_PROCESS = os.urandom(16).hex()


class _Mark(msgspec.Struct, frozen=True):
    """Who has set it.

    Attributes:
        process: Random, one for each.
        boot: Which start of the platform it was.
    """

    process: str
    boot: str


@dataclass(slots=True)
class Presence:
    """The mark of this process.

    Attributes:
        folder: That holds it.
        files: The disk.
    """

    folder: Path
    files: Files

    def begin(self) -> bool:
        """Set the mark; return whether a process before was ended without having removed its own.

        It is removed when this process ends by itself, at the latest.
        """
        before, own = self._read(), _Mark(_process(), boot_id())
        atexit.register(self.end)
        with suppress(OSError):  # without a mark a crash is not seen, and nothing else is worse
            self.files.write(self.folder / _FILE, msgspec.json.encode(own))
        return before is not None and before.process != own.process and before.boot == own.boot

    def end(self) -> None:
        """Remove the mark."""
        atexit.unregister(self.end)
        mark = self._read()
        if mark is not None and mark.process == _process():
            with suppress(OSError):
                self.files.remove(self.folder / _FILE)

    def _read(self) -> _Mark | None:
        try:
            return msgspec.json.decode(self.files.read(self.folder / _FILE), type=_Mark)
        except (OSError, msgspec.MsgspecError):
            return None


def _process() -> str:
    return f"{_PROCESS}.{os.getpid()}"
