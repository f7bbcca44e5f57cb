"""How unusual an input is: scores of logits and embeddings, and what a threshold says. numpy alone, for devices.

Greater is more unusual, and what is no number is unusual: nothing here fails open.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgewright.contract.model.ood_detector import (
    FeatureSqueezing,
    LogitScore,
    LowRankCovariance,
    MahalanobisScore,
    NearestNeighbourScore,
    OodRule,
    OodScore,
)

__all__ = [
    "LogitScores",
    "RowScorer",
    "is_out_of_distribution",
    "logit_scores",
    "ood_scorer",
    "prediction_l1_distance",
    "squeeze_features",
]

_Floats = NDArray[np.float64]
RowScorer: TypeAlias = Callable[[NDArray[Any]], NDArray[np.floating]]


class LogitScores(NamedTuple):
    """What logits say about an answer, each [rows] of float32.

    Attributes:
        energy: Minus the logarithm of the sum of the logits' exponentials, nats; greater is more unusual. Of
            probabilities it is always 0 and says nothing.
        confidence: Greatest probability.
        margin: Between the two greatest logits, nats; unlike confidence it does not saturate.
    """

    energy: NDArray[np.float32]
    confidence: NDArray[np.float32]
    margin: NDArray[np.float32]


def logit_scores(logits: NDArray[Any]) -> LogitScores:
    """Return energy, confidence and margin of each row.

    Logarithms of probabilities may be given instead of logits: confidence and margin are the same.

    Args:
        logits: Shape [rows, classes]; a single column is the logit of yes.

    Source: Liu et al. 2020, arXiv:2010.03759, equation 4 at temperature 1 (energy); Hendrycks and Gimpel 2017,
    arXiv:1610.02136 (greatest probability).

    >>> [round(float(one[0]), 4) for one in logit_scores(np.array([[1000.0, 1001.0]], np.float32))]
    [-1001.3132, 0.7311, 1.0]
    """
    values = np.asarray(logits, np.float32)
    if values.shape[1] == 1:
        values = np.hstack([np.zeros_like(values), values])
    # Infinite logits become NaN, which is unusual; a device's log has no use for numpy's warnings.
    with np.errstate(invalid="ignore"):
        best = values.max(axis=1)
        # Shifted by the greatest logit, nothing overflows and the sum lies between 1 and the number of classes.
        total = np.exp(values - best[:, None]).sum(axis=1)
        second = np.partition(values, -2, axis=1)[:, -2]
        # Of an infinite best the total is NaN; so is the margin then, for infinity would look very usual.
        margin = np.where(np.isnan(total), total, best - second)
        return LogitScores(-(best + np.log(total)), 1 / total, margin)


def ood_scorer(measure: OodScore) -> RowScorer:
    """Return the function that scores rows: of logits, or of the measure's embedding, by the measure's kind.

    Arrays are unpacked here, once. For `Squeezing` the function would need a second inference: use `squeeze_features`
    and `prediction_l1_distance`.

    Raises:
        ValueError: The measure is `Squeezing`.
    """
    match measure:
        case LogitScore("energy"):
            return lambda logits: logit_scores(logits).energy
        case LogitScore("confidence"):
            return lambda logits: 1 - logit_scores(logits).confidence
        case LogitScore("margin"):
            return lambda logits: -logit_scores(logits).margin
        case MahalanobisScore():
            return _mahalanobis_scorer(measure)
        case NearestNeighbourScore():
            return _knn_scorer(measure)
    raise ValueError("squeezing needs a second inference: use squeezed and disagreement")


def is_out_of_distribution(scores: NDArray[np.floating], rule: OodRule) -> NDArray[np.bool_]:
    """Return which scores the rule rejects, shape [rows]; NaN is rejected."""
    return np.logical_not(scores <= rule.threshold)


def squeeze_features(inputs: NDArray[Any], measure: FeatureSqueezing) -> NDArray[Any]:
    """Return the input with less detail, of the same shape and type.

    Args:
        inputs: [batch, ...], with the axes that the measure names.
        measure: What is taken out: first rounding to few levels, then a median over neighbours, edges repeated.

    Source: feature squeezing, Xu, Evans and Qi 2018, arXiv:1704.01155.
    """
    result = np.asarray(inputs)
    if measure.bits:
        steps = 2**measure.bits - 1
        span = measure.high - measure.low
        unit = (np.clip(result.astype(np.float32), measure.low, measure.high) - measure.low) / span
        result = (np.rint(unit * steps) / steps * span + measure.low).astype(inputs.dtype)
    if measure.window:
        half = measure.window // 2
        widths = [(0, 0)] * result.ndim
        for axis in measure.axes:
            widths[axis] = (half, half)
        padded = np.pad(result, widths, mode="edge")
        windows = np.lib.stride_tricks.sliding_window_view(
            padded, (measure.window,) * len(measure.axes), measure.axes
        )
        flat = windows.reshape(*result.shape, -1)
        # The window is odd: its median is one of its values, and so of their type.
        middle = flat.shape[-1] // 2
        result = np.ascontiguousarray(np.partition(flat, middle, axis=-1)[..., middle])
    return result


def prediction_l1_distance(probabilities: NDArray[Any], other_probabilities: NDArray[Any]) -> _Floats:
    """Return the L1 distance between two answers to each row, 0 to 2."""
    return np.asarray(np.abs(np.asarray(probabilities, np.float64) - other_probabilities).sum(axis=1))


def _mahalanobis_scorer(measure: MahalanobisScore) -> RowScorer:
    """Mahalanobis distance, Lee et al. 2018, arXiv:1807.03888; relative: Ren et al. 2021, arXiv:2106.09022."""
    nearest = _squared_distances(measure.means.array(), measure.within_class)
    if measure.background_mean is None or measure.background is None:
        return lambda embedding: np.asarray(nearest(_embedding_rows(embedding)).min(axis=1))
    overall = _squared_distances(measure.background_mean.array(), measure.background)

    def relative(embedding: NDArray[Any]) -> _Floats:
        rows = _embedding_rows(embedding)
        distances: _Floats = nearest(rows).min(axis=1) - overall(rows)[:, 0]
        return distances

    return relative


def _squared_distances(means: _Floats, shape: LowRankCovariance) -> Callable[[_Floats], _Floats]:
    """Return the function from rows [n, features] to squared distances [n, means] in the units of a covariance."""
    directions, variances = shape.directions.array(), shape.variances.array()
    whitening = directions / np.sqrt(variances)
    marks = means @ whitening
    marks_norm = np.square(marks).sum(axis=1)
    complete = directions.shape[0] == directions.shape[1]
    # What lies outside of the directions, for the part that has one variance.
    outside = means - means @ directions @ directions.T

    def distances(rows: _Floats) -> _Floats:
        places = rows @ whitening
        found = np.square(places).sum(axis=1)[:, None] - 2 * places @ marks.T + marks_norm
        if not complete:
            left = rows - rows @ directions @ directions.T
            apart = np.square(left).sum(axis=1)[:, None] - 2 * left @ outside.T + np.square(outside).sum(axis=1)
            found = found + apart / shape.residual_variance
        return np.asarray(found)

    return distances


def _knn_scorer(measure: NearestNeighbourScore) -> RowScorer:
    """Distance from the k-th nearest neighbour: Sun et al. 2022, arXiv:2204.06507."""
    points = _unit_rows(measure.points.array())
    place = len(points) - measure.k

    def distance(embedding: NDArray[Any]) -> _Floats:
        cosines = _unit_rows(_embedding_rows(embedding)) @ points.T
        return np.asarray(np.sqrt(np.maximum(2 - 2 * np.partition(cosines, place, axis=1)[:, place], 0)))

    return distance


def _unit_rows(rows: _Floats) -> _Floats:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(length > 0, length, 1)


def _embedding_rows(embedding: NDArray[Any]) -> _Floats:
    values = np.asarray(embedding, np.float64)
    return values.reshape(len(values), -1)
