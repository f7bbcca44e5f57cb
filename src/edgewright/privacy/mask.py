"""Masks: the keystream of a key that is used once, added to integers.

AES-128 in counter mode (NIST SP 800-38A) over zeros, read as little-endian words. Each key comes from HKDF-SHA256
(RFC 5869) of a secret of full entropy, bound to what it is for, so that a fixed first counter repeats nothing.
"""

import hashlib
from collections.abc import Iterator

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from edgewright.privacy.bit_packing import UnsignedArray

__all__ = ["MASK_KEY_BYTES", "add_mask", "derive_key", "labelled_digest", "subtract_mask"]

MASK_KEY_BYTES = 16
# Stays in the cache between the cipher and the addition.
_CHUNK_BYTES = 1 << 17
_ZEROS = bytes(_CHUNK_BYTES)


def labelled_digest(label: str, *parts: bytes) -> bytes:
    """Return SHA-256 of a label and parts, each with its length, so that no two lists of parts look alike.

    Args:
        label: What the digest is for.
        parts: What it is of.
    """
    total = hashlib.sha256()
    for part in _length_prefixed(label, parts):
        total.update(part)
    return total.digest()


def derive_key(secret: bytes, label: str, *context: bytes, size: int = MASK_KEY_BYTES) -> bytes:
    """Return a key for one purpose.

    Args:
        secret: Of full entropy, at least 16 bytes, or the outcome of a key agreement.
        label: The purpose.
        context: What the key is bound to.
        size: Bytes of the key.

    Raises:
        ValueError: The secret is too short to be one.
    """
    if len(secret) < MASK_KEY_BYTES:
        raise ValueError(f"a secret of {len(secret)} bytes")
    return HKDF(hashes.SHA256(), size, None, b"".join(_length_prefixed(label, context))).derive(secret)


def add_mask(values: UnsignedArray, key: bytes) -> None:
    """Add a key's mask to integers in place, with their type's wrap-around.

    Args:
        values: Shape [length], uint16 or uint32, contiguous.
        key: 16 bytes, for this mask alone.
    """
    _apply_mask(values, key, np.add)


def subtract_mask(values: UnsignedArray, key: bytes) -> None:
    """Undo `add_mask`."""
    _apply_mask(values, key, np.subtract)


def _apply_mask(values: UnsignedArray, key: bytes, operation: np.ufunc) -> None:
    size = values.dtype.itemsize
    if values.ndim != 1 or values.dtype not in (np.uint16, np.uint32):
        raise ValueError(f"values of type {values.dtype} and shape {values.shape}")
    if len(key) != MASK_KEY_BYTES:
        raise ValueError(f"a key of {len(key)} bytes")
    cipher = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    buffer = bytearray(_CHUNK_BYTES + 15)  # the cipher asks for room for a block more
    stream = np.frombuffer(buffer, f"<u{size}", _CHUNK_BYTES // size)
    step = _CHUNK_BYTES // size
    for start in range(0, len(values), step):
        part = values[start : start + step]
        cipher.update_into(_ZEROS[: len(part) * size] if len(part) < step else _ZEROS, buffer)
        operation(part, stream[: len(part)], out=part)


def _length_prefixed(label: str, parts: tuple[bytes, ...]) -> Iterator[bytes]:
    for part in (f"edgewright.sum.1 {label}".encode(), *parts):
        yield len(part).to_bytes(8, "big")
        yield part
