"""Rounds of training: all for a short time, then what is promising, and never what cannot be better."""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from edgewright.compress.train import successive_halving
from edgewright.compress.train.artifact_store import TrainingStore
from edgewright.compress.train.config import Distillation
from edgewright.compress.train.policy import CandidateEstimate
from edgewright.compress.train.training_session import PlannedJob, TrainingSession
from edgewright.contract.errors import CandidateError
from edgewright.contract.training_report import TrainedNetwork

ROWS = 1000


@dataclass
class Pretender:
    """Trains by rule: every network ends with the drop that its title says."""

    store: TrainingStore
    drops: dict[str, float]
    pace: float = 1e-4
    workers: int = 2
    max_drop: float = 0.01
    augmentations: tuple[str, ...] = ("shift",)
    distillation: Distillation = field(default_factory=lambda: Distillation(3.0))
    data: Any = field(default_factory=lambda: SimpleNamespace(train=range(ROWS)))
    notes: list[str] = field(default_factory=list)
    trained: list[list[PlannedJob]] = field(default_factory=list)

    core_seconds = TrainingSession.core_seconds
    training_config = TrainingSession.training_config
    planned_jobs = TrainingSession.planned_jobs

    def seconds_per_row(self, network: str) -> float:
        if self.pace <= 0:
            raise CandidateError("Erf cannot be trained", remedy="")
        return self.pace

    def train_jobs(self, name: str, tasks: Sequence[PlannedJob], deadline: float) -> list[TrainedNetwork]:
        self.trained.append(list(tasks))
        return [self._one(task) for task in tasks]

    def _one(self, task: PlannedJob) -> TrainedNetwork:
        title = task.network.title
        if title not in self.drops:
            return msgspec.structs.replace(task.network, error="the loss was not finite")
        name = f"{task.initial_sha256}{task.network.search_round}{task.settings.distillation}"
        return msgspec.structs.replace(
            task.network,
            network_sha256=hashlib.sha256(name.encode()).hexdigest(),
            drop=self.drops[title],
            predicted_bound=self.drops[title] / 0.4,
            distilled=task.settings.distillation is not None,
            training_rows=100,
        )


def prospect(title: str, ratio: float) -> CandidateEstimate:
    return CandidateEstimate(title, "cnn", f"start of {title}", "fresh", ratio, 100)


@pytest.fixture
def course(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Pretender]:
    monkeypatch.setattr(successive_halving, "_smaller_versions", lambda *_: [])
    return lambda **drops: Pretender(TrainingStore(tmp_path), drops)


def run(
    pretender: Pretender, prospects: Sequence[CandidateEstimate], seconds: float = 100.0, slowest: float = 1.0
) -> list[str]:
    until = time.monotonic() + seconds
    found = successive_halving.successive_halving(
        cast(TrainingSession, pretender), prospects, until, until + 0.2 * seconds, slowest
    )
    return [standing.estimate.title for standing in found]


FOUR = [prospect("a", 0.2), prospect("b", 0.4), prospect("c", 0.6), prospect("d", 0.8)]


def test_all_are_trained_first_and_the_quickest_also_without_a_teacher(course: Callable[..., Pretender]) -> None:
    pretender = course(a=0.3, b=0.2, c=0.1, d=0.05)
    run(pretender, FOUR)
    first = pretender.trained[0]
    assert sorted(task.network.title for task in first if task.settings.distillation) == ["a", "b", "c", "d"]
    (alone,) = [task for task in first if task.settings.distillation is None]
    (twin,) = [t for t in first if t.initial_sha256 == alone.initial_sha256 and t.settings.distillation is not None]
    assert msgspec.structs.replace(twin.settings, distillation=None) == alone.settings
    assert all(task.initial_sha256.startswith("start of ") for task in first)
    assert all(task.settings.distillation in (None, pretender.distillation) for task in first)


