"""Upper bounds on a paired drop whose scores are not 0/1: bounded, unbounded, by cluster, or of a whole-set metric.

A drop is the mean of original minus candidate over the same samples. Bounds are one-sided at level 1 - alpha, and
upper ones; the lower bound is minus the upper bound of the negated differences. For 0/1 scores see
`edgewright.stats.exact_paired_bound`.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

__all__ = ["MIN_CLUSTERS", "betting_bound", "bootstrap_bounds", "cluster_bound", "cluster_labels", "t_bound"]

_Floats = NDArray[np.float64]

MIN_CLUSTERS = 5
"""With fewer clusters no bound over clusters is given."""


def betting_bound(differences: _Floats, alpha: float, low: float, high: float) -> float:
    """Return a bound for differences in [low, high], valid for every distribution there and every n.

    For y = (high - d) / (high - low) in [0, 1] and a claimed mean m, the capital of a bettor who stakes the share
    s, prod(1 + s (y_i / m - 1)), has mean at most 1 if the mean of y is at most m (Waudby-Smith and Ramdas 2024,
    arXiv:2010.09686, their capital process with bets s / m). So has its average over fixed stakes, which depends
    on no order; a mean m at which it reaches 1 / alpha is excluded (Markov's inequality).

    Args:
        differences: Shape [samples], original minus candidate.
        alpha: One-sided error.
        low: Least possible difference.
        high: Greatest possible difference.

    Raises:
        ValueError: No differences, or one outside [low, high].
    """
    if not differences.size or differences.min() < low or differences.max() > high:
        raise ValueError(f"differences are not within [{low}, {high}]")
    values, counts = np.unique((high - differences) / (high - low), return_counts=True)
    stakes = _stake_grid(differences.size)

    def log_capital(mean: float) -> float:
        logs = (counts * np.log1p(np.outer(stakes, values / mean - 1))).sum(axis=1)
        peak = float(logs.max())
        return peak + math.log(float(np.exp(logs - peak).mean()))

    center = float((values * counts).sum() / differences.size)
    target = -math.log(alpha)
    if center <= 0 or log_capital(1e-12) < target:
        return high
    mean = float(optimize.brentq(lambda m: log_capital(m) - target, 1e-12, center, xtol=1e-12))
    return high - (mean - 1e-11) * (high - low)


def _stake_grid(samples: int) -> _Floats:
    """Return shares from nearly all, for no difference at all, down to what fits the greatest variance."""
    halves = 0.5 ** np.arange(1, 1 + math.ceil(0.5 * math.log2(samples)))
    return np.concatenate([[0.999, 0.8], halves])


def t_bound(differences: _Floats, alpha: float) -> float:
    """Return the greater of Student's and Hall's bound for unbounded differences; asymptotic in the samples.

    Hall's undoes the skewness of the t statistic: with a heavy right tail, rare great losses, the sample's mean and
    spread are small together and Student's bound misses too often (lognormal differences, n = 300: 8.5 % against
    Hall's 5.9 % at a nominal 5 %).

    Raises:
        ValueError: Fewer than two differences.

    Source: Hall 1992, Journal of the Royal Statistical Society B 54, the cubic transformation g1.
    """
    if differences.size < 2:
        raise ValueError(f"{differences.size} differences have no spread")
    spread = float(differences.std())
    mean = float(differences.mean())
    if spread == 0:
        return mean
    error = spread / math.sqrt(differences.size - 1)
    student = float(stats.t.isf(alpha, differences.size - 1))
    skew = float((((differences - mean) / spread) ** 3).mean()) / math.sqrt(differences.size)
    if skew <= 0:
        return mean + student * error
    hall = 3 / skew * (1 - float(np.cbrt(1 - skew * (student + skew / 6))))
    return mean + max(student, hall) * error


def cluster_labels(groups: NDArray[Any]) -> NDArray[np.intp]:
    """Return the cluster of each sample as an integer from 0."""
    return np.unique(groups, return_inverse=True)[1].reshape(-1)


def cluster_bound(differences: _Floats, groups: NDArray[Any], alpha: float, independent_bound: float) -> float:
    """Return a bound over clusters (subjects, speakers) of any sizes; asymptotic in the number of clusters.

    The drop is a ratio of cluster totals to cluster sizes, its variance the jackknife's over clusters (CR3), with
    one degree of freedom less than there are clusters. With 9 to 23 clusters and a correlation of .02 within them
    it misses 7 % of the time at a nominal 5 %; where few clusters hold most of the drop, 9 to 14 %
    (docs/decisions/0002). A distribution-free bound would need three clusters per unit of the limit.

    Args:
        differences: Shape [samples].
        groups: Shape [samples], the cluster of each.
        alpha: One-sided error.
        independent_bound: The bound that takes samples as independent; never undercut, since few disagreeing pairs can
            show no spread between clusters by chance.

    Raises:
        ValueError: Fewer than `MIN_CLUSTERS` clusters.

    Source: Bell and McCaffrey 2002 (CR3); Cochran 1977, section 6 (ratio estimator).
    """
    labels = cluster_labels(groups)
    sizes = np.bincount(labels).astype(np.float64)
    if sizes.size < MIN_CLUSTERS:
        raise ValueError(f"{sizes.size} clusters, at least {MIN_CLUSTERS} are needed")
    totals = np.bincount(labels, weights=differences)
    drop = float(differences.mean())
    without = (totals.sum() - totals) / (differences.size - sizes)
    error = math.sqrt((sizes.size - 1) / sizes.size * float(((without - drop) ** 2).sum()))
    return max(independent_bound, drop + float(stats.t.isf(alpha, sizes.size - 1)) * error)


def bootstrap_bounds(
    statistic: Callable[[NDArray[np.intp]], float],
    samples: int,
    alpha: float,
    *,
    groups: NDArray[Any] | None = None,
    seed: int = 0,
) -> tuple[float, float]:
    """Return lower and upper BCa bootstrap bounds of a sample's statistic, each at level 1 - alpha; asymptotic.

    Args:
        statistic: From indices of samples, repeats allowed, to the figure (a difference of two F1 scores, say).
        samples: How many samples there are.
        alpha: One-sided error of either bound.
        groups: Shape [samples]; whole clusters are drawn if given.
        seed: Of the resampling.

    Raises:
        ValueError: Fewer than two samples, or fewer than `MIN_CLUSTERS` clusters.

    Source: Efron 1987; the acceleration from a jackknife over clusters, or over at most 50 blocks of samples.
    """
    random = np.random.default_rng(seed)
    if groups is None:
        blocks = np.array_split(random.permutation(samples), min(samples, 50))
    else:
        labels = cluster_labels(groups)
        blocks = [np.flatnonzero(labels == label) for label in range(labels.max() + 1)]
        if len(blocks) < MIN_CLUSTERS:
            raise ValueError(f"{len(blocks)} clusters, at least {MIN_CLUSTERS} are needed")
    if len(blocks) < 2:
        raise ValueError(f"{samples} samples have no spread")
    everything = np.arange(samples)
    observed = statistic(everything)
    # Enough that ten resamples lie beyond the bound, within what a slow metric can bear.
    drawn = np.empty(min(max(1000, math.ceil(10 / alpha)), 5000))
    for i in range(drawn.size):
        if groups is None:
            picks = random.integers(0, samples, samples)
        else:
            picks = np.concatenate([blocks[block] for block in random.integers(0, len(blocks), len(blocks))])
        drawn[i] = statistic(picks)
    left_out = np.array([statistic(np.setdiff1d(everything, block)) for block in blocks])
    spread = left_out.mean() - left_out
    power = float((spread**2).sum()) ** 1.5
    acceleration = float((spread**3).sum()) / (6 * power) if power > 0 else 0.0
    below = float((drawn < observed).mean()) + 0.5 * float((drawn == observed).mean())
    bias = float(special.ndtri(min(max(below, 0.5 / drawn.size), 1 - 0.5 / drawn.size)))

    def level(z: float) -> float:
        return float(special.ndtr(bias + (bias + z) / max(1 - acceleration * (bias + z), 1e-6)))

    lower = float(np.quantile(drawn, level(float(special.ndtri(alpha))), method="lower"))
    upper = float(np.quantile(drawn, level(-float(special.ndtri(alpha))), method="higher"))
    return min(lower, observed), max(upper, observed)
