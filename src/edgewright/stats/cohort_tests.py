"""Tests on sums over many devices, of which only noised values are known. Uses scipy: no device imports this.

Devices differ without harm, so counts of a fleet scatter more than a multinomial: the unit is the cohort, a sum
over some devices, and what cohorts scatter by is measured between them (Hotelling's test on a few contrasts).
The error that all cohorts share, that of the reference, cannot be seen between them and is added. A test that finds
nothing says how large a shift it would have found, or that there are too few devices.

Rates of subgroups come from the same sums, with intervals that include the noise that was added on purpose.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

__all__ = [
    "Calibration",
    "FleetFinding",
    "FleetVerdict",
    "Rate",
    "calibration",
    "cohort_rate",
    "compare_cohorts",
    "contrasts",
    "difference",
    "null_covariance",
    "pooled_p_value",
    "power",
    "rate",
    "shifts",
]

_Floats = NDArray[np.float64]

# Cohorts per dimension: 16 in 15 dimensions had 19 % power where 64 had 100 %.
_COHORTS_PER_DIMENSION = 3
# Counts within this many standard deviations of their noise are not divided by.
_CLEAR = 4.0


class FleetVerdict(StrEnum):
    """What sums over a fleet show."""

    DRIFT = "drift"
    NO_SHIFT = "no shift of the stated size or more"
    TOO_FEW = "too few devices"


@dataclass(frozen=True, slots=True)
class FleetFinding:
    """The outcome of a test on cohorts.

    Attributes:
        verdict: See `sentence`.
        p_value: 1 if nothing could be tested.
        size: Shift, as total variation, that was to be found.
        power: Chance that it would have been found, for the least visible of the preset shifts.
        detectable: Least size that is found with the power asked for; None if none is.
        cohorts: That were clear of their noise.
    """

    verdict: FleetVerdict
    p_value: float
    size: float
    power: float
    detectable: float | None
    cohorts: int

    @property
    def sentence(self) -> str:
        """What to show people; never that all is well."""
        if self.verdict is FleetVerdict.DRIFT:
            return f"drift (p = {self.p_value:.2g}, {self.cohorts} cohorts)"
        if self.verdict is FleetVerdict.NO_SHIFT:
            return f"no shift of {self.size:.3g} or more (power {self.power:.2f}, {self.cohorts} cohorts)"
        found = "" if self.detectable is None else f"; {self.detectable:.2g} would be detected"
        return f"too few devices to detect a shift of {self.size:.3g} (power {self.power:.2f}{found})"


@dataclass(frozen=True, slots=True)
class Rate:
    """A share with its interval, or why there is none.

    Attributes:
        value: None where the counts are within their noise.
        low: Of the two-sided interval.
        high: Of the two-sided interval.
        why: Reason for a missing value.
    """

    value: float | None
    low: float
    high: float
    why: str = ""


@dataclass(frozen=True, slots=True)
class Calibration:
    """How far confidence is from accuracy.

    Attributes:
        gap: Shape [bins], mean confidence less accuracy times the bin's share of all samples.
        error: Shape [bins], standard error of it, noise included.
        ece: Expected calibration error, the mean scatter of the gaps taken off.
        ece_low: Of an interval that holds for all bins together.
        ece_high: Of the same.
    """

    gap: _Floats
    error: _Floats
    ece: float
    ece_low: float
    ece_high: float


def null_covariance(shares: ArrayLike, total: float, n_ref: float, sigma: float) -> _Floats:
    """Return the covariance of a noised sum about `total` times the reference's shares, for devices that are alike.

    `total (diag p - p p') (1 + total / n_ref) + sigma^2 I`: sampling of the sum, of the reference, and noise.

    Args:
        shares: Shape [bins], of the reference.
        total: Observations in the sum.
        n_ref: Observations in the reference.
        sigma: Standard deviation of the noise on each bin.
    """
    return total * (1 + total / n_ref) * _multinomial(shares) + sigma**2 * np.eye(len(np.asarray(shares)))


def pooled_p_value(sums: ArrayLike, shares: ArrayLike, *, n_ref: float, sigma: float) -> float:
    """Return the chi-square test's p-value of one noised sum. Only for devices that are known to be alike.

    Args:
        sums: Shape [bins].
        shares: Shape [bins], of the reference.
        n_ref: Observations in the reference.
        sigma: Of the noise on each bin.
    """
    found, p = np.asarray(sums, np.float64), np.asarray(shares, np.float64)
    # The total is noised too: the projection takes out what it moves.
    project = np.eye(len(p)) - np.outer(p, np.ones(len(p)))
    residual = (project @ found)[:-1]
    covariance = (project @ null_covariance(p, float(found.sum()), n_ref, sigma) @ project.T)[:-1, :-1]
    kept = np.diag(covariance) > 0
    statistic = residual[kept] @ np.linalg.solve(covariance[np.ix_(kept, kept)], residual[kept])
    return float(stats.chi2.sf(statistic, int(kept.sum())))


def contrasts(shares: ArrayLike) -> _Floats:
    """Return what cohorts are compared by: level, spread, and the two outermost bins.

    Args:
        shares: Shape [bins], of the reference, bins in order and without the bin of what is not finite.

    Returns:
        Shape [4, bins], weights of the bins' shares.
    """
    p = np.asarray(shares, np.float64)
    rank = np.cumsum(p) - p / 2
    first, last = np.eye(len(p))[[0, -1]]
    return np.stack([2 * rank - 1, 6 * (rank - 0.5) ** 2 - 0.5, first, last])


def shifts(shares: ArrayLike, size: float) -> _Floats:
    """Return preset changes of the shares whose total variation is `size`: up, apart, to the top, to the bottom.

    Args:
        shares: Shape [bins], of the reference.
        size: Mass that moves.

    Returns:
        Shape [4, bins], each adding up to 0; less mass where less than `size` can move.
    """
    p = np.asarray(shares, np.float64)
    rank = np.cumsum(p) - p / 2
    ends = np.eye(len(p), dtype=bool)[[0, -1]]
    to = [rank > 0.5, np.abs(rank - 0.5) > 0.25, ends[1], ends[0]]
    moved = []
    for target in to:
        source = np.where(target, 0.0, p)
        # An empty target still receives.
        goal = np.where(target, p if p[target].sum() > 0 else 1.0, 0.0)
        mass = min(size, float(source.sum()))
        moved.append(mass * (goal / goal.sum() - source / max(float(source.sum()), 1e-300)))
    return np.stack(moved)


def power(covariance: ArrayLike, freedom: float, change: ArrayLike, alpha: float) -> float:
    """Return the chance that a change of the mean contrasts is found.

    Args:
        covariance: Shape [d, d], of the mean over cohorts, the reference's error included.
        freedom: Degrees of freedom of its estimate: cohorts - 1, or more where much of it is known.
        change: Shape [d].
        alpha: Of the test.

    Source: Hotelling 1931; noncentral F with d and freedom - d + 1 degrees of freedom.
    """
    moved = np.asarray(change, np.float64)
    d = len(moved)
    if freedom <= d:
        return 0.0
    noncentrality = float(moved @ np.linalg.solve(np.asarray(covariance, np.float64), moved))
    rest = freedom - d + 1
    return float(stats.ncf.sf(stats.f.isf(alpha, d, rest), d, rest, max(noncentrality, 1e-9)))


def compare_cohorts(
    sums: ArrayLike,
    shares: ArrayLike,
    *,
    n_ref: float,
    sigma: float,
    size: float,
    alpha: float = 0.05,
    wanted_power: float = 0.9,
    reference_covariance: ArrayLike | None = None,
) -> FleetFinding:
    """Test whether cohorts have moved away from the reference, all in one direction.

    Args:
        sums: Shape [cohorts, bins], noised counts of one signal; cohorts are disjoint and of like size.
        shares: Shape [bins], of the reference.
        n_ref: Independent observations in the reference.
        sigma: Standard deviation of the noise on each bin of a cohort.
        size: Shift worth finding, as total variation.
        alpha: False alarms allowed; share it over signals and looks.
        wanted_power: With which `size` must be found before its absence is stated.
        reference_covariance: Shape [bins, bins], of the reference's shares, where it came from few devices; else
            multinomial.

    Raises:
        ValueError: Shapes or numbers do not fit.

    Source: Hotelling 1931; degrees of freedom of a sum of covariances, Krishnamoorthy and Yu 2004.
    """
    found, p = np.asarray(sums, np.float64), np.asarray(shares, np.float64)
    if found.ndim != 2 or found.shape[1] != len(p) or not 0 < size <= 0.5 or n_ref <= 0:
        raise ValueError(f"sums of shape {found.shape}, {len(p)} shares, size {size}, {n_ref} in the reference")
    totals = found.sum(axis=1)
    clear = totals > _CLEAR * sigma * math.sqrt(len(p))
    weights = contrasts(p)
    cohorts, d = int(clear.sum()), len(weights)
    if cohorts < _COHORTS_PER_DIMENSION * d:
        return FleetFinding(FleetVerdict.TOO_FEW, 1.0, size, 0.0, None, cohorts)
    moved = (found[clear] / totals[clear, None] - p) @ weights.T
    shared = _multinomial(p) / n_ref if reference_covariance is None else np.asarray(reference_covariance)
    between = np.cov(moved.T) / cohorts
    covariance = between + weights @ shared @ weights.T
    # A bin that is empty in the reference and everywhere else has no variance; the rest stays as it is.
    covariance += 1e-12 * np.trace(covariance) * np.eye(d)
    mean = moved.mean(axis=0)
    part = np.linalg.solve(covariance, between)
    # Only `between` is estimated: the more of the whole is known, the more degrees of freedom.
    freedom = (cohorts - 1) * (d + d * d) / float(np.trace(part @ part) + np.trace(part) ** 2)
    statistic = float(mean @ np.linalg.solve(covariance, mean)) * (freedom - d + 1) / (d * freedom)
    p_value = float(stats.f.sf(statistic, d, freedom - d + 1))
    # The inverse of an estimated covariance is too large on average, and so would be the power.
    honest = covariance * freedom / (freedom - d - 1)

    # All grow in proportion to the mass that moves, so the least visible one stays so.
    changes = [weights @ change for change in shifts(p, size)]
    hidden = min(changes, key=lambda change: float(change @ np.linalg.solve(honest, change)))

    def least_power(mass: float) -> float:
        return power(honest, freedom, hidden * mass / size, alpha)

    reached = least_power(size)
    if p_value <= alpha:
        verdict = FleetVerdict.DRIFT
    else:
        verdict = FleetVerdict.NO_SHIFT if reached >= wanted_power else FleetVerdict.TOO_FEW
    return FleetFinding(verdict, p_value, size, reached, _least_size(least_power, wanted_power), cohorts)


def rate(hits: float, count: float, *, sigma: float, alpha: float = 0.05, design: float = 1.0) -> Rate:
    """Return a share from two noised counts.

    Args:
        hits: Noised count, of `count`.
        count: Noised count.
        sigma: Standard deviation of the noise on each of the two, independent.
        alpha: Two-sided error.
        design: Variance of the count over that of independent observations; 1 for one observation per device.

    Source: the values p that a score test of hits - p count does not reject (Fieller 1954 for the ratio, Wilson
    1927 for the binomial part).
    """
    if count <= _CLEAR * sigma or count <= 0:
        return Rate(
            None, 0.0, 1.0, f"count {count:.0f} is within {_CLEAR:g} standard deviations of noise {sigma:g}"
        )
    squared = float(special.ndtri(1 - alpha / 2)) ** 2
    # p^2 a - p b + c <= 0
    a = count**2 + squared * (design * count - sigma**2)
    b = 2 * hits * count + squared * design * count
    c = hits**2 - squared * sigma**2
    root = math.sqrt(max(b * b - 4 * a * c, 0.0))
    low, high = (float(np.clip((b + sign * root) / (2 * a), 0, 1)) for sign in (-1, 1))
    return Rate(float(np.clip(hits / count, 0, 1)), low, high)


def cohort_rate(hits: ArrayLike, counts: ArrayLike, *, sigma: float, alpha: float = 0.05) -> Rate:
    """Return a share from many cohorts, whose scatter tells how much devices differ and how much noise there is.

    Args:
        hits: Shape [cohorts].
        counts: Shape [cohorts].
        sigma: Of the noise on each count; it only decides whether there is enough to divide by.
        alpha: Two-sided error.

    Source: ratio of means with its linearised standard error (Cochran 1977, 6.13), Student's t.
    """
    x, n = np.asarray(hits, np.float64), np.asarray(counts, np.float64)
    noise = sigma * math.sqrt(len(n))
    if len(n) < 2 or n.sum() <= max(_CLEAR * noise, 0.0):
        return Rate(None, 0.0, 1.0, f"{len(n)} cohorts with {n.sum():.0f} in all, noise {noise:.0f}")
    value = float(x.sum() / n.sum())
    error = float(np.std(x - value * n, ddof=1)) / (math.sqrt(len(n)) * float(n.mean()))
    reach = float(stats.t.isf(alpha / 2, len(n) - 1)) * error
    low, high = np.clip([value - reach, value + reach], 0, 1)
    return Rate(float(np.clip(value, 0, 1)), float(low), float(high))


def difference(one: Rate, other: Rate) -> Rate:
    """Return how much greater one share is than another of other devices, or why that is not known.

    Source: Zou and Donner 2008 (MOVER): limits of a difference from those of its parts.
    """
    if one.value is None or other.value is None:
        return Rate(None, -1.0, 1.0, one.why or other.why)
    gap = one.value - other.value
    low = gap - math.hypot(one.value - one.low, other.high - other.value)
    high = gap + math.hypot(one.high - one.value, other.value - other.low)
    return Rate(gap, max(low, -1.0), min(high, 1.0))


def calibration(
    counts: ArrayLike,
    confidence: ArrayLike,
    correct: ArrayLike,
    *,
    sigma: float,
    confidence_sigma: float,
    alpha: float = 0.05,
) -> Calibration | None:
    """Return the calibration error from noised sums over bins of confidence; None if they are within their noise.

    Args:
        counts: Shape [bins], samples.
        confidence: Shape [bins], sum of confidences.
        correct: Shape [bins], right answers.
        sigma: Of the noise on counts and right answers.
        confidence_sigma: Of the noise on sums of confidences, in units of confidence.
        alpha: Two-sided error, shared over bins.
    """
    n, right = (np.maximum(np.asarray(each, np.float64), 0.0) for each in (counts, correct))
    total = float(np.asarray(counts, np.float64).sum())
    if total <= _CLEAR * sigma * math.sqrt(len(n)):
        return None
    gap = (np.asarray(confidence, np.float64) - np.asarray(correct, np.float64)) / total
    # At least the variance of one right and one wrong answer more, so that a pure bin is not thought exact.
    share = (right + 1) / (np.maximum(n, right) + 2)
    error = np.sqrt(n * share * (1 - share) + sigma**2 + confidence_sigma**2) / total
    reach = float(special.ndtri(1 - alpha / (2 * len(n)))) * error
    return Calibration(
        gap,
        error,
        float(np.sqrt(np.maximum(gap**2 - error**2, 0)).sum()),
        float(np.maximum(np.abs(gap) - reach, 0).sum()),
        float((np.abs(gap) + reach).sum()),
    )


def _multinomial(shares: ArrayLike) -> _Floats:
    p = np.asarray(shares, np.float64)
    return np.diag(p) - np.outer(p, p)


def _least_size(least_power: Callable[[float], float], wanted: float) -> float | None:
    """Bisect for the least size that is found with the power wanted; power grows with size while mass can move."""
    if least_power(0.5) < wanted:
        return None
    low, high = 0.0, 0.5
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (low, middle) if least_power(middle) >= wanted else (middle, high)
    return high
