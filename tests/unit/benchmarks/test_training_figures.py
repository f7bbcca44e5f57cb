import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from benchmarks.figures import Entry, TaskRun
from benchmarks.report import Figure, Interval, merged
from benchmarks.training_figures import Floor, TrainingRun, figures_of_training


def entry(latency: float = 0.5, size: float = 0.3, *, certified: bool = True, p50_seconds: float = 1e-4) -> Entry:
    ratio = Interval(latency, latency - 0.01, latency + 0.01)
    return Entry(
        certified=certified,
        latency=ratio,
        size=size,
        to_original=Interval(0.8, 0.79, 0.81),
        p50_seconds=p50_seconds,
    )


def run(peers: dict[str, Entry | None], *, certified: bool = True, floor: float | None = None) -> TrainingRun:
    task = TaskRun("t", 0.01, 0.008, certified, Interval(0.2, 0.19, 0.21), peers, 290.0)
    lowest = None
    if floor is not None:
        share = Interval(floor, floor - 0.01, floor + 0.01)
        lowest = Floor("floor", 5e-6, dict.fromkeys([*peers, "original"], share), Interval(2.0, 1.9, 2.1))
    return TrainingRun(
        task=task,
        size_to_original=0.1,
        floor=lowest,
        accuracy=0.93,
        least_accuracy=0.92,
        samples=950,
        least_samples=900,
        volume=0.7,
        peers_volume=0.4,
        time_limit_seconds=300.0,
    )


def named(found: TrainingRun, name: str) -> Figure:
    return next(figure for figure in figures_of_training(found) if figure.name == f"t.{name}")


def test_latency_is_held_against_the_fastest_and_size_against_the_smallest_peer() -> None:
    found = run({"fast": entry(0.55, 0.2, p50_seconds=1e-5), "small": entry(0.3, 0.39, p50_seconds=9e-5)})
    latency, size = named(found, "latency_to_best_peer"), named(found, "size_to_best_peer")
    assert (latency.peer, latency.holds, size.peer, size.holds) == ("fast", True, "small", True)


@pytest.mark.parametrize(("latency", "size", "holds"), [(0.6, 0.4, (True, True)), (0.61, 0.41, (False, False))])
def test_the_limits_are_those_of_the_page(latency: float, size: float, holds: tuple[bool, bool]) -> None:
    found = run({"p": entry(latency, size)})
    assert (named(found, "latency_to_best_peer").holds, named(found, "size_to_best_peer").holds) == holds


def test_a_peer_that_loses_more_accuracy_is_no_rival() -> None:
    found = run({"a": entry(), "b": entry(0.9, 0.9, certified=False, p50_seconds=1e-6)})
    assert named(found, "latency_to_best_peer").peer == named(found, "size_to_best_peer").peer == "a"


def test_where_no_peer_keeps_the_drop_the_original_is_the_rival() -> None:
    found = run({"a": entry(certified=False)})
    assert named(found, "latency_to_best_peer").peer == "original"
    assert named(found, "size_to_best_peer").value == Interval.exact(0.1)


@pytest.mark.parametrize("found", [run({"a": entry(), "b": None}), run({"a": entry()}, certified=False)])
def test_a_missing_peer_or_certificate_fails_what_compares(found: TrainingRun) -> None:
    assert not named(found, "latency_to_best_peer").holds
    assert not named(found, "size_to_best_peer").holds


def test_under_the_floor_no_slower_is_enough_and_the_floor_is_shown() -> None:
    found = run({"a": entry(0.9)}, floor=0.58)
    latency = named(found, "latency_to_best_peer")
    assert latency.holds
    assert "floor" in latency.note
    assert named(found, "latency_floor").value == Interval(0.58, 0.57, 0.59)
    assert "2.00 times as long" in named(found, "latency_floor").note


def test_a_floor_does_not_excuse_a_slower_model() -> None:
    assert not named(run({"a": entry(1.2)}, floor=0.58), "latency_to_best_peer").holds


def test_a_low_floor_changes_nothing() -> None:
    assert not named(run({"a": entry(0.61)}, floor=0.5), "latency_to_best_peer").holds


def test_more_time_than_the_others_had_does_not_hold() -> None:
    found = run({"a": entry()})
    assert named(found, "tool_seconds").holds
    assert not named(replace(found, time_limit_seconds=200.0), "tool_seconds").holds


def test_a_poor_teacher_and_too_few_samples_do_not_hold() -> None:
    found = replace(run({"a": entry()}), accuracy=0.91, samples=800)
    assert not named(found, "teacher_accuracy").holds
    assert not named(found, "certify_samples").holds


def test_one_part_of_kept_results_is_replaced() -> None:
    bad, good = (Figure("a.size", Interval.exact(1.0), 0.4, None, holds) for holds in (False, True))
    other = Figure("b.size", Interval.exact(0.3), 0.4, None, True)
    kept = merged({}, "x", "a", [bad], {"commit": "1"}, {})
    kept = merged(kept, "x", "b", [other], {"commit": "2"}, {})
    assert not kept["holds"]
    kept = merged(kept, "x", "a", [good], {"commit": "3"}, {"points": {}})
    assert kept["holds"]
    assert kept["parts"]["a"] == {"commit": "3", "detail": {"points": {}}}
    assert set(kept["figures"]) == {"a.size", "b.size"}
