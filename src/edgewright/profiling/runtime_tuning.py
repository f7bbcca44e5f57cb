"""Which runtime options run a model fastest on a target, and what that gains."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from numpy.typing import NDArray

from edgewright.contract.errors import CandidateError
from edgewright.contract.measurement import Measurement
from edgewright.profiling.latency import LatencyResult, Workload, measure_latency, paired_ratio
from edgewright.profiling.target import Machine, MeasurementTarget, query_machine
from edgewright.runtime.options import RuntimeOptions

__all__ = ["OptionsSearchResult", "OptionsTrial", "choose_best_options", "find_best_options"]

# Providers that run on the CPU itself, so that threads mean the same; others are measured as they are.
_REMOTE_PROVIDERS = ("AzureExecutionProvider",)


class OptionsTrial(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One row of what was tried.

    Attributes:
        options: As tried.
        latency_p50: Seconds; None where it does not run.
        ratio: Latency in units of the default's, paired.
        problem: Why it does not run, empty if it does.
    """

    options: RuntimeOptions
    latency_p50: Measurement | None
    ratio: Measurement | None
    problem: str = ""


class OptionsSearchResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The answer of `find_best_options`.

    Attributes:
        default: What the others were compared with.
        best: The default itself unless another is clearly faster.
        gain: Latency of the best in units of the default's, measured again after the choice; None if it is the
            default.
        trials: All of them.
    """

    default: RuntimeOptions
    best: RuntimeOptions
    gain: Measurement | None
    trials: tuple[OptionsTrial, ...]


def find_best_options(
    target: MeasurementTarget,
    model: Path,
    inputs: Mapping[str, NDArray[Any]],
    *,
    seconds: float,
    seed: int = 0,
    threads_limit: int | None = None,
    default: RuntimeOptions | None = None,
) -> OptionsSearchResult:
    """Measure options in turns and return the best: first threads and providers, then the optimisation level.

    Args:
        target: The machine.
        model: ONNX file.
        inputs: One inference's inputs.
        seconds: For everything together.
        seed: Of the order of measuring.
        threads_limit: Threads that an inference may use; as many as the target has cores without it.
        default: What a change must clearly beat; `RuntimeOptions()` without it.

    Raises:
        CandidateError: The model does not run with the default options.
        TargetError: The machine cannot measure.
    """
    start = default or RuntimeOptions()
    machine = query_machine(target)
    limit = min(machine.cores, threads_limit or machine.cores)
    first = _MeasuredOptions.measure(
        target, model, inputs, [start, *_candidate_options(start, machine, limit)], seconds * 0.45, seed
    )
    leader = first.best()
    levels = [msgspec.structs.replace(leader, optimization=level) for level in ("layout", "extended", "basic")]
    contenders = [start, *([leader] if leader != start else []), *levels]
    second = _MeasuredOptions.measure(target, model, inputs, contenders, seconds * 0.3, seed + 1)
    best = second.best()
    gain = None
    if best != start:
        # Measured again: the winner of many was also the luckiest.
        again = _MeasuredOptions.measure(target, model, inputs, [start, best], seconds * 0.25, seed + 2)
        ratio = again.rows()[1].ratio
        if ratio is not None and ratio.high is not None and ratio.high < 1:
            gain = ratio
        else:
            best = start
    known = {row.options for row in first.rows()}
    tried = (*first.rows(), *(row for row in second.rows() if row.options not in known))
    return OptionsSearchResult(default=start, best=best, gain=gain, trials=tried)


def _candidate_options(default: RuntimeOptions, machine: Machine, threads_limit: int) -> list[RuntimeOptions]:
    """Return the threads, spinning and providers worth trying besides the default."""
    counts = [threads for threads in (1, 2, 4, 8, 16, 32) if threads < threads_limit] + [threads_limit]
    tried = [
        msgspec.structs.replace(default, threads=threads, spinning=spinning)
        for threads in counts
        for spinning in ((False, True) if threads > 1 else (False,))
    ]
    tried += [
        msgspec.structs.replace(default, providers=(provider, "CPUExecutionProvider"))
        for provider in machine.providers
        if provider != "CPUExecutionProvider" and provider not in _REMOTE_PROVIDERS
    ]
    return [options for options in tried if options != default]


@dataclass(frozen=True, slots=True)
class _MeasuredOptions:
    """Options measured together; the first is the default."""

    options: Sequence[RuntimeOptions]
    results: Sequence[LatencyResult | CandidateError]

    @classmethod
    def measure(
        cls,
        target: MeasurementTarget,
        model: Path,
        inputs: Mapping[str, NDArray[Any]],
        options: Sequence[RuntimeOptions],
        seconds: float,
        seed: int,
    ) -> "_MeasuredOptions":
        subjects = [Workload(describe_options(each), model, each, inputs) for each in options]
        results = measure_latency(target, subjects, seconds=seconds, seed=seed)
        if isinstance(results[0], CandidateError):
            raise results[0]
        return cls(options, results)

    def rows(self) -> list[OptionsTrial]:
        base = self.results[0]
        assert isinstance(base, LatencyResult)  # noqa: S101 (checked when it was measured)
        # Each of many comparisons is held to a stricter confidence, so that all hold together.
        confidence = 1 - 0.05 / max(1, len(self.options) - 1)
        return [
            OptionsTrial(options, None, None, result.message)
            if isinstance(result, CandidateError)
            else OptionsTrial(options, result.p50, paired_ratio(result, base, confidence))
            for options, result in zip(self.options, self.results, strict=True)
        ]

    def best(self) -> RuntimeOptions:
        return choose_best_options(self.rows())


def describe_options(options: RuntimeOptions) -> str:
    """Say options in a few words.

    >>> describe_options(RuntimeOptions(threads=2, spinning=True))
    '2 threads spinning, all, CPU'
    """
    threads = (
        f"{options.threads} thread{'s' if options.threads > 1 else ''}{' spinning' if options.spinning else ''}"
    )
    return f"{threads}, {options.optimization}, {options.providers[0].removesuffix('ExecutionProvider')}"


def choose_best_options(rows: Sequence[OptionsTrial]) -> RuntimeOptions:
    """Return the best options; the first row is the default and stays unless another is clearly faster.

    Of those whose intervals overlap the fastest one's, the one with the fewest threads wins, then the one that
    does not spin, then the one that is tried first.
    """
    default = rows[0]
    clear = [row for row in rows[1:] if row.ratio is not None and row.ratio.high is not None and row.ratio.high < 1]
    if not clear:
        return default.options
    fastest = min(clear, key=_latency_ratio)
    assert fastest.ratio is not None  # noqa: S101 (only such rows are clear)
    limit = fastest.ratio.high or fastest.ratio.value
    ties = [row for row in clear if row.ratio is not None and (row.ratio.low or row.ratio.value) <= limit]
    return min(ties, key=lambda row: (row.options.threads, row.options.spinning, rows.index(row))).options


def _latency_ratio(row: OptionsTrial) -> float:
    return row.ratio.value if row.ratio is not None else float("inf")
