"""By what devices will know unusual inputs: measures fitted to embeddings, and thresholds of a stated rate.

What devices apply is in `edgewright.stats.ood_scores`; this needs scipy and stays in the studio.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewright.contract.errors import DataError
from edgewright.contract.model.guarantee import Guarantee
from edgewright.contract.model.ood_detector import (
    EncodedArray,
    LowRankCovariance,
    MahalanobisScore,
    NearestNeighbourScore,
    OodRule,
    OodScore,
)
from edgewright.stats.exact_paired_bound import clopper_pearson_bounds

__all__ = ["fit_mahalanobis", "fit_neighbours", "fit_ood_rule", "min_ood_samples"]

_Floats = NDArray[np.float64]

# A direction in which nothing varied gets this share of the mean variance: else a speck there is infinitely far.
_MIN_VARIANCE = 1e-3


def min_ood_samples(rate: float, confidence: float = 0.95) -> int:
    """Return how many samples a threshold needs; with them, it is their greatest score.

    >>> min_ood_samples(0.01), min_ood_samples(0.05)
    (299, 59)
    """
    return math.ceil(math.log1p(-confidence) / math.log1p(-rate))


def fit_ood_rule(score: OodScore, scores: NDArray[Any], rate: float, *, confidence: float = 0.95) -> OodRule:
    """Return the lowest threshold whose false rejection rate is at most `rate`, with a confidence.

    A new usual input scores above the k-th smallest of n scores with a probability that has the distribution
    Beta(n - k + 1, k), so the bound for n - k rejections is Clopper and Pearson's (Wilks 1941). With equal scores
    the rate is only smaller.

    Args:
        score: What made the scores.
        scores: Shape [samples], of usual inputs to which neither the model nor the measure was fitted.
        rate: Greatest share of usual inputs that may be rejected, between 0 and 1.
        confidence: Probability, over calibration sets, that the promise holds.

    Raises:
        DataError: Too few samples, or a score that is no number.
        ValueError: Impossible rate or confidence.
    """
    if not 0 < rate < 1 or not 0 < confidence < 1:
        raise ValueError(f"rate is {rate}, confidence {confidence}")
    ordered = np.sort(np.asarray(scores, np.float64))
    if not np.isfinite(ordered).all():
        raise DataError(
            "a usual input has a score that is no number", remedy="Look for NaN or infinity in the model's answers."
        )
    needed = min_ood_samples(rate, confidence)
    if ordered.size < needed:
        raise DataError(
            f"{ordered.size} samples cannot show a false rejection rate of {rate:g} with confidence {confidence:g}",
            remedy=f"Give {needed} or more, or allow a greater rate.",
        )
    fewest, most = 0, ordered.size - 1
    while fewest < most:
        middle = (fewest + most + 1) // 2
        kept = clopper_pearson_bounds(middle, ordered.size, 1 - confidence)[1] <= rate
        fewest, most = (middle, most) if kept else (fewest, middle - 1)
    threshold = float(ordered[ordered.size - 1 - fewest])
    return OodRule(score, threshold, Guarantee("rejection", rate, ordered.size, confidence))


def fit_mahalanobis(
    output: str,
    embedding: NDArray[Any],
    labels: NDArray[Any],
    *,
    relative: bool = False,
    max_directions: int = 64,
) -> MahalanobisScore:
    """Return class means and their common covariance.

    Args:
        output: Name of the graph's output with the embedding.
        embedding: Shape [samples, features]; best of the training data, and never of what sets the threshold.
        labels: Shape [samples].
        relative: Subtract the distance from the mean of all samples in their covariance: less is made of what
            varies in every class.
        max_directions: Directions with a variance of their own; the others share one.

    Raises:
        DataError: Fewer samples than classes and one, or embeddings that are not finite or do not vary.
    """
    values = _finite(embedding)
    classes, member = np.unique(labels, return_inverse=True)
    if len(values) <= len(classes):
        raise DataError(
            f"{len(values)} samples of {len(classes)} classes have no spread", remedy="Give more samples per class."
        )
    means = np.stack([values[member == place].mean(axis=0) for place in range(len(classes))])
    within = _low_rank_covariance(values - means[member], max_directions)
    if not relative:
        return MahalanobisScore(output, EncodedArray.of(means), within)
    overall = values.mean(axis=0, keepdims=True)
    background = _low_rank_covariance(values - overall, max_directions)
    return MahalanobisScore(output, EncodedArray.of(means), within, EncodedArray.of(overall), background)


def fit_neighbours(
    output: str, embedding: NDArray[Any], *, nearest: int = 5, max_points: int = 500, seed: int = 0
) -> NearestNeighbourScore:
    """Return some embeddings to compare with, of 16-bit floats.

    Args:
        output: Name of the graph's output with the embedding.
        embedding: Shape [samples, features]; best of the training data, and never of what sets the threshold.
        nearest: Which neighbour's distance counts.
        max_points: How many are kept, drawn by the seed.
        seed: Of the draw.

    Raises:
        DataError: Fewer samples than neighbours, or embeddings that are not finite.
    """
    values = _finite(embedding)
    if len(values) < nearest:
        raise DataError(f"{len(values)} samples have no neighbour number {nearest}", remedy="Give more samples.")
    picks = np.sort(np.random.default_rng(seed).permutation(len(values))[:max_points])
    length = np.linalg.norm(values[picks], axis=1, keepdims=True)
    points = values[picks] / np.where(length > 0, length, 1)
    return NearestNeighbourScore(output, EncodedArray.of(points, "float16"), nearest)


def _low_rank_covariance(centred: _Floats, max_directions: int) -> LowRankCovariance:
    """Return the covariance of centred rows: its greatest directions, and the mean of what is left."""
    covariance = centred.T @ centred / len(centred)
    variances, directions = np.linalg.eigh(covariance)
    variances, directions = variances[::-1], directions[:, ::-1]
    least = _MIN_VARIANCE * float(variances.mean())
    if not least > 0:
        raise DataError("the embedding does not vary within classes", remedy="Give more samples, or other ones.")
    kept = min(max_directions, len(variances))
    left = variances[kept:]
    rest = max(float(left.mean()) if left.size else least, least)
    return LowRankCovariance(
        EncodedArray.of(directions[:, :kept]), EncodedArray.of(np.maximum(variances[:kept], least)), rest
    )


def _finite(embedding: NDArray[Any]) -> _Floats:
    values = np.asarray(embedding, np.float64)
    values = values.reshape(len(values), -1)
    if not values.size or not np.isfinite(values).all():
        raise DataError(
            "the embedding is empty or not finite", remedy="Look at the model's answers to these samples."
        )
    return values
