"""A repository in a bucket: any S3-compatible store, or what else obstore can write to."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import obstore
import obstore.store
from obstore import exceptions as obstore_errors

from edgewright.contract.errors import InputError, WorkError
from edgewright.trust.storage.storage import AlreadyExistsError, checked_storage_name

__all__ = ["ObjectStorage", "open_bucket"]


class ObjectStorage:
    """A bucket of an S3-compatible store, or a folder in it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._store = obstore.store.from_url(url)

    def read(self, name: str) -> bytes | None:
        """See `Store`."""
        place = checked_storage_name(name)
        try:
            with self._translating_errors():
                return bytes(obstore.get(self._store, place).bytes())
        except FileNotFoundError:
            return None

    def size(self, name: str) -> int | None:
        """See `Store`."""
        place = checked_storage_name(name)
        try:
            with self._translating_errors():
                return int(obstore.head(self._store, place)["size"])
        except FileNotFoundError:
            return None

    def create(self, name: str, content: bytes) -> None:
        """See `Store`."""
        place = checked_storage_name(name)
        try:
            with self._translating_errors():
                obstore.put(self._store, place, content, mode="create")
        except obstore_errors.AlreadyExistsError:
            raise AlreadyExistsError(
                f"{self.url}/{name} exists already", remedy="Somebody else was faster."
            ) from None

    def replace(self, name: str, content: bytes) -> None:
        """See `Store`."""
        place = checked_storage_name(name)
        with self._translating_errors():
            obstore.put(self._store, place, content, mode="overwrite")

    def delete(self, name: str) -> None:
        """See `Store`."""
        place = checked_storage_name(name)
        with suppress(FileNotFoundError), self._translating_errors():
            obstore.delete(self._store, place)

    def names(self, folder: str) -> list[str]:
        """See `Store`."""
        place = checked_storage_name(folder)
        with self._translating_errors():
            return sorted(str(entry["path"]) for part in obstore.list(self._store, place) for entry in part)

    @contextmanager
    def _translating_errors(self) -> Iterator[None]:
        """Turn what the library raises for a store that does not answer into an error that says what to do."""
        try:
            yield
        except (FileNotFoundError, obstore_errors.AlreadyExistsError):
            raise
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise WorkError(
                f"{self.url} does not answer as a store: {reason}", remedy="Check the URL and the credentials."
            ) from error


def open_bucket(url: str) -> ObjectStorage:
    """Return the store at a URL such as s3://bucket/folder.

    Raises:
        InputError: The URL cannot be used.
    """
    try:
        return ObjectStorage(url)
    except Exception as error:
        raise InputError(
            f"{url} is no store that can be written: {error}",
            remedy="Name a folder, or s3://bucket/folder with AWS_ENDPOINT_URL and credentials in the environment.",
        ) from error
