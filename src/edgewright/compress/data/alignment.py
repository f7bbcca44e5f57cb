"""Arrays held against a model's inputs: which axis counts samples, which dtype, and is every value possible?"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewright.contract.errors import DataError
from edgewright.contract.model.signature import ModelSignature, TensorSpec

__all__ = ["align_arrays"]


def align_arrays(
    arrays: Mapping[str, NDArray[Any]], contract: ModelSignature
) -> tuple[dict[str, NDArray[Any]], tuple[str, ...]]:
    """Bring arrays into the form of `Dataset.inputs`, and say what was converted.

    For an input of rank r, an array of rank

    - r + 1 holds one whole tensor per sample;
    - r with samples along the batch axis (free, or fixed at 1) holds one item per sample;
    - r, of exactly the input's shape where that has no batch axis, is shared by all samples;
    - r - 1 lacks an axis of size 1, such as the channel of grey images, which is put in.

    Raises:
        DataError: Wrong shape or dtype, different numbers of samples, NaN or infinity.
    """
    notes: list[str] = []
    own: dict[str, NDArray[Any]] = {}
    shared: dict[str, NDArray[Any]] = {}
    for spec in contract.inputs:
        array = _cast(arrays[spec.name], spec, notes)
        whole = _per_sample(array, spec, notes)
        if whole is None:
            shared[spec.name] = array
        else:
            own[spec.name] = whole
    counts = {name: len(array) for name, array in own.items()}
    if not counts:
        raise DataError("no input has an axis that counts samples", remedy="Give arrays with samples along axis 0.")
    if len(set(counts.values())) > 1:
        raise DataError(
            "the inputs hold different numbers of samples: " + ", ".join(f"{n} {c}" for n, c in counts.items()),
            remedy="Give every input as many samples.",
        )
    count = next(iter(counts.values()))
    if count == 0:
        raise DataError("the data holds no samples", remedy="Give at least ten samples.")
    for name, array in shared.items():
        own[name] = np.broadcast_to(array, (count, *array.shape))
        notes.append(f"all samples share one {name!r} of shape {list(array.shape)}")
    inputs = {spec.name: own[spec.name] for spec in contract.inputs}
    _check_symbols(inputs, contract)
    return inputs, tuple(notes)


def _per_sample(array: NDArray[Any], spec: TensorSpec, notes: list[str]) -> NDArray[Any] | None:
    """Return [n, *shape of one inference's tensor], or None for an array that all samples share."""
    rank = len(spec.shape)
    has_batch_axis = rank > 0 and (spec.has_free_batch_axis or spec.shape[0] == 1)
    if array.ndim == rank + 1 and _fits(array.shape[1:], spec.shape):
        return array
    if array.ndim == rank and has_batch_axis and _fits((1, *array.shape[1:]), spec.shape):
        return array[:, None]
    if array.ndim == rank and not has_batch_axis and _fits(array.shape, spec.shape):
        return None
    if has_batch_axis and array.ndim == rank - 1:
        for axis in range(1, rank):
            widened = np.expand_dims(array, axis)
            if spec.shape[axis] == 1 and _fits((1, *widened.shape[1:]), spec.shape):
                notes.append(f"{spec.name!r}: axis {axis} of size 1 was put into shape {list(array.shape)}")
                return widened[:, None]
    item = spec.shape[1:] if has_batch_axis else spec.shape
    wanted = ", ".join(map(str, ("samples", *item)))
    raise DataError(
        f"input {spec.name!r} takes [{', '.join(map(str, spec.shape))}], the data has shape {list(array.shape)}",
        remedy=f"Bring it into the shape [{wanted}]; a layout can be declared in [preprocess].",
    )


def _fits(have: tuple[int, ...], want: tuple[int | str, ...]) -> bool:
    return len(have) == len(want) and all(isinstance(w, str) or h == w for h, w in zip(have, want, strict=True))


def _check_symbols(inputs: Mapping[str, NDArray[Any]], contract: ModelSignature) -> None:
    """Refuse inputs that give one symbolic axis different sizes."""
    sizes: dict[str, tuple[int, str]] = {}
    for spec in contract.inputs:
        for axis, have in zip(spec.shape, inputs[spec.name].shape[1:], strict=True):
            if isinstance(axis, str):
                before, name = sizes.setdefault(axis, (have, spec.name))
                if before != have:
                    raise DataError(
                        f"axis {axis!r} is {before} in input {name!r} and {have} in {spec.name!r}",
                        remedy="Axes of the same name must have the same size.",
                    )


def _cast(array: NDArray[Any], spec: TensorSpec, notes: list[str]) -> NDArray[Any]:
    """Convert without loss of meaning, or refuse."""
    target = np.dtype(spec.dtype)
    if array.dtype.kind not in "biuf":
        raise DataError(f"input {spec.name!r} takes {target}, the data is {array.dtype}", remedy="Give numbers.")
    if array.dtype.kind == "f":
        _check_finite(array, spec.name)
    if array.dtype == target:
        return array
    if target.kind == "f":
        with np.errstate(over="ignore"):
            result = array.astype(target)
        if not np.isfinite(result).all():
            raise DataError(
                f"input {spec.name!r} takes {target}, which cannot hold the data's {_range(array)}",
                remedy="Check the scaling.",
            )
        if array.dtype.kind in "iu" and array.dtype.itemsize == 1 and array.size:
            notes.append(
                f"{spec.name!r}: values {_range(array)} were passed unscaled; declare [preprocess] scale if the "
                "model was trained on scaled values"
            )
    else:
        if array.dtype.kind == "f" and (array != np.floor(array)).any():
            raise DataError(
                f"input {spec.name!r} takes {target}, the data holds {array.dtype} with fractions",
                remedy="Quantise the data with the model's scale and zero point first.",
            )
        low, high = (0, 1) if target.kind == "b" else (np.iinfo(target).min, np.iinfo(target).max)
        if array.size and (int(array.min()) < low or int(array.max()) > high):
            raise DataError(
                f"input {spec.name!r} takes {target} ({low} to {high}), the data ranges over {_range(array)}",
                remedy="Check the scaling, or declare [preprocess].",
            )
        result = array.astype(target)
    notes.append(f"{spec.name!r}: {array.dtype} was converted to {target}")
    return result


def _check_finite(array: NDArray[Any], name: str) -> None:
    finite = np.isfinite(array)
    if not finite.all():
        bad = np.flatnonzero(~finite.reshape(len(array), -1).all(axis=1)) if array.ndim else np.zeros(1, np.intp)
        raise DataError(
            f"input {name!r} holds NaN or infinity in {len(bad)} samples, the first is sample {int(bad[0])}",
            remedy="Remove or mend those samples.",
        )


def _range(array: NDArray[Any]) -> str:
    return f"{array.min():g}..{array.max():g}" if array.size else "nothing"
