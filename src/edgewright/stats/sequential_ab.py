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
    "Arms",
    "count",
    "growth_to_refute",
    "interval",
    "log_harm",
    "log_imbalance",
    "log_refuted",
    "lower_bound",
    "upper_bound",
]

_Floats = NDArray[np.float64]
_Counts = NDArray[np.int64]

# How many times more often the treated fail, and how much of the money says so: most of it where a bet is good for
# twice as often and for four times. Of seven mixtures it was best or nearly so for 2 % that become 3, 4 or 8 %.
_RATIOS = np.array([1.3, 1.8, 2.7, 5.0])
_RATIO_WEIGHTS = np.array([1.0, 1.0, 5.0, 1.0]) / 8
# A refuted difference over the rate of failures: what is to be shown absent is mostly of the size of the rate.
_STEPS = 1.2 * 3.0 ** -np.arange(7)
_STEP_WEIGHTS = np.array([6, 10, 6, 2, 1, 1, 1]) / 27
# Share of the largest stake that no outcome can ruin.
_BOLDEST = 0.99
_BISECTIONS = 32


@dataclass(frozen=True, slots=True)
class Arms:
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
    def devices(self) -> tuple[int, int]:
        """Return how many devices the treated arm and the control have."""
        return int(self.treated.sum()), int(self.control.sum())

    @property
    def means(self) -> tuple[float, float]:
        """Return the mean outcomes of the treated arm and of the control; 0 for an arm without devices."""
        treated, control = self.devices
        return (
            float(self.values @ self.treated) / max(treated, 1),
            float(self.values @ self.control) / max(control, 1),
        )

    @property
    def swapped(self) -> "Arms":
        """Return the same devices with the arms exchanged."""
        return Arms(self.values, self.control, self.treated)


def count(treated: ArrayLike, control: ArrayLike) -> Arms:
    """Count outcomes.

    Args:
        treated: Shape [devices], outcomes of the treated arm, each from 0 to 1.
        control: Shape [devices], of the control.

    >>> count([0, 1, 1], [0, 0]).treated.tolist()
    [1, 2]
    """
    first, second = np.asarray(treated, np.float64), np.asarray(control, np.float64)
    values, places = np.unique(np.concatenate([first, second]), return_inverse=True)
    return Arms(
        values,
        np.bincount(places[: first.size], minlength=values.size).astype(np.int64),
        np.bincount(places[first.size :], minlength=values.size).astype(np.int64),
    )


def log_harm(arms: Arms, share: float, *, centre: float = 0.0) -> float:
    """Return the logarithm of the evidence that the treated are worse: log(1 / alpha) is enough.

    Args:
        arms: The devices.
        share: Probability with which a device was treated, between 0 and 1.
        centre: Mean outcome as expected before any of them was seen; helps where failures are frequent.

    Returns:
        Natural logarithm of an e-value against "no device does worse for being treated".

    >>> failures = Arms(np.array([0.0, 1.0]), np.array([276, 24]), np.array([294, 6]))
    >>> round(math.exp(log_harm(failures, 0.5)))
    180
    """
    scores, devices = _scores(arms, share, centre)
    spread = share * (1 - share)
    stakes = (_RATIOS - 1) * spread / (share * _RATIOS + 1 - share)
    stakes = np.minimum(stakes, _BOLDEST / _largest(1 - share, centre))
    return _mixed(np.log1p(np.outer(stakes, scores)) @ devices, _RATIO_WEIGHTS)


def log_refuted(arms: Arms, share: float, difference: float, *, centre: float = 0.0) -> float:
    """Return the logarithm of the evidence against the treated being worse by `difference` or more.

    Rises with the difference, and falls with every failure of the treated.

    Args:
        arms: The devices.
        share: Probability with which a device was treated.
        difference: Of the mean outcomes, treated minus control.
        centre: As for `log_harm`.
    """
    return _mixed(_refuting(arms, share, difference, centre), _STEP_WEIGHTS)


def growth_to_refute(arms: Arms, share: float, difference: float, alpha: float, *, centre: float = 0.0) -> float:
    """Return how many times as many devices, with the same rates, refute a difference; infinity if none do.

    Args:
        arms: The devices so far.
        share: Probability with which a device was treated.
        difference: As for `log_refuted`.
        alpha: Error of the bound.
        centre: As for `log_harm`.

    >>> growth_to_refute(Arms(np.array([0.0]), np.array([100]), np.array([100])), 0.5, 0.01, 0.05) > 1
    True
    """
    logs, target = _refuting(arms, share, difference, centre), -math.log(alpha)
    if _mixed(logs, _STEP_WEIGHTS) >= target:
        return 1.0
    if logs.max() <= 0:
        return math.inf
    low, high = 1.0, 2.0
    while _mixed(high * logs, _STEP_WEIGHTS) < target:
        low, high = high, 2 * high
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if _mixed(middle * logs, _STEP_WEIGHTS) < target else (low, middle)
    return high


