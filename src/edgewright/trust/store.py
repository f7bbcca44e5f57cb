"""Where a repository lies: a folder or an S3-compatible bucket, behind five operations.

What is versioned or named by its content is only ever created, so that two publishers cannot overwrite each other;
`timestamp.json` alone is replaced, last.
"""

import os
from pathlib import Path, PurePosixPath
from typing import Protocol

from edgewright.contract.errors import InputError, OutputError, WorkError

__all__ = ["ExistsError", "LocalStore", "ObjectStore", "Store", "open_store"]


class ExistsError(WorkError):
    """Something lies already where something new was to be."""


class Store(Protocol):
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


class LocalStore:
    """A folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, name: str) -> bytes | None:
        """See `Store`."""
        try:
            return self._file(name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise WorkError(
                f"{self._file(name)} cannot be read: {error.strerror}", remedy="Check its permissions."
            ) from error

    def size(self, name: str) -> int | None:
        """See `Store`."""
        file = self._file(name)
        return file.stat().st_size if file.is_file() else None

    def create(self, name: str, content: bytes) -> None:
        """See `Store`."""
        final = self._file(name)
        partial = self._written(final, content)
        try:
            os.link(partial, final)  # unlike a rename, this fails if somebody was faster
        except FileExistsError:
            raise ExistsError(f"{final} exists already", remedy="Somebody else was faster; try again.") from None
        except OSError as error:
            raise _cannot_write(final, error) from error
        finally:
            partial.unlink(missing_ok=True)
        _sync(final.parent)

    def replace(self, name: str, content: bytes) -> None:
        """See `Store`."""
        final = self._file(name)
        partial = self._written(final, content)
        try:
            partial.replace(final)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise _cannot_write(final, error) from error
        _sync(final.parent)

    def delete(self, name: str) -> None:
        """See `Store`."""
        self._file(name).unlink(missing_ok=True)

    def names(self, folder: str) -> list[str]:
        """See `Store`."""
        files = (file for file in self._file(folder).rglob("*") if file.is_file() and not file.name.startswith("."))
        return sorted(file.relative_to(self.path).as_posix() for file in files)

    def _file(self, name: str) -> Path:
        return self.path / _checked(name)

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


class ObjectStore:
    """A bucket of an S3-compatible store, or a folder in it."""

    def __init__(self, url: str) -> None:
        import obstore.store

        self.url = url
        self._store = obstore.store.from_url(url)

    def read(self, name: str) -> bytes | None:
        """See `Store`."""
        import obstore

        try:
            return bytes(obstore.get(self._store, _checked(name)).bytes())
        except FileNotFoundError:
            return None
        except Exception as error:
            raise _unreachable(self.url, error) from error

    def size(self, name: str) -> int | None:
        """See `Store`."""
        import obstore

        try:
            return int(obstore.head(self._store, _checked(name))["size"])
        except FileNotFoundError:
            return None
        except Exception as error:
            raise _unreachable(self.url, error) from error

    def create(self, name: str, content: bytes) -> None:
        """See `Store`."""
        self._put(name, content, mode="create")

    def replace(self, name: str, content: bytes) -> None:
        """See `Store`."""
        self._put(name, content, mode="overwrite")

    def delete(self, name: str) -> None:
        """See `Store`."""
        import obstore

        try:
            obstore.delete(self._store, _checked(name))
        except FileNotFoundError:
            return
        except Exception as error:
            raise _unreachable(self.url, error) from error

    def names(self, folder: str) -> list[str]:
        """See `Store`."""
        import obstore

        try:
            return sorted(
                str(entry["path"]) for part in obstore.list(self._store, _checked(folder)) for entry in part
            )
        except Exception as error:
            raise _unreachable(self.url, error) from error

    def _put(self, name: str, content: bytes, *, mode: str) -> None:
        import obstore
        from obstore.exceptions import AlreadyExistsError

        try:
            obstore.put(self._store, _checked(name), content, mode=mode)  # type: ignore[arg-type]
        except AlreadyExistsError:
            raise ExistsError(f"{self.url}/{name} exists already", remedy="Somebody else was faster.") from None
        except Exception as error:
            raise _unreachable(self.url, error) from error


def open_store(place: str) -> Store:
    """Return the store at a folder's path or at a URL such as s3://bucket/folder.

    Raises:
        InputError: The URL cannot be used.
    """
    if "://" not in place:
        return LocalStore(Path(place))
    if place.startswith("file://"):
        return LocalStore(Path(place.removeprefix("file://")))
    try:
        return ObjectStore(place)
    except ModuleNotFoundError as error:
        raise InputError(
            f"the library {error.name} is not installed", remedy="Install it: pip install 'edgewright[studio]'."
        ) from error
    except Exception as error:
        raise InputError(
            f"{place} is no store that can be written: {error}",
            remedy="Name a folder, or s3://bucket/folder with AWS_ENDPOINT_URL and credentials in the environment.",
        ) from error


def _checked(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        raise InputError(f"{name!r} leads out of the repository", remedy="Use a plain relative name.")
    return name


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cannot_write(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{path} cannot be written: {error.strerror}", remedy="Free space or permit writing there, and try again."
    )


def _unreachable(url: str, error: Exception) -> WorkError:
    reason = " ".join(str(error).split())[:200]
    return WorkError(f"{url} does not answer as a store: {reason}", remedy="Check the URL and the credentials.")
