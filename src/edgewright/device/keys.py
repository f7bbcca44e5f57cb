"""The key that a device's models are sealed with: in a file, or in the TPM."""

import os
from pathlib import Path

from edgewright.contract.errors import InputError
from edgewright.trust.keystore import KeyStore, LockedError, RawKeyStore, new_key_file

__all__ = ["own_keys"]

_FILE, _TPM = "device.key", "device.tpm"


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
        from edgewright.trust.tpm import open_tpm_key, seal_tpm_key  # its library is not on every device
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
