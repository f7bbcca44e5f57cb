"""Whole-numbered noise from the system's entropy: discrete Gaussian and Skellam, by a table of the inverse CDF.

The table is computed with 60 decimal digits and holds 2^64 times the CDF, rounded down. One 64-bit draw is looked
up in it. A value's probability is therefore wrong by less than 2^-64, and what lies beyond the table's reach (less
than 2^-64) falls on its ends: the distance from the named distribution is at most `table_error`, which enters
delta.

Looking up takes a time that may depend on the value drawn, on the device that owns it; the draw is never sent
alone.
"""

import decimal
import functools
import math
import os
from collections.abc import Callable
from decimal import Decimal

import numpy as np
from numpy.typing import NDArray

from edgewright.contract.query.query import MAX_SIGMA, MIN_SIGMA, NoiseKind

__all__ = ["EntropySource", "draw_noise", "table_error", "table_reach", "tail_bound"]

# Returns that many random bytes. Outside of tests it is the system's.
EntropySource = Callable[[int], bytes]

_DECIMAL_DIGITS = 60
_UINT64_RANGE = 1 << 64
# ln 2^66: on each side less than 2^-66 lies beyond.
_TAIL_CUTOFF_NATS = 66 * math.log(2)


def draw_noise(
    noise: NoiseKind, sigma: float, count: int, entropy: EntropySource = os.urandom
) -> NDArray[np.int64]:
    """Draw independent values of mean 0.

    Args:
        noise: Which distribution.
        sigma: The discrete Gaussian's parameter, or the Skellam's standard deviation, in grid units.
        count: How many.
        entropy: Source of randomness.

    Returns:
        Shape [count], grid units.

    Raises:
        ValueError: Sigma is below 1.5 or above 4096 grid units.

    Source: discrete Gaussian, Canonne, Kamath and Steinke 2020, arXiv:2004.00010, definition 1; Skellam, Agarwal,
    Kairouz and Liu 2021, arXiv:2110.04995, definition 3.1.
    """
    table, low = _cdf_table(noise, float(sigma))
    uniform = np.frombuffer(entropy(8 * count), dtype="<u8")
    if uniform.size != count:
        raise ValueError(f"{uniform.size} of {count} random words")
    found: NDArray[np.int64] = np.searchsorted(table, uniform, side="right").astype(np.int64, copy=False)
    found += low
    return found


def tail_bound(noise: NoiseKind, variance: float, log_probability: float) -> float:
    """Return a value that a sum of independent noise exceeds with at most the chance exp(-log_chance).

    Args:
        noise: Which distribution.
        variance: Of the sum.
        log_probability: Minus the logarithm of the chance.

    Source: a discrete Gaussian is subgaussian, arXiv:2004.00010, corollary 17; for Skellam, Bernstein's bound on
        the
    cumulants variance * (cosh(s) - 1).
    """
    if noise == "gaussian":
        return math.sqrt(2 * variance * log_probability)
    return log_probability / 3 + math.sqrt((log_probability / 3) ** 2 + 2 * variance * log_probability)


def table_reach(noise: NoiseKind, sigma: float) -> int:
    """Return the greatest magnitude that the table of a distribution holds."""
    return math.ceil(tail_bound(noise, sigma**2, _TAIL_CUTOFF_NATS)) + 1


def table_error(noise: NoiseKind, sigma: float) -> float:
    """Return a bound of the total variation between one value drawn and the named distribution."""
    return (2 * table_reach(noise, sigma) + 3) * 2.0**-65


@functools.lru_cache(maxsize=8)
def _cdf_table(noise: NoiseKind, sigma: float) -> tuple[NDArray[np.uint64], int]:
    """Return the rising thresholds, and the value below the first."""
    if not MIN_SIGMA <= sigma <= MAX_SIGMA:
        raise ValueError(f"sigma is {sigma} grid units, which must be from {MIN_SIGMA} to {MAX_SIGMA}")
    most = table_reach(noise, sigma)
    with decimal.localcontext() as context:
        context.prec = _DECIMAL_DIGITS
        context.Emin, context.Emax = -(10**9), 10**9
        half = (_gaussian_weights if noise == "gaussian" else _skellam_weights)(Decimal(sigma), most)
        unit = _UINT64_RANGE / (half[0] + 2 * sum(half[1:], Decimal(0)))
        running, thresholds = Decimal(0), []
        for value in range(-most, most):
            running += half[abs(value)]
            thresholds.append(min(int(running * unit), _UINT64_RANGE - 1))
    table = np.array(thresholds, dtype=np.uint64)
    table.flags.writeable = False
    return table, -most


def _gaussian_weights(sigma: Decimal, max_value: int) -> list[Decimal]:
    """Return exp(-k^2 / 2 sigma^2) for k from 0, each from the one before."""
    ratio = (-1 / (2 * sigma * sigma)).exp()
    square, weights = ratio * ratio, [Decimal(1)]
    for _ in range(max_value):
        weights.append(weights[-1] * ratio)
        ratio *= square
    return weights


def _skellam_weights(sigma: Decimal, max_value: int) -> list[Decimal]:
    """Return multiples of the Bessel functions I_k(sigma^2) for k from 0, by Miller's backward recurrence."""
    variance = sigma * sigma
    weights = [Decimal(0), Decimal(1)]
    for order in range(2 * max_value + 50, 0, -1):
        weights.append(weights[-2] + 2 * order / variance * weights[-1])
    weights.reverse()
    return weights[: max_value + 1]
