"""What a device should run, from what is signed and what it knows of itself."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from edgewright.contract.refusal import Refusal
from edgewright.contract.rollout.plan import (
    DeviceSelector,
    InstallHours,
    RolloutArm,
    RolloutPlan,
    RolloutPolicy,
    RolloutStage,
)
from edgewright.device.slots import InstalledRelease, Slots
from edgewright.device.update.selection import DeviceContext, UpdateChoice, choose_update, retirement_notice

OLD, NEW, OTHER = "a" * 64, "b" * 64, "c" * 64
PROVEN = InstalledRelease("m", "1.0.0", OLD)
SLOTS = Slots(proven=PROVEN)
POLICY = RolloutPolicy("m", "default", 1, "0" * 32)
PLAN = RolloutPlan("m", "default", "r", 1, 1, (RolloutArm("1.1.0", NEW),), (RolloutStage(1.0),))
HERE = DeviceContext("device", {"site": "berlin"}, "beta", datetime(2026, 11, 21, 12, tzinfo=UTC), 12, 0.9)


def chosen(
    *,
    slots: Slots = SLOTS,
    policy: RolloutPolicy = POLICY,
    here: DeviceContext = HERE,
    failed: Any = None,
    **changes: Any,
) -> UpdateChoice:
    plan = msgspec.structs.replace(PLAN, **changes)
    return choose_update(plan, policy, slots, failed or {}, here)


def test_a_release_that_is_rolled_out_is_installed() -> None:
    choice = chosen()
    assert choice.action == "install"
    assert choice.release == InstalledRelease("m", "1.1.0", NEW, "r", 0)


KEEPS: dict[str, dict[str, Any]] = {
    "it is there already": {"slots": Slots(proven=InstalledRelease("m", "1.1.0", NEW))},
    "it is on trial already": {"slots": Slots(proven=PROVEN, trial=InstalledRelease("m", "1.1.0", NEW))},
    "another label": {"selector": DeviceSelector({"site": "paris"})},
    "a label that the device lacks": {"selector": DeviceSelector({"min_version": "3"})},
    "another channel": {"selector": DeviceSelector({}, "stable")},
    "not begun": {"start_at": "2026-11-22T00:00:00+00:00"},
    "over": {"end_at": "2026-11-21T00:00:00+00:00"},
    "paused": {"state": "paused"},
    "aborted": {"state": "aborted"},
    "an experiment that is done": {"state": "done", "arms": (RolloutArm("1.1.0", NEW), RolloutArm("1.2.0", OTHER))},
    "not in": {"stages": (RolloutStage(0.0),)},
    "above its own channel's ceiling, whatever the plan's": {
        "policy": msgspec.structs.replace(POLICY, channel_ceilings={"beta": "1.0.5"})
    },
    "above every channel's ceiling": {"policy": msgspec.structs.replace(POLICY, channel_ceilings={"": "1.0.5"})},
    "held back": {"policy": msgspec.structs.replace(POLICY, holdout_fraction=1.0)},
}


@pytest.mark.parametrize("why", KEEPS)
def test_nothing_is_done_where_nothing_is_to_be_done(why: str) -> None:
    assert chosen(**KEEPS[why]).action == "keep"


def test_without_a_plan_nothing_is_done() -> None:
    assert choose_update(None, POLICY, SLOTS, {}, HERE).action == "keep"


@pytest.mark.parametrize(
    "changes",
    [
        {"selector": DeviceSelector({"site": "berlin"}, "beta")},
        {"state": "done"},
        {"start_at": "2026-11-21T11:59:00", "end_at": "2026-11-21T12:01:00"},
    ],
)
def test_who_is_meant_is_in(changes: dict[str, Any]) -> None:
    assert chosen(**changes).action == "install"


WAITS: dict[str, tuple[dict[str, Any], str]] = {
    "the plan's battery": ({"min_battery_level": 0.95}, "battery"),
    "the policy's battery": ({"policy": msgspec.structs.replace(POLICY, min_battery_level=0.95)}, "battery"),
    "the hours": ({"install_hours": InstallHours(1, 5)}, "hours"),
}


@pytest.mark.parametrize("why", WAITS)
def test_an_installation_waits_with_the_reason(why: str) -> None:
    changes, code = WAITS[why]
    choice = chosen(**changes)
    assert choice.action == "wait"
    assert choice.refusal is not None
    assert choice.refusal.code == code


def test_mains_are_never_too_low() -> None:
    assert chosen(min_battery_level=0.99, here=replace(HERE, battery_level=None)).action == "install"


def test_hours_may_go_past_midnight() -> None:
    night = InstallHours(22, 6)
    for hour, action in ((23, "install"), (3, "install"), (6, "wait"), (21, "wait")):
        assert chosen(install_hours=night, here=replace(HERE, local_hour=hour)).action == action


def test_what_failed_here_is_not_tried_again() -> None:
    why = Refusal("self-test", "model.onnx", "it answers otherwise")
    choice = chosen(failed={NEW: why})
    assert (choice.action, choice.refusal) == ("keep", why)


TRIAL = Slots(proven=PROVEN, trial=InstalledRelease("m", "1.1.0", NEW, "r"))


@pytest.mark.parametrize(
    "changes",
    [
        {"slots": TRIAL, "state": "aborted"},
        {"slots": TRIAL, "policy": msgspec.structs.replace(POLICY, denied_manifests=(NEW,))},
        {"slots": TRIAL, "policy": msgspec.structs.replace(POLICY, min_version="1.2.0")},
        {"slots": TRIAL, "arms": (RolloutArm("1.0.0", OLD),)},
    ],
)
def test_what_is_on_trial_is_withdrawn_with_the_reason(changes: dict[str, Any]) -> None:
    choice = chosen(**changes)
    assert choice.action == "withdraw"
    assert choice.refusal is not None
    assert choice.refusal.reason


def test_another_rollouts_trial_is_not_withdrawn_by_an_abort() -> None:
    slots = Slots(proven=PROVEN, trial=InstalledRelease("m", "1.2.0", OTHER, "other"))
    assert chosen(slots=slots, state="aborted").action == "keep"


def test_a_shadow_becomes_real_when_the_plan_says_so() -> None:
    shadow = Slots(proven=PROVEN, trial=InstalledRelease("m", "1.1.0", NEW, "r", is_shadow=True))
    assert chosen(slots=shadow, shadow_mode=True).action == "keep"
    choice = chosen(slots=shadow)
    assert choice.action == "install"
    assert choice.release is not None
    assert not choice.release.is_shadow


def test_arms_share_the_devices_and_no_device_changes_its_arm() -> None:
    arms = (RolloutArm("1.1.0", NEW, 1.0), RolloutArm("1.2.0", OTHER, 3.0))
    counts = [0, 0]
    for number in range(4000):
        here = replace(HERE, device_id=f"device-{number}")
        choice = chosen(arms=arms, here=here)
        assert choice.release is not None
        counts[choice.release.arm] += 1
        grown = chosen(arms=arms, here=here, stages=(RolloutStage(0.5), RolloutStage(1.0)), stage=1)
        assert grown.release == choice.release
    assert 0.22 < counts[0] / 4000 < 0.28


def test_a_device_keeps_to_the_policys_ramp_whatever_the_plan_says() -> None:
    """A stolen online key puts all devices into one stage; each still waits for its step."""
    policy = msgspec.structs.replace(POLICY, max_stage_step=0.25, min_stage_seconds=3600.0)
    stages = (RolloutStage(0.25), RolloutStage(0.5), RolloutStage(0.75), RolloutStage(1.0))
    shares = []
    for hours in range(4):
        seen = {NEW: (HERE.now - timedelta(hours=hours)).isoformat()}
        devices = (replace(HERE, device_id=f"device-{number}", rollout_seen_at=seen) for number in range(2000))
        found = [chosen(policy=policy, here=here, stages=stages, stage=3).action for here in devices]
        shares.append(found.count("install") / 2000)
    assert shares == pytest.approx([0.25, 0.5, 0.75, 1.0], abs=0.04)


def test_another_name_for_a_rollout_reaches_no_other_devices() -> None:
    """Or many small rollouts of one release would reach everybody."""
    for number in range(200):
        here = replace(HERE, device_id=f"device-{number}")
        found = {chosen(here=here, rollout=f"r-{name}", stages=(RolloutStage(0.1),)).action for name in range(5)}
        assert len(found) == 1


def test_what_serves_and_should_not_is_reported() -> None:
    assert retirement_notice(POLICY, SLOTS) is None
    below = retirement_notice(msgspec.structs.replace(POLICY, min_version="2.0.0"), SLOTS)
    denied = retirement_notice(msgspec.structs.replace(POLICY, denied_manifests=(OLD,)), SLOTS)
    assert below is not None
    assert denied is not None
    assert (below.code, denied.code) == ("policy", "denied")
    assert retirement_notice(POLICY, Slots()) is None
