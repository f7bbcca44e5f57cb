"""What people do from the page, with the mouse or keys alone, and what nobody can do who has not read it."""

import re
import shlex
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest

from edgewright.cli import main
from edgewright.contract.rollout.plan import RolloutPlan
from edgewright.trust.publishing.publish import current_plan

if TYPE_CHECKING:
    from playwright.sync_api import Page
    from tests.browser.conftest import Seen, World

Opened = Callable[..., "tuple[Page, Seen]"]
PLACE = "/rollouts/doors/hall"


@pytest.fixture
def rollout(world: "World") -> RolloutPlan:
    """A rollout of its own for each test."""
    found: RolloutPlan = world.start_rollout("hall", model="doors", devices=400)
    return found


def plan(world: "World") -> RolloutPlan:
    found = current_plan(world.repository(), "doors", "hall")
    assert found is not None
    return found


def act(page: "Page", button: str, why: str = "a test") -> None:
    page.locator("summary", has_text=button).click()
    opened = page.locator("details.act[open]")
    opened.get_by_label("Why").fill(why)
    opened.get_by_role("button", name="now").click()


def test_a_rollout_is_advanced_paused_resumed_and_rolled_back_from_the_page(
    world: "World", rollout: RolloutPlan, opened: Opened
) -> None:
    page, seen = opened("ann")
    page.goto(PLACE)
    assert "stage 2 of 3" in page.locator("#said").inner_text()
    page.locator("summary", has_text="Advance").click()
    assert "What is missing" in page.locator("details.act[open]").inner_text()
    page.reload()
    for button, stage, state in (
        ("Advance to 100", 2, "running"),
        ("Pause", 2, "paused"),
        ("Resume", 2, "running"),
        ("Roll back", 2, "aborted"),
    ):
        act(page, button, f"because of {button}")
        page.locator("#said", has_text=f"{state}, stage {stage + 1}").wait_for()
        assert (plan(world).stage, plan(world).state) == (stage, state)
    assert page.locator("details.act").count() == 0
    assert "edgewright rollout start" in page.locator("#acts").inner_text()
    done = [(one.actor, one.action) for one in world.services.store.audit.entries(limit=4)]
    assert done[0] == ("user:ann", "rollout abort")
    assert seen.faults == []


def test_the_page_follows_what_others_do(world: "World", rollout: RolloutPlan, opened: Opened) -> None:
    page, seen = opened("ann")
    page.goto(PLACE)
    other, _ = opened("otto")
    other.goto(PLACE)
    page.locator("summary", has_text="Pause").click()
    act(other, "Pause")
    page.locator("#said", has_text="paused").wait_for(timeout=8000)
    assert page.locator("#state").inner_text().count("paused") == 1
    assert page.locator("summary", has_text="Resume").is_visible()
    assert page.locator("#live").count() == page.locator("#acts").count() == 1
    assert seen.faults == []


def test_what_has_not_changed_is_not_sent_again(world: "World", rollout: RolloutPlan, opened: Opened) -> None:
    page, seen = opened("ann")
    page.goto(PLACE)
    page.locator("summary", has_text="Pause").click()
    page.get_by_label("Why").first.focus()
    with page.expect_response(lambda answer: "/live" in answer.url) as answered:
        pass
    assert answered.value.status == 204
    assert page.locator("details.act[open]").count() == 1, "an open form was closed"
    assert seen.faults == []


def test_a_button_of_an_older_page_does_nothing(world: "World", rollout: RolloutPlan, opened: Opened) -> None:
    page, _ = opened("ann", java_script_enabled=False)
    page.goto(PLACE)
    world.acting.change_rollout("user:otto", "doors", "hall", "pause", "first")
    act(page, "Advance")
    assert "has changed since the page was loaded" in page.locator("main").inner_text()
    assert (plan(world).stage, plan(world).state) == (1, "paused")


@pytest.mark.parametrize(
    ("user", "buttons"),
    [("vera", []), ("otto", ["Pause…", "Roll back…"]), ("ann", ["Advance to 100 %…", "Pause…", "Roll back…"])],
)
def test_people_see_the_buttons_of_their_role_alone(
    user: str, buttons: list[str], world: "World", rollout: RolloutPlan, opened: Opened
) -> None:
    page, _ = opened(user)
    page.goto(PLACE)
    assert page.locator("details.act summary").all_inner_texts() == buttons
    page.goto("/")
    assert page.get_by_role("link", name="Access").count() == (user != "vera")