def upper_bound(arms: Arms, share: float, alpha: float, *, centre: float = 0.0) -> float:
    """Return a bound that the difference of the mean outcomes, treated minus control, never passes.

    Args:
        arms: The devices.
        share: Probability with which a device was treated.
        alpha: Probability that the bound is ever too low, over all looks together.
        centre: As for `log_harm`.

    Raises:
        ValueError: An impossible alpha, share or centre.

    >>> same = Arms(np.array([0.0, 1.0]), np.array([2940, 60]), np.array([2940, 60]))
    >>> round(upper_bound(same, 0.5, 0.05), 4)
    0.0106
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha}")
    target = -math.log(alpha)
    low, high = -1.0, 1.0
    if log_refuted(arms, share, high, centre=centre) < target:
        return high
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if log_refuted(arms, share, middle, centre=centre) < target:
            low = middle
        else:
            high = middle
    return high


def lower_bound(arms: Arms, share: float, alpha: float, *, centre: float = 0.0) -> float:
    """Return a bound that the difference of the mean outcomes never falls below; see `upper_bound`."""
    return -upper_bound(arms.swapped, 1 - share, alpha, centre=centre)


def interval(arms: Arms, share: float, alpha: float, *, centre: float = 0.0) -> tuple[float, float]:
    """Return both bounds, each at half of alpha, widened to hold the difference of the arms' means.

    >>> low, high = interval(Arms(np.array([0.0, 1.0]), np.array([920, 80]), np.array([980, 20])), 0.5, 0.05)
    >>> round(low, 3), round(high, 3)
    (0.028, 0.094)
    """
    treated, control = arms.means
    low = lower_bound(arms, share, alpha / 2, centre=centre)
    high = upper_bound(arms, share, alpha / 2, centre=centre)
    return min(low, treated - control), max(high, treated - control)


def log_imbalance(treated: int, control: int, share: float) -> float:
    """Return the logarithm of the evidence that devices are not treated with the probability that they should be.

    Where arms are counted differently nothing else that is said of them holds. The wealth is a likelihood ratio,
    averaged over a Beta distribution around the share (Lindon and Malek 2022, arXiv:2011.03567).

    Args:
        treated: Devices.
        control: Devices.
        share: Probability with which a device was to be treated.

    >>> log_imbalance(500, 500, 0.5) < 0, log_imbalance(600, 400, 0.5) > math.log(1000)
    (True, True)
    """
    _checked(share, 0.0)
    weight = 100 / min(share, 1 - share)
    first, second = weight * share, weight * (1 - share)
    return (
        _log_beta(first + treated, second + control)
        - _log_beta(first, second)
        - treated * math.log(share)
        - control * math.log1p(-share)
    )


def _log_beta(first: float, second: float) -> float:
    return math.lgamma(first) + math.lgamma(second) - math.lgamma(first + second)


def _checked(share: float, centre: float) -> None:
    if not 0 < share < 1 or not 0 <= centre < 1:
        raise ValueError(f"share {share}, centre {centre}")


def _scores(arms: Arms, share: float, centre: float) -> tuple[_Floats, _Counts]:
    """Return the scores x that occur and how many devices have each; shape [2 * values]."""
    _checked(share, centre)
    away = arms.values - centre
    return np.concatenate([away / share, -away / (1 - share)]), np.concatenate([arms.treated, arms.control])


def _largest(share: float, centre: float) -> float:
    """Return the largest score that a device can have if it is treated with this probability."""
    return max((1 - centre) / share, centre / (1 - share))


def _refuting(arms: Arms, share: float, difference: float, centre: float) -> _Floats:
    """Return the logarithm of the wealth against a difference for each stake; shape [stakes]."""
    scores, devices = _scores(arms, share, centre)
    # A stake at its limit grows with the difference, as its factors do.
    limit = _BOLDEST / max(_largest(share, centre) - difference, 1e-9)
    stakes = np.minimum(_STEPS * share * (1 - share), limit)
    return np.asarray(np.log1p(np.outer(stakes, difference - scores)) @ devices)


def _mixed(logs: _Floats, weights: _Floats) -> float:
    """Return the logarithm of the mean wealth."""
    peak = float(logs.max())
    return peak + math.log(float(weights @ np.exp(logs - peak)))
