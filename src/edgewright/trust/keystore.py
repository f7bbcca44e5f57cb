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

__all__ = ["FileKeyStore", "KeyStore", "LockedError", "new_key_file"]

_KEY_BYTES, _NONCE_BYTES = 32, 12


class LockedError(WorkError):
    """The key store does not open what it is given."""


class KeyStore(Protocol):
    """Wraps content keys so that only this device, or this fleet, can unwrap them."""

    def wrap(self, key: bytes, context: bytes) -> bytes:
        """Encrypt a content key, bound to its context."""

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """Return the content key.

        Raises:
            LockedError: It was wrapped elsewhere, for another context, or damaged.
        """


class FileKeyStore:
    """A key in a file that only its owner may read."""

    def __init__(self, path: Path) -> None:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InputError(
                f"the key {path} cannot be read: {error.strerror}", remedy="Restore it, or enrol the device again."
            ) from error
        if len(content) != _KEY_BYTES:
            raise InputError(
                f"the key {path} has {len(content)} bytes, it must have {_KEY_BYTES}",
                remedy="Restore it, or enrol the device again.",
            )
        self._cipher = AESGCM(content)

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


def new_key_file(path: Path) -> FileKeyStore:
    """Make a key and return its store; a key that is there already is kept.

    Raises:
        OutputError: It cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(os.urandom(_KEY_BYTES))
            stream.flush()
            os.fsync(stream.fileno())
    except FileExistsError:
        pass
    except OSError as error:
        raise OutputError(
            f"the key {path} cannot be written: {error.strerror}", remedy="Permit writing there."
        ) from error
    return FileKeyStore(path)
