"""One look at an input and at what the model made of it: range, summary statistics, confidence, latency.

`InferenceRing` keeps these of the latest inferences until somebody takes them, off the inference path. `_input_stats.c`
holds the same in C, at about 1 us an inference; where it was not compiled, numpy does it here, at about 40 us.
This file says what the numbers mean, and reference profiles are made with it.

An input is one sample: one channel after the other, or channels side by side at each position. Of more than 4,096
values eight evenly spread blocks are looked at, for everything but the range.
"""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "HAS_COMPILED_RING",
    "MAX_CHANNELS",
    "InferenceRing",
    "InputLayout",
    "NumpyRing",
    "all_within",
    "open_ring",
    "summarize_inputs",
    "summarize_scores",
]

try:
    from edgewright.stats import _input_stats  # type: ignore[attr-defined,unused-ignore]
except ImportError:  # no compiler was at hand
    _input_stats = None  # type: ignore[assignment,unused-ignore]

HAS_COMPILED_RING = _input_stats is not None
"""Whether the compiled form is there."""

_Floats = NDArray[np.float64]
MAX_CHANNELS = 16
"""That are looked at one by one."""

_MAX_VALUES_READ, _BLOCK_COUNT = 4096, 8
_INPUT_COLUMNS = ("min", "max", "mean", "std", "roughness")
_SCORE_COLUMNS = ("top1_score", "top2_score", "log_sum_exp", "class")


