"""The first nodes of a drafted network: samples of any layout become maps [c, h, w] or series [c, 1, t]."""

import math

from edgewright.compress.train.data.modality import SampleFormat
from edgewright.compress.train.nas.blocks import NetworkSketch, TensorFlow
from edgewright.contract.errors import CandidateError

__all__ = ["channel_axis", "time_axis", "to_map", "to_series"]


def channel_axis(shape: tuple[int, ...]) -> int:
    """Guess which axis of a three-dimensional sample holds channels: the smaller of first and last.

    >>> channel_axis((3, 32, 32)), channel_axis((49, 10, 1))
    (0, 2)
    """
    return 2 if shape[2] < shape[0] else 0


def time_axis(shape: tuple[int, ...]) -> int:
    """Guess which axis of a sample is time: the longest, of equal ones the first.

    >>> time_axis((49, 10, 1)), time_axis((6, 100)), time_axis((16000,))
    (0, 1, 0)
    """
    return shape.index(max(shape))


def to_map(s: NetworkSketch, flow: TensorFlow, form: SampleFormat | None = None) -> TensorFlow:
    """Return the sample as [c, h, w]; one of two axes is a map of one channel.

    Raises:
        CandidateError: The sample has one axis only.
    """
    shape = flow.shape
    if len(shape) == 1:
        raise CandidateError(
            f"no image is in samples of shape {list(shape)}", remedy="Choose a family over time, or an mlp."
        )
    if len(shape) == 2:
        return s.reshape("entrance", flow, (1, *shape))
    axis = channel_axis(shape)
    if form is not None and len(form.axes) == 2:
        axis = next(i for i in range(3) if i + 1 not in form.axes)
    sides = [size for i, size in enumerate(shape) if i != axis]
    if shape[axis] == 1 or axis == 0:
        return s.reshape("entrance", flow, (shape[axis], *sides))
    order = [axis, *(i for i in range(3) if i != axis)]
    return s.node("Transpose", "entrance", [flow.name], (shape[axis], *sides), perm=[0, *(i + 1 for i in order)])


def to_series(s: NetworkSketch, flow: TensorFlow, form: SampleFormat | None = None) -> TensorFlow:
    """Return the sample as [c, 1, t]; all axes but time become channels."""
    shape = flow.shape
    axis = form.axes[0] - 1 if form is not None and form.axes else time_axis(shape)
    steps = shape[axis]
    channels = math.prod(shape) // steps
    if len(shape) == 3 and axis == 1:
        a, t, b = shape
        flow = s.node("Transpose", "entrance/order", [flow.name], (a, b, t), perm=[0, 1, 3, 2])
    elif axis == 0 and channels > 1:  # the layout that integer convolutions want: the transposition vanishes
        flow = s.reshape("entrance/map", flow, (1, steps, channels))
        return s.node("Transpose", "entrance", [flow.name], (channels, 1, steps), perm=[0, 3, 1, 2])
    return s.reshape("entrance", flow, (channels, 1, steps))
