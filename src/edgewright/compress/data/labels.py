"""Labels held against a model's answer: what do they mean, and is every one possible?"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewright.compress.data.dataset import TaskKind
from edgewright.contract.errors import DataError
from edgewright.contract.model.signature import ModelSignature

__all__ = ["label_output_index", "output_class_count", "read_labels"]


def label_output_index(contract: ModelSignature) -> int:
    """Return which output labels are compared with: the first of floats, else the first.

    Classifiers converted from scikit-learn give integer class ids first and probabilities second.

    >>> from edgewright.contract.model.signature import TensorSpec
    >>> ids = TensorSpec("label", "int64", ("n",))
    >>> probabilities = TensorSpec("probabilities", "float32", ("n", 3))
    >>> label_output_index(ModelSignature((), (ids, probabilities)))
    1
    """
    floats = (place for place, spec in enumerate(contract.outputs) if spec.dtype.startswith("float"))
    return next(floats, 0)


def output_class_count(contract: ModelSignature) -> int | None:
    """Return the size of the answer's last axis, None if it is free."""
    shape = contract.outputs[label_output_index(contract)].shape
    if len(shape) < 2:
        return 1 if shape != ("...",) else None
    return shape[-1] if isinstance(shape[-1], int) else None


def read_labels(
    labels: NDArray[Any] | None, samples: int, contract: ModelSignature, task: TaskKind | None
) -> tuple[NDArray[Any] | None, TaskKind, tuple[str, ...]]:
    """Find out or check the task, and bring the labels into its form.

    Returns:
        Labels as in `Dataset.labels`, the task, notes.

    Raises:
        DataError: As many labels as samples are not there, some are missing or out of range, all are the same,
            or they do not fit the task.
    """
    if labels is None:
        return _without(contract, task)
    if labels.ndim == 0 or len(labels) != samples:
        have = "1 label" if labels.ndim == 0 else f"{len(labels)} labels"
        raise DataError(f"the data holds {samples} samples and {have}", remedy="Give one label per sample.")
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    notes: list[str] = []
    if labels.dtype.kind in "US":
        labels = _numbered(labels, notes)
    if labels.dtype.kind not in "biuf":
        raise DataError(f"labels are of type {labels.dtype}", remedy="Give integers, floats or class names.")
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        bad = np.flatnonzero(~np.isfinite(labels.reshape(samples, -1)).all(axis=1))
        raise DataError(
            f"{len(bad)} labels are missing (NaN or infinite), the first at sample {bad[0]}",
            remedy="Remove those samples, or label them.",
        )
    if task is None:
        task = _task_of(labels, contract)
        notes.append(f"task found out from the labels: {task}")
    if task == "classification":
        return _classes(labels, contract, notes), task, tuple(notes)
    if task == "multilabel":
        return _flags(labels, contract), task, tuple(notes)
    if task == "regression":
        return _targets(labels, contract), task, tuple(notes)
    notes.append(f"labels are not used for the task {task}")
    return None, _without(contract, task)[1], tuple(notes)


def _without(contract: ModelSignature, task: TaskKind | None) -> tuple[None, TaskKind, tuple[str, ...]]:
    if task in ("classification", "regression", "multilabel"):
        raise DataError(
            f"the task {task} needs labels, the data holds none",
            remedy="Name the labels, or leave the task out to compare with the original model's outputs.",
        )
    one_each = len(contract.inputs) == len(contract.outputs) == 1
    restores = one_each and _same_shape(contract.inputs[0].shape, contract.outputs[0].shape)
    if task == "reconstruction" and not restores:
        raise DataError(
            "the task reconstruction needs one output of the same shape as the one input",
            remedy="Leave the task out to compare with the original model's outputs.",
        )
    found: TaskKind = task or ("reconstruction" if restores else "fidelity")
    note = {
        "reconstruction": "no labels: the output is compared with the input (reconstruction)",
        "fidelity": "no labels: candidates are compared with the original model's outputs",
    }[found]
    return None, found, (note,)


def _same_shape(first: tuple[int | str, ...], second: tuple[int | str, ...]) -> bool:
    """Whether two shapes of rank 2 or more agree behind the first axis, in sizes alone."""
    return len(first) == len(second) >= 2 and all(
        isinstance(a, int) and a == b for a, b in zip(first[1:], second[1:], strict=True)
    )


