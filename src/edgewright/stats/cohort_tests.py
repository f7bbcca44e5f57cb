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
    "CohortCalibration",
    "CohortTestResult",
    "CohortVerdict",
    "RateEstimate",
    "cohort_calibration",
    "cohort_contrasts",
    "cohort_rate",
    "compare_cohorts",
    "contrast_power",
    "noised_rate",
    "null_covariance",
    "pooled_p_value",
    "preset_shifts",
    "rate_difference",
]

_Floats = NDArray[np.float64]

# Cohorts per dimension: 16 in 15 dimensions had 19 % power where 64 had 100 %.
_COHORTS_PER_DIMENSION = 3
# Counts within this many standard deviations of their noise are not divided by.
_MIN_NOISE_SIGMAS = 4.0


class CohortVerdict(StrEnum):
    """What sums over a fleet show."""

    DRIFT = "drift"
    NO_SHIFT = "no shift of the stated size or more"
    TOO_FEW_DEVICES = "too few devices"


@dataclass(frozen=True, slots=True)
class CohortTestResult:
    """The outcome of a test on cohorts.

    Attributes:
        verdict: See `describe`.
        p_value: 1 if nothing could be tested.
        shift_size: Shift, as total variation, that was to be found.
        power: Chance that it would have been found, for the least visible of the preset shifts.
        detectable_shift: Least size that is found with the power asked for; None if none is.
        testable_cohorts: That were clear of their noise.
    """

    verdict: CohortVerdict
    p_value: float
    shift_size: float
    power: float
    detectable_shift: float | None
    testable_cohorts: int

    @property
    def describe(self) -> str:
        """What to show people; never that all is well."""
        if self.verdict is CohortVerdict.DRIFT:
            return f"drift (p = {self.p_value:.2g}, {self.testable_cohorts} cohorts)"
        if self.verdict is CohortVerdict.NO_SHIFT:
            return (
                f"no shift of {self.shift_size:.3g} or more (power {self.power:.2f}, "
                f"{self.testable_cohorts} cohorts)"
            )
        found = "" if self.detectable_shift is None else f"; {self.detectable_shift:.2g} would be detected"
        return f"too few devices to detect a shift of {self.shift_size:.3g} (power {self.power:.2f}{found})"


@dataclass(frozen=True, slots=True)
class RateEstimate:
    """A share with its interval, or why there is none.

    Attributes:
        value: None where the counts are within their noise.
        low: Of the two-sided interval.
        high: Of the two-sided interval.
        reason: Reason for a missing value.
    """

    value: float | None
    low: float
    high: float
    reason: str = ""


@dataclass(frozen=True, slots=True)
class CohortCalibration:
    """How far confidence is from accuracy.

    Attributes:
        gaps: Shape [bins], mean confidence less accuracy times the bin's share of all samples.
        gap_std_errors: Shape [bins], standard error of it, noise included.
        ece: Expected calibration error, the mean scatter of the gaps taken off.
        ece_low: Of an interval that holds for all bins together.
        ece_high: Of the same.
    """

    gaps: _Floats
    gap_std_errors: _Floats
    ece: float
    ece_low: float
    ece_high: float


def null_covariance(
    shares: ArrayLike, observation_count: float, reference_count: float, noise_sd: float
) -> _Floats:
    """Return the covariance of a noised sum about `observation_count` times the reference's shares.

    It holds for devices that are alike.

    `total (diag p - p p') (1 + total / n_ref) + sigma^2 I`: sampling of the sum, of the reference, and noise.

    Args:
        shares: Shape [bins], of the reference.
        observation_count: Observations in the sum.
        reference_count: Observations in the reference.
        noise_sd: Standard deviation of the noise on each bin.
    """
    return observation_count * (1 + observation_count / reference_count) * _multinomial_covariance(
        shares
    ) + noise_sd**2 * np.eye(len(np.asarray(shares)))


def pooled_p_value(sums: ArrayLike, shares: ArrayLike, *, reference_count: float, noise_sd: float) -> float:
    """Return the chi-square test's p-value of one noised sum. Only for devices that are known to be alike.

    Args:
        sums: Shape [bins].
        shares: Shape [bins], of the reference.
        reference_count: Observations in the reference.
        noise_sd: Of the noise on each bin.
    """
    found, p = np.asarray(sums, np.float64), np.asarray(shares, np.float64)
    # The total is noised too: the projection takes out what it moves.
    project = np.eye(len(p)) - np.outer(p, np.ones(len(p)))
    residual = (project @ found)[:-1]
    covariance = (project @ null_covariance(p, float(found.sum()), reference_count, noise_sd) @ project.T)[:-1, :-1]
    kept = np.diag(covariance) > 0
    statistic = residual[kept] @ np.linalg.solve(covariance[np.ix_(kept, kept)], residual[kept])
    return float(stats.chi2.sf(statistic, int(kept.sum())))


def cohort_contrasts(shares: ArrayLike) -> _Floats:
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


