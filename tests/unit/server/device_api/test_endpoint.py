"""Devices and those who pretend to be one: what is believed, what is kept, what is sent away, and how."""

import asyncio
import base64
import gzip
import json
import os
import resource
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tests.unit.server.live_server import CONTENT, Answer, Machine, Plant, enrolling, work

from edgewright.contract.api.device_api import JOB, PROOF, CheckInRequest
from edgewright.contract.api.device_status import DeviceStatus, StageOutcome
from edgewright.contract.config.fleet import FleetConfig
from edgewright.contract.errors import OutputError, WorkError
from edgewright.privacy.aggregation_handler import AggregationService
from edgewright.server.access_control import secret_hash
from edgewright.server.device_api import asgi, endpoint
from edgewright.server.store.database import DatabaseUnavailableError
from edgewright.trust.storage.storage import LocalStorage

CHECK_IN = "/device/check-in"
BODY = msgspec.json.encode(CheckInRequest(DeviceStatus()))
OUTCOME = StageOutcome("r", 0, "1.0.0", age_seconds=FleetConfig().monitoring.outcome_age_seconds)


def outcomes(plant: Plant, rollout: str = "m/default/r") -> list[str]:
    return [device for device, *_ in plant.services.store.outcomes.for_stage(rollout, 0)]


# Enrolment


def test_a_token_enrols_one_device_and_the_same_one_again(plant: Plant) -> None:
    token = plant.operate("POST", "/api/invitations", {"device_class": "camera", "labels": {"site": "b"}}).said
    first, second = Machine(plant), Machine(plant)
    _, enrolled = enrolling(plant, first, token["secrets"][0])
    assert enrolled is not None
    assert (enrolled.device_class, enrolled.labels, enrolled.audience) == (
        "camera",
        {"site": "b"},
        plant.services.audience,
    )
    _, same = enrolling(plant, first, token["secrets"][0])
    assert same == enrolled
    refused, _ = enrolling(plant, second, token["secrets"][0])
    assert (refused.status, refused.problem.code) == (403, "unauthenticated")
    assert "used already" in refused.problem.message
    assert first.check_in().status == 200
    assert second.check_in().status == 401


def test_an_enrolment_is_audited_without_its_token(plant: Plant) -> None:
    token = plant.operate("POST", "/api/invitations", {}).said["secrets"][0]
    enrolling(plant, Machine(plant), token)
    (entry,) = [one for one in plant.services.store.audit.entries() if one.action == "enrol"]
    assert token not in msgspec.json.encode(entry).decode()
    assert json.loads(bytes(entry.detail)) == {"token": secret_hash(token)[:12]}


@pytest.mark.parametrize("token", ["ew_invitation_" + "A" * 43, "' OR 1=1 --", "\u0000", "x" * 200])
def test_no_other_token_enrols(standing: Plant, token: str) -> None:
    answer, _ = enrolling(standing, Machine(standing), token)
    assert answer.status == 403


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b'{"token":"t","public_key":"00"}',
        b'{"token":"","public_key":"' + b"0" * 64 + b'"}',
        b'{"token":"t","public_key":"' + b"G" * 64 + b'"}',
        b'{"token":"t","public_key":"' + b"0" * 64 + b'","profiling":true}',
        b'{"token":"\xff","public_key":"' + b"0" * 64 + b'"}',
        b'{"token":"\\ud800","public_key":"' + b"0" * 64 + b'"}',
        b"[" * 30_000,
        b'{"a":' * 6_000,
    ],
)
def test_what_is_no_enrolment_is_refused_with_words(standing: Plant, body: bytes) -> None:
    answer = standing.post("/device/enrol", body)
    assert answer.status == 400
    assert answer.problem.remedy


def test_one_address_enrols_no_more_than_so_many_devices_at_once(plant: Plant) -> None:
    statuses = [plant.post("/device/enrol", b"{}", client="192.0.2.1").status for _ in range(70)]
    assert statuses[:60] == [400] * 60
    assert statuses[-1] == 429
    assert plant.post("/device/enrol", b"{}", client="192.0.2.2").status == 400


# Whom a request is from


def test_a_request_counts_once(plant: Plant) -> None:
    machine = plant.machine()
    headers = {PROOF: machine.proof(CHECK_IN, BODY)}
    assert [plant.post(CHECK_IN, BODY, headers).status for _ in range(3)] == [200, 409, 409]
    (hour,) = plant.services.store.check_ins.rollups(0, 4e9)
    assert hour.check_ins == 1


