"""Whether the process before ended as it should: a mark lies on the disk for as long as one keeps the device.

A platform that was started anew took the process along without its fault: that tells of power, not of a model.
"""

import atexit
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgewright.device.filesystem import FileSystem
from edgewright.device.host_info import boot_id

__all__ = ["CrashMarker"]

_MARKER_FILE = "running.json"
# With its number, for a forked one has the same.
_PROCESS_ID = os.urandom(16).hex()


class _MarkerContent(msgspec.Struct, frozen=True):
    """Who has set it.

    Attributes:
        process_id: Random, one for each.
        boot_id: Which start of the platform it was.
    """

    process_id: str
    boot_id: str


@dataclass(slots=True)
class CrashMarker:
    """The mark of this process.

    Attributes:
        folder: That holds it.
        files: The disk.
    """

    folder: Path
    files: FileSystem

    def set(self) -> bool:
        """Set the mark; return whether a process before was ended without having removed its own.

        It is removed when this process ends by itself, at the latest.
        """
        before, own = self._read(), _MarkerContent(_process(), boot_id())
        atexit.register(self.clear)
        with suppress(OSError):  # without a mark a crash is not seen, and nothing else is worse
            self.files.write(self.folder / _MARKER_FILE, msgspec.json.encode(own))
        return before is not None and before.process_id != own.process_id and before.boot_id == own.boot_id

    def clear(self) -> None:
        """Remove the mark."""
        atexit.unregister(self.clear)
        mark = self._read()
        if mark is not None and mark.process_id == _process():
            with suppress(OSError):
                self.files.remove(self.folder / _MARKER_FILE)

    def _read(self) -> _MarkerContent | None:
        try:
            return msgspec.json.decode(self.files.read(self.folder / _MARKER_FILE), type=_MarkerContent)
        except (OSError, msgspec.MsgspecError):
            return None


def _process() -> str:
    return f"{_PROCESS_ID}.{os.getpid()}"
