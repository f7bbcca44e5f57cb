"""How far an answer can be trusted: does the model know such inputs, which classes are possible, is it good enough.

The rules come with the release's signed reference profile, each with its guarantee in words. They are looked up
when the application asks, off the way of an inference.
"""

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgewright.contract.model.ood_detector import LogitScore
from edgewright.contract.model.reference_profile import ReferenceProfile
from edgewright.stats.calibration import log_probabilities, softmax
from edgewright.stats.conformal import prediction_sets
from edgewright.stats.ood_scores import is_out_of_distribution, ood_scorer

__all__ = ["Uncertainty", "ood_flags", "uncertainty_of"]


class Uncertainty(msgspec.Struct, frozen=True):
    """What an answer's scores say about it.

    Attributes:
        confidence: Greatest probability.
        ood_scores: Names of the measures by which the input is unlike those that the model was made for.
        prediction_set: That are possible at the promised coverage; all of them if nothing was promised.
        is_accepted: Whether the answer is good enough by the promised error; None if nothing was promised.
    """

    confidence: float
    ood_scores: tuple[str, ...]
    prediction_set: tuple[int, ...]
    is_accepted: bool | None


def uncertainty_of(profile: ReferenceProfile, scores: NDArray[Any]) -> Uncertainty:
    """Return what a profile's rules say of an answer.

    Args:
        profile: Of the release; it has scores.
        scores: Shape [classes], as the profile says: logits or probabilities.
    """
    row = np.asarray(scores, np.float64).reshape(1, -1)
    logits = row if profile.output_kind == "logits" else log_probabilities(row)
    probabilities = softmax(logits)
    sets = (
        np.ones(row.shape, bool)
        if profile.prediction_sets is None
        else prediction_sets(probabilities, profile.prediction_sets)
    )
    confidence = float(probabilities.max())
    # What is no number is never accepted.
    accepted = None if profile.acceptance is None else bool(confidence >= profile.acceptance.threshold)
    return Uncertainty(
        confidence, ood_flags(profile, logits)[0], tuple(int(place) for place in np.flatnonzero(sets[0])), accepted
    )


def ood_flags(profile: ReferenceProfile, logits: NDArray[Any]) -> list[tuple[str, ...]]:
    """Return by which of a profile's rules each answer is unusual.

    Args:
        profile: Of the release.
        logits: Shape [rows, classes].
    """
    found: list[tuple[str, ...]] = [()] * len(logits)
    for rule in profile.ood_rules:
        if isinstance(rule.score, LogitScore):
            held = is_out_of_distribution(ood_scorer(rule.score)(logits), rule)
            found = [(*names, rule.score.score) if bad else names for names, bad in zip(found, held, strict=True)]
    return found
