"""How well two sets of scores are told apart, and how often a rule rejects, each with an interval."""

import numpy as np
from benchmarks.report import Interval
from numpy.typing import NDArray
from scipy import stats

from edgewright.stats.exact_paired_bound import clopper_pearson_bounds

__all__ = ["auroc", "kept_coverage", "share"]


def auroc(usual: NDArray[np.floating], strange: NDArray[np.floating]) -> Interval:
    """Return the chance that something strange scores higher than something usual, with DeLong's 95 % interval.

    Source: DeLong, DeLong and Clarke-Pearson 1988, Biometrics 44.
    """
    joint = stats.rankdata(np.concatenate([usual, strange]))
    few, many = len(strange), len(usual)
    above = (joint[many:] - stats.rankdata(strange)) / many
    below = 1 - (joint[:many] - stats.rankdata(usual)) / few
    value = float(above.mean())
    spread = float(np.sqrt(above.var(ddof=1) / few + below.var(ddof=1) / many))
    return Interval(value, max(0.0, value - 1.96 * spread), min(1.0, value + 1.96 * spread))


def kept_coverage(covered: int, samples: int, calibrated: int, level: float) -> bool:
    """Whether so little coverage has a probability of 2.5 % or more if the promise holds.

    A promise that holds on average over calibration sets allows a spread between them: the number covered is
    beta-binomial (Angelopoulos and Bates 2021, arXiv:2107.07511, section 3.2).
    """
    place = int(np.ceil((calibrated + 1) * level))
    return bool(stats.betabinom.cdf(covered, samples, place, calibrated + 1 - place) >= 0.025)


def share(marked: NDArray[np.bool_]) -> Interval:
    """Return the share of marked samples with Clopper and Pearson's 95 % interval."""
    count, samples = int(marked.sum()), len(marked)
    return Interval(
        count / samples,
        clopper_pearson_bounds(count, samples, 0.025)[0],
        clopper_pearson_bounds(count, samples, 0.025)[1],
    )
