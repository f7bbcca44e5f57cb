"""A repository in a bucket: any S3-compatible store, or what else obstore can write to."""

import obstore
import obstore.store
from obstore.exceptions import AlreadyExistsError

from edgewright.contract.errors import InputError, WorkError
from edgewright.trust.store import ExistsError, plain

__all__ = ["ObjectStore", "open_bucket"]


class ObjectStore:
    """A bucket of an S3-compatible store, or a folder in it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._store = obstore.store.from_url(url)

    def read(self, name: str) -> bytes | None:
        """See `Store`."""
        try:
            return bytes(obstore.get(self._store, plain(name)).bytes())
        except FileNotFoundError:
            return None
        except Exception as error:
            raise _unreachable(self.url, error) from error

    def size(self, name: str) -> int | None:
        """See `Store`."""
        try:
            return int(obstore.head(self._store, plain(name))["size"])
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
        try:
            obstore.delete(self._store, plain(name))
        except FileNotFoundError:
            return
        except Exception as error:
            raise _unreachable(self.url, error) from error

    def names(self, folder: str) -> list[str]:
        """See `Store`."""
        try:
            return sorted(str(entry["path"]) for part in obstore.list(self._store, plain(folder)) for entry in part)
        except Exception as error:
            raise _unreachable(self.url, error) from error

    def _put(self, name: str, content: bytes, *, mode: str) -> None:
        try:
            obstore.put(self._store, plain(name), content, mode=mode)  # type: ignore[arg-type]
        except AlreadyExistsError:
            raise ExistsError(f"{self.url}/{name} exists already", remedy="Somebody else was faster.") from None
        except Exception as error:
            raise _unreachable(self.url, error) from error


def open_bucket(url: str) -> ObjectStore:
    """Return the store at a URL such as s3://bucket/folder.

    Raises:
        InputError: The URL cannot be used.
    """
    try:
        return ObjectStore(url)
    except Exception as error:
        raise InputError(
            f"{url} is no store that can be written: {error}",
            remedy="Name a folder, or s3://bucket/folder with AWS_ENDPOINT_URL and credentials in the environment.",
        ) from error


def _unreachable(url: str, error: Exception) -> WorkError:
    reason = " ".join(str(error).split())[:200]
    return WorkError(f"{url} does not answer as a store: {reason}", remedy="Check the URL and the credentials.")
