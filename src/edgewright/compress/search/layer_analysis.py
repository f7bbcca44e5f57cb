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
from edgewright.compress.quantize.sensitivity import NoiseProbe, integer_noise, make_noise_probe, weight_noise
from edgewright.compress.quantize.static_int8 import StaticInt8, integer_layers
from edgewright.compress.search.recipe import CandidateBuilder, RecipeStep, UseTrainedNetwork
from edgewright.compress.search.space import SearchSpace, build_search_space
from edgewright.profiling.target import Machine

__all__ = ["analyse_layers", "has_saturation_free_int8"]

_PROBES = 8


class _LayerNoise(msgspec.Struct, frozen=True):
    """What was measured of a graph, by layer."""

    few_bits: dict[str, float]
    integers: dict[str, float]


def analyse_layers(
    builder: CandidateBuilder,
    first: tuple[RecipeStep, ...],
    machine: Machine,
    *,
    seconds: float,
    cache_path: Path | None = None,
) -> tuple[SearchSpace, dict[str, dict[str, float]]]:
    """Measure how much noise each layer brings, and lay out the recipes.

    Args:
        builder: Performs steps.
        first: Steps that every recipe begins with: a trained network if there is one, the clean-up, folding.
        machine: The target.
        seconds: About how long measuring may take. What time there is decides what is measured, so without
            `cache_path` a resumed search could be given other recipes than it began with.
        cache_path: Folder in which the noise of each graph is kept, None to measure it each time.

    Returns:
        The recipes; and the noise of each layer, with few bits and in integers.
    """
    cleaned = builder.model_after(first)
    path = (
        None
        if cache_path is None
        else cache_path / f"{hashlib.sha256(cleaned.SerializeToString()).hexdigest()[:24]}.json"
    )
    found = None if path is None else _read(path)
    if found is None:
        found = _noise(builder, first, cleaned, seconds)
        if path is not None:
            write_file(path, msgspec.json.encode(found))
    weights, integers = found.few_bits, found.integers
    space = build_search_space(
        cleaned,
        weights,
        integers,
        signed_first=machine.arch.startswith(("aarch64", "arm")),
        fold=tuple(step for step in first if isinstance(step, FoldPreprocess)),
        max_int8_weight=127 if has_saturation_free_int8(machine) else 63,
        trained_network=tuple(step for step in first if isinstance(step, UseTrainedNetwork)),
    )
    return space, {"few bits": weights, "integers": integers}


def _read(path: Path) -> _LayerNoise | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_LayerNoise)
    except (OSError, msgspec.MsgspecError):
        return None


def _noise(
    builder: CandidateBuilder, first: tuple[RecipeStep, ...], cleaned: onnx.ModelProto, seconds: float
) -> _LayerNoise:
    start = time.monotonic()
    probe = make_noise_probe(cleaned, _few_batches(builder.calibration_batches, _PROBES))
    one_run = _seconds_of(probe, cleaned)
    layers = [weight.layer for weight in integer_layers(Graph(cleaned))]
    allowed = max(1.0, seconds)
    affordable = max(1, int(allowed / max(1e-4, 2.5 * one_run * max(1, len(layers)))))
    if affordable < len(probe.batches):
        probe = make_noise_probe(cleaned, _few_batches(builder.calibration_batches, affordable))
    weights = weight_noise(cleaned, probe)
    integers: dict[str, float] = {}
    quantized = any(node.op_type == "QuantizeLinear" for node in cleaned.graph.node)
    if layers and not quantized and time.monotonic() - start < allowed:
        integers = integer_noise(cleaned, probe, StaticInt8(), builder.statistics_after(first), layers)
    return _LayerNoise(weights, integers)


def has_saturation_free_int8(machine: Machine) -> bool:
    """Whether 8-bit products cannot saturate: x86 without VNNI adds pairs of them in 16 bits."""
    return not machine.arch.startswith(("x86", "AMD64", "i686")) or any(
        name in machine.features for name in ("avx512_vnni", "avx_vnni", "amx_int8")
    )


def _few_batches(batches: Sequence[Any], count: int) -> list[Any]:
    """Return a few feeds, large batches cut down to 8 samples."""
    few = list(batches[:count])
    return [
        {name: array[:8] if len(feed) == 1 and array.ndim else array for name, array in feed.items()}
        for feed in few
    ]


def _seconds_of(probe: NoiseProbe, model: onnx.ModelProto) -> float:
    start = time.monotonic()
    probe.noise(model)
    return time.monotonic() - start