def preset_shifts(shares: ArrayLike, shift_size: float) -> _Floats:
    """Return preset changes of the shares whose total variation is `shift_size`: up, apart, to the top, to the bottom.

    Args:
        shares: Shape [bins], of the reference.
        shift_size: Mass that moves.

    Returns:
        Shape [4, bins], each adding up to 0; less mass where less than `shift_size` can move.
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
        mass = min(shift_size, float(source.sum()))
        moved.append(mass * (goal / goal.sum() - source / max(float(source.sum()), 1e-300)))
    return np.stack(moved)


def contrast_power(covariance: ArrayLike, degrees_of_freedom: float, shift: ArrayLike, alpha: float) -> float:
    """Return the chance that a change of the mean contrasts is found.

    Args:
        covariance: Shape [d, d], of the mean over cohorts, the reference's error included.
        degrees_of_freedom: Degrees of freedom of its estimate: cohorts - 1, or more where much of it is known.
        shift: Shape [d].
        alpha: Of the test.

    Source: Hotelling 1931; noncentral F with d and freedom - d + 1 degrees of freedom.
    """
    moved = np.asarray(shift, np.float64)
    d = len(moved)
    if degrees_of_freedom <= d:
        return 0.0
    noncentrality = float(moved @ np.linalg.solve(np.asarray(covariance, np.float64), moved))
    rest = degrees_of_freedom - d + 1
    return float(stats.ncf.sf(stats.f.isf(alpha, d, rest), d, rest, max(noncentrality, 1e-9)))


def compare_cohorts(
    sums: ArrayLike,
    shares: ArrayLike,
    *,
    reference_count: float,
    noise_sd: float,
    shift_size: float,
    alpha: float = 0.05,
    target_power: float = 0.9,
    reference_covariance: ArrayLike | None = None,
) -> CohortTestResult:
    """Test whether cohorts have moved away from the reference, all in one direction.

    Args:
        sums: Shape [cohorts, bins], noised counts of one signal; cohorts are disjoint and of like size.
        shares: Shape [bins], of the reference.
        reference_count: Independent observations in the reference.
        noise_sd: Standard deviation of the noise on each bin of a cohort.
        shift_size: Shift worth finding, as total variation.
        alpha: False alarms allowed; share it over signals and looks.
        target_power: With which `shift_size` must be found before its absence is stated.
        reference_covariance: Shape [bins, bins], of the reference's shares, where it came from few devices; else
            multinomial.

    Raises:
        ValueError: Shapes or numbers do not fit.

    Source: Hotelling 1931; degrees of freedom of a sum of covariances, Krishnamoorthy and Yu 2004.
    """
    found, p = np.asarray(sums, np.float64), np.asarray(shares, np.float64)
    if found.ndim != 2 or found.shape[1] != len(p) or not 0 < shift_size <= 0.5 or reference_count <= 0:
        raise ValueError(
            f"sums of shape {found.shape}, {len(p)} shares, size {shift_size}, {reference_count} in the reference"
        )
    totals = found.sum(axis=1)
    clear = totals > _MIN_NOISE_SIGMAS * noise_sd * math.sqrt(len(p))
    weights = cohort_contrasts(p)
    cohorts, d = int(clear.sum()), len(weights)
    if cohorts < _COHORTS_PER_DIMENSION * d:
        return CohortTestResult(CohortVerdict.TOO_FEW_DEVICES, 1.0, shift_size, 0.0, None, cohorts)
    moved = (found[clear] / totals[clear, None] - p) @ weights.T
    shared = (
        _multinomial_covariance(p) / reference_count
        if reference_covariance is None
        else np.asarray(reference_covariance)
    )
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
    changes = [weights @ change for change in preset_shifts(p, shift_size)]
    hidden = min(changes, key=lambda change: float(change @ np.linalg.solve(honest, change)))

    def least_power(mass: float) -> float:
        return contrast_power(honest, freedom, hidden * mass / shift_size, alpha)

    reached = least_power(shift_size)
    if p_value <= alpha:
        verdict = CohortVerdict.DRIFT
    else:
        verdict = CohortVerdict.NO_SHIFT if reached >= target_power else CohortVerdict.TOO_FEW_DEVICES
    return CohortTestResult(
        verdict, p_value, shift_size, reached, _min_detectable_shift(least_power, target_power), cohorts
    )


def noised_rate(
    successes: float, count: float, *, noise_sd: float, alpha: float = 0.05, design_effect: float = 1.0
) -> RateEstimate:
    """Return a share from two noised counts.

    Args:
        successes: Noised count, of `count`.
        count: Noised count.
        noise_sd: Standard deviation of the noise on each of the two, independent.
        alpha: Two-sided error.
        design_effect: Variance of the count over that of independent observations; 1 for one observation per device.

    Source: the values p that a score test of hits - p count does not reject (Fieller 1954 for the ratio, Wilson
    1927 for the binomial part).
    """
    if count <= _MIN_NOISE_SIGMAS * noise_sd or count <= 0:
        return RateEstimate(
            None,
            0.0,
            1.0,
            f"count {count:.0f} is within {_MIN_NOISE_SIGMAS:g} standard deviations of noise {noise_sd:g}",
        )
    squared = float(special.ndtri(1 - alpha / 2)) ** 2
    # p^2 a - p b + c <= 0
    a = count**2 + squared * (design_effect * count - noise_sd**2)
    b = 2 * successes * count + squared * design_effect * count
    c = successes**2 - squared * noise_sd**2
    root = math.sqrt(max(b * b - 4 * a * c, 0.0))
    low, high = (float(np.clip((b + sign * root) / (2 * a), 0, 1)) for sign in (-1, 1))
    return RateEstimate(float(np.clip(successes / count, 0, 1)), low, high)


def cohort_rate(successes: ArrayLike, counts: ArrayLike, *, noise_sd: float, alpha: float = 0.05) -> RateEstimate:
    """Return a share from many cohorts, whose scatter tells how much devices differ and how much noise there is.

    Args:
        successes: Shape [cohorts].
        counts: Shape [cohorts].
        noise_sd: Of the noise on each count; it only decides whether there is enough to divide by.
        alpha: Two-sided error.

    Source: ratio of means with its linearised standard error (Cochran 1977, 6.13), Student's t.
    """
    x, n = np.asarray(successes, np.float64), np.asarray(counts, np.float64)
    noise = noise_sd * math.sqrt(len(n))
    if len(n) < 2 or n.sum() <= max(_MIN_NOISE_SIGMAS * noise, 0.0):
        return RateEstimate(None, 0.0, 1.0, f"{len(n)} cohorts with {n.sum():.0f} in all, noise {noise:.0f}")
    value = float(x.sum() / n.sum())
    error = float(np.std(x - value * n, ddof=1)) / (math.sqrt(len(n)) * float(n.mean()))
    reach = float(stats.t.isf(alpha / 2, len(n) - 1)) * error
    low, high = np.clip([value - reach, value + reach], 0, 1)
    return RateEstimate(float(np.clip(value, 0, 1)), float(low), float(high))


def rate_difference(rate: RateEstimate, reference_rate: RateEstimate) -> RateEstimate:
    """Return how much greater one share is than another of other devices, or why that is not known.

    Source: Zou and Donner 2008 (MOVER): limits of a difference from those of its parts.
    """
    if rate.value is None or reference_rate.value is None:
        return RateEstimate(None, -1.0, 1.0, rate.reason or reference_rate.reason)
    gap = rate.value - reference_rate.value
    low = gap - math.hypot(rate.value - rate.low, reference_rate.high - reference_rate.value)
    high = gap + math.hypot(rate.high - rate.value, reference_rate.value - reference_rate.low)
    return RateEstimate(gap, max(low, -1.0), min(high, 1.0))


def cohort_calibration(
    counts: ArrayLike,
    confidence: ArrayLike,
    correct: ArrayLike,
    *,
    noise_sd: float,
    confidence_noise_sd: float,
    alpha: float = 0.05,
) -> CohortCalibration | None:
    """Return the calibration error from noised sums over bins of confidence; None if they are within their noise.

    Args:
        counts: Shape [bins], samples.
        confidence: Shape [bins], sum of confidences.
        correct: Shape [bins], right answers.
        noise_sd: Of the noise on counts and right answers.
        confidence_noise_sd: Of the noise on sums of confidences, in units of confidence.
        alpha: Two-sided error, shared over bins.
    """
    n, right = (np.maximum(np.asarray(each, np.float64), 0.0) for each in (counts, correct))
    total = float(np.asarray(counts, np.float64).sum())
    if total <= _MIN_NOISE_SIGMAS * noise_sd * math.sqrt(len(n)):
        return None
    gap = (np.asarray(confidence, np.float64) - np.asarray(correct, np.float64)) / total
    # At least the variance of one right and one wrong answer more, so that a pure bin is not thought exact.
    share = (right + 1) / (np.maximum(n, right) + 2)
    error = np.sqrt(n * share * (1 - share) + noise_sd**2 + confidence_noise_sd**2) / total
    reach = float(special.ndtri(1 - alpha / (2 * len(n)))) * error
    return CohortCalibration(
        gap,
        error,
        float(np.sqrt(np.maximum(gap**2 - error**2, 0)).sum()),
        float(np.maximum(np.abs(gap) - reach, 0).sum()),
        float((np.abs(gap) + reach).sum()),
    )


def _multinomial_covariance(shares: ArrayLike) -> _Floats:
    p = np.asarray(shares, np.float64)
    return np.diag(p) - np.outer(p, p)


def _min_detectable_shift(power_at_size: Callable[[float], float], target_power: float) -> float | None:
    """Bisect for the least size that is found with the power wanted; power grows with size while mass can move."""
    if power_at_size(0.5) < target_power:
        return None
    low, high = 0.0, 0.5
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (low, middle) if power_at_size(middle) >= target_power else (middle, high)
    return high
