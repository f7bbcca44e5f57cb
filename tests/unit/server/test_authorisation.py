"""Who may do what: a matrix made of the routes that there are, sessions, forgeries, guessing."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from litestar import Request, get, post
from litestar.exceptions import TooManyRequestsException
from litestar.routes import HTTPRoute
from tests.unit.server.live_server import PASSWORD, ROLES, Answer, Plant

from edgewright.contract.api.operator_api import ReasonBody
from edgewright.server.access_control import MIN_ROLES, UserRole, csrf_token, has_permission
from edgewright.server.auth.authentication import (
    SESSION_COOKIE,
    SESSION_IDLE_SECONDS,
    SESSION_LIFETIME_SECONDS,
    Principal,
    log_in,
    login_limiters,
    permission_of,
    require,
    session_cookie,
)
from edgewright.server.web.router import page_router

# Nobody needs to be known for these; a logout asks for nothing but that it is the session's own.
OPEN = {
    ("GET", "/healthz"),
    ("GET", "/openapi.json"),
    ("GET", "/static/{digest:str}/{name:str}"),
    ("GET", "/login"),
    ("POST", "/login"),
    ("POST", "/logout"),
}
# What stands in a path, so that a route is reached at all.
NAMES = {"number": "1", "verdict": "approve"}


@pytest.fixture
def paged(put_up: Callable[..., Plant]) -> Plant:
    """A control plane with its pages."""
    return put_up(pages=lambda services, acting: [page_router(services, acting)])


@dataclass(frozen=True)
class Route:
    """A verb on a path, and the right that it takes."""

    method: str
    form: str
    right: str | None

    @property
    def path(self) -> str:
        path = self.form
        while "{" in path:
            before, _, rest = path.partition("{")
            name, _, after = rest.partition("}")
            path = before + NAMES.get(name.partition(":")[0], "x") + after
        return path


def routes(plant: Plant) -> Iterator[Route]:
    for route in plant.app.pages.routes:
        assert isinstance(route, HTTPRoute)
        for method, (handler, _) in route.route_handler_map.items():
            if str(method) != "OPTIONS":
                yield Route(str(method), route.path, permission_of(handler))


def send(plant: Plant, route: Route, headers: dict[str, str]) -> Answer:
    body = b"" if route.method in ("GET", "HEAD") else b"{}"
    return plant.ask(route.method, route.path, body, headers | {"Content-Type": "application/json"})


def session(plant: Plant, name: str, role: UserRole, *, client: str = "192.0.2.1") -> str:
    """Log in, and return the session's secret."""
    if name not in {user.name for user in plant.services.store.accounts.users()}:
        plant.services.store.accounts.add_user(name, role, PASSWORD, now=plant.services.now())
    found = log_in(plant.services, login_limiters(), name, PASSWORD, client)
    assert found is not None
    secret: str = found[0]
    return secret


def test_every_route_asks_for_a_right_or_is_known_to_need_none(paged: Plant) -> None:
    found = list(routes(paged))
    assert len(found) > 60
    assert {(each.method, each.form) for each in found if each.right is None} == OPEN


def test_there_is_no_right_that_no_route_asks_for(standing: Plant) -> None:
    assert {each.right for each in routes(standing)} - {None} == set(MIN_ROLES)


def test_what_changes_something_takes_more_than_looking(paged: Plant) -> None:
    for each in routes(paged):
        if each.right == "look":
            assert each.method == "GET", each


