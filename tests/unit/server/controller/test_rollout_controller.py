"""The controller against simulated fleets: what it does, and that nobody need trust it for why."""

import datetime
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from scipy import stats
from tests.unit.server.controller.conftest import World

from edgewright.contract.api.device_status import StageOutcome
from edgewright.contract.config.fleet import FleetMonitoring
from edgewright.contract.errors import InputError
from edgewright.contract.rollout.decision import CONTROL_ARM
from edgewright.contract.rollout.plan import DeviceSelector, HealthRule, RolloutPolicy
from edgewright.device.slots import InstalledRelease, Slots
from edgewright.device.update.selection import DeviceContext, choose_update
from edgewright.rollout.plan_transitions import PLAN_CHANGES
from edgewright.server.controller import decision_records, stage_participants
from edgewright.server.controller.rollout_controller import RolloutController
from edgewright.server.store.database import DatabaseUnavailableError
from edgewright.server.store.decisions import DecisionExistsError, DecisionStore
from edgewright.server.store.records import RolloutCandidate
from edgewright.trust.publishing.publish import current_policy, publish_plan, set_policy
from edgewright.trust.repository.staging import staged_metadata

Make = Callable[..., World]
STAGES = (0.2, 0.5, 1.0)
SUBJECT = "m/pi/spring"


def _crashes(rate: float, metric: str = "crash") -> Callable[..., tuple[str, ...]]:
    """Return what makes the new release fail on a share of the devices."""

    def fails(device: Any, version: str, _stage: int) -> tuple[str, ...]:
        return (metric,) if version == "1.1" and device.luck.random() < rate else ()

    return fails


ground_of: Callable[..., Any] = decision_records.basis_of
why: Callable[..., Any] = decision_records.explain_rollout


def _policy(world: World) -> RolloutPolicy:
    policy = current_policy(world.repository(), "m", "pi")
    assert policy is not None
    return policy


def _inputs(world: World, verdict: str, subject: str = SUBJECT) -> Any:
    last = world.last_decision(subject, verdict)
    assert last is not None, world.verdicts()
    return ground_of(last)


def _devices(world: World, verdict: str, arm: int) -> int:
    return sum(_inputs(world, verdict).decision.inputs.evidence.counts_of("crash", arm).devices)


def test_a_harmless_rollout_advances_to_its_end(make: Make) -> None:
    world = make()
    world.start(*STAGES)
    assert world.run(RolloutController(world.services), 60) == "done"
    assert [each for each in world.verdicts() if each != "hold"] == [*["settle", "advance"] * 2, "settle", "finish"]
    assert world.plan.counter == 4
    assert RolloutController(world.services).check_rollouts(world.at.timestamp()) == []
    assert all(one.replays is not False for one in why(world.store, "spring"))
    assert world.store.audit.broken_at() is None
    assert [one.action for one in world.store.audit.entries()][::-1].count("rollout advance") == 2


def test_a_release_that_crashes_is_taken_back_with_the_reason(make: Make) -> None:
    world = make(_crashes(0.2), count=600)
    world.start(*STAGES)
    assert world.run(RolloutController(world.services), 60) == "aborted"
    last = world.last_decision(SUBJECT, "roll_back")
    assert "crash of arm 0" in last.reason
    assert "evidence of harm" in last.reason
    assert all(one.replays is not False for one in why(world.store, SUBJECT))


def test_devices_that_rely_on_it_get_the_release_before_staged_and_no_signature(make: Make) -> None:
    world = make(_crashes(0.2), count=600)
    world.start(*STAGES)
    world.run(RolloutController(world.services), 60)
    last = world.last_decision(SUBJECT)
    assert last.verdict == "awaiting_signatures"
    assert "bytes of 1.0" in last.reason
    fact = ground_of(last).fact
    assert fact.devices["1.1"] == sum(each.proven_version == "1.1" for each in world.devices) > 0
    (waits,) = staged_metadata(world.repository()).values()
    assert "releases/m/1.2.json" in waits.signed.targets
    assert not waits.signatures
    before = len(world.verdicts())
    assert RolloutController(world.services).check_rollouts(world.at.timestamp() + 600) == []
    assert len(world.verdicts()) == before


