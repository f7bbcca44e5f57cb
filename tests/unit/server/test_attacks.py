"""What attackers try, in a table: injection, smuggling, poisoning, probing. Over real sockets where it matters."""

import json
import re
import socket
import threading
import time
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
import urllib3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from litestar.routes import HTTPRoute
from tests.unit.server.live_server import Answer, Plant

from edgewright.contract.api import device_api, operator_api
from edgewright.contract.api.device_api import PROOF, CheckInRequest
from edgewright.contract.api.device_status import DeviceStatus
from edgewright.server.app import _HEADERS
from edgewright.server.device_api import endpoint
from edgewright.trust.keys.device_identity import DeviceKey

INJECTIONS = [
    "' OR '1'='1",
    "'; DROP TABLE devices; --",
    '" union select secret from users --',
    "%' AND sleep(5) --",
    "a\r\nSet-Cookie: x=1",
    "a\nX-Injected: 1",
    "\x00",
    "a\x00b",
    "../../../../etc/passwd",
    "..\\..\\windows",
    "{{7*7}}",
    "${7*7}",
    "<script>alert(1)</script>",
    "{% include '/etc/passwd' %}",
    "$(id)",
    "`id`",
    "|id",
    "%s%s%n",
    "\ud7ff\ufffe\U0001f600",
    "\u202e",
    "A" * 190,
    "-1",
    "NaN",
    "null",
    "__proto__",
    "*",
    "%",
    "_",
]
LEAKS = re.compile(
    rb"Traceback|sqlalchemy|sqlite|psycopg|SELECT |INSERT |site-packages|\.py\b|line \d+|/tmp/|/home/|/work/|scrypt"
)


def quoted(text: str) -> str:
    from urllib.parse import quote

    return quote(text, safe="")


def checked(answer: Answer, what: object) -> None:
    """See that an answer gives nothing away and breaks nothing."""
    assert answer.status < 500, (what, answer)
    assert not LEAKS.search(answer.content), (what, answer)
    for name, value in answer.headers:
        assert "\r" not in value, (what, name)
        assert "\n" not in value, (what, name)
    assert answer.header("set-cookie") is None, what
    assert answer.header("x-injected") is None, what


def forms(plant: Plant) -> list[tuple[str, str, Any]]:
    return [
        (str(method), route.path_format, handler)
        for route in plant.app.pages.routes
        if isinstance(route, HTTPRoute)
        for method, (handler, _) in route.route_handler_map.items()
        if str(method) != "OPTIONS"
    ]


def test_nothing_that_is_written_into_a_path_or_a_query_does_more_than_it_says(plant: Plant) -> None:
    machine = plant.machine()
    users = plant.services.store.accounts.users()
    for method, form, handler in forms(plant):
        for text in INJECTIONS:
            if "{" in form:
                path = re.sub(r"\{\w+\}", lambda _, text=text: quoted(text), form)  # type: ignore[misc]
                checked(plant.operate(method, path, {} if method == "POST" else None), (method, path))
            if method == "GET":
                names = [
                    name
                    for name in handler.parsed_fn_signature.parameters
                    if name != "request" and f"{{{name}" not in form
                ]
                for name in names:
                    path = re.sub(r"\{\w+\}", "x", form) + f"?{name}={quoted(text)}"
                    checked(plant.operate(method, path), path)
    assert plant.services.store.devices.get(machine.id) is not None
    assert plant.services.store.accounts.users() == users
    assert plant.services.store.audit.broken_at() is None


