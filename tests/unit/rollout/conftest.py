"""Rollouts, and devices that have come to something."""

import datetime
from collections.abc import Callable

import pytest

from edgewright.contract.rollout.decision import CONTROL, Evidence, Tally
from edgewright.contract.rollout.plan import Arm, HealthRule, Plan, Policy, Stage

NOW = datetime.datetime(2026, 11, 21, 12, tzinfo=datetime.UTC)
CRASH = HealthRule("crash", margin=0.02)


@pytest.fixture
def policy() -> Policy:
    return Policy("digits", "pi", revision=1, salt="0123456789abcdef", holdback=0.05)


@pytest.fixture
def plan() -> Plan:
    return Plan(
        "digits",
        "pi",
        "spring",
        epoch=1,
        counter=1,
        arms=(Arm("1.1", "ab" * 32),),
        stages=(Stage(0.1, 3600, (CRASH,)), Stage(0.5, 3600, (CRASH,)), Stage(1.0, 0, (CRASH,))),
        stage=1,
        since="2026-11-21T10:00:00",
    )


@pytest.fixture
def counted(plan: Plan) -> Callable[..., Evidence]:
    """Return evidence of the plan's stage from failures and devices: of the arms in turn, the control last."""

    def make(*arms: tuple[int, int], metric: str = "crash", of: Plan = plan) -> Evidence:
        numbers = [*range(len(arms) - 1), CONTROL]
        tallies = tuple(
            Tally(metric, number, (0.0, 1.0), (devices - failures, failures))
            for number, (failures, devices) in zip(numbers, arms, strict=True)
        )
        return Evidence(of.rollout, of.stage, tallies, waiting=(7, 3))

    return make
