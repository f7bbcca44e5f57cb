"""How good answers are: one score per sample, whose mean is the metric, higher is better.

Scores per sample, not one figure per model, are what a paired certificate is made from.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgewright.compress.dataset import Dataset
from edgewright.compress.outputs import outputs_of
from edgewright.compress.sources.function import is_function_reference, load_function
from edgewright.contract.errors import CandidateError, DataError, ModelError
from edgewright.contract.signature import InputContract

__all__ = ["METRICS", "Metric", "agreement", "choose_metric", "outputs_of", "sqnr_db"]

Outputs = Sequence[NDArray[Any]]
Inputs = Mapping[str, NDArray[Any]]
ScoreFunction = Callable[[Outputs, Outputs | None, NDArray[Any] | None, Inputs], NDArray[Any]]
Kind = Literal["binary", "unit", "unbounded", "scalar"]

METRICS = ("accuracy", "label_accuracy", "r2", "reconstruction_r2", "agreement", "fidelity")
_MAX_SQNR_DB = 200.0  # beyond float32's own precision


@dataclass(frozen=True, slots=True)
class Metric:
    """A rule that scores answers.

    Attributes:
        name: One of `METRICS`, or `module:function`.
        kind: Scores are 0 or 1 (`binary`), between 0 and 1 (`unit`), any number (`unbounded`), or all the same
            since only the whole has a value (`scalar`), which no bound over samples can certify.
        function: Computes the scores.
        note: What was found out, for people; empty if nothing.
    """

    name: str
    kind: Kind
    function: ScoreFunction
    note: str = ""

    def scores(
        self,
        outputs: Outputs,
        reference: Outputs | None,
        dataset_labels: NDArray[Any] | None,
        inputs: Inputs,
    ) -> NDArray[np.float64]:
        """Score every sample.

        Args:
            outputs: Per output [n, ...], as `outputs_of` gives them.
            reference: The original model's, for agreement and fidelity.
            dataset_labels: Of the same n samples.
            inputs: Of the same n samples, for reconstruction.

        Returns:
            Shape [n]; the metric is the mean.

        Raises:
            CandidateError: An output holds NaN, or a score is not finite.
        """
        for output in outputs:
            if output.dtype.kind == "f" and np.isnan(output).any():
                raise CandidateError("an output holds NaN", remedy="Leave this candidate out.")
        scores = np.asarray(self.function(outputs, reference, dataset_labels, inputs), np.float64)
        if scores.shape != (len(outputs[0]),):
            raise CandidateError(
                f"metric {self.name} gave scores of shape {list(scores.shape)} for {len(outputs[0])} samples",
                remedy="Return one score per sample.",
            )
        if not np.isfinite(scores).all():
            raise CandidateError(f"metric {self.name} is not finite", remedy="Leave this candidate out.")
        return scores


def choose_metric(
    dataset: Dataset, contract: InputContract, requested: str | None, original_outputs: Outputs
) -> Metric:
    """Return the metric asked for, or the one that the task calls for.

    Args:
        dataset: Its labels set thresholds and variances; pass a subset to look only at that.
        contract: Of the model.
        requested: One of `METRICS`, `module:function`, or None.
        original_outputs: The original model's for every sample of `dataset`.

    Raises:
        DataError: Unknown metric, or one that this data does not allow.
        ModelError: The original model itself answers NaN.
    """
    if any(output.dtype.kind == "f" and np.isnan(output).any() for output in original_outputs):
        raise ModelError("the original model answers NaN to this data", remedy="Check the data's scaling.")
    if requested is not None and is_function_reference(requested):
        return _custom(requested, dataset, original_outputs)
    name = requested or _default(dataset, contract, original_outputs)
    if name not in METRICS:
        raise DataError(f"there is no metric {name!r}", remedy=f"Use {', '.join(METRICS)} or module:function.")
    needed = {"accuracy": "classification", "label_accuracy": "multilabel", "r2": "regression"}.get(name)
    if needed is not None and dataset.task != needed:
        raise DataError(
            f"metric {name} is for {needed}, this data's task is {dataset.task}",
            remedy=f'State the task "{needed}", or choose another metric.',
        )
    first = original_outputs[0]
    if name == "accuracy":
        return _accuracy(first, dataset)
    if name == "label_accuracy":
        threshold, note = _threshold(first)
        return Metric(name, "unit", partial(_label_accuracy, threshold), note)
    if name == "r2" and dataset.labels is not None:
        return Metric(name, "unbounded", partial(_r2, _variances(dataset.labels)))
    if name == "reconstruction_r2":
        return _reconstruction(first, dataset)
    if name == "agreement":
        if first.ndim != 2 or first.shape[1] < 2:
            raise DataError(
                f"agreement needs an output [samples, classes], the first is {list(first.shape)}",
                remedy="Use the metric fidelity.",
            )
        return Metric(name, "binary", _agreement)
    return Metric("fidelity", "unbounded", _fidelity)


def sqnr_db(reference: Outputs, outputs: Outputs) -> float:
    """Return the signal to quantisation noise ratio of the worst output, dB, at most 200.

    >>> round(sqnr_db([np.array([[1.0, 1.0]])], [np.array([[1.1, 0.9]])]), 6)
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