def credentials(plant: Plant) -> dict[str, dict[str, str]]:
    """Headers of everybody who is nobody."""
    people, now = plant.services.store.accounts, plant.services.now()
    known = {token.name for token in people.tokens()}
    secrets = {}
    for name in ("expired", "retired"):
        if name not in known:
            lifetime_seconds = 0.0 if name == "expired" else 3600.0
            secrets[name] = people.add_token(
                name, UserRole.RELEASE_MANAGER, created_by="server", now=now, lifetime_seconds=lifetime_seconds
            )
    people.revoke_token("retired", now=now)
    ended = session(plant, "zoe", UserRole.RELEASE_MANAGER)
    people.log_out(ended)
    good = plant.token("release manager")
    return {
        "nobody": {},
        "empty": {"Authorization": ""},
        "no bearer": {"Authorization": good},
        "another scheme": {"Authorization": f"Basic {good}"},
        "lower case": {"Authorization": f"bearer {good}"},
        "made up": {"Authorization": "Bearer ew_token_" + "A" * 43},
        "a letter more": {"Authorization": f"Bearer {good}A"},
        "a letter less": {"Authorization": f"Bearer {good[:-1]}"},
        "long": {"Authorization": "Bearer " + "A" * 10_000},
        "no text": {"Authorization": "Bearer \xff\xfe\x00"},
        "injection": {"Authorization": "Bearer ' OR '1'='1"},
        "expired": {"Authorization": f"Bearer {secrets['expired']}"},
        "retired": {"Authorization": f"Bearer {secrets['retired']}"},
        "a token as cookie": {"Cookie": f"{SESSION_COOKIE}={good}"},
        "a session as token": {"Authorization": f"Bearer {session(plant, 'zoe', UserRole.RELEASE_MANAGER)}"},
        "an ended session": {"Cookie": f"{SESSION_COOKIE}={ended}", "X-CSRF": csrf_token(ended)},
        "a made up session": {"Cookie": f"{SESSION_COOKIE}=ew_session_{'A' * 43}"},
    }


def is_page(route: Route) -> bool:
    return not route.form.startswith(("/api/", "/metrics"))


def is_nobody_s(route: Route, answer: Answer) -> bool:
    """Whether an answer says that nobody known has asked: in words to programs, by the login to people."""
    if is_page(route):
        return answer.status in (302, 303, 401) and (answer.header("location") or "").startswith("/login?then=")
    return (answer.status, answer.header("www-authenticate"), answer.problem.code) == (
        401,
        "Bearer",
        "unauthenticated",
    )


def test_nobody_passes_anywhere_but_where_nobody_needs_to_be_known(paged: Plant) -> None:
    for who, headers in credentials(paged).items():
        before = paged.services.store.audit.head()
        for each in routes(paged):
            answer = send(paged, each, headers)
            if each.right is None:
                assert answer.status < 500, (who, each)
            else:
                assert is_nobody_s(each, answer), (who, each, answer)
        # Whoever tries to log in is written down; nothing else is.
        since = [one.action for one in paged.services.store.audit.entries() if one.number > before[0]]
        assert set(since) <= {"login refused"}, who


@pytest.mark.parametrize("role", ROLES)
def test_each_role_passes_where_its_rights_say_and_nowhere_else(paged: Plant, role: str) -> None:
    paged.token(role)
    before = paged.services.store.audit.head()
    refused = 0
    for each in routes(paged):
        if each.right is None:
            continue
        answer = send(paged, each, {"Authorization": f"Bearer {paged.token(role)}"})
        if has_permission(ROLES[role], each.right):  # type: ignore[arg-type]
            assert answer.status not in (401, 403), each
            assert answer.header("location") is None or "/login" not in str(answer.header("location")), each
            assert answer.status < 500, each
        else:
            refused += 1
            assert answer.status == 403, each
            assert is_page(each) or answer.problem.code == "forbidden", each
            assert role.replace(" ", "-") in answer.content.decode()
    assert (refused == 0) == (role == "release manager")
    if role == "viewer":
        assert paged.services.store.audit.head() == before, "who may only look has changed nothing"