ACTS: dict[str, dict[str, str | float | bool]] = {
    f"{PLACE}/advance": {"counter": "1"},
    f"{PLACE}/pause": {"counter": "1"},
    f"{PLACE}/resume": {"counter": "1"},
    f"{PLACE}/abort": {"counter": "1"},
    "/alerts/silence": {"rule": "many-offline", "subject": "camera", "hours": "1"},
    "/alerts/awaiting/w1/approve": {},
    "/alerts/awaiting/w1/refuse": {},
    "/devices/DEVICE/retire": {},
    "/devices/DEVICE/profiling": {"profiling": "yes"},
    "/access/invite": {"device_class": "camera", "hours": "1"},
    "/access/tokens": {"name": "x", "role": "viewer", "days": "1"},
    "/access/tokens/nightly/retire": {},
    "/access/users": {"name": "eve", "role": "release manager", "password": "long enough for it"},
    "/access/users/vera/retire": {},
    "/logout": {},
}


@pytest.mark.parametrize("csrf", ["", "0" * 64, "another's"])
def test_nothing_is_done_for_who_has_not_read_the_page(csrf: str, world: "World", opened: Opened) -> None:
    page, _ = opened("ann")
    before = world.services.store.audit.head()
    if csrf == "another's":
        other, _ = opened("otto")
        other.goto("/")
        csrf = other.locator("input[name=csrf]").first.get_attribute("value") or ""
        assert len(csrf) == 64
    for place, fields in ACTS.items():
        form: Any = fields | ({"csrf": csrf} if csrf else {})
        answer = page.request.post(place.replace("DEVICE", world.devices[1].id), form=form, max_redirects=0)
        assert answer.status == 403, place
    assert world.services.store.audit.head() == before


def test_the_routes_above_are_all_that_change_anything(world: "World") -> None:
    from edgewright.server.web.router import page_router

    found = set()
    for route in page_router(world.services, world.acting).routes:
        for handler in getattr(route, "route_handlers", ()):
            if "POST" in handler.http_methods:
                found.add(re.sub(r"\{\w+:str\}", "*", str(route.path)))
    known = {
        re.sub("doors/hall", "*/*", re.sub("w1|DEVICE|nightly|vera", "*", place)) for place in (*ACTS, "/login")
    }
    assert found == known


def test_who_is_not_logged_in_is_asked_to_and_comes_back(world: "World", opened: Opened) -> None:
    page, _ = opened("")
    page.goto("/devices")
    assert page.url.endswith("/login?then=/devices")
    page.get_by_label("Name").fill("vera")
    page.get_by_label("Password").fill("a wrong one for sure")
    page.get_by_role("button", name="Log in").click()
    assert "another one" in page.get_by_role("alert").inner_text()
    page.get_by_label("Password").fill("correct horse battery")
    page.get_by_role("button", name="Log in").click()
    page.wait_for_url("**/devices")
    (kept,) = [one for one in page.context.cookies() if one["name"] == "edgewright_session"]
    assert (kept["httpOnly"], kept["sameSite"]) == (True, "Strict")
    page.get_by_role("button", name="Log out").click()
    page.wait_for_url("**/login")
    again: Any = kept
    page.context.add_cookies([again])
    page.goto("/devices")
    assert "/login" in page.url, "the session outlived its end"


def test_a_session_that_somebody_planted_is_not_taken_over(world: "World", opened: Opened) -> None:
    page, _ = opened("")
    people = world.services.store.accounts
    planted = people.log_in("otto", "correct horse battery", now=time.time(), lifetime_seconds=60.0)
    assert planted is not None
    cookie: Any = {"name": "edgewright_session", "value": planted[0], "url": world.url}
    page.context.add_cookies([cookie])
    form: Any = {"name": "vera", "password": "correct horse battery", "then": "//elsewhere.example/"}
    answer = page.request.post("/login", form=form, max_redirects=0)
    assert (answer.status, answer.headers["location"]) == (303, "/")
    assert planted[0] not in answer.headers["set-cookie"]
    assert people.find_session(planted[0], now=time.time(), idle_seconds=60.0) is None
    elsewhere = page.request.post("/login", form=form, headers={"Sec-Fetch-Site": "cross-site"}, max_redirects=0)
    assert elsewhere.status == 403


def test_an_invitation_is_shown_once_and_enrols_a_device(world: "World", opened: Opened) -> None:
    page, seen = opened("otto")
    page.goto("/access")
    assert page.get_by_role("heading", name="Users").count() == 0
    page.get_by_label("Class").fill("camera")
    page.get_by_label("Labels").fill("site=berlin")
    page.get_by_role("button", name="Make an invitation").click()
    command = page.get_by_label("Command for the device").inner_text()
    assert command.startswith(f"edgewright device enrol --server {world.url} --token ew_invitation_")
    with mock.patch.object(main, "run_guarded", return_value=0) as run:
        assert main.main(shlex.split(command)[1:]) == 0
    run.assert_called_once()
    secret = command.split()[command.split().index("--token") + 1]
    device = world.services.store.devices.enrol(secret, bytes(32), now=time.time())
    assert (device.device_class, device.labels) == ("camera", {"site": "berlin"})
    page.goto("/access")
    assert secret not in page.content()
    assert seen.faults == []
    world.services.store.devices.retire(device.id, now=time.time())