def test_what_waits_already_does_not_stop_an_abort_and_is_said(make: Make) -> None:
    world = make(_crashes(0.2), count=600)
    policy = msgspec.structs.replace(_policy(world), revision=9)
    assert not set_policy(world.repository(), world.people, policy, only_stage=True)
    world.start(*STAGES)
    assert world.run(RolloutController(world.services), 60) == "aborted"
    assert "published by hand" in world.last_decision(SUBJECT).reason


def test_nothing_is_advanced_before_the_last_deadline(make: Make) -> None:
    world = make()
    started_at = world.at.timestamp()
    world.start(*STAGES)
    world.run(RolloutController(world.services), 60)
    told = [one for one in world.store.decisions.for_subject(SUBJECT) if one.verdict == "advance"]
    assert told[0].at >= started_at + 1800
    # All had long said that they do well.
    told_at = (started_at + 600, started_at + 1800)
    holds = [one for one in world.store.decisions.for_subject(SUBJECT) if one.verdict == "hold"]
    hold = next(one for one in holds if told_at[0] <= one.at < told_at[1])
    evidence = ground_of(hold).decision.inputs.evidence
    assert sum(evidence.counts_of("crash", CONTROL_ARM).devices) > 200
    assert all(one.within_margin for one in ground_of(hold).decision.comparisons if one.metric == "crash")


def test_an_arm_that_falls_silent_is_stopped_for_silence(make: Make) -> None:
    world = make(_crashes(0.3, "dies"), count=400)
    world.start(*STAGES, rules=(HealthRule("crash", 0.15), HealthRule("offline", 0.15)))
    assert world.run(RolloutController(world.services), 60) == "aborted"
    reason = world.last_decision(SUBJECT, "roll_back").reason
    assert "offline of arm 0" in reason
    assert "crash of arm 0" not in reason


def test_silence_alone_keeps_a_release_from_advancing_under_every_metric(make: Make) -> None:
    def dies(device: Any, _version: str, _stage: int) -> tuple[str, ...]:
        return ("dies",) if device.luck.random() < 0.3 else ()

    world = make(dies, count=300)
    world.start(*STAGES)
    assert world.run(RolloutController(world.services), 16) == "running"
    assert world.plan.stage == 0
    offline = _inputs(world, "settle").fact.devices
    assert offline[""] > 10
    evidence = _inputs(world, "hold").decision.inputs.evidence
    assert evidence.counts_of("crash", CONTROL_ARM).devices[-1] >= offline[""]


def test_what_is_said_after_the_deadline_changes_nothing(make: Make) -> None:
    world = make(count=200)
    world.start(0.5, 1.0, rules=(HealthRule("crash", 0.01),))
    controller = RolloutController(world.services)
    for device in world.devices[:60]:
        device.dead = True
    world.run(controller, 15)
    before = _inputs(world, "hold").decision.inputs.evidence
    for device in world.devices[:60]:
        device.dead = False
    world.run(controller, 8)
    after = _inputs(world, "hold").decision.inputs.evidence
    assert after.counts == before.counts
    assert sum(after.counts_of("offline", arm).devices[-1] for arm in (CONTROL_ARM, 0)) == 60


def test_who_was_off_when_the_stage_began_counts_when_it_says_something(make: Make) -> None:
    world = make(count=200)
    world.at += datetime.timedelta(hours=2)  # the first 50 have not been seen since
    for device in world.devices[:50]:
        device.dead = True
    world.start(0.5, 1.0, rules=(HealthRule("crash", 0.01),))
    controller = RolloutController(world.services)
    world.run(controller, 24)
    evidence = _inputs(world, "hold").decision.inputs.evidence
    assert sum(sum(evidence.counts_of("offline", arm).devices) for arm in (CONTROL_ARM, 0)) == 150
    for device in world.devices[:50]:
        device.dead = False
    world.run(controller, 10)
    evidence = _inputs(world, "hold").decision.inputs.evidence
    assert sum(sum(evidence.counts_of("offline", arm).devices) for arm in (CONTROL_ARM, 0)) == 200
    assert all(evidence.counts_of("offline", arm).values == (0.0,) for arm in (CONTROL_ARM, 0))


