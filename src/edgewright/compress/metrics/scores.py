"""The formulas of scores: from outputs, the original's outputs, labels and inputs to one score per sample."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewright.compress.data.sources.function import load_function
from edgewright.contract.errors import CandidateError

__all__ = [
    "MetricInputs",
    "MetricOutputs",
    "ScoreFunction",
    "binary_hits",
    "class_hits",
    "custom_scores",
    "explained_variance",
    "fidelity",
    "label_hits",
    "output_sqnr_db",
    "reconstruction_gain",
    "same_class",
    "target_variances",
    "top1_agreement",
]

MetricOutputs = Sequence[NDArray[Any]]
MetricInputs = Mapping[str, NDArray[Any]]
ScoreFunction = Callable[[MetricOutputs, MetricOutputs | None, NDArray[Any] | None, MetricInputs], NDArray[Any]]

_MAX_SQNR_DB = 200.0  # beyond float32's own precision


def class_hits(
    outputs: MetricOutputs, _reference: MetricOutputs | None, labels: NDArray[Any] | None, _inputs: MetricInputs
) -> NDArray[Any]:
    """1 where the greatest score is that of the labelled class."""
    first = outputs[0].reshape(len(outputs[0]), -1)
    return np.asarray(first.argmax(axis=1) == labels)


def binary_hits(
    threshold: float,
    outputs: MetricOutputs,
    _reference: MetricOutputs | None,
    labels: NDArray[Any] | None,
    _inputs: MetricInputs,
) -> NDArray[Any]:
    """1 where yes or no is right."""
    return np.asarray((outputs[0].reshape(-1) > threshold) == labels)


def label_hits(
    threshold: float,
    outputs: MetricOutputs,
    _reference: MetricOutputs | None,
    labels: NDArray[Any] | None,
    _inputs: MetricInputs,
) -> NDArray[Any]:
    """Share of a sample's labels that are right."""
    assert labels is not None  # noqa: S101 - the task guarantees it
    return np.asarray(((outputs[0].reshape(labels.shape) > threshold) == labels).mean(axis=1))


def target_variances(targets: NDArray[Any]) -> NDArray[np.float64]:
    """Return the variance of each target; a constant one has none and counts as 1."""
    variances = targets.reshape(len(targets), -1).astype(np.float64).var(axis=0)
    return np.where(variances > 0, variances, 1.0)


def explained_variance(
    variances: NDArray[np.float64],
    outputs: MetricOutputs,
    _reference: MetricOutputs | None,
    labels: NDArray[Any] | None,
    _inputs: MetricInputs,
) -> NDArray[Any]:
    """1 - error² / variance, mean over targets: its mean over samples is R²."""
    assert labels is not None  # noqa: S101 - the task guarantees it
    targets = labels.reshape(len(labels), -1)
    errors = np.square(outputs[0].reshape(targets.shape).astype(np.float64) - targets)
    return np.asarray(1 - (errors / variances).mean(axis=1))


def reconstruction_gain(
    power: float,
    outputs: MetricOutputs,
    _reference: MetricOutputs | None,
    _labels: NDArray[Any] | None,
    inputs: MetricInputs,
) -> NDArray[Any]:
    """1 - error² / power of the inputs' variation: its mean is the variance-weighted R² of the inputs."""
    truth = next(iter(inputs.values())).reshape(len(outputs[0]), -1).astype(np.float64)
    errors = np.square(outputs[0].reshape(truth.shape).astype(np.float64) - truth)
    return np.asarray(1 - errors.sum(axis=1) / power)


def _required(reference: MetricOutputs | None) -> MetricOutputs:
    if reference is None:
        raise ValueError("this metric compares with the original's outputs: pass them as reference")
    return reference


def same_class(
    outputs: MetricOutputs, reference: MetricOutputs | None, _labels: NDArray[Any] | None, _inputs: MetricInputs
) -> NDArray[Any]:
    """1 where the greatest score is that of the original's class."""
    return np.asarray(outputs[0].argmax(axis=-1) == _required(reference)[0].argmax(axis=-1))


def fidelity(
    outputs: MetricOutputs, reference: MetricOutputs | None, _labels: NDArray[Any] | None, _inputs: MetricInputs
) -> NDArray[Any]:
    """1 - the worst output's |candidate - original|² / mean |original|²: 30 dB of noise is 0.999."""
    losses = []
    for original, candidate in zip(_required(reference), outputs, strict=True):
        truth = original.reshape(len(original), -1).astype(np.float64)
        noise = np.square(candidate.reshape(truth.shape).astype(np.float64) - truth).sum(axis=1)
        power = float(np.square(truth).sum(axis=1).mean())
        losses.append(noise / power if power > 0 else (noise > 0).astype(np.float64))
    return np.asarray(1 - np.max(losses, axis=0))


def custom_scores(
    reference: str,
    outputs: MetricOutputs,
    _reference: MetricOutputs | None,
    labels: NDArray[Any] | None,
    _inputs: MetricInputs,
) -> NDArray[Any]:
    """Call the user's function; one number counts for every sample."""
    try:
        scores = np.asarray(load_function(reference)(labels, list(outputs)), np.float64)
    except Exception as error:  # the user's code may raise anything
        raise CandidateError(
            f"metric {reference} raised {type(error).__name__}: {error}", remedy="Call it by itself to see where."
        ) from error
    return np.full(len(outputs[0]), scores) if scores.ndim == 0 else scores


def output_sqnr_db(reference: MetricOutputs, outputs: MetricOutputs) -> float:
    """Return the signal to quantisation noise ratio of the worst output, dB, at most 200.

    >>> round(output_sqnr_db([np.array([[1.0, 1.0]])], [np.array([[1.1, 0.9]])]), 6)
    20.0
    """
    worst = _MAX_SQNR_DB
    for original, candidate in zip(reference, outputs, strict=True):
        truth = original.astype(np.float64)
        noise = float(np.square(candidate.astype(np.float64) - truth).sum())
        signal = float(np.square(truth).sum())
        if not np.isfinite(noise):
            return -_MAX_SQNR_DB
        if noise > 0:
            worst = min(worst, 10 * np.log10(signal / noise) if signal > 0 else -_MAX_SQNR_DB)
    return float(worst)


def top1_agreement(reference: MetricOutputs, outputs: MetricOutputs) -> float:
    """Return how often the greatest entry of the last axis is the same, of the worst output.

    Outputs whose last axis has less than two entries do not count; NaN if no output counts.
    """
    shares = [
        float((original.argmax(axis=-1) == candidate.argmax(axis=-1)).mean())
        for original, candidate in zip(reference, outputs, strict=True)
        if original.ndim > 1 and original.shape[-1] > 1
    ]
    return min(shares, default=float("nan"))
