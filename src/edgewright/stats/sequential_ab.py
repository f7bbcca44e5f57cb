"""Whether one arm of a randomised comparison is worse, asked as often as one likes, answered by counts.

Every device has one outcome y in [0, 1], the greater the worse, and is treated with probability `share`,
independently of everything else (Z = 1). Then x = (y - centre) (Z / share - (1 - Z) / (1 - share)) has the effect
of the treatment on that device as its mean, for any centre fixed beforehand: the inverse probability score (Horvitz
and Thompson 1952; in confidence sequences Waudby-Smith, Wu, Ramdas, Karampatziakis and Mineiro 2024,
arXiv:2210.10768). Nothing is assumed of how devices differ, of how rates move over time, or of how many of them
look alike: chance is in the assignment alone. Hence devices need no partner, and arms of any sizes are compared.

Evidence is money won by betting. With the effect at most 0, prod(1 + b x) has mean at most 1 for a stake b that
keeps factors positive; with the effect at least m, prod(1 + b (m - x)). Such wealth passes 1 / alpha with
probability at most alpha, whenever one looks (Ville 1939), and the m that were not refuted are a confidence
sequence (Waudby-Smith and Ramdas 2024, arXiv:2010.09686). Stakes are fixed and wealth is averaged over them, so
that it depends on counts alone: the order of devices does not matter, and a decision keeps nothing but tallies.

Why not others: stakes that learn from the past need the order, and pairs of devices throw away most of the larger
arm. To clear a margin the hedged capital process took as many pairs in the median and more in the worst twentieth,
an empirical Bernstein sequence more in both (`benchmarks/rollouts.py`). For rare failures the wealth against "no
worse" is the likelihood ratio of their split between the arms, as in Turner, Ly and Gruenwald 2024,
arXiv:2106.02693, without its blocks.

Numpy only.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "ArmOutcomes",
    "count_outcomes_by_arm",
    "difference_interval",
    "difference_lower_bound",
    "difference_upper_bound",
    "log_harm_evidence",
    "log_imbalance_evidence",
    "log_refutation_evidence",
    "sample_growth_to_refute",
]

_Floats = NDArray[np.float64]
_Counts = NDArray[np.int64]

# How many times more often the treated fail, and how much of the money says so: most of it where a bet is good for
# twice as often and for four times. Of seven mixtures it was best or nearly so for 2 % that become 3, 4 or 8 %.
_HARM_RATIOS = np.array([1.3, 1.8, 2.7, 5.0])
_HARM_RATIO_WEIGHTS = np.array([1.0, 1.0, 5.0, 1.0]) / 8
# A refuted difference over the rate of failures: what is to be shown absent is mostly of the size of the rate.
_STAKE_GRID = 1.2 * 3.0 ** -np.arange(7)
_STAKE_WEIGHTS = np.array([6, 10, 6, 2, 1, 1, 1]) / 27
# Share of the largest stake that no outcome can ruin.
_MAX_STAKE = 0.99
_BISECTIONS = 32


@dataclass(frozen=True, slots=True)
class ArmOutcomes:
    """Devices of two arms, by their outcome.

    Attributes:
        values: Shape [values], distinct outcomes from 0 to 1, the greater the worse.
        treated: Shape [values], devices of the treated arm that had each.
        control: Shape [values], devices of the control.
    """

    values: _Floats
    treated: _Counts
    control: _Counts

    def __post_init__(self) -> None:
        """Refuse outcomes out of range and negative counts."""
        if not ((self.values >= 0) & (self.values <= 1)).all():
            raise ValueError(f"outcomes are not between 0 and 1: {self.values}")
        if self.treated.shape != self.values.shape or self.control.shape != self.values.shape:
            raise ValueError(f"{self.values.size} values, {self.treated.size} and {self.control.size} counts")
        if (self.treated < 0).any() or (self.control < 0).any():
            raise ValueError("a count is negative")

    @property
    def device_counts(self) -> tuple[int, int]:
        """Return how many devices the treated arm and the control have."""
        return int(self.treated.sum()), int(self.control.sum())

    @property
    def mean_outcomes(self) -> tuple[float, float]:
        """Return the mean outcomes of the treated arm and of the control; 0 for an arm without devices."""
        treated, control = self.device_counts
        return (
            float(self.values @ self.treated) / max(treated, 1),
            float(self.values @ self.control) / max(control, 1),
        )

    @property
    def swapped(self) -> "ArmOutcomes":
        """Return the same devices with the arms exchanged."""
        return ArmOutcomes(self.values, self.control, self.treated)


def count_outcomes_by_arm(treated: ArrayLike, control: ArrayLike) -> ArmOutcomes:
    """Count outcomes.

    Args:
        treated: Shape [devices], outcomes of the treated arm, each from 0 to 1.
        control: Shape [devices], of the control.

    >>> count_outcomes_by_arm([0, 1, 1], [0, 0]).treated.tolist()
    [1, 2]
    """
    first, second = np.asarray(treated, np.float64), np.asarray(control, np.float64)
    values, places = np.unique(np.concatenate([first, second]), return_inverse=True)
    return ArmOutcomes(
        values,
        np.bincount(places[: first.size], minlength=values.size).astype(np.int64),
        np.bincount(places[first.size :], minlength=values.size).astype(np.int64),
    )


def log_harm_evidence(arms: ArmOutcomes, treatment_probability: float, *, center: float = 0.0) -> float:
    """Return the logarithm of the evidence that the treated are worse: log(1 / alpha) is enough.

    Args:
        arms: The devices.
        treatment_probability: Probability with which a device was treated, between 0 and 1.
        center: Mean outcome as expected before any of them was seen; helps where failures are frequent.

    Returns:
        Natural logarithm of an e-value against "no device does worse for being treated".

    >>> failures = ArmOutcomes(np.array([0.0, 1.0]), np.array([276, 24]), np.array([294, 6]))
    >>> round(math.exp(log_harm_evidence(failures, 0.5)))
    180
    """
    scores, devices = _scores(arms, treatment_probability, center)
    spread = treatment_probability * (1 - treatment_probability)
    stakes = (_HARM_RATIOS - 1) * spread / (treatment_probability * _HARM_RATIOS + 1 - treatment_probability)
    stakes = np.minimum(stakes, _MAX_STAKE / _max_score(1 - treatment_probability, center))
    return _log_mean_wealth(np.log1p(np.outer(stakes, scores)) @ devices, _HARM_RATIO_WEIGHTS)


def log_refutation_evidence(
    arms: ArmOutcomes, treatment_probability: float, difference: float, *, center: float = 0.0
) -> float:
    """Return the logarithm of the evidence against the treated being worse by `difference` or more.

    Rises with the difference, and falls with every failure of the treated.

    Args:
        arms: The devices.
        treatment_probability: Probability with which a device was treated.
        difference: Of the mean outcomes, treated minus control.
        center: As for `log_harm_evidence`.
    """
    return _log_mean_wealth(_log_wealth_by_stake(arms, treatment_probability, difference, center), _STAKE_WEIGHTS)


def sample_growth_to_refute(
    arms: ArmOutcomes, treatment_probability: float, difference: float, alpha: float, *, center: float = 0.0
) -> float:
    """Return how many times as many devices, with the same rates, refute a difference; infinity if none do.

    Args:
        arms: The devices so far.
        treatment_probability: Probability with which a device was treated.
        difference: As for `log_refutation_evidence`.
        alpha: Error of the bound.
        center: As for `log_harm_evidence`.

    >>> sample_growth_to_refute(ArmOutcomes(np.array([0.0]), np.array([100]), np.array([100])), 0.5, 0.01, 0.05) > 1
    True
    """
    logs, target = _log_wealth_by_stake(arms, treatment_probability, difference, center), -math.log(alpha)
    if _log_mean_wealth(logs, _STAKE_WEIGHTS) >= target:
        return 1.0
    if logs.max() <= 0:
        return math.inf
    low, high = 1.0, 2.0
    while _log_mean_wealth(high * logs, _STAKE_WEIGHTS) < target:
        low, high = high, 2 * high
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if _log_mean_wealth(middle * logs, _STAKE_WEIGHTS) < target else (low, middle)
    return high


def difference_upper_bound(
    arms: ArmOutcomes, treatment_probability: float, alpha: float, *, center: float = 0.0
) -> float:
    """Return a bound that the difference of the mean outcomes, treated minus control, never passes.

    Args:
        arms: The devices.
        treatment_probability: Probability with which a device was treated.
        alpha: Probability that the bound is ever too low, over all looks together.
        center: As for `log_harm_evidence`.

    Raises:
        ValueError: An impossible alpha, share or centre.

    >>> same = ArmOutcomes(np.array([0.0, 1.0]), np.array([2940, 60]), np.array([2940, 60]))
    >>> round(difference_upper_bound(same, 0.5, 0.05), 4)
    0.0106
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha}")
    target = -math.log(alpha)
    low, high = -1.0, 1.0
    if log_refutation_evidence(arms, treatment_probability, high, center=center) < target:
        return high
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if log_refutation_evidence(arms, treatment_probability, middle, center=center) < target:
            low = middle
        else:
            high = middle
    return high