def test_an_earlier_stages_failure_stays_one(make: Make) -> None:
    def once(device: Any, _version: str, stage: int) -> tuple[str, ...]:
        return ("crash",) if stage == 0 and int(device.id, 16) % 10 == 0 else ()

    world = make(once, count=300)
    world.start(*STAGES, rules=(HealthRule("crash", 0.4),))
    assert world.run(RolloutController(world.services), 60) == "done"
    tallies = [
        _inputs(world, "finish").decision.inputs.evidence.counts_of("crash", arm) for arm in (CONTROL_ARM, 0)
    ]
    failing = sum(tally.devices[-1] for tally in tallies if tally.values[-1] == 1.0)
    assert failing == sum(int(device.id, 16) % 10 == 0 for device in world.devices)


def test_devices_count_as_assigned_whatever_they_call_their_arm(make: Make) -> None:
    world = make(count=300)
    world.lied = {device.id: "1.1" for device in world.devices[:40]}
    plan = world.start(*STAGES)
    policy = _policy(world)
    lies = sum(
        stage_participants.assigned_arm_version(plan, policy, device.id) == CONTROL_ARM
        for device in world.devices[:40]
    )
    assert lies > 0
    world.run(RolloutController(world.services), 13, until=("done",))
    decision_records = _inputs(world, "advance")
    assert decision_records.mismatched_arms == lies
    assert "named another arm" in world.last_decision(SUBJECT, "advance").reason
    mine = [stage_participants.assigned_arm_version(plan, policy, device.id) for device in world.devices]
    assert [_devices(world, "advance", arm) for arm in (CONTROL_ARM, 0)] == [mine.count(CONTROL_ARM), mine.count(0)]


def test_a_rollout_is_counted_on_the_devices_that_it_is_for(make: Make) -> None:
    world = make(count=100)
    world.enrol(200, labels={"site": "berlin"})
    world.enrol(50, labels={"site": "berlin"}, version="")  # no model before
    world.enrol(60, labels={"site": "berlin"}, channel="slow")
    world.allow(channel_ceilings={"slow": "1.0"})
    world.start(*STAGES, selector=DeviceSelector({"site": "berlin"}))
    world.run(RolloutController(world.services), 16)
    assert _devices(world, "advance", CONTROL_ARM) + _devices(world, "advance", 0) == 200


def test_the_holdback_keeps_what_it_has_and_is_compared_with_at_the_end(make: Make) -> None:
    world = make(count=500, holdout_fraction=0.2)
    world.start(1.0)
    assert world.run(RolloutController(world.services), 30) == "done"
    held = [device for device in world.devices if device.proven_version == "1.0"]
    assert len(held) == _devices(world, "finish", CONTROL_ARM)
    assert 60 < len(held) < 140


def test_a_rollout_that_is_done_reaches_devices_that_come_later(make: Make) -> None:
    world = make()
    world.start(*STAGES)
    assert world.run(RolloutController(world.services), 60) == "done"
    world.enrol(3, version="")
    world.live()
    assert {each.proven_version for each in world.devices[-3:]} == {"1.1"}


