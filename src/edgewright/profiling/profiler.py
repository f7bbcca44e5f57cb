"""One profile of one model on one target: everything that is measured, in one record."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from numpy.typing import NDArray

from edgewright.contract.device_class import DEFAULT_DEVICE_CLASS, Budget, DeviceClass
from edgewright.contract.errors import CandidateError
from edgewright.contract.measurement import Measurement, MeasurementOrigin
from edgewright.contract.schema import SCHEMA_VERSION, SchemaVersion
from edgewright.profiling.energy import measure_energy
from edgewright.profiling.latency import LatencyResult, Workload, measure_latency, paired_ratio
from edgewright.profiling.memory import measure_memory
from edgewright.profiling.runtime_tuning import OptionsSearchResult, find_best_options
from edgewright.profiling.sustained_load import (
    ContentionResult,
    SustainedResult,
    measure_contention,
    measure_sustained,
)
from edgewright.profiling.target import Machine, MeasurementTarget, query_machine
from edgewright.profiling.workload import external_files
from edgewright.runtime.options import RuntimeOptions

__all__ = [
    "LatencyProfile",
    "LimitCheck",
    "ProfileComparison",
    "ProfiledInput",
    "ProfiledModel",
    "check_budget",
    "profile_model",
]

_COLD_STARTS = 3  # fresh processes for the memory figures
# Shares of the time given.
_OPTIONS_TIME_SHARE, _LATENCY_TIME_SHARE, _SUSTAINED_TIME_SHARE = 0.3, 0.4, 0.15


class ProfiledModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The figures of one model with its best runtime options.

    Attributes:
        path: Of the model.
        input_shapes: Shapes of the inputs that it was measured with.
        size_bytes: Of the file and of the external data beside it.
        latency_p50_ms: Median of one inference.
        latency_p95_ms: 95th percentile.
        latency_p99_ms: 99th percentile.
        cold_start_ms: Creating a session and running it once.
        throughput_per_second: Inferences per second, one after the other.
        peak_memory_bytes: What loading and running the model adds to the runtime's own memory, at its peak.
        process_peak_memory_bytes: Of the whole process.
        runtime_size_bytes: Libraries of the runtime on disk.
        energy_mj: Per inference, beyond the idle machine.
    """

    path: str
    input_shapes: dict[str, tuple[int, ...]]
    size_bytes: Measurement
    latency_p50_ms: Measurement
    latency_p95_ms: Measurement
    latency_p99_ms: Measurement
    cold_start_ms: Measurement
    throughput_per_second: Measurement
    peak_memory_bytes: Measurement
    process_peak_memory_bytes: Measurement
    runtime_size_bytes: Measurement
    energy_mj: Measurement


