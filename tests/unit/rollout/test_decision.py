"""What becomes of a rollout, and that it can be decided again."""

import datetime
import math
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgewright.contract.errors import InputError
from edgewright.contract.rollout.decision import CONTROL_ARM, OutcomeCounts, RolloutDecision, StageEvidence
from edgewright.contract.rollout.plan import HealthRule, RolloutArm, RolloutPlan, RolloutPolicy, RolloutStage
from edgewright.rollout.decision import decide_rollout, replay_decision

NOW = datetime.datetime(2026, 11, 21, 12, tzinfo=datetime.UTC)
Counted = Callable[..., StageEvidence]
# Harmless, and enough of it for the margin of 2 points.
FINE = ((60, 2850), (63, 3150))
RANK = {"roll_back": 0, "hold": 1, "advance": 2, "finish": 2}


def _changed(plan: RolloutPlan, **changes: object) -> RolloutPlan:
    return msgspec.structs.replace(plan, **changes)


def test_a_stage_that_clears_its_margins_is_advanced(
    plan: RolloutPlan, policy: RolloutPolicy, counted: Counted
) -> None:
    decision = decide_rollout(plan, policy, counted(*FINE), NOW)
    assert (decision.action, decision.waiting_for) == ("advance", ())
    assert "worse by at most" in decision.reasons[0]
    assert decision.comparisons[0].upper_bound <= 0.02


def test_the_last_stage_is_finished(plan: RolloutPlan, policy: RolloutPolicy) -> None:
    last = _changed(plan, stage=2)
    tallies = (
        OutcomeCounts("crash", 0, (0.0, 1.0), (11_172, 228)),
        OutcomeCounts("crash", CONTROL_ARM, (0.0, 1.0), (588, 12)),
    )
    decision = decide_rollout(last, policy, StageEvidence("spring", 2, tallies), NOW)
    assert decision.action == ("finish" if decision.comparisons[0].within_margin else "hold")
    many = tuple(OutcomeCounts(t.metric, t.arm, t.values, tuple(10 * n for n in t.devices)) for t in tallies)
    assert decide_rollout(last, policy, StageEvidence("spring", 2, many), NOW).action == "finish"


def test_a_harmful_release_is_rolled_back_before_its_time_is_over(
    plan: RolloutPlan, policy: RolloutPolicy, counted: Counted
) -> None:
    young = _changed(plan, stage_started_at=NOW.isoformat())
    decision = decide_rollout(young, policy, counted((40, 475), (10, 525)), NOW)
    assert decision.action == "roll_back"
    assert "crash of arm 0 8.42% of 475 devices, in the control 1.90% of 525" in decision.reasons[1]
    assert decision.log_e_value >= decision.log_e_limit


def test_little_evidence_holds_and_says_how_many_devices_are_missing(
    plan: RolloutPlan, policy: RolloutPolicy, counted: Counted
) -> None:
    decision = decide_rollout(plan, policy, counted((2, 95), (2, 105)), NOW)
    assert decision.action == "hold"
    (missing,) = decision.waiting_for
    assert "more devices with the release" in missing
    assert "10 are waiting" in missing
    more = int(missing.split("; about ")[1].split(" ")[0])
    other = int(missing.split(" and ")[1].split(" ")[0])
    for times, action in ((0.8, "hold"), (1.1, "advance")):
        treated, control = round(95 + more * times), round(105 + other * times)
        grown = counted((round(treated * 2 / 95), treated), (round(control * 2 / 105), control))
        assert decide_rollout(plan, policy, grown, NOW).action == action


def test_a_release_that_is_worse_by_its_margin_never_clears(
    plan: RolloutPlan, policy: RolloutPolicy, counted: Counted
) -> None:
    decision = decide_rollout(plan, policy, counted((5, 95), (2, 105)), NOW)
    assert "never clears" in decision.waiting_for[0]


def test_the_least_time_is_kept(plan: RolloutPlan, policy: RolloutPolicy, counted: Counted) -> None:
    young = _changed(plan, stage_started_at="2026-11-21T11:30:00")
    assert decide_rollout(young, policy, counted(*FINE), NOW).waiting_for == ("the stage lasts 1800 s more",)
    assert decide_rollout(_changed(plan, stage_started_at=""), policy, counted(*FINE), NOW).waiting_for == (
        "nobody said when the stage began",
    )
    slow = msgspec.structs.replace(policy, min_stage_seconds=7300.0)
    assert decide_rollout(plan, slow, counted(*FINE), NOW).waiting_for == ("the stage lasts 100 s more",)