def test_an_experiment_ends_with_an_estimate_and_its_interval(make: Make) -> None:
    def worse(device: Any, version: str, _stage: int) -> tuple[str, ...]:
        return ("outcome:taps",) if device.luck.random() < {"1.2": 0.5}.get(version, 0.2) else ()

    world = make(worse, count=600)
    world.publish("1.2")
    rule = HealthRule("outcome:taps", 0.05)
    world.start(1.0, versions=("1.1", "1.2"), rules=(rule,))
    assert world.run(RolloutController(world.services), 40) in ("done", "aborted")
    last = next(one for one in reversed(why(world.store, SUBJECT)) if one.basis.experiment)
    assert last.verdict in ("finish", "roll_back")
    (answer,) = last.basis.experiment.comparisons
    assert answer.low < 0.3 < answer.high
    assert last.basis.experiment.outcomes == ("excluded",)
    assert last.replays


def test_an_experiment_without_an_answer_goes_on_until_its_time_is_over(make: Make) -> None:
    world = make(count=60, holdout_fraction=0.2)
    world.publish("1.2")
    end = (world.at + datetime.timedelta(seconds=4000)).isoformat()
    world.start(1.0, versions=("1.1", "1.2"), rules=(HealthRule("crash", 0.01),), end_at=end)
    controller = RolloutController(world.services)
    assert world.run(controller, 20) == "running"
    assert world.run(controller, 20) == "done"
    assert _inputs(world, "finish").experiment.outcomes == ("inconclusive",)
    assert "confidence 0.95" in world.last_decision(SUBJECT, "finish").reason


def test_a_paused_rollout_holds_and_begins_its_stage_anew(make: Make) -> None:
    world = make()
    world.start(*STAGES)
    controller = RolloutController(world.services)
    world.run(controller, 1)
    publish_plan(world.repository(), world.online_keys, PLAN_CHANGES["pause"](world.plan, world.at))
    world.run(controller, 30)
    assert (world.plan.state, world.plan.stage) == ("paused", 0)
    assert world.store.outcomes.counts(SUBJECT, 0) == []
    assert "paused" in world.last_decision(SUBJECT, "hold").reason
    publish_plan(world.repository(), world.online_keys, PLAN_CHANGES["resume"](world.plan, world.at))
    resumed_at = world.at.timestamp()
    assert world.run(controller, 60) == "done"
    advance = next(one for one in world.store.decisions.for_subject(SUBJECT) if one.verdict == "advance")
    assert advance.at >= resumed_at + 1800


def test_while_nobody_can_be_heard_nobody_is_silent(make: Make) -> None:
    world = make()
    world.start(*STAGES)
    world.run(RolloutController(world.services), 2)
    world.at += datetime.timedelta(hours=5)  # the server was off
    fresh = RolloutController(world.services)
    assert fresh.check_rollouts(world.at.timestamp()) == []
    assert "settle" not in world.verdicts()
    assert world.run(fresh, 60) == "done"
    assert all(not one.basis.fact.devices for one in why(world.store, SUBJECT) if one.verdict == "settle")


