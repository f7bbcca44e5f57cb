"""What a network is trained on: rows, labels, and which rows are kept back to validate."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgewright.compress.data.dataset import Dataset, TaskKind, dataset_digest, row_digests
from edgewright.compress.train.data.modality import Modality, SampleFormat, detect_sample_format
from edgewright.compress.train.data.shared_arrays import read_arrays, write_arrays
from edgewright.contract.errors import CandidateError, DataError

__all__ = ["MIN_TRAINING_ROWS", "TrainingData", "make_training_data", "read_training_data", "write_training_data"]

MIN_TRAINING_ROWS = 20
_VALIDATION = (0.1, 50, 2000)  # share of the rows, at least, at most
_UNBALANCED = 3.0


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Rows to train on.

    Attributes:
        inputs: Per input of the graph, in its order, [n, ...].
        labels: As in `Dataset.labels`; None if unlabelled.
        task: What the labels mean.
        groups: [n], None if rows are independent.
        train: Rows that are trained on.
        validation: Rows that decide which epoch is kept and when to stop.
        format: Of the first input.
        class_weights: [classes], mean 1 over the training rows; None where classes are balanced.
        fingerprint: sha256 over everything that a training depends on.
        notes: What was found out or left out, for people.
    """

    inputs: tuple[NDArray[Any], ...]
    labels: NDArray[Any] | None
    task: TaskKind
    groups: NDArray[Any] | None
    train: NDArray[np.intp]
    validation: NDArray[np.intp]
    format: SampleFormat
    class_weights: NDArray[np.float32] | None = None
    fingerprint: str = ""
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Return the number of rows, of both parts."""
        return len(self.inputs[0])


class _DataMetadata(msgspec.Struct, frozen=True):
    """What of lessons is no array."""

    task: TaskKind
    form: SampleFormat
    inputs: int
    fingerprint: str
    notes: tuple[str, ...]


def make_training_data(
    dataset: Dataset, *, seed: int, held_out: Dataset | None = None, kind: Modality | None = None
) -> TrainingData:
    """Make lessons of a dataset.

    A tenth of the rows validates, 50 to 2000 of them, whole groups if there are groups, all classes evenly.

    Args:
        dataset: Labelled, or not if a teacher is there.
        seed: Of the split.
        held_out: What will be certified; equal rows are left out of the lessons.
        kind: Of the first input, if it is known.

    Raises:
        DataError: Fewer than `MIN_TRAINING_ROWS` rows are left.
        CandidateError: The model takes its samples in a way that cannot be put in batches.
    """
    notes: list[str] = []
    rows = np.arange(len(dataset))
    if held_out is not None:
        held = set(row_digests(held_out.inputs))
        rows = np.array([i for i, digest in enumerate(row_digests(dataset.inputs)) if digest not in held], np.intp)
        if len(rows) < len(dataset):
            notes.append(f"{len(dataset) - len(rows)} training rows also occur in the held-out data: left out")
    if len(rows) < MIN_TRAINING_ROWS:
        raise DataError(
            f"{len(rows)} rows are left to train on, the least is {MIN_TRAINING_ROWS}",
            remedy="Give training data that differs from the data that is certified.",
        )
    kept = dataset if len(rows) == len(dataset) else dataset.subset(rows)
    inputs = tuple(_without_single_batch(name, array) for name, array in kept.inputs.items())
    labels = kept.labels if kept.task in ("classification", "multilabel", "regression") else None
    validation = _validation_rows(kept, labels, np.random.default_rng(seed))
    train = np.setdiff1d(np.arange(len(kept)), validation)
    form = detect_sample_format(inputs[0], kind)
    weights = _class_weights(labels[train]) if labels is not None and kept.task == "classification" else None
    notes.append(f"{len(train)} rows to train on, {len(validation)} to validate; read as {form.kind}")
    if weights is not None:
        notes.append("classes differ in size by more than 3: the rare ones weigh more")
    digest = dataset_digest(kept.inputs, labels, kept.groups, kept.task)
    fingerprint = f"{digest}:{seed}"
    return TrainingData(
        inputs=inputs,
        labels=labels,
        task=kept.task,
        groups=kept.groups,
        train=train,
        validation=validation,
        format=form,
        class_weights=weights,
        fingerprint=fingerprint,
        notes=tuple(notes),
    )


def write_training_data(data: TrainingData, folder: Path) -> None:
    """Write lessons so that `read_training_data` gives them back, mapped and not copied."""
    arrays: dict[str, NDArray[Any]] = {f"input{i}": array for i, array in enumerate(data.inputs)}
    arrays |= {"train": data.train, "validation": data.validation}
    optional = {"labels": data.labels, "groups": data.groups, "class_weights": data.class_weights}
    arrays |= {name: array for name, array in optional.items() if array is not None and array.dtype != object}
    about = _DataMetadata(data.task, data.format, len(data.inputs), data.fingerprint, data.notes)
    write_arrays(folder, arrays, msgspec.json.encode(about))


def read_training_data(folder: Path) -> TrainingData:
    """Return what `write_training_data` wrote.

    Raises:
        OutputError: It was not written whole, or has gone.
    """
    arrays, text = read_arrays(folder)
    about = msgspec.json.decode(text, type=_DataMetadata)
    return TrainingData(
        inputs=tuple(arrays[f"input{i}"] for i in range(about.inputs)),
        labels=arrays.get("labels"),
        task=about.task,
        groups=arrays.get("groups"),
        train=arrays["train"],
        validation=arrays["validation"],
        format=about.form,
        class_weights=arrays.get("class_weights"),
        fingerprint=about.fingerprint,
        notes=about.notes,
    )


def _without_single_batch(name: str, array: NDArray[Any]) -> NDArray[Any]:
    if array.ndim < 2 or array.shape[1] != 1:
        raise CandidateError(
            f"input {name!r} takes samples of shape {list(array.shape[1:])}, whose first axis is no batch of one",
            remedy="Export the model with a batch axis; without one it can be compressed, not trained.",
        )
    return array[:, 0]


def _validation_rows(dataset: Dataset, labels: NDArray[Any] | None, rng: np.random.Generator) -> NDArray[np.intp]:
    share, least, most = _VALIDATION
    count = len(dataset)
    wanted = min(max(round(share * count), min(least, count // 5)), most)
    if dataset.groups is not None and len(np.unique(dataset.groups)) > 1:
        return _whole_groups(dataset.groups, wanted, rng)
    order = rng.permutation(count)
    if labels is not None and dataset.task == "classification":
        order = order[np.argsort(labels[order], kind="stable")]
    places = (np.arange(wanted) + rng.random()) * count / wanted
    return np.sort(order[places.astype(np.intp)]).astype(np.intp)


def _whole_groups(groups: NDArray[Any], wanted: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Return the rows of enough groups for `wanted` rows, at most half of the groups."""
    names, members = np.unique(groups, return_inverse=True)
    order = rng.permutation(len(names))
    reached = np.cumsum(np.bincount(members)[order])
    most = max(1, len(names) // 2)
    taken = min(most, int(np.searchsorted(reached, wanted)) + 1)
    return np.flatnonzero(np.isin(members, order[:taken])).astype(np.intp)


def _class_weights(labels: NDArray[Any]) -> NDArray[np.float32] | None:
    counts = np.bincount(labels)
    present = counts[counts > 0]
    if present.max() <= _UNBALANCED * present.min():
        return None
    weights = np.sqrt(len(labels) / np.maximum(counts, 1))
    weights /= weights[labels].mean()
    return np.where(counts > 0, weights, 1.0).astype(np.float32)
