"""What could be trained for the digits, and the form that it would be shipped in."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from edgewright.compress.context import CompressionRun
from edgewright.compress.data.loader import load_data
from edgewright.compress.model.loading import read_model
from edgewright.compress.search.recipe import CandidateBuilder
from edgewright.compress.train.artifact_store import TrainingStore
from edgewright.compress.train.data.training_data import TrainingData, make_training_data
from edgewright.compress.train.nas.candidates import (
    NetworkCandidate,
    estimate_candidates,
    few_batches,
    list_candidates,
    to_int8,
)
from edgewright.compress.train.nas.families import parameter_count

Build = Callable[..., onnx.ModelProto]
MATRIX = np.ones((64, 10), np.float32)


@pytest.fixture(scope="module")
def run(digits_model: Path, digits_npz: Path, digits_batch: NDArray[Any]) -> CompressionRun:
    """As much of a run as the survey looks at before it measures."""
    loaded = read_model(digits_model)
    parts = {
        "loaded": loaded,
        "dataset": load_data(str(digits_npz), loaded.contract),
        "search_space": SimpleNamespace(signed_first=False, max_int8_weight=127, fold=()),
        "builder": CandidateBuilder(loaded.proto, [{"image": digits_batch[:16]}] * 2),
        "request": SimpleNamespace(seed=0),
        "machine": SimpleNamespace(features=()),
    }
    return cast(CompressionRun, SimpleNamespace(**parts))


@pytest.fixture(scope="module")
def lessons(
    run: CompressionRun, digits_training: dict[str, NDArray[Any]], tmp_path_factory: pytest.TempPathFactory
) -> TrainingData:
    path = tmp_path_factory.mktemp("lessons") / "training.npz"
    np.savez(path, **digits_training)  # type: ignore[arg-type]
    return make_training_data(load_data(str(path), run.loaded.contract), seed=0)


@pytest.fixture(scope="module")
def found(run: CompressionRun, lessons: TrainingData) -> list[NetworkCandidate]:
    return list_candidates(run, lessons, "logits", [], seed=0)


def test_the_model_itself_and_several_families_are_ideas(
    found: list[NetworkCandidate], run: CompressionRun
) -> None:
    assert len({idea.title for idea in found}) == len(found)
    assert len({idea.family for idea in found if idea.origin == "fresh"}) >= 3
    own = [idea for idea in found if idea.origin == "pruned"]
    assert own
    whole = parameter_count(run.loaded.proto)
    assert all(parameter_count(idea.model) <= whole for idea in own)


def test_every_idea_takes_and_gives_what_the_model_does(
    found: list[NetworkCandidate], digits_batch: NDArray[Any], answers: Callable[..., Any]
) -> None:
    for idea in found[:: max(1, len(found) // 12)]:
        (scores,) = answers(idea.model, image=digits_batch[:1])
        assert scores.shape == (1, 10), idea.title


def test_ideas_are_the_same_each_time(
    found: list[NetworkCandidate], run: CompressionRun, lessons: TrainingData
) -> None:
    fresh = {idea.title: idea.model for idea in found if idea.origin == "fresh"}
    again = [idea for idea in list_candidates(run, lessons, "logits", [], seed=0) if idea.origin == "fresh"]
    assert len(again) == len(fresh)
    assert all(idea.model == fresh[idea.title] for idea in again)


def test_the_form_that_is_measured_runs_on_integers(
    found: list[NetworkCandidate], run: CompressionRun, built: Build
) -> None:
    smallest = min(found, key=lambda idea: parameter_count(idea.model))
    made = onnx.load_from_string(to_int8(run, smallest.model))
    assert "QuantizeLinear" in {node.op_type for node in made.graph.node}
    without = built("g (float[n,1,8,8] image) => (float[n,1,8,8] y) { h = Relu(image)\n y = Abs(h) }")
    plain = onnx.load_from_string(to_int8(run, without))
    assert {node.op_type for node in plain.graph.node} == {"Relu", "Abs"}


def test_a_few_batches_are_labelled_training_rows(lessons: TrainingData) -> None:
    batches = few_batches(lessons)
    assert [len(labels) for _, labels in batches] == [64] * 4
    rows = {row.tobytes() for row in lessons.inputs[0][lessons.train]}
    assert all(row.tobytes() in rows for (images,), _ in batches for row in images)


def test_where_nothing_can_be_measured_there_is_no_shortlist(
    run: CompressionRun, lessons: TrainingData, built: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(_run: CompressionRun, some: list[NetworkCandidate]) -> None:
        for idea in some:
            idea.latency_ratio = float("inf")

    monkeypatch.setattr("edgewright.compress.train.nas.candidates._measure", nothing)
    odd = built("g (float[n,1,8,8] image) => (float[n,10] y) { f = Flatten(image)\n y = MatMul(f, w) }", w=MATRIX)
    known = [NetworkCandidate("odd", "", "fresh", odd)]
    limits: dict[str, Any] = {
        "count": 4,
        "max_latency_ratio": 1.0,
        "core_seconds": 9.0,
        "deadline": 0.0,
        "seen": [],
    }
    assert estimate_candidates(run, TrainingStore(tmp_path), lessons, known, **limits) == []
