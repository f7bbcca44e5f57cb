"""Updates that end otherwise: in the heat, in a crash, in shadow; and images that the platform installs."""

import stat
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from tests.unit.device.conftest import World, answer, failed, model

from edgewright.compress.release_variant import build_image_variant, build_variant
from edgewright.contract.device_class import Budget, DeviceClass
from edgewright.contract.errors import InputError, WorkError
from edgewright.contract.refusal import RefusedError
from edgewright.contract.release import Manifest
from edgewright.contract.rollout.plan import HealthRule, RolloutStage
from edgewright.device import RejectedInputError, host_info
from edgewright.device.update import release_loader
from edgewright.device.update.installer import CommandInstaller, InstallerError, RaucInstaller, open_installer
from edgewright.device.update.state_machine import UpdateLifecycleState
from edgewright.trust.keys.keystore import create_key_file
from edgewright.trust.publishing.publish import (
    current_policy,
    list_releases,
    publish_plan,
    publish_release,
    republish,
    set_policy,
)


def too_fast(variant: Any, contents: dict[str, bytes]) -> Any:
    """Give a variant a budget that no machine keeps."""
    return msgspec.structs.replace(variant, budget=Budget(latency_p50_seconds=1e-9)), contents


def test_what_is_too_slow_is_tested_again_later_and_then_fails(running: World) -> None:
    running.publish("1.1.0", 2.0, change=too_fast)
    running.start("1.1.0")
    agent = running.agent()
    for attempt in (1, 2):
        record = agent.check_for_update()
        assert (record.state, record.test_attempts, answer(agent)) == (UpdateLifecycleState.STAGED, attempt, 1.0)
        assert record.last_refusal is not None
        assert record.last_refusal.code == "budget"
        agent = running.agent()
        assert agent.check_for_update().test_attempts == attempt  # not yet
        running.clock.turn(minutes=30)
    record = agent.check_for_update()
    assert (record.state, answer(agent)) == (UpdateLifecycleState.IDLE, 1.0)
    assert next(iter(record.failed_releases.values())).code == "budget"
    running.requests.clear()
    agent.check_for_update()
    assert not [path for path in running.requests if "blobs" in path]