def test_a_replay_at_the_same_time_counts_once(plant: Plant) -> None:
    machine = plant.machine()
    headers = {PROOF: machine.proof(CHECK_IN, BODY)}

    async def many() -> list[Answer]:
        return await asyncio.gather(*(plant.asked("POST", CHECK_IN, BODY, headers) for _ in range(20)))

    statuses = sorted(answer.status for answer in plant.run(many()))
    assert statuses == [200] + [409] * 19


@pytest.mark.parametrize("path", ["/device/job", "/device/job/0123456789abcdef/done"])
def test_other_requests_count_once_too(plant: Plant, path: str) -> None:
    machine = plant.machine(profiling=True)
    headers = {PROOF: machine.proof(path, b"")}
    first, second = (plant.post(path, b"", headers) for _ in range(2))
    assert first.status in (204, 409)
    assert (second.status, second.problem.message) == (409, "the request was sent before")


@pytest.mark.parametrize(
    "other",
    [
        {"audience": "fleet:" + "0" * 32},
        {"path": "/device/job"},
        {"body": BODY + b" "},
        {"method": "PUT"},
        {"skew": timedelta(minutes=6)},
        {"skew": timedelta(minutes=-6)},
    ],
    ids=lambda other: next(iter(other)),
)
def test_a_proof_for_something_else_is_none(standing: Plant, other: dict[str, Any]) -> None:
    machine = standing.machine()
    given = {"path": CHECK_IN, "body": BODY} | other
    proof = machine.proof(given.pop("path"), given.pop("body"), **given)
    answer = standing.post(CHECK_IN, BODY, {PROOF: proof})
    assert (answer.status, answer.problem.code) == (401, "unauthenticated")
    assert answer.problem.remedy


@pytest.mark.parametrize("minutes", [-4, 0, 4])
def test_a_clock_that_is_a_little_off_does_no_harm(standing: Plant, minutes: int) -> None:
    proof = standing.machine().proof(CHECK_IN, BODY, skew=timedelta(minutes=minutes))
    assert standing.post(CHECK_IN, BODY, {PROOF: proof}).status == 200


def _encoded(claims: Any) -> str:
    return base64.urlsafe_b64encode(claims if isinstance(claims, bytes) else json.dumps(claims).encode()).decode()


@pytest.mark.parametrize(
    "proof",
    [
        "",
        ".",
        "a.b.c",
        "\xff\xfe",
        "x" * 3000,
        _encoded({"device_id": "0" * 32}) + "." + _encoded(b"0" * 64),
        _encoded({"device_id": "' OR 1=1"}) + ".",
        _encoded({"device_id": "\u0000" * 32}) + ".",
        _encoded(b'{"device_id":"a","b":' + b"[" * 1400),
        _encoded(b"[" * 1400),
    ],
)
def test_nonsense_proves_nothing(standing: Plant, proof: str) -> None:
    answer = standing.post(CHECK_IN, BODY, {PROOF: proof})
    assert (answer.status, answer.problem.code) == (401, "unauthenticated")
    assert standing.post(CHECK_IN, BODY).status == 401


def test_a_proof_of_a_known_device_without_its_signature_is_none(standing: Plant) -> None:
    machine = standing.machine()
    content, _, signature = machine.proof(CHECK_IN, BODY).partition(".")
    flipped = base64.urlsafe_b64encode(bytes(64)).decode()
    other = standing.machine().proof(CHECK_IN, BODY).partition(".")[2]
    for wrong in (flipped, other, "", signature + ".x"):
        assert standing.post(CHECK_IN, BODY, {PROOF: f"{content}.{wrong}"}).status == 401


@pytest.fixture(scope="module")
def machine(standing: Plant) -> Machine:
    return standing.machine()


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 400), bit=st.integers(0, 7))
def test_no_proof_with_a_changed_bit_is_believed(standing: Plant, machine: Machine, at: int, bit: int) -> None:
    proof = bytearray(machine.proof(CHECK_IN, BODY).encode())
    place = at % len(proof)
    # The last letters of both parts have bits that say nothing, for bytes do not always fill them.
    assume(b"=" not in proof[place : place + 2] and place + 1 < len(proof))
    proof[place] ^= 1 << bit
    assert standing.post(CHECK_IN, BODY, {PROOF: proof.decode("latin-1")}).status == 401


def test_a_stranger_is_not_believed_and_nothing_of_it_is_read(standing: Plant) -> None:
    stranger = Machine(standing)

    async def never() -> dict[str, Any]:
        raise AssertionError("a stranger's body is not read")

    headers = {PROOF: stranger.proof(CHECK_IN, BODY)}
    assert standing.post(CHECK_IN, BODY, headers, receive=never).status == 401