ROLLOUT = {"model": "m", "device_class": "default", "arms": [], "stages": []}
BODIES: list[tuple[str, dict[str, Any], str]] = [
    ("/api/invitations", {}, "device_class"),
    ("/api/invitations", {}, "channel"),
    ("/api/tokens", {"name": "a"}, "name"),
    ("/api/tokens", {"name": "a"}, "role"),
    ("/api/users", {"name": "a", "role": "viewer", "password": "x" * 11}, "name"),
    ("/api/users", {"name": "a", "role": "viewer", "password": "x" * 11}, "role"),
    ("/api/alerts/silence", {"rule": "a"}, "rule"),
    ("/api/alerts/silence", {"rule": "a"}, "device_class"),
    ("/api/rollouts", ROLLOUT, "model"),
    ("/api/rollouts", ROLLOUT, "device_class"),
    ("/api/rollouts", ROLLOUT, "start"),
    ("/api/queries/m/default", {"id": "q", "template": "t", "version": "1", "start": "", "end": ""}, "id"),
    ("/api/rollouts/m/default/pause", {}, "reason"),
]


@pytest.mark.parametrize(("path", "body", "field"), BODIES, ids=lambda value: str(value)[:30])
def test_nothing_that_is_written_into_a_body_does_more_than_it_says(
    standing: Plant, path: str, body: dict[str, Any], field: str
) -> None:
    for text in INJECTIONS:
        checked(standing.operate("POST", path, body | {field: text}), (path, field, text))


def test_what_is_kept_comes_back_as_it_was_written_and_never_as_markup(plant: Plant) -> None:
    machine = plant.machine()
    for text in INJECTIONS:
        plant.operate("POST", f"/api/devices/{machine.id}/retire", {"reason": text})
        answer = plant.operate("GET", "/api/audit?limit=1")
        assert answer.said[0]["detail"]["reason"] == text
        assert answer.header("content-type") == "application/json"
        assert answer.header("x-content-type-options") == "nosniff"


RECORDS = sorted(
    (
        kind
        for module in (device_api, operator_api)
        for name in module.__all__
        if isinstance(kind := getattr(module, name), type)
        and issubclass(kind, msgspec.Struct)
        and kind.__struct_config__.forbid_unknown_fields
    ),
    key=lambda kind: kind.__name__,
)


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
def test_no_field_can_be_set_that_nobody_asked_for(kind: type[msgspec.Struct]) -> None:
    with pytest.raises(msgspec.ValidationError, match="unknown field"):
        msgspec.json.decode(b'{"is_admin":true}', type=kind)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/invitations", {"created_by": "user:root"}),
        ("/api/tokens", {"name": "a", "created_by": "server"}),
        ("/api/users", {"name": "a", "role": "viewer", "password": "x" * 12, "secret": "scrypt$1"}),
        ("/api/devices/x/retire", {"reason": "", "who": "user:root"}),
        ("/api/devices/x/profiling", {"profiling": True, "device_class": "other"}),
        ("/api/rollouts", ROLLOUT | {"state": "running", "epoch": 9}),
    ],
)
def test_no_request_sets_more_than_its_own(standing: Plant, path: str, body: dict[str, Any]) -> None:
    answer = standing.operate("POST", path, body)
    assert (answer.status, answer.problem.code) == (400, "invalid_input")
    assert "unknown field" in answer.problem.message


@pytest.mark.parametrize(
    "headers",
    [
        {"X-HTTP-Method-Override": "DELETE"},
        {"X-Method-Override": "DELETE"},
        {"X-Original-URL": "/api/tokens"},
        {"X-Rewrite-URL": "/api/tokens"},
        {"X-Forwarded-Prefix": "/x"},
        {"X-Forwarded-For": "127.0.0.1"},
        {"Forwarded": "for=127.0.0.1"},
        {"X-Real-IP": "127.0.0.1"},
    ],
    ids=lambda headers: next(iter(headers)),
)
def test_headers_that_some_servers_believe_are_not_believed(standing: Plant, headers: dict[str, str]) -> None:
    token = {"Authorization": f"Bearer {standing.token('viewer')}"}
    plain = standing.get("/api/queries", token)
    tricked = standing.get("/api/queries", token | headers)
    assert (tricked.status, tricked.content) == (plain.status, plain.content)
    assert standing.get("/api/tokens", token | headers).status == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example", "X-Forwarded-Host": "evil.example"},
        {"X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "http", "X-Forwarded-Port": "1"},
        {"Origin": "https://evil.example", "Referer": "https://evil.example/"},
    ],
)
def test_no_answer_repeats_where_the_request_said_it_went(standing: Plant, headers: dict[str, str]) -> None:
    token = {"Authorization": f"Bearer {standing.token('viewer')}"}
    for path in (
        "/openapi.json",
        "/api/fleet",
        "/nothing",
        "/repo/metadata/1.root.json",
        "/healthz/",
        "//evil.example",
    ):
        answer = standing.get(path, token | headers)
        said = answer.content + repr(answer.headers).encode()
        assert b"evil.example" not in said.replace(b"//evil.example", b""), path
        assert answer.header("location") is None


