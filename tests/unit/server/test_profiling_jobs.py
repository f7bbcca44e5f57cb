"""A bench device measures, through a real server over a real store, and whatever happens the client is told."""

import contextlib
import datetime
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgewright.cli.main import main
from edgewright.contract.config.fleet import FleetConfig
from edgewright.contract.errors import CandidateError, InputError, TargetError
from edgewright.device.control_plane_client import ControlPlaneClient, ServerUnavailableError, send_http
from edgewright.profiling import bench_target, job_runner
from edgewright.profiling.bench_target import ProfilingDeviceTarget, checked_server_url
from edgewright.profiling.job_archive import pack_job
from edgewright.profiling.job_runner import JobOutcome, WorkerLimits, run_jobs
from edgewright.profiling.latency import Workload, measure_latency
from edgewright.profiling.target import LocalTarget, open_target, query_machine
from edgewright.profiling.workload import pack_workloads
from edgewright.runtime.options import RuntimeOptions
from edgewright.server import profiling_jobs
from edgewright.server.access_control import UserRole
from edgewright.server.app import create_app
from edgewright.server.process import free_port, run_server
from edgewright.server.services import Services
from edgewright.server.store.store import create_store
from edgewright.trust.client.fetcher import open_pool
from edgewright.trust.keys import signing_keys
from edgewright.trust.keys.device_identity import DeviceKey
from edgewright.trust.storage.storage import LocalStorage

_AUDIENCE = "fleet"
pytestmark = pytest.mark.filterwarnings("ignore::litestar.exceptions.LitestarDeprecationWarning")


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _no_repository() -> Any:
    raise AssertionError("jobs need no repository")


@dataclass
class Clock:
    """The server's, which tests may set ahead."""

    ahead_seconds: float = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_seconds


@dataclass
class World:
    """A control plane on a port of this machine, as far as bench devices need it.

    Attributes:
        services: What it works with.
        clock: Its clock.
        url: Its address.
        token: Of an operator.
    """

    services: Services
    clock: Clock
    url: str = ""
    token: str = ""

    def enrol(self, *, marked: bool = True, **labels: str) -> DeviceKey:
        key = DeviceKey(Ed25519PrivateKey.generate())
        devices = self.services.store.devices
        token = devices.create_enrolment_token(
            "camera", created_by="user:ann", now=0.0, lifetime_seconds=60.0, labels=labels, profiling=marked
        )
        devices.enrol(token, key.public, now=1.0)
        return key

    def door(self, key: DeviceKey) -> ControlPlaneClient:
        return ControlPlaneClient(self.url, _AUDIENCE, key, open_pool(20.0), _now)

    def state(self, name: str) -> str:
        job = self.services.store.jobs.get(name)
        assert job is not None
        return job.state

    def result(self, name: str) -> bytes:
        job = self.services.store.jobs.get(name)
        assert job is not None
        return job.result or b""

    def states(self) -> list[str]:
        return [job.state for job in self.services.store.jobs.all()]


