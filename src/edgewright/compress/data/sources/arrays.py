"""Named arrays: an .npz file, or what the user's own function returns.

Inputs are arrays named as the model's inputs, or `x` for a model with one input, or those that `features` names
in the order of the model's inputs. Labels are `y`, or what `label` names. Groups are what `group` names.
"""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewright.compress.data.sources.raw import RawData
from edgewright.contract.errors import DataError

__all__ = ["MAX_DATA_BYTES", "assign_arrays", "read_npz"]

MAX_DATA_BYTES = 8 * 2**30


def read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """Read every array of an .npz file; nothing in it is executed.

    Raises:
        DataError: Not an .npz file, damaged, empty, too large, or with pickled objects.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            total = sum(member.file_size for member in archive.infolist())
        if total > MAX_DATA_BYTES:
            raise DataError(
                f"{path} unpacks to {total} bytes, the limit is {MAX_DATA_BYTES}",
                remedy="Take a random subset of the samples.",
            )
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: _member(file, name, path) for name in file.files}
    except (zipfile.BadZipFile, EOFError) as error:
        raise DataError(
            f"{path} is truncated or not an .npz file", remedy="Write it with numpy.savez_compressed."
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}", remedy="Check the path and its permissions.") from error
    if not arrays:
        raise DataError(
            f"{path} holds no arrays", remedy="Write it with numpy.savez_compressed(path, x=..., y=...)."
        )
    return arrays


def _member(file: Any, name: str, path: Path) -> NDArray[Any]:
    try:
        array = file[name]
    except (ValueError, zipfile.BadZipFile, EOFError, MemoryError) as error:
        pickled = "pickle" in str(error).lower()
        raise DataError(
            f"array {name!r} of {path} " + ("holds Python objects" if pickled else f"is damaged: {error}"),
            remedy="Save plain numbers, bools or strings: objects are never unpickled."
            if pickled
            else "Write the file again with numpy.savez_compressed.",
        ) from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{name!r} of {path} is not an array", remedy="Write it with numpy.savez_compressed.")
    return array


def assign_arrays(
    arrays: Mapping[str, NDArray[Any]],
    inputs: Sequence[str],
    place: str,
    *,
    label: str | None = None,
    features: Sequence[str] = (),
    group: str | None = None,
) -> RawData:
    """Tell inputs, labels and groups apart.

    Raises:
        DataError: An array is missing; the message lists those present.
    """
    present = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
    for role, name in (("label", label), ("group", group), *(("features", name) for name in features)):
        if name is not None and name not in arrays:
            raise DataError(f"{place} holds no array {name!r} ({role})", remedy=f"It holds: {present}.")
    if features and len(features) != len(inputs):
        raise DataError(
            f"{len(features)} arrays are named as features, the model has the inputs {', '.join(inputs)}",
            remedy="Name one array per input, in the model's order.",
        )
    if features:
        sources = dict(zip(inputs, features, strict=True))
    elif all(name in arrays for name in inputs):
        sources = {name: name for name in inputs}
    elif len(inputs) == 1 and "x" in arrays:
        sources = {inputs[0]: "x"}
    else:
        missing = [name for name in inputs if name not in arrays]
        either = "'x' or " if len(inputs) == 1 else ""
        raise DataError(
            f"{place} holds no array {either}{', '.join(map(repr, missing))}",
            remedy=f"Name the arrays as the model's inputs. It holds: {present}.",
        )
    if label is None and "y" in arrays and "y" not in sources.values() and group != "y":
        label = "y"
    unused = sorted(set(arrays) - {*sources.values(), label, group})
    return RawData(
        arrays={name: arrays[source] for name, source in sources.items()},
        labels=None if label is None else arrays[label],
        groups=None if group is None else arrays[group],
        notes=(f"unused arrays of {place}: {', '.join(unused)}",) if unused else (),
    )
