"""Which answers to act on so that few of them are wrong, with a stated confidence.

Needs scipy: no device imports it. Devices apply the rule with `edgewright.stats.conformal.accepts`.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewright.contract.model.guarantee import AcceptRule, Guarantee
from edgewright.stats.exact_paired_bound import clopper_pearson

__all__ = ["fit_acceptance", "least_accepted"]

_LEVELS = 50
# Share of the samples that lays out the order of tests; the others do the testing.
_SCOUTS = 0.1
# The first test gets so many times the samples that would do without errors: with fewer it fails by bad luck too
# often, with more it accepts too doubtful ones (of 1.5 to 6, this kept most in simulations).
_BEGIN_WITH = 4


def least_accepted(risk: float, delta: float) -> int:
    """Return how many accepted answers, all right, are needed to promise a risk.

    >>> least_accepted(0.05, 0.05)
    59
    """
    return int(np.ceil(np.log(delta) / np.log1p(-risk)))


def fit_acceptance(
    confidence: NDArray[Any], hits: NDArray[Any], risk: float, *, delta: float = 0.05, seed: int = 0
) -> AcceptRule | None:
    """Return the rule that accepts most while at most a share `risk` of what it accepts is wrong.

    A tenth of the samples, drawn by the seed, says at which confidences to test and from which to begin; on the
    rest each threshold, from strict to lax, must have a Clopper-Pearson bound within the risk, and the first that
    has not ends the walk. Since levels and order do not depend on the samples that test, no correction for many
    tests is needed (fixed sequence testing, Learn then Test: Angelopoulos et al. 2021, arXiv:2110.01052).

    Args:
        confidence: Shape [samples], finite.
        hits: Shape [samples], whether the answer was right.
        risk: Greatest share of wrong among accepted answers, between 0 and 1.
        delta: Probability, over calibration sets, that the promise is broken.
        seed: Of the draw.

    Returns:
        The rule, None if no threshold can be promised: too many errors or too few samples (`least_accepted`).

    Raises:
        ValueError: Impossible arguments.
    """
    sure, right = np.asarray(confidence, np.float64), np.asarray(hits, np.bool_)
    if sure.ndim != 1 or sure.shape != right.shape or sure.size < 2 or not np.isfinite(sure).all():
        raise ValueError(f"{sure.shape} finite confidences and {right.shape} hits")
    if not 0 < risk < 1 or not 0 < delta < 1:
        raise ValueError(f"risk is {risk}, delta {delta}")
    order = np.random.default_rng(seed).permutation(sure.size)
    scouts, testers = np.split(order, [max(1, round(_SCOUTS * sure.size))])
    levels = np.unique(np.quantile(sure[scouts], np.linspace(0, 1, _LEVELS), method="lower"))[::-1]
    chosen = None
    for level in levels[_beginning(levels, sure[scouts], testers.size, least_accepted(risk, delta)) :]:
        taken = right[testers[sure[testers] >= level]]
        if not taken.size or clopper_pearson(int((~taken).sum()), taken.size, delta)[1] > risk:
            break
        chosen = float(level)
    if chosen is None:
        return None
    accepted = float((sure[testers] >= chosen).mean())
    return AcceptRule(chosen, accepted, Guarantee("accepted error", risk, testers.size, 1 - delta))


def _beginning(levels: NDArray[np.float64], scouts: NDArray[np.float64], testers: int, least: int) -> int:
    """Return the strictest level that is likely to accept enough for a test that bears a few errors."""
    expected = (scouts >= levels[:, None]).mean(axis=1) * testers
    # Of few samples, half of them if they suffice.
    wanted = min(_BEGIN_WITH * least, max(least, testers // 2))
    return min(int((expected < wanted).sum()), levels.size - 1)
