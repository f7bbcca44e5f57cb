"""What flows through a network on calibration data, and the ranges that follow from it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from edgewright.compress.model.graph import Graph, session_bytes

__all__ = ["Calibrator", "TensorStatistics", "calibrate_range", "collect_statistics"]

Calibrator = Literal["minmax", "percentile", "entropy", "mse"]

# Enough values of one tensor to place its clipping range; the extremes are kept exactly besides.
_VALUES_PER_TENSOR = 1 << 16


@dataclass(frozen=True, slots=True)
class TensorStatistics:
    """One float tensor over the calibration data.

    Attributes:
        low: Least value.
        high: Greatest value.
        sampled_values: A sample of its values, at most 65,536.
        channel_mean: Mean per channel (axis 1, or the last axis of matrices).
        channel_peak: Largest magnitude per channel.
    """

    low: float
    high: float
    sampled_values: NDArray[np.float32]
    channel_mean: NDArray[np.float64]
    channel_peak: NDArray[np.float32]


def collect_statistics(
    model: onnx.ModelProto, tensors: Iterable[str], feeds: Iterable[Mapping[str, NDArray[Any]]], *, seed: int = 0
) -> dict[str, TensorStatistics]:
    """Run the model on the feeds and record the named tensors.

    Returns:
        Name to what was seen; tensors that are no floats, hold nothing, or hold infinity or NaN are left out.
    """
    names = list(dict.fromkeys(tensors))
    inputs = set(Graph(model).input_names)
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    present = {value.name for value in watched.graph.output}
    inner = [name for name in names if name not in inputs]
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner if name not in present)
    session = session_bytes(watched, level="basic")
    random = np.random.default_rng(seed)
    rows: dict[str, list[NDArray[np.float32]]] = {name: [] for name in names}
    extremes: dict[str, tuple[float, float]] = {}
    sums: dict[str, tuple[NDArray[np.float64], int]] = {}
    peaks: dict[str, NDArray[np.float32]] = {}
    batches = list(feeds)
    share = max(64, _VALUES_PER_TENSOR // max(1, len(batches)))
    for feed in batches:
        outputs = session.run(inner, dict(feed)) if inner else []
        seen = dict(zip(inner, outputs, strict=True)) | {name: feed[name] for name in names if name in inputs}
        for name, value in seen.items():
            if value.dtype != np.float32 or not value.size:
                continue
            flat = value.reshape(-1)
            low, high = extremes.get(name, (np.inf, -np.inf))
            extremes[name] = (min(low, float(flat.min())), max(high, float(flat.max())))
            picked = flat if flat.size <= share else flat[random.integers(0, flat.size, share)]
            rows[name].append(picked)
            channels = _by_channel(value)
            total, count = sums.get(name, (np.zeros(len(channels)), 0))
            if len(total) == len(channels):
                sums[name] = (total + channels.sum(axis=1, dtype=np.float64), count + channels.shape[1])
                peak = np.abs(channels).max(axis=1)
                peaks[name] = np.maximum(peaks.get(name, peak), peak)
    return {
        name: TensorStatistics(
            low=extremes[name][0],
            high=extremes[name][1],
            sampled_values=np.concatenate(rows[name])[:_VALUES_PER_TENSOR],
            channel_mean=sums[name][0] / sums[name][1],
            channel_peak=peaks[name],
        )
        for name in names
        if name in extremes and name in sums and np.isfinite(extremes[name]).all()
    }


def _by_channel(value: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return [channels, everything else]: axis 1 of images and sequences, the last axis of matrices."""
    if value.ndim < 2:
        return value.reshape(1, -1)
    axis = 1 if value.ndim >= 4 else value.ndim - 1
    return np.moveaxis(value, axis, 0).reshape(value.shape[axis], -1)


def calibrate_range(statistics: TensorStatistics, calibrator: Calibrator, levels: int = 255) -> tuple[float, float]:
    """Return the range that the integers shall cover; it always holds zero.

    Args:
        statistics: The tensor on calibration data.
        calibrator: `minmax` covers all, `percentile` 99.99 % on each side, `mse` and `entropy` choose the
            clipping that least harms the values or their distribution.
        levels: Steps between the two ends.
    """
    low, high = min(statistics.low, 0.0), max(statistics.high, 0.0)
    if calibrator == "minmax" or high - low == 0:
        return low, high
    if calibrator == "percentile":
        below, above = np.quantile(statistics.sampled_values, (0.0001, 0.9999))
        return min(float(below), 0.0), max(float(above), 0.0)
    shrinks = np.linspace(1.0, 0.3, 29)
    losses = [
        _squared_error(statistics.sampled_values, low * s, high * s, levels)
        if calibrator == "mse"
        else _divergence(statistics.sampled_values, low * s, high * s, levels)
        for s in shrinks
    ]
    best = float(shrinks[int(np.argmin(losses))])
    return low * best, high * best


def _squared_error(values: NDArray[np.float32], low: float, high: float, levels: int) -> float:
    step = max((high - low) / levels, float(np.finfo(np.float32).tiny))
    kept = np.clip(np.round((values - low) / step), 0, levels) * step + low
    return float(np.mean((kept - values) ** 2))


def _divergence(values: NDArray[np.float32], low: float, high: float, levels: int) -> float:
    """Kullback-Leibler divergence of the clipped, requantised histogram from the values' own.

    Source: Migacz, "8-bit inference with TensorRT", GTC 2017; the clipped mass is charged to the last bins.
    """
    bins = 2048
    edges = np.linspace(float(values.min()), float(values.max()), bins + 1)
    reference, _ = np.histogram(values, edges)
    kept = np.clip(np.round((values - low) / (high - low) * levels), 0, levels) * ((high - low) / levels) + low
    width = max(1, bins // levels)
    p = reference.reshape(-1, width).sum(axis=1).astype(np.float64) + 1e-3
    q = np.histogram(kept, edges)[0].reshape(-1, width).sum(axis=1).astype(np.float64) + 1e-3
    p, q = p / p.sum(), q / q.sum()
    return float(np.sum(p * np.log(p / q)))
