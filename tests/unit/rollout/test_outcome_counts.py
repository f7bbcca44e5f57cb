"""One outcome per device: fixed at its deadline, silence a failure, in whichever arm."""

import datetime

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewright.contract.errors import InputError
from edgewright.contract.rollout.decision import CONTROL_ARM, DeviceOutcome, OutcomeCounts, StageEvidence
from edgewright.contract.rollout.plan import HealthRule, RolloutArm, RolloutPlan, RolloutPolicy, RolloutStage
from edgewright.rollout.assignment import arm_of, is_in, is_in_holdout
from edgewright.rollout.comparison_design import arm_shares
from edgewright.rollout.outcome_counts import count_outcomes

NOW = datetime.datetime(2026, 11, 21, 12, tzinfo=datetime.UTC)
PAST, FUTURE = "2026-11-21T11:59:59", "2026-11-21T12:00:01"
WELL = {"crash": 0.0, "outcome:taps": 0.25}


def _plan() -> RolloutPlan:
    rules = (HealthRule("crash", 0.01), HealthRule("outcome:taps", 0.05), HealthRule("offline", 0.05))
    return RolloutPlan(
        "digits", "pi", "spring", 1, 1, (RolloutArm("1.1", "ab" * 32),), (RolloutStage(0.5, 0, rules),)
    )


def test_silent_devices_fail_in_both_arms_under_every_metric() -> None:
    rows = [DeviceOutcome("a", 0, PAST), DeviceOutcome("b", CONTROL_ARM, PAST), DeviceOutcome("c", 0, PAST, WELL)]
    evidence = count_outcomes(_plan(), rows, NOW)
    for metric in ("crash", "outcome:taps", "offline"):
        assert evidence.counts_of(metric, CONTROL_ARM) == OutcomeCounts(metric, CONTROL_ARM, (1.0,), (1,))
        assert evidence.counts_of(metric, 0).values[-1] == 1.0
        assert sum(evidence.counts_of(metric, 0).devices) == 2
    assert evidence.counts_of("offline", 0) == OutcomeCounts("offline", 0, (0.0, 1.0), (1, 1))


@pytest.mark.parametrize("values", [None, {"crash": 1.0}, WELL])
def test_nothing_counts_before_its_deadline_failures_neither(values: dict[str, float] | None) -> None:
    evidence = count_outcomes(_plan(), [DeviceOutcome("a", 0, FUTURE, values)], NOW)
    assert all(not tally.devices for tally in evidence.counts)
    assert evidence.pending == (0, 1)


def test_what_was_not_reported_counts_as_failed() -> None:
    evidence = count_outcomes(_plan(), [DeviceOutcome("a", CONTROL_ARM, PAST, {"crash": 0.0})], NOW)
    assert evidence.counts_of("outcome:taps", CONTROL_ARM).values == (1.0,)
    assert evidence.counts_of("crash", CONTROL_ARM).values == (0.0,)


def test_a_device_has_one_outcome() -> None:
    twice = [DeviceOutcome("a", 0, PAST, WELL), DeviceOutcome("a", 0, FUTURE, WELL)]
    with pytest.raises(InputError, match="second outcome"):
        count_outcomes(_plan(), twice, NOW)
    with pytest.raises(InputError, match="arm 3"):
        count_outcomes(_plan(), [DeviceOutcome("a", 3, PAST, WELL)], NOW)


@given(
    st.permutations([DeviceOutcome(f"d{i}", (i % 2) - 1, PAST, {"crash": float(i % 3 == 0)}) for i in range(12)])
)
def test_the_order_of_devices_does_not_matter(rows: list[DeviceOutcome]) -> None:
    evidence = count_outcomes(_plan(), rows, NOW)
    assert evidence == count_outcomes(_plan(), sorted(rows, key=lambda row: row.device), NOW)


def test_the_rows_are_fingerprinted() -> None:
    well, ill = DeviceOutcome("a", 0, PAST, WELL), DeviceOutcome("a", 0, PAST, {**WELL, "unwatched": 1.0})
    assert count_outcomes(_plan(), [well], NOW).rows_digest != count_outcomes(_plan(), [ill], NOW).rows_digest


def test_evidence_comes_back_from_bytes_as_it_was() -> None:
    rows = [DeviceOutcome(f"d{i}", i % 2 - 1, PAST, {"outcome:taps": i / 7}) for i in range(7)]
    evidence = count_outcomes(_plan(), rows, NOW, baseline_rates={"outcome:taps": 0.5})
    assert msgspec.json.decode(msgspec.json.encode(evidence), type=StageEvidence) == evidence


@pytest.mark.parametrize(
    "tallies",
    [
        (OutcomeCounts("crash", 0, (0.0,), (2,)), OutcomeCounts("offline", 0, (0.0,), (3,))),
        (OutcomeCounts("crash", 0, (0.0,), (2,)), OutcomeCounts("crash", 0, (0.0,), (2,))),
    ],
)
def test_counts_that_contradict_each_other_are_refused(tallies: tuple[OutcomeCounts, ...]) -> None:
    with pytest.raises(InputError, match="counts an arm"):
        StageEvidence("spring", 0, tallies)


@pytest.mark.parametrize(
    ("values", "devices"), [((1.0, 0.0), (1, 1)), ((0.0,), (1, 1)), ((2.0,), (1,)), ((0.0,), (-1,))]
)
def test_tallies_that_are_none_are_refused(values: tuple[float, ...], devices: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="tally of"):
        OutcomeCounts("crash", 0, values, devices)


def test_outcomes_that_are_none_are_refused() -> None:
    with pytest.raises(InputError, match="crash is nan"):
        DeviceOutcome("a", 0, PAST, {"crash": float("nan")})
    with pytest.raises(InputError, match="deadline"):
        DeviceOutcome("a", 0, "")


def test_arms_have_the_shares_that_devices_draw() -> None:
    policy = RolloutPolicy("digits", "pi", 1, "0123456789abcdef", holdout_fraction=0.1)
    arms = (RolloutArm("1.1", "ab" * 32, 1.0), RolloutArm("1.2", "cd" * 32, 3.0))
    plan = RolloutPlan("digits", "pi", "spring", 1, 1, arms, (RolloutStage(0.4),))
    drawn = dict.fromkeys((CONTROL_ARM, 0, 1), 0)
    for number in range(20_000):
        device = f"device-{number}"
        arm = arm_of([1.0, 3.0], plan.rollout, policy.salt, device)
        joins = is_in(plan.fraction, arms[arm].manifest_sha256, policy.salt, device)
        drawn[
            arm if joins and not is_in_holdout(policy.holdout_fraction, policy.salt, device) else CONTROL_ARM
        ] += 1
    for number, share in arm_shares(plan, 0, policy.holdout_fraction).items():
        assert drawn[number] / 20_000 == pytest.approx(share, abs=0.012)
