"""From a model and calibration data to the recipes that make sense for it: each layer's noise is measured first."""

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import onnx

from edgewright.compress.model.graph import Graph
from edgewright.compress.output_folder import write_file
from edgewright.compress.quantize.preprocess_folding import FoldPreprocess
from edgewright.compress.quantize.sensitivity import Probe, integer_noise, probe_on, weight_noise
from edgewright.compress.quantize.static_int8 import StaticInt8, integer_layers
from edgewright.compress.search.recipe import Step, Trained, Workbench
from edgewright.compress.search.space import Space, space_of
from edgewright.profiling.target import Machine

__all__ = ["adds_in_32_bits", "lay_out"]

_PROBES = 8


class _Noise(msgspec.Struct, frozen=True):
    """What was measured of a graph, by layer."""

    few_bits: dict[str, float]
    integers: dict[str, float]


def lay_out(
    bench: Workbench, first: tuple[Step, ...], machine: Machine, *, seconds: float, kept: Path | None = None
) -> tuple[Space, dict[str, dict[str, float]]]:
    """Measure how much noise each layer brings, and lay out the recipes.

    Args:
        bench: Performs steps.
        first: Steps that every recipe begins with: a trained network if there is one, the clean-up, folding.
        machine: The target.
        seconds: About how long measuring may take. What time there is decides what is measured, so without `kept` a
            resumed search could be given other recipes than it began with.
        kept: Folder in which the noise of each graph is kept, None to measure it each time.

    Returns:
        The recipes; and the noise of each layer, with few bits and in integers.
    """
    cleaned = bench.after(first)
    path = None if kept is None else kept / f"{hashlib.sha256(cleaned.SerializeToString()).hexdigest()[:24]}.json"
    found = None if path is None else _read(path)
    if found is None:
        found = _noise(bench, first, cleaned, seconds)
        if path is not None:
            write_file(path, msgspec.json.encode(found))
    weights, integers = found.few_bits, found.integers
    space = space_of(
        cleaned,
        weights,
        integers,
        signed_first=machine.arch.startswith(("aarch64", "arm")),
        fold=tuple(step for step in first if isinstance(step, FoldPreprocess)),
        int8_peak=127 if adds_in_32_bits(machine) else 63,
        start=tuple(step for step in first if isinstance(step, Trained)),
    )
    return space, {"few bits": weights, "integers": integers}


def _read(path: Path) -> _Noise | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Noise)
    except (OSError, msgspec.MsgspecError):
        return None


def _noise(bench: Workbench, first: tuple[Step, ...], cleaned: onnx.ModelProto, seconds: float) -> _Noise:
    start = time.monotonic()
    probe = probe_on(cleaned, _few(bench.feeds, _PROBES))
    one_run = _seconds_of(probe, cleaned)
    layers = [weight.layer for weight in integer_layers(Graph(cleaned))]
    allowed = max(1.0, seconds)
    affordable = max(1, int(allowed / max(1e-4, 2.5 * one_run * max(1, len(layers)))))
    if affordable < len(probe.feeds):
        probe = probe_on(cleaned, _few(bench.feeds, affordable))
    weights = weight_noise(cleaned, probe)
    integers: dict[str, float] = {}
    quantized = any(node.op_type == "QuantizeLinear" for node in cleaned.graph.node)
    if layers and not quantized and time.monotonic() - start < allowed:
        integers = integer_noise(cleaned, probe, StaticInt8(), bench.seen_after(first), layers)
    return _Noise(weights, integers)


def adds_in_32_bits(machine: Machine) -> bool:
    """Whether 8-bit products cannot saturate: x86 without VNNI adds pairs of them in 16 bits."""
    return not machine.arch.startswith(("x86", "AMD64", "i686")) or any(
        name in machine.features for name in ("avx512_vnni", "avx_vnni", "amx_int8")
    )


def _few(feeds: Sequence[Any], count: int) -> list[Any]:
    """Return a few feeds, large batches cut down to 8 samples."""
    few = list(feeds[:count])
    return [
        {name: array[:8] if len(feed) == 1 and array.ndim else array for name, array in feed.items()}
        for feed in few
    ]


def _seconds_of(probe: Probe, model: onnx.ModelProto) -> float:
    start = time.monotonic()
    probe.noise(model)
    return time.monotonic() - start
