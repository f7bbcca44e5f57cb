"""Every page in a real browser: nothing fails, nothing comes from elsewhere, everybody can read it."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page
    from tests.browser.conftest import Seen, World

Opened = Callable[..., "tuple[Page, Seen]"]
SCREENSHOTS = bool(os.environ.get("EDGEWRIGHT_SCREENSHOTS"))
EVIL = "Berlin <east>" if SCREENSHOTS else "<script>"
PAGES = {
    "fleet": "/",
    "rollouts": "/rollouts",
    "rollout": "/rollouts/digits/camera",
    "decision": "/rollouts/digits/camera/decisions/autumn/3",
    "devices": "/devices",
    "devices-none": "/devices?device_class=nowhere",
    "device": "/devices/{device}",
    "releases": "/releases",
    "release": "/releases/digits/1.1.0",
    "drift": "/drift",
    "privacy": "/privacy",
    "alerts": "/alerts",
    "audit": "/audit",
    "chain": "/audit/chain",
    "access": "/access",
}
ALL = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]}}
# What the colours decide; the rest is the same in both schemes.
COLOURS = {"runOnly": {"type": "rule", "values": ["color-contrast", "link-in-text-block"]}}
IMAGES = Path(__file__).parents[2] / "docs/images/page"
KEPT = ("fleet", "rollout", "devices", "release", "drift", "privacy", "alerts", "audit")


def address(world: "World", name: str) -> str:
    return PAGES[name].format(device=world.devices[0].id)


def violations(page: "Page", rules: dict[str, Any]) -> list[str]:
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page, options=rules).response["violations"]
    return [f"{one['id']}: {node['target']} {node['failureSummary']}" for one in found for node in one["nodes"]]


def look_at(page: "Page", place: str) -> None:
    page.goto(place)
    if place == "/audit":
        page.get_by_text("are as they were written").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_every_page_is_whole_and_everybody_can_read_it(
    name: str, scheme: str, world: "World", opened: Opened
) -> None:
    page, seen = opened(color_scheme=scheme, viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    look_at(page, address(world, name))
    assert page.locator("h1").count() == 1
    # What devices and people write is shown as text.
    assert page.locator("main script, main [onerror], main img").count() == 0
    assert page.title() != "taken"
    if name in ("device", "alerts", "audit", "drift", "release", "privacy"):
        assert EVIL in page.locator("main").inner_text()
    if SCREENSHOTS and name in KEPT:
        keep(page, name, scheme)
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert violations(page, ALL if scheme == "light" else COLOURS) == []
    page.set_viewport_size({"width": 360, "height": 700})
    width, room = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert width <= room, "it is wider than a phone"
    assert seen.faults == []


def test_a_page_without_scripts_still_says_everything(opened: Opened) -> None:
    page, _ = opened(java_script_enabled=False)
    page.goto("/")
    assert "offline for 2 h or more" in page.locator("main").inner_text()
    page.goto("/rollouts/digits/camera")
    assert page.locator("summary", has_text="Pause").is_visible()
    page.goto("/audit")
    page.get_by_role("link", name="Verify the chain").click()
    assert "are as they were written" in page.locator("main").inner_text()


def test_the_chart_is_drawn_from_the_table_beside_it(world: "World", opened: Opened) -> None:
    page, seen = opened()
    look_at(page, "/")
    assert page.locator("figure.chart canvas").count() == 1
    page.get_by_text("The same as a table").click()
    rows = page.locator("#hours tbody tr")
    assert rows.count() == 49
    said = [
        int(text.replace(",", "")) for text in page.locator("#hours tbody tr td:nth-child(2)").all_inner_texts()
    ]
    taken = sum(hour.check_ins for hour in world.services.store.check_ins.rollups(0, 1e12))
    assert taken - 70 <= sum(said) <= taken
    assert seen.faults == []


def test_times_are_written_for_machines_as_well(opened: Opened) -> None:
    page, _ = opened()
    page.goto("/audit")
    stamps = page.locator("time").evaluate_all("all => all.map((one) => [one.dateTime, one.textContent])")
    assert len(stamps) == 50
    assert all(re.match(r"\d{4}-\d\d-\d\dT[\d:]+\+00:00$", stamp) and "UTC" in text for stamp, text in stamps)


def test_no_state_is_told_by_colour_alone(world: "World", opened: Opened) -> None:
    page, _ = opened()
    for name in PAGES:
        page.goto(address(world, name))
        for text in page.locator(".badge").all_inner_texts():
            assert re.search(r"[a-z]{3}", text), f"{name}: {text!r}"


def keep(page: "Page", name: str, scheme: str) -> None:
    """Write a small screenshot for the documents."""
    from io import BytesIO

    from PIL import Image

    picture = Image.open(BytesIO(page.screenshot())).convert("RGB").quantize(64)
    IMAGES.mkdir(parents=True, exist_ok=True)
    picture.save(IMAGES / f"{name}-{scheme}.png", optimize=True)
