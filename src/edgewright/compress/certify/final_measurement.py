"""The final figures of the few models that matter: measured together, each with its origin."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from numpy.typing import NDArray

from edgewright.compress.quantize.sparsity import compressed_size
from edgewright.contract.certificate import Certificate
from edgewright.contract.compression_report import BudgetOutcome, ModelFigures
from edgewright.contract.device_class import Budget, DeviceClass
from edgewright.contract.errors import CandidateError
from edgewright.contract.measurement import Measurement, MeasurementOrigin
from edgewright.profiling.energy import measure_energy
from edgewright.profiling.latency import LatencyResult, Workload, measure_latency, paired_ratio
from edgewright.profiling.memory import measure_memory
from edgewright.profiling.target import MeasurementTarget
from edgewright.runtime.options import RuntimeOptions

__all__ = ["Finalist", "MeasuredFinalist", "evaluate_budget", "measure_finalists"]


@dataclass(frozen=True, slots=True)
class Finalist:
    """A model to be measured.

    Attributes:
        path: Its file.
        recipe: Its steps, None for the original.
        title: The recipe in a few words.
        inputs: Inputs of one inference.
    """

    path: Path
    recipe: Any
    title: str
    inputs: Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class MeasuredFinalist:
    """A finalist with its figures and the latency behind them."""

    model: ModelFigures
    latency: LatencyResult


def measure_finalists(
    target: MeasurementTarget,
    finalists: Sequence[Finalist],
    device: DeviceClass,
    options: RuntimeOptions,
    *,
    seconds: float,
    seed: int,
) -> list[MeasuredFinalist | None]:
    """Measure models interleaved; the first is the original, the others are compared with it.

    Returns:
        In the same order; None for one that the target cannot run.

    Raises:
        CandidateError: The original cannot be run there.
        TargetError: The target cannot measure.
    """
    subjects = [Workload(f.title, f.path, options, f.inputs) for f in finalists]
    latencies = measure_latency(target, subjects, seconds=seconds, seed=seed)
    first = latencies[0]
    if isinstance(first, CandidateError):
        raise first
    results: list[MeasuredFinalist | None] = []
    for finalist, subject, latency in zip(finalists, subjects, latencies, strict=True):
        if isinstance(latency, CandidateError):
            results.append(None)
            continue
        try:
            memory = measure_memory(target, subject, repeats=3).session_peak
            energy = measure_energy(
                target, subject, watts_per_core=device.watts_per_core, latency=latency, seconds=min(1.0, seconds)
            )
        except CandidateError:
            if latency is first:
                raise
            results.append(None)
            continue
        content = finalist.path.read_bytes()
        exact = MeasurementOrigin(kind="computed", machine="any", method="bytes of the file")
        ratio = paired_ratio(latency, first)
        if latency is first:
            ratio = msgspec.structs.replace(ratio, value=1.0, low=1.0, high=1.0)
        figures = ModelFigures(
            path=str(finalist.path),
            sha256=hashlib.sha256(content).hexdigest(),
            size_bytes=Measurement(float(len(content)), "bytes", exact),
            compressed_bytes=Measurement(
                float(compressed_size(content)),
                "bytes",
                MeasurementOrigin(kind="computed", machine="any", method="zlib, level 9, of the file"),
            ),
            latency_p50_ms=latency.p50.scaled(1e3, "ms"),
            latency_p95_ms=latency.p95.scaled(1e3, "ms"),
            latency_ratio=ratio,
            peak_memory_bytes=memory,
            energy_mj=energy.scaled(1e3, "mJ"),
            recipe=finalist.recipe,
            title=finalist.title,
            runtime=msgspec.to_builtins(options),
        )
        results.append(MeasuredFinalist(figures, latency))
    return results


def evaluate_budget(figures: ModelFigures, certificate: Certificate, budget: Budget) -> BudgetOutcome:
    """Compare a model with the limits; the binding one is the most broken, or the one kept most narrowly."""
    limits: dict[str, dict[str, Any]] = {}

    def limit(name: str, allowed: float | None, value: float | None) -> None:
        if allowed is not None and value is not None:
            limits[name] = {"limit": allowed, "value": value, "kept": value <= allowed, "share": value / allowed}
        elif allowed is not None:  # what could not be measured is not kept
            limits[name] = {"limit": allowed, "value": None, "kept": False, "share": 1.0}

    limit("latency_p50_ms", _scaled(budget.latency_p50_seconds, 1e3), _upper_end(figures.latency_p50_ms))
    limit("latency_p95_ms", _scaled(budget.latency_p95_seconds, 1e3), _upper_end(figures.latency_p95_ms))
    limit("size_bytes", budget.size_bytes, figures.size_bytes.value)
    limit(
        "peak_memory_bytes",
        budget.peak_memory_bytes,
        None if figures.peak_memory_bytes is None else _upper_end(figures.peak_memory_bytes),
    )
    limit(
        "energy_mj",
        _scaled(budget.energy_j, 1e3),
        None if figures.energy_mj is None else _upper_end(figures.energy_mj),
    )
    certified = certificate.verdict == "certified"
    limits["max_drop"] = {
        "limit": certificate.max_drop,
        "value": certificate.upper_bound,
        "kept": certified,
        "share": certificate.upper_bound / certificate.max_drop,
    }
    if budget.min_metric is not None:
        limits["min_metric"] = {
            "limit": budget.min_metric,
            "value": certificate.chosen_metric,
            "kept": certified and certificate.chosen_metric >= budget.min_metric,
            "share": budget.min_metric / max(certificate.chosen_metric, 1e-9),
        }
    broken = {name: entry for name, entry in limits.items() if not entry["kept"]}
    worst = max(broken or limits, key=lambda name: float(limits[name]["share"]))
    return BudgetOutcome(met=not broken, binding_limit=worst, limits=limits)


def _upper_end(figure: Measurement) -> float:
    """Return the upper end of the interval: a limit is kept only if that keeps it."""
    return figure.value if figure.high is None else figure.high


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor
