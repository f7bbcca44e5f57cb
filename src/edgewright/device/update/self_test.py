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
from edgewright.runtime.session import Session

__all__ = ["Probation", "Trial", "self_test"]

_INPUT, _OUTPUT = "input:", "output:"
# Inferences that are timed, after some that are not.
_WARM, _TIMED = 3, 30
# A device is not the one that the budget was measured on to the last per cent.
_SLACK = 1.1


@dataclass(frozen=True, slots=True)
class Trial:
    """What a self-test found.

    Attributes:
        failure: Why it failed, None if it passed.
        p50_latency_s: Median of some inferences, seconds.
        memory_bytes: By how much opening and running the model raised this process' peak.
    """

    failure: Refusal | None
    p50_latency_s: float = 0.0
    memory_bytes: int = 0


def self_test(
    session: Session,
    golden: bytes,
    test: SelfTest,
    budget: Budget,
    *,
    peak_before: int,
    clock: Callable[[], float] = time.perf_counter,
) -> Trial:
    """Run the golden inputs and compare outputs, latency and memory.

    Args:
        session: Of the model on trial.
        golden: The self-test's file: `input:NAME` and `output:NAME`, each [samples, ...].
        test: Its tolerance.
        budget: Of the variant.
        peak_before: Peak of this process before the session was opened, bytes; see `peak_bytes`.
        clock: Seconds.
    """
    try:
        inputs, expected = _read(golden)
    except (ValueError, KeyError, OSError) as error:
        return Trial(Refusal("self-test", test.file, f"the self-test cannot be read: {error}"))
    count = min((len(array) for array in inputs.values()), default=0)
    if count < test.samples:
        return Trial(Refusal("self-test", test.file, f"it holds {count} samples, {test.samples} were signed"))
    for number in range(count):
        found = dict(zip(session.outputs, session.run(_sample(inputs, number)), strict=True))
        for name, values in expected.items():
            worst = _difference(found.get(name), values[number], values)
            if not worst <= test.tolerance:
                return Trial(
                    Refusal(
                        "self-test",
                        test.file,
                        f"output {name!r} of sample {number} differs by {worst:.3g} of its spread, "
                        f"{test.tolerance:g} is allowed",
                    )
                )
    latency = _latency(session, _sample(inputs, 0), clock)
    memory = max(0, peak_bytes() - peak_before)
    return Trial(_over_budget(latency, memory, budget), latency, memory)


@dataclass(frozen=True, slots=True)
class Probation:
    """How long a model that passed its self-test is watched.

    Attributes:
        inferences: So many without a failure promote it.
        seconds: So long without a failure promotes it.
        most_failures: More failures in that time send it back, unless it still passes its self-test.
    """

    inferences: int = 100
    seconds: float = 600.0
    most_failures: int = 0

    def is_over(self, served: int, elapsed_s: float) -> bool:
        """Whether a model was watched for long enough.

        >>> Probation(inferences=3).is_over(3, 0.0), Probation(inferences=3).is_over(2, 0.0)
        (True, False)
        """
        return served >= self.inferences or elapsed_s >= self.seconds


def peak_bytes() -> int:
    """Return the peak of this process' resident memory, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _read(golden: bytes) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    with np.load(io.BytesIO(golden), allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    inputs = {name.removeprefix(_INPUT): array for name, array in arrays.items() if name.startswith(_INPUT)}
    outputs = {name.removeprefix(_OUTPUT): array for name, array in arrays.items() if name.startswith(_OUTPUT)}
    if not inputs or not outputs:
        raise ValueError("it holds no inputs or no outputs")
    return inputs, outputs


def _sample(inputs: Mapping[str, NDArray[Any]], number: int) -> dict[str, NDArray[Any]]:
    return {name: array[number : number + 1] for name, array in inputs.items()}


def _difference(found: NDArray[Any] | None, expected: NDArray[Any], all_expected: NDArray[Any]) -> float:
    """Return the largest difference in units of the outputs' spread; infinite where the form differs."""
    if found is None or found.shape[1:] != expected.shape:
        return float("inf")
    spread = float(np.ptp(all_expected.astype(np.float64))) or 1.0
    difference = np.abs(found[0].astype(np.float64) - expected.astype(np.float64))
    return float("inf") if np.isnan(difference).any() else float(difference.max(initial=0.0)) / spread


def _latency(session: Session, feed: Mapping[str, NDArray[Any]], clock: Callable[[], float]) -> float:
    times = []
    for number in range(_WARM + _TIMED):
        began = clock()
        session.run(feed)
        if number >= _WARM:
            times.append(clock() - began)
    return float(np.median(times))


def _over_budget(latency: float, memory: int, budget: Budget) -> Refusal | None:
    if budget.latency_p50_s is not None and latency > _SLACK * budget.latency_p50_s:
        return Refusal(
            "budget",
            "model.onnx",
            f"the median latency here is {1e3 * latency:.3g} ms, the budget {1e3 * budget.latency_p50_s:.3g} ms",
        )
    if budget.peak_memory_bytes is not None and memory > _SLACK * budget.peak_memory_bytes:
        return Refusal(
            "budget", "model.onnx", f"it takes {memory} bytes here, the budget is {budget.peak_memory_bytes:.0f}"
        )
    return None
