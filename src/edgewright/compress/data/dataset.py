"""Samples in the model's own form, their labels and their groups."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewright.contract.config.sections import TaskKind
from edgewright.contract.model.preprocess import Preprocess
from edgewright.contract.model.signature import ModelSignature

__all__ = ["Dataset", "TaskKind", "dataset_digest", "row_digests"]


@dataclass(frozen=True, slots=True)
class Dataset:
    """Samples that fit a model's contract.

    Attributes:
        inputs: Per input name an array [n, *shape of one inference's tensor], so that `array[i]` is what the model
            takes: a model with the input ["batch", 3] has [n, 1, 3] here. An input that all samples share is a
            view that repeats it.
        labels: [n] class ids (int64), [n, k] of 0 and 1 for multilabel (int64), [n, ...] floats for regression
            (float64); None if unlabelled.
        groups: [n] group of each sample (subject, speaker), None if samples are independent.
        task: What the labels mean.
        fingerprint: sha256 over inputs, labels, groups and task.
        notes: What was found out or assumed, in sentences for people.
        preprocess: What was applied to the raw samples of the first input, None if nothing.
    """

    inputs: Mapping[str, NDArray[Any]]
    labels: NDArray[Any] | None
    groups: NDArray[Any] | None
    task: TaskKind
    fingerprint: str
    notes: tuple[str, ...] = ()
    preprocess: Preprocess | None = None

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(next(iter(self.inputs.values())))

    def inputs_of(self, i: int) -> dict[str, NDArray[Any]]:
        """Return the inputs of one inference."""
        return {name: np.asarray(array[i], order="C") for name, array in self.inputs.items()}

    def batches(
        self, indices: Sequence[int] | NDArray[np.intp], contract: ModelSignature, batch: int = 64
    ) -> Iterator[dict[str, NDArray[Any]]]:
        """Yield inputs in the order of `indices`: up to `batch` samples at once where the model allows it."""
        batchable = contract.has_free_batch_axis and all(
            array.ndim > 1 and array.shape[1] == 1 for array in self.inputs.values()
        )
        step = max(1, batch) if batchable else 1
        for start in range(0, len(indices), step):
            if step == 1:
                yield self.inputs_of(int(indices[start]))
            else:
                chosen = np.asarray(indices[start : start + step])
                yield {name: np.ascontiguousarray(array[chosen, 0]) for name, array in self.inputs.items()}

    def subset(self, indices: Sequence[int] | NDArray[np.intp]) -> "Dataset":
        """Return the samples at `indices`, in that order, with a fingerprint of their own."""
        chosen = np.asarray(indices, np.intp)
        inputs = {name: array[chosen] for name, array in self.inputs.items()}
        labels = None if self.labels is None else self.labels[chosen]
        groups = None if self.groups is None else self.groups[chosen]
        fingerprint = dataset_digest(inputs, labels, groups, self.task)
        return replace(self, inputs=inputs, labels=labels, groups=groups, fingerprint=fingerprint)


def dataset_digest(
    inputs: Mapping[str, NDArray[Any]], labels: NDArray[Any] | None, groups: NDArray[Any] | None, task: TaskKind
) -> str:
    """Return the sha256 of everything that an evaluation depends on, hex."""
    digest = hashlib.sha256(task.encode())
    for name, array in (*sorted(inputs.items()), ("\0labels", labels), ("\0groups", groups)):
        if array is None:
            continue
        digest.update(f"\0{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        for start in range(0, len(array), 1024):  # in pieces: an array may be a view that repeats one sample
            digest.update(np.ascontiguousarray(array[start : start + 1024]).data)
    return digest.hexdigest()


def row_digests(inputs: Mapping[str, NDArray[Any]]) -> list[bytes]:
    """Return one digest per sample over all inputs; equal samples have equal digests."""
    arrays = [array for _, array in sorted(inputs.items()) if array.strides[0] != 0]
    count = len(next(iter(inputs.values())))
    if not arrays:
        return [b""] * count
    digests = []
    for i in range(count):
        digest = hashlib.blake2b(digest_size=16)
        for array in arrays:
            digest.update(np.ascontiguousarray(array[i]).data)
        digests.append(digest.digest())
    return digests
