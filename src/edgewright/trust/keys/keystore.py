"""Where a device's keys live, behind two operations.

What each is good for: a file key protects a model that was copied without it, not a stolen disk. A fleet key, which
all devices of a fleet share, falls with one of them. A TPM's key does not leave the device, and opens only under
the boot chain that it was sealed to.
"""

import os
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from edgewright.contract.errors import InputError, OutputError, WorkError
from edgewright.trust.fsync import fsync_path

__all__ = [
    "KEY_BYTES",
    "KeyStore",
    "LockedError",
    "RawKeyStore",
    "create_key_file",
    "open_key_file",
    "write_secret",
]

KEY_BYTES, _NONCE_BYTES = 32, 12


class LockedError(WorkError):
    """The key store does not open what it is given."""

    code = "keys_locked"


class KeyStore(Protocol):
    """Wraps content keys so that only this device, or this fleet, can unwrap them."""

    def wrap(self, key: bytes, context: bytes) -> bytes:
        """Encrypt a content key, bound to its context."""

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """Return the content key.

        Raises:
            LockedError: It was wrapped elsewhere, for another context, or damaged.
        """


class RawKeyStore:
    """A key in memory.

    Args:
        key: 32 bytes.
    """

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)

    def wrap(self, key: bytes, context: bytes) -> bytes:
        """See `KeyStore`."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, key, context)

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """See `KeyStore`."""
        try:
            return self._cipher.decrypt(wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:], context)
        except (InvalidTag, ValueError) as error:
            raise LockedError(
                "the key of this device does not open the file", remedy="The file is fetched again."
            ) from error


def open_key_file(path: Path) -> KeyStore:
    """Return the store of a key in a file.

    Raises:
        InputError: The file cannot be read, or holds no key.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"the key {path} cannot be read: {error.strerror}", remedy="Restore it, or enrol the device again."
        ) from error
    if len(content) != KEY_BYTES:
        raise InputError(
            f"the key {path} has {len(content)} bytes, it must have {KEY_BYTES}",
            remedy="Restore it, or enrol the device again.",
        )
    return RawKeyStore(content)


def create_key_file(path: Path) -> KeyStore:
    """Return the store of a key in a file that only its owner may read; a key that is there already is kept.

    Raises:
        InputError: The file holds no key.
        OutputError: It cannot be written.
    """
    if not path.exists():
        write_secret(path, os.urandom(KEY_BYTES))
    return open_key_file(path)


def write_secret(path: Path, content: bytes) -> None:
    """Write what only its owner may read, whole or not at all, and bring it to the disk.

    Raises:
        OutputError: It cannot be written.
    """
    partial = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
        fsync_path(path.parent)
    except OSError as error:
        raise OutputError(
            f"the key {path} cannot be written: {error.strerror}", remedy="Permit writing there."
        ) from error
