"""A classifier whose confidence means what it says: what is fitted to half of the data is judged on the rest."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from edgewright.compress.data.loader import load_data, split_dataset
from edgewright.compress.data.model_outputs import model_outputs
from edgewright.compress.model.loading import read_model
from edgewright.compress.uncertainty.temperature_scaling import scale_logits
from edgewright.contract.errors import DataError
from edgewright.contract.model.preprocess import Preprocess
from edgewright.stats.calibration import (
    are_probabilities,
    brier_score,
    expected_calibration_error,
    fit_temperature_scaling,
    fit_vector_scaling,
    log_probabilities,
    negative_log_likelihood,
    softmax,
)

__all__ = ["CalibrationResult", "CalibrationScores", "calibrate_model"]


@dataclass(frozen=True, slots=True)
class CalibrationScores:
    """How a classifier's confidence fares on samples that nothing was fitted to.

    Attributes:
        accuracy: Share of right answers.
        calibration_error: Mean distance of confidence and hit rate over bins of equally many samples, less what
            chance adds.
        nll: Mean negative log likelihood of the labels, nats.
        brier: Mean squared distance between probabilities and truth, 0 to 2.
    """

    accuracy: float
    calibration_error: float
    nll: float
    brier: float


@dataclass(frozen=True, slots=True)
class CalibrationResult:
    """A model that was calibrated.

    Attributes:
        model: The graph with its logits scaled.
        temperature: By which logits are divided; None for a vector.
        before: As it was.
        after: As the new graph answers.
        fit_samples: Samples that it was fitted to.
        evaluation_samples: Samples that it was judged on.
    """

    model: onnx.ModelProto
    temperature: float | None
    before: CalibrationScores
    after: CalibrationScores
    fit_samples: int
    evaluation_samples: int


def calibrate_model(
    model: Path,
    data: str,
    *,
    label: str | None = None,
    group: str | None = None,
    preprocess: Preprocess | None = None,
    vector: bool = False,
    seed: int = 0,
) -> CalibrationResult:
    """Fit on half of the data, fold it into the graph, and judge the graph on the other half.

    Args:
        model: A classifier in ONNX.
        data: Labelled samples that it was not trained on: a path, or `module:function`.
        label: Column or array with the labels.
        group: Column or array with the group of each sample; groups are not split.
        preprocess: From raw samples to the first input.
        vector: A factor and a shift for each class, instead of one temperature.
        seed: Of the split.

    Raises:
        ModelError: The model cannot be used.
        DataError: The data has no classes, or is too little.
        CandidateError: The graph does not end in logits or a softmax.
    """
    loaded = read_model(model)
    dataset = load_data(
        data, loaded.contract, label=label, group=group, preprocess=preprocess, model=model, seed=seed
    )
    if dataset.task != "classification" or dataset.labels is None:
        raise DataError(
            f"{data} is for {dataset.task}, not for classification", remedy="Give samples with class labels."
        )
    parts = split_dataset(dataset, seed=seed)
    first = np.concatenate([parts.calibrate, parts.select])
    labels = np.asarray(dataset.labels, np.intp)
    logits = _logits(model_outputs(loaded.proto, dataset, first, loaded.contract)[0])
    softening = (fit_vector_scaling if vector else fit_temperature_scaling)(logits, labels[first])
    made = scale_logits(loaded.proto, softening)
    rest = parts.certify
    before, after = (
        _calibration_scores(_logits(model_outputs(each, dataset, rest, loaded.contract)[0]), labels[rest])
        for each in (loaded.proto, made)
    )
    temperature = None if vector else float(1 / softening.scale[0])
    return CalibrationResult(made, temperature, before, after, len(first), len(rest))


def _logits(scores: NDArray[np.generic]) -> NDArray[np.float64]:
    values = np.asarray(scores, np.float64)
    if values.ndim != 2:
        raise DataError(
            f"the first output has the shape {list(values.shape)}, not [samples, classes]",
            remedy="Give a classifier whose first output holds the scores.",
        )
    return log_probabilities(values) if are_probabilities(values) else values


def _calibration_scores(logits: NDArray[np.float64], labels: NDArray[np.intp]) -> CalibrationScores:
    probabilities = softmax(logits)
    hits = probabilities.argmax(axis=1) == labels
    error = expected_calibration_error(probabilities.max(axis=1), hits).debiased
    return CalibrationScores(
        float(hits.mean()),
        error,
        negative_log_likelihood(probabilities, labels),
        brier_score(probabilities, labels),
    )