@pytest.mark.parametrize(
    "path", ["//evil.example", "/%2f%2fevil.example", "/\\evil.example", "/?next=//evil.example", "/api"]
)
def test_nobody_is_sent_elsewhere(standing: Plant, path: str) -> None:
    answer = standing.get(path)
    assert answer.status not in (301, 302, 303, 307, 308)
    assert answer.header("location") is None


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1"])
def test_no_other_site_may_read_answers(standing: Plant, origin: str) -> None:
    asks = {"Origin": origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "X-CSRF"}
    for method, path in (("GET", "/healthz"), ("OPTIONS", "/api/tokens"), ("GET", "/repo/metadata/1.root.json")):
        answer = standing.ask(method, path, b"", asks)
        assert not [name for name, _ in answer.headers if name.startswith("access-control-")]
        assert answer.header("cross-origin-resource-policy") == "same-origin"


@pytest.mark.parametrize(
    "method", ["PUT", "PATCH", "DELETE", "TRACE", "CONNECT", "PROPFIND", "get", "G" * 500, "GET\x00"]
)
def test_other_verbs_reach_nothing(standing: Plant, method: str) -> None:
    before = standing.services.store.audit.head()
    for path in ("/api/fleet", "/api/devices/x", "/healthz", "/openapi.json", "/metrics"):
        answer = standing.ask(method, path, b"", {"Authorization": f"Bearer {standing.token('release manager')}"})
        assert answer.status in (400, 404, 405), (method, path, answer)
        checked(answer, (method, path))
    assert standing.services.store.audit.head() == before


def everywhere(plant: Plant) -> list[Answer]:
    """Answers of every kind."""
    machine = plant.machine()
    body = msgspec.json.encode(CheckInRequest(DeviceStatus()))
    return [
        plant.get("/healthz"),
        plant.get("/openapi.json"),
        plant.get("/api/fleet"),
        plant.operate("GET", "/api/fleet", role="viewer"),
        plant.operate("POST", "/api/tokens", {}, role="viewer"),
        plant.operate("GET", "/api/devices?limit=0"),
        plant.operate("GET", "/metrics"),
        plant.get("/nothing"),
        plant.ask("PATCH", "/api/fleet"),
        plant.post("/device/enrol", b"{"),
        plant.post("/device/check-in", body),
        plant.post("/device/check-in", body, {PROOF: machine.proof("/device/check-in", body)}),
        machine.post("/device/job"),
        plant.get("/device/nothing"),
        plant.get("/repo/metadata/1.root.json"),
        plant.get("/repo/nothing"),
        plant.ask("HEAD", "/repo/metadata/1.root.json"),
    ]


def test_every_answer_carries_what_protects_whoever_reads_it(standing: Plant) -> None:
    answers = everywhere(standing)
    assert {200, 204, 400, 401, 403, 404, 405} == {answer.status for answer in answers}
    for answer in answers:
        for name, value in _HEADERS:
            assert answer.header(name.decode()) == value.decode(), answer
        assert answer.header("strict-transport-security") is None
        assert answer.header("cache-control") in ("no-store", "no-cache", "public, max-age=31536000, immutable")
        assert answer.header("x-powered-by") is None
        assert not LEAKS.search(answer.content) or b'"openapi"' in answer.content
        if answer.status >= 400:
            assert answer.problem.message
            assert answer.header("content-type") == "application/json"
    policy = dict(_HEADERS)[b"content-security-policy"].decode()
    assert "unsafe" not in policy
    assert "*" not in policy


