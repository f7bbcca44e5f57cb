"""How far two histograms are apart, in the measures that people know. Descriptions: nothing is decided by them.

They depend on how many samples were counted, and none says how far apart samples of one distribution come to lie;
`drift` decides. Devices may import this: numpy only.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "HistogramDivergences",
    "chi_square_statistic",
    "histogram_divergences",
    "jensen_shannon_distance",
    "kolmogorov_smirnov_distance",
    "population_stability_index",
    "wasserstein_distance",
]

_Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class HistogramDivergences:
    """All measures of two histograms, each of shape [signals]."""

    psi: _Floats
    kolmogorov_smirnov: _Floats
    chi_square: _Floats
    jensen_shannon: _Floats
    wasserstein_bins: _Floats


def histogram_divergences(counts: ArrayLike, reference: ArrayLike) -> HistogramDivergences:
    """Return all measures, for counts of shape [signals, bins]."""
    return HistogramDivergences(
        population_stability_index(counts, reference),
        kolmogorov_smirnov_distance(counts, reference),
        chi_square_statistic(counts, reference),
        jensen_shannon_distance(counts, reference),
        wasserstein_distance(counts, reference),
    )


def population_stability_index(counts: ArrayLike, reference: ArrayLike) -> _Floats:
    """Return the population stability index: sum of (q - p) ln(q / p), Jeffreys' divergence.

    Half a count is added to every bin, so that an empty one stays finite.

    Source: Siddiqi 2006, Credit Risk Scorecards; Yurdakul and Naranjo 2020 for its distribution. Limits of .1 and
    .2 or .25 are custom and depend on no sample size.

    >>> float(population_stability_index([30, 70], [30, 70]))
    0.0
    """
    q, p = _smoothed_shares(counts, 0.5), _smoothed_shares(reference, 0.5)
    return np.asarray(((q - p) * np.log(q / p)).sum(axis=-1))


def kolmogorov_smirnov_distance(counts: ArrayLike, reference: ArrayLike) -> _Floats:
    """Return the greatest distance of the distribution functions at the bins' edges.

    >>> float(kolmogorov_smirnov_distance([1, 0], [0, 1]))
    1.0
    """
    return np.asarray(
        np.abs(np.cumsum(_smoothed_shares(counts) - _smoothed_shares(reference), axis=-1)).max(axis=-1)
    )


def chi_square_statistic(counts: ArrayLike, reference: ArrayLike) -> _Floats:
    """Return Pearson's chi-square of homogeneity of two samples; bins that both left empty count nothing."""
    one, two = np.asarray(counts, np.float64), np.asarray(reference, np.float64)
    ones, twos = one.sum(axis=-1, keepdims=True), two.sum(axis=-1, keepdims=True)
    # sum (obs - exp)^2 / exp over both rows of the table, put together.
    gap = (one * twos - two * ones) ** 2 / (ones * twos)
    both = one + two
    return np.asarray(np.divide(gap, both, out=np.zeros_like(gap), where=both > 0).sum(axis=-1))


def jensen_shannon_distance(counts: ArrayLike, reference: ArrayLike) -> _Floats:
    """Return the Jensen-Shannon distance: the root of the divergence in bits, 0 to 1.

    Source: Lin 1991; Endres and Schindelin 2003 (its root is a metric).
    """
    q, p = _smoothed_shares(counts), _smoothed_shares(reference)
    middle = (p + q) / 2
    divergence = (_kl_divergence(p, middle) + _kl_divergence(q, middle)) / 2
    return np.asarray(np.sqrt(np.maximum(divergence.sum(axis=-1), 0) / np.log(2)))


def wasserstein_distance(counts: ArrayLike, reference: ArrayLike, positions: ArrayLike | None = None) -> _Floats:
    """Return the Wasserstein-1 distance of the bins.

    Args:
        counts: Shape [..., bins].
        reference: The same.
        positions: Shape [bins], where each bin's mass is thought to lie; otherwise their numbers, hence in bins.
    """
    above = np.abs(np.cumsum(_smoothed_shares(counts) - _smoothed_shares(reference), axis=-1))[..., :-1]
    widths = 1.0 if positions is None else np.diff(np.asarray(positions, np.float64))
    return np.asarray((above * widths).sum(axis=-1))


def _smoothed_shares(counts: ArrayLike, pseudocount: float = 0.0) -> _Floats:
    values = np.asarray(counts, np.float64) + pseudocount
    return np.asarray(values / values.sum(axis=-1, keepdims=True))


def _kl_divergence(p: _Floats, q: _Floats) -> _Floats:
    return p * np.log(np.divide(p, q, out=np.ones_like(p), where=p > 0))