def test_a_retired_device_is_believed_for_a_minute_at_most(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(at=1000.0)
    monkeypatch.setattr(endpoint, "time", SimpleNamespace(monotonic=lambda: clock.at))
    machine = plant.machine()
    assert machine.check_in().status == 200
    assert plant.operate("POST", f"/api/devices/{machine.id}/retire", {"reason": "sold"}).status == 200
    clock.at += 60.0
    answer = machine.check_in()
    assert (answer.status, answer.problem.code) == (401, "unauthenticated")


def test_a_device_that_is_enrolled_after_it_was_a_stranger_is_believed_at_once(plant: Plant) -> None:
    machine = Machine(plant)
    assert machine.check_in().status == 401
    machine.enrolled()
    assert machine.check_in().status == 200


def test_a_device_that_checks_in_all_the_time_is_sent_away_and_others_are_not(plant: Plant) -> None:
    machine, other = plant.machine(), plant.machine()
    answers = [machine.check_in() for _ in range(35)]
    assert [answer.status for answer in answers[:30]] == [200] * 30
    assert answers[-1].status == 429
    assert answers[-1].header("retry-after") == "60"
    assert other.check_in().status == 200


def test_requests_in_another_s_name_do_not_use_up_how_often_it_may_ask(standing: Plant) -> None:
    machine = standing.machine()
    content = machine.proof(CHECK_IN, BODY).partition(".")[0]
    for _ in range(50):
        assert standing.post(CHECK_IN, BODY, {PROOF: f"{content}.{_encoded(bytes(64))}"}).status == 401
    assert machine.check_in().status == 200


# Bodies


@pytest.mark.parametrize(
    ("path", "most"), [(CHECK_IN, 32 << 10), ("/device/enrol", 32 << 10), ("/device/job", 32 << 10)]
)
def test_too_large_a_body_is_refused_before_it_is_read(standing: Plant, path: str, most: int) -> None:
    async def never() -> dict[str, Any]:
        raise AssertionError("it is not read")

    headers = {PROOF: standing.machine().proof(path, b"")}
    answer = standing.post(path, b"", headers, told=most + 1, receive=never)
    assert (answer.status, answer.problem.code) == (413, "invalid_input")
    assert str(most) in answer.problem.message


@pytest.mark.parametrize("length", [b"", b"-1", b"1e3", b"0x10", b"1" * 40, b"\xb2", b"+5", b"5, 5"])
def test_a_body_whose_length_is_none_is_refused(standing: Plant, length: bytes) -> None:
    answer = standing.post("/device/enrol", b"", told=-1, raw=[(b"content-length", length)])
    assert answer.status == 411


def test_a_body_without_a_length_is_refused(standing: Plant) -> None:
    answer = standing.post("/device/enrol", b"{}", told=-1, raw=[(b"transfer-encoding", b"chunked")])
    assert (answer.status, answer.problem.remedy) == (411, "Tell it.")


@pytest.mark.parametrize("parts", [[b"{}"], [b"{", b"}"], [], [b"x" * 40], [b"x" * 10, b"x" * 30]])
def test_a_body_of_another_length_than_was_told_is_refused(standing: Plant, parts: list[bytes]) -> None:
    assert standing.post("/device/enrol", told=20, parts=parts).status == 400


def test_a_body_that_comes_in_pieces_is_put_together(standing: Plant) -> None:
    machine = standing.machine()
    answer = standing.post(
        CHECK_IN, BODY, {PROOF: machine.proof(CHECK_IN, BODY)}, parts=[BODY[:5], b"", BODY[5:9], BODY[9:]]
    )
    assert answer.status == 200


def test_a_slow_body_is_not_waited_for(standing: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "_BODY_SECONDS", 0.05)

    async def slow() -> dict[str, Any]:
        await asyncio.sleep(0.01)
        return {"type": "http.request", "body": b"x", "more_body": True}

    answer = standing.post("/device/enrol", told=30_000, receive=slow)
    assert (answer.status, answer.problem.message) == (408, "the request came too slowly")


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "identity, gzip"])
def test_compressed_bodies_are_not_opened(standing: Plant, coding: str) -> None:
    bomb = gzip.compress(bytes(10 << 20))
    headers = {PROOF: standing.machine().proof(CHECK_IN, bomb), "Content-Encoding": coding}
    assert standing.post(CHECK_IN, bomb, headers).status == 415


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"{}",
        b'{"status":{},"more":1}',
        b'{"status":{"state":"idle","voltage":3}}',
        b'{"status":{"state":"flying"}}',
        b'{"status":{"battery":NaN}}',
        b'{"status":{"battery":1e999}}',
        b'{"status":{"battery":2}}',
        b'{"status":{"battery":-0.1}}',
        b'{"status":{"latency_seconds":Infinity}}',
        b'{"status":{"latency_seconds":1e308}}',
        b'{"status":{"uptime_seconds":1e300}}',
        b'{"status":{"failures":-1}}',
        b'{"status":{"failures":9007199254740993}}',
        b'{"status":{"failures":' + b"9" * 5000 + b"}}",
        b'{"status":{"free_bytes":1.5}}',
        b'{"status":{"model":"../../etc"}}',
        b'{"status":{"model":"a\\u0000b"}}',
        b'{"status":{"version":"1; DROP TABLE devices"}}',
        b'{"status":{"checked":"yesterday"}}',
        b'{"status":{"failed":[' + b",".join([b'"' + b"0" * 64 + b'"'] * 33) + b"]}}",
        b'{"status":{"agent":"\xff\xfe"}}',
        b'{"status":{"agent":"\\ud800"}}',
        b'{"status":' + b'{"refusal":' * 2500,
        b'{"status":{"failed":' + b"[" * 20_000,
        b'{"x":' + b"[" * 20_000,
        b'{"status":{},"outcome":{"rollout":"r","stage":-1}}',
        b'{"status":{},"outcome":{"rollout":"r","stage":0,"failed":["made up"]}}',
        b'{"status":{},"outcome":{"rollout":"r","stage":0,"latency_seconds":1e300}}',
        b'{"status":{},"outcome":{"rollout":"r","stage":0,"age_seconds":NaN}}',
    ],
)
def test_what_no_device_could_say_is_refused_and_nothing_is_kept(standing: Plant, body: bytes) -> None:
    machine = standing.machine()
    answer = machine.post(CHECK_IN, body)
    assert (answer.status, answer.problem.code) == (400, "invalid_input")
    assert answer.problem.remedy
    assert standing.services.store.devices.get(machine.id).last_seen_at == 0  # type: ignore[union-attr]


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=300))
def test_no_bytes_break_the_door(standing: Plant, body: bytes) -> None:
    assert standing.post("/device/enrol", body, client=os.urandom(4).hex()).status == 400


