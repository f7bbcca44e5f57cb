"""The wealth that rollouts are decided by: exact in its mean, blind to order, never kinder to more failures."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgewright.stats import sequential_ab
from edgewright.stats.sequential_ab import ArmOutcomes

OUTCOMES = st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.7, 1.0]), max_size=30)
SHARES = st.floats(0.02, 0.98)
CENTRES = st.sampled_from([0.0, 0.1, 0.5, 0.9])


def _binary(treated: tuple[int, int], control: tuple[int, int]) -> ArmOutcomes:
    """Return arms of so many failures among so many devices."""
    return ArmOutcomes(
        np.array([0.0, 1.0]),
        np.array([treated[1] - treated[0], treated[0]]),
        np.array([control[1] - control[0], control[0]]),
    )


def _mean_over_assignments(
    treated: NDArray[np.float64], control: NDArray[np.float64], share: float, wealth: str, **told: float
) -> float:
    """Return the mean wealth over all ways in which devices could have been assigned.

    Args:
        treated: Shape [devices], what each comes to if treated.
        control: Shape [devices], and if not.
        share: Of the treated.
        wealth: Name of the function.
        told: To it.
    """
    total = 0.0
    for assigned in itertools.product([False, True], repeat=treated.size):
        mask = np.array(assigned)
        arms = sequential_ab.count_outcomes_by_arm(treated[mask], control[~mask])
        chance = share ** mask.sum() * (1 - share) ** (~mask).sum()
        total += chance * math.exp(getattr(sequential_ab, wealth)(arms, share, **told))
    return total


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
@pytest.mark.parametrize("centre", [0.0, 0.3])
def test_a_harmless_release_wins_nothing_on_average_however_devices_differ(share: float, centre: float) -> None:
    outcomes = np.array([0.0, 1.0, 1.0, 0.3, 0.0, 0.9, 1.0])
    found = _mean_over_assignments(outcomes, outcomes, share, "log_harm_evidence", center=centre)
    assert found == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_a_difference_that_is_there_is_refuted_by_nothing_on_average(share: float) -> None:
    control = np.array([0.0, 0.6, 0.1, 0.3, 0.0, 0.5])
    found = _mean_over_assignments(control + 0.2, control, share, "log_refutation_evidence", difference=0.2)
    assert found == pytest.approx(1, abs=1e-9)
    assert _mean_over_assignments(control + 0.3, control, share, "log_refutation_evidence", difference=0.2) < 1


def test_treatment_that_helps_is_no_evidence_of_harm_on_average() -> None:
    control = np.array([1.0, 0.8, 0.1, 0.3, 1.0, 0.5])
    assert _mean_over_assignments(control * 0.5, control, 0.3, "log_harm_evidence") < 1


@pytest.mark.parametrize(
    ("devices", "share", "difference", "harm", "refuted"),
    [
        ((300, 300), 0.5, 0.01, 4.249854849638438, -1.379611105298072),
        ((60, 500), 0.1, 0.05, 1.9589582416814368, -0.5813638666770112),
        ((400, 50), 0.9, 0.1, 0.30844321102888483, 1.095141731389868),
    ],
)
def test_wealth_agrees_with_confseq(
    devices: tuple[int, int], share: float, difference: float, harm: float, refuted: float
) -> None:
    # confseq 0.0.11, betting.diversified_betting_mart with our stakes and weights, on scores brought to [0, 1]:
    # theta 1 for harm, 0 for what is refuted.
    treated, control = (np.arange(number) % every == 0 for number, every in zip(devices, (12, 40), strict=True))
    arms = sequential_ab.count_outcomes_by_arm(treated, control)
    assert sequential_ab.log_harm_evidence(arms, share) == pytest.approx(harm, rel=1e-9)
    assert sequential_ab.log_refutation_evidence(arms, share, difference) == pytest.approx(refuted, rel=1e-9)


def test_wealth_of_outcomes_between_0_and_1_agrees_with_confseq() -> None:
    arms = sequential_ab.count_outcomes_by_arm(np.linspace(0, 0.4, 80), np.linspace(0, 0.3, 120))
    assert sequential_ab.log_harm_evidence(arms, 0.4) == pytest.approx(1.2914973147126825, rel=1e-9)
    assert sequential_ab.log_refutation_evidence(arms, 0.4, 0.2) == pytest.approx(5.491712999666219, rel=1e-9)


@given(OUTCOMES, OUTCOMES, SHARES, CENTRES, st.randoms(use_true_random=False))
def test_the_order_of_devices_does_not_matter(
    treated: list[float], control: list[float], share: float, centre: float, random: "object"
) -> None:
    arms = sequential_ab.count_outcomes_by_arm(treated, control)
    random.shuffle(treated)  # type: ignore[attr-defined]
    random.shuffle(control)  # type: ignore[attr-defined]
    again = sequential_ab.count_outcomes_by_arm(treated, control)
    assert sequential_ab.log_harm_evidence(arms, share, center=centre) == sequential_ab.log_harm_evidence(
        again, share, center=centre
    )
    assert sequential_ab.difference_interval(arms, share, 0.1, center=centre) == sequential_ab.difference_interval(
        again, share, 0.1, center=centre
    )


@given(OUTCOMES.filter(bool), OUTCOMES, SHARES, CENTRES)
def test_more_failures_never_look_better(
    treated: list[float], control: list[float], share: float, centre: float
) -> None:
    arms = sequential_ab.count_outcomes_by_arm(treated, control)
    worse = sequential_ab.count_outcomes_by_arm([1.0, *treated[1:]], control)
    told = {"center": centre}
    assert (
        sequential_ab.log_harm_evidence(worse, share, **told)
        >= sequential_ab.log_harm_evidence(arms, share, **told) - 1e-9
    )
    for bound in (sequential_ab.difference_upper_bound, sequential_ab.difference_lower_bound):
        assert bound(worse, share, 0.05, **told) >= bound(arms, share, 0.05, **told) - 1e-9


@given(OUTCOMES, OUTCOMES, SHARES, CENTRES, st.floats(0.01, 0.5))
def test_bounds_enclose_each_other_and_keep_to_what_is_possible(
    treated: list[float], control: list[float], share: float, centre: float, alpha: float
) -> None:
    arms = sequential_ab.count_outcomes_by_arm(treated, control)
    low, high = sequential_ab.difference_interval(arms, share, alpha, center=centre)
    assert -1 <= low <= arms.mean_outcomes[0] - arms.mean_outcomes[1] <= high <= 1
    wider = sequential_ab.difference_interval(arms, share, alpha / 2, center=centre)
    assert wider[0] <= low
    assert high <= wider[1]


@given(st.floats(-1, 1), st.floats(-1, 1), SHARES, CENTRES)
def test_a_greater_difference_is_refuted_more_surely(
    first: float, second: float, share: float, centre: float
) -> None:
    arms = sequential_ab.count_outcomes_by_arm([0, 1, 0.5, 0, 0], [1, 1, 0, 0.25])
    low, high = (
        sequential_ab.log_refutation_evidence(arms, share, difference, center=centre)
        for difference in sorted((first, second))
    )
    assert low <= high + 1e-9


@given(st.integers(0, 6), st.integers(0, 6), st.integers(8, 300), SHARES)
def test_as_many_times_the_devices_refute_as_it_says(first: int, second: int, devices: int, share: float) -> None:
    arms = _binary((first, devices), (second, devices))
    times = sequential_ab.sample_growth_to_refute(arms, share, 0.05, 0.05)
    if math.isinf(times):
        many = ArmOutcomes(arms.values, 1000 * arms.treated, 1000 * arms.control)
        assert sequential_ab.log_refutation_evidence(many, share, 0.05) < math.log(20)
        return
    enough = math.ceil(times)
    grown = ArmOutcomes(arms.values, enough * arms.treated, enough * arms.control)
    assert sequential_ab.log_refutation_evidence(grown, share, 0.05) >= math.log(20) - 1e-6
    if times > 2:
        few = ArmOutcomes(arms.values, (enough - 2) * arms.treated, (enough - 2) * arms.control)
        assert sequential_ab.log_refutation_evidence(few, share, 0.05) < math.log(20)


def test_the_truth_stays_within_the_bounds_at_every_look() -> None:
    random = np.random.default_rng(5)
    missed = 0
    for _ in range(100):
        rates = random.beta(0.5, 4.5, size=1200)  # devices differ
        treated = random.random(1200) < 0.25
        failed = random.random(1200) < np.where(treated, rates + 0.1 * (1 - rates), rates)
        truth = float((0.1 * (1 - rates)).mean())
        looks = (
            sequential_ab.count_outcomes_by_arm(failed[:n][treated[:n]], failed[:n][~treated[:n]])
            for n in range(100, 1201, 100)
        )
        bounds = [sequential_ab.difference_interval(arms, 0.25, 0.2) for arms in looks]
        missed += any(not low <= truth <= high for low, high in bounds)
    assert missed <= 0.2 * 100


def test_nothing_is_known_without_devices() -> None:
    arms = sequential_ab.count_outcomes_by_arm([], [])
    assert sequential_ab.log_harm_evidence(arms, 0.5) == pytest.approx(0, abs=1e-12)
    assert sequential_ab.difference_interval(arms, 0.5, 0.05) == (-1, 1)
    assert sequential_ab.log_imbalance_evidence(0, 0, 0.2) == pytest.approx(0, abs=1e-12)


def test_a_baseline_makes_bounds_narrower_where_failures_are_frequent() -> None:
    arms = _binary((900, 3000), (900, 3000))
    assert sequential_ab.difference_upper_bound(
        arms, 0.5, 0.05, center=0.3
    ) < 0.9 * sequential_ab.difference_upper_bound(arms, 0.5, 0.05)


def test_the_larger_arm_is_worth_its_devices() -> None:
    small = sequential_ab.difference_upper_bound(_binary((20, 1000), (20, 1000)), 0.5, 0.05)
    large = sequential_ab.difference_upper_bound(_binary((20, 1000), (180, 9000)), 0.1, 0.05)
    assert large < 0.85 * small


@pytest.mark.parametrize("share", [0.05, 0.5, 0.7])
def test_arms_as_they_should_be_win_nothing_on_average(share: float) -> None:
    total = sum(
        math.comb(12, number)
        * share**number
        * (1 - share) ** (12 - number)
        * math.exp(sequential_ab.log_imbalance_evidence(number, 12 - number, share))
        for number in range(13)
    )
    assert total == pytest.approx(1, abs=1e-9)


def test_devices_that_are_missing_from_one_arm_are_noticed() -> None:
    assert sequential_ab.log_imbalance_evidence(900, 10_000, 0.1) > math.log(1000)
    assert sequential_ab.log_imbalance_evidence(1000, 9000, 0.1) < 0


@pytest.mark.parametrize(("share", "centre"), [(0.0, 0.0), (1.0, 0.0), (0.5, 1.0), (0.5, -0.1)])
def test_impossible_designs_are_refused(share: float, centre: float) -> None:
    with pytest.raises(ValueError, match="share"):
        sequential_ab.log_harm_evidence(_binary((1, 2), (1, 2)), share, center=centre)


def test_impossible_outcomes_are_refused() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        sequential_ab.count_outcomes_by_arm([1.5], [0])
    with pytest.raises(ValueError, match="negative"):
        _binary((3, 2), (1, 2))
    with pytest.raises(ValueError, match="counts"):
        ArmOutcomes(np.array([0.0]), np.array([1, 2]), np.array([1]))
    with pytest.raises(ValueError, match="alpha"):
        sequential_ab.difference_upper_bound(_binary((1, 2), (1, 2)), 0.5, 0.0)