def test_a_stage_without_control_is_held(plan: RolloutPlan, policy: RolloutPolicy, counted: Counted) -> None:
    alone = msgspec.structs.replace(policy, holdout_fraction=0.0)
    decision = decide_rollout(
        _changed(plan, stage=2), alone, counted((0, 5000), (0, 0), of=_changed(plan, stage=2)), NOW
    )
    assert decision.action == "hold"
    assert "there is no control" in decision.waiting_for[0]


def test_arms_that_lack_devices_hold(plan: RolloutPlan, policy: RolloutPolicy, counted: Counted) -> None:
    decision = decide_rollout(plan, policy, counted((50, 2450), (63, 3150)), NOW)
    assert decision.action == "hold"
    assert "not in the arms as they should be" in decision.waiting_for[0]


def test_a_paused_rollout_is_rolled_back_for_harm_and_else_held(
    plan: RolloutPlan, policy: RolloutPolicy, counted: Counted
) -> None:
    paused = _changed(plan, state="paused")
    assert decide_rollout(paused, policy, counted(*FINE), NOW).waiting_for == ("the rollout is paused",)
    assert decide_rollout(paused, policy, counted((80, 475), (10, 525)), NOW).action == "roll_back"


@pytest.mark.parametrize("state", ["aborted", "done"])
def test_what_is_over_is_left_alone(plan: RolloutPlan, policy: RolloutPolicy, counted: Counted, state: str) -> None:
    decision = decide_rollout(_changed(plan, state=state), policy, counted((80, 475), (10, 525)), NOW)
    assert (decision.action, decision.reasons) == ("hold", (f"the rollout is {state}",))


def test_without_rules_every_named_metric_stops_and_time_advances(plan: RolloutPlan, policy: RolloutPolicy) -> None:
    free = _changed(plan, stages=(RolloutStage(0.1), RolloutStage(0.5, 60), RolloutStage(1.0)))
    assert decide_rollout(free, policy, StageEvidence("spring", 1, ()), NOW).action == "advance"
    tallies = (
        OutcomeCounts("budget_breach", 0, (0.0, 1.0), (380, 95)),
        OutcomeCounts("budget_breach", CONTROL_ARM, (0.0,), (525,)),
    )
    assert decide_rollout(free, policy, StageEvidence("spring", 1, tallies), NOW).action == "roll_back"


def test_harm_within_the_margin_does_not_stop(plan: RolloutPlan, policy: RolloutPolicy, counted: Counted) -> None:
    # Worse beyond doubt, by 0.6 points; the rule allows 2.
    decision = decide_rollout(plan, policy, counted((2470, 95_000), (2100, 105_000)), NOW)
    assert decision.comparisons[0].log_e_value > decision.log_e_limit
    assert decision.action == "advance"


def test_error_is_split_over_stages_and_metrics(plan: RolloutPlan, policy: RolloutPolicy, counted: Counted) -> None:
    limits = [
        decide_rollout(_changed(plan, stage=n), policy, counted((0, 0), (0, 0), of=_changed(plan, stage=n)), NOW)
        for n in range(3)
    ]
    assert sum(math.exp(-decision.log_e_limit) for decision in limits) == pytest.approx(0.05)
    more = (HealthRule("crash", 0.02), HealthRule("self_test", 0.02))
    both = _changed(plan, stages=(RolloutStage(0.1), RolloutStage(0.5, 0, more), RolloutStage(1.0)))
    one = decide_rollout(plan, policy, counted((30, 475), (10, 525)), NOW)
    two = decide_rollout(both, policy, counted((30, 475), (10, 525)), NOW)
    assert math.exp(two.log_e_value) == pytest.approx((2 * math.exp(one.log_e_value) + 1) / 3)