class ProfileComparison(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The other model, and the first model's figures in units of its.

    Attributes:
        model: The other one.
        runtime_options: Its own best options.
        latency_ratio: Paired over interleaved rounds; below 1 the first model is faster.
        size_ratio: Below 1 the first model is smaller.
        memory_ratio: Below 1 the first model needs less; None where the other needs nothing measurable.
        energy_ratio: Below 1 the first model needs less.
    """

    model: ProfiledModel
    runtime_options: OptionsSearchResult
    latency_ratio: Measurement
    size_ratio: float
    memory_ratio: float | None
    energy_ratio: float


class LimitCheck(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One limit of the budget.

    Attributes:
        name: Of the limit, as in `Budget`.
        limit: In s, bytes or J.
        value: What was measured or estimated.
        is_met: Whether the upper end of the figure's interval keeps the limit.
    """

    name: str
    limit: float
    value: float
    is_met: bool


class LatencyProfile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was found out about a model on a target.

    Attributes:
        schema: Version of this record.
        model: The model's figures.
        target: As it was named.
        machine: What the target is.
        device_class: Whose providers, watts and budget were used.
        runtime_options: The options with which the model was measured, and what they gain.
        sustained: A run without pauses.
        contention: Runs beside other work.
        budget: The limits of the device class.
        compared_with: The other model, None without one.
        time_limit_seconds: Time that was given.
        seed: Of orders and resampling.
    """

    schema: SchemaVersion
    model: ProfiledModel
    target: str
    machine: Machine
    device_class: str
    runtime_options: OptionsSearchResult
    sustained: SustainedResult
    contention: ContentionResult
    budget: tuple[LimitCheck, ...]
    compared_with: ProfileComparison | None
    time_limit_seconds: float
    seed: int


@dataclass(frozen=True, slots=True)
class ProfiledInput:
    """A model to profile, with the inputs of one inference."""

    path: Path
    inputs: Mapping[str, NDArray[Any]]


def profile_model(
    target: MeasurementTarget,
    model: ProfiledInput,
    *,
    comparison_model: ProfiledInput | None = None,
    device_class: DeviceClass = DEFAULT_DEVICE_CLASS,
    threads_limit: int | None = None,
    time_limit_seconds: float = 10.0,
    seed: int = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> LatencyProfile:
    """Measure a model, and another one interleaved with it.

    Args:
        target: The machine.
        model: What to profile.
        comparison_model: What to compare it with; each of the two runs with its own best options.
        device_class: Its providers, watts per core and budget are used.
        threads_limit: Threads that an inference may use; as many as the target has cores without it.
        time_limit_seconds: For all timed parts together; slow models may need more.
        seed: Of the orders of measuring and the resampling.
        progress: Is told each stage as it begins.

    Raises:
        CandidateError: A model does not run on the target.
        ModelError: A file is missing or no ONNX model.
        TargetError: The machine cannot measure.
    """
    inputs = [model] if comparison_model is None else [model, comparison_model]
    progress("looking at the target")
    machine = query_machine(target)
    default = RuntimeOptions(providers=device_class.providers)
    options = []
    for each in inputs:
        progress(f"trying runtime options for {each.path.name}")
        options.append(
            find_best_options(
                target,
                each.path,
                each.inputs,
                seconds=time_limit_seconds * _OPTIONS_TIME_SHARE / len(inputs),
                seed=seed,
                threads_limit=threads_limit,
                default=default,
            )
        )
    subjects = [
        Workload(str(each.path), each.path, found.best, each.inputs)
        for each, found in zip(inputs, options, strict=True)
    ]
    progress("measuring latency" if comparison_model is None else "measuring both models in turns")
    latencies = []
    for result in measure_latency(target, subjects, seconds=time_limit_seconds * _LATENCY_TIME_SHARE, seed=seed):
        if isinstance(result, CandidateError):
            raise result
        latencies.append(result)
    figures = []
    for subject, latency in zip(subjects, latencies, strict=True):
        progress(f"measuring memory and energy of {subject.model.name}")
        figures.append(_measure_model(target, subject, latency, device_class, time_limit_seconds))
    progress("running without a pause")
    sustained = measure_sustained(target, subjects[0], seconds=time_limit_seconds * _SUSTAINED_TIME_SHARE)
    progress("running beside other work")
    contention = measure_contention(target, subjects[0], seconds=time_limit_seconds * _SUSTAINED_TIME_SHARE)
    return LatencyProfile(
        schema=SCHEMA_VERSION,
        model=figures[0],
        target=target.name,
        machine=machine,
        device_class=device_class.name,
        runtime_options=options[0],
        sustained=sustained,
        contention=contention,
        budget=check_budget(figures[0], device_class.budget),
        compared_with=None if comparison_model is None else _compare_models(figures, latencies, options[1]),
        time_limit_seconds=time_limit_seconds,
        seed=seed,
    )


def _measure_model(
    target: MeasurementTarget,
    workload: Workload,
    latency: LatencyResult,
    device_class: DeviceClass,
    seconds: float,
) -> ProfiledModel:
    memory = measure_memory(target, workload, repeats=_COLD_STARTS)
    energy = measure_energy(
        target,
        workload,
        watts_per_core=device_class.watts_per_core,
        latency=latency,
        seconds=seconds * _SUSTAINED_TIME_SHARE,
    )
    return ProfiledModel(
        path=str(workload.model),
        input_shapes={name: array.shape for name, array in workload.inputs.items()},
        size_bytes=_model_size(workload.model),
        latency_p50_ms=latency.p50.scaled(1e3, "ms"),
        latency_p95_ms=latency.p95.scaled(1e3, "ms"),
        latency_p99_ms=latency.p99.scaled(1e3, "ms"),
        cold_start_ms=latency.cold_start.scaled(1e3, "ms"),
        throughput_per_second=latency.throughput,
        peak_memory_bytes=memory.session_peak,
        process_peak_memory_bytes=memory.process_peak,
        runtime_size_bytes=memory.runtime_size,
        energy_mj=energy.scaled(1e3, "mJ"),
    )


def _model_size(model: Path) -> Measurement:
    paths = [model, *(model.parent / name for name in external_files(model))]
    origin = MeasurementOrigin(
        kind="computed", machine="any", method=f"size of {len(paths)} file{'s' * (len(paths) > 1)}"
    )
    return Measurement(float(sum(path.stat().st_size for path in paths)), "bytes", origin)


def _compare_models(
    figures: list[ProfiledModel], latencies: list[LatencyResult], options: OptionsSearchResult
) -> ProfileComparison:
    ours, theirs = figures
    memory = theirs.peak_memory_bytes.value
    return ProfileComparison(
        model=theirs,
        runtime_options=options,
        latency_ratio=paired_ratio(latencies[0], latencies[1]),
        size_ratio=ours.size_bytes.value / theirs.size_bytes.value,
        memory_ratio=ours.peak_memory_bytes.value / memory if memory > 0 else None,
        energy_ratio=ours.energy_mj.value / theirs.energy_mj.value,
    )


def check_budget(figures: ProfiledModel, budget: Budget) -> tuple[LimitCheck, ...]:
    """Hold figures against the limits that a budget sets; accuracy is not judged here."""
    measured = {
        "latency_p50_seconds": figures.latency_p50_ms.scaled(1e-3, "s"),
        "latency_p95_seconds": figures.latency_p95_ms.scaled(1e-3, "s"),
        "peak_memory_bytes": figures.peak_memory_bytes,
        "size_bytes": figures.size_bytes,
        "energy_j": figures.energy_mj.scaled(1e-3, "J"),
    }
    checks = []
    for name, figure in measured.items():
        limit = getattr(budget, name)
        if limit is not None:
            worst = figure.value if figure.high is None else figure.high
            checks.append(LimitCheck(name, limit, figure.value, worst <= limit))
    return tuple(checks)