def test_a_decision_that_was_not_done_is_done_by_the_next_one(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    world = make()
    world.start(*STAGES)

    class KilledError(BaseException):
        pass

    def killed(*_: Any) -> None:
        raise KilledError

    monkeypatch.setattr("edgewright.server.controller.rollout_controller.publish_plan", killed)
    with pytest.raises(KilledError):
        world.run(RolloutController(world.services), 60)
    monkeypatch.undo()
    assert (world.verdicts()[-1], world.plan.counter) == ("advance", 1)
    number = len(world.verdicts())
    assert RolloutController(world.services).check_rollouts(world.at.timestamp() + 5000)
    assert (len(world.verdicts()), world.plan.counter, world.plan.stage) == (number, 2, 1)
    assert len(RolloutController(world.services).check_rollouts(world.at.timestamp() + 5001)) == 0


def test_a_decision_about_a_plan_that_somebody_changed_is_not_done(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make()
    world.start(*STAGES)
    monkeypatch.setattr(RolloutController, "_apply", lambda *_: [])
    world.run(RolloutController(world.services), 13)
    monkeypatch.undo()
    assert world.verdicts()[-1] == "advance"
    publish_plan(world.repository(), world.online_keys, PLAN_CHANGES["pause"](world.plan, world.at))
    RolloutController(world.services).check_rollouts(world.at.timestamp())
    assert (world.plan.state, world.plan.stage) == ("paused", 0)


def test_of_two_controllers_at_the_same_time_one_is_refused(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    world = make()
    world.start(*STAGES)
    one, other = RolloutController(world.services), RolloutController(world.services)
    put = DecisionStore.put
    between: list[Any] = []

    def race(self: DecisionStore, decision: Any) -> None:
        if decision.verdict == "advance" and not between:
            between.append(decision)
            other.check_rollouts(world.at.timestamp() + 1)
        put(self, decision)

    monkeypatch.setattr(DecisionStore, "put", race)
    with pytest.raises(DecisionExistsError):
        world.run(one, 60)
    assert (world.plan.counter, world.plan.stage) == (2, 1)
    numbers = [each.number for each in world.store.decisions.for_subject(SUBJECT)]
    assert numbers == [*range(1, len(numbers) + 1)]
    assert world.verdicts().count("advance") == 1


def test_a_store_that_is_away_costs_time_and_nothing_else(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    world = make()
    world.start(*STAGES)
    controller = RolloutController(world.services)
    world.run(controller, 5)

    def gone(*_: Any, **__: Any) -> None:
        raise DatabaseUnavailableError("the database did not answer", remedy="Wait.")

    with monkeypatch.context() as away:
        away.setattr("edgewright.server.store.database.Database._tried", gone)
        for _ in range(3):
            with pytest.raises(DatabaseUnavailableError):
                controller.check_rollouts(world.at.timestamp())
            world.at += datetime.timedelta(seconds=60)
    assert world.run(controller, 60) == "done"
    assert [each for each in world.verdicts() if each != "hold"] == [*["settle", "advance"] * 2, "settle", "finish"]


def test_a_hold_is_kept_only_when_something_is_new_and_not_at_every_look(make: Make) -> None:
    world = make(count=100)
    world.start(0.5, 1.0, rules=(HealthRule("crash", 0.001),))
    controller = RolloutController(world.services)
    world.run(controller, 16)
    before = len(world.verdicts())
    for _ in range(20):
        controller.check_rollouts(world.at.timestamp())
        world.at += datetime.timedelta(seconds=10)
    RolloutController(world.services).check_rollouts(world.at.timestamp())
    assert len(world.verdicts()) == before
    assert world.verdicts().count("hold") <= 16


def test_offline_keys_on_the_server_are_refused(make: Make) -> None:
    world = make(count=0)
    for file in (world.path / "keys").glob("releases*"):
        (world.path / "online" / file.name).write_bytes(file.read_bytes())
    with pytest.raises(InputError, match="releases"):
        RolloutController(world.services)


def test_a_rollout_that_cannot_be_judged_does_not_keep_others_waiting(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make(count=0)
    world.start(*STAGES)
    looked = []

    def look(_self: Any, _repository: Any, model: str, _class: str, _now: float) -> list[str]:
        looked.append(model)
        if model == "a":
            raise InputError("broken", remedy="Mend it.")
        return ["looked"]

    monkeypatch.setattr(
        "edgewright.server.controller.rollout_controller.plan_keys", lambda _: [("a", "pi"), ("m", "pi")]
    )
    monkeypatch.setattr(RolloutController, "_read_rollout", look)
    assert RolloutController(world.services).check_rollouts(world.at.timestamp()) == ["looked"]
    assert looked == ["a", "m"]


def test_devices_and_the_server_agree_on_arms(make: Make) -> None:
    world = make(count=400, holdout_fraction=0.2)
    world.publish("1.2")
    plan, policy = world.start(0.4, versions=("1.1", "1.2")), _policy(world)
    versions = [*[arm.version for arm in plan.arms], ""]
    for device in world.devices:
        situation = DeviceContext(device.id, {}, "", world.at, 12)
        choice = choose_update(plan, policy, Slots(InstalledRelease("m", "1.0", "0" * 64)), {}, situation)
        mine = choice.release.version if choice.release else ""
        assert mine == versions[stage_participants.assigned_arm_version(plan, policy, device.id)]


PLACES: dict[str, dict[str, Any]] = {
    "another model": {"model": "other"},
    "no model before": {"proven": ""},
    "its first model is the release": {"proven": "1.1", "previous": ""},
    "another label": {"labels": {"site": "paris"}},
    "another channel": {"channel": "slow"},
}


@pytest.mark.parametrize("cause", PLACES)
def test_who_has_no_part_is_not_counted(make: Make, cause: str) -> None:
    world = make(count=0)
    plan = world.start(1.0, selector=DeviceSelector({"site": "berlin"}, "fast"))
    device = RolloutCandidate(
        id="d",
        labels={"site": "berlin"},
        channel="fast",
        enrolled_at=0.0,
        last_seen_at=1.0,
        model="m",
        proven="1.0",
        previous="",
    )
    assert stage_participants.is_participant(plan, _policy(world), device)
    assert stage_participants.is_participant(
        plan, _policy(world), msgspec.structs.replace(device, proven="1.1", previous="1.0")
    )
    assert not stage_participants.is_participant(
        plan, _policy(world), msgspec.structs.replace(device, **PLACES[cause])
    )


EARLY: dict[str, dict[str, Any]] = {
    "too young": {"age_seconds": 599.0},
    "another stage": {"stage": 1},
    "another rollout": {"rollout": "winter"},
}


@pytest.mark.parametrize("cause", EARLY)
def test_what_does_not_count_yet_is_not_kept(make: Make, cause: str) -> None:
    world = make(count=0)
    plan, looking = world.start(1.0), FleetMonitoring(outcome_age_seconds=600)
    said = StageOutcome("spring", 0, age_seconds=600.0)
    later = world.at.timestamp() + 600
    assert stage_participants.is_outcome_kept(plan, looking, said, later)
    assert not stage_participants.is_outcome_kept(plan, looking, said, later - 1)
    assert not stage_participants.is_outcome_kept(
        msgspec.structs.replace(plan, state="paused"), looking, said, later
    )
    assert not stage_participants.is_outcome_kept(
        plan, looking, msgspec.structs.replace(said, **EARLY[cause]), later
    )


def test_harmless_rollouts_of_uneven_fleets_are_seldom_stopped(make: Make) -> None:
    """Forty A/A rollouts through the whole controller, in which devices come to each of ten looks."""
    runs, stopped = 40, 0
    world = make(count=120, holdout_fraction=0.5)
    world.slow = lambda device: 150.0 * (int(device.id[:6], 16) % 8)
    for run in range(runs):

        def fails(device: Any, _version: str, _stage: int, run: int = run) -> tuple[str, ...]:
            # A tenth of the devices fails often, whatever it runs.
            frail = int(device.id[:8], 16) % 10 == run % 10
            return ("crash",) if device.luck.random() < (0.5 if frail else 0.02) else ()

        world.fails = fails
        world.allow(salt=f"{run:016x}")
        for number, device in enumerate(world.devices):
            device.luck.seed(1000 * run + number)
            device.slots, device.judged = Slots(InstalledRelease("m", "1.0", "0" * 64)), -1
        world.start(1.0, rollout=f"r{run}", counter=3 * run + 1)
        controller = RolloutController(world.services)
        for _ in range(12):
            world.run(controller, 1)
        stopped += world.plan.state == "aborted"
        if world.plan.state == "running":
            publish_plan(world.repository(), world.online_keys, PLAN_CHANGES["abort"](world.plan, world.at))
        evidence = _inputs(world, "hold", f"m/pi/r{run}").decision.inputs.evidence
        assert sum(sum(evidence.counts_of("crash", arm).devices) for arm in (CONTROL_ARM, 0)) == 120
    # At 5 % seven of forty or more have a chance of 0.3 %.
    assert stats.binom.sf(stopped - 1, runs, 0.05) > 0.003, stopped