def test_silence_hides_no_harm_and_clears_no_margin(plan: RolloutPlan, policy: RolloutPolicy) -> None:
    # A third of the devices is off, in both arms; as many crash as where a release is rolled back.
    def evidence(crashes: int) -> StageEvidence:
        failed = {
            ("crash", 0): 158 + crashes,
            ("crash", CONTROL_ARM): 175 + 10,
            ("offline", 0): 158,
            ("offline", CONTROL_ARM): 175,
        }
        return StageEvidence(
            "spring",
            1,
            tuple(
                OutcomeCounts(metric, arm, (0.0, 1.0), ((475 if arm == 0 else 525) - count, count))
                for (metric, arm), count in failed.items()
            ),
        )

    assert decide_rollout(plan, policy, evidence(40), NOW).action == "roll_back"
    calm = decide_rollout(plan, policy, evidence(9), NOW)
    assert calm.action == "hold"
    assert calm.comparisons[0].rate > 0.3


def test_devices_that_fall_silent_are_harm_whatever_the_rules(plan: RolloutPlan, policy: RolloutPolicy) -> None:
    failed = {("crash", 0): 60, ("crash", CONTROL_ARM): 10, ("offline", 0): 60, ("offline", CONTROL_ARM): 10}
    tallies = tuple(
        OutcomeCounts(metric, arm, (0.0, 1.0), ((475 if arm == 0 else 525) - count, count))
        for (metric, arm), count in failed.items()
    )
    decision = decide_rollout(plan, policy, StageEvidence("spring", 1, tallies), NOW)
    assert decision.action == "roll_back"
    assert decision.reasons[1].startswith("offline of arm 0")


def test_every_arm_is_watched(policy: RolloutPolicy) -> None:
    arms = (RolloutArm("1.1", "ab" * 32), RolloutArm("1.2", "cd" * 32))
    plan = RolloutPlan("digits", "pi", "two", 1, 1, arms, (RolloutStage(0.5, 0, (HealthRule("crash", 0.02),)),))
    tallies = tuple(
        OutcomeCounts("crash", arm, (0.0, 1.0), (devices - failed, failed))
        for arm, failed, devices in ((0, 5, 238), (1, 40, 237), (CONTROL_ARM, 10, 525))
    )
    decision = decide_rollout(plan, policy, StageEvidence("two", 0, tallies), NOW)
    assert decision.action == "roll_back"
    assert "arm 1" in decision.reasons[1]
    assert len(decision.reasons) == 2


def test_evidence_of_another_stage_is_refused(plan: RolloutPlan, policy: RolloutPolicy, counted: Counted) -> None:
    with pytest.raises(InputError, match="the evidence is of stage 1"):
        decide_rollout(_changed(plan, stage=0), policy, counted(*FINE), NOW)


COUNTS = st.tuples(st.integers(0, 400), st.integers(0, 5000)).map(lambda pair: (min(pair), max(pair)))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(treated=COUNTS, control=COUNTS, more=st.integers(1, 300))
def test_more_failures_never_look_better(
    plan: RolloutPlan,
    policy: RolloutPolicy,
    counted: Counted,
    treated: tuple[int, int],
    control: tuple[int, int],
    more: int,
) -> None:
    failures, devices = treated
    before = decide_rollout(plan, policy, counted(treated, control), NOW)
    after = decide_rollout(plan, policy, counted((min(failures + more, devices), devices), control), NOW)
    assert RANK[after.action] <= RANK[before.action]
    assert after.log_e_value >= before.log_e_value - 1e-9


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(treated=COUNTS, control=COUNTS)
def test_a_decision_is_made_again_from_its_bytes(
    plan: RolloutPlan, policy: RolloutPolicy, counted: Counted, treated: tuple[int, int], control: tuple[int, int]
) -> None:
    decision = decide_rollout(plan, policy, counted(treated, control), NOW)
    kept = msgspec.json.decode(msgspec.json.encode(decision), type=RolloutDecision)
    assert replay_decision(kept) == decision == kept


def test_other_inputs_have_another_digest(plan: RolloutPlan, policy: RolloutPolicy, counted: Counted) -> None:
    first = decide_rollout(plan, policy, counted((1, 95), (2, 105)), NOW)
    assert first.digest != decide_rollout(plan, policy, counted((2, 95), (2, 105)), NOW).digest
    assert first.digest != decide_rollout(plan, policy, counted((1, 95), (2, 105)), NOW, alpha=0.01).digest
