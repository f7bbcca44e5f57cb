"""Laws of planning a training, for any figures."""

from hypothesis import given
from hypothesis import strategies as st

from edgewright.compress.train.policy import (
    CandidateEstimate,
    TrainedCandidate,
    next_noise_level,
    plan_epochs,
    select_shortlist,
    select_survivors,
)

prospects = st.lists(
    st.builds(
        CandidateEstimate,
        title=st.uuids().map(str),
        family=st.sampled_from(["conv", "mixer", "tree"]),
        initial_sha256=st.just(""),
        origin=st.sampled_from(["fresh", "inherited", "pruned"]),
        latency_ratio=st.floats(0.01, 3),
        parameters=st.integers(1, 10**6),
        macs=st.integers(1, 10**9),
    ),
    max_size=40,
    unique_by=lambda prospect: prospect.title,
)


@given(prospects, st.integers(0, 10), st.floats(0.05, 2))
def test_a_shortlist_is_a_choice_without_repetition_in_order_of_latency(
    known: list[CandidateEstimate], count: int, slowest: float
) -> None:
    chosen = select_shortlist(known, count, slowest)
    assert len(chosen) <= count
    assert len(set(chosen)) == len(chosen)
    assert set(chosen) <= set(known)
    assert chosen == sorted(chosen, key=lambda p: p.latency_ratio)
    assert bool(chosen) == bool(known and count)
    if any(p.latency_ratio < 0.95 * slowest for p in known):
        assert all(p.latency_ratio < 0.95 * slowest for p in chosen)


@given(prospects, st.integers(2, 10))
def test_nobody_of_the_same_origin_beats_a_member_of_the_shortlist_by_a_step(
    known: list[CandidateEstimate], count: int
) -> None:
    pruned = [p for p in known if p.origin == "pruned"]
    for member in select_shortlist(pruned, count, 9.0):
        assert not any(
            p.cost < member.cost / 1.2 and p.parameters > member.parameters and p.macs >= member.macs
            for p in pruned
        )


@given(prospects, st.data(), st.integers(1, 6), st.integers(0, 3))
def test_survivors_are_a_choice_that_holds_the_surest(
    known: list[CandidateEstimate], data: st.DataObject, count: int, number: int
) -> None:
    drops = st.floats(-0.1, 1)
    standings = [TrainedCandidate(p, p.title, data.draw(drops)) for p in known]
    chosen = select_survivors(standings, count, max_drop=0.01, round_number=number)
    assert min(count, 3, len(standings)) <= len(chosen) <= count
    assert len({s.network for s in chosen}) == len(chosen)
    if count > 1 and standings:
        assert min(s.drop for s in chosen) == min(s.drop for s in standings)


@given(st.integers(0, 10**9), st.integers(1, 10**6))
def test_an_epoch_shows_at_least_one_row_and_never_more_than_there_are(rows: int, available: int) -> None:
    epochs, per_epoch = plan_epochs(rows, available)
    assert epochs >= 1
    assert 1 <= per_epoch <= available
    assert epochs * per_epoch <= max(rows, 1)


@given(st.sets(st.integers(1, 40)), st.sets(st.integers(1, 40)), st.integers(1, 8), st.booleans())
def test_no_tightness_is_tried_twice_or_beyond_what_is_known(
    kept: set[int], failed: set[int], count: int, keeps_now: bool
) -> None:
    steps = next_noise_level(sorted(kept), sorted(failed), count, keeps_now=keeps_now)
    assert len(set(steps)) == len(steps) <= count
    for db in steps:
        assert db not in kept | failed
        assert db < min(kept, default=99)
        assert db > max(failed, default=0)
