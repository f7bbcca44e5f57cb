"""The few things that the agent does with a disk, so that a test can break each of them.

A name appears only after its bytes are on the disk, and the folder knows it before anything relies on it.
"""

import hashlib
import os
import shutil
from pathlib import Path

from edgewright.trust.fsync import fsync_path

__all__ = ["FileSystem", "checked_body", "with_checksum"]


class FileSystem:
    """A disk that keeps its word."""

    def read(self, path: Path) -> bytes:
        """Return the bytes of a file."""
        return path.read_bytes()

    def digest(self, path: Path) -> str:
        """Return the sha256 of a file, hexadecimal."""
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    def write(self, path: Path, content: bytes) -> None:
        """Put bytes under a name, whole or not at all; they survive a power cut from the return on."""
        partial = path.with_name(f".{path.name}.new")
        self.write_in_place(partial, content)
        self.rename(partial, path)

    def write_in_place(self, path: Path, content: bytes) -> None:
        """Write bytes to a file in place and bring them to the disk; its name is safe only after `sync`."""
        with path.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())

    def rename(self, path: Path, target: Path) -> None:
        """Move a file or an own folder in one step, and bring the step to the disk."""
        path.replace(target)
        self.sync(target.parent)

    def sync(self, folder: Path) -> None:
        """Bring the names in a folder to the disk."""
        fsync_path(folder)

    def remove(self, path: Path) -> None:
        """Remove a file or a folder with all in it, if it is there."""
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)

    def free_bytes(self, folder: Path) -> int:
        """Return how much may still be written."""
        return shutil.disk_usage(folder).free


def with_checksum(body: bytes) -> bytes:
    """Return what `checked_body` knows again, and knows to be sound."""
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def checked_body(content: bytes) -> bytes | None:
    """Return what was given to `with_checksum`; None if a bit is not as it was.

    >>> checked_body(with_checksum(b"x")), checked_body(b"x")
    (b'x', None)
    """
    line, _, body = content.partition(b"\n")
    return body if hashlib.sha256(body).hexdigest().encode() == line else None
