"""Integers mod 2^b as bits without gaps, least significant bit first."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewright.contract.errors import DataError

__all__ = [
    "MAX_BITS",
    "MIN_BITS",
    "UnsignedArray",
    "as_words",
    "pack_bits",
    "packed_size",
    "unpack_bits",
    "word_type",
]

UnsignedArray = NDArray[np.unsignedinteger[Any]]  # uint16 or uint32

MIN_BITS, MAX_BITS = 2, 32
# A multiple of 8, so that every chunk ends with a byte; its bits take 2 MB while they are spread out.
_CHUNK_VALUES = 1 << 16


def word_type(bits: int) -> type[np.uint16] | type[np.uint32]:
    """Return the type that sums mod 2^bits are computed in: its own wrap-around is a multiple of theirs.

    Args:
        bits: Of the modulus, 2 to 32.

    Raises:
        ValueError: Other bits.
    """
    if not MIN_BITS <= bits <= MAX_BITS:
        raise ValueError(f"{bits} bits, {MIN_BITS} to {MAX_BITS} are possible")
    return np.uint16 if bits <= 16 else np.uint32


def as_words(values: UnsignedArray, length: int, bits: int) -> UnsignedArray:
    """Return a copy of integers mod 2^bits, of the type that they are summed in.

    Args:
        values: Shape [length], uint16 or uint32.
        length: That it must have.
        bits: Of the modulus, 2 to 32.

    Raises:
        ValueError: They are of another type or shape.
    """
    if values.shape != (length,) or values.dtype not in (np.uint16, np.uint32):
        raise ValueError(f"values of type {values.dtype} and shape {values.shape}, {length} are asked for")
    return values.astype(word_type(bits))


def packed_size(length: int, bits: int) -> int:
    """Return how many bytes so many integers take.

    >>> packed_size(320, 12)
    480
    """
    return (length * bits + 7) // 8


def pack_bits(values: UnsignedArray, bits: int) -> bytes:
    """Return integers mod 2^bits without gaps.

    Args:
        values: Shape [length]; what exceeds the modulus is dropped.
        bits: Of the modulus, 2 to 32.

    Raises:
        ValueError: Other bits, or not one unsigned integer after the other.

    >>> pack_bits(np.array([1, 2, 3], np.uint16), 4).hex()
    '2103'
    """
    word = word_type(bits)
    if values.ndim != 1 or values.dtype not in (np.uint16, np.uint32):
        raise ValueError(f"values of type {values.dtype} and shape {values.shape}")
    if bits in (16, 32):
        return values.astype(f"<u{bits // 8}", copy=False).tobytes()
    if bits == 8:
        return values.astype(np.uint8).tobytes()
    parts = []
    for start in range(0, len(values), _CHUNK_VALUES):
        raw = values[start : start + _CHUNK_VALUES].astype(word).astype(f"<u{word().itemsize}", copy=False)
        spread = np.unpackbits(raw.view(np.uint8).reshape(len(raw), -1), axis=1, count=bits, bitorder="little")
        parts.append(np.packbits(spread, bitorder="little").tobytes())
    return b"".join(parts)


def unpack_bits(content: bytes, bits: int, length: int) -> UnsignedArray:
    """Return what was packed.

    Args:
        content: From `pack_bits`.
        bits: Of the modulus, 2 to 32.
        length: Integers that it must hold.

    Returns:
        Shape [length], uint16 up to 16 bits, else uint32; may be read-only.

    Raises:
        DataError: It has another size, or bits are set behind its end.
        ValueError: Other bits.
    """
    word = word_type(bits)
    size = packed_size(length, bits)
    if len(content) != size:
        raise DataError(
            f"{len(content)} bytes came for {length} integers of {bits} bits", remedy=f"They take {size} bytes."
        )
    if bits in (16, 32):
        return np.frombuffer(content, f"<u{bits // 8}").astype(word, copy=False)
    if bits == 8:
        return np.frombuffer(content, np.uint8).astype(word)
    surplus = 8 * size - length * bits
    if surplus and content[-1] >> (8 - surplus):
        raise DataError("bits are set behind the last integer", remedy="Fill the last byte with zeros.")
    raw = np.frombuffer(content, np.uint8)
    found = np.zeros(length, f"<u{word().itemsize}")
    width = found.itemsize * 8
    for start in range(0, length, _CHUNK_VALUES):
        stop = min(start + _CHUNK_VALUES, length)
        part = raw[start * bits // 8 : packed_size(stop, bits)]
        spread = np.zeros((stop - start, width), np.uint8)
        count = (stop - start) * bits
        spread[:, :bits] = np.unpackbits(part, count=count, bitorder="little").reshape(-1, bits)
        found[start:stop] = np.packbits(spread, axis=1, bitorder="little").view(found.dtype).ravel()
    return found.astype(word, copy=False)
