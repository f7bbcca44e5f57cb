"""Finalists are tried in their forms, and integers are trained as long as there is time."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import onnx
import pytest

from edgewright.compress.model.graph import clean_model
from edgewright.compress.search.search import Search
from edgewright.compress.search.space import SearchSpace, build_search_space
from edgewright.compress.train import qat_rounds
from edgewright.compress.train.policy import CandidateEstimate, TrainedCandidate
from edgewright.compress.train.qat_rounds import prepare_finalists, train_quantized
from edgewright.compress.train.training_session import TrainingSession
from edgewright.contract.compression_report import SearchTrial
from edgewright.contract.errors import CandidateError


def standing(title: str) -> TrainedCandidate:
    return TrainedCandidate(CandidateEstimate(title, "cnn", "start", "fresh", 0.5, 100), title.ljust(64, "0"), 0.0)


def trial(network: str, bound: float, ratio: float) -> SearchTrial:
    facts = {
        "number": 0,
        "title": network,
        "recipe": [],
        "state": "complete",
        "reason": "",
        "duration_seconds": 0.0,
        "seed": 0,
        "size_bytes": 1000,
        "drop": bound,
        "predicted_bound": bound,
        "latency_ratio": ratio,
        "network_sha256": network,
    }
    return msgspec.convert(facts, SearchTrial)


@pytest.fixture
def course(digits_proto: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A course whose search knows what came of each network."""
    cleaned = clean_model(digits_proto)

    def lay_out(
        _builder: Any, first: tuple[Any, ...], _machine: Any, *, seconds: float, cache_path: Path | None
    ) -> tuple[SearchSpace, dict[str, Any]]:
        if first[0].title == "odd":
            raise CandidateError("the graph has no layer", remedy="")
        return build_search_space(cleaned, {}, {}, trained_network=first[:1]), {}

    monkeypatch.setattr(qat_rounds, "analyse_layers", lay_out)
    results: dict[str, list[SearchTrial]] = {}
    search = cast(
        Search, SimpleNamespace(search_network=lambda space, _seconds, _ideas: results.get(space.network, []))
    )
    folder = SimpleNamespace(analysis_cache=None)
    run = SimpleNamespace(builder=None, machine=None, search_space=SimpleNamespace(fold=()), folder=folder)
    return SimpleNamespace(
        run=run,
        search=search,
        results=results,
        max_drop=0.01,
        notes=[],
        report_progress=lambda _stage: None,
        workers=2,
    )


def later(seconds: float) -> float:
    return time.monotonic() + seconds


def test_the_fastest_that_keeps_the_drop_comes_first(course: Any) -> None:
    lossy, slow, fast, none = standing("lossy"), standing("slow"), standing("fast"), standing("none")
    course.results |= {
        lossy.network: [trial(lossy.network, 0.2, 0.1)],
        slow.network: [trial(slow.network, 0.001, 0.6)],
        fast.network: [trial(fast.network, 0.2, 0.1), trial(fast.network, 0.002, 0.3)],
    }
    found = prepare_finalists(cast(TrainingSession, course), [none, lossy, slow, fast], later(60))
    assert [finalist.candidate for finalist in found] == [fast, slow, lossy, none]
    assert found[0].best is not None
    assert found[0].best.latency_ratio == 0.3
    assert found[-1].best is None


def test_a_network_that_has_no_forms_is_noted_and_left_out(course: Any) -> None:
    found = prepare_finalists(cast(TrainingSession, course), [standing("odd"), standing("good")], later(60))
    assert [finalist.candidate.estimate.title for finalist in found] == ["good"]
    assert any("odd" in note for note in course.notes)


def test_the_first_is_tried_even_without_time(course: Any) -> None:
    found = prepare_finalists(cast(TrainingSession, course), [standing("first"), standing("second")], later(-1))
    assert [finalist.candidate.estimate.title for finalist in found] == ["first"]


def test_without_time_no_integers_are_trained(course: Any) -> None:
    (finalist,) = prepare_finalists(cast(TrainingSession, course), [standing("good")], later(60))
    assert train_quantized(cast(TrainingSession, course), finalist, later(0)) == []


def test_integers_behind_folded_preprocessing_are_left_out_and_said_so(course: Any) -> None:
    (finalist,) = prepare_finalists(cast(TrainingSession, course), [standing("good")], later(60))
    course.run.search_space.fold = ("fold",)
    assert train_quantized(cast(TrainingSession, course), finalist, later(60)) == []
    assert any("folded" in note for note in course.notes)
