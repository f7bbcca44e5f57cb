"""Files encrypted at rest, in chunks, so that a damaged one is found without trusting what it holds.

AES-256-GCM with a fresh content key for each sealing, so that the chunk's index can be the nonce. What a chunk is
bound to: the head of the file, hence digest and size of the content, its index, and whether it is the last.
"""

import os
import struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from edgewright.trust.keys.keystore import KeyStore, LockedError

__all__ = ["CHUNK", "decrypt_file", "encrypt_file", "encrypted_size"]

CHUNK = 1 << 20
_MAGIC = b"EWSEAL1\n"
_HEAD = struct.Struct(
    ">8s32sQIH"
)  # magic, sha256 of the content, its size, bytes per chunk, bytes of the wrapped key
_TAG = 16


def encrypt_file(content: bytes, digest: str, keys: KeyStore, *, chunk: int = CHUNK) -> bytes:
    """Return the encrypted form of a file.

    Args:
        content: Of the file.
        digest: Its sha256, hexadecimal.
        keys: Wraps the content key.
        chunk: Bytes that are authenticated together.
    """
    key = os.urandom(32)
    wrapped = keys.wrap(key, _MAGIC + bytes.fromhex(digest))
    head = _HEAD.pack(_MAGIC, bytes.fromhex(digest), len(content), chunk, len(wrapped)) + wrapped
    cipher, parts = AESGCM(key), [head]
    count = _chunks(len(content), chunk)
    for index in range(count):
        part = content[index * chunk : (index + 1) * chunk]
        parts.append(cipher.encrypt(_nonce(index), part, _associated_data(head, index, last=index == count - 1)))
    return b"".join(parts)


def decrypt_file(encrypted: bytes, digest: str, keys: KeyStore) -> bytes:
    """Return the content of a sealed file.

    Args:
        encrypted: From `encrypt_file`.
        digest: sha256 that the content must have, hexadecimal.
        keys: Unwraps the content key.

    Raises:
        LockedError: It was sealed for another device or another content, or is damaged, cut off or put together.
    """
    try:
        magic, told, size, chunk, wrapped_size = _HEAD.unpack_from(encrypted)
    except struct.error as error:
        raise _damaged("it is too short") from error
    if magic != _MAGIC or told.hex() != digest:
        raise _damaged("it holds something else")
    start = _HEAD.size + wrapped_size
    if not 0 < chunk <= 1 << 26 or len(encrypted) != start + size + _TAG * _chunks(size, chunk):
        raise _damaged("its length does not fit its head")
    head = encrypted[:start]
    cipher = AESGCM(keys.unwrap(head[_HEAD.size :], _MAGIC + told))
    count, parts = _chunks(size, chunk), []
    for index in range(count):
        at = start + index * (chunk + _TAG)
        part = encrypted[at : at + chunk + _TAG]
        try:
            parts.append(
                cipher.decrypt(_nonce(index), part, _associated_data(head, index, last=index == count - 1))
            )
        except InvalidTag as error:
            raise _damaged(f"chunk {index} was changed") from error
    return b"".join(parts)


def encrypted_size(size: int, wrapped: int, *, chunk: int = CHUNK) -> int:
    """Return the bytes that sealing a file of this size gives."""
    return _HEAD.size + wrapped + size + _TAG * _chunks(size, chunk)


def _chunks(size: int, chunk: int) -> int:
    return max(1, -(-size // chunk))


def _nonce(index: int) -> bytes:
    return index.to_bytes(12, "big")


def _associated_data(head: bytes, index: int, *, last: bool) -> bytes:
    return head + struct.pack(">QB", index, last)


def _damaged(reason: str) -> LockedError:
    return LockedError(f"the sealed file cannot be opened: {reason}", remedy="It is fetched again.")
