"""Peak memory of loading and running a model, in a fresh process."""

from dataclasses import dataclass

from edgewright.contract.measurement import Measurement, Origin
from edgewright.profiling.quantile_intervals import extremes
from edgewright.profiling.target import Target, machine_in
from edgewright.profiling.workload import Subject, packed

__all__ = ["Memory", "measure_memory"]


@dataclass(frozen=True, slots=True)
class Memory:
    """What one subject needs, in bytes.

    Attributes:
        process_peak: Peak resident memory of a process that loads and runs the model.
        session_peak: The part of it beyond the runtime itself, which has loaded and run a trivial model before.
        runtime_size: Libraries of the runtime on disk.
    """

    process_peak: Measurement
    session_peak: Measurement
    runtime_size: Measurement


def measure_memory(target: Target, subject: Subject, *, repeats: int = 1) -> Memory:
    """Measure a subject in `repeats` fresh processes.

    Raises:
        CandidateError: The model cannot be loaded or run there.
        ModelError: The file is missing or no ONNX model.
        TargetError: The machine cannot measure.
    """
    with packed([subject]) as bundle:
        request = {"action": "memory", "subjects": bundle.subjects}
        replies = [target.run(request, bundle.files, timeout_s=120) for _ in range(repeats)]
    machine = machine_in(replies[0])
    resident = Origin(kind="measured", machine=machine.summary, method="VmHWM of a fresh process")
    beyond = Origin(
        kind="measured",
        machine=machine.summary,
        method="VmHWM of a fresh process less the runtime with a trivial model",
    )
    exact = Origin(kind="computed", machine=machine.summary, method=f"files of onnxruntime {machine.runtime}")
    return Memory(
        process_peak=extremes([float(reply["peak"]) for reply in replies], "bytes", resident),
        session_peak=extremes(
            [float(max(reply["peak"] - reply["runtime"], 0)) for reply in replies], "bytes", beyond
        ),
        runtime_size=Measurement(float(machine.runtime_bytes), "bytes", exact),
    )
