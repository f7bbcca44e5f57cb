"""Where releases lie on a device: one folder each, named by the manifest's digest, with the manifest in it."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgewright.contract.errors import InputError
from edgewright.contract.release import Manifest, StoredFile, Variant
from edgewright.contract.schema import decode_record
from edgewright.device.filesystem import FileSystem
from edgewright.device.slots import InstalledRelease, Slots
from edgewright.device.update.download import ReleaseFolder
from edgewright.trust.keys.keystore import KeyStore, LockedError

__all__ = ["ReleaseStore"]

_MANIFEST_FILE = "manifest.json"


@dataclass(frozen=True, slots=True)
class ReleaseStore:
    """All folders with releases.

    Attributes:
        state_folder: Of the device.
        files: The disk.
        keys: Of this device; None stores files as they are.
        device_class: Of the device.
    """

    state_folder: Path
    files: FileSystem
    keys: KeyStore | None
    device_class: str

    def folder(self, digest: str, *, encrypted: bool = True) -> ReleaseFolder:
        """Return the shelf of a release; images lie there as the platform's installer wants them."""
        return ReleaseFolder(self.state_folder / "releases" / digest, self.files, self.keys if encrypted else None)

    def staging_folder(self, digest: str, manifest: bytes, *, encrypted: bool = True) -> ReleaseFolder:
        """Return the shelf on which a release is put together, with its manifest on it.

        Raises:
            OSError: The disk is full or broken.
        """
        folder = self.state_folder / "staging" / digest
        folder.mkdir(parents=True, exist_ok=True)
        self.files.write(folder / _MANIFEST_FILE, manifest)
        return ReleaseFolder(folder, self.files, self.keys if encrypted else None)

    def commit(self, digest: str) -> None:
        """Move a release that is complete from where it was put together to its own place.

        Raises:
            OSError: The disk is full or broken.
        """
        final = self.state_folder / "releases" / digest
        final.parent.mkdir(parents=True, exist_ok=True)
        self.files.sync(self.state_folder)
        if final.exists():  # left by an update that was killed after this step, or broken since
            self.files.remove(final)
        self.files.sync(self.state_folder / "staging" / digest)
        self.files.rename(self.state_folder / "staging" / digest, final)

    def read_manifest(self, digest: str) -> tuple[Manifest, bytes]:
        """Return the verified manifest of a release.

        Raises:
            LockedError: It is missing or was changed.
        """
        path = self.state_folder / "releases" / digest / _MANIFEST_FILE
        try:
            content = self.files.read(path)
            if hashlib.sha256(content).hexdigest() != digest:
                raise LockedError(
                    f"the manifest {digest[:12]} was changed on the disk", remedy="It is fetched again."
                )
            return decode_record(content, type=Manifest), content
        except (OSError, msgspec.MsgspecError, InputError) as error:
            raise LockedError(
                f"the manifest {digest[:12]} cannot be read: {error}", remedy="It is fetched again."
            ) from error

    def read_variant(self, digest: str) -> Variant:
        """Return this device class's variant of a release.

        Raises:
            LockedError: The manifest is missing, was changed, or has none.
        """
        found = self.read_manifest(digest)[0].variant(self.device_class)
        if found is None:
            raise LockedError(
                f"release {digest[:12]} is not for {self.device_class}", remedy="It is fetched again."
            )
        return found

    def files_by_folder(self, slots: Slots) -> list[tuple[ReleaseFolder, tuple[StoredFile, ...]]]:
        """Return the shelves of all slots with the files on them, as far as their manifests are sound."""
        found = []
        for each in slots.all_releases:
            try:
                shelf = self.folder(each.manifest_digest, encrypted=each.release_kind == "model")
                found.append((shelf, self.read_variant(each.manifest_digest).files))
            except LockedError:
                continue
        return found

    def delete_unused(self, slots: Slots, target: InstalledRelease | None) -> None:
        """Remove what no slot holds and nobody wants any more."""
        coming = set() if target is None else {target.manifest_digest}
        held = {each.manifest_digest for each in slots.all_releases}
        kept = {"releases": held | coming, "staging": coming, "monitor": {f"{digest}.json" for digest in held}}
        for name, digests in kept.items():
            folder = self.state_folder / name
            if folder.is_dir():
                for path in folder.iterdir():
                    if path.name not in digests:
                        self.files.remove(path)
