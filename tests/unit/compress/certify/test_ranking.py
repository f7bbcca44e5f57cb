"""Choosing: pure functions, and what they must never do."""

from dataclasses import asdict, dataclass

import pytest
from msgspec.structs import replace as replaced

from edgewright.compress.certify.ranking import (
    budget_violation,
    certification_candidates,
    certification_chance,
    is_better,
    move_to_front,
    pareto_front,
    pool_changed_answers,
    rank_trials,
)
from edgewright.contract.compression_report import SearchTrial
from edgewright.contract.device_class import Budget


@dataclass(frozen=True)
class Facts:
    size_bytes: int = 1000
    drop: float = 0.0
    predicted_bound: float = 0.005
    latency_ratio: float = 0.5
    metric: float = 0.9
    changed_answers: float = 30.0
    sqnr_db: float = 30.0
    network_sha256: str = ""


def trial(number: int, **facts: float | str) -> SearchTrial:
    return SearchTrial(
        number=number,
        title=f"t{number}",
        recipe=[],
        state="complete",
        reason="",
        duration_seconds=1,
        seed=0,
        **asdict(Facts(**facts)),  # type: ignore[arg-type]
    )


def pruned(number: int) -> SearchTrial:
    return SearchTrial(
        number=number, title="p", recipe=[], state="pruned", reason="", duration_seconds=1, seed=0, size_bytes=1
    )


def numbers(trials: list[SearchTrial]) -> list[int]:
    return [entry.number for entry in trials]


BUDGET = Budget(max_drop=0.01, size_bytes=2000)


def test_the_front_holds_whoever_is_best_in_something() -> None:
    small, fast, exact = trial(1, size_bytes=10), trial(2, latency_ratio=0.1), trial(3, drop=-0.2)
    beaten = trial(4, size_bytes=1500, latency_ratio=0.9, drop=0.01)
    unbeaten = [small, trial(5, size_bytes=900, drop=0.001, latency_ratio=0.2)]
    assert numbers(pareto_front([small, fast, exact, beaten, pruned(9)])) == [1, 2]  # a gain is no drop: 3 equals 0
    assert numbers(pareto_front([*unbeaten, beaten])) == [1, 5] or numbers(pareto_front([*unbeaten, beaten])) == [1]


def test_equal_candidates_stand_on_the_front_once() -> None:
    assert numbers(pareto_front([trial(1), trial(2), trial(3, latency_ratio=0.5001)])) == [1]


def test_an_empty_search_has_an_empty_front_and_ranking() -> None:
    assert pareto_front([]) == []
    assert pareto_front([pruned(1)]) == []
    assert rank_trials([pruned(1)], BUDGET, 1.0) == []


def test_the_fastest_that_fits_comes_first_and_misfits_last_the_closest_first() -> None:
    fast, slow = trial(1, latency_ratio=0.3), trial(2, latency_ratio=0.8)
    far, near = trial(3, size_bytes=9000, latency_ratio=0.1), trial(4, predicted_bound=0.011, latency_ratio=0.1)
    assert numbers(rank_trials([far, slow, near, fast], BUDGET, 0.001)) == [1, 2, 4, 3]


def test_among_equally_fast_ones_the_smallest_comes_first() -> None:
    assert numbers(
        rank_trials([trial(1, size_bytes=900), trial(2, size_bytes=800, latency_ratio=0.51)], BUDGET, 1)
    ) == [2, 1]


def test_candidates_slower_than_the_original_come_behind_all_that_fit_and_are_not() -> None:
    slower = trial(1, size_bytes=10, latency_ratio=1.2)
    assert numbers(rank_trials([slower, trial(2, latency_ratio=1.0, size_bytes=1999)], BUDGET, 1)) == [2, 1]


@pytest.mark.parametrize(
    ("limits", "facts", "expected"),
    [
        ({"max_drop": 0.01}, {"predicted_bound": 0.02}, 1.0),
        ({"size_bytes": 500}, {}, 1.0),
        ({"min_metric": 1.0}, {}, 0.1),
        ({"latency_p50_seconds": 0.0025}, {}, 1.0),
        ({"latency_p95_seconds": 0.0025}, {}, 1.0),
        ({"latency_p50_seconds": 0.1, "latency_p95_seconds": 0.0025}, {}, 1.0),
        ({}, {}, -1.0),
    ],
)
def test_closeness_is_the_worst_excess(limits: dict[str, float], facts: dict[str, float], expected: float) -> None:
    assert budget_violation(trial(1, **facts), Budget(**limits), 0.01) == pytest.approx(expected)


def test_keeping_the_budget_beats_being_fast() -> None:
    fits, fast = trial(1), trial(2, latency_ratio=0.1, size_bytes=3000)
    assert is_better(fits, fast, BUDGET)
    assert not is_better(fast, fits, BUDGET)


def test_contenders_grow_ever_safer() -> None:
    best, twin = trial(1, predicted_bound=0.009), trial(2, predicted_bound=0.0089)
    safer, safest = trial(3, predicted_bound=0.006), trial(4, predicted_bound=0.001)
    assert numbers(certification_candidates([best, twin, safer, safest], 3)) == [1, 3, 4]
    assert numbers(certification_candidates([best, twin, safer, safest], 2)) == [1, 4]  # the last one is the safest
    assert certification_candidates([], 3) == []


