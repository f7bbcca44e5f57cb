"""Which answers to act on so that few of them are wrong, with a stated confidence.

Needs scipy: no device imports it. Devices apply the rule with `edgewright.stats.conformal.accepts`.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewright.contract.model.guarantee import AcceptanceRule, Guarantee
from edgewright.stats.exact_paired_bound import clopper_pearson_bounds

__all__ = ["fit_acceptance", "min_accepted"]

_LEVEL_COUNT = 50
# Share of the samples that lays out the order of tests; the others do the testing.
_PILOT_FRACTION = 0.1
# The first test gets so many times the samples that would do without errors: with fewer it fails by bad luck too
# often, with more it accepts too doubtful ones (of 1.5 to 6, this kept most in simulations).
_INITIAL_ERRORS = 4


def min_accepted(max_error_rate: float, delta: float) -> int:
    """Return how many accepted answers, all right, are needed to promise a risk.

    >>> min_accepted(0.05, 0.05)
    59
    """
    return int(np.ceil(np.log(delta) / np.log1p(-max_error_rate)))


def fit_acceptance(
    confidence: NDArray[Any], correct: NDArray[Any], max_error_rate: float, *, delta: float = 0.05, seed: int = 0
) -> AcceptanceRule | None:
    """Return the rule that accepts most while at most a share `max_error_rate` of what it accepts is wrong.

    A tenth of the samples, drawn by the seed, says at which confidences to test and from which to begin; on the
    rest each threshold, from strict to lax, must have a Clopper-Pearson bound within the risk, and the first that
    has not ends the walk. Since levels and order do not depend on the samples that test, no correction for many
    tests is needed (fixed sequence testing, Learn then Test: Angelopoulos et al. 2021, arXiv:2110.01052).

    Args:
        confidence: Shape [samples], finite.
        correct: Shape [samples], whether the answer was right.
        max_error_rate: Greatest share of wrong among accepted answers, between 0 and 1.
        delta: Probability, over calibration sets, that the promise is broken.
        seed: Of the draw.

    Returns:
        The rule, None if no threshold can be promised: too many errors or too few samples (`min_accepted`).

    Raises:
        ValueError: Impossible arguments.
    """
    sure, right = np.asarray(confidence, np.float64), np.asarray(correct, np.bool_)
    if sure.ndim != 1 or sure.shape != right.shape or sure.size < 2 or not np.isfinite(sure).all():
        raise ValueError(f"{sure.shape} finite confidences and {right.shape} hits")
    if not 0 < max_error_rate < 1 or not 0 < delta < 1:
        raise ValueError(f"risk is {max_error_rate}, delta {delta}")
    order = np.random.default_rng(seed).permutation(sure.size)
    scouts, testers = np.split(order, [max(1, round(_PILOT_FRACTION * sure.size))])
    levels = np.unique(np.quantile(sure[scouts], np.linspace(0, 1, _LEVEL_COUNT), method="lower"))[::-1]
    chosen = None
    for level in levels[
        _strictest_testable_level(levels, sure[scouts], testers.size, min_accepted(max_error_rate, delta)) :
    ]:
        taken = right[testers[sure[testers] >= level]]
        if not taken.size or clopper_pearson_bounds(int((~taken).sum()), taken.size, delta)[1] > max_error_rate:
            break
        chosen = float(level)
    if chosen is None:
        return None
    accepted = float((sure[testers] >= chosen).mean())
    return AcceptanceRule(chosen, accepted, Guarantee("accepted error", max_error_rate, testers.size, 1 - delta))


def _strictest_testable_level(
    levels: NDArray[np.float64], pilot_confidence: NDArray[np.float64], test_count: int, min_accepted: int
) -> int:
    """Return the strictest level that is likely to accept enough for a test that bears a few errors."""
    expected = (pilot_confidence >= levels[:, None]).mean(axis=1) * test_count
    # Of few samples, half of them if they suffice.
    wanted = min(_INITIAL_ERRORS * min_accepted, max(min_accepted, test_count // 2))
    return min(int((expected < wanted).sum()), levels.size - 1)
