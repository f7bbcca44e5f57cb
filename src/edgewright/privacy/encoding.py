"""From a device's numbers to whole numbers of a bounded norm, and back from their sum.

The order matters for privacy: rotate, project, clip *last*, round. What rounding does to the norm is not estimated:
it is repeated until the squared norm, in whole numbers, keeps its bound.

A rotation spreads each vector over all coordinates, so that few bits hold a coordinate's sum. It is a Hadamard
matrix after random signs on the first 2^k numbers, then another on the last 2^k: 2^k is more than half of the
length, so nothing is padded, and no coordinate of the result depends on fewer than 2^k signs.
"""

import hashlib
import math
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewright.contract.errors import DataError, InputError
from edgewright.contract.query.query import NoiseKind
from edgewright.privacy.noise import EntropySource, table_reach, tail_bound

__all__ = [
    "ROTATION_BLOCK",
    "ValueRange",
    "center_modular",
    "clip_counts",
    "clip_norm",
    "conditional_stochastic_round",
    "count_sum_range",
    "project",
    "rotate",
    "unproject",
    "unrotate",
    "vector_sum_range",
    "weighted_mean",
    "weighted_vector",
]

_Floats = NDArray[np.float64]
_Integers = NDArray[np.int32]
_BlockPart = tuple[_Floats, bytes]

_MAX_ROUNDING_ATTEMPTS = 64
# Numbers that are worked on at a time, so that a long vector does not take its size in memory several times.
ROTATION_BLOCK = 1 << 13
# How many standard deviations a noisy weight is away from zero, before anything is divided by it.
_CONFIDENT_SIGMAS = 4.0


class ValueRange:
    """Between which whole numbers a sum lies, and how many bits hold it.

    Attributes:
        low: Least.
        high: Greatest.
        bits: Least width that tells all of them apart.
    """

    __slots__ = ("bits", "high", "low")

    def __init__(self, low: int, high: int) -> None:
        self.low, self.high = low, high
        self.bits = max(2, (high - low).bit_length())
        if self.bits > 32:
            raise InputError(
                f"sums from {low} to {high} take {self.bits} bits, 32 at most",
                remedy="Lower the scale, or ask fewer devices at once.",
            )


def rotate(values: _Floats, seed: bytes, *, overwrite: bool = False) -> _Floats:
    """Return the values turned by a random orthonormal matrix that everyone with the seed knows.

    Args:
        values: Shape [n].
        seed: 32 bytes.
        overwrite: Turn the values where they are, if they are floats.

    Returns:
        Shape [n]; the same norm.

    Source: randomised Hadamard transform, Ailon and Chazelle 2009; its use here, arXiv:2102.06387, section 4.2.
    """
    # Single precision stays what it is: a long vector must not take twice its size.
    kind = np.float32 if values.dtype == np.float32 else np.float64
    turned: Any = np.array(values, kind, copy=None if overwrite else True)
    for part, label in _power_of_two_parts(turned):
        if part.size > 1:
            _apply_random_signs(part, seed, label)
            _hadamard_transform(part)
    return np.asarray(turned)


def unrotate(values: _Floats, seed: bytes) -> _Floats:
    """Return what `rotate` turned: the matrix's transpose is its inverse."""
    turned = np.array(values, np.float64)
    for part, label in reversed(_power_of_two_parts(turned)):
        if part.size > 1:
            _hadamard_transform(part)
            _apply_random_signs(part, seed, label)
    return turned