def test_a_session_changes_things_only_if_the_page_was_read(paged: Plant) -> None:
    secret = session(paged, "ann", UserRole.RELEASE_MANAGER)
    other = session(paged, "bob", UserRole.RELEASE_MANAGER)
    wrong: list[dict[str, str]] = [
        {},
        {"X-CSRF": ""},
        {"X-CSRF": csrf_token(other)},
        {"X-CSRF": csrf_token(secret)[:-1]},
        {"X-CSRF": secret},
        {"X-CSRF": "\xff" * 64},
    ]
    before = paged.services.store.audit.head()
    for each in routes(paged):
        if each.right is None:
            continue
        for headers in wrong:
            answer = send(paged, each, {"Cookie": f"{SESSION_COOKIE}={secret}"} | headers)
            if each.method == "GET":
                assert answer.status not in (401, 403), each
            else:
                assert answer.status == 403, each
                assert is_page(each) or answer.problem.code == "forbidden", each
    assert paged.services.store.audit.head() == before
    assert paged.acting.asked == []
    for each in routes(paged):
        if each.right is not None:
            answer = send(paged, each, {"Cookie": f"{SESSION_COOKIE}={secret}", "X-CSRF": csrf_token(secret)})
            assert answer.status not in (401, 403), each
            assert answer.status < 500, each


def test_a_page_is_left_by_its_own_session_alone(paged: Plant) -> None:
    secret = session(paged, "ann", UserRole.VIEWER)
    paged.post("/logout", b"", {"Cookie": f"{SESSION_COOKIE}={secret}"})
    assert looks(paged, secret) == 200
    answer = paged.post("/logout", b"", {"Cookie": f"{SESSION_COOKIE}={secret}", "X-CSRF": csrf_token(secret)})
    assert f"{SESSION_COOKIE}=;" in str(answer.header("set-cookie"))
    assert looks(paged, secret) == 401


def test_a_login_on_the_page_takes_no_session_over_and_ends_the_one_before(paged: Plant) -> None:
    old = session(paged, "ann", UserRole.VIEWER)
    planted = "ew_session_" + "A" * 43
    form = f"name=ann&password={PASSWORD.replace(' ', '+')}".encode()
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    given_ = [
        str(paged.post("/login", form, kind | {"Cookie": f"{SESSION_COOKIE}={cookie}"}).header("set-cookie"))
        for cookie in (planted, old)
    ]
    secrets = [each.partition("=")[2].partition(";")[0] for each in given_]
    assert len({planted, old, *secrets}) == 4
    assert [looks(paged, secret) for secret in (planted, old, *secrets)] == [401, 401, 200, 200]


def test_a_form_proves_that_the_page_was_read_by_a_field(put_up: Any) -> None:
    @post("/form", guards=[require("pause rollouts")], status_code=200)
    async def form(request: Request[Principal, Any, Any]) -> dict[str, str]:
        return {name: str(value) for name, value in (await request.form()).items()}

    plant: Plant = put_up(pages=lambda *_: [form])
    secret = session(plant, "ann", UserRole.OPERATOR)
    headers = {"Cookie": f"{SESSION_COOKIE}={secret}", "Content-Type": "application/x-www-form-urlencoded"}
    good = plant.post("/form", f"csrf={csrf_token(secret)}&a=1".encode(), headers)
    assert (good.status, good.said["a"]) == (200, "1"), "the handler still gets the form"
    for body in (b"", b"csrf=", b"csrf=0", b"a=1"):
        assert plant.post("/form", body, headers).status == 403
    plain = headers | {"Content-Type": "text/plain"}
    assert plant.post("/form", f"csrf={csrf_token(secret)}".encode(), plain).status == 403


def test_a_token_needs_no_such_proof_for_no_browser_sends_it_by_itself(plant: Plant) -> None:
    assert plant.operate("POST", "/api/invitations", {}).status == 201


def test_a_cookie_beside_a_token_gives_nothing(plant: Plant) -> None:
    secret = session(plant, "ann", UserRole.RELEASE_MANAGER)
    headers = {"Cookie": f"{SESSION_COOKIE}={secret}", "X-CSRF": csrf_token(secret)}
    viewer = headers | {"Authorization": f"Bearer {plant.token('viewer')}"}
    assert plant.post("/api/invitations", b"{}", viewer).status == 403
    assert plant.post("/api/invitations", b"{}", headers | {"Authorization": "Bearer nonsense"}).status == 401