def difference_lower_bound(
    arms: ArmOutcomes, treatment_probability: float, alpha: float, *, center: float = 0.0
) -> float:
    """Return a bound that the difference of the mean outcomes never falls below; see `difference_upper_bound`."""
    return -difference_upper_bound(arms.swapped, 1 - treatment_probability, alpha, center=center)


def difference_interval(
    arms: ArmOutcomes, treatment_probability: float, alpha: float, *, center: float = 0.0
) -> tuple[float, float]:
    """Return both bounds, each at half of alpha, widened to hold the difference of the arms' means.

    >>> arms = ArmOutcomes(np.array([0.0, 1.0]), np.array([920, 80]), np.array([980, 20]))
    >>> low, high = difference_interval(arms, 0.5, 0.05)
    >>> round(low, 3), round(high, 3)
    (0.028, 0.094)
    """
    treated, control = arms.mean_outcomes
    low = difference_lower_bound(arms, treatment_probability, alpha / 2, center=center)
    high = difference_upper_bound(arms, treatment_probability, alpha / 2, center=center)
    return min(low, treated - control), max(high, treated - control)


def log_imbalance_evidence(treated: int, control: int, treatment_probability: float) -> float:
    """Return the logarithm of the evidence that devices are not treated with the probability that they should be.

    Where arms are counted differently nothing else that is said of them holds. The wealth is a likelihood ratio,
    averaged over a Beta distribution around the share (Lindon and Malek 2022, arXiv:2011.03567).

    Args:
        treated: Devices.
        control: Devices.
        treatment_probability: Probability with which a device was to be treated.

    >>> log_imbalance_evidence(500, 500, 0.5) < 0, log_imbalance_evidence(600, 400, 0.5) > math.log(1000)
    (True, True)
    """
    _check_arguments(treatment_probability, 0.0)
    weight = 100 / min(treatment_probability, 1 - treatment_probability)
    first, second = weight * treatment_probability, weight * (1 - treatment_probability)
    return (
        _log_beta(first + treated, second + control)
        - _log_beta(first, second)
        - treated * math.log(treatment_probability)
        - control * math.log1p(-treatment_probability)
    )


