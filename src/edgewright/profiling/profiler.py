"""One profile of one model on one target: everything that is measured, in one record."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from numpy.typing import NDArray

from edgewright.contract.device_class import DEFAULT_DEVICE_CLASS, Budget, DeviceClass
from edgewright.contract.errors import CandidateError
from edgewright.contract.measurement import Measurement, Origin
from edgewright.contract.schema import SCHEMA_VERSION, SchemaVersion
from edgewright.profiling.energy import measure_energy
from edgewright.profiling.latency import Latency, Subject, measure_latency, paired_ratio
from edgewright.profiling.memory import measure_memory
from edgewright.profiling.runtime_tuning import OptionsResult, best_options
from edgewright.profiling.sustained_load import Contention, Sustained, measure_contention, measure_sustained
from edgewright.profiling.target import Machine, Target, machine_of
from edgewright.profiling.workload import external_files
from edgewright.runtime.options import RuntimeOptions

__all__ = ["Comparison", "Figures", "LimitCheck", "ModelInput", "Profile", "check_budget", "profile_model"]

_STARTS = 3  # fresh processes for the memory figures
# Shares of the time given.
_OPTIONS, _LATENCY, _ENDURANCE = 0.3, 0.4, 0.15


class Figures(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The figures of one model with its best runtime options.

    Attributes:
        path: Of the model.
        inputs: Shapes of the inputs that it was measured with.
        size_bytes: Of the file and of the external data beside it.
        latency_p50_ms: Median of one inference.
        latency_p95_ms: 95th percentile.
        latency_p99_ms: 99th percentile.
        cold_start_ms: Creating a session and running it once.
        throughput_per_s: Inferences per second, one after the other.
        peak_memory_bytes: What loading and running the model adds to the runtime's own memory, at its peak.
        process_peak_memory_bytes: Of the whole process.
        runtime_size_bytes: Libraries of the runtime on disk.
        energy_mj: Per inference, beyond the idle machine.
    """

    path: str
    inputs: dict[str, tuple[int, ...]]
    size_bytes: Measurement
    latency_p50_ms: Measurement
    latency_p95_ms: Measurement
    latency_p99_ms: Measurement
    cold_start_ms: Measurement
    throughput_per_s: Measurement
    peak_memory_bytes: Measurement
    process_peak_memory_bytes: Measurement
    runtime_size_bytes: Measurement
    energy_mj: Measurement


