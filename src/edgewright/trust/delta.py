"""The smallest way to say how one file becomes another, and making the other from it without trusting it.

No codec wins everywhere: shifted blocks are bsdiff's, insertions zstd's, and numbers that all moved a little are
small differences of bytes or words. The publisher tries all; the device knows the size and the digest of the result
beforehand, so a delta can waste time up to that size and do nothing else.
"""

import struct
from collections.abc import Callable

import numpy as np
import zstandard
from numpy.typing import NDArray

from edgewright.contract.errors import WorkError
from edgewright.contract.release import Codec

__all__ = ["CODECS", "DeltaError", "apply_delta", "smallest_delta"]

_LEVEL = 19
_HEAD = struct.Struct("<B")
_WORDS, _STEPS = (1, 4), 3
_TRITS_PER_BYTE = 5
_POWERS = 3 ** np.arange(_TRITS_PER_BYTE, dtype=np.int16)
# A step of bsdiff: bytes to add to old ones, bytes to take as they are, how far to move in the old file.
_STEP = np.dtype("<i8")
_STEP_NUMBERS = 3
_MAX_WINDOW = 1 << 27


class DeltaError(WorkError):
    """A delta is damaged or hostile; the whole file can be fetched instead."""

    code = "invalid_delta"


def smallest_delta(old: bytes, new: bytes, *, below: int) -> tuple[Codec, bytes] | None:
    """Return the smallest delta, None if none is smaller than a limit.

    Args:
        old: The file that devices have.
        new: The file that they shall have.
        below: Bytes of the alternative.
    """
    best: tuple[Codec, bytes] | None = None
    for codec, (encode, _decode) in CODECS.items():
        made = encode(old, new)
        if made is not None and len(made) < (below if best is None else len(best[1])):
            best = codec, made
    return best


def apply_delta(codec: Codec, old: bytes, delta: bytes, *, size: int) -> bytes:
    """Return the new file; the caller checks its digest.

    Args:
        codec: How the delta is written.
        old: The file that it starts from.
        delta: Its length and digest were checked.
        size: Of the new file, bytes; nothing longer is made.

    Raises:
        DeltaError: The delta does not give a file of that size.
    """
    try:
        made = CODECS[codec][1](old, delta, size)
    except (KeyError, ValueError, IndexError, struct.error, zstandard.ZstdError, MemoryError) as error:
        raise DeltaError(f"the delta cannot be applied: {error}", remedy="The whole file is fetched.") from error
    if len(made) != size:
        raise DeltaError(
            f"the delta gives {len(made)} bytes, {size} were signed", remedy="The whole file is fetched."
        )
    return made


def _encode_zstd(old: bytes, new: bytes) -> bytes:
    """As `zstd --patch-from`: the old file is the dictionary."""
    window = max(10, min(27, (len(old) + len(new)).bit_length()))
    parameters = zstandard.ZstdCompressionParameters.from_level(
        _LEVEL, window_log=window, enable_ldm=True, write_content_size=False
    )
    return zstandard.ZstdCompressor(dict_data=_dictionary(old), compression_params=parameters).compress(new)


def _decode_zstd(old: bytes, delta: bytes, size: int) -> bytes:
    return _inflated(delta, size, _dictionary(old))


def _encode_planes(old: bytes, new: bytes) -> bytes | None:
    """Differences of bytes or of words, the words' bytes apart: small changes have many equal high bytes."""
    if len(old) != len(new) or not new:
        return None
    made = [_planes(old, new, word) for word in _WORDS]
    return min([*made, _steps(old, new)], key=len)


def _planes(old: bytes, new: bytes, word: int) -> bytes:
    difference = _words(new, word) - _words(old, word)
    if word > 1:  # small negative numbers get the high bytes of small positive ones
        difference = (difference << np.uint32(1)) ^ (np.uint32(0) - (difference >> np.uint32(31)))
    planes = difference.view(np.uint8).reshape(-1, word).T
    return _HEAD.pack(word) + _deflated(np.ascontiguousarray(planes).tobytes())


def _steps(old: bytes, new: bytes) -> bytes:
    """Bytes that moved by -1, 0 or 1, five to a byte, and the others with their places.

    A code that works by the byte spends a bit at least on each; five such steps to a byte come near their entropy.
    """
    difference = (_words(new, 1) - _words(old, 1)).view(np.int8)
    far = np.flatnonzero((difference < -1) | (difference > 1))
    steps = np.where((difference >= -1) & (difference <= 1), difference, 0).astype(np.int16) + 1
    padded = np.concatenate([steps, np.ones(-len(steps) % _TRITS_PER_BYTE, np.int16)]).reshape(-1, _TRITS_PER_BYTE)
    packed = (padded @ _POWERS).astype(np.uint8)
    gaps = np.diff(far, prepend=0).astype("<u4").view(np.uint8).reshape(-1, 4).T
    parts = [packed.tobytes(), np.ascontiguousarray(gaps).tobytes(), difference[far].tobytes()]
    return _HEAD.pack(_STEPS) + struct.pack("<I", len(far)) + _deflated(b"".join(parts))


