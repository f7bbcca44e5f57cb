"""The key that a device's models are sealed with: in a file, or in the TPM."""

import os
from collections.abc import Mapping
from pathlib import Path

from edgewright.contract.errors import InputError
from edgewright.trust.keys.keystore import (
    KEY_BYTES,
    KeyStore,
    LockedError,
    RawKeyStore,
    create_key_file,
    open_key_file,
    write_secret,
)

__all__ = [
    "IDENTITY_KEY_FILE",
    "KEY_FILES",
    "load_fleet_keys",
    "open_device_keys",
    "read_fleet_key",
    "store_fleet_keys",
]

IDENTITY_KEY_FILE = "identity.key"
"""The file with the key that a device proves its name with."""

_KEY_FILE, _TPM_KEY_FILE, _FLEET_KEYS_FOLDER = "device.key", "device.tpm", "fleet"

KEY_FILES = (_KEY_FILE, _TPM_KEY_FILE, _FLEET_KEYS_FOLDER)
"""What the functions here make in a device's state."""

_ENCRYPTION_CONTEXT = b"edgewright.fleet.1"


def open_device_keys(state_folder: Path, tpm_pcrs: str, *, create: bool) -> KeyStore:
    """Return a device's own keys.

    A key that the TPM does not open any more, after an update of what the platform boots, gives way to a new one:
    what was sealed with the old one stays locked, and is fetched again.

    Args:
        state_folder: Of the device.
        tpm_pcrs: Registers of the TPM; "" for a key in a file.
        create: Whether a key may be made; who only looks on gets one that opens nothing instead.

    Raises:
        InputError: The key is damaged, or the TPM's library is missing.
        OutputError: A new key cannot be written.
        WorkError: The TPM cannot be used.
    """
    if not tpm_pcrs:
        return create_key_file(state_folder / _KEY_FILE)
    try:
        from edgewright.trust.keys.tpm import open_tpm_key, seal_tpm_key  # its library is not on every device
    except ImportError as error:
        raise InputError(
            f"the TPM's library cannot be loaded: {error}",
            remedy="Install it: apt install libtss2-dev, pip install 'edgewright[tpm]'.",
        ) from error
    path = state_folder / _TPM_KEY_FILE
    if path.exists():
        try:
            return open_tpm_key(path)
        except LockedError:
            if not create:
                return RawKeyStore(os.urandom(32))
    elif not create:
        return RawKeyStore(os.urandom(32))
    return seal_tpm_key(path, pcrs=tpm_pcrs)


def read_fleet_key(path: Path) -> bytes:
    """Return a key of the fleet, to be kept on a device.

    Raises:
        InputError: The file holds none.
    """
    open_key_file(path)
    return path.read_bytes()


def store_fleet_keys(state_folder: Path, fleet: Mapping[str, bytes], device_keys: KeyStore | None) -> None:
    """Keep keys of the fleet on a device, encrypted with its own if it has one.

    Raises:
        OutputError: They cannot be written.
    """
    for name, key in fleet.items():
        write_secret(
            state_folder / _FLEET_KEYS_FOLDER / name,
            key if device_keys is None else device_keys.wrap(key, _ENCRYPTION_CONTEXT + name.encode()),
        )


def load_fleet_keys(state_folder: Path, device_keys: KeyStore | None) -> dict[str, KeyStore]:
    """Return the keys of the fleet that a device keeps, by name, as far as its own opens them."""
    found: dict[str, KeyStore] = {}
    folder = state_folder / _FLEET_KEYS_FOLDER
    for path in sorted(folder.glob("[!.]*")) if folder.is_dir() else ():
        try:
            content = path.read_bytes()
            key = (
                content
                if device_keys is None
                else device_keys.unwrap(content, _ENCRYPTION_CONTEXT + path.name.encode())
            )
        except (LockedError, OSError):
            continue
        if len(key) == KEY_BYTES:
            found[path.name] = RawKeyStore(key)
    return found
