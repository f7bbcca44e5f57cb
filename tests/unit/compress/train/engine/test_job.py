"""A job is a pure function from bytes to bytes, and what goes wrong in it is part of its outcome."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from sklearn.datasets import load_digits

from edgewright.compress.data.dataset import Dataset
from edgewright.compress.model.graph import Graph, clean_model, session_bytes
from edgewright.compress.quantize.activation_ranges import collect_statistics
from edgewright.compress.quantize.sparsity import MagnitudePruning, prune_by_magnitude
from edgewright.compress.quantize.static_int8 import StaticInt8, tensors_to_observe
from edgewright.compress.train.config import CurvePoint, TrainingConfig
from edgewright.compress.train.data.training_data import TrainingData, make_training_data
from edgewright.compress.train.engine.job import (
    JobResult,
    KeepZeros,
    TrainingJob,
    checkpoint_name,
    run_training_job,
)
from edgewright.compress.train.qat.initial_graph import make_qat_graph

RANDOM = np.random.default_rng(2)
SETTINGS = TrainingConfig(epochs=3, batch=64, early_stopping_patience=0)


def small_network() -> onnx.ModelProto:
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        small (float[n,1,8,8] x) => (float[n,10] y) {
            a = Conv<pads = [1,1,1,1], strides = [2,2]>(x, kernel, shift)
            b = Relu(a)
            c = Flatten(b)
            y = Gemm<transB = 1>(c, matrix, bias)
        }""")
    weights = {
        "kernel": RANDOM.standard_normal((8, 1, 3, 3)) / 3, "shift": np.zeros(8),
        "matrix": RANDOM.standard_normal((10, 128)) / 11, "bias": np.zeros(10),
    }  # fmt: skip
    model.graph.initializer.extend(numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items())
    return model


def digit_images() -> NDArray[np.float32]:
    return np.asarray(load_digits().images[:, None] / 16, np.float32)


@pytest.fixture(scope="module")
def lessons() -> TrainingData:
    dataset = Dataset(
        {"x": digit_images()[:, None]}, load_digits().target.astype(np.int64), None, "classification", ""
    )
    return make_training_data(dataset, seed=0)


@pytest.fixture(scope="module")
def job() -> TrainingJob:
    return TrainingJob("small", small_network().SerializeToString(), SETTINGS, seed=1)


@pytest.fixture(autouse=True)
def _torch_as_it_was() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(mode=False)


@pytest.fixture(scope="module")
def outcome(job: TrainingJob, lessons: TrainingData) -> JobResult:
    return run_training_job(job, lessons)


def loaded(outcome: JobResult) -> onnx.ModelProto:
    assert outcome.model is not None, outcome.error
    return onnx.load_from_string(outcome.model)


def test_the_trained_graph_is_better_than_its_start(
    outcome: JobResult, job: TrainingJob, lessons: TrainingData
) -> None:
    rows = lessons.validation
    answers = session_bytes(loaded(outcome)).run(None, {"x": digit_images()[rows]})[0]
    assert lessons.labels is not None
    right = float((answers.argmax(1) == lessons.labels[rows]).mean())
    assert right > outcome.curve[0].validation_metric + 0.3
    assert right == pytest.approx(max(point.validation_metric for point in outcome.curve), abs=1e-6)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(
    outcome: JobResult, job: TrainingJob, lessons: TrainingData
) -> None:
    assert run_training_job(job, lessons).model == outcome.model
    assert run_training_job(msgspec.structs.replace(job, seed=2), lessons).model != outcome.model


def test_progress_is_told(job: TrainingJob, lessons: TrainingData) -> None:
    told: list[tuple[float, CurvePoint | None]] = []
    run_training_job(job, lessons, report_progress=lambda share, point: told.append((share, point)))
    assert told
    assert all(0 <= share <= 1 for share, _ in told)


def test_a_graph_that_cannot_be_trained_is_an_outcome_that_names_the_operator(
    job: TrainingJob, lessons: TrainingData
) -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        odd (float[n,1,8,8] x) => (float[n,1,8,8] y) { y = Det2(x) }""")
    failed = run_training_job(msgspec.structs.replace(job, model=model.SerializeToString()), lessons)
    assert failed.model is None
    assert failed.error is not None
    assert "Det2" in failed.error


def test_a_recipe_that_raises_is_an_outcome_that_names_it(
    job: TrainingJob, lessons: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "their_training.py").write_text(
        "def broken(): raise OSError('no such disk')\n"
        "def late(): return {'loss': lambda outputs, labels: 1 / 0}\n"
        "def gone(): raise SystemExit('enough')\n"
    )
    monkeypatch.chdir(tmp_path)
    said = {
        name: run_training_job(msgspec.structs.replace(job, recipe=f"their_training:{name}"), lessons).error
        for name in ("broken", "late", "gone")
    }
    assert said["broken"] == "training recipe their_training:broken raised OSError: no such disk"
    assert said["late"] == "ZeroDivisionError: division by zero"
    assert said["gone"] == "SystemExit: enough"


def test_zeros_that_are_held_stay_zero(job: TrainingJob, lessons: TrainingData) -> None:
    sparse = prune_by_magnitude(small_network(), MagnitudePruning(pattern=(2, 4)))
    start = Graph(sparse).constants["matrix"] == 0
    assert start.mean() >= 0.5
    done = run_training_job(
        msgspec.structs.replace(job, model=sparse.SerializeToString(), keep_zeros=KeepZeros()), lessons
    )
    trained = Graph(loaded(done)).constants["matrix"]
    assert not trained[start].any()
    assert trained[~start].all()
    free = run_training_job(msgspec.structs.replace(job, model=sparse.SerializeToString()), lessons)
    assert Graph(loaded(free)).constants["matrix"][start].any()


def test_a_quantised_start_gives_an_integer_graph(
    outcome: JobResult, job: TrainingJob, lessons: TrainingData
) -> None:
    model = clean_model(loaded(outcome))
    seen = collect_statistics(
        model, tensors_to_observe(Graph(model)), [{"x": digit_images()[lessons.train[:200]]}], seed=0
    )
    start = make_qat_graph(model, StaticInt8(max_integer=3), seen)
    gentle = msgspec.structs.replace(SETTINGS, learning_rate=3e-4)
    done = run_training_job(msgspec.structs.replace(job, model=start.SerializeToString(), settings=gentle), lessons)
    constants = Graph(loaded(done)).constants
    assert any(value.dtype == np.int8 and value.size > 100 for value in constants.values())
    assert done.curve[-1].validation_metric > 0.8


def test_a_checkpoint_is_of_one_job_with_one_material(job: TrainingJob, lessons: TrainingData) -> None:
    name = checkpoint_name(job, lessons, None)
    assert name == checkpoint_name(job, lessons, None)
    assert name != checkpoint_name(msgspec.structs.replace(job, seed=2), lessons, None)
    strange = checkpoint_name(msgspec.structs.replace(job, key="../a b"), lessons, None)
    assert "/" not in strange
