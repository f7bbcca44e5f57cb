"""What a device tells the control plane, and that whatever the control plane does harms nothing."""

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from tests.unit.device.conftest import World, answer, failed
from tests.unit.device.control_plane_double import Plane, Reply, held, joined, planes, reply
from tests.unit.device.update.test_updater import too_fast

from edgewright import __version__
from edgewright.cli.main import main
from edgewright.contract.api.device_api import ErrorResponse
from edgewright.contract.api.device_status import DeviceStatus
from edgewright.contract.refusal import Refusal
from edgewright.contract.rollout.plan import HealthRule, RolloutStage
from edgewright.contract.timestamps import parse_iso8601
from edgewright.device import control_plane_client
from edgewright.device.agent import Agent
from edgewright.device.filesystem import FileSystem
from edgewright.device.monitoring import aggregates
from edgewright.device.reporting import crash_marker, reporter
from edgewright.device.reporting.reporter import device_status
from edgewright.device.update.selection import assigned_arm
from edgewright.device.update.state_machine import UpdateLifecycleState
from edgewright.device.update.updater import Updater
from edgewright.trust.keys.device_identity import DeviceKey, device_id_of
from edgewright.trust.publishing.publish import current_policy, set_policy


@pytest.fixture
def plane(world: World) -> Iterator[Plane]:
    with planes(world.clock) as made:
        yield made


@pytest.fixture
def served(world: World, plane: Plane) -> World:
    """A world with a device of a control plane, which has proven version 1.0.0."""
    joined(world, plane)
    world.publish("1.0.0", 1.0)
    world.start("1.0.0")
    agent = world.agent()
    agent.check_for_update()
    world.clock.turn(hours=1)
    agent.settle_probation()
    assert agent.status()["proven"] == "1.0.0"
    return world


def newer(world: World, version: str = "1.1.0", factor: float = 2.0, fraction: float = 1.0, **more: Any) -> None:
    world.publish(version, factor, **{name: more.pop(name) for name in ("change",) if name in more})
    world.start(version, fraction=fraction, **more)


# What is told


def test_each_check_tells_how_the_device_is(served: World, plane: Plane) -> None:
    newer(served)
    served.agent().check_for_update()
    name, said = plane.told[-1]
    assert [name] == list(plane.known)
    status = said.status
    assert (status.model, status.version, status.proven, status.trial) == ("m", "1.1.0", "1.0.0", "1.1.0")
    assert (status.state, status.failed_inferences, status.agent_version) == ("probation", 0, __version__)
    assert (status.free_bytes or 0) > 0
    assert parse_iso8601(status.metadata_checked_at) == served.clock()
    assert said.outcome is not None
    assert (said.outcome.rollout, said.outcome.stage, said.outcome.arm) == ("r-1.1.0", 0, "1.1.0")
    assert (said.outcome.failed_metrics, said.outcome.age_seconds) == ((), 0.0)
    served.clock.turn(minutes=20)
    served.agent().check_for_update()
    assert plane.last.outcome is not None
    assert plane.last.outcome.age_seconds == 1200


def test_a_device_without_a_control_plane_tells_nobody_and_keeps_nothing_of_it(running: World) -> None:
    agent = running.agent()
    agent.check_for_update()
    assert agent.check_in() is False
    assert agent.status()["server"] is None
    assert not held(running.path / "device") & {"stages.json", "server.json", "running.json"}


def test_what_a_device_says_of_itself_fits_whatever_it_was_refused() -> None:
    long = Refusal("tampered", "f" * 2000, "r" * 2000)
    told = dict.fromkeys(DeviceStatus.__struct_fields__) | {
        "state": "idle",
        "failed_inferences": 1 << 60,
        "free_bytes": 1 << 60,
        "battery_level": 1.0000001,
        "last_refusal": long,
        "notice": Refusal("retired", "", "r" * 2000),
        "failed_releases": dict.fromkeys((f"{n:064x}" for n in range(40)), long),
        "corrupt_releases": ["f" * 64],
        "restart_needed": False,
    }
    status = device_status(told)
    assert status.refusal is not None
    assert len(status.refusal.file) + len(status.refusal.reason) == 500
    assert (status.battery_level, status.failed_inferences, len(status.failed_releases)) == (1.0, 1 << 53, 32)
    assert status.failed_releases[-1] == f"{39:064x}"
    assert msgspec.json.decode(msgspec.json.encode(status), type=DeviceStatus) == status


