import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from edgewright.stats.drift_test import (
    DriftFinding,
    DriftTestDesign,
    DriftTestState,
    DriftVerdict,
    betting_events,
    clopper_pearson_upper,
    design_drift_test,
    drift_finding,
    event_bounds,
    fit_tolerance,
    log_wealth,
    new_drift_state,
    update_drift_test,
)
from edgewright.stats.histograms import bin_index, build_reference_histogram, count_by_bin, quantile_edges

DATA = Path(__file__).parents[4] / "shared" / "data" / "wisdm51_watch.npz"
BATCH = 100


def follow(
    plan: DriftTestDesign, edges: NDArray[np.float64], stream: NDArray[np.float64], batch: int = BATCH
) -> DriftTestState:
    state = new_drift_state(len(edges), edges.shape[1] + 1)
    for start in range(0, len(stream), batch):
        state = update_drift_test(
            plan, state, count_by_bin(stream[start : start + batch], edges), observed_at=float(start + batch)
        )
    return state


def found(state: DriftTestState) -> DriftFinding:
    assert state.drift_finding is not None
    return state.drift_finding


@given(st.floats(0.001, 0.999), st.floats(0, 1))
def test_no_bet_gains_on_average_while_its_bound_holds(bound: float, share: float) -> None:
    rate = bound * share
    win, lose = (math.exp(log_wealth(hit, 1, bound)) for hit in (1, 0))
    assert rate * win + (1 - rate) * lose <= 1 + 1e-12
    # And it does gain where the bound fails clearly.
    high = (1 + bound) / 2
    assert high * win + (1 - high) * lose > 1


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.7])
def test_wealth_passes_its_limit_with_no_more_than_alpha_by_full_enumeration(rate: float) -> None:
    alpha, reached = 0.3, 0.0
    for path in itertools.product((0, 1), repeat=12):
        hits = np.cumsum(path)
        if (log_wealth(hits, np.arange(1, 13), rate) >= -math.log(alpha)).any():
            reached += float(rate ** hits[-1] * (1 - rate) ** (12 - hits[-1]))
    assert 0 < reached <= alpha


@pytest.mark.parametrize("error", [0.05, 1e-3, 1e-7])
@pytest.mark.parametrize("total", [1, 40, 5000, 200_000])
def test_upper_bounds_are_those_of_clopper_and_pearson(total: int, error: float) -> None:
    counts = np.unique(np.linspace(0, total, 23).astype(int))
    independent = np.where(counts < total, stats.beta.isf(error, counts + 1, np.maximum(total - counts, 1e-9)), 1.0)
    bounds = clopper_pearson_upper(counts, total, error)
    assert bounds == pytest.approx(independent, rel=1e-9)
    assert (bounds >= independent * (1 - 1e-12)).all()


@pytest.mark.parametrize(("counts", "total", "error"), [(3, 2, 0.1), (-1, 2, 0.1), (1, 2, 0.0), (1, 2, 0.7)])
def test_impossible_counts_have_no_bound(counts: int, total: int, error: float) -> None:
    with pytest.raises(ValueError, match=r"successes|error"):
        clopper_pearson_upper(counts, total, error)


def test_bounds_of_all_events_hold_together() -> None:
    random = np.random.default_rng(0)
    shares = random.dirichlet(np.ones(16), size=3)
    members = betting_events(16)
    true = np.column_stack([shares, np.zeros(3)]) @ members.T
    missed = 0
    for _ in range(60):
        counts = np.stack([random.multinomial(300, each) for each in shares])
        missed += bool((event_bounds(np.column_stack([counts, [0, 0, 0]]), 0.05) < true - 1e-12).any())
    assert missed <= 7


def test_events_hold_each_bin_each_tail_and_their_complements() -> None:
    members = {tuple(event) for event in betting_events(16).tolist()}
    assert len(members) == len(betting_events(16))
    assert all(tuple(not part for part in event) in members for event in members)
    for bin_ in range(17):
        assert tuple(place_ == bin_ for place_ in range(17)) in members
    for last in range(15):
        assert tuple(place_ <= last for place_ in range(17)) in members


