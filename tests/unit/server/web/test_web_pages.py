"""The page without a browser: what is vendored is what was published, what is shown follows from the records."""

import ast
import datetime
import hashlib
import json
import math
import re
from pathlib import Path

import msgspec
import pytest

from edgewright.contract.rollout.decision import CONTROL_ARM, DeviceOutcome
from edgewright.contract.rollout.plan import (
    HealthRule,
    PlanState,
    RolloutArm,
    RolloutPlan,
    RolloutPolicy,
    RolloutStage,
)
from edgewright.rollout.decision import decide_rollout
from edgewright.rollout.outcome_counts import count_outcomes
from edgewright.server.access_control import UserRole
from edgewright.server.store import records

pytest.importorskip("litestar", reason="the extra `server` is not installed")

from edgewright.server.metrics import METRIC_FAMILY_NAMES
from edgewright.server.store.records import CheckInRollup, DeviceGroupCount
from edgewright.server.web import assets
from edgewright.server.web.view_models import drift, interval_bars, overview, rollouts

ROOT = Path(__file__).parents[4]
PAGE = ROOT / "src/edgewright/server/web"
NOW = datetime.datetime(2026, 11, 21, 12, tzinfo=datetime.UTC)
POLICY = RolloutPolicy("m", "c", 1, "0" * 32)
RULES = (HealthRule("crash", 0.05),)


def plan(state: PlanState = "running", stage: int = 0) -> RolloutPlan:
    stages = (RolloutStage(0.5, 60.0, RULES), RolloutStage(1.0))
    return RolloutPlan(
        model="m",
        device_class="c",
        rollout="r",
        epoch=1,
        counter=7,
        arms=(RolloutArm("2", "a" * 64),),
        stages=stages,
        stage=stage,
        stage_started_at=NOW.isoformat(),
        state=state,
    )


def decided(devices: int, bad: int, *, of: RolloutPlan | None = None) -> records.StoredDecision:
    """A decision of the real rules, kept as the controller keeps it."""
    rows = [
        DeviceOutcome(
            f"d{number}",
            CONTROL_ARM if number % 2 else 0,
            NOW.isoformat(),
            {"crash": float(number in range(0, 2 * bad, 2))},
        )
        for number in range(devices)
    ]
    asked = of or plan()
    found = decide_rollout(asked, POLICY, count_outcomes(asked, rows, NOW), NOW)
    content = msgspec.Raw(msgspec.json.encode({"decision": found}))
    reason = "; ".join(found.waiting_for or found.reasons)
    return records.StoredDecision("m/c/r", 1, NOW.timestamp(), found.action, reason, content)


def shown(
    one: records.StoredDecision | None, role: UserRole = UserRole.RELEASE_MANAGER, of: RolloutPlan | None = None
) -> rollouts.RolloutView:
    return rollouts.rollout_view(
        of or plan(), POLICY, [] if one is None else [one], role=role, now=NOW.timestamp() + 60
    )


def test_what_is_vendored_is_what_was_published() -> None:
    rows = re.findall(
        r"^\| (\S+) \| .+ \| ([0-9a-f]{64}) \|$", (PAGE / "static/vendor/README.md").read_text(), re.M
    )
    assert len(rows) == 3
    for name, digest in rows:
        assert hashlib.sha256((PAGE / "static/vendor" / name).read_bytes()).hexdigest() == digest
    licences = {path.name for path in (PAGE / "static/vendor").glob("*.LICENSE")}
    assert licences == {"htmx.LICENSE", "uPlot.LICENSE"}


def test_templates_hold_no_script_or_style_of_their_own_and_name_no_other_host() -> None:
    for path in PAGE.glob("templates/*.jinja"):
        text = path.read_text("utf-8")
        assert not re.search(r"<style|\sstyle=|\son\w+=|hx-on|javascript:|\|\s*safe|autoescape false", text), (
            path.name
        )
        assert not re.search(r"<script(?! src=\"\{\{ asset)", text), path.name
        assert not re.search(r"https?://|//[a-z]+\.", text), path.name


def test_every_form_that_changes_something_carries_the_token() -> None:
    for path in PAGE.glob("templates/*.jinja"):
        for form in re.findall(r"<form[^>]*method=\"post\".*?</form>", path.read_text("utf-8"), re.S):
            assert "token(csrf)" in form or 'action="/login"' in form, f"{path.name}: {form[:80]}"


def test_another_version_of_a_file_has_another_address() -> None:
    for name, asset in assets.ASSETS.items():
        assert assets.address_of(name) == f"/static/{hashlib.sha256(asset.content).hexdigest()[:16]}/{name}"


def test_what_is_shown_loads_nothing_of_the_web() -> None:
    for path in PAGE.glob("shown/*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        modules = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not [name for name in modules if name.split(".")[0] in ("litestar", "jinja2", "sqlalchemy")], (
            path.name
        )


def test_evidence_is_shown_with_its_bound_beside_its_margin() -> None:
    found = shown(decided(2000, 0))
    (crash, offline) = sorted(found.evidence, key=lambda row: row.metric)
    assert (crash.verdict.word, crash.margin) == ("within its margin", "5.00 pp")
    assert crash.bar.limit is not None
    assert crash.bar.bound is not None
    assert crash.bar.bound < crash.bar.limit
    assert (offline.verdict.word, offline.bar.limit) == ("watched for harm only", None)
    few = shown(decided(40, 0))
    assert few.evidence[0].verdict.word == "not shown yet"
    assert few.evidence[0].bar.beyond
    assert "more devices" in few.missing[-1]