def test_what_holds_a_secret_is_kept_by_no_cache(standing: Plant) -> None:
    answer = standing.operate("POST", "/api/invitations", {})
    assert answer.header("cache-control") == "no-store"


def test_behind_tls_browsers_are_told_to_stay_there(put_up: Any) -> None:
    plant: Plant = put_up(secure=True)
    for path in ("/healthz", "/nothing", "/repo/nothing"):
        assert plant.get(path).header("strict-transport-security") == "max-age=31536000"


def test_the_log_holds_no_secret_and_no_device(plant: Plant, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    machine = plant.machine()
    plant.operate("GET", f"/api/devices/{machine.id}?x=hidden")
    plant.get("/api/fleet", {"Authorization": "Bearer ew_token_hidden"})
    plant.post("/device/enrol", b'{"token":"hidden","public":"' + b"0" * 64 + b'"}')
    plant.get(f"/x/{machine.id}\r\nhidden")
    said = "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("edgewright"))
    assert '"status": 401' in said
    assert plant.token("release manager") not in said
    assert "hidden" not in said
    assert machine.id not in said
    for line in said.splitlines():
        json.loads(line)


# Over real sockets


def exchanged(port: int, *parts: bytes, pause_seconds: float = 0.0, wait_seconds: float = 5.0) -> bytes:
    """Send bytes as they are, and return what comes until the other end closes or says no more."""
    with socket.create_connection(("127.0.0.1", port), timeout=wait_seconds) as connection:
        for part in parts:
            try:
                connection.sendall(part)
            except OSError:
                break
            time.sleep(pause_seconds)
        received = b""
        try:
            connection.settimeout(0.7)
            while piece := connection.recv(65536):
                received += piece
                connection.settimeout(0.2)
        except OSError:
            pass
        return received


def answers_in(received: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3})", received)]