@dataclass(frozen=True, slots=True)
class InputLayout:
    """What a sample and its output look like.

    Attributes:
        values_per_sample: Of one sample.
        channels: Of it whose mean and spread are looked at one by one, 1 to 16; 1 looks at the whole only.
        channels_last: Whether channels lie side by side at each position, rather than one after the other.
        output_scores: Values of one sample's output that are scores of classes, 0 if it holds no such thing.
    """

    values_per_sample: int
    channels: int = 1
    channels_last: bool = False
    output_scores: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        if (
            self.values_per_sample < 1
            or not 1 <= self.channels <= MAX_CHANNELS
            or self.values_per_sample % self.channels
            or self.output_scores < 0
        ):
            raise ValueError(
                f"{self.channels} channels of {self.values_per_sample} values, {self.output_scores} outputs"
            )

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of a row's columns.

        `started_at` and `latency` in seconds; `min`, `max`, `mean`, `std` of the values; `roughness`: mean squared
        difference of neighbours over twice the variance within channels, 1 for white noise, near 0 for smooth
        signals (von Neumann's ratio, halved); `mean_K` and `std_K` by channel; of the scores `top1_score`,
        `top2_score` and the log of the sum of exponentials, `log_sum_exp`; the `class` with the greatest.
        """
        single = self.channels == 1
        each = () if single else tuple(f"{name}_{c}" for c in range(self.channels) for name in ("mean", "std"))
        return ("started_at", "latency", *_INPUT_COLUMNS, *each, *_SCORE_COLUMNS)


def summarize_inputs(samples: NDArray[Any], layout: InputLayout) -> _Floats:
    """Return the statistics of samples.

    Args:
        samples: Shape [samples, ...], with `layout.values_per_sample` values each.
        layout: Of a sample.

    Returns:
        Shape [samples, statistics]: the columns of `layout` between `latency` and `top1_score`.
    """
    flat = np.asarray(samples, np.float64).reshape(len(samples), layout.values_per_sample)
    shape = (len(flat), -1, layout.channels) if layout.channels_last else (len(flat), layout.channels, -1)
    split = flat.reshape(shape)
    blocks = _sampled_blocks(
        split if layout.channels_last else split.transpose(0, 2, 1), _MAX_VALUES_READ // layout.channels
    )
    means, spreads = blocks.mean(axis=(1, 2)), blocks.var(axis=(1, 2))
    mean = means.mean(axis=1)
    variance = (spreads + (means - mean[:, None]) ** 2).mean(axis=1)
    inner = spreads.mean(axis=1)
    steps = np.diff(blocks, axis=2)
    rough = (steps**2).mean(axis=(1, 2, 3)) if steps.size else np.zeros(len(flat))
    ratio = np.divide(rough, 2 * inner, out=np.zeros(len(flat)), where=inner > 0)
    whole = [blocks.min(axis=(1, 2, 3)), blocks.max(axis=(1, 2, 3)), mean, np.sqrt(variance), ratio]
    each = np.stack([means, np.sqrt(spreads)], axis=2).reshape(len(flat), -1)
    found: _Floats = np.concatenate(
        [np.stack(whole, axis=1), each] if layout.channels > 1 else [np.stack(whole, 1)], 1
    )
    return found


def _sampled_blocks(values: _Floats, budget: int) -> _Floats:
    """Return what is looked at of [samples, positions, channels]: [samples, blocks, positions, channels]."""
    positions = values.shape[1]
    if positions <= budget:
        return values[:, None]
    size = budget // _BLOCK_COUNT
    starts = [number * (positions - size) // (_BLOCK_COUNT - 1) for number in range(_BLOCK_COUNT)]
    return np.stack([values[:, start : start + size] for start in starts], axis=1)


def summarize_scores(scores: NDArray[Any]) -> _Floats:
    """Return the greatest and the second score, the log of the sum of exponentials, and the class, by sample.

    Args:
        scores: Shape [samples, classes].

    Returns:
        Shape [samples, 4].
    """
    values = np.asarray(scores, np.float64)
    order = np.sort(values, axis=1)
    greatest, second = order[:, -1], order[:, -2 if values.shape[1] > 1 else -1]
    total = greatest + np.log(np.exp(values - greatest[:, None]).sum(axis=1))
    return np.stack([greatest, second, total, values.argmax(axis=1)], axis=1)


class InferenceRing(Protocol):
    """The latest inferences, until they are taken. Calls come from any thread."""

    @property
    def columns(self) -> int:
        """Of a row."""

    @property
    def dropped(self) -> int:
        """Inferences that found no free row, since the beginning."""

    def record_input(self, array: Any, /) -> int:
        """Look at an input of at least one sample; the first one's statistics are taken.

        Returns:
            The slot to `record_output` or `discard`; -1 if the input is no float32, short, or perhaps out of range or
            not finite: then it takes a closer look.
        """

    def record_output(self, slot: int, output: Any, /) -> bool:
        """Look at the output; return whether all of it is surely finite and within its range."""

    def discard(self, slot: int, /) -> None:
        """Free a slot whose inference failed."""

    def drain(self) -> bytes:
        """Return the complete rows, oldest first, as float64, and free them."""


def open_ring(
    layout: InputLayout,
    input_low: float | None,
    input_high: float | None,
    output_low: float | None,
    output_high: float | None,
    *,
    capacity: int = 256,
) -> InferenceRing:
    """Return a ring; the compiled one if it is there.

    Args:
        layout: Of a sample and its output.
        input_low: Least value of an input, None for any finite one.
        input_high: Greatest value of an input.
        output_low: Least value of an output.
        output_high: Greatest value of an output.
        capacity: Inferences that it holds.
    """
    bounds = (*_finite_bounds(input_low, input_high), *_finite_bounds(output_low, output_high))
    if _input_stats is None:
        return NumpyRing(layout, *bounds, capacity=capacity)
    ring: InferenceRing = _input_stats.Ring(
        capacity,
        layout.values_per_sample,
        layout.channels,
        layout.channels_last,
        bounds[0],
        bounds[1],
        layout.output_scores,
        bounds[2],
        bounds[3],
    )
    return ring


def _finite_bounds(low: float | None, high: float | None) -> tuple[float, float]:
    greatest = float(np.finfo(np.float32).max)
    return (-greatest if low is None else max(low, -greatest), greatest if high is None else min(high, greatest))


class NumpyRing:
    """See `InferenceRing`; in numpy."""

    def __init__(
        self,
        layout: InputLayout,
        input_low: float,
        input_high: float,
        output_low: float,
        output_high: float,
        *,
        capacity: int = 256,
    ) -> None:
        self._layout, self._rows = layout, capacity
        self._input, self._output = (input_low, input_high), (output_low, output_high)
        self._waiting: dict[int, list[float]] = {}
        self._complete: list[Sequence[float]] = []
        self._next = 0
        self._claiming = threading.Lock()
        self.dropped = 0
        self.columns = len(layout.columns)

    def record_input(self, array: Any, /) -> int:
        """See `InferenceRing`."""
        if (
            not _is_float(array)
            or array.size < self._layout.values_per_sample
            or not _numpy_all_within(array, *self._input)
        ):
            return -1
        if len(self._waiting) + len(self._complete) >= self._rows:
            self.dropped += 1
            return self._rows
        with self._claiming:
            slot = self._next = (self._next + 1) % self._rows
            while slot in self._waiting:
                slot = (slot + 1) % self._rows
            row = self._waiting[slot] = [time.monotonic(), 0.0]
        first = array.reshape(-1)[None, : self._layout.values_per_sample]
        row += summarize_inputs(first, self._layout)[0].tolist()
        return slot

    def record_output(self, slot: int, output: Any, /) -> bool:
        """See `InferenceRing`."""
        row = None if slot == self._rows else self._waiting.pop(slot, None)
        if row is None and slot != self._rows:
            raise ValueError("no input waits in this slot")
        ended = time.monotonic()
        wanted = self._layout.output_scores
        if not _is_float(output) or output.size < wanted or not _numpy_all_within(output, *self._output):
            return False
        if row is not None:
            row[1] = ended - row[0]
            end = (
                summarize_scores(output.reshape(-1)[None, :wanted])[0].tolist()
                if wanted
                else [0.0] * len(_SCORE_COLUMNS)
            )
            self._complete.append([*row, *end])
        return True

    def discard(self, slot: int, /) -> None:
        """See `InferenceRing`."""
        self._waiting.pop(slot, None)

    def drain(self) -> bytes:
        """See `InferenceRing`."""
        rows, self._complete = self._complete, []
        return np.array(rows, np.float64).tobytes()


def all_within(array: NDArray[Any], low: float, high: float) -> bool | None:
    """Return whether all values are surely finite and within a range; None if this cannot be told of such an array.

    False may also be said of -0.0 where `low` is 0.

    Args:
        array: Any shape.
        low: Least value.
        high: Greatest value.
    """
    if _input_stats is not None:
        found: bool | None = _input_stats.within(array, low, high)
        return found
    return _numpy_all_within(array, low, high) if _is_float(array) else None


def _is_float(array: Any) -> bool:
    return isinstance(array, np.ndarray) and array.dtype == np.float32 and array.flags.c_contiguous


def _numpy_all_within(array: NDArray[Any], low: float, high: float) -> bool:
    return not array.size or bool(np.minimum.reduce(array, None) >= low and np.maximum.reduce(array, None) <= high)
