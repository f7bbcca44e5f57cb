"""When people are told, and what is done by itself."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewright.contract.alert import ActionPolicy, AlertRule, AlertSilence, MetricReading, RuleState
from edgewright.contract.errors import InputError
from edgewright.fleet.action_policy import PastAction, check_policy
from edgewright.fleet.alert_rules import AlertEvent, RuleKey, evaluate_rules

RULE = AlertRule("too-many", "failing", above=0.05, clear_at=0.03, for_seconds=100.0)


def readings(
    *pairs: tuple[float, float | None], metric: str = "failing", of: str = "camera"
) -> list[MetricReading]:
    return [MetricReading(metric, of, value, at) for at, value in pairs]


def told(
    pairs: list[tuple[float, float | None]], rule: AlertRule = RULE, **more: Any
) -> tuple[dict[RuleKey, RuleState], list[AlertEvent]]:
    return evaluate_rules([rule], {}, readings(*pairs), **more)


def kinds(events: list[AlertEvent]) -> list[tuple[str, float]]:
    return [(event.kind, event.at) for event in events]


def test_it_fires_once_after_its_time_and_ends_after_as_long_a_quiet() -> None:
    pairs = [(0, 0.1), (50, 0.1), (100, 0.1), (150, 0.2), (200, 0.02), (250, 0.02), (300, 0.01), (400, 0.01)]
    _, events = told(pairs)  # type: ignore[arg-type]
    assert kinds(events) == [("fired", 100), ("ended", 300)]
    assert events[0].message == "too-many: failing on camera is 0.1, above 0.05 for 100 s"


def test_a_moment_beyond_the_limit_is_nothing() -> None:
    assert told([(0, 0.1), (50, 0.01), (60, 0.1), (150, 0.1), (159, 0.1)])[1] == []


def test_between_limit_and_clear_it_neither_fires_nor_ends() -> None:
    states, events = told([(0, 0.1), (100, 0.1), (200, 0.04), (900, 0.04)])
    assert kinds(events) == [("fired", 100)]
    assert states["too-many", "camera"].state == "firing"
    again = told([(0, 0.1), (100, 0.1), (200, 0.02), (250, 0.04), (320, 0.02), (419, 0.02)])[1]
    assert kinds(again) == [("fired", 100)], "the quiet was interrupted"


def test_nobody_saying_anything_changes_nothing() -> None:
    assert kinds(told([(0, 0.1), (50, None), (100, 0.1)])[1]) == [("fired", 100)]


def test_what_is_no_number_is_beyond_every_limit() -> None:
    rule = AlertRule("r", "failing", above=0.05)
    assert kinds(told([(0, float("nan"))], rule)[1]) == [("fired", 0)]


def test_below_is_the_same_upside_down() -> None:
    rule = AlertRule("r", "free_bytes", below=1e6, clear_at=2e6)
    _, events = evaluate_rules([rule], {}, readings((0, 5e5), (1, 1.5e6), (2, 3e6), metric="free_bytes"))
    assert kinds(events) == [("fired", 0), ("ended", 2)]


def test_each_device_class_stands_for_itself() -> None:
    rule = AlertRule("r", "failing", above=0.05)
    only = AlertRule("only", "failing", above=0.05, device_class="watch")
    both = [*readings((0, 0.1)), *readings((0, 0.2), of="watch")]
    _, events = evaluate_rules([rule, only], {}, both)
    assert {(event.rule.name, event.device_class) for event in events} == {
        ("r", "camera"),
        ("r", "watch"),
        ("only", "watch"),
    }


def test_silence_is_kept_and_told_apart() -> None:
    silence = AlertSilence("too-many", 150.0, "ada", "we know")
    _, events = told([(0, 0.1), (100, 0.1), (200, 0.0), (300, 0.0)], silences=[silence])
    assert [(event.kind, event.silenced) for event in events] == [("fired", True), ("ended", False)]


@given(st.lists(st.tuples(st.floats(0, 1e4), st.floats(0, 0.2)), min_size=1, max_size=40), st.integers(1, 39))
def test_judging_in_two_parts_is_judging_at_once(pairs: list[tuple[float, float]], cut: int) -> None:
    ordered = sorted(pairs)
    whole, events = evaluate_rules([RULE], {}, readings(*ordered))
    first, before = evaluate_rules([RULE], {}, readings(*ordered[:cut]))
    second, after = evaluate_rules([RULE], first, readings(*ordered[cut:]))
    assert second == whole
    assert kinds(before) + kinds(after) == kinds(events)


@given(st.lists(st.tuples(st.floats(0, 1e4), st.floats(0, 0.2)), max_size=60))
def test_fired_and_ended_come_in_turns(pairs: list[tuple[float, float]]) -> None:
    _, events = told(pairs)  # type: ignore[arg-type]
    assert [event.kind for event in events] == ["fired", "ended"] * (len(events) // 2) + ["fired"] * (
        len(events) % 2
    )


@pytest.mark.parametrize(
    "given_",
    [
        {"metric": "nothing", "above": 1.0},
        {"metric": "failing"},
        {"metric": "failing", "above": 1.0, "below": 0.0},
        {"metric": "failing", "above": 0.1, "clear_at": 0.2},
        {"metric": "failing", "below": 0.1, "clear_at": 0.0},
        {"metric": "failing", "above": float("nan")},
        {"metric": "failing", "above": 0.1, "for_seconds": -1.0},
        {"metric": "failing", "above": 0.1, "name": "../x"},
    ],
    ids=str,
)
def test_a_rule_that_cannot_work_is_refused(given_: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        AlertRule(**{"name": "r"} | given_)


POLICY = ActionPolicy("roll back", cooldown_seconds=600.0, max_per_day=2)


@pytest.mark.parametrize(
    ("history", "granted", "asks"),
    [
        ([], True, False),
        ([PastAction("roll back", "camera", 900.0)], False, False),
        ([PastAction("roll back", "camera", 399.0)], True, False),
        ([PastAction("roll back", "watch", 900.0)], True, False),
        ([PastAction("roll back", "watch", 900.0), PastAction("roll back", "watch", 800.0)], False, True),
        ([PastAction("pause", "camera", 999.0)], True, False),
        ([PastAction("roll back", "camera", 5000.0)], False, False),
    ],
    ids=["first", "cooling down", "cooled down", "elsewhere", "too often", "another action", "a clock set back"],
)
def test_what_an_alert_may_set_off(history: list[PastAction], granted: bool, asks: bool) -> None:
    found = check_policy("roll back", "camera", [POLICY], history, now=1000.0)
    assert (found.allowed, found.needs_approval) == (granted, asks), found.reason


def test_without_a_policy_or_with_approval_a_person_is_asked_and_people_are_always_told() -> None:
    assert check_policy("retrain", "camera", [], [], now=0.0).needs_approval
    asked = check_policy("retrain", "camera", [ActionPolicy("retrain", needs_approval=True)], [], now=0.0)
    assert (asked.allowed, asked.needs_approval) == (False, True)
    assert check_policy("notify", "camera", [], [], now=0.0).allowed
