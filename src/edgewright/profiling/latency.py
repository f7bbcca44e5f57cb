"""Latency of models measured in turns, so that a machine that drifts does not decide between them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewright.contract.errors import CandidateError, EdgewrightError, ModelError
from edgewright.contract.measurement import Measurement, Origin
from edgewright.profiling.quantile_intervals import median_measurement, percentile_measurement
from edgewright.profiling.target import Machine, Target, machine_in
from edgewright.profiling.workload import Subject, external_files, packed

__all__ = ["Latency", "Subject", "measure_latency", "measure_ratios", "paired_ratio"]


@dataclass(frozen=True, slots=True)
class Latency:
    """How fast one subject runs.

    Attributes:
        label: Of the subject.
        rounds_s: Shape [rounds], median latency in each round; aligned between the subjects of one call.
        p50: Median of the rounds' medians, seconds.
        p95: 95th percentile of single inferences, seconds.
        p99: 99th percentile, seconds.
        cold_start: Creating the session and running it once, seconds.
        throughput: Inferences per second, one after the other.
        cpu_s: CPU seconds that one inference takes on all cores together.
        machine: Where this was measured.
    """

    label: str
    rounds_s: NDArray[np.float64]
    p50: Measurement
    p95: Measurement
    p99: Measurement
    cold_start: Measurement
    throughput: Measurement
    cpu_s: float
    machine: Machine


def measure_latency(
    target: Target, subjects: Sequence[Subject], *, seconds: float, seed: int = 0
) -> list[Latency | CandidateError]:
    """Measure subjects together, in small rounds whose order is new each time.

    Args:
        target: The machine.
        subjects: At least one.
        seconds: For all subjects together, warm-up included; slow models may need more.
        seed: Of the order and of the resampling.

    Returns:
        In the order of `subjects`: the latency, or why this one cannot be measured.

    Raises:
        TargetError: The machine cannot measure at all.
    """
    results: list[Latency | CandidateError] = []
    problems: dict[int, CandidateError] = {}
    for index, subject in enumerate(subjects):
        try:
            external_files(subject.model)
        except ModelError as error:
            problems[index] = _named(subject, error)
    good = [index for index in range(len(subjects)) if index not in problems]
    reply = _reply(target, subjects, good, problems, seconds, seed)
    measured = dict(zip(good, reply["subjects"], strict=True)) if reply else {}
    for index, subject in enumerate(subjects):
        entry = measured.get(index)
        if index in problems or entry is None:
            results.append(problems[index])
        elif "error" in entry:
            results.append(CandidateError(f"{subject.label}: {entry['error']}", remedy=_REMEDY))
        else:
            results.append(_latency(subject.label, entry, machine_in(reply), seed))
    return results


_REMEDY = "Check that the model and its inputs fit this version of onnxruntime."


def _named(subject: Subject, error: EdgewrightError) -> CandidateError:
    return CandidateError(f"{subject.label}: {error.message}", remedy=error.remedy)


def _reply(
    target: Target,
    subjects: Sequence[Subject],
    good: list[int],
    problems: dict[int, CandidateError],
    seconds: float,
    seed: int,
) -> dict[str, Any]:
    """Run the worker; when a model crashes it, find that model, and go on with the rest."""
    while good:
        try:
            with packed([subjects[index] for index in good]) as bundle:
                request = {"action": "latency", "subjects": bundle.subjects, "seconds": seconds, "seed": seed}
                return target.run(request, bundle.files, timeout_s=120 + 20 * seconds)
        except CandidateError as crash:
            culprits = [index for index in good if _crashes(target, subjects[index], problems, index)]
            if not culprits:  # only together, for example for want of memory
                culprits = list(good)
                problems.update({index: _named(subjects[index], crash) for index in good})
            good[:] = [index for index in good if index not in culprits]
    return {}


def _crashes(target: Target, subject: Subject, problems: dict[int, CandidateError], index: int) -> bool:
    try:
        with packed([subject]) as bundle:
            target.run({"action": "probe", "subjects": bundle.subjects}, bundle.files, timeout_s=120)
    except CandidateError as crash:
        problems[index] = _named(subject, crash)
        return True
    return False


def _latency(label: str, entry: dict[str, Any], machine: Machine, seed: int) -> Latency:
    """Turn the worker's samples into figures with intervals."""
    rounds_s = np.asarray(entry["rounds"], np.float64)
    samples = np.asarray(entry["samples"], np.float64)
    sample_rounds = np.asarray(entry["sample_rounds"], np.int64)
    method = f"onnxruntime {machine.runtime}, {len(rounds_s)} interleaved rounds, {entry['count']} inferences"
    origin = Origin(kind="measured", machine=machine.summary, method=method)
    p50 = median_measurement(rounds_s, "s", origin)
    return Latency(
        label=label,
        rounds_s=rounds_s,
        p50=p50,
        p95=percentile_measurement(samples, sample_rounds, 95, "s", origin, seed=seed),
        p99=percentile_measurement(samples, sample_rounds, 99, "s", origin, seed=seed),
        cold_start=median_measurement(entry["cold"], "s", origin),
        throughput=median_measurement(1 / np.asarray(entry["means"]), "1/s", origin),
        cpu_s=entry["cpu_s"],
        machine=machine,
    )


