"""Laws of choosing, for any search."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from edgewright.compress.certify.ranking import (
    budget_violation,
    certification_candidates,
    is_better,
    pareto_front,
    rank_trials,
)
from edgewright.contract.compression_report import SearchTrial
from edgewright.contract.device_class import Budget

budgets = st.builds(
    Budget,
    max_drop=st.none() | st.floats(0.001, 0.2),
    size_bytes=st.none() | st.integers(1, 3000).map(float),
    latency_p50_seconds=st.none() | st.floats(0.0001, 0.02),
)
facts = st.fixed_dictionaries(
    {
        "state": st.sampled_from(["complete", "complete", "complete", "pruned", "failed"]),
        "size_bytes": st.integers(1, 2000),
        "drop": st.none() | st.floats(-0.1, 0.1),
        "predicted_bound": st.none() | st.floats(-0.1, 0.3),
        "latency_ratio": st.none() | st.floats(0.05, 3),
        "metric": st.floats(0, 1),
        "sqnr_db": st.floats(0, 60),
    }
)


@st.composite
def searches(draw: st.DrawFn) -> list[SearchTrial]:
    return [
        msgspec.convert(
            entry | {"number": i, "title": "", "recipe": [], "reason": "", "duration_seconds": 0.0, "seed": 0},
            SearchTrial,
        )
        for i, entry in enumerate(draw(st.lists(facts, max_size=12)))
    ]


def judged(trial: SearchTrial) -> tuple[float, float, float]:
    return round(max(trial.drop or 0.0, 0.0), 4), round(trial.latency_ratio or 9.0, 2), float(trial.size_bytes)


@given(searches())
def test_nobody_on_the_front_is_beaten_and_everybody_else_is(trials: list[SearchTrial]) -> None:
    front = pareto_front(trials)
    for member in front:
        assert member.state == "complete"
        for other in trials:
            if other.state == "complete" and judged(other) != judged(member):
                assert not all(a <= b for a, b in zip(judged(other), judged(member), strict=True))
    for trial in trials:
        if trial.state == "complete" and trial not in front:
            assert any(all(a <= b for a, b in zip(judged(member), judged(trial), strict=True)) for member in front)


@given(searches(), budgets)
def test_the_ranking_holds_every_complete_trial_once_and_fitting_ones_first(
    trials: list[SearchTrial], budget: Budget
) -> None:
    ranked = rank_trials(trials, budget, 0.01)
    assert sorted(t.number for t in ranked) == [t.number for t in trials if t.state == "complete"]
    fits = [budget_violation(trial, budget, 0.01) <= 0 for trial in ranked]
    assert fits == sorted(fits, reverse=True)


@given(searches(), budgets)
def test_a_smaller_equally_fast_candidate_is_never_ranked_behind(trials: list[SearchTrial], budget: Budget) -> None:
    ranked = rank_trials(trials, budget, 0.01)
    fitting = [trial for trial in ranked if budget_violation(trial, budget, 0.01) <= 0]
    for i, earlier in enumerate(fitting):
        for later in fitting[i + 1 :]:
            same = (earlier.latency_ratio or 9.0) == (later.latency_ratio or 9.0)
            assert not (same and later.size_bytes < earlier.size_bytes)


@given(searches(), budgets)
def test_a_faster_candidate_that_is_no_larger_is_never_ranked_behind(
    trials: list[SearchTrial], budget: Budget
) -> None:
    fitting = [t for t in rank_trials(trials, budget, 0.01) if budget_violation(t, budget, 0.01) <= 0]
    for i, earlier in enumerate(fitting):
        for later in fitting[i + 1 :]:
            faster = (later.latency_ratio or 9.0) < (earlier.latency_ratio or 9.0)
            assert not (faster and later.size_bytes <= earlier.size_bytes)


@given(searches(), budgets)
def test_no_two_candidates_are_each_better_than_the_other(trials: list[SearchTrial], budget: Budget) -> None:
    complete = [trial for trial in trials if trial.state == "complete"]
    for one in complete:
        assert not is_better(one, one, budget)
        for other in complete:
            assert not (is_better(one, other, budget) and is_better(other, one, budget))


@given(searches(), budgets, st.integers(0, 4))
def test_contenders_are_of_the_ranking_in_its_order(trials: list[SearchTrial], budget: Budget, count: int) -> None:
    ranked = rank_trials(trials, budget, 0.01)
    chosen = certification_candidates(ranked, count, budget.max_drop)
    assert len(chosen) <= count
    assert [trial for trial in ranked if trial in chosen] == chosen
    if ranked and count:
        assert chosen[0] == ranked[0]


@given(searches(), budgets, st.floats(1.1, 4))
def test_a_looser_budget_never_makes_a_candidate_miss_it(
    trials: list[SearchTrial], budget: Budget, factor: float
) -> None:
    looser = Budget(
        max_drop=None if budget.max_drop is None else min(0.99, budget.max_drop * factor),
        size_bytes=None if budget.size_bytes is None else budget.size_bytes * factor,
        latency_p50_seconds=None if budget.latency_p50_seconds is None else budget.latency_p50_seconds * factor,
    )
    for trial in trials:
        if budget_violation(trial, budget, 0.01) <= 0:
            assert budget_violation(trial, looser, 0.01) <= 0