def test_the_median_latency_is_where_half_of_the_inferences_were_faster() -> None:
    edges = aggregates.LATENCY_EDGES_SECONDS
    rng = np.random.default_rng(3)
    for median in (2e-4, 3e-2, 1.1):
        times = median * np.exp(rng.normal(size=4001) * 0.3)
        counts = np.bincount(np.searchsorted(edges, times), minlength=len(edges) + 1)
        hour = aggregates.CountWindow(0.0, 1.0, np.zeros((1, 2), np.int64), {"latency": tuple(counts.tolist())})
        found = aggregates.median_latency_seconds(_watched(hour))
        assert found is not None
        assert abs(np.log(found / median)) < 0.1
    assert aggregates.median_latency_seconds(_watched()) is None
    assert aggregates.median_latency_seconds(_watched(hour), since_at=0.5) is None


def _watched(*windows: aggregates.CountWindow) -> aggregates.MonitorState:
    return aggregates.MonitorState(None, None, 0, 0.0, windows)  # type: ignore[arg-type]


def test_a_fleet_tells_the_arms_that_its_keys_give(world: World, plane: Plane) -> None:
    """What a server works out from public keys alone, without having asked a device."""
    world.publish("1.0.0", 1.0)
    world.start("1.0.0")
    policy = current_policy(world.repository(), "m", "default")
    assert policy is not None
    set_policy(world.repository(), world.keys, msgspec.structs.replace(policy, revision=2, holdout_fraction=0.2))
    names = [f"device-{number}" for number in range(10)]
    for name in names:
        joined(world, plane, name)
        world.agent(name).check_for_update()
    world.clock.turn(hours=1)
    newer(world, stages=(RolloutStage(0.5),))
    plan = world.start("1.1.0", stages=(RolloutStage(0.5),))
    policy = current_policy(world.repository(), "m", "default")
    assert policy is not None
    plane.told.clear()
    does = {}
    for name in names:
        agent = world.agent(name)
        agent.check_for_update()
        agent.check_for_update()
        does[agent.settings.device_id] = agent.status()["version"]
    told = {name: said.outcome.arm for name, said in plane.told if said.outcome is not None}
    computed = {
        device_id_of(public): assigned_arm(plan, policy, device_id_of(public)) for public in plane.known.values()
    }
    assert told == {name: "" if arm is None else arm.version for name, arm in computed.items()}
    assert does == {name: "1.0.0" if arm is None else arm.version for name, arm in computed.items()}


# What failed


def outcome(plane: Plane) -> tuple[str, tuple[str, ...]]:
    said = plane.last.outcome
    assert said is not None
    return said.arm, said.failed_metrics


