"""Cohorts are nobody's to choose: the control plane works out from public keys what each device does by itself."""

import hashlib
from datetime import UTC, datetime

import msgspec
import pytest

from edgewright.contract.rollout.plan import Arm, Plan, Policy, Stage
from edgewright.device.reporting.stage_outcomes import outcome_of, see
from edgewright.device.slots import Installed, Slots
from edgewright.device.update.selection import Situation, assigned, choose
from edgewright.server.controller.stage_participants import arm_in
from edgewright.trust.keys.device_identity import device_id_of

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
POLICY = Policy("m", "default", 1, "5a" * 8, holdback=0.1)
ARMS = (Arm("1.1.0", "1" * 64), Arm("1.2.0", "2" * 64, weight=2.0))
PLAN = Plan("m", "default", "r", 1, 1, ARMS, (Stage(0.2), Stage(0.5), Stage(1.0)))
SLOTS = Slots(proven=Installed("m", "1.0.0", "0" * 64))


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_the_control_plane_knows_what_each_device_does_and_says(stage: int) -> None:
    plan = msgspec.structs.replace(PLAN, stage=stage)
    found = set()
    for number in range(2000):
        name = device_id_of(hashlib.sha256(number.to_bytes(4, "big")).digest())
        index = arm_in(plan, POLICY, name)
        situation = Situation(name, {}, "", NOW, 12)
        release = choose(plan, POLICY, SLOTS, {}, situation).release
        said = outcome_of(see(None, plan, POLICY, situation, {}), NOW)
        assert said is not None
        version = "" if index < 0 else plan.arms[index].version
        assert version == ("" if release is None else release.version) == said.arm
        assert (None if index < 0 else plan.arms[index]) == assigned(plan, POLICY, name)
        found.add(index)
    assert found == {-1, 0, 1}
