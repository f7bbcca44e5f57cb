"""Weights as small integers: the step per channel, the rounding, and how good it is.

Integers are symmetric, from -peak to +peak. A `peak` of 127 is the customary 8 bit; others fill what
`pack.py` can store without waste; above 127 they are for storage only, no kernel computes on them.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["QuantizedWeights", "channel_scales", "quantize_weights"]


@dataclass(frozen=True, slots=True)
class QuantizedWeights:
    """A weight tensor as integers times a step per channel.

    Attributes:
        integers: Shape of the weight, from -peak to peak; int8, or int16 for a peak above 127.
        scales: Shape of the weight with size 1 on every axis that shares a step; weight units, never zero.
    """

    integers: NDArray[Any]
    scales: NDArray[np.float32]

    def dequantize(self) -> NDArray[np.float32]:
        """Return the weights that the integers stand for."""
        return (self.integers.astype(np.float32) * self.scales).astype(np.float32)


def channel_scales(weights: NDArray[np.float32], axes: tuple[int, ...], max_integer: int) -> NDArray[np.float32]:
    """Return the step that maps each channel onto the integers, exact for the largest weight.

    Args:
        weights: Any shape, in weight units.
        axes: Axes that have a step of their own; none for one step for all.
        max_integer: Largest integer, 1 to 32767.

    Returns:
        Shape of `weights` with 1 on the other axes, never zero.

    Raises:
        ValueError: A weight is NaN or infinite.

    Source: symmetric quantizer, Krishnamoorthi 2018, arXiv:1806.08342.
    """
    if not np.isfinite(weights).all():
        raise ValueError("weights hold NaN or infinity")
    shared = tuple(axis for axis in range(weights.ndim) if axis not in axes)
    largest = np.abs(weights).max(axis=shared, keepdims=True) if weights.size else np.ones([1] * weights.ndim)
    # A dead channel has no range; step 1 keeps its zeros exact.
    steps = np.maximum((largest / max_integer).astype(np.float32), np.finfo(np.float32).tiny)
    return np.where(largest > 0, steps, 1).astype(np.float32)


def quantize_weights(
    weights: NDArray[np.float32],
    axes: tuple[int, ...],
    max_integer: int,
    *,
    importance: NDArray[np.float64] | None = None,
) -> QuantizedWeights:
    """Round weights to integers; with few integers the step is chosen for the least squared error.

    Args:
        weights: Any shape.
        axes: Axes that have a step of their own.
        max_integer: Largest integer, 1 to 32767.
        importance: How much an error at each weight matters (broadcastable), e.g. the mean square of what
            the weight is multiplied with.
    """
    steps = channel_scales(weights, axes, max_integer)
    kind = np.int8 if max_integer <= 127 else np.int16
    if max_integer >= 100:
        return QuantizedWeights(np.clip(np.round(weights / steps), -max_integer, max_integer).astype(kind), steps)
    shared = tuple(axis for axis in range(weights.ndim) if axis not in axes)
    matter = np.float64(1) if importance is None else importance
    best_loss = np.full(steps.shape, np.inf)
    best_steps = steps
    for shrink in np.linspace(1.0, 0.55 if max_integer < 16 else 0.8, 19):
        tried = (steps * shrink).astype(np.float32)
        kept = np.clip(np.round(weights / tried), -max_integer, max_integer) * tried
        loss = np.sum(matter * (kept - weights).astype(np.float64) ** 2, axis=shared, keepdims=True)
        better = loss < best_loss
        best_loss = np.where(better, loss, best_loss)
        best_steps = np.where(better, tried, best_steps).astype(np.float32)
    return QuantizedWeights(
        np.clip(np.round(weights / best_steps), -max_integer, max_integer).astype(kind), best_steps
    )
