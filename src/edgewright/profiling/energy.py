"""Energy per inference: from the target's own meters, or estimated from CPU time and labelled so."""

import numpy as np

from edgewright.contract.measurement import Measurement, MeasurementOrigin
from edgewright.profiling.latency import LatencyResult
from edgewright.profiling.power_meters import PowerMeter, find_meters
from edgewright.profiling.quantile_intervals import median_measurement
from edgewright.profiling.target import MeasurementTarget, parse_machine
from edgewright.profiling.workload import Workload, pack_workloads

__all__ = ["PowerMeter", "estimate_energy", "find_meters", "measure_energy"]


def measure_energy(
    target: MeasurementTarget,
    workload: Workload,
    *,
    watts_per_core: float,
    latency: LatencyResult,
    seconds: float = 2.0,
) -> Measurement:
    """Return joules per inference beyond what the idle machine draws.

    Args:
        target: The machine.
        workload: What to run.
        watts_per_core: Power of one busy core, used where no meter can be read.
        latency: Of the same subject on the same machine; it says how much CPU time an inference takes.
        seconds: Duration of idling and running together.

    Returns:
        Measured where the machine has a meter that resolves the difference, otherwise estimated.

    Raises:
        CandidateError: The model cannot be run there.
        TargetError: The machine cannot measure.
    """
    estimate = estimate_energy(latency, watts_per_core)
    if not latency.machine.meters:
        return estimate
    with pack_workloads([workload]) as bundle:
        request = {"action": "energy", "workloads": bundle.workloads, "seconds": seconds}
        reply = target.run(request, bundle.files, timeout_seconds=120 + 10 * seconds)
    pairs = reply["pairs"]
    if not pairs:
        return estimate
    joules = [
        (pair["busy_joules"] - pair["idle_watts"] * pair["busy_seconds"]) / pair["inferences"] for pair in pairs
    ]
    method = (
        f"{' + '.join(reply['meters'])} less idle power, {sum(pair['inferences'] for pair in pairs)} inferences"
    )
    origin = MeasurementOrigin(kind="measured", machine=parse_machine(reply).summary, method=method)
    # A meter that is too coarse or dominated by other loads may even show that running saves energy.
    return estimate if np.median(joules) <= 0 else median_measurement(joules, "J", origin)


def estimate_energy(latency: LatencyResult, watts_per_core: float) -> Measurement:
    """Return joules per inference as CPU time times the power of a busy core."""
    method = f"CPU time {latency.cpu_seconds * 1e3:.3g} ms x {watts_per_core:g} W per busy core"
    origin = MeasurementOrigin(kind="estimated", machine=latency.machine.summary, method=method)
    return Measurement(latency.cpu_seconds * watts_per_core, "J", origin)
