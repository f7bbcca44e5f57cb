"""Cohorts are nobody's to choose: the control plane works out from public keys what each device does by itself."""

import hashlib
from datetime import UTC, datetime

import msgspec
import pytest

from edgewright.contract.rollout.plan import RolloutArm, RolloutPlan, RolloutPolicy, RolloutStage
from edgewright.device.reporting.stage_outcomes import stage_outcome, update_report
from edgewright.device.slots import InstalledRelease, Slots
from edgewright.device.update.selection import DeviceContext, assigned_arm, choose_update
from edgewright.server.controller.stage_participants import assigned_arm_version
from edgewright.trust.keys.device_identity import device_id_of

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
POLICY = RolloutPolicy("m", "default", 1, "5a" * 8, holdout_fraction=0.1)
ARMS = (RolloutArm("1.1.0", "1" * 64), RolloutArm("1.2.0", "2" * 64, weight=2.0))
PLAN = RolloutPlan("m", "default", "r", 1, 1, ARMS, (RolloutStage(0.2), RolloutStage(0.5), RolloutStage(1.0)))
SLOTS = Slots(proven=InstalledRelease("m", "1.0.0", "0" * 64))


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_the_control_plane_knows_what_each_device_does_and_says(stage: int) -> None:
    plan = msgspec.structs.replace(PLAN, stage=stage)
    found = set()
    for number in range(2000):
        name = device_id_of(hashlib.sha256(number.to_bytes(4, "big")).digest())
        index = assigned_arm_version(plan, POLICY, name)
        situation = DeviceContext(name, {}, "", NOW, 12)
        release = choose_update(plan, POLICY, SLOTS, {}, situation).release
        said = stage_outcome(update_report(None, plan, POLICY, situation, {}), NOW)
        assert said is not None
        version = "" if index < 0 else plan.arms[index].version
        assert version == ("" if release is None else release.version) == said.arm
        assert (None if index < 0 else plan.arms[index]) == assigned_arm(plan, POLICY, name)
        found.add(index)
    assert found == {-1, 0, 1}
