"""How raw samples become a model's input: the same record describes it to people, to numpy and to the graph."""

import math
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgewright.contract.errors import DataError, ProjectError

__all__ = ["Preprocess"]


class Preprocess(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The steps from a sensor's sample to the model's first input, in this order.

    Resize (images only, by the data source), reverse the channels, `(x * scale - mean) / std`, move the channels.
    The steps are float32 arithmetic. Channels are the last axis of a raw sample.

    Attributes:
        dtype: Type of the raw samples.
        scale: Factor on each value.
        mean: Subtracted after scaling: none, one for all channels, or one per channel in the model's order.
        std: Divisor after the subtraction, given like `mean`.
        layout: "NCHW" moves the channels to the front of the sample; "NHWC" and None leave them last.
        colour: Order of the channels that the model takes; raw samples are RGB.
        size: Height and width in pixels to which images are resized.
    """

    dtype: Literal["uint8", "int16", "float32"] = "uint8"
    scale: float = 1.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    layout: Literal["NHWC", "NCHW"] | None = None
    colour: Literal["RGB", "BGR"] = "RGB"
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        """Refuse steps that lose every value."""
        if not math.isfinite(self.scale) or self.scale == 0:
            raise ProjectError(
                f"preprocess scale is {self.scale}, it must be finite and not zero",
                remedy="Write 0.00392156862745098 (1/255) for pixels that become 0 to 1.",
            )
        if not all(math.isfinite(value) for value in (*self.mean, *self.std)) or 0 in self.std:
            raise ProjectError(
                f"preprocess mean {list(self.mean)} and std {list(self.std)} must be finite, std not zero",
                remedy="Give one value, or one per channel.",
            )
        if self.size is not None and not all(1 <= edge <= 16384 for edge in self.size):
            raise ProjectError(
                f"preprocess size is {list(self.size)}, height and width must be 1 to 16384",
                remedy="Give the pixels that the model takes, such as [224, 224].",
            )

    def apply(self, array: NDArray[Any]) -> NDArray[np.float32]:
        """Turn raw samples into the model's input.

        Args:
            array: Shape [n, ..., channels], of this record's dtype.

        Returns:
            Shape [n, ..., channels], or [n, channels, ...] for the layout "NCHW".

        Raises:
            DataError: Another dtype, or a number of channels that differs from mean's or std's.

        >>> Preprocess(scale=0.5, mean=(1.0,)).apply(np.array([[2, 4]], np.uint8))
        array([[0., 1.]], dtype=float32)
        """
        if array.dtype != np.dtype(self.dtype):
            raise DataError(
                f"samples are {array.dtype}, [preprocess] declares {self.dtype}",
                remedy=f'Write dtype = "{array.dtype}" if that is right, or convert the data.',
            )
        channels = array.shape[-1] if array.ndim > 1 else 1
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (0, 1, channels):
                raise DataError(
                    f"[preprocess] {name} has {len(values)} values, samples of shape {list(array.shape[1:])} "
                    f"have {channels} channels",
                    remedy="Give one value, or one per channel; channels are the last axis of a raw sample.",
                )
        result: NDArray[np.float32] = array.astype(np.float32)
        if self.colour == "BGR":
            result = result[..., ::-1]
        if self.scale != 1:
            result = result * np.float32(self.scale)
        if self.mean:
            result = np.subtract(result, np.array(self.mean, np.float32))
        if self.std:
            result = np.divide(result, np.array(self.std, np.float32))
        if self.layout == "NCHW":
            result = np.moveaxis(result, -1, 1)
        return np.ascontiguousarray(result)