def test_what_is_surer_of_its_certificate_comes_before_what_is_faster() -> None:
    budget = Budget(max_drop=0.01)
    barely = trial(1, network_sha256="a", drop=0.0022, predicted_bound=0.0097, latency_ratio=0.037)
    surely = trial(2, network_sha256="b", drop=0.0, predicted_bound=0.0057, latency_ratio=0.042, size_bytes=900)
    smaller = trial(3, network_sha256="b", drop=0.0, predicted_bound=0.0057, latency_ratio=0.0425, size_bytes=600)
    untrained = trial(4, drop=0.0, predicted_bound=0.002, latency_ratio=0.36)
    everyone = [barely, surely, smaller, untrained]
    assert (
        0.4
        < certification_chance(barely, 0.01)
        < 0.7
        < certification_chance(surely, 0.01)
        < certification_chance(untrained, 0.01)
        <= 1
    )
    assert numbers(move_to_front(everyone, budget, 1.0)) == [3, 1, 2, 4]
    assert numbers(move_to_front(everyone, Budget(max_drop=0.01, size_bytes=500), 1.0)) == [
        1,
        2,
        3,
        4,
    ]  # none keeps it
    assert numbers(move_to_front([barely, untrained], budget, 1.0, preferred=["a"])) == [1, 4]
    plain = [replaced(t, network_sha256="") for t in everyone]
    assert move_to_front(plain, budget, 1.0) == plain  # without training the order stays


def test_a_risk_is_taken_for_what_it_gains_over_something_sure() -> None:
    budget = Budget(max_drop=0.03)
    sure = trial(1, network_sha256="a", drop=0.0, predicted_bound=0.013, latency_ratio=0.16, size_bytes=30_000)
    large = trial(2, network_sha256="b", drop=0.0135, predicted_bound=0.0231, latency_ratio=0.1, size_bytes=40_000)
    small = trial(3, network_sha256="b", drop=0.0139, predicted_bound=0.024, latency_ratio=0.1, size_bytes=29_000)
    unlikely = trial(4, network_sha256="b", drop=0.028, predicted_bound=0.037, latency_ratio=0.1, size_bytes=20_000)
    far = trial(5, network_sha256="c", drop=0.026, predicted_bound=0.039, latency_ratio=0.075, size_bytes=20_000)
    assert (
        certification_chance(sure, 0.03)
        > 0.95
        > certification_chance(large, 0.03)
        > certification_chance(small, 0.03)
        > 0.8
    )
    assert move_to_front([large, small, sure, unlikely], budget, 1.0)[0] == small
    assert move_to_front([far, sure], budget, 1.0)[0] == sure  # a look is not thrown away


def test_the_second_look_is_for_another_trained_network() -> None:
    budget = Budget(max_drop=0.01)
    first = trial(1, network_sha256="a", drop=0.0, predicted_bound=0.004, latency_ratio=0.1, size_bytes=500)
    twin = trial(2, network_sha256="a", drop=0.0, predicted_bound=0.0039, latency_ratio=0.11)
    rival = trial(3, network_sha256="b", drop=0.001, predicted_bound=0.005, latency_ratio=0.12)
    hopeless = trial(4, network_sha256="c", drop=0.009, predicted_bound=0.02, latency_ratio=0.05)
    safe = trial(5, drop=0.0, predicted_bound=0.001, latency_ratio=0.4)
    ranked = move_to_front([first, twin, rival, hopeless, safe], budget, 1.0)
    assert numbers(ranked)[:2] == [1, 3]
    assert numbers(certification_candidates(ranked, 4, 0.01)) == [1, 3, 5]
    assert numbers(certification_candidates(ranked, 2, 0.01)) == [1, 5]
    alone = move_to_front([first, twin, safe], budget, 1.0)
    assert numbers(certification_candidates(alone, 4, 0.01)) == [1, 5]
    unlikely = move_to_front([first, hopeless, safe], budget, 1.0)
    assert numbers(unlikely)[:2] == [1, 4]
    assert numbers(certification_candidates(unlikely, 4, 0.01)) == [
        1,
        5,
    ]  # no look for what will hardly be certified


def test_luck_is_not_believed_of_one_among_equally_noisy_candidates() -> None:
    crowd = [trial(n, predicted_bound=0.006, changed_answers=0.02, sqnr_db=20.0 + 0.1 * n) for n in range(9)]
    lucky = trial(9, predicted_bound=0.004, changed_answers=0.0, sqnr_db=20.0)
    quiet = trial(10, predicted_bound=0.004, changed_answers=0.0, sqnr_db=40.0)
    judged = {t.number: t.predicted_bound or 0.0 for t in pool_changed_answers([*crowd, lucky, quiet], 930, 0.025)}
    assert judged[9] > 0.008
    assert judged[10] < 0.0045
    assert all(judged[t.number] >= (t.predicted_bound or 0.0) for t in (*crowd, lucky, quiet))