# What is kept


def test_a_check_in_is_seen_at_once(plant: Plant) -> None:
    machine = plant.machine()
    answer = machine.check_in(DeviceStatus("m", "1.0.0", state="idle", battery_level=0.5), outcome=OUTCOME)
    assert answer.said == {"at": plant.services.now(), "job_waiting": False}
    shown = plant.operate("GET", f"/api/devices/{machine.id}", role="viewer").said
    assert (shown["status"]["version"], shown["last_seen_at"], shown["arm"]) == (
        "1.0.0",
        plant.services.now(),
        "1.0.0",
    )


def test_an_outcome_counts_from_its_age_on_and_once(plant: Plant) -> None:
    young, old = plant.machine(), plant.machine()
    young.check_in(outcome=msgspec.structs.replace(OUTCOME, age_seconds=OUTCOME.age_seconds - 1))
    old.check_in(outcome=OUTCOME)
    assert outcomes(plant) == [old.id]
    old.check_in(outcome=msgspec.structs.replace(OUTCOME, failed_metrics=("crash",)))
    ((_, _, _, kept),) = plant.services.store.outcomes.for_stage("m/default/r", 0)
    assert kept.failed_metrics == ()


@pytest.mark.parametrize(
    ("offered", "status", "rollout"),
    [
        ({}, DeviceStatus(), "other"),
        ({"device_class": "camera"}, DeviceStatus(), "r"),
        ({}, DeviceStatus("another", "1.0.0", state="idle"), "r"),
    ],
    ids=["rollout", "class", "model"],
)
def test_outcomes_of_rollouts_that_are_none_are_not_kept(
    plant: Plant, offered: dict[str, Any], status: DeviceStatus, rollout: str
) -> None:
    machine = plant.machine(**offered)
    outcome = msgspec.structs.replace(OUTCOME, rollout=rollout)
    assert machine.check_in(status, outcome=outcome).status == 200
    assert outcomes(plant) == []
    with plant.services.store.database.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM outcomes").scalar() == 0