def agreement(reference: Outputs, outputs: Outputs) -> float:
    """Return how often the greatest entry of the last axis is the same, of the worst output.

    Outputs whose last axis has less than two entries do not count; NaN if no output counts.
    """
    shares = [
        float((original.argmax(axis=-1) == candidate.argmax(axis=-1)).mean())
        for original, candidate in zip(reference, outputs, strict=True)
        if original.ndim > 1 and original.shape[-1] > 1
    ]
    return min(shares, default=float("nan"))


def _default(dataset: Dataset, contract: InputContract, original_outputs: Outputs) -> str:
    if dataset.task == "fidelity":
        first = original_outputs[0]
        return "agreement" if len(contract.outputs) == 1 and first.ndim == 2 and first.shape[1] >= 2 else "fidelity"
    return {
        "classification": "accuracy",
        "multilabel": "label_accuracy",
        "regression": "r2",
        "reconstruction": "reconstruction_r2",
    }[dataset.task]


def _threshold(output: NDArray[Any]) -> tuple[float, str]:
    """Return where yes begins, told from the range of the original's answers."""
    low, high = float(output.min(initial=0)), float(output.max(initial=0))
    if low >= 0 and high <= 1:
        return 0.5, f"outputs range over {low:.3g}..{high:.3g} and were read as probabilities: yes above 0.5"
    return 0.0, f"outputs range over {low:.3g}..{high:.3g} and were read as logits: yes above 0"


def _accuracy(first: NDArray[Any], dataset: Dataset) -> Metric:
    if dataset.labels is not None and dataset.labels.max() <= 1 and (first.ndim == 1 or first[0].size == 1):
        threshold, note = _threshold(first)
        return Metric("accuracy", "binary", partial(_binary_accuracy, threshold), note)
    if first.ndim < 2 or first[0].size != first.shape[-1]:
        raise DataError(
            f"accuracy needs one vector of class scores per sample, the first output is {list(first.shape)}",
            remedy="Name a metric of your own as module:function.",
        )
    return Metric("accuracy", "binary", _class_accuracy)


def _class_accuracy(
    outputs: Outputs, _reference: Outputs | None, labels: NDArray[Any] | None, _inputs: Inputs
) -> NDArray[Any]:
    first = outputs[0].reshape(len(outputs[0]), -1)
    return np.asarray(first.argmax(axis=1) == labels)


def _binary_accuracy(
    threshold: float, outputs: Outputs, _reference: Outputs | None, labels: NDArray[Any] | None, _inputs: Inputs
) -> NDArray[Any]:
    return np.asarray((outputs[0].reshape(-1) > threshold) == labels)


def _label_accuracy(
    threshold: float, outputs: Outputs, _reference: Outputs | None, labels: NDArray[Any] | None, _inputs: Inputs
) -> NDArray[Any]:
    assert labels is not None  # noqa: S101 - the task guarantees it
    return np.asarray(((outputs[0].reshape(labels.shape) > threshold) == labels).mean(axis=1))


def _variances(targets: NDArray[Any]) -> NDArray[np.float64]:
    """Return the variance of each target; a constant one has none and counts as 1."""
    variances = targets.reshape(len(targets), -1).astype(np.float64).var(axis=0)
    return np.where(variances > 0, variances, 1.0)


