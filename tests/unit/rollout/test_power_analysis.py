"""Whether a fleet can answer what its rollout asks is said before it begins, and truly."""

import math

import numpy as np
import pytest

from edgewright.contract.rollout.plan import HealthRule, RolloutArm, RolloutPlan, RolloutPolicy, RolloutStage
from edgewright.rollout import power_analysis
from edgewright.stats import sequential_ab

RULE = HealthRule("crash", margin=0.01)


def _plan(*stages: RolloutStage) -> RolloutPlan:
    return RolloutPlan("digits", "pi", "spring", 1, 1, (RolloutArm("1.1", "ab" * 32),), stages)


def _policy(holdback: float = 0.05) -> RolloutPolicy:
    return RolloutPolicy("digits", "pi", 1, "0123456789abcdef", holdout_fraction=holdback)


def _arms(treated: int, control: int, devices: int) -> sequential_ab.ArmOutcomes:
    return sequential_ab.ArmOutcomes(
        np.array([0.0, 1.0]), np.array([devices - treated, treated]), np.array([devices - control, control])
    )


def test_the_devices_that_are_asked_for_are_the_devices_that_it_takes() -> None:
    pairs = power_analysis.devices_to_clear(0.02, 0.01) / 2
    assert pairs == pytest.approx(2900, rel=0.05)
    random = np.random.default_rng(11)
    looks = np.linspace(pairs / 8, pairs, 8).astype(int)
    cleared = 0
    for _ in range(300):
        failed = random.binomial(np.diff(looks, prepend=0)[:, None], 0.02, size=(8, 2)).cumsum(axis=0)
        cleared += any(
            sequential_ab.log_refutation_evidence(_arms(int(a), int(b), int(n)), 0.5, 0.01) >= math.log(20)
            for n, (a, b) in zip(looks, failed, strict=True)
        )
    assert 0.4 < cleared / 300 < 0.65


def test_harm_is_seen_with_the_devices_that_are_named() -> None:
    pairs = round(power_analysis.devices_to_detect(0.02, 0.08, alpha=0.005, power=0.95) / 2)
    assert pairs < 700
    random = np.random.default_rng(12)
    found = [
        sequential_ab.log_harm_evidence(_arms(int(a), int(b), pairs), 0.5) >= math.log(200)
        for a, b in zip(random.binomial(pairs, 0.08, 400), random.binomial(pairs, 0.02, 400), strict=True)
    ]
    assert np.mean(found) > 0.92


def test_a_fleet_that_is_too_small_is_refused_and_told_what_it_takes() -> None:
    found = power_analysis.assess_feasibility(_plan(RolloutStage(0.5, 0, (RULE,))), _policy(), 300)
    assert found.verdict == "refuse"
    assert "it takes" in found.reasons[0]
    (question,) = found.stages
    assert question.power < 0.1
    assert question.treated + question.control == 300
    assert question.treated < question.devices_for_half_power < question.devices_for_95_power


def test_a_fleet_that_may_not_suffice_is_warned_about() -> None:
    found = power_analysis.assess_feasibility(_plan(RolloutStage(0.5, 0, (RULE,))), _policy(), 6500)
    assert found.verdict == "warn"
    assert 0.3 < found.stages[0].power < 0.8


def test_a_large_fleet_is_fine_and_sees_small_harm() -> None:
    stages = (RolloutStage(0.1, 0, (RULE,)), RolloutStage(0.5, 0, (RULE,)), RolloutStage(1.0, 0, (RULE,)))
    found = power_analysis.assess_feasibility(_plan(*stages), _policy(), 300_000)
    assert (found.verdict, found.reasons) == ("fine", ())
    assert all(0.02 < question.detectable_rate < 0.03 for question in found.stages)


def test_a_stage_without_control_is_refused_unless_it_asks_nothing() -> None:
    found = power_analysis.assess_feasibility(_plan(RolloutStage(1.0, 0, (RULE,))), _policy(0.0), 1_000_000)
    assert found.verdict == "refuse"
    assert "no devices to compare" in found.reasons[0]
    assert power_analysis.assess_feasibility(_plan(RolloutStage(1.0)), _policy(0.0), 10).verdict == "fine"


def test_a_thin_control_is_warned_about() -> None:
    found = power_analysis.assess_feasibility(_plan(RolloutStage(1.0, 0, (RULE,))), _policy(0.02), 1_000_000)
    assert found.verdict == "warn"
    assert "less than 5%" in found.reasons[0]


def test_known_rates_are_used() -> None:
    plan = _plan(RolloutStage(0.5, 0, (RULE,)))
    often = power_analysis.assess_feasibility(plan, _policy(), 20_000, rates={"crash": 0.2}).stages[0]
    seldom = power_analysis.assess_feasibility(plan, _policy(), 20_000, rates={"crash": 0.002}).stages[0]
    assert (often.rate, seldom.rate) == (0.2, 0.002)
    assert often.power < 0.2 < 0.99 < seldom.power


def test_power_and_devices_are_two_sides_of_one_formula() -> None:
    for power in (0.3, 0.5, 0.95):
        clear = power_analysis.devices_to_clear(0.03, 0.01, share=0.2, power=power)
        assert power_analysis.clear_power(0.03, 0.01, clear, share=0.2) == pytest.approx(power)
        see = power_analysis.devices_to_detect(0.03, 0.05, alpha=0.01, share=0.2, power=power)
        assert power_analysis.detection_power(0.03, 0.05, see, alpha=0.01, share=0.2) == pytest.approx(power)


def test_what_is_worse_by_the_margin_never_clears() -> None:
    assert power_analysis.devices_to_clear(0.02, 0.01, shift=0.01) == math.inf
    assert power_analysis.devices_to_detect(0.02, 0.02, alpha=0.05) == math.inf