class _Acts:
    """As much of what operators may do as jobs need."""

    def __init__(self, services: Services) -> None:
        self.services = services

    def create_job(self, who: str, device: str, body: bytes) -> str:
        return profiling_jobs.create_profiling_job(self.services, who, device, "profile", body)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    store = create_store(f"sqlite:///{tmp_path / 'fleet.db'}")
    clock = Clock()
    services = Services(
        store, _AUDIENCE, _no_repository, LocalStorage(tmp_path / "repo"), None, FleetConfig(), clock
    )
    made = World(services, clock)
    made.token = store.accounts.add_token(
        "ci", UserRole.OPERATOR, created_by="user:ann", now=0.0, lifetime_seconds=1e12
    )
    port = free_port("127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{port}/"
    monkeypatch.setenv("EDGEWRIGHT_SERVER", made.url)
    monkeypatch.setenv("EDGEWRIGHT_API_TOKEN", made.token)
    app = create_app(services, cast(Any, _Acts(services)))
    ended, ready = threading.Event(), threading.Event()
    options = {"ended": ended, "ready": ready.set}
    thread = threading.Thread(target=run_server, args=(app, "127.0.0.1", port), kwargs=options)
    thread.start()
    assert ready.wait(20)
    yield made
    ended.set()
    thread.join(30)
    assert not thread.is_alive()
    store.close()


@contextlib.contextmanager
def _at_work(world: World, key: DeviceKey, grant: WorkerLimits | None = None) -> Iterator[list[str]]:
    """Have a device do jobs; yields what it tells."""
    ended = threading.Event()
    told: list[str] = []
    options: dict[str, Any] = {"report": told.append, "max_pause_seconds": 0.2, "limits": grant}
    thread = threading.Thread(target=run_jobs, args=(world.door(key), ended), kwargs=options)
    thread.start()
    try:
        yield told
    finally:
        ended.set()
        thread.join(timeout=60)
        assert not thread.is_alive()


@pytest.fixture
def subject(digits_model: Path, digits: dict[str, Any]) -> Workload:
    return Workload("digits", digits_model, RuntimeOptions(), {"image": digits["x"][:1].astype(np.float32)})


def test_a_real_model_is_measured_on_the_device_that_was_named(world: World, subject: Workload) -> None:
    named, other = world.enrol(name="camera-7"), world.enrol(name="camera-8")
    with _at_work(world, named) as told, _at_work(world, other) as idle:
        target = open_target("bench:camera-7")
        (latency,) = measure_latency(target, [subject], seconds=0.5)
    assert not isinstance(latency, CandidateError)
    assert 0 < latency.p50.value < 1
    assert latency.p50.origin.machine == query_machine(LocalTarget()).summary
    assert target.name == "bench:camera-7"
    assert idle == []
    assert sum("bytes" in line for line in told) == 1
    assert world.states() == ["done"]
    (entry,) = world.services.store.audit.entries()
    assert (entry.actor, entry.action) == ("token:ci", "add job")


def test_the_same_job_gives_here_and_there_a_reply_of_one_form(world: World, subject: Workload) -> None:
    key = world.enrol()
    device = world.services.store.devices.list_devices()[0].id
    with _at_work(world, key), pack_workloads([subject]) as bundle:
        request = {"action": "memory", "workloads": bundle.workloads}
        here = LocalTarget().run(request, bundle.files, timeout_seconds=60)
        there = open_target(f"bench:{device[:6]}").run(request, bundle.files, timeout_seconds=60)
    assert there["machine"] == here["machine"]
    assert there.keys() == here.keys()
    assert there["peak"] == pytest.approx(here["peak"], rel=0.5)


@pytest.mark.slow
def test_the_command_profiles_on_a_bench_device(
    world: World, digits_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with _at_work(world, world.enrol(name="camera-7")):
        arguments = ["profile", str(digits_model), "--on", "bench:camera-7", "--seconds", "0.5", "--json"]
        assert main(arguments) == 0
    profile = json.loads(capsys.readouterr().out)
    assert profile["target"] == "bench:camera-7"
    assert profile["model"]["latency_p50_ms"]["origin"]["machine"] == query_machine(LocalTarget()).summary
    assert set(world.states()) == {"done"}


@pytest.mark.slow
def test_the_command_compresses_for_a_bench_device(
    world: World,
    digits_model: Path,
    digits: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("EDGEWRIGHT_STATE", str(tmp_path / "looks"))
    np.savez(tmp_path / "test.npz", **cast(Any, digits))
    given = ["--data", str(tmp_path / "test.npz"), "--out", str(tmp_path / "out"), "--trials", "1"]
    with _at_work(world, world.enrol(name="camera-7")):
        found = main(
            ["compress", str(digits_model), *given, "--on", "bench:camera-7", "--time-limit", "2", "--json"]
        )
    report = json.loads(capsys.readouterr().out)
    assert found in (0, 1)
    assert report["machine"]["cpu"] == query_machine(LocalTarget()).cpu
    assert set(world.states()) == {"done"}


@pytest.mark.parametrize("missing", ["EDGEWRIGHT_SERVER", "EDGEWRIGHT_API_TOKEN"])
def test_what_is_not_set_is_named(
    missing: str,
    world: World,
    digits_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv(missing)
    assert main(["profile", str(digits_model), "--on", "bench:camera-7", "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "invalid_input"
    assert f"{missing} is not set" in error["message"]
    assert "EDGEWRIGHT_API_TOKEN" in error["remedy"]
    assert world.states() == []


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://fleet.example", "without encryption"),
        ("http://127.0.0.1.example", "without encryption"),
        ("ftp://fleet.example", "no address"),
        ("https://ann:secret@fleet.example", "no address"),
        ("https://fleet.example/?a", "no address"),
        ("https://fleet.example:port", "no address"),
        ("fleet.example", "no address"),
    ],
)
def test_the_token_goes_nowhere_that_others_read_along(url: str, why: str) -> None:
    with pytest.raises(InputError, match=why):
        checked_server_url(url)


def test_a_token_that_may_not_run_jobs_runs_none(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.enrol(name="camera-7")
    people = world.services.store.accounts
    viewer = people.add_token("looks", UserRole.VIEWER, created_by="user:ann", now=0.0, lifetime_seconds=1e12)
    for token in (viewer, "ew_token_none", "two\nlines"):
        monkeypatch.setenv("EDGEWRIGHT_API_TOKEN", token)
        with pytest.raises(InputError) as told:
            query_machine(open_target("bench:camera-7"))
        assert token not in str(told.value)
    assert world.states() == []


def test_a_device_is_found_by_id_label_and_digits_and_only_if_it_is_a_bench(world: World) -> None:
    for _ in range(30):
        world.enrol(marked=False)
    key = world.enrol(name="camera-7")
    del key
    (marked,) = world.services.store.devices.list_devices(profiling=True)
    plain = world.services.store.devices.list_devices(profiling=False)[0].id
    for name in (marked.id, "camera-7", marked.id[:6], marked.id[:31]):
        assert profiling_jobs.find_profiling_device(world.services, name) == marked.id
    for name in (plain, plain[:8], marked.id[:5], "camera-8", "0" * 32, marked.id + "0"):
        with pytest.raises(InputError, match=r"no bench device|takes no jobs"):
            profiling_jobs.find_profiling_device(world.services, name)
    for name in ("", "../x", "a b", "%"):
        with pytest.raises(InputError):
            profiling_jobs.find_profiling_device(world.services, name)
    world.enrol(name="camera-7")
    with pytest.raises(InputError, match="more than one"):
        profiling_jobs.find_profiling_device(world.services, "camera-7")
    world.services.store.devices.retire(marked.id, now=5.0)
    with pytest.raises(InputError, match="takes no jobs"):
        profiling_jobs.find_profiling_device(world.services, marked.id)


def test_a_device_that_is_no_bench_any_more_gets_nothing(world: World) -> None:
    key = world.enrol(name="camera-7")
    (device,) = world.services.store.devices.list_devices()
    job = pack_job({"action": "machine"}, {}, timeout_seconds=1.0, expires_after_seconds=1e6)
    profiling_jobs.create_profiling_job(world.services, "user:ann", "camera-7", "profile", job)
    world.services.store.devices.set_profiling(device.id, profiling=False)
    assert job_runner._fetch_job(world.door(key)) is None
    world.services.store.devices.set_profiling(device.id, profiling=True)
    assert job_runner._fetch_job(world.door(key)) is not None


def test_the_failure_of_a_model_is_the_models(world: World, tmp_path: Path, subject: Workload) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(subject.model.read_bytes().replace(b"Conv", b"Vonc"))
    with _at_work(world, world.enrol(name="camera-7")), pack_workloads([subject]) as bundle:
        request = {"action": "probe", "workloads": bundle.workloads}
        target = open_target("bench:camera-7")
        with pytest.raises(CandidateError, match=r"^bench:camera-7: .*Vonc"):
            target.run(request, bundle.files | {"0/model.onnx": broken}, timeout_seconds=60)
        target.run(request, bundle.files, timeout_seconds=60)  # and the device goes on
    assert sorted(world.states()) == ["done", "failed"]


def test_a_device_that_dies_gets_the_job_again_and_the_third_death_is_told(
    world: World, subject: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = world.enrol(name="camera-7")
    raised: list[BaseException] = []

    def ask() -> None:
        try:
            query_machine(open_target("bench:camera-7"))
        except TargetError as error:
            raised.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    names = []
    for _ in range(3):
        until = time.monotonic() + 20
        while (found := job_runner._fetch_job(world.door(key))) is None and time.monotonic() < until:
            time.sleep(0.05)
        assert found is not None
        names.append(found[0])
        # Its power is cut here. While it starts again, the lease ends.
        assert job_runner._fetch_job(world.door(key)) is None
        world.clock.ahead_seconds += 20.0
    assert len(set(names)) == 1
    assert job_runner._fetch_job(world.door(key)) is None
    asking.join(timeout=20)
    assert "bench:camera-7: the device took the job 3 times and never answered" in str(raised[0])
    (job,) = world.services.store.jobs.all()
    assert (job.state, job.attempts, job.request) == ("failed", 3, b"")
    assert job_runner._send_outcome(world.door(key), names[0], JobOutcome(True, b"{}"))
    assert world.states() == ["failed"]  # an answer from the grave changes nothing


def test_a_device_that_dies_once_is_not_noticed(
    world: World, subject: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = world.enrol(name="camera-7")
    monkeypatch.setattr(profiling_jobs, "_LEASE_SECONDS", 0.3)
    real = job_runner.run_job

    def die(body: bytes, grant: WorkerLimits) -> JobOutcome:
        monkeypatch.setattr(job_runner, "run_job", real)
        raise SystemExit

    monkeypatch.setattr(job_runner, "run_job", die)
    found: list[object] = []
    asking = threading.Thread(target=lambda: found.append(query_machine(open_target("bench:camera-7"))))
    asking.start()
    with contextlib.suppress(SystemExit):
        run_jobs(world.door(key), threading.Event(), max_pause_seconds=0.1)
    with _at_work(world, key):
        asking.join(timeout=30)
    assert found == [query_machine(LocalTarget())]
    (job,) = world.services.store.jobs.all()
    assert (job.state, job.attempts) == ("done", 2)


def test_a_job_that_nobody_takes_is_given_up_and_not_run_later(world: World) -> None:
    key = world.enrol(name="camera-7")
    with pytest.raises(TargetError, match="did not take the job within 1 s"):
        ProfilingDeviceTarget("bench:camera-7", "camera-7", offline_timeout_seconds=0.6).run(
            {"action": "machine"}, {}, timeout_seconds=5
        )
    assert world.states() == ["failed"]
    assert job_runner._fetch_job(world.door(key)) is None


def test_a_job_that_is_taken_and_never_answered_is_given_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    key = world.enrol(name="camera-7")
    monkeypatch.setattr(bench_target, "_TRANSFER_MARGIN_SECONDS", 0.2)
    taken: list[object] = []

    def take() -> None:
        while not taken:
            if (found := job_runner._fetch_job(world.door(key))) is not None:
                taken.append(found)

    taking = threading.Thread(target=take)
    taking.start()
    with pytest.raises(TargetError, match="did not answer within 1 s"):
        open_target("bench:camera-7").run({"action": "machine"}, {}, timeout_seconds=0.6)
    taking.join()
    assert world.states() == ["failed"]


def test_an_interrupt_cancels_the_job(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    key = world.enrol(name="camera-7")

    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        query_machine(open_target("bench:camera-7"))
    monkeypatch.undo()
    assert world.states() == ["failed"]
    assert job_runner._fetch_job(world.door(key)) is None
    assert [entry.action for entry in world.services.store.audit.entries()] == ["cancel job", "add job"]


def test_a_job_whose_maker_was_killed_expires(world: World) -> None:
    key = world.enrol(name="camera-7")
    job = pack_job({"action": "machine"}, {}, timeout_seconds=10.0, expires_after_seconds=100.0)
    late, soon = (
        profiling_jobs.create_profiling_job(world.services, "user:ann", "camera-7", "profile", job)
        for _ in range(2)
    )
    world.clock.ahead_seconds = 99.0
    assert job_runner._fetch_job(world.door(key)) is not None
    world.clock.ahead_seconds = 200.0
    assert job_runner._fetch_job(world.door(key)) is None
    assert {world.state(name) for name in (late, soon)} == {"failed"}
    assert b"nobody waits" in world.result(soon)


def test_a_server_that_is_away_for_a_moment_costs_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    fails = iter(range(3))

    def sometimes(*given: Any, **more: Any) -> Any:
        if more["method"] == "GET" and next(fails, None) is not None:
            raise ServerUnavailableError("it is away", remedy="Wait.")
        return send_http(*given, **more)

    monkeypatch.setattr(bench_target, "send_http", sometimes)
    with _at_work(world, world.enrol(name="camera-7")):
        assert query_machine(open_target("bench:camera-7")).cores >= 1
    assert next(fails, None) is None


def test_a_server_that_is_gone_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEWRIGHT_SERVER", "http://127.0.0.1:1")
    monkeypatch.setenv("EDGEWRIGHT_API_TOKEN", "token")
    with pytest.raises(TargetError, match="cannot be reached"):
        query_machine(open_target("bench:camera-7"))


def test_others_neither_take_nor_answer_a_devices_job(world: World) -> None:
    world.enrol(name="camera-7")
    other = world.enrol(name="camera-8")
    job = pack_job({"action": "machine"}, {}, timeout_seconds=10.0, expires_after_seconds=100.0)
    name = profiling_jobs.create_profiling_job(world.services, "user:ann", "camera-7", "profile", job)
    assert job_runner._fetch_job(world.door(other)) is None
    job_runner._send_outcome(world.door(other), name, JobOutcome(True, b"{}"))
    assert world.state(name) == "waiting"
    stranger = DeviceKey(Ed25519PrivateKey.generate())
    with pytest.raises(TargetError, match="status 401"):
        job_runner._fetch_job(world.door(stranger))
    elsewhere = ControlPlaneClient(world.url, "another fleet", other, open_pool(20.0), _now)
    with pytest.raises(TargetError, match="status 401"):
        job_runner._fetch_job(elsewhere)


def test_what_is_no_job_is_not_kept_and_no_more_wait_than_may(world: World) -> None:
    world.enrol(name="camera-7")
    with pytest.raises(InputError, match="no job"):
        profiling_jobs.create_profiling_job(world.services, "user:ann", "camera-7", "profile", b"rm -rf /")
    job = pack_job({"action": "machine"}, {}, timeout_seconds=10.0, expires_after_seconds=100.0)
    with pytest.raises(InputError, match="no job 'shell'"):
        profiling_jobs.create_profiling_job(world.services, "user:ann", "camera-7", "shell", job)
    for _ in range(32):
        profiling_jobs.create_profiling_job(world.services, "user:ann", "camera-7", "profile", job)
    with pytest.raises(InputError, match="32 jobs wait"):
        profiling_jobs.create_profiling_job(world.services, "user:ann", "camera-7", "profile", job)
    with pytest.raises(InputError, match="there is no job"):
        profiling_jobs.cancel_profiling_job(world.services, "user:ann", "0" * 16)


@pytest.fixture
def enrolled(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The state of a device that the control plane has enrolled as a bench, by the commands."""
    monkeypatch.setattr(signing_keys, "_SCRYPT_N", 2**4)
    monkeypatch.setenv("EDGEWRIGHT_PASSPHRASE", "correct horse battery staple")
    assert main(["keys", "init", "--keys", str(tmp_path / "keys"), "--repo", str(tmp_path / "repo")]) == 0
    invite = world.services.store.devices.create_enrolment_token
    labels = {"name": "camera-7"}
    token = invite("camera", created_by="user:ann", now=0.0, lifetime_seconds=1e12, labels=labels, profiling=True)
    state = tmp_path / "state"
    root = str(tmp_path / "repo/metadata/1.root.json")
    where = ["--server", world.url, "--token", token, "--root", root, "--state", str(state)]
    assert main(["device", "enrol", *where]) == 0
    return state


@contextlib.contextmanager
def _agent(state: Path, *options: str) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-m", "edgewright", "device", "run", "--state", str(state), *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.slow
def test_the_agent_takes_jobs_only_if_its_owner_said_so(
    world: World, enrolled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _agent(enrolled) as process:
        with pytest.raises(TargetError, match="did not take the job within 5 s"):
            ProfilingDeviceTarget("bench:camera-7", "camera-7", offline_timeout_seconds=5.0).run(
                {"action": "machine"}, {}, timeout_seconds=5
            )
        assert process.poll() is None
    with _agent(enrolled, "--bench") as process:
        assert query_machine(open_target("bench:camera-7")) == query_machine(LocalTarget())
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        told = process.stderr.read()
        assert process.wait(20) == 0
    assert re.search(r"^edgewright: job [0-9a-f]{16}: done$", told, re.MULTILINE)


def test_jobs_need_a_control_plane_and_an_agent_that_stays(
    world: World, enrolled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["device", "run", "--bench", "--once", "--state", str(enrolled)]) == 2
    assert "Leave --once out" in capsys.readouterr().err
    root = str(tmp_path / "repo/metadata/1.root.json")
    alone = str(tmp_path / "alone")
    assert main(["device", "enrol", "--repo", world.url, "--root", root, "--state", alone]) == 0
    assert main(["device", "run", "--bench", "--state", alone]) == 2
    assert "knows no control plane" in capsys.readouterr().err