def _log_beta(first: float, second: float) -> float:
    return math.lgamma(first) + math.lgamma(second) - math.lgamma(first + second)


def _check_arguments(treatment_probability: float, center: float) -> None:
    if not 0 < treatment_probability < 1 or not 0 <= center < 1:
        raise ValueError(f"share {treatment_probability}, centre {center}")


def _scores(arms: ArmOutcomes, treatment_probability: float, center: float) -> tuple[_Floats, _Counts]:
    """Return the scores x that occur and how many devices have each; shape [2 * values]."""
    _check_arguments(treatment_probability, center)
    away = arms.values - center
    return np.concatenate([away / treatment_probability, -away / (1 - treatment_probability)]), np.concatenate(
        [arms.treated, arms.control]
    )


def _max_score(treatment_probability: float, center: float) -> float:
    """Return the largest score that a device can have if it is treated with this probability."""
    return max((1 - center) / treatment_probability, center / (1 - treatment_probability))


def _log_wealth_by_stake(
    arms: ArmOutcomes, treatment_probability: float, difference: float, center: float
) -> _Floats:
    """Return the logarithm of the wealth against a difference for each stake; shape [stakes]."""
    scores, devices = _scores(arms, treatment_probability, center)
    # A stake at its limit grows with the difference, as its factors do.
    limit = _MAX_STAKE / max(_max_score(treatment_probability, center) - difference, 1e-9)
    stakes = np.minimum(_STAKE_GRID * treatment_probability * (1 - treatment_probability), limit)
    return np.asarray(np.log1p(np.outer(stakes, difference - scores)) @ devices)


def _log_mean_wealth(log_wealths: _Floats, weights: _Floats) -> float:
    """Return the logarithm of the mean wealth."""
    peak = float(log_wealths.max())
    return peak + math.log(float(weights @ np.exp(log_wealths - peak)))
