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
    new_key_file,
    open_key_file,
    write_secret,
)

__all__ = ["IDENTITY", "MADE", "fleet_keys", "keep_fleet_keys", "own_keys", "read_fleet_key"]

IDENTITY = "identity.key"
"""The file with the key that a device proves its name with."""

_FILE, _TPM, _FLEET = "device.key", "device.tpm", "fleet"

MADE = (_FILE, _TPM, _FLEET)
"""What the functions here make in a device's state."""

_CONTEXT = b"edgewright.fleet.1"


def own_keys(state: Path, pcrs: str, *, make: bool) -> KeyStore:
    """Return a device's own keys.

    A key that the TPM does not open any more, after an update of what the platform boots, gives way to a new one:
    what was sealed with the old one stays locked, and is fetched again.

    Args:
        state: Of the device.
        pcrs: Registers of the TPM; "" for a key in a file.
        make: Whether a key may be made; who only looks on gets one that opens nothing instead.

    Raises:
        InputError: The key is damaged, or the TPM's library is missing.
        OutputError: A new key cannot be written.
        WorkError: The TPM cannot be used.
    """
    if not pcrs:
        return new_key_file(state / _FILE)
    try:
        from edgewright.trust.keys.tpm import open_tpm_key, seal_tpm_key  # its library is not on every device
    except ImportError as error:
        raise InputError(
            f"the TPM's library cannot be loaded: {error}",
            remedy="Install it: apt install libtss2-dev, pip install 'edgewright[tpm]'.",
        ) from error
    path = state / _TPM
    if path.exists():
        try:
            return open_tpm_key(path)
        except LockedError:
            if not make:
                return RawKeyStore(os.urandom(32))
    elif not make:
        return RawKeyStore(os.urandom(32))
    return seal_tpm_key(path, pcrs=pcrs)


def read_fleet_key(path: Path) -> bytes:
    """Return a key of the fleet, to be kept on a device.

    Raises:
        InputError: The file holds none.
    """
    open_key_file(path)
    return path.read_bytes()


def keep_fleet_keys(state: Path, fleet: Mapping[str, bytes], own: KeyStore | None) -> None:
    """Keep keys of the fleet on a device, encrypted with its own if it has one.

    Raises:
        OutputError: They cannot be written.
    """
    for name, key in fleet.items():
        write_secret(state / _FLEET / name, key if own is None else own.wrap(key, _CONTEXT + name.encode()))


def fleet_keys(state: Path, own: KeyStore | None) -> dict[str, KeyStore]:
    """Return the keys of the fleet that a device keeps, by name, as far as its own opens them."""
    found: dict[str, KeyStore] = {}
    folder = state / _FLEET
    for path in sorted(folder.glob("[!.]*")) if folder.is_dir() else ():
        try:
            content = path.read_bytes()
            key = content if own is None else own.unwrap(content, _CONTEXT + path.name.encode())
        except (LockedError, OSError):
            continue
        if len(key) == KEY_BYTES:
            found[path.name] = RawKeyStore(key)
    return found
