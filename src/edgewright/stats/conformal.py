"""Sets of classes that hold the right one as often as promised, and risks under control. numpy alone, for devices.

Everything here assumes that the sample comes from where the calibration samples came from (exchangeability), and
promises nothing after a shift; the returned records say so in words.
"""

import math
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgewright.contract.model.guarantee import AcceptanceRule, Guarantee, PredictionSetRule

__all__ = [
    "ControlledRisk",
    "SetCoverage",
    "conformal_quantile",
    "control_risk",
    "fit_prediction_sets",
    "is_accepted",
    "nonconformity",
    "prediction_sets",
    "set_coverage",
]

_Floats = NDArray[np.float64]
ConformalMethod = Literal["lac", "aps"]


class ControlledRisk(NamedTuple):
    """A level of caution and what holds at it.

    Attributes:
        level_index: Index of the level; None if even the most cautious one is not cautious enough.
        risk: Mean loss at it on the calibration samples; at the last level if there is no place.
        guarantee: What is promised; void without a place.
    """

    level_index: int | None
    risk: float
    guarantee: Guarantee


class SetCoverage(NamedTuple):
    """What sets did on samples with labels.

    Attributes:
        covered_count: Samples whose set held the right class.
        sample_count: All.
        mean_set_size: Mean number of classes in a set.
        singleton_fraction: Share of sets with exactly one class.
    """

    covered_count: int
    sample_count: int
    mean_set_size: float
    singleton_fraction: float

    @property
    def fraction(self) -> float:
        """Covered samples among all."""
        return self.covered_count / self.sample_count


def nonconformity(probabilities: NDArray[Any], method: ConformalMethod) -> _Floats:
    """Return how badly each class fits each sample, shape [samples, classes].

    `lac` is one minus the class's probability (Sadinle, Lei and Wasserman 2019, arXiv:1609.00451); `aps` the
    probability of all likelier classes (Romano, Sesia and Candès 2020, arXiv:2006.02544). They add a random part of
    the class's own. Without it sets are the same each time; adding all of it instead would make confident right
    answers look as bad as wrong ones, and sets several times as large.
    """
    values = np.asarray(probabilities, np.float64)
    if method == "lac":
        return 1 - values
    order = np.argsort(-values, axis=1, kind="stable")
    sums = np.cumsum(np.take_along_axis(values, order, axis=1), axis=1)
    sums = np.hstack([np.zeros((len(values), 1)), sums[:, :-1]])
    found = np.empty_like(values)
    np.put_along_axis(found, order, sums, axis=1)
    return found


def conformal_quantile(scores: NDArray[Any], alpha: float) -> float:
    """Return the score that a new one exceeds with probability at most alpha; infinity if the samples are too few.

    The ceil((n + 1)(1 - alpha))-th smallest of n scores (Vovk 2005; Lei et al. 2018, arXiv:1604.04173).

    Raises:
        ValueError: Alpha is not between 0 and 1, or a score is NaN.

    >>> conformal_quantile(np.arange(1.0, 20.0), 0.1), conformal_quantile(np.arange(8.0), 0.1)
    (18.0, inf)
    """
    if not 0 < alpha < 1 or np.isnan(scores).any():
        raise ValueError(f"alpha is {alpha}, or a score is NaN")
    # The product may lie a rounding error above a whole number.
    place = math.ceil((len(scores) + 1) * (1 - alpha) - 1e-9)
    return float(np.sort(scores)[place - 1]) if place <= len(scores) else math.inf


