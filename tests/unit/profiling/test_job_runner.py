"""A job can measure models, and nothing else."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgewright.contract.errors import ModelError
from edgewright.profiling.job_archive import JobFailure, pack_job
from edgewright.profiling.job_runner import JobOutcome, WorkerLimits, run_job
from edgewright.profiling.latency import Workload
from edgewright.profiling.target import parse_machine
from edgewright.profiling.workload import pack_workloads
from edgewright.runtime.external_data import external_locations
from edgewright.runtime.options import RuntimeOptions

Make = Callable[..., Workload]
_GRANT = WorkerLimits.default()


def _do(
    subject: Workload, action: str = "probe", *, grant: WorkerLimits = _GRANT, timeout_seconds: float = 60.0
) -> JobOutcome:
    with pack_workloads([subject]) as bundle:
        request = {"action": action, "workloads": bundle.workloads, "seconds": 0.2, "seed": 0}
        return run_job(
            pack_job(request, bundle.files, timeout_seconds=timeout_seconds, expires_after_seconds=60.0), grant
        )


def _failure(outcome: JobOutcome) -> JobFailure:
    assert not outcome.succeeded
    return msgspec.json.decode(outcome.content, type=JobFailure)


@pytest.mark.parametrize("action", ["probe", "latency", "memory", "sustained", "contention", "energy"])
def test_every_action_of_the_worker_works_within_its_limits(action: str, subject: Make) -> None:
    outcome = _do(subject(), action)
    assert outcome.succeeded, outcome.content
    assert parse_machine(json.loads(outcome.content)).cores >= 1


def test_tensors_in_a_file_that_came_along_are_read(external: Path) -> None:
    feed = {"x": np.ones((1, 64), np.float32)}
    assert _do(Workload("external", external, RuntimeOptions(), feed)).succeeded


def _moved(model: Path, to: str) -> bytes:
    proto = onnx.load(str(model), load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = to
    return bytes(proto.SerializeToString())


@pytest.mark.parametrize(
    "place",
    ["/etc/hostname", "../1.npz", "./weights.bin", "other.bin", "*/_ORT_MEM_ADDR_/*", "0/weights.bin", ""],
)
def test_tensors_anywhere_else_are_refused_before_the_runtime_sees_them(
    place: str, external: Path, subject: Make, tmp_path: Path
) -> None:
    made = subject(64)
    changed = tmp_path / "changed.onnx"
    changed.write_bytes(_moved(external, place))
    with pack_workloads([made]) as bundle:
        files = bundle.files | {"0/model.onnx": changed, "0/weights.bin": external.parent / "weights.bin"}
        request = {"action": "probe", "workloads": bundle.workloads}
        outcome = run_job(pack_job(request, files, timeout_seconds=60.0, expires_after_seconds=60.0), _GRANT)
    failure = _failure(outcome)
    assert failure.kind == "refused"
    assert "did not come with it" in failure.message


def test_an_entry_with_two_places_is_judged_by_both() -> None:
    def field(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2, len(content)]) + content

    entry = field(1, b"location") + field(2, b"weights.bin") + field(2, b"/etc/passwd")
    assert external_locations(field(7, field(5, field(13, entry)))) == {"weights.bin", "/etc/passwd"}
    with pytest.raises(ModelError, match="does not say where"):
        external_locations(field(7, field(5, field(13, field(1, b"offset") + field(2, b"4")))))


def test_a_provider_that_sends_inputs_elsewhere_is_refused(subject: Make) -> None:
    failure = _failure(_do(subject(options=RuntimeOptions(providers=("AzureExecutionProvider",)))))
    assert failure.kind == "refused"
    assert "AzureExecutionProvider" in failure.message


def test_a_model_that_the_runtime_lacks_an_operator_for_is_the_models_failure(lacking_op: Path) -> None:
    failure = _failure(_do(Workload("lacking", lacking_op, RuntimeOptions(), {"x": np.ones((1, 16), np.float32)})))
    assert failure.kind == "candidate"
    assert "NoSuchThing" in failure.message


def _hungry(path: Path, megabytes: int) -> Workload:
    """A model of a few bytes that fills as much memory as it is told."""
    graph = helper.make_graph(
        [helper.make_node("ConstantOfShape", ["n"], ["y"])],
        "hungry",
        [helper.make_tensor_value_info("n", TensorProto.INT64, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return Workload("hungry", path, RuntimeOptions(), {"n": np.array([megabytes << 18], np.int64)})


def test_a_model_gets_no_more_memory_than_was_granted(tmp_path: Path) -> None:
    hungry = _hungry(tmp_path / "hungry.onnx", 1024)
    assert _do(hungry, grant=WorkerLimits(4 << 30)).succeeded
    failure = _failure(_do(hungry, grant=WorkerLimits(512 << 20)))
    assert failure.kind == "candidate"


def test_a_model_that_takes_too_long_is_ended(subject: Make) -> None:
    with pack_workloads([subject()]) as bundle:
        request = {"action": "sustained", "workloads": bundle.workloads, "seconds": 60.0}
        failure = _failure(
            run_job(pack_job(request, bundle.files, timeout_seconds=1.0, expires_after_seconds=60.0), _GRANT)
        )
    assert failure.kind == "target"
    assert "longer than 1 s" in failure.message


def test_bytes_that_are_no_job_are_an_answer_too() -> None:
    failure = _failure(run_job(b"rm -rf /", _GRANT))
    assert failure.kind == "refused"


def test_nothing_stays_on_the_device(subject: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    made = subject()
    with pack_workloads([made]) as bundle:
        request = {"action": "probe", "workloads": bundle.workloads}
        body = pack_job(request, bundle.files, timeout_seconds=60.0, expires_after_seconds=60.0)
    shutil.rmtree(made.model.parent / "nothing", ignore_errors=True)
    assert run_job(body, _GRANT).succeeded
    assert list(folder.iterdir()) == []
    assert os.environ.get("TMPDIR") != str(folder)