def test_streams_of_the_reference_rarely_alarm_and_an_exact_reference_would_always() -> None:
    honest = exact = 0
    for seed in range(20):
        random = np.random.default_rng(seed)
        taken = build_reference_histogram(random.normal(size=(4000, 4)), seed=seed)
        stream = random.normal(size=(20_000, 4))
        honest += follow(design_drift_test(taken.counts), taken.edges, stream).drift_finding is not None
        shares = taken.counts / taken.counts.sum(axis=1, keepdims=True)
        naive = design_drift_test(taken.counts, null_bounds=np.clip(shares @ betting_events(16).T, 1e-9, 1))
        exact += follow(naive, taken.edges, stream, batch=500).drift_finding is not None
    # With a rate of .05, four or more of 20 have a chance of .016.
    assert honest <= 3
    assert exact >= 12


def test_signals_and_restarts_share_alpha() -> None:
    # Bounds are the true probabilities, so that nothing but the sharing keeps the error down.
    shares = np.append(np.full(16, 1 / 16), 0.0)
    exact = np.tile(np.clip(shares @ betting_events(16).T, 1e-12, 1), (8, 1))
    counts, alarms = np.ones((8, 17), np.int64), 0
    plan = design_drift_test(counts, null_bounds=exact, alpha=0.2, period_size=1600, block_count=16)
    for seed in range(100):
        random, state = np.random.default_rng(seed), new_drift_state(8, 16)
        for _ in range(64):
            state = update_drift_test(plan, state, random.multinomial(25, shares, size=8))
        alarms += state.drift_finding is not None
    # With a rate of .16, 27 or more of 100 have a chance of .003.
    assert 0 < alarms <= 26


def test_what_stays_within_the_tolerance_rarely_alarms_and_beyond_it_does() -> None:
    delta, alarms, without = 0.08, 0, 0
    for seed in range(15):
        random = np.random.default_rng(seed)
        taken = build_reference_histogram(random.random((20_000, 1)), seed=seed)
        stream = random.random((20_000, 1))
        # Total variation of exactly delta: mass goes to the top sixteenth.
        stream = np.where(random.random(stream.shape) < delta / (1 - 1 / 16), 1 - stream / 16, stream)
        within = design_drift_test(taken.counts, tolerance=delta)
        alarms += follow(within, taken.edges, stream).drift_finding is not None
        without += follow(design_drift_test(taken.counts), taken.edges, stream[:5000]).drift_finding is not None
    assert alarms <= 2
    assert without == 15


@pytest.mark.parametrize("change_at", [0, 9000])
def test_a_shift_is_found_soon_with_its_signal_and_about_when_it_began(change_at: int) -> None:
    random = np.random.default_rng(4)
    taken = build_reference_histogram(random.normal(size=(8000, 5)), seed=4)
    stream = random.normal(size=(change_at + 1500, 5))
    stream[change_at:, 3] += 0.6
    finding = found(follow(design_drift_test(taken.counts), taken.edges, stream, batch=25))
    assert finding.verdict is DriftVerdict.DRIFT
    assert finding.drifted_signals == (3,)
    assert max(0, change_at - 1000) <= finding.since_observation <= change_at + 500
    assert finding.since_at == finding.since_observation
    assert finding.log_e_value >= math.log(1 / 0.04)


def test_restarts_find_a_late_change_that_one_long_test_misses() -> None:
    random = np.random.default_rng(5)
    taken = build_reference_histogram(random.normal(size=(8000, 1)), seed=5)
    stream = random.normal(size=(18_800, 1))
    stream[18_000:] += 0.4
    assert follow(design_drift_test(taken.counts), taken.edges, stream).drift_finding is not None
    assert follow(design_drift_test(taken.counts, block_count=1), taken.edges, stream).drift_finding is None


def test_values_that_are_no_number_are_drift() -> None:
    random = np.random.default_rng(6)
    taken = build_reference_histogram(random.normal(size=(2000, 2)), seed=6)
    stream = random.normal(size=(400, 2))
    stream[::4, 1] = np.nan
    assert found(follow(design_drift_test(taken.counts), taken.edges, stream)).drifted_signals == (1,)


def test_evidence_depends_on_counts_and_not_on_their_order() -> None:
    random = np.random.default_rng(7)
    taken = build_reference_histogram(random.normal(size=(2000, 2)), seed=7)
    plan = design_drift_test(taken.counts, period_size=100_000, block_count=4)
    stream = random.normal(size=(600, 2)) + 0.1
    one = drift_finding(plan, follow(plan, taken.edges, stream, batch=600))
    other = drift_finding(plan, follow(plan, taken.edges, random.permutation(stream), batch=7))
    assert one.log_e_value == pytest.approx(other.log_e_value, abs=1e-9)


