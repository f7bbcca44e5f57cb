"""How a model's latency holds up: over a sustained run, and while other work wants the same machine."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec
import numpy as np

from edgewright.contract.measurement import Measurement, MeasurementOrigin
from edgewright.profiling.quantile_intervals import median_measurement
from edgewright.profiling.target import MeasurementTarget, parse_machine
from edgewright.profiling.workload import Workload, pack_workloads

__all__ = [
    "ContentionResult",
    "LoadSlice",
    "SustainedResult",
    "detect_throttling",
    "measure_contention",
    "measure_sustained",
]

# A slowdown below this is what any machine shows from one minute to the next.
MAX_LATENCY_RATIO = 1.10
MIN_CLOCK_RATIO = 0.95

Throttling = Literal["none", "throttled", "slower"]


class LoadSlice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part of a sustained run.

    Attributes:
        end_seconds: End of the part, seconds since the start.
        median_latency_seconds: Median latency in it.
        clock_hz: Highest clock of any core at its end, None where the system does not show it.
        temperature_celsius: Highest temperature of any zone at its end, None where the system does not show it.
    """

    end_seconds: float
    median_latency_seconds: float
    clock_hz: float | None
    temperature_celsius: float | None


class SustainedResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A run without pauses.

    Attributes:
        verdict: `none`; `throttled` if latency grew while the clock fell or the heat rose; `slower` if latency grew
            and the system shows no sign why.
        slowdown: Latency at the end in units of the latency at the start.
        reason: One sentence for people.
        slices: In order.
    """

    verdict: Throttling
    slowdown: float
    reason: str
    slices: tuple[LoadSlice, ...]


class ContentionResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Latency beside other work.

    Attributes:
        idle_p50, cpu_p50, io_p50: Median latency in seconds alone, with every core busy, with writers to the disk.
        cpu_p99, io_p99: The 99th percentiles under load: a short inference is mostly spared, now and then stopped.
        cpu_slowdown, io_slowdown: Mean latency in units of the mean alone.
    """

    idle_p50: Measurement
    cpu_p50: Measurement
    cpu_p99: Measurement
    cpu_slowdown: float
    io_p50: Measurement
    io_p99: Measurement
    io_slowdown: float


def measure_sustained(target: MeasurementTarget, workload: Workload, *, seconds: float) -> SustainedResult:
    """Run a subject for `seconds` without a pause.

    Raises:
        CandidateError: The model cannot be run there.
        TargetError: The machine cannot measure.
    """
    with pack_workloads([workload]) as bundle:
        request = {"action": "sustained", "workloads": bundle.workloads, "seconds": seconds}
        reply = target.run(request, bundle.files, timeout_seconds=120 + 10 * seconds)
    return detect_throttling(msgspec.convert(reply["slices"], list[LoadSlice]))


def detect_throttling(slices: Sequence[LoadSlice]) -> SustainedResult:
    """Say from the course of latency, clock and temperature whether the machine throttles.

    The first and the last third are compared by their medians, so that one disturbed part does not decide.
    """
    third = max(1, len(slices) // 3)
    first, last = slices[:third], slices[-third:]
    slowdown = _end_to_start_ratio(first, last, "median_latency_seconds") or 1.0
    clock = _end_to_start_ratio(first, last, "clock_hz")
    before, after = (
        [part.temperature_celsius for part in parts if part.temperature_celsius is not None]
        for parts in (first, last)
    )
    rise = float(np.median(after) - np.median(before)) if before and after else 0.0
    verdict: Throttling = "none"
    reason = f"latency at the end is {slowdown:.2f} times that at the start"
    if len(slices) >= 3 and slowdown > MAX_LATENCY_RATIO:
        falls = clock is not None and clock < MIN_CLOCK_RATIO
        verdict = "throttled" if falls or rise > 3 else "slower"
        if clock is None and not (before and after):
            reason += "; this system shows neither clock nor temperature"
    if clock is not None:
        reason += f", the clock {clock:.2f} times"
    if before and after:
        reason += f", the temperature {rise:+.0f} C"
    return SustainedResult(verdict, slowdown, reason, tuple(slices))


def _end_to_start_ratio(first: Sequence[LoadSlice], last: Sequence[LoadSlice], attribute: str) -> float | None:
    """Return the median of an attribute at the end in units of the median at the start."""
    before = [value for part in first if (value := getattr(part, attribute)) is not None]
    after = [value for part in last if (value := getattr(part, attribute)) is not None]
    return float(np.median(after) / np.median(before)) if before and after and np.median(before) > 0 else None


def measure_contention(target: MeasurementTarget, workload: Workload, *, seconds: float) -> ContentionResult:
    """Run a subject alone, beside a busy process per core, and beside processes that write to the disk.

    Raises:
        CandidateError: The model cannot be run there.
        TargetError: The machine cannot measure.
    """
    with pack_workloads([workload]) as bundle:
        request = {"action": "contention", "workloads": bundle.workloads, "seconds": seconds}
        reply = target.run(request, bundle.files, timeout_seconds=120 + 10 * seconds)
    return _contention_result(reply)


def _contention_result(reply: Mapping[str, Any]) -> ContentionResult:
    machine = parse_machine(reply).summary
    loads = {"idle": "alone", "cpu": "one busy process per core", "io": "two processes writing with fsync"}
    origins = {
        kind: MeasurementOrigin(kind="measured", machine=machine, method=text) for kind, text in loads.items()
    }
    p50 = {kind: median_measurement(reply["durations"][kind], "s", origins[kind]) for kind in loads}
    p99 = {
        kind: Measurement(
            float(np.percentile(reply["durations"][kind], 99)),
            "s",
            origins[kind],
            observation_count=p50[kind].observation_count,
        )
        for kind in loads
    }
    return ContentionResult(
        idle_p50=p50["idle"],
        cpu_p50=p50["cpu"],
        cpu_p99=p99["cpu"],
        cpu_slowdown=reply["means"]["cpu"] / reply["means"]["idle"],
        io_p50=p50["io"],
        io_p99=p99["io"],
        io_slowdown=reply["means"]["io"] / reply["means"]["idle"],
    )