ENROL = b"POST /device/enrol HTTP/1.1\r\nHost: x\r\n"
HIDDEN = b"GET /api/tokens HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize(
    "request_",
    [
        ENROL + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n{}   " + HIDDEN,
        ENROL + b"Content-Length: 5, 6\r\n\r\n{}   " + HIDDEN,
        ENROL + b"Content-Length: +5\r\n\r\n{}   " + HIDDEN,
        ENROL + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + HIDDEN,
        ENROL + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + HIDDEN,
        ENROL + b"Transfer-Encoding: xchunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + HIDDEN,
        ENROL + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + HIDDEN,
        ENROL + b"Transfer-Encoding : chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + HIDDEN,
        ENROL + b"Transfer-Encoding:\x0bchunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + HIDDEN,
        ENROL + b"Content-Length: 5\r\n folded: yes\r\n\r\n{}   " + HIDDEN,
        ENROL + b"Content-Length: -1\r\n\r\n" + HIDDEN,
        ENROL + b"Content-Length: 99999999999999999999\r\n\r\n" + HIDDEN,
        ENROL + b"Content-Length : 5\r\n\r\n{}   " + HIDDEN,
        b"POST /device/enrol HTTP/1.1\nHost: x\nContent-Length: 0\n\n\r\n" + HIDDEN,
        b"GET / HTTP/9.9\r\n\r\n" + HIDDEN,
        b"\x16\x03\x01\x02\x00\x01\x00" + HIDDEN,
        b"\x00" * 100 + b"\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_no_second_request_is_smuggled_in_a_first(port: int, request_: bytes) -> None:
    received = exchanged(port, request_)
    statuses = answers_in(received)
    # A request is refused, or it ends where all agree that it does: what was hidden is then one of its own, with an
    # answer of its own; never is a part of one taken for another.
    assert all(400 <= status < 500 for status in statuses), received
    assert len(statuses) <= 2
    assert not LEAKS.search(received)
    if b"ransfer-Encoding: chunked\r\n" in request_ and b"Content-Length: 5" in request_:
        assert statuses[0] == 400 or b"connection: close" in received.lower() or statuses == [411, 401], received


@pytest.mark.parametrize(
    ("request_", "statuses"),
    [
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 1_000_000 + b"\r\n\r\n", {400, 413, 431}),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + b"X: a\r\n" * 5000 + b"\r\n", {400, 413, 431}),
        (b"GET /" + b"a" * 1_000_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", {400, 404, 414, 431}),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: a\rb\r\n\r\n", {400}),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nX\x00: a\r\n\r\n", {400}),
        (b"GET /healthz\r\nX: HTTP/1.1\r\nHost: x\r\n\r\n", {400}),
        (b"GET /repo/%2e%2e/fleet.db HTTP/1.1\r\nHost: x\r\n\r\n", {404}),
        (b"GET /repo/../fleet.db HTTP/1.1\r\nHost: x\r\n\r\n", {404}),
        (b"GET /repo/%00 HTTP/1.1\r\nHost: x\r\n\r\n", {404}),
        (b"GET /%ff%fe HTTP/1.1\r\nHost: x\r\n\r\n", {400, 404}),
        (b"GET http://evil.example/healthz HTTP/1.1\r\nHost: x\r\n\r\n", {200, 400}),
        (b"POST /device/enrol HTTP/1.1\r\nHost: x\r\n\r\n", {411}),
        (
            b"POST /device/enrol HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
            {411},
        ),
        (b"POST /device/enrol HTTP/1.1\r\nHost: x\r\nContent-Length: 40000\r\n\r\n", {413}),
        (b"POST /device/enrol HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}", {400}),
        (b"POST /device/enrol HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 40000\r\n\r\n", {413}),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\n\r\n", {200}),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", {200}),
    ],
    ids=lambda value: repr(value)[:50],
)
def test_odd_requests_are_answered_as_what_they_are(port: int, request_: bytes, statuses: set[int]) -> None:
    received = exchanged(port, request_)
    assert set(answers_in(received)) <= statuses, received[:300]
    assert b"101 Switching" not in received
    assert not LEAKS.search(received)
    assert answers_in(exchanged(port, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")) == [200], "it still answers"


def test_a_slow_sender_is_told_and_let_go(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "_BODY_SECONDS", 0.2)
    begun = time.monotonic()
    received = exchanged(port, ENROL + b"Content-Length: 30000\r\n\r\n", b"{", b"}", pause_seconds=0.3)
    assert answers_in(received) == [408]
    assert time.monotonic() - begun < 5


def test_many_slow_senders_keep_nobody_else_waiting(port: int) -> None:
    slow = [socket.create_connection(("127.0.0.1", port), timeout=5) for _ in range(300)]
    try:
        for connection in slow[:150]:
            connection.sendall(ENROL + b"Content-Length: 30000\r\n\r\n{")
        for connection in slow[150:]:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost:")
        begun = time.monotonic()
        assert answers_in(exchanged(port, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")) == [200]
        assert time.monotonic() - begun < 5
    finally:
        for connection in slow:
            connection.close()


def test_many_devices_check_in_at_the_same_time_over_real_sockets(standing: Plant, port: int) -> None:
    machines = [standing.machine() for _ in range(60)]
    body = msgspec.json.encode(CheckInRequest(DeviceStatus()))
    pool = urllib3.PoolManager(maxsize=20, retries=False)
    statuses: list[int] = []

    def run(own: list[Any]) -> None:
        for machine in own:
            for _ in range(5):
                proof = machine.key.sign(
                    standing.services.audience, "POST", "/device/check-in", body, now=standing.clock.at
                )
                answer = pool.request(
                    "POST", f"http://127.0.0.1:{port}/device/check-in", body=body, headers={PROOF: proof}
                )
                statuses.append(answer.status)

    threads = [threading.Thread(target=run, args=(machines[begin::6],)) for begin in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 300


def test_a_whole_life_over_a_real_socket(standing: Plant, port: int) -> None:
    pool = urllib3.PoolManager(retries=False)
    where = f"http://127.0.0.1:{port}"
    headers = {"Authorization": f"Bearer {standing.token('operator')}", "Content-Type": "application/json"}
    made = pool.request("POST", f"{where}/api/invitations", body=b'{"profiling":true}', headers=headers)
    token = json.loads(made.data)["secrets"][0]
    key = DeviceKey(Ed25519PrivateKey.generate())
    enrolled = pool.request(
        "POST", f"{where}/device/enrol", body=msgspec.json.encode(device_api.EnrolRequest(token, key.public.hex()))
    )
    device = msgspec.json.decode(enrolled.data, type=device_api.EnrolResponse)
    body = msgspec.json.encode(CheckInRequest(DeviceStatus()))
    now = datetime.fromtimestamp(standing.services.now(), UTC)
    proof = key.sign(device.audience, "POST", "/device/check-in", body, now=now)
    for status in (200, 409):
        answer = pool.request("POST", f"{where}/device/check-in", body=body, headers={PROOF: proof})
        assert answer.status == status
    repository = pool.request("GET", f"{where}{device.repository}metadata/1.root.json")
    assert repository.data == (standing.state / "repo/metadata/1.root.json").read_bytes()
    job = key.sign(device.audience, "POST", "/device/job", b"", now=now)
    assert pool.request("POST", f"{where}/device/job", headers={PROOF: job}).status == 204
    listed = pool.request("GET", f"{where}/api/devices/{device.device_id}", headers=headers)
    assert json.loads(listed.data)["profiling"] is True


def test_who_goes_away_in_the_middle_leaves_nothing_behind(standing: Plant, port: int) -> None:
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(ENROL + b"Content-Length: 30000\r\n\r\n" + b"x" * 10_000)
    ends = time.monotonic() + 15
    while standing.app.intake._request_count and time.monotonic() < ends:
        time.sleep(0.05)
    assert (standing.app.intake._request_count, standing.app.intake._held_bytes) == (0, 0)


def test_an_end_lets_requests_finish(ground: Any, tmp_path: Any) -> None:
    from tests.unit.server.live_server import stand

    from edgewright.server.process import free_port, run_server

    plant = stand(tmp_path / "state", ground)
    ended, ready, begun = threading.Event(), threading.Event(), threading.Event()
    check_ins = plant.services.store.check_ins
    take = type(check_ins).store_batch

    def slow(self: Any, batch: Any) -> Any:
        begun.set()
        time.sleep(0.5)
        return take(self, batch)

    machine = plant.machine()
    body = msgspec.json.encode(CheckInRequest(DeviceStatus()))
    found = free_port("127.0.0.1", 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(check_ins), "store_batch", slow)
        thread = threading.Thread(
            target=run_server, args=(plant.app, "127.0.0.1", found), kwargs={"ended": ended, "ready": ready.set}
        )
        thread.start()
        assert ready.wait(20)
        statuses: list[int] = []

        def check_in() -> None:
            proof = machine.proof("/device/check-in", body)
            answer = urllib3.request(
                "POST",
                f"http://127.0.0.1:{found}/device/check-in",
                body=body,
                headers={PROOF: proof},
                retries=False,
            )
            statuses.append(answer.status)

        client = threading.Thread(target=check_in)
        client.start()
        assert begun.wait(10)
        ended.set()
        client.join(15)
        thread.join(30)
    assert statuses == [200]
    assert not thread.is_alive()
    plant.close()


def test_in_process_and_over_a_socket_the_same_is_said(standing: Plant, port: int) -> None:
    headers = {"Authorization": f"Bearer {standing.token('viewer')}"}
    for path in ("/api/releases", "/nothing", "/api/devices?limit=0", "/repo/metadata/1.root.json", "/repo/x"):
        inside = standing.get(path, headers)
        outside = urllib3.request("GET", f"http://127.0.0.1:{port}{path}", headers=headers, retries=False)
        assert (outside.status, outside.data) == (inside.status, inside.content)
        for name in ("content-type", "content-length", "cache-control", "content-security-policy"):
            assert outside.headers.get(name) == inside.header(name)
