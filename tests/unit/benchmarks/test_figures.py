import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from benchmarks.figures import Entry, ModelRun, TaskRun, better_than, figures_of_models, figures_of_tasks
from benchmarks.report import Figure, Interval, document

FASTER = Interval(0.8, 0.78, 0.82)
SLOWER = Interval(1.2, 1.15, 1.25)
EVEN = Interval(1.0, 0.97, 1.03)


def entry(
    *, certified: bool = True, latency: Interval = EVEN, size: float = 0.5, to_original: Interval = EVEN
) -> Entry:
    return Entry(
        certified=certified, latency=latency, size=size, to_original=to_original, p50_seconds=1e-4 / latency.value
    )


def task(peers: dict[str, Entry | None], *, certified: bool = True) -> TaskRun:
    return TaskRun("t", 0.01, 0.009, certified, FASTER, peers, 60.0)


def named(figures: list[Figure], name: str) -> Figure:
    return next(figure for figure in figures if figure.name == name)


@pytest.mark.parametrize(
    ("latency", "size", "gain"),
    [
        (EVEN, 0.5, 0.5),
        (FASTER, 0.95, 0.8),
        (FASTER, 1.01, 1.01),  # larger: the gain in latency does not count
        (SLOWER, 0.5, 1.2),  # slower: the gain in size does not count
        (SLOWER, 1.5, 1.5),
    ],
)
def test_a_gain_counts_only_where_the_other_is_no_worse(latency: Interval, size: float, gain: float) -> None:
    found = better_than(entry(latency=latency, size=size))
    assert found is not None
    assert found.value == gain


def test_every_certified_peer_must_be_beaten() -> None:
    figures = figures_of_tasks([task({"a": entry(size=0.5), "b": entry(size=0.95), "ort-default": entry()})])
    assert named(figures, "t.gain_over_peers").peer == "b"
    assert named(figures, "tasks_better_than_every_peer").value == Interval.exact(0.0)


def test_a_peer_that_loses_more_accuracy_is_no_rival() -> None:
    figures = figures_of_tasks(
        [task({"a": entry(), "b": entry(certified=False, size=2.0), "ort-default": entry()})]
    )
    assert named(figures, "tasks_better_than_every_peer").holds


def test_a_choice_without_certificate_wins_nothing() -> None:
    figures = figures_of_tasks([task({"ort-default": entry()}, certified=False)])
    assert not named(figures, "t.drop_bound").holds
    assert not named(figures, "tasks_better_than_every_peer").holds


def test_a_missing_peer_fails_what_needs_it() -> None:
    figures = figures_of_tasks([task({"a": entry(), "ort-default": None})])
    for name in ("t.latency_to_best_peer", "t.gain_over_peers", "t.latency_to_ort_default"):
        assert not named(figures, name).holds
    assert not document("b", figures)["holds"]


def test_the_default_counts_only_where_it_is_slower_than_the_original() -> None:
    slow, quick = (entry(latency=FASTER, to_original=ratio) for ratio in (SLOWER, FASTER))
    assert not named(figures_of_tasks([task({"ort-default": slow})]), "t.latency_to_ort_default").holds
    assert named(figures_of_tasks([task({"ort-default": quick})]), "t.latency_to_ort_default").limit is None


def test_the_interval_and_not_the_value_decides_about_slower() -> None:
    wide = Interval(1.0, 0.9, 1.1)
    assert not named(figures_of_tasks([task({"ort-default": entry(latency=wide)})]), "t.latency_to_best_peer").holds


def test_a_model_is_faithful_by_noise_or_by_agreement() -> None:
    by_noise = figures_of_models([ModelRun("m", 60.0, EVEN, 35.0, None)])
    by_agreement = figures_of_models([ModelRun("m", 60.0, EVEN, 20.0, 0.995)])
    by_neither = figures_of_models([ModelRun("m", 60.0, EVEN, 20.0, 0.98)])
    assert [named(figures, "m.fidelity").holds for figures in (by_noise, by_agreement, by_neither)] == [
        True,
        True,
        False,
    ]


def test_what_is_missing_does_not_hold() -> None:
    assert not any(
        figure.as_json()["holds"] for figure in figures_of_models([ModelRun("m", None, None, None, None)])
    )
    assert not document("b", [])["holds"]