def test_a_bench_device_gets_its_job_and_ends_it(plant: Plant, tmp_path: Path) -> None:
    machine = plant.machine(profiling=True)
    asked = work(tmp_path)
    job = plant.acting.create_job("user:ann", machine.id, asked)
    assert machine.check_in().said["job_waiting"] is True
    given = machine.post("/device/job")
    assert (given.status, given.content, given.header(JOB.lower())) == (200, asked, job)
    ended = machine.post(f"/device/job/{job}/done", b"\xffresult")
    assert (ended.status, ended.content, ended.header("content-length")) == (204, b"", None)
    assert machine.post(f"/device/job/{job}/failed", b"no").status == 409
    assert machine.post("/device/job").status == 204
    assert plant.operate("GET", f"/api/jobs/{job}/result").content == b"\xffresult"


def test_a_job_is_nobody_else_s(plant: Plant, tmp_path: Path) -> None:
    bench, other, plain = plant.machine(profiling=True), plant.machine(profiling=True), plant.machine()
    job = plant.acting.create_job("user:ann", bench.id, work(tmp_path))
    assert [machine.post("/device/job").status for machine in (other, plain)] == [204, 204]
    assert other.post(f"/device/job/{job}/done", b"forged").status == 409
    bench.post("/device/job")
    assert other.post(f"/device/job/{job}/done", b"forged").status == 409
    assert plant.services.store.jobs.get(job).state == "taken"  # type: ignore[union-attr]


# Away for a while


