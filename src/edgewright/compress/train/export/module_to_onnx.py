"""A PyTorch module as the model to compress: exported once, with inputs taken from the data."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from edgewright.compress.data.sources.arrays import assign_arrays, read_npz
from edgewright.compress.data.sources.function import call_data_function, is_function_reference
from edgewright.compress.data.sources.table import read_data_table
from edgewright.compress.train.export.module_factory import load_module
from edgewright.compress.train.export.pytorch import export_torch_module
from edgewright.contract.errors import InputError
from edgewright.contract.model.preprocess import Preprocess

__all__ = ["export_module"]

_EXAMPLES = 8


def export_module(
    module: nn.Module | str,
    data: str,
    path: Path,
    *,
    label: str | None = None,
    features: Sequence[str] = (),
    group: str | None = None,
    preprocess: Preprocess | None = None,
) -> Path:
    """Write a module as ONNX.

    Args:
        module: Itself, or `module:function` that makes it.
        data: Whose samples show what its inputs look like; a path, or `module:function`.
        path: Of the ONNX file.
        label: See `load_data`.
        features: See `load_data`.
        group: See `load_data`.
        preprocess: See `load_data`.

    Raises:
        InputError: There is no such module, or the data does not show what its inputs look like.
        ModelError: It has no ONNX form; the message names the operation.
    """
    made = load_module(module) if isinstance(module, str) else module
    arrays = _examples(data, list(inspect.signature(made.forward).parameters), label, features, group)
    if preprocess is not None:
        first = next(iter(arrays))
        arrays[first] = preprocess.apply(arrays[first])
    was_training = made.training
    try:
        try:
            export_torch_module(made, {name: _as_given(array) for name, array in arrays.items()}, path)
        except InputError:
            # Integers may stand for values, such as pixels, where the module wants floats.
            if all(array.dtype.kind == "f" for array in arrays.values()):
                raise
            export_torch_module(made, {name: array.astype(np.float32) for name, array in arrays.items()}, path)
    finally:
        made.train(was_training)
    return path


def _examples(
    data: str, names: list[str], label: str | None, features: Sequence[str], group: str | None
) -> dict[str, NDArray[Any]]:
    source = Path(data)
    if is_function_reference(data) and not source.exists():
        raw = assign_arrays(call_data_function(data), names, data, label=label, features=features, group=group)
    elif source.suffix == ".npz" and source.is_file():
        raw = assign_arrays(read_npz(source), names, data, label=label, features=features, group=group)
    elif source.suffix in (".csv", ".parquet") and source.is_file():
        raw = read_data_table(source, names[0], label=label, features=features, group=group)
    else:
        raise InputError(
            f"{data} does not show what the module's inputs look like",
            remedy="Give an .npz file, a table or module:function, or export the module to ONNX yourself.",
        )
    return {name: array[:_EXAMPLES] for name, array in raw.arrays.items()}


def _as_given(array: NDArray[Any]) -> NDArray[Any]:
    return array.astype(np.int64 if array.dtype.kind in "iu" else np.float32)
