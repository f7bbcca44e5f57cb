"""What kind of signal a sample is, and which of its axes mean what: found out from its shape."""

from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

__all__ = ["Modality", "SampleFormat", "detect_sample_format"]

Modality = Literal["image", "spectrogram", "series", "table", "other"]

_LONG = 512  # a vector this long is a waveform, not a table's row


class SampleFormat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Kind and axes of a batch.

    Attributes:
        kind: Of the first input.
        axes: Counted with the batch axis as 0: height and width of an image, time and frequency of a
            spectrogram, time of a series; none otherwise.
    """

    kind: Modality
    axes: tuple[int, ...] = ()


def detect_sample_format(samples: NDArray[Any], kind: Modality | None = None) -> SampleFormat:
    """Find out the form of samples.

    Three axes with 1, 3 or 4 channels first or last are an image, or a spectrogram if there is one channel and
    height differs from width or values are mostly below -2, as logarithms of power are. Two axes are an image
    if they are equal, else a spectrogram if both are at least 20 long, else a series. The longer axis is time.

    Args:
        samples: [n, ...], the first input.
        kind: Known better by somebody.

    >>> detect_sample_format(np.zeros((5, 3, 32, 32), np.float32))
    SampleFormat(kind='image', axes=(2, 3))
    >>> detect_sample_format(np.zeros((5, 128, 6), np.float32))
    SampleFormat(kind='series', axes=(1,))
    >>> detect_sample_format(np.zeros((5, 1, 10, 49), np.float32))
    SampleFormat(kind='spectrogram', axes=(3, 2))
    """
    shape = samples.shape[1:]
    if samples.dtype.kind != "f" or kind == "other":
        return SampleFormat("other")
    if len(shape) == 3:
        channel = next((place for place in (0, 2) if shape[place] in (1, 3, 4)), None)
        if channel is None:
            return SampleFormat("other")
        plane = tuple(axis for axis in (1, 2, 3) if axis != channel + 1)
        return _plane_form(samples, plane, shape[channel] == 1, kind)
    if len(shape) == 2 and kind != "series":
        square = shape[0] == shape[1]
        if kind is not None or square or min(shape) >= 20:
            return _plane_form(samples, (1, 2), True, kind)
    if len(shape) == 2:
        return SampleFormat("series", (1 if shape[0] >= shape[1] else 2,))
    if len(shape) == 1:
        is_series = kind == "series" or (kind is None and shape[0] >= _LONG)
        return SampleFormat("series", (1,)) if is_series else SampleFormat("table")
    return SampleFormat("other")


def _plane_form(
    samples: NDArray[Any], plane: tuple[int, ...], is_grey: bool, kind: Modality | None
) -> SampleFormat:
    height, width = (samples.shape[axis] for axis in plane)
    if kind is None:
        looks_log = is_grey and float(np.median(samples[:64])) < -2
        kind = "spectrogram" if looks_log or (is_grey and height != width) else "image"
    if kind == "image":
        return SampleFormat("image", plane)
    time_first = height >= width
    axes = plane if time_first else plane[::-1]
    return SampleFormat("series", axes[:1]) if kind == "series" else SampleFormat("spectrogram", axes)