def test_a_session_is_never_one_that_came_with_the_login(plant: Plant) -> None:
    planted = "ew_session_" + "A" * 43
    secret = session(plant, "ann", UserRole.VIEWER)
    assert secret != planted
    assert plant.get("/api/fleet", {"Cookie": f"{SESSION_COOKIE}={planted}"}).status == 401
    again = session(plant, "ann", UserRole.VIEWER)
    assert again != secret


def looks(plant: Plant, secret: str) -> int:
    return plant.get("/api/fleet", {"Cookie": f"{SESSION_COOKIE}={secret}"}).status


def test_a_session_ends_with_the_logout_and_only_that_one(plant: Plant) -> None:
    first, second = (session(plant, "ann", UserRole.VIEWER) for _ in range(2))
    plant.services.store.accounts.log_out(first)
    assert (looks(plant, first), looks(plant, second)) == (401, 200)


def test_sessions_end_when_the_role_or_the_password_changes_or_the_user_goes(plant: Plant) -> None:
    changes: list[dict[str, Any]] = [
        {"role": UserRole.OPERATOR},
        {"password": "another long password"},
        {"retired_at": plant.services.now()},
    ]
    for number, change in enumerate(changes):
        secret = session(plant, f"u{number}", UserRole.VIEWER)
        assert looks(plant, secret) == 200
        plant.services.store.accounts.update_user(f"u{number}", **change)
        assert looks(plant, secret) == 401


def test_a_session_ends_when_it_is_not_used(plant: Plant) -> None:
    secret = session(plant, "ann", UserRole.VIEWER)
    plant.clock.turn(seconds=SESSION_IDLE_SECONDS - 1)
    assert looks(plant, secret) == 200
    plant.clock.turn(seconds=SESSION_IDLE_SECONDS - 1)
    assert looks(plant, secret) == 200
    plant.clock.turn(seconds=SESSION_IDLE_SECONDS)
    assert looks(plant, secret) == 401


def test_a_session_ends_however_much_it_is_used(plant: Plant) -> None:
    secret = session(plant, "ann", UserRole.VIEWER)
    ends = plant.clock.at + timedelta(seconds=SESSION_LIFETIME_SECONDS)
    while plant.clock.at + timedelta(seconds=SESSION_IDLE_SECONDS / 2) < ends:
        assert looks(plant, secret) == 200
        plant.clock.turn(seconds=SESSION_IDLE_SECONDS / 2)
    assert looks(plant, secret) == 200
    plant.clock.at = ends
    assert looks(plant, secret) == 401


def test_the_cookie_is_read_by_no_script_and_sent_by_no_other_site() -> None:
    given = session_cookie("s", secure=True)
    assert given.startswith(f"{SESSION_COOKIE}=s; ")
    assert {"HttpOnly", "SameSite=Strict", "Secure", "Path=/"} <= set(given.split("; "))
    assert "Secure" not in session_cookie("s", secure=False)
    assert "Max-Age=0" in session_cookie("", secure=True)


# Guessing


def test_guessing_a_password_goes_slowly_from_one_address_and_for_one_name(plant: Plant) -> None:
    plant.services.store.accounts.add_user("ann", UserRole.VIEWER, PASSWORD, now=plant.services.now())

    def tries(names: list[str], clients: list[str]) -> int:
        limiters, tried = login_limiters(), 0
        for name, client in zip(names, clients, strict=True):
            with suppress(TooManyRequestsException):
                assert log_in(plant.services, limiters, name, "wrong password!", client) is None
                tried += 1
        return tried

    many = [str(n) for n in range(14)]
    assert tries(["n" + name for name in many], ["192.0.2.1"] * 14) in range(10, 13)
    assert tries(["ann"] * 14, [f"192.0.2.{n}" for n in many]) in range(10, 13)
    assert tries(["Ann", "ann"] * 7, [f"192.0.2.{n}" for n in many]) in range(10, 13), "one name in two spellings"
    assert tries(["n" + name for name in many], [f"2001:db8::{n}" for n in many]) in range(10, 13), "one network"