def test_evidence_of_an_earlier_stage_is_not_shown_as_of_this_one() -> None:
    found = shown(decided(2000, 0), of=plan(stage=1))
    assert (found.evidence, found.harm, found.missing) == ((), None, ())
    assert len(found.decisions) == 1


def test_harm_fills_its_gauge_where_the_rollout_is_taken_back() -> None:
    found = shown(decided(2000, 400))
    assert found.harm is not None
    assert found.harm.share == 100.0
    assert "roll back" in found.said
    assert "evidence of harm" in found.harmful[0]
    assert shown(decided(2000, 0)).harmful == ()


def test_people_are_offered_only_what_they_may_do_and_what_can_be_done() -> None:
    def names(role: UserRole, of: RolloutPlan) -> list[str]:
        return [act.name for act in shown(None, role, of).acts]

    assert names(UserRole.VIEWER, plan()) == []
    assert names(UserRole.OPERATOR, plan()) == ["pause", "abort"]
    assert names(UserRole.RELEASE_MANAGER, plan()) == ["advance", "pause", "abort"]
    assert names(UserRole.RELEASE_MANAGER, plan(stage=1)) == ["pause", "abort"]
    assert names(UserRole.OPERATOR, plan("paused")) == ["abort"]
    assert names(UserRole.RELEASE_MANAGER, plan("paused")) == ["resume", "abort"]
    for state in ("aborted", "done"):
        assert names(UserRole.RELEASE_MANAGER, plan(state)) == []


def test_a_decision_says_whether_it_would_be_made_again() -> None:
    one = decided(2000, 0)
    assert rollouts.decision_inputs_view(one, "/x", 0.0).again.word.endswith("the same")
    changed = json.loads(bytes(one.inputs))
    changed["decision"]["log_e_value"] += 1.0
    other = msgspec.structs.replace(one, inputs=msgspec.Raw(json.dumps(changed).encode()))
    assert "something else" in rollouts.decision_inputs_view(other, "/x", 0.0).again.word
    strange = msgspec.structs.replace(one, inputs=msgspec.Raw(b'{"of": "another version"}'))
    assert rollouts.decision_inputs_view(strange, "/x", 0.0).text == '{\n  "of": "another version"\n}'


def test_what_has_not_changed_has_the_same_digest() -> None:
    one = decided(200, 1)
    first = shown(one)
    later = rollouts.rollout_view(plan(), POLICY, [one], role=UserRole.VIEWER, now=NOW.timestamp() + 9000)
    assert first.digest == later.digest
    assert shown(one, of=plan("paused")).digest != first.digest
    assert shown(decided(202, 1)).digest != first.digest


def test_bars_stay_on_their_line_whatever_the_numbers() -> None:
    for low, high, bound in ((-math.inf, math.inf, math.inf), (0.0, 0.0, 0.0), (-1.0, 1.0, 0.5)):
        bar = interval_bars.difference_bar(0.0, low, high, bound=bound, limit=0.02, words="")
        marks = [bar.low, bar.low + bar.width, bar.at, bar.zero, bar.bound, bar.limit]
        assert all(mark is not None and 0 <= mark <= 100 for mark in marks)


def test_a_fleet_that_is_too_small_to_see_drift_is_never_shown_as_well() -> None:
    said = {"says": "too few devices to detect", "p_value": 1.0, "power": 0.1, "detectable": None}
    found = {"cohorts": 2, "devices": 20, "warnings": [], "outcomes": {}, "classes": {}, "calibration": {}}
    for verdict in ("too few devices", "no shift of the stated size or more", "drift"):
        signals = {"mean": said | {"verdict": verdict}}
        (row,) = drift.drift_view("m", "c", found | {"signals": signals}).signals
        assert row.verdict.tone != "good"
        assert row.power == "10 %"
        if verdict == "too few devices":
            assert row.verdict.word == "too few devices to see a shift of this size"


def test_silent_devices_are_those_that_were_not_heard_whatever_they_run() -> None:
    groups = [DeviceGroupCount("c", "m", "1", "", "idle", "", 5), DeviceGroupCount("c", "", "", "", "empty", "", 2)]
    found = overview.overview_view(groups, groups[:1], {}, [], [], silent_after="2 h", now=0.0)
    assert (found.devices, found.offline, found.classes[0].offline) == (7, 2, 2)
    assert [row.devices for row in found.classes[0].versions] == ["5", "2"]


def test_hours_without_a_word_are_shown_as_zeros() -> None:
    hour = CheckInRollup(
        started_at=3600,
        span_seconds=3600,
        device_class="c",
        model="m",
        version="1",
        arm="",
        devices=1,
        check_ins=9,
        refused=1,
        with_failures=0,
        latency_count=0,
        latency_sum_seconds=0.0,
        battery_count=0,
        battery_sum=0.0,
    )
    rows = overview.hour_rows([hour, msgspec.structs.replace(hour, device_class="d")], 0.0, 3 * 3600.0)
    assert [(row.started_at, row.check_ins, row.refused) for row in rows] == [
        (0, 0, 0),
        (3600, 18, 2),
        (7200, 0, 0),
        (10800, 0, 0),
    ]


@pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="the documents are not in this installation")
def test_the_dashboard_asks_only_for_metrics_that_there_are() -> None:
    board = json.loads((ROOT / "docs/grafana/edgewright.json").read_text("utf-8"))
    asked = set(re.findall(r"edgewright_\w+", json.dumps([panel["targets"] for panel in board["panels"]])))
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked} == set(METRIC_FAMILY_NAMES)
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