def test_a_device_is_marked_and_retired_from_its_page(world: "World", opened: Opened) -> None:
    device = world.devices[-1].id
    page, seen = opened("otto")
    page.goto(f"/devices/{device}")
    page.get_by_role("button", name="Let it take profiling jobs").click()
    page.get_by_role("button", name="Give it no profiling jobs").wait_for()
    act(page, "Retire", "it burned")
    page.get_by_text("is not believed any more").wait_for()
    retired = world.services.store.devices.get(device)
    assert retired is not None
    assert retired.retired_at is not None
    main = world.services.store.audit.entries(limit=1)[0]
    assert (main.actor, main.action, b"it burned" in bytes(main.detail)) == ("user:otto", "retire device", True)
    assert seen.faults == []


def test_alerts_are_silenced_and_actions_settled(world: "World", opened: Opened) -> None:
    page, seen = opened("ann")
    page.goto("/alerts")
    page.locator("summary", has_text="Silence many-offline").click()
    opened_form = page.locator("details.act[open]")
    opened_form.get_by_label("Hours").fill("2")
    opened_form.get_by_label("Why").fill("we know")
    opened_form.get_by_role("button").click()
    page.get_by_text("Nobody is told").wait_for()
    page.get_by_role("button", name="Approve pause").click()
    page.get_by_text("No action waits for anybody").wait_for()
    assert world.acting.settled == [("user:ann", "w1", True)]
    assert seen.faults == []


def test_people_and_tokens_come_and_go(world: "World", opened: Opened) -> None:
    page, seen = opened("ann")
    page.goto("/access")
    form = page.locator("form[action='/access/users']")
    form.get_by_label("Name").fill("zoe")
    form.get_by_label("Role").select_option("operator")
    form.get_by_label("Password").fill("quite long enough")
    form.get_by_role("button").click()
    page.get_by_role("rowheader", name="zoe").wait_for()
    form = page.locator("form[action='/access/tokens']")
    form.get_by_label("Name").fill("weekly")
    form.get_by_role("button").click()
    secret = page.get_by_label("Secret").inner_text()
    token = world.services.store.accounts.find_token(secret, now=time.time())
    assert token is not None
    assert token.name == "weekly"
    page.locator("summary", has_text="Retire weekly").click()
    page.get_by_role("button", name="Retire weekly now").click()
    page.get_by_text("retired").first.wait_for()
    assert world.services.store.accounts.find_token(secret, now=time.time()) is None
    assert seen.faults == []


def test_what_is_typed_wrongly_is_said_on_a_page(opened: Opened) -> None:
    page, _ = opened("ann")
    page.goto("/access")
    page.locator("form[action='/access/invite']").get_by_label("Class").fill("no/name")
    page.get_by_role("button", name="Make an invitation").click()
    assert "is no name" in page.get_by_role("alert").inner_text()
    assert page.locator("h1").inner_text() == "That cannot be done"
    assert page.goto("/devices/nobody").status == 404  # type: ignore[union-attr]
    assert page.goto("/rollouts/no/where").status == 404  # type: ignore[union-attr]


def test_the_page_can_be_used_with_keys_alone(world: "World", rollout: RolloutPlan, opened: Opened) -> None:
    page, seen = opened("ann")
    page.goto(PLACE)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    for _ in range(12):
        page.keyboard.press("Tab")
        ring = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert ring != "none", page.evaluate("document.activeElement.outerHTML")
        if "Pause" in page.evaluate("document.activeElement.textContent"):
            break
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.type("by keys")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.locator("#said", has_text="paused").wait_for()
    assert plan(world).state == "paused"
    assert seen.faults == []


def test_devices_are_found_by_what_they_are(world: "World", opened: Opened) -> None:
    page, seen = opened("vera")
    page.goto("/devices")
    rows = page.locator("tbody tr")
    assert rows.count() == 50
    page.get_by_role("link", name="Next page").click()
    page.get_by_role("link", name="First page").wait_for()
    assert 15 <= rows.count() <= 20
    page.get_by_label("Class").select_option("hall")
    page.get_by_label("Labels").fill("site=berlin")
    page.get_by_role("button", name="Show").click()
    page.wait_for_url("**device_class=hall**")
    known = [one for one in world.devices if one.device_class == "hall" and one.labels == {"site": "berlin"}]
    assert rows.count() == len(known)
    page.get_by_label("offline for").check()
    page.get_by_role("button", name="Show").click()
    page.wait_for_url("**offline=yes**")
    assert rows.count() < len(known)
    states = {text.replace("\xa0", " ") for text in page.locator("tbody .badge").all_inner_texts()}
    assert states <= {"! offline", "! never heard"}
    assert seen.faults == []