class Comparison(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The other model, and the first model's figures in units of its.

    Attributes:
        model: The other one.
        runtime_options: Its own best options.
        latency_ratio: Paired over interleaved rounds; below 1 the first model is faster.
        size_ratio: Below 1 the first model is smaller.
        memory_ratio: Below 1 the first model needs less; None where the other needs nothing measurable.
        energy_ratio: Below 1 the first model needs less.
    """

    model: Figures
    runtime_options: OptionsResult
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
        met: Whether the upper end of the figure's interval keeps the limit.
    """

    name: str
    limit: float
    value: float
    met: bool


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
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
        against: The other model, None without one.
        seconds: Time that was given.
        seed: Of orders and resampling.
    """

    schema: SchemaVersion
    model: Figures
    target: str
    machine: Machine
    device_class: str
    runtime_options: OptionsResult
    sustained: Sustained
    contention: Contention
    budget: tuple[LimitCheck, ...]
    against: Comparison | None
    seconds: float
    seed: int


@dataclass(frozen=True, slots=True)
class ModelInput:
    """A model to profile, with the inputs of one inference."""

    path: Path
    feed: Mapping[str, NDArray[Any]]


def profile_model(
    target: Target,
    model: ModelInput,
    *,
    against: ModelInput | None = None,
    device_class: DeviceClass = DEFAULT_DEVICE_CLASS,
    threads_limit: int | None = None,
    seconds: float = 10.0,
    seed: int = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> Profile:
    """Measure a model, and another one interleaved with it.

    Args:
        target: The machine.
        model: What to profile.
        against: What to compare it with; each of the two runs with its own best options.
        device_class: Its providers, watts per core and budget are used.
        threads_limit: Threads that an inference may use; as many as the target has cores without it.
        seconds: For all timed parts together; slow models may need more.
        seed: Of the orders of measuring and the resampling.
        progress: Is told each stage as it begins.

    Raises:
        CandidateError: A model does not run on the target.
        ModelError: A file is missing or no ONNX model.
        TargetError: The machine cannot measure.
    """
    inputs = [model] if against is None else [model, against]
    progress("looking at the target")
    machine = machine_of(target)
    default = RuntimeOptions(providers=device_class.providers)
    options = []
    for each in inputs:
        progress(f"trying runtime options for {each.path.name}")
        options.append(
            best_options(
                target,
                each.path,
                each.feed,
                seconds=seconds * _OPTIONS / len(inputs),
                seed=seed,
                threads_limit=threads_limit,
                default=default,
            )
        )
    subjects = [
        Subject(str(each.path), each.path, found.best, each.feed)
        for each, found in zip(inputs, options, strict=True)
    ]
    progress("measuring latency" if against is None else "measuring both models in turns")
    latencies = []
    for result in measure_latency(target, subjects, seconds=seconds * _LATENCY, seed=seed):
        if isinstance(result, CandidateError):
            raise result
        latencies.append(result)
    figures = []
    for subject, latency in zip(subjects, latencies, strict=True):
        progress(f"measuring memory and energy of {subject.model.name}")
        figures.append(_figures(target, subject, latency, device_class, seconds))
    progress("running without a pause")
    sustained = measure_sustained(target, subjects[0], seconds=seconds * _ENDURANCE)
    progress("running beside other work")
    contention = measure_contention(target, subjects[0], seconds=seconds * _ENDURANCE)
    return Profile(
        schema=SCHEMA_VERSION,
        model=figures[0],
        target=target.name,
        machine=machine,
        device_class=device_class.name,
        runtime_options=options[0],
        sustained=sustained,
        contention=contention,
        budget=check_budget(figures[0], device_class.budget),
        against=None if against is None else _comparison(figures, latencies, options[1]),
        seconds=seconds,
        seed=seed,
    )


def _figures(
    target: Target,
    subject: Subject,
    latency: Latency,
    device_class: DeviceClass,
    seconds: float,
) -> Figures:
    memory = measure_memory(target, subject, repeats=_STARTS)
    energy = measure_energy(
        target, subject, watts_per_core=device_class.watts_per_core, latency=latency, seconds=seconds * _ENDURANCE
    )
    return Figures(
        path=str(subject.model),
        inputs={name: array.shape for name, array in subject.feed.items()},
        size_bytes=_size(subject.model),
        latency_p50_ms=latency.p50.scaled(1e3, "ms"),
        latency_p95_ms=latency.p95.scaled(1e3, "ms"),
        latency_p99_ms=latency.p99.scaled(1e3, "ms"),
        cold_start_ms=latency.cold_start.scaled(1e3, "ms"),
        throughput_per_s=latency.throughput,
        peak_memory_bytes=memory.session_peak,
        process_peak_memory_bytes=memory.process_peak,
        runtime_size_bytes=memory.runtime_size,
        energy_mj=energy.scaled(1e3, "mJ"),
    )


def _size(model: Path) -> Measurement:
    paths = [model, *(model.parent / name for name in external_files(model))]
    origin = Origin(kind="computed", machine="any", method=f"size of {len(paths)} file{'s' * (len(paths) > 1)}")
    return Measurement(float(sum(path.stat().st_size for path in paths)), "bytes", origin)


def _comparison(figures: list[Figures], latencies: list[Latency], options: OptionsResult) -> Comparison:
    ours, theirs = figures
    memory = theirs.peak_memory_bytes.value
    return Comparison(
        model=theirs,
        runtime_options=options,
        latency_ratio=paired_ratio(latencies[0], latencies[1]),
        size_ratio=ours.size_bytes.value / theirs.size_bytes.value,
        memory_ratio=ours.peak_memory_bytes.value / memory if memory > 0 else None,
        energy_ratio=ours.energy_mj.value / theirs.energy_mj.value,
    )


def check_budget(figures: Figures, budget: Budget) -> tuple[LimitCheck, ...]:
    """Hold figures against the limits that a budget sets; accuracy is not judged here."""
    measured = {
        "latency_p50_s": figures.latency_p50_ms.scaled(1e-3, "s"),
        "latency_p95_s": figures.latency_p95_ms.scaled(1e-3, "s"),
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