def test_evidence_of_counts_alone_is_what_bets_one_by_one_win() -> None:
    random = np.random.default_rng(8)
    hits = random.random(50) < 0.4
    bets = [(h, math.expm1(h)) for h in (0.25, 0.5, 1.0, 2.0, 4.0)]
    slow = np.mean([np.prod([math.exp(h * hit) / (1 + 0.3 * gain) for hit in hits]) for h, gain in bets])
    assert math.exp(log_wealth(hits.sum(), 50, 0.3)) == pytest.approx(slow)


def test_some_restart_lies_before_any_change_and_not_much_before() -> None:
    plan = DriftTestDesign(np.ones((1, len(betting_events(4)))), 0.04, 1, 64)
    state = new_drift_state(1, 4)
    for latest in range(64):
        ages = [latest - mark.index for mark in state.restarts]
        assert len(ages) <= 7
        for change in range(latest + 1):
            assert any(change <= age <= 3 * change for age in ages), (latest, change)
        state = update_drift_test(plan, state, np.array([[1, 0, 0, 0, 0]]))


def test_the_state_of_eight_signals_takes_six_kilobytes() -> None:
    taken = build_reference_histogram(np.random.default_rng(9).normal(size=(2000, 8)), seed=9)
    plan = design_drift_test(taken.counts)
    state, most = new_drift_state(8, 16), 0
    for _ in range(100):
        state = update_drift_test(
            plan, state, count_by_bin(np.random.default_rng(9).normal(size=(150, 8)), taken.edges)
        )
        most = max(most, state.counts.nbytes + sum(mark.counts_before.nbytes for mark in state.restarts))
    assert most <= 6144


def test_a_period_ends_and_a_finding_outlives_it() -> None:
    random = np.random.default_rng(10)
    taken = build_reference_histogram(random.normal(size=(2000, 1)), seed=10)
    plan = design_drift_test(taken.counts, period_size=640, block_count=64)
    quiet = follow(plan, taken.edges, random.normal(size=(1400, 1)))
    assert (quiet.completed_periods, quiet.drift_finding) == (2, None)
    assert quiet.counts.sum() == 0
    drifted = follow(plan, taken.edges, random.normal(size=(1400, 1)) + 2)
    assert drifted.completed_periods == 2
    assert found(drifted).period_index == 0


def test_what_cannot_be_tested_is_neither_drift_nor_its_absence() -> None:
    random = np.random.default_rng(11)
    taken = build_reference_histogram(random.normal(size=(2000, 1)), seed=11)
    plan = design_drift_test(taken.counts)
    for shift in (0, 2):
        state = follow(plan, taken.edges, random.normal(size=(500, 1)) + shift)
        finding = drift_finding(plan, state, is_testable=False)
        assert (finding.verdict, finding.drifted_signals) == (DriftVerdict.CANNOT_TEST, ())
    assert (
        drift_finding(plan, follow(plan, taken.edges, random.normal(size=(500, 1)))).verdict
        is DriftVerdict.NO_EVIDENCE
    )


def test_bounds_from_the_profile_give_the_same_plan() -> None:
    taken = build_reference_histogram(np.random.default_rng(12).normal(size=(900, 2)), seed=12)
    on_device = design_drift_test(taken.counts, tolerance=[0.1, 0.0])
    published = design_drift_test(
        taken.counts, tolerance=[0.1, 0.0], null_bounds=event_bounds(taken.counts, 0.05 * 0.2)
    )
    assert (on_device.null_bounds == published.null_bounds).all()
    assert (on_device.null_bounds[0] >= design_drift_test(taken.counts).null_bounds[0]).all()


@pytest.mark.parametrize(
    "wrong",
    [
        {"alpha": 0.0},
        {"alpha": 0.6},
        {"block_count": 0},
        {"period_size": 10},
        {"tolerance": -0.1},
        {"tolerance": 1.1},
    ],
)
def test_plans_that_mean_nothing_are_refused(wrong: dict[str, float]) -> None:
    counts = np.full((1, 17), 10)
    with pytest.raises(ValueError, match=r"alpha|tolerance"):
        design_drift_test(counts, **wrong)  # type: ignore[arg-type]


