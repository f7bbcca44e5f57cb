"""Data as people have it, brought into the form that a model takes.

A source is an `.npz` file, a folder of images, a CSV or Parquet table, or the user's own `module:function`.
Whatever is found out or assumed on the way is kept in the dataset's notes.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgewright.compress.data.alignment import align_arrays
from edgewright.compress.data.dataset import Dataset, TaskKind, dataset_digest
from edgewright.compress.data.labels import read_labels
from edgewright.compress.data.preprocess_detection import detect_preprocessing
from edgewright.compress.data.sources.arrays import assign_arrays, read_npz
from edgewright.compress.data.sources.function import call_data_function, is_function_reference
from edgewright.compress.data.sources.images import infer_image_format, read_images
from edgewright.compress.data.sources.raw import RawData
from edgewright.compress.data.sources.table import read_data_table
from edgewright.compress.data.splits import Splits, split_dataset
from edgewright.contract.errors import DataError
from edgewright.contract.model.preprocess import Preprocess
from edgewright.contract.model.signature import ModelSignature

__all__ = ["Dataset", "Splits", "TaskKind", "load_data", "split_dataset"]


def load_data(
    source: str,
    contract: ModelSignature,
    *,
    label: str | None = None,
    features: Sequence[str] = (),
    group: str | None = None,
    task: TaskKind | None = None,
    preprocess: Preprocess | None = None,
    model: Path | None = None,
    seed: int = 0,
) -> Dataset:
    """Read samples and check that the model can take every one of them.

    Args:
        source: A path, or `module:function`.
        contract: Of the model that the data is for.
        label: Column or array that holds the labels; without it `y` is, if present.
        features: Columns of a table, or arrays in the order of the model's inputs.
        group: Column or array that holds the group of each sample.
        task: What the labels mean; without it, it is found out from labels and outputs.
        preprocess: How raw samples become the first input; for images it is found out if not stated.
        model: The model file, by whose accuracy the preprocessing of images is found out.
        seed: Of the split whose calibrate part is used for that.

    Raises:
        DataError: The source cannot be read, or its data does not fit the model or the task.
    """
    first = contract.inputs[0]
    raw = _read(source, contract, label=label, features=features, group=group, preprocess=preprocess)
    notes = list(raw.notes)
    if raw.is_images and preprocess is None:
        preprocess, found = detect_preprocessing(raw.arrays[first.name], raw.labels, contract, model, seed)
        notes += found
    elif raw.is_images and preprocess is not None and infer_image_format(first).channels_first:
        preprocess = msgspec.structs.replace(preprocess, layout="NCHW")
    arrays = dict(raw.arrays)
    if preprocess is not None:
        arrays[first.name] = preprocess.apply(arrays[first.name])
    inputs, converted = align_arrays(arrays, contract)
    samples = len(inputs[first.name])
    labels, found_task, judged = read_labels(raw.labels, samples, contract, task)
    groups = None if raw.groups is None else _group_ids(raw.groups, samples)
    return Dataset(
        inputs,
        labels,
        groups,
        found_task,
        fingerprint=dataset_digest(inputs, labels, groups, found_task),
        notes=(*notes, *converted, *judged),
        preprocess=preprocess,
    )


def _read(
    source: str,
    contract: ModelSignature,
    *,
    label: str | None,
    features: Sequence[str],
    group: str | None,
    preprocess: Preprocess | None,
) -> RawData:
    names = [spec.name for spec in contract.inputs]
    path = Path(source)
    if is_function_reference(source) and not path.exists():
        arrays = call_data_function(source)
        return assign_arrays(arrays, names, source, label=label, features=features, group=group)
    if not path.exists():
        raise DataError(f"{source} does not exist", remedy="Give a path, or module:function.")
    if path.is_file() and path.suffix == ".npz":
        return assign_arrays(read_npz(path), names, source, label=label, features=features, group=group)
    if not path.is_dir() and path.suffix not in (".csv", ".parquet"):
        raise DataError(
            f"{source} is of no known kind",
            remedy="Give an .npz, .csv or .parquet file, a folder of images, or module:function.",
        )
    if len(names) > 1:
        raise DataError(
            f"the model has {len(names)} inputs ({', '.join(names)}), {source} gives only one",
            remedy="Give an .npz file with one array per input.",
        )
    if path.is_file():
        return _reshape_table_rows(
            read_data_table(path, names[0], label=label, features=features, group=group), contract
        )
    if label is not None or group is not None or features:
        raise DataError(
            "a folder of images has no columns for label, group or features",
            remedy="Leave them out, or give an .npz file, whose arrays can be named.",
        )
    size = None if preprocess is None else preprocess.size
    return read_images(path, names[0], infer_image_format(contract.inputs[0]), size)


def _reshape_table_rows(raw: RawData, contract: ModelSignature) -> RawData:
    """Give table rows the shape of a sample where their number of columns is exactly its size."""
    spec = contract.inputs[0]
    array = raw.arrays[spec.name]
    item = [size for size in spec.shape[1:] if isinstance(size, int)]
    if len(item) != len(spec.shape) - 1 or len(item) < 2 or np.prod(item) != array.shape[1]:
        return raw
    note = f"{array.shape[1]} feature columns were read as samples of shape {item}, row by row"
    return replace(raw, arrays={spec.name: array.reshape(len(array), *item)}, notes=(*raw.notes, note))


def _group_ids(groups: NDArray[Any], samples: int) -> NDArray[Any]:
    if groups.shape not in ((samples,), (samples, 1)):
        raise DataError(
            f"the data holds {samples} samples, groups have shape {list(groups.shape)}",
            remedy="Give one group per sample.",
        )
    if groups.dtype.kind == "f" and not np.isfinite(groups).all():
        raise DataError("some groups are missing (NaN)", remedy="Remove those samples, or name their group.")
    return groups.reshape(samples)
