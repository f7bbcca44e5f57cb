"""One process at a time changes a device's state; the system frees the lock of one that was killed."""

import fcntl
import os
from pathlib import Path

from edgewright.contract.errors import OutputError

__all__ = ["FileLock"]


class FileLock:
    """A lock on a file.

    Attributes:
        held: Whether it is ours; False if another process has it.

    Raises:
        OutputError: The file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor: int | None = None
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise OutputError(
                f"{path} cannot be written: {error.strerror}", remedy="Permit writing there."
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
        else:
            self._descriptor = descriptor

    @property
    def is_held(self) -> bool:
        """Whether it is ours."""
        return self._descriptor is not None

    def release(self) -> None:
        """Let another process have it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __del__(self) -> None:
        self.release()
