"""What people do: begin what can be decided, change it, ask why."""

import datetime
from collections.abc import Callable

import msgspec
import pytest
from tests.unit.server.controller.conftest import World

from edgewright.contract.api.device_status import StageOutcome
from edgewright.contract.api.operator_api import RequestedArm, StartRollout
from edgewright.contract.errors import InputError
from edgewright.contract.rollout.plan import HealthRule, RolloutStage
from edgewright.server.commands.rollouts import RolloutChange, change_rollout, observed_rates, start_rollout
from edgewright.server.controller.decision_records import (
    DecisionBasis,
    basis_of,
    encode_basis,
    explain_decision,
    explain_rollout,
)
from edgewright.server.controller.rollout_controller import RolloutController
from edgewright.server.store.records import StoredDecision

Make = Callable[..., World]
RULES = (HealthRule("crash", 0.15),)
REQUEST = StartRollout(
    "m", "pi", (RequestedArm("1.1"),), (RolloutStage(0.2, 0, RULES), RolloutStage(1.0, 0, RULES))
)


def _audit(world: World) -> list[tuple[str, str]]:
    return [(one.actor, one.action) for one in world.store.audit.entries()][::-1]


def test_what_is_started_is_signed_and_runs_to_its_end(make: Make) -> None:
    world = make(count=400)
    started = start_rollout(world.services, REQUEST, "user:ann")
    assert (started.plan, started.devices, started.warnings) == (world.plan, 400, ())
    assert started.plan.rollout == "m-1.1-1"
    assert world.run(RolloutController(world.services), 60) == "done"
    assert _audit(world)[0] == ("user:ann", "rollout start")


def test_a_fleet_that_is_too_small_is_refused_at_the_start_unless_forced(make: Make) -> None:
    world = make(count=20)
    with pytest.raises(InputError, match="can never decide it, with 20 devices") as refused:
        start_rollout(world.services, REQUEST, "user:ann")
    assert "begin with larger stages" in refused.value.remedy
    assert _audit(world) == []
    started = start_rollout(world.services, msgspec.structs.replace(REQUEST, force=True), "user:ann")
    assert started.warnings
    detail = msgspec.json.decode(bytes(world.store.audit.entries()[0].detail))
    assert detail["forced"] == list(started.warnings)


def test_devices_that_are_off_do_not_make_a_fleet_large(make: Make) -> None:
    world = make(count=400)
    world.at += datetime.timedelta(hours=1)
    for device in world.devices[12:]:
        device.dead = True
    world.start(1.0, rollout="before", state="done")
    world.live()
    with pytest.raises(InputError, match="with 12 devices"):
        start_rollout(world.services, REQUEST, "user:ann")


def test_a_doubtful_fleet_is_warned(make: Make) -> None:
    world = make(count=60)
    started = start_rollout(world.services, REQUEST, "user:ann")
    assert any("clear a margin" in warning for warning in started.warnings)


def test_rules_at_the_whole_fleet_without_a_holdback_are_refused(make: Make) -> None:
    world = make(count=5000, holdout_fraction=0.0)
    with pytest.raises(InputError, match="leaves no devices to compare"):
        start_rollout(world.services, REQUEST, "user:ann")
    free = msgspec.structs.replace(REQUEST, stages=(RolloutStage(1.0),))
    assert start_rollout(world.services, free, "user:ann").warnings == ()


def test_what_is_not_published_or_not_allowed_is_refused(make: Make) -> None:
    world = make(count=400)
    with pytest.raises(InputError, match="not published"):
        start_rollout(world.services, msgspec.structs.replace(REQUEST, arms=(RequestedArm("7"),)), "user:ann")
    world.allow(min_version="1.2")
    with pytest.raises(InputError, match="below the floor"):
        start_rollout(world.services, REQUEST, "user:ann")
    assert _audit(world) == [("user:ann", "rollout start"), ("user:ann", "rollout start failed")]


def test_a_rollout_that_is_not_over_is_not_replaced_unasked(make: Make) -> None:
    world = make(count=400)
    start_rollout(world.services, REQUEST, "user:ann")
    with pytest.raises(InputError, match="is running at stage 1 of 2"):
        start_rollout(world.services, REQUEST, "user:ann")
    assert (
        start_rollout(world.services, msgspec.structs.replace(REQUEST, replace=True), "user:ann").plan.counter == 2
    )


def test_people_change_rollouts_and_it_is_written_down(make: Make) -> None:
    world = make(count=400)
    start_rollout(world.services, REQUEST, "user:ann")
    changes: list[tuple[RolloutChange, str, int]] = [
        ("pause", "paused", 0),
        ("resume", "running", 0),
        ("advance", "running", 1),
        ("abort", "aborted", 1),
    ]
    for kind, state, stage in changes:
        plan = change_rollout(world.services, "token:ci", "m", "pi", kind, "because")
        assert (plan.state, plan.stage) == (state, stage)
        assert world.plan == plan
        assert _audit(world)[-1] == ("token:ci", f"rollout {kind}")
    with pytest.raises(InputError, match="It must be running"):
        change_rollout(world.services, "token:ci", "m", "pi", "pause", "")
    with pytest.raises(InputError, match="no rollout of x"):
        change_rollout(world.services, "token:ci", "x", "pi", "pause", "")


def test_rates_are_those_of_the_control_before(make: Make) -> None:
    world = make(count=0)
    before = world.start(1.0)
    said = [
        (f"d{number}", StageOutcome("spring", 0, "", ("crash",) if number < 10 else ())) for number in range(198)
    ]
    world.store.outcomes.put("m/pi/spring", said, at=0.0, deadline_at=1.0)
    treated = [(f"e{number}", StageOutcome("spring", 0, "1.1", ("crash",))) for number in range(50)]
    world.store.outcomes.put("m/pi/spring", treated, at=0.0, deadline_at=1.0)
    assert observed_rates(world.store, before, before) == {"crash": 11 / 200, "offline": 1 / 200}
    assert observed_rates(world.store, before, None) == {}


def test_why_finds_a_decision_that_does_not_follow_from_its_inputs(make: Make) -> None:
    world = make(count=300)
    world.start(0.2, 1.0)
    world.run(RolloutController(world.services), 14)
    told = explain_rollout(world.store, "m/pi/spring")
    assert {one.replays for one in told} == {True, None}
    last = world.last_decision("m/pi/spring", "advance")
    ground = basis_of(last)
    assert ground.decision is not None
    forged = msgspec.structs.replace(ground.decision, action="hold")
    assert (
        explain_decision(StoredDecision("s", 1, 0.0, "hold", "", encode_basis(DecisionBasis(forged)))).replays
        is False
    )
    with pytest.raises(InputError, match="nothing was decided"):
        explain_rollout(world.store, "winter")
