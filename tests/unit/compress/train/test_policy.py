"""What is trained, and for how long: decisions from figures alone."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from msgspec.structs import replace as replaced

from edgewright.compress.train.policy import (
    CandidateEstimate,
    TrainedCandidate,
    affordable_candidates,
    meets_drop_limit,
    next_noise_level,
    parent_for_pruning,
    plan_epochs,
    promise_score,
    rows_per_network,
    select_baseline,
    select_finalists,
    select_shortlist,
    select_survivors,
    trained_candidate,
)
from edgewright.contract.training_report import NetworkOrigin, TrainedNetwork


def prospect(
    title: str, ratio: float, size: float, family: str = "conv", origin: NetworkOrigin = "fresh"
) -> CandidateEstimate:
    return CandidateEstimate(title, family, title, origin, ratio, round(1000 * size), 10_000)


def line(count: int, family: str = "conv", origin: NetworkOrigin = "fresh") -> list[CandidateEstimate]:
    """Return networks from fast to slow, each of more weights than the one before."""
    ratios = np.geomspace(0.05, 0.9, count)
    return [prospect(f"{family} {origin} {i}", ratio, float(i), family, origin) for i, ratio in enumerate(ratios)]


def test_the_shortlist_reaches_from_the_fastest_to_the_slowest() -> None:
    chosen = select_shortlist([*line(20), *line(20, "mixer")], 8, 1.0)
    ratios = [p.latency_ratio for p in chosen]
    assert len(set(chosen)) == len(chosen) == 8
    assert ratios == sorted(ratios)
    assert ratios[0] < 0.06
    assert ratios[-1] > 0.8
    assert max(later / earlier for earlier, later in pairwise(ratios)) < 3


def test_of_equal_speed_the_one_with_more_weights_is_taken() -> None:
    weak, strong = prospect("weak", 0.5, 1.0), prospect("strong", 0.5, 1.2)
    assert select_shortlist([weak, strong], 1, 1.0) == [strong]
    assert select_shortlist([strong, weak], 1, 1.0) == [strong]


def test_what_is_slower_and_can_do_less_gets_no_place_before_others() -> None:
    fast, slow = prospect("fast", 0.2, 5.0), prospect("slow", 0.8, 4.0)
    assert select_shortlist([slow, fast], 1, 1.0) == [fast]
    pruned = [prospect("fast", 0.2, 5.0, "", "pruned"), prospect("slow", 0.8, 4.0, "", "pruned")]
    assert select_shortlist(pruned, 8, 1.0) == pruned[:1]


def test_no_family_takes_more_than_half_where_there_are_others() -> None:
    chosen = select_shortlist([*line(30), *line(30, "mixer"), *line(30, "tree")], 8, 1.0)
    assert len(chosen) == 8
    families = [p.family for p in chosen]
    assert max(families.count(family) for family in families) <= 4


def test_pruned_networks_get_a_third_of_the_places_at_least_and_more_where_others_lack() -> None:
    pruned = line(20, "", "pruned")
    mixed = select_shortlist([*line(20), *line(20, "mixer"), *pruned], 8, 1.0)
    assert [p.origin for p in mixed].count("pruned") == 4
    alone = select_shortlist(pruned, 8, 1.0)
    assert len(alone) == 8
    few = select_shortlist([*pruned, *line(2)], 8, 1.0)
    assert [p.origin for p in few].count("pruned") == 7


def test_nothing_slower_than_what_needs_no_training_is_trained() -> None:
    chosen = select_shortlist([*line(20), *line(20, "", "pruned")], 8, 0.4)
    assert chosen
    assert max(p.latency_ratio for p in chosen) < 0.4


def test_if_all_are_slower_they_are_tried_nevertheless() -> None:
    slow = prospect("slow", 1.4, 3.0)
    assert select_shortlist([slow], 8, 0.5) == [slow]
    assert select_shortlist([], 8, 0.5) == []


def test_latency_and_drop_both_make_a_network_less_promising() -> None:
    for number in range(4):
        by_drop = [promise_score(0.5, drop, 0.01, number) for drop in np.linspace(-0.1, 0.5, 40)]
        assert by_drop == sorted(by_drop)
        by_ratio = [promise_score(ratio, 0.02, 0.01, number) for ratio in np.linspace(0.05, 2, 40)]
        assert by_ratio == sorted(by_ratio)


def test_the_same_drop_is_worse_later() -> None:
    assert promise_score(0.5, 0.05, 0.01, 0) < promise_score(0.5, 0.05, 0.01, 1) < promise_score(0.5, 0.05, 0.01, 2)
    assert promise_score(0.5, 0.05, 0.01, 9) == promise_score(0.5, 0.05, 0.01, 10)


def test_a_better_network_than_the_original_is_not_better_than_none_of_a_drop() -> None:
    assert promise_score(0.5, -0.2, 0.01, 2) == promise_score(0.5, 0.0, 0.01, 2)


def test_of_as_many_weights_those_used_more_often_are_worth_more() -> None:
    coarse, fine = prospect("coarse", 0.5, 1.0), replace(prospect("fine", 0.5, 1.0), macs=20_000)
    assert select_shortlist([coarse, fine], 1, 1.0) == select_shortlist([fine, coarse], 1, 1.0) == [fine]


def test_fewer_weights_do_not_make_a_tiny_file_smaller() -> None:
    tiny, small = prospect("tiny", 0.5, 0.1), prospect("small", 0.5, 1.0)
    assert small.cost < 1.05 * tiny.cost
    assert prospect("large", 0.5, 100.0).cost > 1.5 * small.cost


def test_fresh_networks_are_looked_at_where_they_cost_less_than_most_of_the_pruned() -> None:
    pruned = [prospect(f"pruned {i}", ratio, 10.0 + i, "", "pruned") for i, ratio in enumerate((0.2, 0.3, 0.4))]
    fresh = [prospect("cheap", 0.1, 5.0), prospect("dear", 0.6, 50.0)]
    assert [p.title for p in select_shortlist([*pruned, *fresh], 12, 1.0)] == ["cheap", *(p.title for p in pruned)]
    assert select_shortlist([*pruned, fresh[1]], 12, 1.0)[-1].title == "dear"


def test_smaller_versions_are_made_of_what_keeps_the_drop() -> None:
    kept = [
        TrainedCandidate(prospect(f"kept {ratio}", ratio, 1.0), "k", 0.0, predicted_bound=0.01)
        for ratio in (0.6, 0.4)
    ]
    near = TrainedCandidate(prospect("near", 0.1, 1.0, "", "pruned"), "n", 0.015)
    assert parent_for_pruning(kept, [near], max_drop=0.01, round_number=0) == kept[1]


@pytest.mark.parametrize(
    ("drop", "round_number", "taken"), [(0.04, 0, True), (0.06, 0, False), (0.04, 1, False), (0.015, 2, True)]
)
def test_as_long_as_nothing_keeps_the_drop_they_are_made_of_what_is_expected_to(
    drop: float, round_number: int, taken: bool
) -> None:
    warm = TrainedCandidate(prospect("warm", 0.1, 1.0, "", "pruned"), "w", drop)
    fresh = TrainedCandidate(prospect("fresh", 0.1, 1.0), "f", 0.0)
    found = parent_for_pruning([], [fresh, warm], max_drop=0.01, round_number=round_number)
    assert found == (warm if taken else None)


def test_what_is_hopeless_costs_more_than_in_proportion() -> None:
    dear, cheap = promise_score(1.0, 0.02, 0.01, 0), promise_score(0.1, 0.4, 0.01, 0)
    assert dear < cheap


def test_of_few_places_most_are_for_the_model_made_smaller() -> None:
    chosen = select_shortlist([*line(20), *line(20, "", "pruned")], 4, 1.0)
    assert [p.origin for p in chosen].count("pruned") == 3


def test_the_most_accurate_that_is_fast_enough_is_trained_until_it_is_sure() -> None:
    slow = TrainedCandidate(prospect("slow", 0.4, 1.0), "s", 0.0, predicted_bound=0.007)
    fast = TrainedCandidate(prospect("fast", 0.1, 1.0), "f", 0.004, predicted_bound=0.012)
    unsure = TrainedCandidate(prospect("unsure", 0.25, 1.0), "u", 0.002, predicted_bound=0.009)
    assert select_baseline([slow, fast, unsure], 1.0, max_drop=0.01) == unsure
    assert select_baseline([slow, fast, unsure], 0.5, max_drop=0.01) == fast
    assert select_baseline([slow, fast, replace(unsure, predicted_bound=0.006)], 1.0, max_drop=0.01) is None
    assert select_baseline([], 1.0, max_drop=0.01) is None


def test_only_networks_that_were_trained_stand_anywhere() -> None:
    record = TrainedNetwork(
        network_sha256="ab",
        title="one",
        origin="fresh",
        parent_sha256="",
        search_round=1,
        training_rows=100,
        distilled=True,
        parameters=10,
        latency_ratio=0.5,
        validation_metric=0.9,
        drop=0.02,
        training_seconds=1.0,
    )
    one = prospect("one", 0.5, 1.0)
    assert trained_candidate(one, record) == TrainedCandidate(one, "ab", 0.02, np.inf)
    assert trained_candidate(one, replaced(record, predicted_bound=0.0)) == TrainedCandidate(one, "ab", 0.02, 0.0)
    assert trained_candidate(one, replaced(record, network_sha256="")) is None
    assert trained_candidate(one, replaced(record, drop=None)) is None


def test_what_no_longer_gets_better_makes_room() -> None:
    record = TrainedNetwork(
        network_sha256="ab",
        title="one",
        origin="fresh",
        parent_sha256="",
        search_round=2,
        training_rows=100,
        distilled=True,
        parameters=10,
        latency_ratio=0.1,
        validation_metric=0.9,
        drop=0.022,
        training_seconds=1.0,
    )
    slow = trained_candidate(prospect("slow", 0.1, 1.0), record, before=0.024)
    quick = trained_candidate(prospect("quick", 0.12, 1.0), replaced(record, network_sha256="cd"), before=0.05)
    assert slow is not None
    assert quick is not None
    assert (slow.is_stalled, quick.is_stalled) == (True, False)
    ranked = select_survivors(
        [slow, quick, replace(quick, network="ef", drop=0.021)], 1, max_drop=0.01, round_number=1
    )
    assert ranked[0].network == "ef"
    assert select_survivors([slow, quick], 2, max_drop=0.01, round_number=1)[0] == quick


def test_the_surest_network_is_trained_on_even_if_slow() -> None:
    fast = [TrainedCandidate(prospect(f"fast {i}", 0.05 + 0.01 * i, 1.0), f"f{i}", 0.02) for i in range(5)]
    sure = TrainedCandidate(prospect("sure", 0.95, 1.0), "sure", 0.0)
    chosen = select_survivors([*fast, sure], 3, max_drop=0.01, round_number=0)
    assert len(chosen) == 3
    assert sure in chosen
    assert chosen[0] == fast[0]


def test_fewer_networks_than_places_all_go_on() -> None:
    standings = [TrainedCandidate(prospect("one", 0.5, 1.0), "one", 0.3)]
    assert select_survivors(standings, 3, max_drop=0.01, round_number=1) == standings
    assert select_survivors([], 3, max_drop=0.01, round_number=1) == []


def test_rows_are_shared_so_that_all_are_shown_as_many() -> None:
    assert rows_per_network(60.0, [0.01, 0.02]) == 2000
    assert rows_per_network(60.0, [0.01]) == 6000
    assert rows_per_network(0.0, [0.01]) == 0


@pytest.mark.parametrize(("rows", "expected"), [(0, (1, 1)), (999, (1, 999)), (1000, (1, 1000)), (2500, (3, 833))])
def test_passes_use_up_the_rows(rows: int, expected: tuple[int, int]) -> None:
    assert plan_epochs(rows, 1000) == expected


def test_passes_have_an_end() -> None:
    assert plan_epochs(10**9, 1000) == (150, 1000)


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("keeps_now", [True, False])
@pytest.mark.parametrize("limit", range(4, 40))
def test_the_least_number_of_bits_is_found_within_few_rounds(workers: int, keeps_now: bool, limit: int) -> None:
    kept: list[int] = []
    failed: list[int] = []
    for _ in range(10):
        steps = next_noise_level(kept, failed, workers, keeps_now=keeps_now)
        assert len(steps) <= workers
        assert not set(steps) & {*kept, *failed}
        if not steps:
            break
        for db in steps:
            (kept if db >= limit else failed).append(db)
    else:
        pytest.fail(f"still looking after ten rounds: {kept}, {failed}")
    possible = [db for db in (36, 30, 24, 21, 18, 15, 12, 10, 8, 6) if db >= limit]
    assert min(kept, default=0) == min(possible, default=0)


def test_many_bits_come_first_where_the_drop_is_broken_already() -> None:
    assert min(next_noise_level([], [], 4, keeps_now=False)) >= 15
    assert next_noise_level([], [], 1, keeps_now=False) > next_noise_level([], [], 1, keeps_now=True)


def test_only_what_can_be_shown_enough_rows_is_trained() -> None:
    quick = [replace(each, seconds_per_row=1e-4) for each in line(10)]
    slow = [replace(each, seconds_per_row=1.0) for each in line(10, "mixer")]
    assert affordable_candidates([*quick, *slow], 10.0, 1000) == quick
    few = affordable_candidates([*quick[:2], *slow], 10.0, 1000)
    assert len(few) == 8
    assert few[:2] == quick[:2]  # too few are quick enough: the quickest of the others come along
    assert affordable_candidates([], 10.0, 1000) == []


def test_the_originals_weights_need_fewer_rows() -> None:
    cold = [replace(each, seconds_per_row=0.004) for each in line(9)]
    warm = [replace(each, seconds_per_row=0.004) for each in line(9, "", "pruned")]
    assert affordable_candidates([*cold, *warm], 10.0, 1000) == warm


def test_finalists_are_the_fastest_that_keep_the_drop_and_then_the_most_promising() -> None:
    kept = [
        TrainedCandidate(prospect(f"kept {i}", 0.3 + i / 10, 1.0), f"k{i}", 0.0, predicted_bound=0.008)
        for i in range(3)
    ]
    other = TrainedCandidate(prospect("other", 0.1, 1.0), "other", 0.02)
    failed = TrainedCandidate(prospect("failed", 0.05, 1.0), "failed", np.inf)
    assert all(meets_drop_limit(standing, 0.01) for standing in kept)
    assert not meets_drop_limit(other, 0.01)
    assert select_finalists(kept, [*kept, other, failed], max_drop=0.01, round_number=3) == [*kept, other]
    assert select_finalists([], [other, failed], max_drop=0.01, round_number=3) == [other]
    assert select_finalists([], [], max_drop=0.01, round_number=3) == []