def _from_steps(old: bytes, delta: bytes) -> bytes:
    count = len(old)
    (far,) = struct.unpack_from("<I", delta, _HEAD.size)
    if far > count:
        raise ValueError("more bytes moved than there are")
    packed_size = -(-count // _TRITS_PER_BYTE)
    content = _inflated(delta[_HEAD.size + 4 :], packed_size + 5 * far)
    if len(content) != packed_size + 5 * far:
        raise ValueError("it is too short")
    packed = np.frombuffer(content[:packed_size], np.uint8).astype(np.int16)
    if int(packed.max(initial=0)) >= 3**_TRITS_PER_BYTE:
        raise ValueError("it holds a step that is none")
    steps = (packed[:, None] // _POWERS % 3 - 1).reshape(-1)[:count].astype(np.int8)
    gaps = np.frombuffer(content[packed_size : packed_size + 4 * far], np.uint8).reshape(4, -1).T
    places = np.cumsum(np.ascontiguousarray(gaps).reshape(-1).view("<u4").astype(np.int64))
    if far and int(places[-1]) >= count:
        raise ValueError("it moves bytes that are not there")
    steps[places] = np.frombuffer(content[packed_size + 4 * far :], np.int8)
    return (_words(old, 1) + steps.view(np.uint8)).tobytes()


def _decode_planes(old: bytes, delta: bytes, size: int) -> bytes:
    (word,) = _HEAD.unpack_from(delta)
    if word == _STEPS and len(old) == size:
        return _from_steps(old, delta)
    if word not in _WORDS or len(old) != size:
        raise ValueError("its header fits no file of that size")
    before = _words(old, word)
    planes = np.frombuffer(_inflated(delta[_HEAD.size :], before.nbytes), np.uint8)
    if planes.size != before.nbytes:
        raise ValueError("it is too short")
    difference = np.ascontiguousarray(planes.reshape(word, -1).T).reshape(-1).view(before.dtype)
    if word > 1:
        difference = (difference >> np.uint32(1)) ^ (np.uint32(0) - (difference & np.uint32(1)))
    return (before + difference).tobytes()[:size]


def _words(content: bytes, word: int) -> NDArray[np.unsignedinteger]:
    padded = content + bytes(-len(content) % word)
    return np.frombuffer(padded, np.uint8 if word == 1 else np.dtype("<u4"))


def _encode_bsdiff(old: bytes, new: bytes) -> bytes | None:
    """Blocks of the old file that moved, and how their bytes differ (Percival 2003)."""
    try:
        from bsdiff4 import core
    except ModuleNotFoundError:
        return None
    control, added, extra = core.diff(old, new)
    raw = np.frombuffer(control, "<u8")  # sign and magnitude, as the original has it
    size = (raw & np.uint64((1 << 63) - 1)).astype(_STEP)
    table = np.where(raw >> np.uint64(63), -size, size).reshape(-1, _STEP_NUMBERS)
    lengths = np.array([len(table), len(added), len(extra)], _STEP)
    return _deflated(lengths.tobytes() + table.tobytes() + added + extra)


def _decode_bsdiff(old: bytes, delta: bytes, size: int) -> bytes:
    # Each step makes a byte at least, except the first; 24 bytes each.
    body = _inflated(delta, size + (size + 2) * _STEP.itemsize * _STEP_NUMBERS)
    head = _STEP.itemsize * _STEP_NUMBERS
    count, many, rest = (int(number) for number in np.frombuffer(body[:head], _STEP))
    if min(count, many, rest) < 0 or head * (1 + count) + many + rest != len(body) or many + rest != size:
        raise ValueError("its parts do not fit")
    steps = np.frombuffer(body, _STEP, count * _STEP_NUMBERS, head).reshape(-1, _STEP_NUMBERS)
    added = np.frombuffer(body, np.uint8, many, head * (1 + count))
    extra = np.frombuffer(body, np.uint8, rest, head * (1 + count) + many)
    before = np.frombuffer(old, np.uint8)
    made = np.empty(size, np.uint8)
    at = old_at = added_at = extra_at = 0
    for add, copy, move in steps.tolist():
        if add < 0 or copy < 0 or at + add + copy > size or added_at + add > many or extra_at + copy > rest:
            raise ValueError("a step leads out of the file")
        source = np.zeros(add, np.uint8)
        low, high = max(0, old_at), min(len(before), old_at + add)
        if low < high:  # what lies before or behind the old file counts as zero
            source[low - old_at : high - old_at] = before[low:high]
        made[at : at + add] = added[added_at : added_at + add] + source
        at, added_at, old_at = at + add, added_at + add, old_at + add
        made[at : at + copy] = extra[extra_at : extra_at + copy]
        at, extra_at, old_at = at + copy, extra_at + copy, old_at + move
    if at != size:
        raise ValueError("its steps do not fill the file")
    return made.tobytes()


def _dictionary(old: bytes) -> zstandard.ZstdCompressionDict:
    return zstandard.ZstdCompressionDict(old, dict_type=zstandard.DICT_TYPE_RAWCONTENT)


def _deflated(content: bytes) -> bytes:
    parameters = zstandard.ZstdCompressionParameters.from_level(_LEVEL, write_content_size=False)
    return zstandard.ZstdCompressor(compression_params=parameters).compress(content)


def _inflated(content: bytes, max_bytes: int, dictionary: zstandard.ZstdCompressionDict | None = None) -> bytes:
    """Decompress at most so many bytes; a frame's own word for its size is not believed."""
    decompressor = zstandard.ZstdDecompressor(dict_data=dictionary, max_window_size=_MAX_WINDOW)
    with decompressor.stream_reader(content) as stream:
        made = stream.read(max_bytes + 1)
    if len(made) > max_bytes:
        raise ValueError(f"it unpacks to more than {max_bytes} bytes")
    return made


_Encode = Callable[[bytes, bytes], bytes | None]
_Decode = Callable[[bytes, bytes, int], bytes]

# What a manifest may name; a device that does not know a codec fetches the whole file.
CODECS: dict[Codec, tuple[_Encode, _Decode]] = {
    "zstd": (_encode_zstd, _decode_zstd),
    "planes": (_encode_planes, _decode_planes),
    "bsdiff": (_encode_bsdiff, _decode_bsdiff),
}