def test_new_devices_keep_the_tolerance_as_often_as_stated() -> None:
    random, within = np.random.default_rng(13), []
    for _ in range(150):
        devices = random.dirichlet(np.full(8, 40.0), size=(26, 2))
        counts = np.concatenate([random.multinomial(400, devices), np.zeros((26, 2, 1), np.int64)], axis=2)
        kept = fit_tolerance(counts[:25], quantile=0.9)
        pooled = counts[:25].sum(axis=0) / counts[:25].sum(axis=(0, 2))[:, None]
        distance = np.abs(devices[25] - pooled[:, :-1]).sum(axis=1) / 2
        within.append(bool((distance <= kept.delta).all()))
        assert kept.coverage == 0.9
    assert np.mean(within) >= 0.9


def test_a_device_is_compared_with_the_others_and_not_with_itself() -> None:
    apart = np.array([[[10, 0, 0]], [[0, 10, 0]]])
    assert fit_tolerance(apart, quantile=0.5).delta.tolist() == [1.0]
    assert fit_tolerance(apart, quantile=0.5, reference=np.array([[5, 5, 0]])).delta.tolist() == [0.5]


def test_too_few_devices_for_a_quantile_are_said_to_be() -> None:
    counts = np.random.default_rng(14).multinomial(50, np.full(5, 0.2), size=(6, 1))
    few = fit_tolerance(counts, quantile=0.95)
    assert few.coverage == pytest.approx(6 / 7)
    with pytest.raises(ValueError, match="groups"):
        fit_tolerance(counts[:1])
    with pytest.raises(ValueError, match="groups"):
        fit_tolerance(np.concatenate([counts, np.zeros((1, 1, 5), np.int64)]))


@pytest.mark.shared
@pytest.mark.skipif(not DATA.is_file(), reason="../shared/data is absent")
def test_wearers_who_differ_within_the_tolerance_do_not_alarm() -> None:
    with np.load(DATA) as file:
        force = np.concatenate([file["X_train"], file["X_test"]])[:, :, :3].astype(np.float64)
        subjects = np.concatenate([file["subject_train"], file["subject_test"]])
        held_out = np.unique(file["subject_test"])
    length = np.linalg.norm(force, axis=2)
    signals = np.column_stack([force.mean(axis=1), length.std(axis=1), length.max(axis=1)])
    others = ~np.isin(subjects, held_out)
    taken = build_reference_histogram(signals[others], seed=0, groups=subjects[others])
    known = np.stack([count_by_bin(signals[subjects == name], taken.edges) for name in np.unique(subjects[others])])
    delta = fit_tolerance(known, quantile=0.9).delta
    shares = taken.counts / taken.counts.sum(axis=1, keepdims=True)
    within = alarms = without = 0
    for name in held_out:
        own = signals[subjects == name]
        seen = count_by_bin(own, taken.edges)
        near = bool((np.abs(seen / len(own) - shares).sum(axis=1) / 2 <= delta).all())
        stream = own[np.random.default_rng(int(name)).integers(len(own), size=4000)]
        within += near
        alarms += (
            near
            and follow(design_drift_test(taken.counts, tolerance=delta), taken.edges, stream).drift_finding
            is not None
        )
        without += follow(design_drift_test(taken.counts), taken.edges, stream).drift_finding is not None
    assert within >= 6
    assert alarms == 0
    assert without >= 7


def test_a_finding_is_kept_until_it_is_dealt_with() -> None:
    random = np.random.default_rng(15)
    taken = build_reference_histogram(random.normal(size=(2000, 1)), seed=15)
    plan = design_drift_test(taken.counts)
    drifted = follow(plan, taken.edges, random.normal(size=(300, 1)) + 2)
    first = found(drifted)
    for _ in range(20):
        drifted = update_drift_test(plan, drifted, count_by_bin(random.normal(size=(100, 1)), taken.edges))
    assert drifted.drift_finding == first
    assert replace(drifted, drift_finding=None) != drifted


def test_places_and_edges_agree_on_the_number_of_signals() -> None:
    with pytest.raises(ValueError, match="signals"):
        bin_index(np.zeros((3, 2)), quantile_edges(np.arange(20.0)))
