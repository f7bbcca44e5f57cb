"""How unusual an input is: scores of logits and embeddings, and what a threshold says. numpy alone, for devices.

Greater is more unusual, and what is no number is unusual: nothing here fails open.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgewright.contract.model.ood_detector import (
    Ellipsoid,
    LogitMeasure,
    Mahalanobis,
    Measure,
    Neighbours,
    OutlierRule,
    Squeezing,
)

__all__ = ["Scorer", "Scores", "disagreement", "score", "scorer", "squeezed", "unusual"]

_Floats = NDArray[np.float64]
Scorer: TypeAlias = Callable[[NDArray[Any]], NDArray[np.floating]]


class Scores(NamedTuple):
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


def score(logits: NDArray[Any]) -> Scores:
    """Return energy, confidence and margin of each row.

    Logarithms of probabilities may be given instead of logits: confidence and margin are the same.

    Args:
        logits: Shape [rows, classes]; a single column is the logit of yes.

    Source: Liu et al. 2020, arXiv:2010.03759, equation 4 at temperature 1 (energy); Hendrycks and Gimpel 2017,
    arXiv:1610.02136 (greatest probability).

    >>> [round(float(one[0]), 4) for one in score(np.array([[1000.0, 1001.0]], np.float32))]
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
        return Scores(-(best + np.log(total)), 1 / total, margin)


def scorer(measure: Measure) -> Scorer:
    """Return the function that scores rows: of logits, or of the measure's embedding, by the measure's kind.

    Arrays are unpacked here, once. For `Squeezing` the function would need a second inference: use `squeezed` and
    `disagreement`.

    Raises:
        ValueError: The measure is `Squeezing`.
    """
    match measure:
        case LogitMeasure("energy"):
            return lambda logits: score(logits).energy
        case LogitMeasure("confidence"):
            return lambda logits: 1 - score(logits).confidence
        case LogitMeasure("margin"):
            return lambda logits: -score(logits).margin
        case Mahalanobis():
            return _distance_from_means(measure)
        case Neighbours():
            return _distance_from_neighbours(measure)
    raise ValueError("squeezing needs a second inference: use squeezed and disagreement")


def unusual(scores: NDArray[np.floating], rule: OutlierRule) -> NDArray[np.bool_]:
    """Return which scores the rule rejects, shape [rows]; NaN is rejected."""
    return np.logical_not(scores <= rule.threshold)


def squeezed(values: NDArray[Any], measure: Squeezing) -> NDArray[Any]:
    """Return the input with less detail, of the same shape and type.

    Args:
        values: [batch, ...], with the axes that the measure names.
        measure: What is taken out: first rounding to few levels, then a median over neighbours, edges repeated.

    Source: feature squeezing, Xu, Evans and Qi 2018, arXiv:1704.01155.
    """
    result = np.asarray(values)
    if measure.bits:
        steps = 2**measure.bits - 1
        span = measure.high - measure.low
        unit = (np.clip(result.astype(np.float32), measure.low, measure.high) - measure.low) / span
        result = (np.rint(unit * steps) / steps * span + measure.low).astype(values.dtype)
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


def disagreement(probabilities: NDArray[Any], others: NDArray[Any]) -> _Floats:
    """Return the L1 distance between two answers to each row, 0 to 2."""
    return np.asarray(np.abs(np.asarray(probabilities, np.float64) - others).sum(axis=1))


def _distance_from_means(measure: Mahalanobis) -> Scorer:
    """Mahalanobis distance, Lee et al. 2018, arXiv:1807.03888; relative: Ren et al. 2021, arXiv:2106.09022."""
    nearest = _squared_distances(measure.means.array(), measure.within)
    if measure.background_mean is None or measure.background is None:
        return lambda embedding: np.asarray(nearest(_rows(embedding)).min(axis=1))
    overall = _squared_distances(measure.background_mean.array(), measure.background)

    def relative(embedding: NDArray[Any]) -> _Floats:
        rows = _rows(embedding)
        distances: _Floats = nearest(rows).min(axis=1) - overall(rows)[:, 0]
        return distances

    return relative


def _squared_distances(means: _Floats, shape: Ellipsoid) -> Callable[[_Floats], _Floats]:
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
            found = found + apart / shape.rest
        return np.asarray(found)

    return distances


def _distance_from_neighbours(measure: Neighbours) -> Scorer:
    """Distance from the k-th nearest neighbour: Sun et al. 2022, arXiv:2204.06507."""
    points = _directions(measure.points.array())
    place = len(points) - measure.nearest

    def distance(embedding: NDArray[Any]) -> _Floats:
        cosines = _directions(_rows(embedding)) @ points.T
        return np.asarray(np.sqrt(np.maximum(2 - 2 * np.partition(cosines, place, axis=1)[:, place], 0)))

    return distance


def _directions(rows: _Floats) -> _Floats:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(length > 0, length, 1)


def _rows(embedding: NDArray[Any]) -> _Floats:
    values = np.asarray(embedding, np.float64)
    return values.reshape(len(values), -1)
