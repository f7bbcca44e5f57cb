"""Where releases lie on a device: one folder each, named by the manifest's digest, with the manifest in it."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgewright.contract.errors import InputError
from edgewright.contract.release import Manifest, StoredFile, Variant
from edgewright.contract.schema import decode_record
from edgewright.device.filesystem import Files
from edgewright.device.slots import Installed, Slots
from edgewright.device.update.download import Shelf
from edgewright.trust.keys.keystore import KeyStore, LockedError

__all__ = ["Shelves"]

_MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class Shelves:
    """All folders with releases.

    Attributes:
        state: Of the device.
        files: The disk.
        keys: Of this device; None stores files as they are.
        device_class: Of the device.
    """

    state: Path
    files: Files
    keys: KeyStore | None
    device_class: str

    def shelf(self, digest: str, *, sealed: bool = True) -> Shelf:
        """Return the shelf of a release; images lie there as the platform's installer wants them."""
        return Shelf(self.state / "releases" / digest, self.files, self.keys if sealed else None)

    def staging(self, digest: str, manifest: bytes, *, sealed: bool = True) -> Shelf:
        """Return the shelf on which a release is put together, with its manifest on it.

        Raises:
            OSError: The disk is full or broken.
        """
        folder = self.state / "staging" / digest
        folder.mkdir(parents=True, exist_ok=True)
        self.files.write(folder / _MANIFEST, manifest)
        return Shelf(folder, self.files, self.keys if sealed else None)

    def stand(self, digest: str) -> None:
        """Move a release that is complete from where it was put together to its own place.

        Raises:
            OSError: The disk is full or broken.
        """
        final = self.state / "releases" / digest
        final.parent.mkdir(parents=True, exist_ok=True)
        self.files.sync(self.state)
        if final.exists():  # left by an update that was killed after this step, or broken since
            self.files.remove(final)
        self.files.sync(self.state / "staging" / digest)
        self.files.rename(self.state / "staging" / digest, final)

    def manifest(self, digest: str) -> tuple[Manifest, bytes]:
        """Return the verified manifest of a release.

        Raises:
            LockedError: It is missing or was changed.
        """
        path = self.state / "releases" / digest / _MANIFEST
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

    def variant(self, digest: str) -> Variant:
        """Return this device class's variant of a release.

        Raises:
            LockedError: The manifest is missing, was changed, or has none.
        """
        found = self.manifest(digest)[0].variant(self.device_class)
        if found is None:
            raise LockedError(
                f"release {digest[:12]} is not for {self.device_class}", remedy="It is fetched again."
            )
        return found

    def contents(self, slots: Slots) -> list[tuple[Shelf, tuple[StoredFile, ...]]]:
        """Return the shelves of all slots with the files on them, as far as their manifests are sound."""
        found = []
        for each in slots.held:
            try:
                shelf = self.shelf(each.manifest, sealed=each.kind == "model")
                found.append((shelf, self.variant(each.manifest).files))
            except LockedError:
                continue
        return found

    def sweep(self, slots: Slots, wanted: Installed | None) -> None:
        """Remove what no slot holds and nobody wants any more."""
        coming = set() if wanted is None else {wanted.manifest}
        held = {each.manifest for each in slots.held}
        kept = {"releases": held | coming, "staging": coming, "monitor": {f"{digest}.json" for digest in held}}
        for name, digests in kept.items():
            folder = self.state / name
            if folder.is_dir():
                for path in folder.iterdir():
                    if path.name not in digests:
                        self.files.remove(path)
