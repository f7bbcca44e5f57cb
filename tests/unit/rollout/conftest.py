"""Rollouts, and devices that have come to something."""

import datetime
from collections.abc import Callable

import pytest

from edgewright.contract.rollout.decision import CONTROL_ARM, OutcomeCounts, StageEvidence
from edgewright.contract.rollout.plan import HealthRule, RolloutArm, RolloutPlan, RolloutPolicy, RolloutStage

NOW = datetime.datetime(2026, 11, 21, 12, tzinfo=datetime.UTC)
CRASH = HealthRule("crash", margin=0.02)


@pytest.fixture
def policy() -> RolloutPolicy:
    return RolloutPolicy("digits", "pi", revision=1, salt="0123456789abcdef", holdout_fraction=0.05)


@pytest.fixture
def plan() -> RolloutPlan:
    return RolloutPlan(
        "digits",
        "pi",
        "spring",
        epoch=1,
        counter=1,
        arms=(RolloutArm("1.1", "ab" * 32),),
        stages=(
            RolloutStage(0.1, 3600, (CRASH,)),
            RolloutStage(0.5, 3600, (CRASH,)),
            RolloutStage(1.0, 0, (CRASH,)),
        ),
        stage=1,
        stage_started_at="2026-11-21T10:00:00",
    )


@pytest.fixture
def counted(plan: RolloutPlan) -> Callable[..., StageEvidence]:
    """Return evidence of the plan's stage from failures and devices: of the arms in turn, the control last."""

    def make(*arms: tuple[int, int], metric: str = "crash", of: RolloutPlan = plan) -> StageEvidence:
        numbers = [*range(len(arms) - 1), CONTROL_ARM]
        tallies = tuple(
            OutcomeCounts(metric, number, (0.0, 1.0), (devices - failures, failures))
            for number, (failures, devices) in zip(numbers, arms, strict=True)
        )
        return StageEvidence(of.rollout, of.stage, tallies, pending=(7, 3))

    return make