def test_while_the_database_is_away_devices_come_again_and_nothing_that_was_accepted_is_lost(
    put_up: Callable[..., Plant], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant = put_up()
    machines = [plant.machine() for _ in range(20)]
    known, new = machines[:10], machines[10:]
    for machine in known:
        assert machine.check_in().status == 200
    database = plant.services.store.database
    engine = database.engine
    away = SimpleNamespace(is_away=True)
    connect = type(engine).connect

    def gone(self: Any) -> Any:
        if away.is_away:
            from sqlalchemy.exc import OperationalError

            error = __import__("sqlite3").OperationalError("unable to open database file")
            error.sqlite_errorcode = __import__("sqlite3").SQLITE_CANTOPEN
            raise OperationalError("SELECT secret", {}, error)
        return connect(self)

    monkeypatch.setattr(type(engine), "connect", gone)
    monkeypatch.setattr(database, "timeout_seconds", 0.05)
    for machine in (known[0], new[0]):
        answer = machine.check_in(DeviceStatus("m", "1.0.0", state="idle"), outcome=OUTCOME)
        assert (answer.status, answer.header("retry-after")) == (503, "5")
        assert b"secret" not in answer.content
    for path in ("/device/job", "/device/enrol"):
        body = b"" if path == "/device/job" else msgspec.json.encode({"token": "t", "public_key": "0" * 64})
        assert known[0].post(path, body).status == 503
    assert plant.get("/repo/metadata/1.root.json").status == 200
    api = plant.operate("GET", "/api/fleet") if plant._tokens else plant.get("/healthz")
    assert api.status == 503
    assert api.problem.message == "the database does not answer"
    away.is_away = False
    for machine in machines:
        assert machine.check_in(DeviceStatus("m", "1.0.0", state="idle"), outcome=OUTCOME).status == 200
    assert sorted(outcomes(plant)) == sorted(machine.id for machine in machines)


def test_an_outcome_is_not_accepted_while_nobody_can_say_whether_its_rollout_exists(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = plant.machine()

    def away(services: Any) -> Any:
        raise WorkError("the bucket is away", remedy="")

    with monkeypatch.context() as patch:
        patch.setattr(endpoint, "live_plans", away)
        assert machine.check_in().status == 200, "who says nothing of a rollout does not depend on it"
        assert machine.check_in(outcome=OUTCOME).status == 503
    assert machine.check_in(outcome=OUTCOME).status == 200
    assert outcomes(plant) == [machine.id]


def test_one_that_the_database_cannot_hold_does_not_keep_others_out(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    machines = [plant.machine() for _ in range(8)]
    poison = machines[3].id
    check_ins = plant.services.store.check_ins
    take = type(check_ins).store_batch

    def picky(self: Any, batch: Any) -> Any:
        if any(one.device_id == poison for one in batch):
            raise WorkError("the database failed: value out of range", remedy="")
        return take(self, batch)

    monkeypatch.setattr(type(check_ins), "store_batch", picky)
    headers = [{PROOF: machine.proof(CHECK_IN, BODY)} for machine in machines]

    async def all_at_once() -> list[Answer]:
        return await asyncio.gather(*(plant.asked("POST", CHECK_IN, BODY, each) for each in headers))

    assert [answer.status for answer in plant.run(all_at_once())] == [200] * 3 + [503] + [200] * 4


def test_ten_thousand_at_once_are_answered_or_sent_away_in_bounded_memory(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    machines = [plant.machine() for _ in range(40)]
    monkeypatch.setattr(plant.app.intake._often, "burst", 1e9)
    monkeypatch.setattr(plant.app.intake._often, "per_s", 1e9)
    proofs = [machine.proof(CHECK_IN, BODY) for machine in machines for _ in range(250)]

    async def flood() -> list[Answer]:
        return await asyncio.gather(*(plant.asked("POST", CHECK_IN, BODY, {PROOF: proof}) for proof in proofs))

    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answers = plant.run(flood())
    grown_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb
    by_status = {status: sum(answer.status == status for answer in answers) for status in (200, 503)}
    assert sum(by_status.values()) == 10_000
    assert by_status[200] >= 1000
    assert by_status[503] >= 1000
    assert all(answer.header("retry-after") for answer in answers if answer.status == 503)
    assert grown_kb < 256 << 10
    kept = plant.services.store.check_ins.rollups(0, 4e9)
    assert sum(hour.check_ins for hour in kept) == by_status[200], "who was told 200 was kept, and nobody else"
    assert machines[0].check_in().status == 200
    assert (plant.app.intake._request_count, plant.app.intake._held_bytes) == (0, 0)


def test_bodies_of_all_requests_together_are_bounded(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "_MAX_HELD", 100_000)
    seen: list[int] = []

    async def drip() -> dict[str, Any]:
        await asyncio.sleep(0.001)
        seen.append(plant.app.intake._held_bytes)
        return {"type": "http.request", "body": b"x" * 1000, "more_body": True}

    async def flood() -> list[Answer]:
        return await asyncio.gather(
            *(plant.asked("POST", "/device/enrol", told=30_000, receive=drip, client=str(n)) for n in range(50))
        )

    statuses = [answer.status for answer in plant.run(flood())]
    assert set(statuses) == {400, 503}, "some were read to their end, some sent away"
    assert max(seen) <= 101_000
    assert plant.app.intake._held_bytes == 0


def test_no_more_requests_are_answered_at_a_time_than_there_is_room_for(
    standing: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "_MAX_CONCURRENT", 10)
    let_go = asyncio.Event()

    async def later() -> dict[str, Any]:
        await let_go.wait()
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def crowd() -> tuple[list[Answer], list[Answer]]:
        inside = [
            asyncio.create_task(standing.asked("POST", "/device/enrol", told=2, receive=later)) for _ in range(10)
        ]
        await asyncio.sleep(0)
        away = [await standing.asked("POST", "/device/enrol", b"{}") for _ in range(3)]
        let_go.set()
        return list(await asyncio.gather(*inside)), away

    inside, away = standing.run(crowd())
    assert [answer.status for answer in inside] == [400] * 10
    assert [(answer.status, answer.header("retry-after")) for answer in away] == [(503, "5")] * 3
    assert standing.post("/device/enrol", b"{}").status == 400


# The repository


def test_files_come_whole_by_name_and_as_they_are_signed(standing: Plant) -> None:
    for path in sorted((standing.state / "repo").rglob("*")):
        if path.is_file():
            answer = standing.get(f"/repo/{path.relative_to(standing.state / 'repo').as_posix()}")
            assert (answer.status, answer.content) == (200, path.read_bytes()), path


def blob(plant: Plant) -> str:
    (path,) = (path for path in (plant.state / "repo/blobs").rglob("*") if path.is_file())
    assert path.read_bytes() == CONTENT
    return f"/repo/{path.relative_to(plant.state / 'repo').as_posix()}"


def test_what_is_named_by_its_content_may_be_kept_for_ever_and_the_rest_not(standing: Plant) -> None:
    assert standing.get(blob(standing)).header("cache-control") == "public, max-age=31536000, immutable"
    stamp = standing.get("/repo/metadata/timestamp.json")
    assert stamp.header("cache-control") == "no-cache"
    tag = stamp.header("etag")
    assert tag
    same = standing.get("/repo/metadata/timestamp.json", {"If-None-Match": tag})
    assert (same.status, same.content, same.header("content-length"), same.header("etag")) == (304, b"", None, tag)
    other = standing.get("/repo/metadata/1.root.json", {"If-None-Match": tag})
    assert other.status == 200


@pytest.mark.parametrize("known", ["{}", "W/{}", '"x", {}', "*"])
def test_a_known_blob_is_not_read(standing: Plant, known: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = blob(standing)
    tag = standing.get(path).header("etag")
    monkeypatch.setattr(LocalStorage, "read", lambda self, name: pytest.fail("it is not read"))
    assert standing.get(path, {"If-None-Match": known.format(tag)}).status == 304
    head = standing.ask("HEAD", path)
    assert (head.status, head.header("content-length"), head.content) == (200, str(len(CONTENT)), b"")


@pytest.mark.parametrize(
    ("wanted", "status", "begin", "end"),
    [
        ("bytes=0-", 206, 0, 4096),
        ("bytes=100-", 206, 100, 4096),
        ("bytes=4095-", 206, 4095, 4096),
        ("bytes=10-19", 206, 10, 20),
        ("bytes=10-99999", 206, 10, 4096),
        ("bytes=20-10", 200, 0, 4096),
        ("bytes=-5", 200, 0, 4096),
        ("bytes=0-1,5-6", 200, 0, 4096),
        ("lines=1-", 200, 0, 4096),
        ("bytes=" + "9" * 30 + "-", 200, 0, 4096),
        ("bytes=4096-", 416, 0, 0),
        ("bytes=999999-", 416, 0, 0),
    ],
)
def test_a_download_goes_on_where_it_stopped(
    standing: Plant, wanted: str, status: int, begin: int, end: int
) -> None:
    answer = standing.get(blob(standing), {"Range": wanted})
    assert answer.status == status
    if status == 416:
        assert answer.header("content-range") == "bytes */4096"
        return
    assert answer.content == CONTENT[begin:end]
    assert answer.header("content-length") == str(end - begin)
    if status == 206:
        assert answer.header("content-range") == f"bytes {begin}-{end - 1}/4096"


def test_a_download_of_what_has_changed_begins_anew(standing: Plant) -> None:
    path = blob(standing)
    tag = standing.get(path).header("etag") or ""
    assert standing.get(path, {"Range": "bytes=10-", "If-Range": tag}).status == 206
    assert standing.get(path, {"Range": "bytes=10-", "If-Range": '"other"'}).status == 200


OUTSIDE = [
    "../fleet.db",
    "..%2ffleet.db",
    "%2e%2e/fleet.db",
    "%252e%252e/fleet.db",
    "metadata/../../fleet.db",
    "metadata/..%2f..%2ffleet.db",
    "metadata/%2e%2e/%2e%2e/keys/online.key.json",
    "metadata\\..\\..\\fleet.db",
    "metadata%5c..%5cfleet.db",
    "metadata/1.root.json%00.json",
    "metadata/1.root.json%00",
    "/etc/passwd",
    "%2fetc%2fpasswd",
    "metadata//etc/passwd",
    "metadata/./1.root.json",
    "metadata//1.root.json",
    "./metadata/1.root.json",
    "metadata/1.root.json/",
    "metadata/1.root.json%0a",
    "metadata/1.root.json%0d%0aX:%201",
    "metadata/.1.root.json.1234.abcd",
    "metadata/",
    "metadata",
    "",
    "blobs",
    "blobs/c8",
    "blobs/c8/",
    "cards/m",
    "targets/rollouts/m",
    "staged.json",
    "lock.json",
    "staging",
    "staging/x",
    "metadata/" + "x" * 300 + ".json",
    "metadata/" + "a/" * 100 + "x.json",
    "metadata/\u0661.root.json",
    "fleet.db",
    "keys/online.key.json",
]


def test_no_path_leads_out_of_what_is_public(plant: Plant) -> None:
    for name in ("staged.json", "lock.json", "staging"):
        (plant.state / "repo" / name).write_text("secret")
    (plant.state / "repo/metadata/.1.root.json.1234.abcd").write_text("secret")
    for path in OUTSIDE:
        answer = plant.get(f"/repo/{path}")
        assert (answer.status, answer.problem.code) == (404, "not_found"), path


def test_links_are_not_followed(plant: Plant, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (plant.state / "repo/metadata/9.root.json").symlink_to(tmp_path / "secret")
    (plant.state / "repo/blobs/aa").symlink_to(tmp_path)
    (tmp_path / ("a" * 64)).write_text("secret")
    for path in ("metadata/9.root.json", f"blobs/aa/{'a' * 64}"):
        answer = plant.get(f"/repo/{path}")
        assert answer.status in (404, 503)
        assert b"secret" not in answer.content
        assert str(tmp_path).encode() not in answer.content


@pytest.mark.parametrize("error", [OutputError, WorkError])
@pytest.mark.parametrize("name", ["metadata/timestamp.json", "blob"])
def test_a_store_that_is_away_is_told_with_when_to_come_again(
    standing: Plant, monkeypatch: pytest.MonkeyPatch, error: type[WorkError], name: str
) -> None:
    path = blob(standing) if name == "blob" else f"/repo/{name}"

    def away(self: Any, name: str) -> Any:
        raise error("s3://bucket/secret answered 503", remedy="")

    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "read", away)
        answer = standing.get(path)
        assert (answer.status, answer.header("retry-after")) == (503, "5")
        assert b"bucket" not in answer.content
    assert standing.get(path).status == 200


def test_many_large_files_at_once_are_not_held_in_memory_together(
    standing: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgewright.server.device_api import repository_files

    monkeypatch.setattr(repository_files, "_MAX_LENT_BYTES", 3 * len(CONTENT))
    path = blob(standing)

    async def flood() -> list[Answer]:
        return await asyncio.gather(*(standing.asked("GET", path) for _ in range(20)))

    statuses = [answer.status for answer in standing.run(flood())]
    assert {200, 503} == set(statuses)
    assert statuses.count(200) >= 3
    assert standing.get(path).status == 200, "what was lent is given back"


def test_a_long_file_goes_out_in_pieces() -> None:
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    content = os.urandom(asgi._PIECE * 2 + 5)
    asyncio.run(asgi.send_response(send, 200, content))
    assert b"".join(message.get("body", b"") for message in sent) == content
    assert [message.get("more_body", False) for message in sent] == [False, True, True, False]


# Everything else


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/device/check-in", "POST"),
        ("PUT", "/device/enrol", "POST"),
        ("DELETE", "/device/job", "POST"),
        ("GET", "/device/job/0123456789abcdef/done", "POST"),
        ("POST", "/repo/metadata/1.root.json", "GET, HEAD"),
        ("TRACE", "/repo/metadata/1.root.json", "GET, HEAD"),
        ("OPTIONS", "/device/enrol", "POST"),
        ("post", "/device/enrol", "POST"),
    ],
)
def test_other_verbs_do_nothing(standing: Plant, method: str, path: str, allowed: str) -> None:
    answer = standing.ask(method, path)
    assert (answer.status, answer.header("allow")) == (405, allowed)


@pytest.mark.parametrize(
    "path",
    [
        "/device/",
        "/device/check-in/",
        "/device//check-in",
        "/device/job/xyz/done",
        "/device/job/0123456789abcdef/maybe",
        "/device/job/0123456789abcdef/done/more",
        "/sums/" + "0" * 64 + "/submit",
        "/sums/",
    ],
)
def test_there_is_nothing_anywhere_else(standing: Plant, path: str) -> None:
    answer = standing.post(path, b"")
    assert (answer.status, answer.problem.code) == (404, "not_found")


def test_letters_go_to_the_desk_and_its_answers_back(standing: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, bytes]] = []
    monkeypatch.setattr(AggregationService, "has_path", lambda self, path: path == "/sums/a/submit")

    def handle(self: AggregationService, path: str, body: bytes) -> tuple[int, bytes]:
        seen.append((path, body))
        return 409, b"\x01"

    monkeypatch.setattr(AggregationService, "handle", handle)
    answer = standing.post("/sums/a/submit", b"\x00letter")
    assert (answer.status, answer.content, seen) == (409, b"\x01", [("/sums/a/submit", b"\x00letter")])
    too_long = standing.post("/sums/a/submit", told=(64 << 20) + 1)
    assert too_long.status == 413


def test_a_failure_that_nobody_thought_of_is_a_problem_and_no_trace(
    standing: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("/home/secret")

    monkeypatch.setattr(type(standing.services.store.devices), "enrol", broken)
    answer, _ = enrolling(standing, Machine(standing), "t")
    assert (answer.status, answer.problem.code) == (500, "internal_error")
    assert b"secret" not in answer.content
    assert answer.header("x-content-type-options") == "nosniff"


def test_a_gone_database_in_the_middle_of_a_request_is_told(
    standing: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = standing.machine(profiling=True)

    def gone(*_: Any, **__: Any) -> Any:
        raise DatabaseUnavailableError("postgresql://secret", remedy="")

    monkeypatch.setattr(type(standing.services.store.jobs), "claim", gone)
    answer = machine.post("/device/job")
    assert (answer.status, answer.header("retry-after")) == (503, "5")
    assert b"secret" not in answer.content
