"""What could be trained for the digits, and the form that it would be shipped in."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from edgewright.compress.context import Run
from edgewright.compress.data.loader import load_data
from edgewright.compress.model.loading import read_model
from edgewright.compress.search.recipe import Workbench
from edgewright.compress.train.artifact_store import TrainingStore
from edgewright.compress.train.data.training_data import Lessons, teach
from edgewright.compress.train.nas.candidates import Idea, eight_bit, few_batches, ideas, survey
from edgewright.compress.train.nas.families import parameters

Build = Callable[..., onnx.ModelProto]
MATRIX = np.ones((64, 10), np.float32)


@pytest.fixture(scope="module")
def run(digits_model: Path, digits_npz: Path, digits_batch: NDArray[Any]) -> Run:
    """As much of a run as the survey looks at before it measures."""
    loaded = read_model(digits_model)
    parts = {
        "loaded": loaded,
        "dataset": load_data(str(digits_npz), loaded.contract),
        "space": SimpleNamespace(signed_first=False, int8_peak=127, fold=()),
        "bench": Workbench(loaded.proto, [{"image": digits_batch[:16]}] * 2),
        "request": SimpleNamespace(seed=0),
        "machine": SimpleNamespace(features=()),
    }
    return cast(Run, SimpleNamespace(**parts))


@pytest.fixture(scope="module")
def lessons(
    run: Run, digits_training: dict[str, NDArray[Any]], tmp_path_factory: pytest.TempPathFactory
) -> Lessons:
    path = tmp_path_factory.mktemp("lessons") / "training.npz"
    np.savez(path, **digits_training)  # type: ignore[arg-type]
    return teach(load_data(str(path), run.loaded.contract), seed=0)


@pytest.fixture(scope="module")
def found(run: Run, lessons: Lessons) -> list[Idea]:
    return ideas(run, lessons, "logits", [], seed=0)


def test_the_model_itself_and_several_families_are_ideas(found: list[Idea], run: Run) -> None:
    assert len({idea.title for idea in found}) == len(found)
    assert len({idea.family for idea in found if idea.origin == "fresh"}) >= 3
    own = [idea for idea in found if idea.origin == "pruned"]
    assert own
    whole = parameters(run.loaded.proto)
    assert all(parameters(idea.model) <= whole for idea in own)


def test_every_idea_takes_and_gives_what_the_model_does(
    found: list[Idea], digits_batch: NDArray[Any], answers: Callable[..., Any]
) -> None:
    for idea in found[:: max(1, len(found) // 12)]:
        (scores,) = answers(idea.model, image=digits_batch[:1])
        assert scores.shape == (1, 10), idea.title


def test_ideas_are_the_same_each_time(found: list[Idea], run: Run, lessons: Lessons) -> None:
    fresh = {idea.title: idea.model for idea in found if idea.origin == "fresh"}
    again = [idea for idea in ideas(run, lessons, "logits", [], seed=0) if idea.origin == "fresh"]
    assert len(again) == len(fresh)
    assert all(idea.model == fresh[idea.title] for idea in again)


def test_the_form_that_is_measured_runs_on_integers(found: list[Idea], run: Run, built: Build) -> None:
    smallest = min(found, key=lambda idea: parameters(idea.model))
    made = onnx.load_from_string(eight_bit(run, smallest.model))
    assert "QuantizeLinear" in {node.op_type for node in made.graph.node}
    without = built("g (float[n,1,8,8] image) => (float[n,1,8,8] y) { h = Relu(image)\n y = Abs(h) }")
    plain = onnx.load_from_string(eight_bit(run, without))
    assert {node.op_type for node in plain.graph.node} == {"Relu", "Abs"}


def test_a_few_batches_are_labelled_training_rows(lessons: Lessons) -> None:
    batches = few_batches(lessons)
    assert [len(labels) for _, labels in batches] == [64] * 4
    rows = {row.tobytes() for row in lessons.inputs[0][lessons.train]}
    assert all(row.tobytes() in rows for (images,), _ in batches for row in images)


def test_where_nothing_can_be_measured_there_is_no_shortlist(
    run: Run, lessons: Lessons, built: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(_run: Run, some: list[Idea]) -> None:
        for idea in some:
            idea.ratio = float("inf")

    monkeypatch.setattr("edgewright.compress.train.nas.candidates._measure", nothing)
    odd = built("g (float[n,1,8,8] image) => (float[n,10] y) { f = Flatten(image)\n y = MatMul(f, w) }", w=MATRIX)
    known = [Idea("odd", "", "fresh", odd)]
    limits: dict[str, Any] = {"places": 4, "slowest": 1.0, "core_seconds": 9.0, "until": 0.0, "seen": []}
    assert survey(run, TrainingStore(tmp_path), lessons, known, **limits) == []
