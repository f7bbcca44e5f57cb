"""Latency of models measured in turns, so that a machine that drifts does not decide between them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewright.contract.errors import CandidateError, EdgewrightError, ModelError
from edgewright.contract.measurement import Measurement, MeasurementOrigin
from edgewright.profiling.quantile_intervals import median_measurement, percentile_measurement
from edgewright.profiling.target import Machine, MeasurementTarget, parse_machine
from edgewright.profiling.workload import Workload, external_files, pack_workloads

__all__ = ["LatencyResult", "Workload", "measure_latency", "measure_ratios", "paired_ratio"]


@dataclass(frozen=True, slots=True)
class LatencyResult:
    """How fast one subject runs.

    Attributes:
        label: Of the subject.
        round_medians_seconds: Shape [rounds], median latency in each round; aligned between the subjects of one call.
        p50: Median of the rounds' medians, seconds.
        p95: 95th percentile of single inferences, seconds.
        p99: 99th percentile, seconds.
        cold_start: Creating the session and running it once, seconds.
        throughput: Inferences per second, one after the other.
        cpu_seconds: CPU seconds that one inference takes on all cores together.
        machine: Where this was measured.
    """

    label: str
    round_medians_seconds: NDArray[np.float64]
    p50: Measurement
    p95: Measurement
    p99: Measurement
    cold_start: Measurement
    throughput: Measurement
    cpu_seconds: float
    machine: Machine


def measure_latency(
    target: MeasurementTarget, workloads: Sequence[Workload], *, seconds: float, seed: int = 0
) -> list[LatencyResult | CandidateError]:
    """Measure subjects together, in small rounds whose order is new each time.

    Args:
        target: The machine.
        workloads: At least one.
        seconds: For all subjects together, warm-up included; slow models may need more.
        seed: Of the order and of the resampling.

    Returns:
        In the order of `workloads`: the latency, or why this one cannot be measured.

    Raises:
        TargetError: The machine cannot measure at all.
    """
    results: list[LatencyResult | CandidateError] = []
    problems: dict[int, CandidateError] = {}
    for index, subject in enumerate(workloads):
        try:
            external_files(subject.model)
        except ModelError as error:
            problems[index] = _with_label(subject, error)
    good = [index for index in range(len(workloads)) if index not in problems]
    reply = _run_isolating_crashes(target, workloads, good, problems, seconds, seed)
    measured = dict(zip(good, reply["workloads"], strict=True)) if reply else {}
    for index, subject in enumerate(workloads):
        entry = measured.get(index)
        if index in problems or entry is None:
            results.append(problems[index])
        elif "error" in entry:
            results.append(CandidateError(f"{subject.label}: {entry['error']}", remedy=_RUNTIME_MISMATCH_HINT))
        else:
            results.append(_latency_result(subject.label, entry, parse_machine(reply), seed))
    return results


_RUNTIME_MISMATCH_HINT = "Check that the model and its inputs fit this version of onnxruntime."


def _with_label(workload: Workload, error: EdgewrightError) -> CandidateError:
    return CandidateError(f"{workload.label}: {error.message}", remedy=error.remedy)


def _run_isolating_crashes(
    target: MeasurementTarget,
    workloads: Sequence[Workload],
    runnable: list[int],
    problems: dict[int, CandidateError],
    seconds: float,
    seed: int,
) -> dict[str, Any]:
    """Run the worker; when a model crashes it, find that model, and go on with the rest."""
    while runnable:
        try:
            with pack_workloads([workloads[index] for index in runnable]) as bundle:
                request = {"action": "latency", "workloads": bundle.workloads, "seconds": seconds, "seed": seed}
                return target.run(request, bundle.files, timeout_seconds=120 + 20 * seconds)
        except CandidateError as crash:
            culprits = [index for index in runnable if _crashes_alone(target, workloads[index], problems, index)]
            if not culprits:  # only together, for example for want of memory
                culprits = list(runnable)
                problems.update({index: _with_label(workloads[index], crash) for index in runnable})
            runnable[:] = [index for index in runnable if index not in culprits]
    return {}


def _crashes_alone(
    target: MeasurementTarget, workload: Workload, problems: dict[int, CandidateError], index: int
) -> bool:
    try:
        with pack_workloads([workload]) as bundle:
            target.run({"action": "probe", "workloads": bundle.workloads}, bundle.files, timeout_seconds=120)
    except CandidateError as crash:
        problems[index] = _with_label(workload, crash)
        return True
    return False


def _latency_result(label: str, entry: dict[str, Any], machine: Machine, seed: int) -> LatencyResult:
    """Turn the worker's samples into figures with intervals."""
    rounds_seconds = np.asarray(entry["round_medians_seconds"], np.float64)
    samples = np.asarray(entry["samples"], np.float64)
    sample_rounds = np.asarray(entry["sample_rounds"], np.int64)
    method = f"onnxruntime {machine.runtime}, {len(rounds_seconds)} interleaved rounds, {entry['count']} inferences"
    origin = MeasurementOrigin(kind="measured", machine=machine.summary, method=method)
    p50 = median_measurement(rounds_seconds, "s", origin)
    return LatencyResult(
        label=label,
        round_medians_seconds=rounds_seconds,
        p50=p50,
        p95=percentile_measurement(samples, sample_rounds, 95, "s", origin, seed=seed),
        p99=percentile_measurement(samples, sample_rounds, 99, "s", origin, seed=seed),
        cold_start=median_measurement(entry["cold_starts_seconds"], "s", origin),
        throughput=median_measurement(1 / np.asarray(entry["means"]), "1/s", origin),
        cpu_seconds=entry["cpu_seconds"],
        machine=machine,
    )