def fit_prediction_sets(
    probabilities: NDArray[Any],
    labels: NDArray[Any],
    alpha: float,
    *,
    method: ConformalMethod = "lac",
    stratified_by: Literal["all", "class"] = "all",
    groups: NDArray[Any] | None = None,
) -> PredictionSetRule:
    """Return the rule whose sets miss the right class with probability at most alpha.

    Args:
        probabilities: Shape [samples, classes], of samples that neither the model nor its softening was fitted to.
        labels: Shape [samples], from 0.
        alpha: Greatest probability of a miss.
        method: See `nonconformity`.
        stratified_by: `class` for a threshold, and a promise, per right class.
        groups: Shape [samples], the name of each sample's group, for a promise per group; devices must know it.

    Raises:
        ValueError: Both classes and groups are asked for.

    Source: split conformal prediction; per class or group its Mondrian form (Vovk 2005, section 4.5).
    """
    if stratified_by == "class" and groups is not None:
        raise ValueError("thresholds are by class or by group, not both")
    given = np.asarray(labels, np.intp)
    scores = nonconformity(probabilities, method)
    own = scores[np.arange(len(given)), given]
    level = 1 - alpha
    if groups is not None:
        names = sorted({str(name) for name in groups})
        member = np.asarray([str(name) for name in groups])
        parts = [own[member == name] for name in names]
        promise = Guarantee("coverage by group", level, len(given))
        return PredictionSetRule(method, "group", _group_thresholds(parts, alpha), promise, tuple(names))
    if stratified_by == "class":
        parts = [own[given == label] for label in range(scores.shape[1])]
        return PredictionSetRule(
            method, "class", _group_thresholds(parts, alpha), Guarantee("coverage by class", level, len(given))
        )
    return PredictionSetRule(
        method, "all", _group_thresholds([own], alpha), Guarantee("coverage", level, len(given))
    )


def prediction_sets(
    probabilities: NDArray[Any], rule: PredictionSetRule, group: str | None = None
) -> NDArray[np.bool_]:
    """Return which classes are in each sample's set, shape [samples, classes].

    The likeliest class always is, so no set is empty; that only adds coverage. A probability that is NaN is in the
    set, and so are all classes for a group that the rule does not know.

    Args:
        probabilities: Shape [samples, classes].
        rule: From `fit_prediction_sets`.
        group: Of these samples, for a rule by group.
    """
    values = np.asarray(probabilities, np.float64)
    limits = np.array([math.inf if one is None else one for one in rule.thresholds])
    if rule.stratified_by == "group":
        limits = limits[[rule.groups.index(group)]] if group in rule.groups else np.array([math.inf])
    inside = np.logical_not(nonconformity(values, rule.method) > limits)
    inside[np.arange(len(values)), values.argmax(axis=1)] = True
    return np.asarray(inside)


def set_coverage(sets: NDArray[np.bool_], labels: NDArray[Any]) -> SetCoverage:
    """Return what the sets did on samples with labels."""
    sizes = sets.sum(axis=1)
    covered = int(sets[np.arange(len(sets)), np.asarray(labels, np.intp)].sum())
    return SetCoverage(covered, len(sets), float(sizes.mean()), float((sizes == 1).mean()))


def control_risk(losses: NDArray[Any], alpha: float, *, max_loss: float = 1.0) -> ControlledRisk:
    """Return the least cautious level at which the expected loss of a new sample is at most alpha.

    Args:
        losses: Shape [samples, levels], from bold to cautious: no sample's loss rises from one level to the next.
            Levels are fixed before the samples are looked at.
        alpha: Greatest expected loss, in the losses' unit.
        max_loss: No loss is ever greater.

    Raises:
        ValueError: A loss rises, is negative, too great or NaN.

    Source: conformal risk control, Angelopoulos et al. 2022, arXiv:2208.02814, equation 4.
    """
    values = np.asarray(losses, np.float64)
    if values.ndim != 2 or not values.size or not ((values >= 0) & (values <= max_loss)).all():
        raise ValueError(f"losses of shape {values.shape} are not all within 0 to {max_loss}")
    if (np.diff(values, axis=1) > 0).any():
        raise ValueError("a loss rises with caution: this bound does not hold for it")
    samples = len(values)
    means = values.mean(axis=0)
    kept = (samples * means + max_loss) / (samples + 1) <= alpha
    place = int(kept.argmax()) if kept.any() else None
    risk = float(means[-1 if place is None else place])
    return ControlledRisk(place, risk, Guarantee("risk", alpha, samples))


def is_accepted(confidence: NDArray[np.floating], rule: AcceptanceRule) -> NDArray[np.bool_]:
    """Return which answers the rule accepts, shape [rows]; NaN is not accepted."""
    return np.asarray(confidence >= rule.threshold)


def _group_thresholds(parts: list[_Floats], alpha: float) -> tuple[float | None, ...]:
    found = [conformal_quantile(part, alpha) for part in parts]
    return tuple(None if math.isinf(one) else one for one in found)
