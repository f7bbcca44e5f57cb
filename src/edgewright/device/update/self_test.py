"""Proving a model on this device before it serves, and watching it for a while after.

The self-test shows that the model answers here as it did where it was made; it proves liveness, not honesty. What
fails for want of memory or for heat is tried again, later and later, before the model counts as failed.
"""

import io
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewright.contract.device_class import Budget
from edgewright.contract.refusal import Refusal
from edgewright.contract.release import SelfTest
from edgewright.runtime.session import InferenceSession

__all__ = ["Probation", "SelfTestResult", "run_self_test"]

_INPUT_PREFIX, _OUTPUT_PREFIX = "input:", "output:"
# Inferences that are timed, after some that are not.
_WARMUP_RUNS, _TIMED_RUNS = 3, 30
# A device is not the one that the budget was measured on to the last per cent.
_BUDGET_TOLERANCE = 1.1


@dataclass(frozen=True, slots=True)
class SelfTestResult:
    """What a self-test found.

    Attributes:
        failure: Why it failed, None if it passed.
        p50_latency_seconds: Median of some inferences, seconds.
        peak_memory_bytes: By how much opening and running the model raised this process' peak.
    """

    failure: Refusal | None
    p50_latency_seconds: float = 0.0
    peak_memory_bytes: int = 0


def run_self_test(
    session: InferenceSession,
    golden: bytes,
    spec: SelfTest,
    budget: Budget,
    *,
    peak_before: int,
    clock: Callable[[], float] = time.perf_counter,
) -> SelfTestResult:
    """Run the golden inputs and compare outputs, latency and memory.

    Args:
        session: Of the model on trial.
        golden: The self-test's file: `input:NAME` and `output:NAME`, each [samples, ...].
        spec: Its tolerance.
        budget: Of the variant.
        peak_before: Peak of this process before the session was opened, bytes; see `peak_memory_bytes`.
        clock: Seconds.
    """
    try:
        inputs, expected = _read(golden)
    except (ValueError, KeyError, OSError) as error:
        return SelfTestResult(Refusal("self-test", spec.file, f"the self-test cannot be read: {error}"))
    count = min((len(array) for array in inputs.values()), default=0)
    if count < spec.sample_count:
        return SelfTestResult(
            Refusal("self-test", spec.file, f"it holds {count} samples, {spec.sample_count} were signed")
        )
    for number in range(count):
        found = dict(zip(session.outputs, session.run(_golden_sample(inputs, number)), strict=True))
        for name, values in expected.items():
            worst = _relative_difference(found.get(name), values[number], values)
            if not worst <= spec.tolerance:
                return SelfTestResult(
                    Refusal(
                        "self-test",
                        spec.file,
                        f"output {name!r} of sample {number} differs by {worst:.3g} of its spread, "
                        f"{spec.tolerance:g} is allowed",
                    )
                )
    latency = _median_latency(session, _golden_sample(inputs, 0), clock)
    memory = max(0, peak_memory_bytes() - peak_before)
    return SelfTestResult(_budget_failure(latency, memory, budget), latency, memory)


@dataclass(frozen=True, slots=True)
class Probation:
    """How long a model that passed its self-test is watched.

    Attributes:
        min_inferences: So many without a failure promote it.
        min_seconds: So long without a failure promotes it.
        max_failures: More failures in that time send it back, unless it still passes its self-test.
    """

    min_inferences: int = 100
    min_seconds: float = 600.0
    max_failures: int = 0

    def is_over(self, served: int, elapsed_seconds: float) -> bool:
        """Whether a model was watched for long enough.

        >>> Probation(min_inferences=3).is_over(3, 0.0), Probation(min_inferences=3).is_over(2, 0.0)
        (True, False)
        """
        return served >= self.min_inferences or elapsed_seconds >= self.min_seconds


def peak_memory_bytes() -> int:
    """Return the peak of this process' resident memory, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _read(golden: bytes) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    with np.load(io.BytesIO(golden), allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    inputs = {
        name.removeprefix(_INPUT_PREFIX): array for name, array in arrays.items() if name.startswith(_INPUT_PREFIX)
    }
    outputs = {
        name.removeprefix(_OUTPUT_PREFIX): array
        for name, array in arrays.items()
        if name.startswith(_OUTPUT_PREFIX)
    }
    if not inputs or not outputs:
        raise ValueError("it holds no inputs or no outputs")
    return inputs, outputs


def _golden_sample(inputs: Mapping[str, NDArray[Any]], number: int) -> dict[str, NDArray[Any]]:
    return {name: array[number : number + 1] for name, array in inputs.items()}


def _relative_difference(actual: NDArray[Any] | None, expected: NDArray[Any], all_expected: NDArray[Any]) -> float:
    """Return the largest difference in units of the outputs' spread; infinite where the form differs."""
    if actual is None or actual.shape[1:] != expected.shape:
        return float("inf")
    spread = float(np.ptp(all_expected.astype(np.float64))) or 1.0
    difference = np.abs(actual[0].astype(np.float64) - expected.astype(np.float64))
    return float("inf") if np.isnan(difference).any() else float(difference.max(initial=0.0)) / spread


def _median_latency(
    session: InferenceSession, inputs: Mapping[str, NDArray[Any]], clock: Callable[[], float]
) -> float:
    times = []
    for number in range(_WARMUP_RUNS + _TIMED_RUNS):
        began = clock()
        session.run(inputs)
        if number >= _WARMUP_RUNS:
            times.append(clock() - began)
    return float(np.median(times))


def _budget_failure(latency: float, memory: int, budget: Budget) -> Refusal | None:
    if budget.latency_p50_seconds is not None and latency > _BUDGET_TOLERANCE * budget.latency_p50_seconds:
        return Refusal(
            "budget",
            "model.onnx",
            f"the median latency here is {1e3 * latency:.3g} ms, the budget {1e3 * budget.latency_p50_seconds:.3g} ms",
        )
    if budget.peak_memory_bytes is not None and memory > _BUDGET_TOLERANCE * budget.peak_memory_bytes:
        return Refusal(
            "budget", "model.onnx", f"it takes {memory} bytes here, the budget is {budget.peak_memory_bytes:.0f}"
        )
    return None