def _r2(
    variances: NDArray[np.float64],
    outputs: Outputs,
    _reference: Outputs | None,
    labels: NDArray[Any] | None,
    _inputs: Inputs,
) -> NDArray[Any]:
    assert labels is not None  # noqa: S101 - the task guarantees it
    targets = labels.reshape(len(labels), -1)
    errors = np.square(outputs[0].reshape(targets.shape).astype(np.float64) - targets)
    return np.asarray(1 - (errors / variances).mean(axis=1))


def _reconstruction(first: NDArray[Any], dataset: Dataset) -> Metric:
    if len(dataset.inputs) != 1:
        raise DataError(
            f"reconstruction compares the output with one input, the model has {len(dataset.inputs)}",
            remedy="Use the metric fidelity.",
        )
    array = next(iter(dataset.inputs.values()))
    if array[0].size != first[0].size:
        raise DataError(
            f"reconstruction needs an output of the input's size, {array[0].size}; it is {first[0].size}",
            remedy="Use the metric fidelity.",
        )
    power = float(array.reshape(len(array), -1).astype(np.float64).var(axis=0).sum())
    if power == 0:
        raise DataError("all inputs are the same", remedy="Give samples that differ.")
    return Metric("reconstruction_r2", "unbounded", partial(_reconstruction_r2, power))


def _reconstruction_r2(
    power: float, outputs: Outputs, _reference: Outputs | None, _labels: NDArray[Any] | None, inputs: Inputs
) -> NDArray[Any]:
    truth = next(iter(inputs.values())).reshape(len(outputs[0]), -1).astype(np.float64)
    errors = np.square(outputs[0].reshape(truth.shape).astype(np.float64) - truth)
    return np.asarray(1 - errors.sum(axis=1) / power)


def _needed(reference: Outputs | None) -> Outputs:
    if reference is None:
        raise ValueError("this metric compares with the original's outputs: pass them as reference")
    return reference


def _agreement(
    outputs: Outputs, reference: Outputs | None, _labels: NDArray[Any] | None, _inputs: Inputs
) -> NDArray[Any]:
    return np.asarray(outputs[0].argmax(axis=-1) == _needed(reference)[0].argmax(axis=-1))


def _fidelity(
    outputs: Outputs, reference: Outputs | None, _labels: NDArray[Any] | None, _inputs: Inputs
) -> NDArray[Any]:
    """1 - mean over outputs of |candidate - original|² / mean |original|²: 30 dB of noise is 0.999."""
    losses = []
    for original, candidate in zip(_needed(reference), outputs, strict=True):
        truth = original.reshape(len(original), -1).astype(np.float64)
        noise = np.square(candidate.reshape(truth.shape).astype(np.float64) - truth).sum(axis=1)
        power = float(np.square(truth).sum(axis=1).mean())
        losses.append(noise / power if power > 0 else (noise > 0).astype(np.float64))
    return np.asarray(1 - np.mean(losses, axis=0))


def _custom(reference: str, dataset: Dataset, original_outputs: Outputs) -> Metric:
    function = load_function(reference)
    try:
        first = np.asarray(function(dataset.labels, list(original_outputs)))
    except Exception as error:  # the user's code may raise anything
        raise DataError(
            f"metric {reference} raised {type(error).__name__}: {error}",
            remedy="It is called with the labels and the list of outputs.",
        ) from error
    if first.dtype.kind not in "biuf" or first.shape not in ((), (len(dataset),)):
        raise DataError(
            f"metric {reference} returned {first.dtype} of shape {list(first.shape)} for {len(dataset)} samples",
            remedy="Return one score per sample, or one number; higher is better.",
        )
    if first.ndim == 0:
        return Metric(reference, "scalar", partial(_custom_scores, reference), "one value for all samples")
    kind: Kind = "binary" if first.dtype == bool else "unbounded"
    return Metric(reference, kind, partial(_custom_scores, reference))


def _custom_scores(
    reference: str, outputs: Outputs, _reference: Outputs | None, labels: NDArray[Any] | None, _inputs: Inputs
) -> NDArray[Any]:
    scores = np.asarray(load_function(reference)(labels, list(outputs)), np.float64)
    return np.full(len(outputs[0]), scores) if scores.ndim == 0 else scores
