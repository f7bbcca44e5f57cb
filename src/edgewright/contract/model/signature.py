"""What goes into a model and what comes out: names, dtypes, shapes, ranges."""

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgewright.contract.errors import DataError

__all__ = ["ModelSignature", "TensorSpec"]


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One tensor.

    Attributes:
        name: As in the model.
        dtype: numpy's name, e.g. "float32".
        shape: Sizes; a name stands for a symbolic axis.
        low: Least value that the model was shown, None if unknown.
        high: Greatest value that the model was shown.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    low: float | None = None
    high: float | None = None

    @property
    def has_free_batch_axis(self) -> bool:
        """Whether the first axis is symbolic."""
        return bool(self.shape) and isinstance(self.shape[0], str)

    def check(self, array: NDArray[Any]) -> None:
        """Refuse an array that the model cannot take.

        Raises:
            DataError: Wrong dtype, rank, size, a non-finite value, or a value out of range.

        >>> TensorSpec("x", "float32", ("batch", 2)).check(np.zeros((5, 2), np.float32))
        """
        shown = f"[{', '.join(map(str, self.shape))}]"
        if array.dtype != np.dtype(self.dtype):
            raise DataError(
                f"input {self.name!r} has dtype {array.dtype}, the model takes {self.dtype}",
                remedy=f"Convert it with astype({self.dtype!r}).",
            )
        if array.ndim != len(self.shape) or any(
            isinstance(want, int) and want != have for want, have in zip(self.shape, array.shape, strict=False)
        ):
            raise DataError(
                f"input {self.name!r} has shape {list(array.shape)}, the model takes {shown}",
                remedy="Bring the data into the model's layout.",
            )
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            raise DataError(f"input {self.name!r} holds NaN or infinity", remedy="Remove or mend those samples.")
        if array.size and (
            (self.low is not None and array.min() < self.low) or (self.high is not None and array.max() > self.high)
        ):
            raise DataError(
                f"input {self.name!r} ranges from {array.min():g} to {array.max():g}, "
                f"the contract allows {self.low:g} to {self.high:g}",
                remedy="Check the scaling, or widen the range in the contract.",
            )


class ModelSignature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The tensors of a model, in the model's order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def has_free_batch_axis(self) -> bool:
        """Whether every input's first axis is symbolic, so that many samples can go at once."""
        return all(spec.has_free_batch_axis for spec in self.inputs)

    def check_inputs(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        """Refuse a feed that the model cannot take.

        Raises:
            DataError: An input is missing or unknown, or one does not fit its specification.
        """
        names = {spec.name for spec in self.inputs}
        if set(inputs) != names:
            raise DataError(
                f"the feed holds {sorted(inputs)}, the model takes {sorted(names)}",
                remedy="Name the arrays as the model's inputs.",
            )
        for spec in self.inputs:
            spec.check(inputs[spec.name])
