"""Getting a variant's files: from another slot, by a delta, or whole; checked, sealed and synced."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgewright.contract.refusal import RefusedError
from edgewright.contract.release import FileDelta, StoredFile, Variant, stored_form
from edgewright.device.filesystem import FileSystem
from edgewright.trust.client.fetcher import Fetcher
from edgewright.trust.delta import CODECS, DeltaError, apply_delta
from edgewright.trust.keys.file_encryption import decrypt_file, encrypt_file
from edgewright.trust.keys.keystore import KeyStore, LockedError
from edgewright.trust.target_paths import blob_name

__all__ = ["DownloadSource", "ReleaseFolder", "fetch_variant", "needed_bytes"]

# Beside the files themselves: a download and its result lie on the disk together, and others write there too.
_FREE_SPACE_MARGIN_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class ReleaseFolder:
    """A folder with the sealed files of one release.

    Attributes:
        folder: Holds them under their names.
        files: The disk.
        keys: Of this device; None stores files as they are.
    """

    folder: Path
    files: FileSystem
    keys: KeyStore | None

    def read(self, file: StoredFile) -> bytes:
        """Return the verified bytes of a file.

        Raises:
            LockedError: They are damaged, or sealed elsewhere.
            OSError: They are missing or cannot be read.
        """
        content = self.files.read(self.folder / file.name)
        if self.keys is not None:
            content = decrypt_file(content, file.sha256, self.keys)
        if hashlib.sha256(content).hexdigest() != file.sha256:
            raise _changed_on_disk(file)
        return content

    def check(self, file: StoredFile) -> None:
        """Verify the bytes of a file, without holding all of them if they are not sealed.

        Raises:
            LockedError: They are damaged, or sealed elsewhere.
            OSError: They are missing or cannot be read.
        """
        if self.keys is not None:
            self.read(file)
        elif self.files.digest(self.folder / file.name) != file.sha256:
            raise _changed_on_disk(file)

    def put(self, file: StoredFile, content: bytes) -> None:
        """Store bytes that were verified.

        Raises:
            OSError: The disk is full or broken.
        """
        self.files.write(
            self.folder / file.name, content if self.keys is None else encrypt_file(content, file.sha256, self.keys)
        )


@dataclass(frozen=True, slots=True)
class DownloadSource:
    """Where files come from.

    Attributes:
        repository_url: Of the repository, with a slash at its end.
        fetcher: Gets bytes.
        fleet_keys: Keys of the fleet by name, for files that are stored encrypted.
        other_releases: Shelves of this device with the files on each, to take from or to start deltas from.
    """

    repository_url: str
    fetcher: Fetcher
    fleet_keys: Mapping[str, KeyStore]
    other_releases: Sequence[tuple[ReleaseFolder, Sequence[StoredFile]]] = ()

    def find_local(self, digest: str) -> bytes | None:
        """Return the bytes of a digest if they lie on another shelf and are sound."""
        for shelf, files in self.other_releases:
            for file in files:
                if file.sha256 == digest:
                    try:
                        return shelf.read(file)
                    except (LockedError, OSError):
                        continue
        return None


def needed_bytes(variant: Variant, folder: ReleaseFolder) -> int:
    """Return how much free disk an installation takes at most, beside what lies on its shelf already."""
    streamed = [folder.keys is None and file.encrypted is None for file in variant.files]
    there = sum(path.stat().st_size for path in folder.folder.glob("*")) if folder.folder.is_dir() else 0
    beside = [
        0 if streams else stored_form(file)[1] + file.size_bytes
        for file, streams in zip(variant.files, streamed, strict=True)
    ]
    return (
        max(0, sum(file.size_bytes for file in variant.files) + max(beside, default=0) - there)
        + _FREE_SPACE_MARGIN_BYTES
    )


def fetch_variant(variant: Variant, folder: ReleaseFolder, source: DownloadSource) -> dict[str, str]:
    """Fill a shelf with a variant's files; what lies there already and is sound stays.

    Args:
        variant: What to fetch.
        folder: Its folder exists.
        source: Where from.

    Returns:
        How each file came: "there", "slot", the codec of a delta, or "whole".

    Raises:
        RefusedError: A file is not what was signed, there is no room, or a key of the fleet is missing.
        OSError: The disk is full or broken.
    """
    free, need = folder.files.free_bytes(folder.folder), needed_bytes(variant, folder)
    if free < need:
        raise RefusedError(
            "disk",
            variant.device_class,
            f"{free} bytes are free, {need} are needed",
            remedy="Free space on the device; the installation goes on by itself.",
        )
    return {file.name: _fetch_file(file, folder, source) for file in variant.files}


def _fetch_file(file: StoredFile, folder: ReleaseFolder, source: DownloadSource) -> str:
    try:
        folder.check(file)
    except (LockedError, OSError):
        pass
    else:
        return "there"
    known = source.find_local(file.sha256)
    if known is not None:
        folder.put(file, known)
        return "slot"
    for delta in sorted(file.deltas, key=lambda delta: stored_form(delta)[1]):
        base = source.find_local(delta.base_sha256) if delta.codec in CODECS else None
        if base is None:
            continue
        try:
            made = apply_delta(
                delta.codec, base, _fetch_blob(delta, delta.sha256, folder, source), size=file.size_bytes
            )
        except (DeltaError, RefusedError):
            continue  # the whole file is signed as well
        if hashlib.sha256(made).hexdigest() == file.sha256:
            folder.put(file, made)
            return delta.codec
    if folder.keys is None and file.encrypted is None:  # an image may be larger than the memory
        url = f"{source.repository_url}{blob_name(file.sha256)}"
        source.fetcher.download(url, folder.folder / file.name, sha256=file.sha256, size=file.size_bytes)
    else:
        folder.put(file, _fetch_blob(file, file.sha256, folder, source))
    return "whole"


def _changed_on_disk(file: StoredFile) -> LockedError:
    return LockedError(f"{file.name} was changed on the disk", remedy="It is fetched again.")


def _fetch_blob(
    content: StoredFile | FileDelta, digest: str, folder: ReleaseFolder, source: DownloadSource
) -> bytes:
    """Return the bytes of a file or a delta from the server."""
    name, size = stored_form(content)
    path = folder.folder / f".{name}"
    try:
        source.fetcher.download(f"{source.repository_url}{blob_name(name)}", path, sha256=name, size=size)
        found = folder.files.read(path)
    finally:
        folder.files.remove(path)
    if content.encrypted is not None:
        keys = source.fleet_keys.get(content.encrypted.key_name)
        if keys is None:
            raise RefusedError("locked", name, f"this device lacks the fleet key {content.encrypted.key_name!r}")
        try:
            found = decrypt_file(found, digest, keys)
        except LockedError as error:
            raise RefusedError("tampered", name, error.message) from error
    if hashlib.sha256(found).hexdigest() != digest:
        raise RefusedError("tampered", name, "it is not what was signed")
    return found
