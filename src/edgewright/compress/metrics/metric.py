"""How good answers are: one score per sample, whose mean is the metric, higher is better.

Scores per sample, not one figure per model, are what a paired certificate is made from.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgewright.compress.data.dataset import Dataset
from edgewright.compress.data.labels import label_output_index
from edgewright.compress.data.model_outputs import model_outputs
from edgewright.compress.data.sources.function import is_function_reference, load_function
from edgewright.compress.metrics.scores import (
    MetricInputs,
    MetricOutputs,
    ScoreFunction,
    binary_hits,
    class_hits,
    custom_scores,
    explained_variance,
    fidelity,
    label_hits,
    output_sqnr_db,
    reconstruction_gain,
    same_class,
    target_variances,
    top1_agreement,
)
from edgewright.contract.errors import CandidateError, DataError, ModelError
from edgewright.contract.model.signature import ModelSignature

__all__ = ["METRIC_NAMES", "Metric", "choose_metric", "model_outputs", "output_sqnr_db", "top1_agreement"]

MetricKind = Literal["binary", "unit", "unbounded", "scalar"]

METRIC_NAMES = ("accuracy", "label_accuracy", "r2", "reconstruction_r2", "agreement", "fidelity")


@dataclass(frozen=True, slots=True)
class Metric:
    """A rule that scores answers.

    Attributes:
        name: One of `METRIC_NAMES`, or `module:function`.
        kind: Scores are 0 or 1 (`binary`), between 0 and 1 (`unit`), any number (`unbounded`), or all the same
            since only the whole has a value (`scalar`), which no bound over samples can certify.
        function: Computes the scores.
        note: What was found out, for people; empty if nothing.
        output_index: Place of the output that labels are compared with.
    """

    name: str
    kind: MetricKind
    function: ScoreFunction
    note: str = ""
    output_index: int = 0

    def scores(
        self,
        outputs: MetricOutputs,
        reference: MetricOutputs | None,
        dataset_labels: NDArray[Any] | None,
        inputs: MetricInputs,
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
        order = [self.output_index, *(place for place in range(len(outputs)) if place != self.output_index)]
        given = [outputs[place] for place in order]
        original = None if reference is None else [reference[place] for place in order]
        scores = np.asarray(self.function(given, original, dataset_labels, inputs), np.float64)
        if scores.shape != (len(outputs[0]),):
            raise CandidateError(
                f"metric {self.name} gave scores of shape {list(scores.shape)} for {len(outputs[0])} samples",
                remedy="Return one score per sample.",
            )
        if not np.isfinite(scores).all():
            raise CandidateError(f"metric {self.name} is not finite", remedy="Leave this candidate out.")
        return scores


def choose_metric(
    dataset: Dataset, contract: ModelSignature, requested: str | None, original_outputs: MetricOutputs
) -> Metric:
    """Return the metric asked for, or the one that the task calls for.

    Args:
        dataset: Its labels set thresholds and variances; pass a subset to look only at that.
        contract: Of the model.
        requested: One of `METRIC_NAMES`, `module:function`, or None.
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
    if name not in METRIC_NAMES:
        raise DataError(f"there is no metric {name!r}", remedy=f"Use {', '.join(METRIC_NAMES)} or module:function.")
    needed = {"accuracy": "classification", "label_accuracy": "multilabel", "r2": "regression"}.get(name)
    if needed is not None and dataset.task != needed:
        raise DataError(
            f"metric {name} is for {needed}, this data's task is {dataset.task}",
            remedy=f'State the task "{needed}", or choose another metric.',
        )
    answer = label_output_index(contract)
    return replace(_metric(name, original_outputs[answer], dataset), output_index=answer)


def _metric(name: str, first: NDArray[Any], dataset: Dataset) -> Metric:
    """Return a built-in metric; `first` is the original's answer."""
    if name == "accuracy":
        return _accuracy(first, dataset)
    if name == "label_accuracy":
        threshold, note = _threshold(first)
        return Metric(name, "unit", partial(label_hits, threshold), note)
    if name == "r2" and dataset.labels is not None:
        return Metric(name, "unbounded", partial(explained_variance, target_variances(dataset.labels)))
    if name == "reconstruction_r2":
        return _reconstruction(first, dataset)
    if name == "agreement":
        if first.ndim != 2 or first.shape[1] < 2:
            raise DataError(
                f"agreement needs an output [samples, classes], the first is {list(first.shape)}",
                remedy="Use the metric fidelity.",
            )
        return Metric(name, "binary", same_class)
    return Metric("fidelity", "unbounded", fidelity)


def _default(dataset: Dataset, contract: ModelSignature, original_outputs: MetricOutputs) -> str:
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
        return Metric("accuracy", "binary", partial(binary_hits, threshold), note)
    if first.ndim < 2 or first[0].size != first.shape[-1]:
        raise DataError(
            f"accuracy needs one vector of class scores per sample, the first output is {list(first.shape)}",
            remedy="Name a metric of your own as module:function.",
        )
    return Metric("accuracy", "binary", class_hits)


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
    return Metric("reconstruction_r2", "unbounded", partial(reconstruction_gain, power))


def _custom(reference: str, dataset: Dataset, original_outputs: MetricOutputs) -> Metric:
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
        return Metric(reference, "scalar", partial(custom_scores, reference), "one value for all samples")
    kind: MetricKind = "binary" if np.isin(first, (0, 1)).all() else "unbounded"
    return Metric(reference, kind, partial(custom_scores, reference))