def _task_of(labels: NDArray[Any], contract: ModelSignature) -> TaskKind:
    classes = output_class_count(contract)
    flags = bool(np.isin(labels, (0, 1)).all())
    if labels.ndim > 1:
        if flags and labels.ndim == 2 and (labels.dtype.kind != "f" or classes == labels.shape[1]):
            return "classification" if (labels.sum(axis=1) == 1).all() else "multilabel"
        return "regression"
    if labels.dtype.kind == "f":
        if classes is None or classes > 1:
            raise DataError(
                f"labels are {labels.dtype}, class ids are integers"
                + ("" if classes is None else f"; the model gives {classes} values per sample"),
                remedy="Convert class ids to integers, or state the task regression.",
            )
        return "regression"
    return "classification" if classes != 1 or flags else "regression"


def _numbered(labels: NDArray[Any], notes: list[str]) -> NDArray[np.int64]:
    blank = np.flatnonzero(np.char.strip(labels) == labels.dtype.type())
    if len(blank):
        raise DataError(
            f"{len(blank)} labels are missing (empty), the first at sample {int(blank.flat[0])}",
            remedy="Remove those samples, or label them.",
        )
    names, ids = np.unique(labels, return_inverse=True)
    shown = ", ".join(f"{name} = {i}" for i, name in enumerate(names[:20]))
    notes.append(f"class names were numbered in sorted order: {shown}" + (", …" if len(names) > 20 else ""))
    return ids.reshape(labels.shape).astype(np.int64)


def _classes(labels: NDArray[Any], contract: ModelSignature, notes: list[str]) -> NDArray[np.int64]:
    classes = output_class_count(contract)
    if labels.ndim == 2:
        if not np.isin(labels, (0, 1)).all() or not (labels.sum(axis=1) == 1).all():
            raise DataError(
                f"labels of shape {list(labels.shape)} are neither class ids nor one-hot",
                remedy="Give one class id per sample, or state another task.",
            )
        notes.append("one-hot labels were read as class ids")
        if classes is not None and classes > 1 and classes != labels.shape[1]:
            raise DataError(
                f"one-hot labels have {labels.shape[1]} classes, the model gives {classes}",
                remedy="Give labels of this model.",
            )
        labels = labels.argmax(axis=1)
    if labels.ndim != 1:
        raise DataError(f"labels have shape {list(labels.shape)}", remedy="Give one class id per sample.")
    if labels.dtype.kind == "f":
        raise DataError(
            f"labels are {labels.dtype}, class ids are integers",
            remedy="Convert them to integers, or state the task regression.",
        )
    most = None if classes is None else max(classes, 2) - 1
    if labels.min() < 0 or (most is not None and labels.max() > most):
        bad = np.flatnonzero((labels < 0) | (labels > (most if most is not None else labels.max())))
        raise DataError(
            f"{len(bad)} labels are out of range, the first is {labels[bad[0]]} at sample {bad[0]}; "
            f"the model's classes are 0 to {'…' if most is None else most}",
            remedy="Class ids start at 0."
            if labels.min() == 1 and most is not None and labels.max() == most + 1
            else "Check that these labels belong to this model.",
        )
    if labels.min() == labels.max():
        raise DataError(
            f"every sample has the same class, {labels[0]}",
            remedy="Give samples of several classes: a model that always answers the same would look perfect.",
        )
    return labels.astype(np.int64)


def _flags(labels: NDArray[Any], contract: ModelSignature) -> NDArray[np.int64]:
    classes = output_class_count(contract)
    if labels.ndim != 2 or not np.isin(labels, (0, 1)).all():
        raise DataError(
            f"multilabel labels of shape {list(labels.shape)} must be [samples, labels] of 0 and 1",
            remedy="Give one column of 0 and 1 per label.",
        )
    if classes is not None and classes != labels.shape[1]:
        raise DataError(
            f"the data has {labels.shape[1]} labels per sample, the model gives {classes}",
            remedy="Give labels of this model.",
        )
    return labels.astype(np.int64)


def _targets(labels: NDArray[Any], contract: ModelSignature) -> NDArray[np.float64]:
    have = labels.shape[1:] or (1,)
    want = contract.outputs[label_output_index(contract)].shape
    if want != ("...",) and all(isinstance(size, int) for size in want[1:]):
        sizes = tuple(size for size in want[1:] if size != 1)
        if sizes != tuple(size for size in have if size != 1):
            raise DataError(
                f"targets have shape {list(have)} per sample, the model's answer {list(want[1:])}",
                remedy="Give targets of the output's shape.",
            )
    targets = labels.astype(np.float64)
    if not np.var(targets, axis=0).max() > 0:
        raise DataError("every sample has the same target", remedy="Give samples whose targets differ.")
    return targets
