"""Confidence intervals of medians and percentiles of timings, without assuming their distribution."""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from edgewright.contract.measurement import Measurement, MeasurementOrigin

__all__ = ["extremes_measurement", "median_interval", "median_measurement", "percentile_measurement"]


def median_interval(count: int, confidence: float) -> tuple[int, int, float]:
    """Return the indices in the sorted sample that enclose the median, and the confidence that they reach.

    With too few samples for the confidence asked for these are the extremes, with the confidence that those have.

    Source: order statistics; Conover, Practical Nonparametric Statistics, 3rd ed., section 3.2.

    >>> median_interval(6, 0.95), median_interval(1, 0.95)
    ((0, 5, 0.96875), (0, 0, 0.0))
    """
    if count >= 1000:  # the normal approximation is exact enough
        spread = 0.5 * math.sqrt(count) * NormalDist().inv_cdf((1 + confidence) / 2)
        low = max(0, math.floor(count / 2 - spread) - 1)
        return low, count - 1 - low, confidence
    below, tail = 0, 0.5**count
    reached, mass = 1 - 2 * tail, tail
    while below + 1 < (count + 1) // 2:
        mass *= (count - below) / (below + 1)
        if 1 - 2 * (tail + mass) < confidence:
            break
        tail += mass
        below += 1
        reached = 1 - 2 * tail
    return below, count - 1 - below, max(reached, 0.0)


def median_measurement(
    values: Sequence[float] | NDArray[np.float64], unit: str, origin: MeasurementOrigin, confidence: float = 0.95
) -> Measurement:
    """Return the median with its interval; one value alone has none."""
    ordered = np.sort(np.asarray(values, np.float64))
    low, high, reached = median_interval(len(ordered), confidence)
    spread = len(ordered) > 1
    return Measurement(
        value=float(np.median(ordered)),
        unit=unit,
        origin=origin,
        low=float(ordered[low]) if spread else None,
        high=float(ordered[high]) if spread else None,
        confidence=reached if 0 < reached < confidence else confidence,
        observation_count=len(ordered),
    )


def extremes_measurement(values: Sequence[float], unit: str, origin: MeasurementOrigin) -> Measurement:
    """Return the median of a few values between the least and the greatest, with the confidence that this has.

    >>> exact = MeasurementOrigin(kind="measured", machine="-", method="three starts")
    >>> extremes_measurement([3.0, 1.0, 2.0], "s", exact).confidence
    0.75
    """
    spread = len(values) > 1
    return Measurement(
        value=float(np.median(values)),
        unit=unit,
        origin=origin,
        low=min(values) if spread else None,
        high=max(values) if spread else None,
        confidence=1 - 2 ** (1 - len(values)) if spread else 0.95,
        observation_count=len(values),
    )


def percentile_measurement(
    samples: NDArray[np.float64],
    rounds: NDArray[np.int64],
    percentile: float,
    unit: str,
    origin: MeasurementOrigin,
    *,
    confidence: float = 0.95,
    resamples: int = 200,
    seed: int = 0,
) -> Measurement:
    """Return a percentile with its interval from resampling whole rounds.

    Samples of one round share whatever the machine was doing then, so they are drawn together.

    Args:
        samples: Shape [n].
        rounds: Shape [n], non-decreasing: the round that each sample is from.
        percentile: 0 to 100.
        unit: Of the samples.
        origin: Of the samples.
        confidence: Two-sided.
        resamples: Resamples.
        seed: Of the resampling.

    Source: block bootstrap, percentile interval; Efron and Tibshirani 1993, chapters 8 and 13.
    """
    value = float(np.percentile(samples, percentile))
    groups = np.split(samples, np.flatnonzero(np.diff(rounds)) + 1)
    low = high = None
    if len(groups) > 1:
        random = np.random.default_rng(seed)
        picks = random.integers(len(groups), size=(resamples, len(groups)))
        drawn = [np.percentile(np.concatenate([groups[i] for i in pick]), percentile) for pick in picks]
        tail = 50 * (1 - confidence)
        low, high = (float(end) for end in np.percentile(drawn, [tail, 100 - tail]))
        low, high = min(low, value), max(high, value)
    return Measurement(value, unit, origin, low, high, confidence, len(samples))