def test_logins_are_audited_without_the_password(plant: Plant) -> None:
    session(plant, "ann", UserRole.VIEWER, client="192.0.2.9")
    assert log_in(plant.services, login_limiters(), "ann", "wrong password!", "192.0.2.9") is None
    assert log_in(plant.services, login_limiters(), "x" * 5000 + "\ud800", "wrong password!", "c" * 500) is None
    stranger, failed, good, *_ = plant.services.store.audit.entries()
    assert (good.actor, good.action) == ("user:ann", "log in")
    assert (failed.actor, failed.action, failed.subject) == ("server", "login refused", "ann")
    assert (stranger.action, stranger.subject) == ("login refused", ""), "it may be a password that slipped"
    said = msgspec.json.encode([stranger, failed, good]).decode()
    assert "wrong password" not in said
    assert PASSWORD not in said
    assert plant.services.store.audit.broken_at() is None


def test_a_retired_user_and_odd_names_do_not_log_in(plant: Plant) -> None:
    session(plant, "ann", UserRole.VIEWER)
    plant.services.store.accounts.update_user("ann", retired_at=plant.services.now())
    for name in ("ann", "", "' OR 1=1 --", "\u0000", "ann\n", "\ud800"):
        assert log_in(plant.services, login_limiters(), name, PASSWORD, "192.0.2.1") is None


def test_a_stranger_s_login_takes_as_long_as_a_wrong_password(plant: Plant) -> None:
    plant.services.store.accounts.add_user("ann", UserRole.VIEWER, PASSWORD, now=plant.services.now())

    def took(name: str) -> float:
        begun = time.process_time()
        log_in(plant.services, login_limiters(), name, "wrong password!", "192.0.2.1")
        return time.process_time() - begun

    took("ann")
    known, unknown, none = (min(took(name) for _ in range(5)) for name in ("ann", "bob", "no name"))
    for other in (unknown, none):
        assert 0.5 < known / other < 2.0


def test_how_long_a_wrong_token_takes_says_nothing_of_how_wrong_it_is(plant: Plant) -> None:
    # By construction: a secret is looked up by its SHA-256, so nobody steers what is compared.
    good = plant.token("viewer")
    people, now = plant.services.store.accounts, plant.services.now()

    def took(secret: str) -> float:
        begun = time.perf_counter()
        assert people.find_token(secret, now=now) is None
        return time.perf_counter() - begun

    near, far = good[:-1] + ("A" if good[-1] != "A" else "B"), "ew_token_" + "A" * 43
    took(near)
    pairs = [(took(near), took(far)) for _ in range(300)]
    ratio = statistics.median(a for a, _ in pairs) / statistics.median(b for _, b in pairs)
    assert 0.67 < ratio < 1.5


def test_one_address_that_asks_without_end_is_sent_away_and_others_are_not(plant: Plant) -> None:
    async def flood() -> list[Answer]:
        headers = {"Authorization": f"Bearer {plant.token('viewer')}"}
        return [await plant.asked("GET", "/api/queries", b"", headers, client="192.0.2.1") for _ in range(900)]

    plant.token("viewer")
    answers = plant.run(flood())
    assert answers[0].status == 200
    away = [answer for answer in answers if answer.status == 429]
    assert away
    assert (away[0].header("retry-after"), away[0].problem.code) == ("10", "too_many_requests")
    assert plant.get("/api/queries", {"Authorization": f"Bearer {plant.token('viewer')}"}).status == 200


def test_an_unknown_right_guards_nothing_for_it_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="there is no right"):
        require("everything")  # type: ignore[arg-type]


def test_a_route_of_the_page_without_a_guard_would_be_found(put_up: Any) -> None:
    @get("/forgotten")
    async def forgotten() -> ReasonBody:
        return ReasonBody("x")

    plant: Plant = put_up(pages=lambda *_: [forgotten])
    assert ("GET", "/forgotten") in {
        (each.method, each.form) for each in routes(plant) if each.right is None
    } - OPEN
