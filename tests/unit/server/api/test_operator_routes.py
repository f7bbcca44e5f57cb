"""Every endpoint does what it says, says who did it, and tells what is wrong so that it can be mended."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.unit.server.live_server import PASSWORD, Answer, Plant, work

from edgewright.contract.api.device_status import DeviceStatus
from edgewright.contract.errors import OutputError, WorkError
from edgewright.contract.query.query import CountedSignal, Query, QueryTemplate, record_digest
from edgewright.server import read_models
from edgewright.server.access_control import UserRole
from edgewright.server.store.database import DatabaseUnavailableError
from edgewright.server.store.records import Alert, StoredDecision

NOW_SECONDS = 1795262400.0


def last(plant: Plant) -> tuple[str, str, str, Any]:
    """The newest audit entry: who, what, to what, more."""
    entry = plant.services.store.audit.entries(limit=1)[0]
    return entry.actor, entry.action, entry.subject, json.loads(bytes(entry.detail))


def ok(answer: Answer, status: int = 200) -> Any:
    assert answer.status == status, answer
    assert answer.header("content-type") == "application/json"
    assert answer.header("cache-control") == "no-store"
    return answer.said


# The fleet and its devices


def test_the_fleet_at_a_glance_counts_who_was_heard_and_who_is_silent(plant: Plant) -> None:
    first, second, *_ = (plant.machine() for _ in range(3))
    retired = plant.machine()
    for machine in (first, second, retired):
        machine.check_in(DeviceStatus("m", "1.0.0", state="idle"))
    plant.services.store.devices.retire(retired.id, now=plant.services.now())
    plant.clock.turn(hours=3)
    first.check_in(DeviceStatus("m", "1.0.0", state="idle"))
    shown = ok(plant.operate("GET", "/api/fleet", role="viewer"))
    assert (shown["devices"], shown["offline"], shown["firing"]) == (2, 1, 0)
    assert shown["at"] == plant.services.now()
    ((group),) = shown["groups"]
    assert (group["version"], group["devices"]) == ("1.0.0", 2)
    ((line),) = shown["rollouts"]
    assert (line["rollout"], line["state"], line["versions"], line["stages"]) == ("r", "running", ["1.0.0"], 1)


def test_devices_come_page_by_page_and_each_once(plant: Plant) -> None:
    enrolled = sorted(plant.machine().id for _ in range(7))
    seen: list[str] = []
    after = ""
    while page := ok(plant.operate("GET", f"/api/devices?limit=3&after={after}")):
        assert len(page) <= 3
        seen += [device["id"] for device in page]
        after = seen[-1]
    assert seen == enrolled


def test_devices_are_found_by_what_they_are(plant: Plant) -> None:
    camera = plant.machine(device_class="camera", labels={"site": "b", "floor": "1"}, profiling=True)
    camera.check_in(DeviceStatus("m", "1.0.0", state="idle"))
    offline = plant.machine(device_class="camera", labels={"site": "b"})
    other = plant.machine()
    gone = plant.machine()
    plant.services.store.devices.retire(gone.id, now=plant.services.now())

    def found(query: str) -> set[str]:
        return {device["id"] for device in ok(plant.operate("GET", f"/api/devices?{query}"))}

    assert found("") == {camera.id, offline.id, other.id}
    assert found("device_class=camera") == {camera.id, offline.id}
    assert found("version=1.0.0") == {camera.id}
    assert found("version=") == {offline.id, other.id}
    assert found("label=site%3Db") == {camera.id, offline.id}
    assert found("label=site%3Db&label=floor%3D1") == {camera.id}
    assert found("offline=1") == {offline.id, other.id}
    assert found("profiling=true") == {camera.id}
    assert found("retired=true") == {gone.id}
    assert found("label=nothing") == set()


def test_one_device_is_shown_with_what_it_said_and_no_secret(plant: Plant) -> None:
    machine = plant.machine(labels={"site": "b"}, channel="beta")
    machine.check_in(DeviceStatus("m", "1.0.0", state="idle", battery_level=0.5))
    shown = ok(plant.operate("GET", f"/api/devices/{machine.id}", role="viewer"))
    assert shown["public_key"] == machine.key.public.hex()
    assert (shown["labels"], shown["channel"], shown["status"]["battery_level"]) == ({"site": "b"}, "beta", 0.5)


def test_a_device_is_retired_once_and_it_is_written_down_by_whom_and_why(plant: Plant) -> None:
    machine = plant.machine()
    made = ok(plant.operate("POST", f"/api/devices/{machine.id}/retire", {"reason": "stolen"}, role="operator"))
    assert made["id"] == machine.id
    assert last(plant) == ("token:t-operator", "retire device", machine.id, {"reason": "stolen"})
    assert ok(plant.operate("GET", f"/api/devices/{machine.id}"))["retired_at"] == plant.services.now()
    assert plant.operate("POST", f"/api/devices/{machine.id}/retire", {}).status == 200


def test_a_device_is_marked_for_profiling_and_no_more(plant: Plant) -> None:
    machine = plant.machine()
    for profiling in (True, False):
        ok(plant.operate("POST", f"/api/devices/{machine.id}/profiling", {"profiling": profiling}, role="operator"))
        assert last(plant) == ("token:t-operator", "set profiling", machine.id, {"profiling": profiling})
        assert ok(plant.operate("GET", f"/api/devices/{machine.id}"))["profiling"] is profiling


def test_invitations_are_shown_once_listed_without_their_secrets_and_enrol(plant: Plant) -> None:
    asked = {"device_class": "camera", "labels": {"site": "b"}, "channel": "beta", "profiling": True, "count": 3}
    secrets = ok(plant.operate("POST", "/api/invitations", asked, role="operator"), 201)["secrets"]
    assert len(set(secrets)) == 3
    actor, action, subject, detail = last(plant)
    assert (actor, action, subject, detail["count"]) == ("token:t-operator", "invite", "camera", 3)
    listed = plant.operate("GET", "/api/invitations", role="viewer")
    assert [one["device_class"] for one in ok(listed)] == ["camera"] * 3
    said = listed.content.decode() + msgspec.json.encode(plant.services.store.audit.entries()).decode()
    assert not any(secret in said for secret in secrets)
    device = plant.services.store.devices.enrol(secrets[0], bytes(32), now=plant.services.now())
    assert (device.labels, device.channel, device.profiling) == ({"site": "b"}, "beta", True)
    assert len(ok(plant.operate("GET", "/api/invitations"))) == 2


# Releases and rollouts


def test_releases_rollouts_and_policies_are_shown_as_they_are_signed(standing: Plant) -> None:
    assert ok(standing.operate("GET", "/api/releases")) == {"m": ["1.0.0"]}
    release = ok(standing.operate("GET", "/api/releases/m/1.0.0"))
    assert (release["name"], release["version"]) == ("m", "1.0.0")
    ((plan),) = ok(standing.operate("GET", "/api/rollouts"))
    assert plan == ok(standing.operate("GET", "/api/rollouts/m/default"))
    assert plan["arms"][0]["version"] == "1.0.0"
    assert ok(standing.operate("GET", "/api/policies/m/default"))["model"] == "m"


def test_a_rollout_is_begun_in_the_name_of_whoever_asked(plant: Plant) -> None:
    stages = [{"fraction": 0.1, "min_duration_seconds": 3600.0}, {"fraction": 1.0}]
    asked = {"model": "m", "device_class": "default", "arms": [{"version": "1.0.0"}], "stages": stages}
    made = ok(plant.operate("POST", "/api/rollouts", asked), 201)
    assert made == {"id": "r", "notes": ["noted"]}
    ((done),) = plant.acting.asked
    assert (done.act, done.who) == ("start", "token:t-release-manager")
    assert [stage.fraction for stage in done.what.stages] == [0.1, 1.0]


@pytest.mark.parametrize(
    ("act", "role"),
    [("advance", "release manager"), ("resume", "release manager"), ("pause", "operator"), ("abort", "operator")],
)
def test_a_rollout_is_changed_in_the_name_of_whoever_asked(plant: Plant, act: str, role: str) -> None:
    plan = ok(plant.operate("POST", f"/api/rollouts/m/default/{act}", {"reason": "because"}, role=role))
    assert plan["rollout"] == "r"
    ((done),) = plant.acting.asked
    assert (done.act, done.what) == (act, ("m", "default", "because"))
    assert done.who == f"token:t-{role.replace(' ', '-')}"


def test_decisions_are_listed_in_short_and_shown_in_full(plant: Plant) -> None:
    for number in (1, 2):
        plant.services.store.decisions.put(
            StoredDecision(
                "m/default/r", number, NOW_SECONDS + number, "hold", "too few", msgspec.Raw(b'{"n":%d}' % number)
            )
        )
    plant.services.store.decisions.put(StoredDecision("retire/m", 1, NOW_SECONDS, "keep", "in use"))
    assert [one["number"] for one in ok(plant.operate("GET", "/api/decisions?subject=m/default/r"))] == [2, 1]
    assert [one["number"] for one in ok(plant.operate("GET", "/api/decisions?subject=m/default/r&limit=1"))] == [2]
    assert len(ok(plant.operate("GET", "/api/decisions"))) == 3
    shown = ok(plant.operate("GET", "/api/decisions/m/default/r/1"))
    assert (shown["verdict"], shown["decision"]) == ("hold", {"n": 1})


# Alerts, approvals, queries


def test_alerts_are_listed_by_state_and_silenced_for_a_while(plant: Plant) -> None:
    for rule, state in (("drift", "firing"), ("battery", "resolved")):
        plant.services.store.alerts.put([Alert(rule, "camera", state, NOW_SECONDS, NOW_SECONDS, "words")])  # type: ignore[arg-type]
    assert [one["rule"] for one in ok(plant.operate("GET", "/api/alerts?alert_state=firing"))] == ["drift"]
    assert len(ok(plant.operate("GET", "/api/alerts"))) == 2
    assert [one["after"] for one in ok(plant.operate("GET", "/api/alerts/changes?limit=1"))] == ["resolved"]
    asked = {"rule": "drift", "device_class": "camera", "for_seconds": 600.0, "reason": "known"}
    ok(plant.operate("POST", "/api/alerts/silence", asked, role="operator"))
    actor, action, subject, detail = last(plant)
    assert (actor, action, subject, detail["reason"]) == ("token:t-operator", "silence", "drift", "known")
    silenced = {one["rule"]: one["silenced_until"] for one in ok(plant.operate("GET", "/api/alerts"))}
    assert silenced == {"drift": plant.services.now() + 600, "battery": None}
    ok(plant.operate("POST", "/api/alerts/silence", asked | {"for_seconds": 0.0}))
    assert ok(plant.operate("GET", "/api/alerts?alert_state=firing"))[0]["silenced_until"] is None


def test_what_waits_is_listed_and_settled_in_the_name_of_whoever_did(plant: Plant) -> None:
    assert [one["id"] for one in ok(plant.operate("GET", "/api/approvals", role="viewer"))] == ["a1"]
    for verdict, approve in (("approve", True), ("refuse", False)):
        made = ok(plant.operate("POST", f"/api/approvals/a1/{verdict}", {"reason": "yes"}))
        assert made == {"id": "a1", "notes": ["done"]}
        assert plant.acting.asked[-1].what == ("a1", approve, "yes")
        assert plant.acting.asked[-1].who == "token:t-release-manager"
    assert plant.operate("POST", "/api/approvals/a1/perhaps", {}).status == 404
    assert len(plant.acting.asked) == 2


# The log, and who may


def test_the_log_comes_page_by_page_the_newest_first(plant: Plant) -> None:
    for number in range(7):
        plant.services.store.audit.write("server", "count", str(number), at=NOW_SECONDS)
    first = ok(plant.operate("GET", "/api/audit?limit=3"))
    assert [one["number"] for one in first] == [7, 6, 5]
    second = ok(plant.operate("GET", f"/api/audit?limit=3&before={first[-1]['number']}"))
    assert [one["number"] for one in second] == [4, 3, 2]


def test_a_token_is_shown_once_works_and_is_made_void(plant: Plant) -> None:
    made = plant.operate("POST", "/api/tokens", {"name": "ci", "role": "operator", "lifetime_seconds": 60.0})
    (secret,) = ok(made, 201)["secrets"]
    assert last(plant) == ("token:t-release-manager", "add token", "ci", {"role": "operator"})
    headers = {"Authorization": f"Bearer {secret}"}
    assert plant.get("/api/fleet", headers).status == 200
    assert plant.get("/api/tokens", headers).status == 403
    listed = plant.operate("GET", "/api/tokens")
    assert {"ci", "t-release-manager"} == {one["name"] for one in ok(listed)}
    assert secret not in listed.content.decode()
    ok(plant.operate("DELETE", "/api/tokens/ci"))
    assert last(plant)[1:3] == ("retire token", "ci")
    assert plant.get("/api/fleet", headers).status == 401


def test_a_token_is_void_when_its_time_is_over(plant: Plant) -> None:
    (secret,) = plant.operate("POST", "/api/tokens", {"name": "ci", "lifetime_seconds": 60.0}).said["secrets"]
    plant.clock.turn(seconds=60)
    assert plant.get("/api/fleet", {"Authorization": f"Bearer {secret}"}).status == 401


def test_somebody_may_log_in_and_no_more(plant: Plant) -> None:
    asked = {"name": "ann", "role": "operator", "password": PASSWORD}
    ok(plant.operate("POST", "/api/users", asked), 201)
    assert last(plant) == ("token:t-release-manager", "add user", "ann", {"role": "operator"})
    listed = plant.operate("GET", "/api/users")
    assert [(one["name"], one["role"]) for one in ok(listed)] == [("ann", "operator")]
    assert b"scrypt" not in listed.content
    people = plant.services.store.accounts
    assert people.log_in("ann", PASSWORD, now=NOW_SECONDS, lifetime_seconds=60.0)
    ok(plant.operate("DELETE", "/api/users/ann"))
    assert last(plant)[1:3] == ("retire user", "ann")
    assert people.log_in("ann", PASSWORD, now=NOW_SECONDS, lifetime_seconds=60.0) is None


# Jobs


def test_a_bench_device_is_given_work_and_what_came_of_it_is_shown(plant: Plant, tmp_path: Path) -> None:
    machine = plant.machine(profiling=True)
    headers = {"Authorization": f"Bearer {plant.token('operator')}", "Content-Type": "application/octet-stream"}
    asked = work(tmp_path, size=2 << 20)  # more than the other requests may have
    made = plant.post(f"/api/jobs?device={machine.id}", asked, headers)
    job = ok(made, 201)["id"]
    shown = ok(plant.operate("GET", f"/api/jobs/{job}", role="viewer"))
    assert (shown["state"], shown["request_bytes"], shown["created_by"]) == (
        "waiting",
        len(asked),
        "token:t-operator",
    )
    assert plant.operate("GET", f"/api/jobs/{job}/result").status == 404
    assert machine.post("/device/job").content == asked
    machine.post(f"/device/job/{job}/done", b"\x00done")
    result = plant.operate("GET", f"/api/jobs/{job}/result", role="viewer")
    assert (result.status, result.content, result.header("content-type")) == (
        200,
        b"\x00done",
        "application/octet-stream",
    )
    assert [one["id"] for one in ok(plant.operate("GET", "/api/jobs?job_state=done"))] == [job]
    assert ok(plant.operate("GET", "/api/jobs?job_state=waiting")) == []
    again = ok(plant.post(f"/api/jobs?device={machine.id}", asked, headers), 201)["id"]
    assert ok(plant.operate("DELETE", f"/api/jobs/{again}", role="operator")) == {"id": again, "notes": []}
    assert last(plant)[:2] == ("token:t-operator", "cancel job")
    assert machine.post("/device/job").status == 204
    assert ok(plant.operate("DELETE", f"/api/jobs/{again}"))["notes"] == ["It was over already."]


# What is wrong


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/api/devices/nobody", None, 404),
        ("POST", "/api/devices/nobody/retire", {}, 404),
        ("POST", "/api/devices/nobody/profiling", {"profiling": True}, 404),
        ("GET", "/api/releases/m/9.9.9", None, 404),
        ("GET", "/api/releases/other/1.0.0", None, 404),
        ("GET", "/api/releases/m/latest", None, 400),
        ("GET", "/api/rollouts/m/camera", None, 404),
        ("GET", "/api/policies/m/camera", None, 404),
        ("GET", "/api/decisions/m/default/r/7", None, 404),
        ("GET", "/api/decisions/m/default/r/seven", None, 404),
        ("GET", "/api/queries/none", None, 404),
        ("GET", "/api/jobs/none", None, 404),
        ("GET", "/api/jobs/none/result", None, 404),
        ("POST", "/api/alerts/silence", {"rule": "none"}, 404),
        ("DELETE", "/api/tokens/none", None, 400),
        ("DELETE", "/api/users/none", None, 400),
        ("GET", "/api/nothing", None, 404),
        ("GET", "/nothing", None, 404),
        ("GET", "/api/devices?limit=0", None, 400),
        ("GET", "/api/devices?limit=1001", None, 400),
        ("GET", "/api/devices?limit=many", None, 400),
        ("GET", "/api/devices?offline=-1", None, 400),
        ("GET", "/api/devices?offline=nan", None, 400),
        ("GET", "/api/devices?profiling=perhaps", None, 400),
        ("GET", "/api/devices?after=" + "x" * 65, None, 400),
        ("GET", "/api/devices?" + "&".join(["label=a"] * 17), None, 400),
        ("GET", "/api/alerts?alert_state=loud", None, 400),
        ("GET", "/api/audit?before=0", None, 400),
        ("GET", "/api/audit?before=99999999999999999999", None, 400),
        ("GET", "/api/devices/" + "x" * 300, None, 400),
        ("POST", "/api/invitations", {"count": 0}, 400),
        ("POST", "/api/invitations", {"count": 1001}, 400),
        ("POST", "/api/invitations", {"count": "many"}, 400),
        ("POST", "/api/invitations", {"lifetime_seconds": -1.0}, 400),
        ("POST", "/api/invitations", {"lifetime_seconds": 1e300}, 400),
        ("POST", "/api/invitations", {"device_class": "../x"}, 400),
        ("POST", "/api/invitations", {"labels": {"a b": "c"}}, 400),
        ("POST", "/api/invitations", {"labels": {"a": "c" * 501}}, 400),
        ("POST", "/api/invitations", {"labels": {str(n): "" for n in range(65)}}, 400),
        ("POST", "/api/invitations", [], 400),
        ("POST", "/api/invitations", None, 400),
        ("POST", "/api/tokens", {}, 400),
        ("POST", "/api/tokens", {"name": "t-release-manager"}, 400),
        ("POST", "/api/tokens", {"name": "a", "role": "root"}, 400),
        ("POST", "/api/tokens", {"name": "a b"}, 400),
        ("POST", "/api/tokens", {"name": "a", "lifetime_seconds": 0.0}, 400),
        ("POST", "/api/users", {"name": "a", "role": "viewer", "password": "short"}, 400),
        ("POST", "/api/users", {"name": "a", "role": "viewer", "password": "x" * 1025}, 400),
        ("POST", "/api/rollouts", {"model": "m"}, 400),
        ("POST", "/api/rollouts", {"model": "m", "device_class": "d", "arms": "1.0.0", "stages": []}, 400),
        ("POST", "/api/rollouts", {"model": "../m", "device_class": "d", "arms": [], "stages": []}, 400),
        ("POST", "/api/queries/m/default", {"id": "q"}, 400),
        ("POST", "/api/rollouts/m/default/explode", {}, 404),
        ("POST", "/api/rollouts/m/default/pause", {"reason": "x" * 501}, 400),
        ("POST", "/api/alerts/silence", {"rule": "a", "for_seconds": -5.0}, 400),
        ("POST", "/api/jobs?device=nobody", None, 400),
        ("POST", "/api/jobs", None, 400),
        ("DELETE", "/api/jobs/none", None, 404),
        ("PATCH", "/api/fleet", None, 405),
    ],
)
def test_what_is_wrong_is_told_with_what_to_do(
    standing: Plant, method: str, path: str, body: Any, status: int
) -> None:
    standing.token("release manager")
    before = standing.services.store.audit.head()
    answer = standing.operate(method, path, body)
    assert answer.status == status, answer
    assert answer.header("content-type") == "application/json"
    problem = answer.problem
    assert problem.code
    assert problem.message
    assert problem.remedy
    assert standing.services.store.audit.head() == before, "what was not done is not in the log as done"


@pytest.mark.parametrize(
    "body", [b"{", b"\xff\xfe", b'{"reason":"\\ud800"}', b"[" * 60_000, b'{"a":' * 9_000, b"nul"]
)
def test_a_body_that_cannot_be_read_is_refused(standing: Plant, body: bytes) -> None:
    headers = {
        "Authorization": f"Bearer {standing.token('release manager')}",
        "Content-Type": "application/json",
    }
    answer = standing.post("/api/devices/x/retire", body, headers)
    assert (answer.status, answer.problem.code) == (400, "invalid_input")


def test_a_body_that_is_too_large_is_refused(standing: Plant) -> None:
    headers = {
        "Authorization": f"Bearer {standing.token('release manager')}",
        "Content-Type": "application/json",
    }
    large = json.dumps({"reason": "x" * (1 << 20)}).encode()
    assert standing.post("/api/devices/x/retire", large, headers).status == 413
    parts = [large[begin : begin + 65_536] for begin in range(0, len(large), 65_536)]
    unsaid = standing.post("/api/devices/x/retire", headers=headers, parts=parts, told=-1)
    assert unsaid.status == 413, "also if it does not tell its length"
    assert standing.post("/api/jobs?device=x", headers=headers, told=(65 << 20) + 1).status == 413


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (DatabaseUnavailableError("postgresql://user@secret/db did not answer", remedy="See secret."), 503),
        (OutputError("/var/secret cannot be written", remedy="Free secret."), 503),
        (WorkError("the rollout is at its end", remedy="Start another one."), 409),
        (RuntimeError("secret"), 500),
        (KeyError("secret"), 500),
    ],
)
def test_what_goes_wrong_inside_is_told_without_what_the_machine_looks_like(
    standing: Plant, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int
) -> None:
    def fail(*_: Any) -> Any:
        raise error

    standing.token("viewer")
    monkeypatch.setattr(read_models, "fleet_summary", fail)
    answer = standing.operate("GET", "/api/fleet", role="viewer")
    assert answer.status == status
    assert answer.problem.remedy
    assert b"secret" not in answer.content
    assert b"Traceback" not in answer.content
    assert (answer.header("retry-after") is not None) == (status == 503)


def test_what_a_database_or_a_disk_said_stays_in_the_log(standing: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        try:
            raise OSError(13, "Permission denied", "/var/secret")
        except OSError as error:
            raise WorkError("/var/secret cannot be read", remedy="Check its permissions.") from error

    standing.token("viewer")
    monkeypatch.setattr(read_models, "fleet_summary", fail)
    answer = standing.operate("GET", "/api/fleet", role="viewer")
    assert (answer.status, answer.header("retry-after")) == (503, "5")
    assert b"secret" not in answer.content


def test_the_server_says_whether_it_is_well(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ok(plant.get("/healthz"))["status"] == "ok"
    monkeypatch.setattr(
        type(plant.services.store.audit),
        "head",
        lambda self: (_ for _ in ()).throw(DatabaseUnavailableError("secret", remedy="")),
    )
    answer = plant.get("/healthz")
    assert (answer.status, answer.problem.message) == (503, "the database does not answer")


def test_metrics_name_no_device_and_need_a_token(plant: Plant) -> None:
    machine = plant.machine()
    machine.check_in()
    plant.operate("GET", f"/api/devices/{machine.id}")
    plant.get(f"/device/{machine.id}")
    plant.get(f"/{machine.id}")
    plant.get("/repo/metadata/1.root.json")
    assert plant.get("/metrics").status == 401
    answer = plant.operate("GET", "/metrics", role="viewer")
    text = answer.content.decode()
    assert machine.id not in text
    assert 'route="/api/devices/{device_id}"' in text
    assert 'route="/device/check-in"' in text
    assert 'route="/device"' in text
    assert "edgewright_check_ins_total" in text


def question() -> tuple[Query, QueryTemplate]:
    template = QueryTemplate(
        name="drift",
        kind="histogram",
        device_class="camera",
        clip=4,
        min_noise=0.5,
        min_cohort=50,
        max_rho=0.1,
        min_interval_seconds=3600,
        expires_at="2027-12-31",
        signals=(CountedSignal("mean", 16),),
    )
    begins, ends, sent = (f"2026-11-{day}T00:00:00+00:00" for day in (20, 21, 22))
    query = Query(
        id="q1",
        template="drift",
        template_digest=record_digest(template),
        window_start=begins,
        window_end=ends,
        deadline=sent,
        bits=16,
        scale=1.0,
        sigma=4.0,
        min_cohort=60,
        max_cohort=100,
        rho=0.05,
        backend="helper",
        seed="c" * 64,
    )
    return query, template


def test_questions_to_the_fleet_are_listed_and_shown(plant: Plant) -> None:
    query, template = question()
    plant.services.store.queries.store_query(query, template, "m", now=NOW_SECONDS)
    ((listed),) = ok(plant.operate("GET", "/api/queries?query_state=open"))
    assert (listed["id"], listed["state"], listed["rho"]) == (query.id, "open", query.rho)
    plant.services.store.queries.finish_query(query.id, result={"sum": [1, 2]}, devices=7, now=NOW_SECONDS + 1)
    shown = ok(plant.operate("GET", f"/api/queries/{query.id}"))
    assert (shown["state"], shown["devices"], shown["result"]) == ("done", 7, {"sum": [1, 2]})
    assert ok(plant.operate("GET", "/api/queries?query_state=open")) == []


def test_a_question_is_asked_and_ended_in_the_name_of_whoever_did(plant: Plant) -> None:
    times = {"window_start": "2026-11-20T00:00:00+00:00", "window_end": "2026-11-21T00:00:00+00:00"}
    asked = {"id": "q1", "template": "drift", "version": "1.0.0"} | times
    made = ok(plant.operate("POST", "/api/queries/m/default", asked, role="operator"), 201)
    assert made == {"id": "q1", "notes": ["asked"]}
    ok(plant.operate("DELETE", "/api/queries/q1", role="operator"))
    assert [(one.act, one.who) for one in plant.acting.asked] == [
        ("ask", "token:t-operator"),
        ("end query", "token:t-operator"),
    ]


def test_cohorts_are_counted_as_they_are_assigned(plant: Plant) -> None:
    for _ in range(5):
        plant.machine().check_in(DeviceStatus("m", "0.9.0", proven="0.9.0", state="idle"))
    shown = ok(plant.operate("GET", "/api/cohorts/m/default", role="viewer"))
    assert sum(cohort["devices"] for cohort in shown) == 5
    assert plant.operate("GET", "/api/cohorts/m/camera").status == 404


def test_a_role_is_one_of_three(plant: Plant) -> None:
    for role in UserRole:
        name = role.name.lower().replace("_", " ")
        assert plant.operate("POST", "/api/tokens", {"name": f"x{role}", "role": name}).status == 201
