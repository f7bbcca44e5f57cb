"""Where a repository lies: a folder or an S3-compatible bucket, behind five operations.

What is versioned or named by its content is only ever created, so that two publishers cannot overwrite each other;
`timestamp.json` alone is replaced, last.
"""

import os
from pathlib import Path, PurePosixPath
from typing import Protocol

from edgewright.contract.errors import InputError, OutputError, WorkError
from edgewright.trust.fsync import fsync_path

__all__ = ["AlreadyExistsError", "LocalStorage", "Storage", "checked_storage_name"]


class AlreadyExistsError(WorkError):
    """Something lies already where something new was to be."""

    code = "already_exists"


class Storage(Protocol):
    """Named bytes. Names are relative POSIX paths."""

    def read(self, name: str) -> bytes | None:
        """Return the bytes, None if there are none."""

    def size(self, name: str) -> int | None:
        """Return how many bytes there are, None if there are none."""

    def create(self, name: str, content: bytes) -> None:
        """Put bytes where there are none; they are durable on return.

        Raises:
            ExistsError: There are some.
            OutputError: They cannot be written.
        """

    def replace(self, name: str, content: bytes) -> None:
        """Put bytes in the place of others, in one step for readers; they are durable on return.

        Raises:
            OutputError: They cannot be written.
        """

    def delete(self, name: str) -> None:
        """Remove the bytes if there are any."""

    def names(self, folder: str) -> list[str]:
        """Return the names of what lies in a folder and below, in order."""


class LocalStorage:
    """A folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, name: str) -> bytes | None:
        """See `Storage`."""
        try:
            return self._file(name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _cannot_read(self._file(name), error) from error

    def size(self, name: str) -> int | None:
        """See `Storage`."""
        try:
            return self._file(name).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _cannot_read(self._file(name), error) from error

    def create(self, name: str, content: bytes) -> None:
        """See `Storage`."""
        final = self._file(name)
        partial = self._written(final, content)
        try:
            os.link(partial, final)  # unlike a rename, this fails if somebody was faster
        except FileExistsError:
            raise AlreadyExistsError(
                f"{final} exists already", remedy="Somebody else was faster; try again."
            ) from None
        except OSError as error:
            raise _cannot_write(final, error) from error
        finally:
            partial.unlink(missing_ok=True)
        fsync_path(final.parent)

    def replace(self, name: str, content: bytes) -> None:
        """See `Storage`."""
        final = self._file(name)
        partial = self._written(final, content)
        try:
            partial.replace(final)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise _cannot_write(final, error) from error
        fsync_path(final.parent)

    def delete(self, name: str) -> None:
        """See `Storage`."""
        try:
            self._file(name).unlink(missing_ok=True)
        except OSError as error:
            raise _cannot_write(self._file(name), error) from error

    def names(self, folder: str) -> list[str]:
        """See `Storage`."""
        files = (file for file in self._file(folder).rglob("*") if file.is_file() and not file.name.startswith("."))
        return sorted(file.relative_to(self.path).as_posix() for file in files)

    def _file(self, name: str) -> Path:
        """Return where a name lies; a link could lead out of the folder, so there are none."""
        place = self.path
        for part in PurePosixPath(checked_storage_name(name)).parts:
            place /= part
            if place.is_symlink():
                raise WorkError(
                    f"{place} is a link", remedy="Put the file itself there; a repository has no links."
                )
        return place

    def _written(self, final: Path, content: bytes) -> Path:
        partial = final.with_name(f".{final.name}.{os.getpid()}.{os.urandom(4).hex()}")
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("xb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise _cannot_write(final, error) from error
        return partial


def checked_storage_name(name: str) -> str:
    """Return a name that leads out of no repository.

    Raises:
        InputError: It would.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        raise InputError(f"{name!r} leads out of the repository", remedy="Use a plain relative name.")
    return name


def _cannot_read(path: Path, error: OSError) -> WorkError:
    return WorkError(f"{path} cannot be read: {error.strerror}", remedy="Check its permissions.")


def _cannot_write(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{path} cannot be written: {error.strerror}", remedy="Free space or permit writing there, and try again."
    )