def test_later_rounds_go_on_from_earlier_ones_with_fewer_networks(course: Callable[..., Pretender]) -> None:
    pretender = course(a=0.3, b=0.2, c=0.1, d=0.05)
    run(pretender, FOUR)
    assert len(pretender.trained) >= 3
    counts = [len(tasks) for tasks in pretender.trained]
    assert counts == sorted(counts, reverse=True)
    for number, tasks in enumerate(pretender.trained[1:], start=2):
        assert all(not task.initial_sha256.startswith("start of ") for task in tasks)
        assert all(task.network.origin == "continued" for task in tasks)
        assert {task.network.search_round for task in tasks} == {number}
        assert "d" in {task.network.title for task in tasks}  # the surest


def test_what_keeps_the_drop_is_among_the_finalists_and_only_faster_ones_are_trained_on(
    course: Callable[..., Pretender],
) -> None:
    pretender = course(a=0.3, b=0.0, c=0.0, d=0.0)
    assert run(pretender, FOUR)[0] == "b"
    for tasks in pretender.trained[1:]:
        assert {task.network.title for task in tasks} == {"a"}


def test_what_keeps_the_drop_barely_is_trained_until_it_is_sure(course: Callable[..., Pretender]) -> None:
    pretender = course(a=0.3, b=0.003, c=0.0, d=0.0)
    run(pretender, FOUR, slowest=1.4)
    for tasks in pretender.trained[1:4]:
        assert {task.network.title for task in tasks} == {"a", "b"}


def test_what_is_much_faster_and_nearly_good_enough_gets_more_time(course: Callable[..., Pretender]) -> None:
    pretender = course(a=0.02, b=0.0, c=0.3, d=0.3)
    assert run(pretender, FOUR) == ["b", "a"]
    assert len(pretender.trained) == 5
    assert {task.network.title for task in pretender.trained[-1]} == {"a", "b"}  # the second worker is free
    hopeless = course(a=0.2, b=0.0, c=0.3, d=0.3)
    run(hopeless, FOUR)
    assert len(hopeless.trained) == 4


def test_what_failed_is_not_trained_on(course: Callable[..., Pretender]) -> None:
    pretender = course(c=0.2)
    assert set(run(pretender, FOUR)) == {"c"}
    assert all({task.network.title for task in tasks} == {"c"} for tasks in pretender.trained[1:])


def test_nothing_that_can_be_trained_is_noted(course: Callable[..., Pretender]) -> None:
    pretender = course()
    pretender.pace = 0.0
    assert run(pretender, FOUR) == []
    assert any("Erf" in note for note in pretender.notes)
    assert run(course(), []) == []


def test_without_time_nothing_is_trained(course: Callable[..., Pretender]) -> None:
    pretender = course(a=0.1)
    run(pretender, FOUR, seconds=-1.0)
    assert pretender.trained == []


def test_a_planned_round_is_the_same_when_resumed(course: Callable[..., Pretender]) -> None:
    before = course(a=0.3, b=0.2, c=0.1, d=0.05)
    run(before, FOUR[:3])
    after = course(a=0.3, b=0.2, c=0.1, d=0.05)
    after.pace = 1e-3
    found = run(after, FOUR[1:], seconds=30.0)  # measured otherwise, it would have been other networks
    assert after.trained[0] == before.trained[0]
    assert "c" in found


@pytest.mark.parametrize(("rows", "epochs", "shown"), [(400, 1, 400), (5, 1, 32), (1000, 1, 0), (3500, 4, 875)])
def test_rows_become_epochs(course: Callable[..., Pretender], rows: int, epochs: int, shown: int) -> None:
    pretender = course()
    settings = cast(TrainingSession, pretender).training_config(rows, "fresh")
    assert (settings.epochs, settings.rows_per_epoch) == (epochs, shown)
    assert settings.distillation == pretender.distillation
    assert settings.augmentations == pretender.augmentations
