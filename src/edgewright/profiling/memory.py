"""Peak memory of loading and running a model, in a fresh process."""

from dataclasses import dataclass

from edgewright.contract.measurement import Measurement, MeasurementOrigin
from edgewright.profiling.quantile_intervals import extremes_measurement
from edgewright.profiling.target import MeasurementTarget, parse_machine
from edgewright.profiling.workload import Workload, pack_workloads

__all__ = ["MemoryResult", "measure_memory"]


@dataclass(frozen=True, slots=True)
class MemoryResult:
    """What one subject needs, in bytes.

    Attributes:
        process_peak: Peak resident memory of a process that loads and runs the model.
        session_peak: The part of it beyond the runtime itself, which has loaded and run a trivial model before.
        runtime_size: Libraries of the runtime on disk.
    """

    process_peak: Measurement
    session_peak: Measurement
    runtime_size: Measurement


def measure_memory(target: MeasurementTarget, workload: Workload, *, repeats: int = 1) -> MemoryResult:
    """Measure a subject in `repeats` fresh processes.

    Raises:
        CandidateError: The model cannot be loaded or run there.
        ModelError: The file is missing or no ONNX model.
        TargetError: The machine cannot measure.
    """
    with pack_workloads([workload]) as bundle:
        request = {"action": "memory", "workloads": bundle.workloads}
        replies = [target.run(request, bundle.files, timeout_seconds=120) for _ in range(repeats)]
    machine = parse_machine(replies[0])
    resident = MeasurementOrigin(kind="measured", machine=machine.summary, method="VmHWM of a fresh process")
    beyond = MeasurementOrigin(
        kind="measured",
        machine=machine.summary,
        method="VmHWM of a fresh process less the runtime with a trivial model",
    )
    exact = MeasurementOrigin(
        kind="computed", machine=machine.summary, method=f"files of onnxruntime {machine.runtime}"
    )
    return MemoryResult(
        process_peak=extremes_measurement([float(reply["peak"]) for reply in replies], "bytes", resident),
        session_peak=extremes_measurement(
            [float(max(reply["peak"] - reply["runtime"], 0)) for reply in replies], "bytes", beyond
        ),
        runtime_size=Measurement(float(machine.runtime_bytes), "bytes", exact),
    )