def paired_ratio(a: Latency, b: Latency, confidence: float = 0.95) -> Measurement:
    """Return how long `a` takes in units of `b`: the median of the rounds' ratios, with its interval.

    Drift of the machine over the measurement cancels, since both were measured in every round.

    Raises:
        ValueError: They are not from the same call of `measure_latency`.
    """
    if len(a.rounds_s) != len(b.rounds_s):
        raise ValueError(
            f"{a.label} has {len(a.rounds_s)} rounds, {b.label} {len(b.rounds_s)}: measure them together"
        )
    method = f"median of {len(a.rounds_s)} paired rounds, {a.label} / {b.label}"
    origin = Origin(kind="measured", machine=a.machine.summary, method=method)
    return median_measurement(a.rounds_s / b.rounds_s, "ratio", origin, confidence)


# An interval that is wider than this, as a share of the ratio, was disturbed; so often it is measured at most.
_WIDE, _TIMES = 0.05, 3


def measure_ratios(
    target: Target, base: Subject, others: Sequence[Subject], *, seconds: float, seed: int = 0
) -> tuple[Latency, list[Measurement | CandidateError]]:
    """Measure how long each of the others takes in units of the base; what was disturbed is measured again.

    Now and then a process on a busy machine is slower with one model and not with the other, and the ratio is off
    by a quarter or more. Its interval shows that, and the next process is all right.

    Args:
        target: The machine.
        base: What is compared with.
        others: At least one.
        seconds: Of one measurement, for all subjects together.
        seed: Of the order and of the resampling.

    Returns:
        The base's latency in the first measurement; then, in the order of `others`, the ratio of the narrowest
        interval, or why there is none.

    Raises:
        CandidateError: The base cannot be measured.
        TargetError: The machine cannot measure at all.
    """
    found: list[Measurement | CandidateError | None] = [None] * len(others)
    waiting = list(range(len(others)))
    reference: Latency | None = None
    for _ in range(_TIMES):
        part = [base, *(others[i] for i in waiting)]
        first, *rest = measure_latency(target, part, seconds=seconds * len(part) / (len(others) + 1), seed=seed)
        if isinstance(first, CandidateError):
            raise first
        reference = reference or first
        for i, latency in zip(waiting, rest, strict=True):
            ratio = latency if isinstance(latency, CandidateError) else paired_ratio(latency, first)
            found[i] = _narrower(found[i], ratio)
        waiting = [i for i in waiting if _width(found[i]) > _WIDE]
        if not waiting:
            break
    assert reference is not None  # noqa: S101 - measured at least once
    return reference, [ratio for ratio in found if ratio is not None]


def _narrower(
    known: Measurement | CandidateError | None, ratio: Measurement | CandidateError
) -> Measurement | CandidateError:
    return ratio if known is None or _width(ratio) < _width(known) else known


def _width(ratio: Measurement | CandidateError | None) -> float:
    """Return the width of a ratio's interval as a share of it, 0 for an error: that would come again."""
    if ratio is None or isinstance(ratio, CandidateError) or ratio.low is None or ratio.high is None:
        return 0.0
    return (ratio.high - ratio.low) / ratio.value