def paired_ratio(numerator: LatencyResult, denominator: LatencyResult, confidence: float = 0.95) -> Measurement:
    """Return how long `numerator` takes in units of `denominator`: the median of the rounds' ratios, with its interval.

    Drift of the machine over the measurement cancels, since both were measured in every round.

    Raises:
        ValueError: They are not from the same call of `measure_latency`.
    """
    if len(numerator.round_medians_seconds) != len(denominator.round_medians_seconds):
        raise ValueError(
            f"{numerator.label} has {len(numerator.round_medians_seconds)} rounds, {denominator.label} "
            f"{len(denominator.round_medians_seconds)}: measure them together"
        )
    method = (
        f"median of {len(numerator.round_medians_seconds)} paired rounds, {numerator.label} / {denominator.label}"
    )
    origin = MeasurementOrigin(kind="measured", machine=numerator.machine.summary, method=method)
    return median_measurement(
        numerator.round_medians_seconds / denominator.round_medians_seconds, "ratio", origin, confidence
    )


# An interval that is wider than this, as a share of the ratio, was disturbed; so often it is measured at most.
_MAX_RELATIVE_WIDTH, _MAX_REPEATS = 0.05, 3


def measure_ratios(
    target: MeasurementTarget, baseline: Workload, candidates: Sequence[Workload], *, seconds: float, seed: int = 0
) -> tuple[LatencyResult, list[Measurement | CandidateError]]:
    """Measure how long each of the others takes in units of the base; what was disturbed is measured again.

    Now and then a process on a busy machine is slower with one model and not with the other, and the ratio is off
    by a quarter or more. Its interval shows that, and the next process is all right.

    Args:
        target: The machine.
        baseline: What is compared with.
        candidates: At least one.
        seconds: Of one measurement, for all subjects together.
        seed: Of the order and of the resampling.

    Returns:
        The base's latency in the first measurement; then, in the order of `candidates`, the ratio of the narrowest
        interval, or why there is none.

    Raises:
        CandidateError: The base cannot be measured.
        TargetError: The machine cannot measure at all.
    """
    found: list[Measurement | CandidateError | None] = [None] * len(candidates)
    waiting = list(range(len(candidates)))
    reference: LatencyResult | None = None
    for _ in range(_MAX_REPEATS):
        part = [baseline, *(candidates[i] for i in waiting)]
        first, *rest = measure_latency(target, part, seconds=seconds * len(part) / (len(candidates) + 1), seed=seed)
        if isinstance(first, CandidateError):
            raise first
        reference = reference or first
        for i, latency in zip(waiting, rest, strict=True):
            ratio = latency if isinstance(latency, CandidateError) else paired_ratio(latency, first)
            found[i] = _narrower_ratio(found[i], ratio)
        waiting = [i for i in waiting if _relative_width(found[i]) > _MAX_RELATIVE_WIDTH]
        if not waiting:
            break
    assert reference is not None  # noqa: S101 - measured at least once
    return reference, [ratio for ratio in found if ratio is not None]


def _narrower_ratio(
    previous: Measurement | CandidateError | None, ratio: Measurement | CandidateError
) -> Measurement | CandidateError:
    return ratio if previous is None or _relative_width(ratio) < _relative_width(previous) else previous


def _relative_width(ratio: Measurement | CandidateError | None) -> float:
    """Return the width of a ratio's interval as a share of it, 0 for an error: that would come again."""
    if ratio is None or isinstance(ratio, CandidateError) or ratio.low is None or ratio.high is None:
        return 0.0
    return (ratio.high - ratio.low) / ratio.value