def test_a_release_that_fails_its_self_test_fails_in_that(
    served: World, plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgewright.contract.release import SelfTest

    def strict(variant: Any, contents: dict[str, bytes]) -> Any:
        test = SelfTest(variant.self_test.file, variant.self_test.tolerance, variant.self_test.sample_count + 1)
        return msgspec.structs.replace(variant, self_test=test), contents

    newer(served, change=strict)
    agent = served.agent()
    assert agent.check_for_update().state is UpdateLifecycleState.IDLE
    assert outcome(plane) == ("1.1.0", ("self_test",))
    served.agent().check_for_update()
    assert outcome(plane) == ("1.1.0", ("self_test",))


def test_what_failed_stays_failed_in_the_next_stage_and_after_a_restart(served: World, plane: Plane) -> None:
    newer(served, change=too_fast, stages=(RolloutStage(0.99999), RolloutStage(1.0)))
    for _ in range(3):
        served.agent().check_for_update()
        served.clock.turn(hours=1)
    assert outcome(plane) == ("1.1.0", ("budget_breach",))
    served.start("1.1.0", stages=(RolloutStage(0.99999), RolloutStage(1.0)), stage=1)
    served.agent().check_for_update()
    assert plane.last.outcome is not None
    assert (plane.last.outcome.stage, plane.last.outcome.age_seconds) == (1, 0.0)
    assert outcome(plane) == ("1.1.0", ("budget_breach",))
    newer(served, "1.2.0", 3.0)
    served.agent().check_for_update()
    assert outcome(plane) == ("1.2.0", ())


def test_a_release_that_fails_in_its_probation_has_crashed(served: World, plane: Plane) -> None:
    newer(served)
    agent = served.agent()
    agent.check_for_update()
    failed(agent, 1)
    assert agent.settle_probation().state is UpdateLifecycleState.IDLE
    agent.check_for_update()
    assert outcome(plane) == ("1.1.0", ("crash",))


def test_inferences_that_fail_in_the_control_count_as_those_on_trial_do(served: World, plane: Plane) -> None:
    agent = served.agent()
    failed(agent, 50)  # before there was a rollout: nobody's fault
    newer(served, fraction=0.0)
    agent.check_for_update()
    agent.check_for_update()
    assert outcome(plane) == ("", ())
    failed(agent, 3)
    agent.check_for_update()
    assert outcome(plane) == ("", ("crash",))


def test_inferences_that_fail_for_their_inputs_sake_count_nowhere(served: World, plane: Plane) -> None:
    newer(served, fraction=0.0)
    agent = served.agent()
    agent.check_for_update()
    for _ in range(10):
        assert answer(agent) == 1.0
    failed(agent, 3)  # it passes its self-test, and most did not fail
    agent.check_for_update()
    assert outcome(plane) == ("", ())


def test_broken_bytes_count_in_the_control_too(served: World, plane: Plane) -> None:
    newer(served, fraction=0.0)
    served.agent().check_for_update()
    (path,) = (served.path / "device/releases").glob("*/model.onnx")
    path.write_bytes(b"rotten")
    agent = served.agent()
    agent.check_for_update()
    assert answer(agent) == 1.0
    assert outcome(plane) == ("", ("load_failure",))


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_an_outcome_that_grows_worse_fails_by_its_name_in_every_arm(
    served: World, plane: Plane, fraction: float
) -> None:
    agent = served.agent()
    for number in range(300):
        agent.record_outcome("defect", float(number % 20 == 0))
    newer(served, stages=(RolloutStage(fraction, 0.0, (HealthRule("outcome:defect", 0.1),)),))
    agent.check_for_update()
    for number in range(300):
        agent.record_outcome("defect", float(number % 2 == 0))
    agent.check_for_update()
    assert outcome(plane) == ("1.1.0" if fraction else "", ("outcome:defect",))
    assert answer(agent) == 1.0


# Processes that end

KEEPS = """
import sys, time
from pathlib import Path
from edgewright.device import Agent
agent = Agent(Path(sys.argv[1]))
print("open", flush=True)
if sys.argv[2] == "exit":
    sys.exit(3)
if sys.argv[2] == "raise":
    raise RuntimeError("the application's own fault")
time.sleep(60)
"""


def ended(state: Path, how: str) -> None:
    """Have another process keep the device, and end."""
    process = subprocess.Popen(
        [sys.executable, "-c", KEEPS, str(state), how], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"open\n"
    if how == "kill":
        process.send_signal(signal.SIGKILL)
    process.stdout.close()
    process.wait()


@pytest.mark.parametrize("fraction", [0.0, 1.0])
@pytest.mark.parametrize(("how", "crashed"), [("kill", ("crash",)), ("exit", ()), ("raise", ())])
def test_a_process_that_was_killed_has_crashed_in_every_arm(
    served: World, plane: Plane, fraction: float, how: str, crashed: tuple[str, ...]
) -> None:
    newer(served, fraction=fraction)
    agent = served.agent()
    agent.check_for_update()
    agent.close()
    ended(served.path / "device", how)
    served.agent().check_for_update()
    assert outcome(plane) == ("1.1.0" if fraction else "", crashed)


def test_who_was_told_to_end_and_is_killed_for_being_slow_has_not_crashed(served: World, plane: Plane) -> None:
    newer(served)
    agent = served.agent()
    agent.check_for_update()
    agent.close()
    asked = threading.Event()

    def slow(handler: Any) -> None:
        asked.set()
        time.sleep(20)

    plane.replies["/device/check-in"] = slow
    state = served.path / "device"
    command = [sys.executable, "-m", "edgewright", "device", "run", "--state", str(state)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert asked.wait(60)
    assert "running.json" in held(state)
    process.terminate()
    for _ in range(200):
        if "running.json" not in held(state):
            break
        time.sleep(0.05)
    assert process.poll() is None
    process.kill()
    process.wait()
    plane.replies.clear()
    served.agent().check_for_update()
    assert outcome(plane) == ("1.1.0", ())


def test_a_crash_before_there_was_a_rollout_is_none_of_its(served: World, plane: Plane) -> None:
    served.agent().close()
    newer(served)
    ended(served.path / "device", "kill")
    served.agent().check_for_update()
    served.start("1.1.0", rollout="r2")
    served.agent().check_for_update()
    assert outcome(plane) == ("1.1.0", ())


def test_a_power_cut_is_no_crash(served: World, plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    """The platform was started anew: whatever took it along was not this process alone."""
    newer(served)
    agent = served.agent()
    agent.check_for_update()
    monkeypatch.setattr(crash_marker, "_PROCESS_ID", "another")
    monkeypatch.setattr(crash_marker, "boot_id", lambda: "the next start")
    served.agent().check_for_update()
    assert outcome(plane) == ("1.1.0", ())
    monkeypatch.setattr(crash_marker, "_PROCESS_ID", "and another")
    served.agent().check_for_update()
    assert outcome(plane) == ("1.1.0", ("crash",))


def test_a_device_that_has_no_model_cannot_crash_by_it(
    world: World, plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined(world, plane)
    world.publish("1.0.0", 1.0)
    world.start("1.0.0", min_battery_level=0.5)
    world.agent(read_battery=lambda: 0.1).check_for_update()
    monkeypatch.setattr(crash_marker, "_PROCESS_ID", "another")
    world.agent(read_battery=lambda: 0.1).check_for_update()
    assert outcome(plane) == ("1.0.0", ())


# Disks and power


class Faulty(FileSystem):
    """A disk that fails or cuts the power at its n-th operation, for files of the control plane alone."""

    mine = ("stages.json", "server.json", "running.json")

    def __init__(self, after: int, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.after, self.error = after, error

    def _count(self, path: Path) -> None:
        if any(name in path.name for name in self.mine):
            self.after -= 1
            if self.after < 0:
                raise self.error(28, "No space left on device")

    def write_in_place(self, path: Path, content: bytes) -> None:
        self._count(path)
        super().write_in_place(path, content)

    def rename(self, path: Path, to: Path) -> None:
        self._count(path)
        super().rename(path, to)

    def remove(self, path: Path) -> None:
        self._count(path)
        super().remove(path)


@pytest.mark.parametrize("after", range(6))
def test_a_power_cut_anywhere_in_telling_harms_neither_model_nor_record(
    served: World, plane: Plane, after: int
) -> None:
    newer(served, change=too_fast)
    for _ in range(2):
        served.agent().check_for_update()
        served.clock.turn(hours=1)
    with pytest.raises(KeyboardInterrupt):
        served.agent(files=Faulty(after)).check_for_update()
    agent = served.agent()
    assert answer(agent) == 1.0
    agent.check_for_update()
    agent.check_for_update()
    assert (agent.journal_record.state, answer(agent)) == (UpdateLifecycleState.IDLE, 1.0)
    assert outcome(plane) == ("1.1.0", ("budget_breach",))
    assert agent.status()["server"]["last_error"] is None


def test_a_full_disk_stops_neither_updates_nor_reports(served: World, plane: Plane) -> None:
    newer(served)
    agent = served.agent(files=Faulty(0, OSError))
    agent.check_for_update()
    assert answer(agent) == 2.0
    assert outcome(plane) == ("1.1.0", ())
    failed(agent, 5)
    agent.check_for_update()
    assert outcome(plane) == ("1.1.0", ("crash",))


def test_a_device_whose_check_fails_is_heard_all_the_same(
    served: World, plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("something nobody thought of")

    agent = served.agent()
    before = len(plane.told)
    monkeypatch.setattr(Updater, "repair_all", broken)
    with pytest.raises(RuntimeError):
        agent.check_for_update()
    assert len(plane.told) == before + 1


# Whatever a control plane does


def endless(handler: Any) -> None:
    handler.send_response(200)
    handler.end_headers()
    for _ in range(1000):
        handler.wfile.write(b"{" * 4096)


def dripping(handler: Any) -> None:
    handler.send_response(200)
    handler.end_headers()
    for _ in range(40):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.05)


def hung(handler: Any) -> None:
    time.sleep(2)


def gone(handler: Any) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)


PROBLEM = msgspec.json.encode(ErrorResponse("E", "go away\x1b[2J", ""))
ATTACKS: dict[str, tuple[Reply, str]] = {
    "oversized": (reply(200, b'{"at":1.0,"job":false}' + b" " * 100_000), "more than 65536 bytes"),
    "endless": (endless, "more than 65536 bytes"),
    "dripping": (dripping, "too slow"),
    "hung": (hung, "cannot be reached"),
    "gone": (gone, "cannot be reached"),
    "a redirect": (reply(302, b"", Location="http://127.0.0.1:1/"), "answered 302"),
    "a page": (reply(200, b"<html>"), "none of its answers"),
    "a bomb": (reply(200, b"\x1f\x8b" + b"\0" * 1000, Content_Encoding="gzip"), "none of its answers"),
    "deep": (reply(500, b'{"x":' + b"[" * 30_000), "answered 500"),
    "another record": (reply(200, b'{"device_id":"x"}'), "none of its answers"),
    "a clock that is none": (reply(200, b'{"at":"soon"}'), "none of its answers"),
    "retired": (reply(403, PROBLEM), "refuses (403): go away[2J"),
    "too busy": (reply(503, PROBLEM), "refuses (503)"),
    "corrupt_releases": (reply(500, b""), "answered 500"),
    "an empty answer": (reply(204, b""), "answered 204"),
}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporter, "_TIMEOUT_SECONDS", 0.5)
    ask = control_plane_client.ControlPlaneClient.request
    monkeypatch.setattr(
        control_plane_client.ControlPlaneClient, "request", lambda *given: ask(*given, timeout_seconds=0.5)
    )


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.usefixtures("impatient")
def test_whatever_a_control_plane_answers_updates_go_on(served: World, plane: Plane, attack: str) -> None:
    plane.replies["/device/check-in"], why = ATTACKS[attack]
    told = len(plane.told)
    newer(served)
    agent = served.agent()
    reached = agent.status()["server"]["last_success_at"]
    agent.check_for_update()
    assert (agent.status()["state"], answer(agent)) == ("probation", 2.0)
    assert agent.journal_record.last_refusal is None
    server = agent.status()["server"]
    assert why in server["last_error"]
    assert server["last_success_at"] == reached
    assert not agent.has_waiting_job
    assert len(plane.told) == told
    plane.replies.clear()
    served.clock.turn(hours=1)
    agent.check_for_update()
    server = agent.status()["server"]
    assert (server["last_error"], parse_iso8601(server["last_success_at"])) == (None, served.clock())
    assert outcome(plane) == ("1.1.0", ())


@pytest.mark.usefixtures("impatient")
def test_a_control_plane_that_is_away_is_tried_again(served: World, plane: Plane) -> None:
    sock = socket.create_server(("127.0.0.1", 0))
    path = served.path / "device/settings.json"
    settings = msgspec.json.decode(path.read_bytes())
    sock.close()
    away = f"http://127.0.0.1:{sock.getsockname()[1] if sock.fileno() >= 0 else 9}/"
    path.write_bytes(msgspec.json.encode(settings | {"server_url": away}))
    newer(served)
    agent = served.agent()
    agent.check_for_update()
    assert answer(agent) == 2.0
    assert "cannot be reached" in agent.status()["server"]["last_error"]


def test_another_fleets_control_plane_believes_nothing(served: World, plane: Plane) -> None:
    with planes(served.clock, audience="fleet-2", known=plane.known) as other:
        path = served.path / "device/settings.json"
        settings = msgspec.json.decode(path.read_bytes())
        path.write_bytes(msgspec.json.encode(settings | {"server_url": other.url}))
        agent = served.agent()
        agent.check_for_update()
        assert (other.told, other.requests) == ([], 1)
        assert "it was signed for something else" in agent.status()["server"]["last_error"]


def test_what_was_overheard_counts_once_and_unchanged(
    served: World, plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    proofs: list[tuple[str, bytes]] = []
    sign = DeviceKey.sign

    def noting(self: DeviceKey, audience: str, method: str, path: str, body: bytes, **more: Any) -> str:
        proofs.append((sign(self, audience, method, path, body, **more), body))
        return proofs[-1][0]

    monkeypatch.setattr(DeviceKey, "sign", noting)
    served.agent().check_for_update()
    ((proof, body),) = proofs
    assert plane.check_in(proof, "/device/check-in", body)[0] == 401
    served.agent().check_for_update()
    proof, body = proofs[-1]
    plane._believed._seen.clear()
    assert plane.check_in(proof, "/device/check-in", body + b" ")[0] == 401
    assert plane.check_in(proof, "/device/job", body)[0] == 401


def test_a_slow_control_plane_holds_neither_answers_nor_a_return_up(
    served: World, plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer(served)
    entered, go_on = threading.Event(), threading.Event()

    def slow(handler: Any) -> None:
        entered.set()
        go_on.wait(20)
        reply(503, b"")(handler)

    plane.replies["/device/check-in"] = slow
    agent = served.agent()
    checking = threading.Thread(target=agent.check_for_update)
    checking.start()
    assert entered.wait(20)
    assert answer(agent) == 2.0
    agent.roll_back()
    assert answer(agent) == 1.0
    assert checking.is_alive()
    go_on.set()
    checking.join()


def test_what_the_repository_does_not_give_is_told_too(served: World, plane: Plane) -> None:
    newer(served)
    agent = served.agent()
    agent.check_for_update()
    served.clock.turn(minutes=30)
    served.served["metadata/timestamp.json"] = None
    again = served.agent()
    again.check_for_update()
    refusal = plane.last.status.refusal
    assert refusal is not None
    assert refusal.code == "missing"
    assert plane.last.outcome is not None
    assert (plane.last.outcome.arm, plane.last.outcome.age_seconds) == ("1.1.0", 1800)


# Jobs, and what the owner sees


@pytest.mark.parametrize("bench", [True, False])
def test_a_job_that_waits_is_done_by_a_bench_alone(world: World, plane: Plane, bench: bool) -> None:
    joined(world, plane, profiling=bench)
    agent, done = world.agent(), list[bool]()
    agent.run_profiling_jobs = lambda: done.append(agent.is_owner)
    agent.check_for_update()
    assert (done, agent.has_waiting_job, agent.is_awaited) == ([], False, False)
    plane.job = True
    agent.check_for_update()
    assert agent.has_waiting_job
    assert (done, agent.is_awaited) == (([True], True) if bench else ([], False))
    plane.job = False
    agent.check_for_update()
    assert (agent.has_waiting_job, agent.is_awaited) == (False, False)


def test_a_job_that_fails_harms_no_update(served: World, plane: Plane) -> None:
    path = served.path / "device/settings.json"
    path.write_bytes(msgspec.json.encode(msgspec.json.decode(path.read_bytes()) | {"profiling": True}))
    plane.job = True
    newer(served)
    agent = served.agent()

    def broken() -> None:
        raise ZeroDivisionError("a profile of nothing")

    agent.run_profiling_jobs = broken
    agent.check_for_update()
    assert answer(agent) == 2.0
    assert "a profile of nothing" in agent.status()["server"]["last_error"]


def test_a_device_shows_when_it_was_last_heard(
    served: World, plane: Plane, capsys: pytest.CaptureFixture[str]
) -> None:
    served.agent().check_for_update()
    at = served.clock().isoformat()
    state = str(served.path / "device")
    assert main(["device", "status", "--state", state]) == 0
    assert f"{plane.url} was reached {at}" in capsys.readouterr().out
    served.clock.turn(hours=1)
    plane.replies["/device/check-in"] = reply(503, b"")
    served.agent().check_for_update()
    assert main(["device", "status", "--state", state, "--json"]) == 0
    server = msgspec.json.decode(capsys.readouterr().out)["server"]
    assert server["last_success_at"] == at
    assert "answered 503" in server["last_error"]


def test_who_only_looks_tells_nobody(served: World, plane: Plane) -> None:
    told = plane.requests
    first = served.agent()
    served.agents.pop("device")
    second = Agent(served.path / "device")
    assert second.check_in() is False
    assert Agent(served.path / "device", serves_model=False).check_in() is False
    assert plane.requests == told
    assert first.is_owner
    first.close()
    second.close()
    assert first.check_in() is False


def test_a_process_that_ends_as_it_should_leaves_no_mark(served: World) -> None:
    state = served.path / "device"
    agent = served.agent()
    assert "running.json" in held(state)
    agent.close()
    assert "running.json" not in held(state)
    assert "stages.json" in held(state)
