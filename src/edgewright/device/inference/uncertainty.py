"""How far an answer can be trusted: does the model know such inputs, which classes are possible, is it good enough.

The rules come with the release's signed reference profile, each with its guarantee in words. They are looked up
when the application asks, off the way of an inference.
"""

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgewright.contract.model.ood_detector import LogitMeasure
from edgewright.contract.model.reference_profile import Profile
from edgewright.stats.calibration import logs_of, softmax
from edgewright.stats.conformal import prediction_sets
from edgewright.stats.ood_scores import scorer, unusual

__all__ = ["Doubt", "doubt_of", "is_unusual"]


class Doubt(msgspec.Struct, frozen=True):
    """What an answer's scores say about it.

    Attributes:
        confidence: Greatest probability.
        unusual: Names of the measures by which the input is unlike those that the model was made for.
        classes: That are possible at the promised coverage; all of them if nothing was promised.
        accepted: Whether the answer is good enough by the promised error; None if nothing was promised.
    """

    confidence: float
    unusual: tuple[str, ...]
    classes: tuple[int, ...]
    accepted: bool | None


def doubt_of(profile: Profile, scores: NDArray[Any]) -> Doubt:
    """Return what a profile's rules say of an answer.

    Args:
        profile: Of the release; it has scores.
        scores: Shape [classes], as the profile says: logits or probabilities.
    """
    row = np.asarray(scores, np.float64).reshape(1, -1)
    logits = row if profile.scores == "logits" else logs_of(row)
    probabilities = softmax(logits)
    sets = np.ones(row.shape, bool) if profile.sets is None else prediction_sets(probabilities, profile.sets)
    confidence = float(probabilities.max())
    # What is no number is never accepted.
    accepted = None if profile.accept is None else bool(confidence >= profile.accept.threshold)
    return Doubt(
        confidence, is_unusual(profile, logits)[0], tuple(int(place) for place in np.flatnonzero(sets[0])), accepted
    )


def is_unusual(profile: Profile, logits: NDArray[Any]) -> list[tuple[str, ...]]:
    """Return by which of a profile's rules each answer is unusual.

    Args:
        profile: Of the release.
        logits: Shape [rows, classes].
    """
    found: list[tuple[str, ...]] = [()] * len(logits)
    for rule in profile.unusual:
        if isinstance(rule.measure, LogitMeasure):
            held = unusual(scorer(rule.measure)(logits), rule)
            found = [(*names, rule.measure.score) if bad else names for names, bad in zip(found, held, strict=True)]
    return found
