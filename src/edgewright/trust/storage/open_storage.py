"""From what a person names a repository's place by to its store."""

from pathlib import Path

from edgewright.contract.errors import InputError
from edgewright.trust.storage.storage import LocalStorage, Storage

__all__ = ["open_repository_storage"]


def open_repository_storage(place: str) -> Storage:
    """Return the store at a folder's path or at a URL such as s3://bucket/folder.

    Raises:
        InputError: The URL cannot be used.
    """
    if "://" not in place:
        return LocalStorage(Path(place))
    if place.startswith("file://"):
        return LocalStorage(Path(place.removeprefix("file://")))
    try:
        from edgewright.trust.storage.object_store import open_bucket  # its library is not on every machine
    except ModuleNotFoundError as error:
        raise InputError(
            f"the library {error.name} is not installed", remedy="Install it: pip install 'edgewright[studio]'."
        ) from error
    return open_bucket(place)