def test_what_ends_the_process_while_it_is_tested_is_given_up(
    running: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    running.publish("1.1.0", 2.0)
    running.start("1.1.0")

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(release_loader, "run_self_test", killed)
    for _ in range(3):
        agent = running.agent()
        assert answer(agent) == 1.0
        with pytest.raises(KeyboardInterrupt):
            agent.check_for_update()
    agent = running.agent()
    record = agent.check_for_update()
    assert (record.state, answer(agent)) == (UpdateLifecycleState.IDLE, 1.0)
    assert record.last_refusal is not None
    assert "ended this process 3 times" in record.last_refusal.reason
    assert answer(running.agent()) == 1.0


def test_a_return_is_taken_from_the_other_slot(running: World) -> None:
    running.publish("1.1.0", 2.0)
    running.start("1.1.0")
    agent = running.agent()
    agent.check_for_update()
    running.clock.turn(hours=1)
    agent.settle_probation()
    republish(running.repository(), running.keys, "m", "1.0.0")
    running.start("1.1.1")
    running.requests.clear()
    agent.check_for_update()
    assert (agent.status()["version"], answer(agent)) == ("1.1.1", 1.0)
    assert not [path for path in running.requests if "blobs" in path]


def test_the_first_release_serves_to_the_end_of_its_probation(world: World) -> None:
    """There is nothing to fall back to yet, so a newer one waits."""
    world.publish("1.0.0", 1.0)
    world.start("1.0.0")
    agent = world.agent()
    agent.check_for_update()
    world.publish("1.1.0", 2.0)
    world.start("1.1.0")
    assert agent.check_for_update().state is UpdateLifecycleState.PROBATION
    assert answer(agent) == 1.0
    world.clock.turn(hours=1)
    agent.check_for_update()
    assert (answer(agent), agent.status()["proven"]) == (2.0, "1.0.0")


@pytest.mark.parametrize("battery", [0.1, 0.9])
def test_a_return_by_hand_is_possible_whatever_is_going_on(running: World, battery: float) -> None:
    running.publish("1.1.0", 2.0)
    running.start("1.1.0")
    agent = running.agent()
    agent.check_for_update()
    running.clock.turn(hours=1)
    agent.settle_probation()
    running.publish("1.2.0", 3.0, change=too_fast)
    running.start("1.2.0", min_battery_level=0.5)
    agent = running.agent(read_battery=lambda: battery)
    assert agent.check_for_update().state is (
        UpdateLifecycleState.WAITING if battery < 0.5 else UpdateLifecycleState.STAGED
    )
    agent.roll_back()
    assert (agent.journal_record.state, answer(agent)) == (UpdateLifecycleState.IDLE, 1.0)


def test_nobody_returns_below_the_floor(running: World) -> None:
    running.publish("1.1.0", 2.0)
    running.start("1.1.0")
    agent = running.agent()
    agent.check_for_update()
    running.clock.turn(hours=1)
    agent.settle_probation()
    policy = current_policy(running.repository(), "m", "default")
    assert policy is not None
    higher = msgspec.structs.replace(policy, revision=2, min_version="1.1.0")
    set_policy(running.repository(), running.keys, higher)
    agent.check_for_update()
    with pytest.raises(RefusedError, match="below the floor"):
        agent.roll_back()
    assert answer(agent) == 2.0
    (path,) = (running.path / "device/releases" / str(agent.status()["digest"])).glob("model.onnx")
    path.write_bytes(b"rotten")
    running.served.update(dict.fromkeys(("metadata/timestamp.json",)))
    again = running.agent()
    assert answer(again) is None  # no model is better than one that was taken back
    running.served.clear()
    again.check_for_update()
    assert answer(again) == 2.0


@pytest.mark.parametrize(
    ("end", "code"), [("2026-11-21T00:00:00+00:00", "retired"), ("2027-11-21T00:00:00+00:00", None)]
)
def test_a_retired_release_is_not_installed_and_is_reported_where_it_runs(
    running: World, end: str, code: str | None
) -> None:
    running.publish("1.1.0", 2.0, end_of_life=end)
    running.start("1.1.0")
    agent = running.agent()
    record = agent.check_for_update()
    assert (record.last_refusal and record.last_refusal.code) == code
    if code is None:
        assert agent.status()["notice"] is None
        running.clock.turn(days=400)
        assert agent.status()["notice"].code == "retired"
        assert answer(agent) == 2.0


def test_a_plan_with_a_time_that_is_none_is_refused(running: World) -> None:
    running.publish("1.1.0", 2.0)
    with pytest.raises(InputError, match="start"):
        running.start("1.1.0", start_at="tomorrow")


@pytest.mark.parametrize("harm", ["missing", "rotten"])
def test_a_model_that_is_gone_comes_back_whatever_the_plan_says(running: World, harm: str) -> None:
    """The plan was paused meanwhile; the release is fetched by the digest that was proven."""
    running.start("1.0.0", state="paused")
    running.agent().check_for_update()
    (path,) = (running.path / "device/releases").glob("*/model.onnx")
    if harm == "missing":
        path.unlink()
    else:
        path.write_bytes(b"rotten")
    agent = running.agent()
    assert answer(agent) is None
    assert agent.status()["corrupt_releases"]
    agent.check_for_update()
    assert (answer(agent), agent.status()["corrupt_releases"], agent.status()["proven"]) == (1.0, [], "1.0.0")


def test_what_rots_while_it_serves_goes_on_serving(running: World) -> None:
    agent = running.agent()
    (path,) = (running.path / "device/releases").glob("*/model.onnx")
    path.write_bytes(b"rotten")
    for name in running.repo.glob("blobs/*/*"):
        running.served[name.relative_to(running.repo).as_posix()] = None
    assert [found.code for found in agent.verify_slots()] == ["tampered"]
    assert answer(agent) == 1.0
    running.served.clear()
    assert agent.check_for_update().corrupt_releases == ()
    assert agent.verify_slots() == []


def test_a_journal_that_cannot_be_read_costs_no_model(running: World) -> None:
    for name in ("journal.0", "journal.1"):
        (running.path / "device" / name).write_bytes(b"torn")
    agent = running.agent()
    assert answer(agent) is None
    assert list((running.path / "device/releases").glob("*/model.onnx"))
    agent.check_for_update()
    assert answer(agent) == 1.0


def test_a_lie_of_the_server_is_no_mark_against_the_release(running: World) -> None:
    running.publish("1.1.0", 2.0)
    running.start("1.1.0")
    for name in running.repo.glob("blobs/*/*"):
        running.served[name.relative_to(running.repo).as_posix()] = lambda content: bytes(len(content))
    agent = running.agent()
    refusal = agent.check_for_update().last_refusal
    assert refusal is not None
    assert refusal.code == "tampered"
    running.served.clear()
    running.requests.clear()
    assert agent.check_for_update().last_refusal == refusal  # not again at once
    assert not [path for path in running.requests if "blobs" in path]
    running.clock.turn(minutes=11)
    agent.check_for_update()
    assert answer(agent) == 2.0


def test_a_denied_release_on_trial_is_withdrawn_though_the_plan_still_names_it(running: World) -> None:
    digest = running.publish("1.1.0", 2.0).digest
    running.start("1.1.0")
    agent = running.agent()
    agent.check_for_update()
    assert answer(agent) == 2.0
    policy = current_policy(running.repository(), "m", "default")
    assert policy is not None
    denied = msgspec.structs.replace(policy, revision=2, denied_manifests=(digest,))
    set_policy(running.repository(), running.keys, denied)
    agent.check_for_update()
    assert answer(agent) == 1.0


def test_waiting_for_the_battery_ends_no_probation(running: World) -> None:
    running.publish("1.1.0", 2.0)
    running.start("1.1.0")
    agent = running.agent(read_battery=lambda: 0.1)
    agent.check_for_update()
    running.publish("1.2.0", 3.0)
    running.start("1.2.0", min_battery_level=0.5)
    record = agent.check_for_update()
    assert (record.state, answer(agent)) == (UpdateLifecycleState.PROBATION, 2.0)
    assert record.last_refusal is not None
    assert record.last_refusal.code == "battery"


def test_inputs_that_the_runtime_fails_on_are_not_held_against_a_model_that_passes_its_test(
    running: World,
) -> None:
    running.publish("1.1.0", 2.0)
    running.start("1.1.0")
    agent = running.agent()
    agent.check_for_update()
    for _ in range(20):
        answer(agent)
    failed(agent, 3)
    assert agent.settle_probation().state is UpdateLifecycleState.PROBATION
    failed(agent, 27)  # most of them
    assert agent.settle_probation().state is UpdateLifecycleState.IDLE
    assert answer(agent) == 1.0


def test_files_that_are_encrypted_to_the_fleet_are_opened_with_its_key(world: World) -> None:
    fleet = create_key_file(world.path / "fleet.key")
    made = build_variant(saved(world, 1.0), DeviceClass("default"))
    manifest = Manifest("m", "1.0.0", "model", (made.variant,))
    contents = {"default": made.contents}
    publish_release(world.repository(), world.keys, manifest, contents, fleet=("fleet", fleet))
    world.start("1.0.0")
    world.enrol("with", fleet_keys={"fleet": (world.path / "fleet.key").read_bytes()})
    agent = world.agent("with")
    assert agent.check_for_update().last_refusal is None
    assert answer(agent) == 1.0
    key = (world.path / "fleet.key").read_bytes()
    assert all(key not in path.read_bytes() for path in (world.path / "with").rglob("*") if path.is_file())
    record = world.agent("without").check_for_update()
    assert record.last_refusal is not None
    assert record.last_refusal.code == "locked"


def saved(world: World, factor: float) -> Path:
    path = world.path / "saved.onnx"
    onnx.save(model(factor), path)
    return path


# Shadow


def shadowed(world: World, factor: float) -> Any:
    world.publish("1.1.0", factor)
    world.start("1.1.0", shadow_mode=True)
    agent = world.agent()
    agent.check_for_update()
    return agent


def test_a_shadow_is_compared_and_answers_nobody(running: World) -> None:
    agent = shadowed(running, -1.0)
    feed = {"x": np.array([[1.0, 2.0, 3.0, 4.0]], np.float32)}
    for _ in range(5):
        assert agent.predict(feed).outputs["y"][0, 0] == 1.0
    comparison = agent.predictor.shadow.close()
    assert comparison.compared_inputs + comparison.skipped == 5
    assert comparison.compared_inputs > 0
    assert (comparison.agreeing_inputs, comparison.max_difference) == (0, 8.0)
    running.clock.turn(hours=10)
    assert agent.settle_probation().state is UpdateLifecycleState.PROBATION  # it never proves itself that way
    assert (agent.status()["version"], agent.status()["trial"]) == ("1.0.0", "1.1.0")


def test_a_shadow_goes_on_after_a_restart_and_can_become_real(running: World) -> None:
    shadowed(running, 2.0)
    agent = running.agent()
    assert agent.status()["shadow"] is not None
    assert answer(agent) == 1.0
    running.start("1.1.0", shadow_mode=False)
    agent.check_for_update()
    assert answer(agent) == 2.0
    assert agent.status()["shadow"] is None
    assert agent.status()["state"] == "probation"


def test_an_aborted_shadow_is_gone(running: World) -> None:
    agent = shadowed(running, 2.0)
    running.start("1.1.0", shadow_mode=True, state="aborted")
    agent.check_for_update()
    assert (agent.predictor.shadow, agent.status()["trial"], answer(agent)) == (None, None, 1.0)


# Outcomes


def test_a_release_that_does_worse_gives_way(running: World) -> None:
    agent = running.agent()
    for number in range(200):
        agent.record_outcome("correction", float(number % 20 == 0))
    running.publish("1.1.0", 2.0)
    rule = HealthRule("outcome:correction", margin=0.1)
    running.start("1.1.0", stages=(RolloutStage(1.0, 0.0, (rule,)),))
    agent.check_for_update()
    assert answer(agent) == 2.0
    for number in range(200):
        agent.record_outcome("correction", float(number % 2 == 0))
    record = agent.settle_probation()
    assert (record.state, answer(agent)) == (UpdateLifecycleState.IDLE, 1.0)
    assert record.last_refusal is not None
    assert "correction is 0.5 on the average, 0.05 with 1.0.0" in record.last_refusal.reason


def test_an_outcome_counts_for_the_release_that_answered(running: World) -> None:
    agent = running.agent()
    before = agent.predict({"x": np.ones((1, 4), np.float32)})
    running.publish("1.1.0", 2.0)
    running.start("1.1.0")
    agent.check_for_update()
    agent.record_outcome("defect", 1.0, prediction=before)
    proven, trial = agent.journal_record.slots.proven, agent.journal_record.slots.trial
    assert proven is not None
    assert trial is not None
    assert agent._outcomes.for_release(proven.manifest_digest)["defect"].count == 1
    assert not agent._outcomes.for_release(trial.manifest_digest)
    agent.settle_probation()
    assert running.agent()._outcomes.for_release(proven.manifest_digest)["defect"].total == 1.0


# One agent at a time


def test_a_second_agent_answers_and_changes_nothing(running: World) -> None:
    first = running.agent()
    state = running.path / "device"
    running.agents.pop("device")
    second = running.agent()
    assert (first.is_owner, second.is_owner) == (True, False)
    held = {path: path.read_bytes() for path in state.rglob("*") if path.is_file()}
    assert answer(second) == 1.0
    second.settle_probation()
    for act in (second.check_for_update, second.roll_back, second.verify_slots):
        with pytest.raises(WorkError, match="another process"):
            act()
    assert held == {path: path.read_bytes() for path in state.rglob("*") if path.is_file()}
    first.close()
    second.close()
    assert running.agent().is_owner


def test_who_asks_for_it_gets_an_error(running: World) -> None:
    agent = running.agent()
    bad = {"x": np.full((1, 4), np.nan, np.float32)}
    assert agent.predict(bad).rejection is not None
    with pytest.raises(RejectedInputError, match="NaN"):
        agent.predict(bad, strict=True)


# Images

RAUC = """#!/bin/sh
echo "$@" >> {log}
case "$1 $2" in
  "status --output-format=json") printf '{{"compatible": "x", "booted": "%s"}}' "$(cat {slot})" ;;
  "install "*) [ -e {broken} ] && {{ echo "signature verification failed" >&2; exit 1; }}; cp "$2" {image} ;;
esac
exit 0
"""


class Platform:
    """A stand-in for RAUC that records what it is called with, and a platform that can be started anew."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = path
        path.mkdir()
        self.slot, self.log, self.image = path / "slot", path / "log", path / "image"
        self.slot.write_text("A")
        self.log.touch()
        self.command = path / "rauc"
        self.command.write_text(RAUC.format(log=self.log, slot=self.slot, image=self.image, broken=path / "broken"))
        self.command.chmod(self.command.stat().st_mode | stat.S_IXUSR)
        self.boots = path / "boot_id"
        monkeypatch.setattr(host_info, "_BOOT_ID", self.boots)
        self.start("A")

    def start(self, slot: str) -> None:
        self.slot.write_text(slot)
        self.boots.write_text(f"{len(self.log.read_text())}-{slot}")

    @property
    def calls(self) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if not line.startswith("status --output")]


@pytest.fixture
def platform(world: World, monkeypatch: pytest.MonkeyPatch) -> Platform:
    made = Platform(world.path / "platform", monkeypatch)
    image = world.path / "image.raucb"
    for version in ("7.0", "7.1"):
        image.write_bytes(f"image {version}".encode() * 1000)
        of = build_image_variant(image, "default")
        manifest = Manifest("os", version, "firmware", (of.variant,))
        publish_release(world.repository(), world.keys, manifest, {"default": of.contents})
    world.enrol("box", model="os", installer=[str(made.command)])
    return made


def roll_out(world: World, version: str, counter: int, **changes: Any) -> None:
    from edgewright.contract.rollout.plan import RolloutArm, RolloutPlan

    digest = dict(list_releases(world.repository(), "os"))[version]
    plan = RolloutPlan(
        "os",
        "default",
        f"os-{version}",
        1,
        counter,
        (RolloutArm(version, digest),),
        (RolloutStage(1.0),),
        **changes,
    )
    publish_plan(world.repository(), world.keys, plan)


def installed(world: World, platform: Platform) -> Any:
    """Install 7.0 on a box, as far as its probation's end."""
    roll_out(world, "7.0", 1)
    world.agent("box").check_for_update()
    platform.start("B")
    agent = world.agent("box")
    world.clock.turn(hours=1)
    agent.settle_probation()
    return agent


def test_an_image_is_handed_over_started_watched_and_confirmed(world: World, platform: Platform) -> None:
    roll_out(world, "7.0", 1)
    agent = world.agent("box")
    record = agent.check_for_update()
    assert record.state is UpdateLifecycleState.TESTING
    assert agent.status()["restart_needed"] is True
    assert platform.image.read_bytes() == b"image 7.0" * 1000
    assert world.agent("box").check_for_update().state is UpdateLifecycleState.TESTING  # not started yet
    platform.start("B")
    agent = world.agent("box")
    assert agent.journal_record.state is UpdateLifecycleState.PROBATION
    world.clock.turn(hours=1)
    assert agent.settle_probation().state is UpdateLifecycleState.IDLE
    assert agent.status()["proven"] == "7.0"
    assert [call.split()[0:2] for call in platform.calls] == [
        ["install", platform.calls[0].split()[1]],
        ["status", "mark-good"],
    ]


def test_a_platform_that_comes_up_with_the_old_image_has_refused_the_new_one(
    world: World, platform: Platform
) -> None:
    agent = installed(world, platform)
    assert agent.status()["proven"] == "7.0"
    roll_out(world, "7.1", 2)
    agent.check_for_update()
    platform.log.write_text(platform.log.read_text() + "started\n")
    platform.start("B")  # anew, with what ran before
    agent = world.agent("box")
    record = agent.journal_record
    assert (record.state, agent.status()["proven"]) == (UpdateLifecycleState.IDLE, "7.0")
    assert record.last_refusal is not None
    assert "came up with 'B' as before" in record.last_refusal.reason
    assert platform.calls[-1] == "status mark-active booted"
    assert agent.check_for_update().state is UpdateLifecycleState.IDLE  # and is not tried again


def test_a_platform_that_falls_back_in_the_probation_has_refused_the_image(
    world: World, platform: Platform
) -> None:
    agent = installed(world, platform)
    roll_out(world, "7.1", 2)
    agent.check_for_update()
    platform.start("A")
    agent = world.agent("box")
    assert agent.journal_record.state is UpdateLifecycleState.PROBATION
    platform.log.write_text(platform.log.read_text() + "crashed\n")
    platform.start("B")
    world.clock.turn(hours=1)
    agent = world.agent("box")
    assert agent.settle_probation().state is UpdateLifecycleState.IDLE
    assert agent.status()["proven"] == "7.0"
    assert platform.calls[-1] == "status mark-active booted"
    assert "status mark-good booted" not in platform.calls[-3:]


def test_an_installation_that_a_power_cut_broke_off_is_tried_again(
    world: World, platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = installed(world, platform)
    roll_out(world, "7.1", 2)

    def cut(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RaucInstaller, "install", cut)
        with pytest.raises(KeyboardInterrupt):
            agent.check_for_update()
    platform.log.write_text(platform.log.read_text() + "cut\n")
    platform.start("B")
    agent = world.agent("box")
    assert agent.journal_record.state is UpdateLifecycleState.STAGED
    world.requests.clear()
    assert agent.check_for_update().state is UpdateLifecycleState.TESTING
    assert not [path for path in world.requests if "blobs" in path]
    assert platform.image.read_bytes() == b"image 7.1" * 1000


def test_an_installer_that_refuses_leaves_everything_as_it_was(world: World, platform: Platform) -> None:
    agent = installed(world, platform)
    (platform.path / "broken").touch()
    roll_out(world, "7.1", 2)
    record = agent.check_for_update()
    assert (record.state, agent.status()["proven"]) == (UpdateLifecycleState.IDLE, "7.0")
    assert record.last_refusal is not None
    assert (record.last_refusal.code, "signature verification failed" in record.last_refusal.reason) == (
        "installer",
        True,
    )


def test_an_image_is_returned_by_hand(world: World, platform: Platform) -> None:
    agent = installed(world, platform)
    roll_out(world, "7.1", 2)
    agent.check_for_update()
    platform.start("A")
    agent = world.agent("box")
    world.clock.turn(hours=1)
    agent.settle_probation()
    assert agent.status()["proven"] == "7.1"
    agent.roll_back()
    assert (agent.status()["proven"], platform.calls[-1]) == ("7.0", "status mark-active other")


def test_a_rollout_that_is_aborted_takes_an_image_back_before_it_starts(world: World, platform: Platform) -> None:
    agent = installed(world, platform)
    roll_out(world, "7.1", 2)
    agent.check_for_update()
    roll_out(world, "7.1", 3, state="aborted")
    assert agent.check_for_update().state is UpdateLifecycleState.IDLE
    assert platform.calls[-1] == "status mark-active booted"


def test_a_device_without_an_installer_takes_no_image(world: World, platform: Platform) -> None:
    roll_out(world, "7.0", 1)
    world.enrol("bare", model="os")
    record = world.agent("bare").check_for_update()
    assert record.last_refusal is not None
    assert record.last_refusal.code == "requirement"


def test_a_command_of_ones_own_installs_as_well(tmp_path: Path) -> None:
    command = tmp_path / "own"
    command.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/log\n[ "$1" = running ] && echo slot-1\nexit 0\n')
    command.chmod(0o755)
    installer = open_installer([str(command)])
    assert isinstance(installer, CommandInstaller)
    installer.install(tmp_path / "image", "1.0")
    assert installer.running_image() == "slot-1"
    installer.confirm()
    installer.revert()
    assert (tmp_path / "log").read_text().splitlines() == [
        f"install {tmp_path}/image 1.0",
        "running",
        "confirm",
        "revert",
    ]
    assert isinstance(open_installer(["/usr/bin/rauc"]), RaucInstaller)
    assert open_installer([]) is None
    with pytest.raises(InstallerError, match="cannot be run"):
        CommandInstaller([str(tmp_path / "none")]).running_image()