def project(values: _Floats, size: int, seed: bytes) -> _Floats:
    """Return fewer numbers: every size-th value is added up, after random signs.

    Args:
        values: Shape [n], turned already, so that which of them meet is of no account.
        size: How many are left.
        seed: 32 bytes.

    Returns:
        Shape [size].

    Source: a count sketch (Charikar, Chen and Farach-Colton 2002) whose buckets are of one size.
    """
    signed = np.zeros(-(-values.size // size) * size)
    signed[: values.size] = values * _random_signs(seed, b"project", values.size)
    return np.asarray(signed.reshape(-1, size).sum(axis=0))


def unproject(values: _Floats, length: int, seed: bytes) -> _Floats:
    """Return an unbiased estimate of what `project` was given.

    Args:
        values: Shape [size].
        length: Of the result.
        seed: 32 bytes.
    """
    return np.asarray(np.resize(values, length) * _random_signs(seed, b"project", length))


def clip_norm(values: _Floats, bound: float) -> _Floats:
    """Shrink the values in place if their L2 norm is above a bound, and return them."""
    norm = float(np.linalg.norm(values))
    if norm > bound:
        values *= bound / norm
    return values


def clip_counts(counts: _Floats, scale: float, max_total: float) -> _Floats:
    """Return one signal's counts in grid units, shrunk alike so that together they are no more than the most.

    Clipped one by one, full bins would become equal, and the shape that is asked for would be lost.

    Args:
        counts: Shape [bins], finite; below 0 counts as 0.
        scale: Grid units per count.
        max_total: Grid units that they may add up to.
    """
    # Of numbers near the end of the floats the sum would be infinite, and the shares would be none.
    sound = np.clip(counts, 0.0, 1e290)
    total = float(sound.sum())
    # Each alone may not exceed it either by a last digit: what is rounded up from there would.
    return np.minimum(sound / total * max_total if total * scale > max_total else sound * scale, max_total)


def weighted_vector(values: _Floats, weight: float, max_weight: float) -> _Floats:
    """Return a device's (w x, w): clipped jointly afterwards, the quotient of the sums stays a mean.

    Args:
        values: Shape [n], the mean over the device's examples.
        weight: Of the examples, at least 0.
        max_weight: Greatest weight; what is above counts as it.

    Returns:
        Shape [n + 1].
    """
    if not weight >= 0:
        raise DataError(f"an example's weight is {weight:g}", remedy="Weights are at least 0.")
    bounded = min(weight, max_weight)
    return np.append(values * bounded, bounded)


def weighted_mean(total: _Floats, noise_sd: float) -> _Floats:
    """Return the weighted mean of a sum of `weighted_vector`.

    Args:
        total: Shape [n + 1].
        noise_sd: Standard deviation of the noise in each number.

    Raises:
        DataError: The noise may be all there is of the weight.
    """
    weight = float(total[-1])
    if not abs(weight) >= _CONFIDENT_SIGMAS * noise_sd or weight <= 0:
        raise DataError(
            f"the summed weight is {weight:.4g} with noise of {noise_sd:.4g}, less than "
            f"{_CONFIDENT_SIGMAS:g} times as much",
            remedy="Ask more devices, or permit a greater weight.",
        )
    return np.asarray(total[:-1] / weight)


def conditional_stochastic_round(
    values: _Floats, max_l2_squared: int, entropy: EntropySource = os.urandom
) -> _Integers:
    """Round to whole numbers at random, without bias, until their squared norm keeps a bound.

    Args:
        values: Shape [n], grid units; their own squared norm keeps the bound.
        max_l2_squared: The bound, which the result keeps exactly.
        entropy: Source of randomness.

    Returns:
        Shape [n]. If chance denies it 64 times (it does not, with the bound of `account.rounded_bound`), rounded
        towards zero instead.

    Raises:
        ValueError: No rounding keeps the bound.

    Source: conditional rounding, arXiv:2102.06387, algorithm 1.
    """
    rounded = np.empty(values.size, np.int32)
    for _ in range(_MAX_ROUNDING_ATTEMPTS):
        squared = 0
        for start in range(0, values.size, ROTATION_BLOCK):
            part = values[start : start + ROTATION_BLOCK]
            floor = np.floor(part)
            share = part - floor
            if share.any():
                floor += np.frombuffer(entropy(4 * part.size), dtype="<u4") * 2.0**-32 < share
            squared += _l2_squared(floor)
            rounded[start : start + ROTATION_BLOCK] = floor
        if squared <= max_l2_squared:
            return rounded
    towards = np.trunc(values)
    if _l2_squared(towards) > max_l2_squared:
        raise ValueError(
            f"no rounding of a vector of norm {np.linalg.norm(values)} has the square {max_l2_squared}"
        )
    return towards.astype(np.int32)


def center_modular(total: NDArray[np.unsignedinteger], bits: int, min_value: int) -> NDArray[np.int64]:
    """Return the whole numbers that a sum modulo 2^bits stands for, if none is below `min_value`."""
    return np.asarray((total.astype(np.int64) - min_value) % (1 << bits) + min_value)


def count_sum_range(
    max_total: int, *, size: int, devices: int, noise: NoiseKind, sigma: float, failure_probability: float
) -> ValueRange:
    """Return between what a sum of counts lies.

    Args:
        max_total: Greatest count of a device, grid units.
        size: How many counts.
        devices: How many devices at most.
        noise: Distribution of each device's noise.
        sigma: Its standard deviation, grid units.
        failure_probability: Most that the probability of any sum outside may be.

    Raises:
        InputError: No 32 bits hold it.
    """
    swing = _noise_bound(size, devices, noise, sigma, failure_probability)
    return ValueRange(-swing, devices * max_total + swing)


def vector_sum_range(
    clip: float,
    max_l2_squared: int,
    *,
    length: int,
    projected_size: int,
    devices: int,
    noise: NoiseKind,
    sigma: float,
    failure_probability: float,
) -> ValueRange:
    """Return between what a coordinate of a sum of turned vectors lies, if the seed came after the vectors.

    It holds also if all vectors are the same, of the greatest norm, and as uneven as can be.

    Args:
        clip: Greatest norm of a device's vector, grid units.
        max_l2_squared: Greatest squared norm after rounding.
        length: Of the vectors before they are turned.
        projected_size: Numbers after the projection, 0 without.
        devices: How many devices at most.
        noise: Distribution of each device's noise.
        sigma: Its standard deviation, grid units.
        failure_probability: Most that the probability of any sum outside may be.

    Raises:
        InputError: No 32 bits hold it.

    Source: a sum of numbers under random signs is subgaussian with the sum of their squares (Hoeffding 1963), over
    the at least 2^k numbers that meet in a coordinate.
    """
    size = projected_size or length
    each = (8 if projected_size else 4) * length * devices / failure_probability
    flat = clip * math.sqrt(2 * math.log(each) / _largest_power(length))
    if projected_size:
        # What meets in one bucket, under signs of its own.
        flat *= math.sqrt(-(-length // projected_size) * 2 * math.log(each))
    # Rounding moves a number by less than 1, in all devices the same way at worst.
    most = min(devices * (flat + 1), float(devices * math.isqrt(max_l2_squared)))
    high = math.ceil(most) + _noise_bound(size, devices, noise, sigma, failure_probability / 2)
    return ValueRange(-high, high)


def _noise_bound(size: int, devices: int, noise: NoiseKind, sigma: float, failure_probability: float) -> int:
    """Return what no sum of noise exceeds, up or down, but for the chance."""
    return math.floor(
        min(
            tail_bound(noise, devices * sigma**2, math.log(2 * size / failure_probability)),
            devices * table_reach(noise, sigma),
        )
    )


def _largest_power(count: int) -> int:
    return 1 << (count.bit_length() - 1)


def _power_of_two_parts(rotated: _Floats) -> tuple[_BlockPart, _BlockPart]:
    """Return views of the first and the last 2^k numbers, with their labels; the last are none if all are first."""
    size = _largest_power(rotated.size)
    last = rotated[rotated.size - size :] if rotated.size > size else rotated[:0]
    return (rotated[:size], b"first"), (last, b"last")


def _random_signs(seed: bytes, label: bytes, count: int) -> NDArray[np.int8]:
    """Return 1 or -1 for each position, the same for everyone with the seed: bits of SHAKE-128."""
    bits = np.unpackbits(_random_bits(seed, label, count), count=count, bitorder="little")
    return 1 - 2 * bits.astype(np.int8)


def _apply_random_signs(part: _Floats, seed: bytes, label: bytes) -> None:
    """Multiply with the signs, in place."""
    stream = _random_bits(seed, label, part.size)
    for start in range(0, part.size, ROTATION_BLOCK):
        piece = part[start : start + ROTATION_BLOCK]
        bits = np.unpackbits(
            stream[start // 8 : (start + ROTATION_BLOCK) // 8], count=piece.size, bitorder="little"
        )
        np.negative(piece, out=piece, where=bits.view(np.bool_))


def _random_bits(seed: bytes, label: bytes, count: int) -> NDArray[np.uint8]:
    digest = hashlib.shake_128(b"edgewright.signs.1\n" + label + b"\n" + seed).digest(-(-count // 8))
    return np.frombuffer(digest, np.uint8)


def _hadamard_transform(part: _Floats) -> None:
    """Multiply 2^k numbers with the orthonormal Hadamard matrix, in place and in pieces that fit the cache."""
    inner = 1
    while inner < part.size:
        pairs = part.reshape(-1, 2, inner)
        rows, columns = max(1, ROTATION_BLOCK // (2 * inner)), max(1, ROTATION_BLOCK // 2)
        for row in range(0, len(pairs), rows):
            for column in range(0, inner, columns):
                piece = pairs[row : row + rows, :, column : column + columns]
                total = piece[:, 0] + piece[:, 1]
                np.subtract(piece[:, 0], piece[:, 1], out=piece[:, 1])
                piece[:, 0] = total
        inner *= 2
    part /= math.sqrt(part.size)


def _l2_squared(integers: _Floats) -> int:
    """Return the squared norm of whole numbers, exactly: clips keep it far below 2^63."""
    numbers = integers.astype(np.int64)
    return int(np.dot(numbers, numbers))
