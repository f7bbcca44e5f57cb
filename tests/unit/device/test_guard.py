"""The guard: what breaks the contract is rejected, mended or counted, as the rules say."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgewright.contract.errors import InputError
from edgewright.contract.model.guard import GuardRules, InputRule
from edgewright.contract.model.signature import ModelSignature, TensorSpec
from edgewright.device.guard import Guard, Rejection

CONTRACT = ModelSignature(
    inputs=(TensorSpec("x", "float32", ("batch", 4), 0.0, 1.0), TensorSpec("n", "int64", (1,))),
    outputs=(TensorSpec("y", "float32", ("batch", 2)),),
)
GOOD: dict[str, NDArray[Any]] = {"x": np.array([[0.1, 0.2, 0.3, 0.4]], np.float32), "n": np.array([3], np.int64)}


def guard(*rules: InputRule, **more: Any) -> Guard:
    return Guard(CONTRACT, GuardRules(inputs=rules, **more))


def x(*values: float) -> dict[str, NDArray[Any]]:
    return {**GOOD, "x": np.array([values], np.float32)}


def test_what_keeps_the_contract_passes_untouched() -> None:
    assert guard().check_inputs(GOOD) is GOOD


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "missing": ({"x": GOOD["x"]}, "missing"),
    "unknown": ({**GOOD, "z": GOOD["x"]}, "tensor_spec"),
    "type": ({**GOOD, "x": GOOD["x"].astype(np.float64)}, "tensor_spec"),
    "shape": ({**GOOD, "x": np.zeros((1, 5), np.float32)}, "tensor_spec"),
    "rank": ({**GOOD, "x": np.zeros(4, np.float32)}, "tensor_spec"),
    "NaN": (x(0, math.nan, 0, 0), "not finite"),
    "infinity": (x(0, math.inf, 0, 0), "not finite"),
    "minus infinity": (x(0, -math.inf, 0, 0), "not finite"),
    "below": (x(-0.1, 0, 0, 0), "range"),
    "above": (x(0, 0, 0, 1.1), "range"),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_what_breaks_it_is_rejected_with_the_reason(broken: str) -> None:
    feed, check = BROKEN[broken]
    some = guard()
    found = some.check_inputs(feed)
    assert isinstance(found, Rejection)
    assert (found.check, bool(found.reason)) == (check, True)
    assert sum(some.counts.values()) == 1


def admitted(some: Guard, feed: dict[str, NDArray[Any]]) -> list[float]:
    found = some.check_inputs(feed)
    assert not isinstance(found, Rejection)
    return [float(value) for value in found["x"].reshape(-1)]


def test_rules_mend_what_they_may() -> None:
    assert admitted(guard(InputRule("range", "clamp")), x(-1, 0.5, 2, 1)) == [0.0, 0.5, 1.0, 1.0]
    assert admitted(guard(InputRule("range", "impute", fill=0.25)), x(-1, 0.5, 2, 1)) == [0.25, 0.5, 0.25, 1.0]
    assert admitted(guard(InputRule("range", "count")), x(0, 0.5, 2, 1)) == [0.0, 0.5, 2.0, 1.0]
    assert admitted(guard(InputRule("not finite", "impute", fill=0.5)), x(math.nan, 0, 1, 1)) == [0.5, 0, 1, 1]
    assert admitted(guard(InputRule("missing", "impute", input="x", fill=0.5)), {"n": GOOD["n"]}) == [0.5] * 4


def test_what_is_mended_is_not_the_callers_array() -> None:
    feed = x(-1, 0.5, 2, 1)
    guard(InputRule("range", "clamp")).check_inputs(feed)
    assert feed["x"].tolist() == [[-1, 0.5, 2, 1]]


def test_a_fill_outside_of_the_range_is_rejected_in_turn() -> None:
    found = guard(InputRule("not finite", "impute", fill=7.0)).check_inputs(x(math.nan, 0, 1, 1))
    assert isinstance(found, Rejection)
    assert found.check == "range"


def test_a_stuck_sensor_is_found_and_a_live_one_is_not() -> None:
    some = guard(InputRule("stuck", "reject", input="x", max_repeats=3))
    for _ in range(3):
        assert not isinstance(some.check_inputs(GOOD), Rejection)
    found = some.check_inputs(GOOD)
    assert isinstance(found, Rejection)
    assert found.check == "stuck"
    assert not isinstance(some.check_inputs(x(0.4, 0.3, 0.2, 0.1)), Rejection)  # the same ends, other values
    for number in range(20):
        assert not isinstance(some.check_inputs(x(0.4, 0.3, number / 20, 0.1)), Rejection)


def test_a_dead_sensor_is_found() -> None:
    some = guard(InputRule("dead", "reject"))
    assert isinstance(some.check_inputs(x(0.5, 0.5, 0.5, 0.5)), Rejection)
    assert not isinstance(some.check_inputs(GOOD), Rejection)
    counting = guard(InputRule("dead", "count"))
    assert not isinstance(counting.check_inputs(x(0.5, 0.5, 0.5, 0.5)), Rejection)
    assert counting.counts["dead", "x"] == 1


def test_more_inputs_than_allowed_are_rejected_until_the_second_is_over() -> None:
    now = [0.0]
    some = Guard(
        CONTRACT, GuardRules(inputs=(InputRule("rate", "reject", max_per_second=5.0),)), clock=lambda: now[0]
    )
    found = [isinstance(some.check_inputs(GOOD), Rejection) for _ in range(7)]
    assert found == [False] * 5 + [True] * 2
    now[0] = 1.0
    assert not isinstance(some.check_inputs(GOOD), Rejection)


@pytest.mark.parametrize("value", [math.nan, math.inf, 5.0])
def test_an_output_that_must_not_leave_is_held(value: float) -> None:
    some = guard(output_low=0.0, output_high=1.0)
    found = some.check_outputs([np.array([[0.5, value]], np.float32)])
    assert found is not None
    assert found.check == "output"
    assert some.check_outputs([np.array([[0.5, 1.0]], np.float32)]) is None


def test_fields_that_must_not_be_stored_are_dropped_or_redacted() -> None:
    some = guard(drop_fields=("name",), redact_fields=("place",))
    assert some.filter_fields({"name": "x", "place": "y", "speed": 3}) == {"place": True, "speed": 3}


@pytest.mark.parametrize(
    "rule",
    [
        {"check": "range", "action": "wait"},
        {"check": "not finite", "action": "clamp"},
        {"check": "stuck", "action": "impute"},
        {"check": "rate", "action": "reject", "max_per_second": 0.0},
        {"check": "stuck", "action": "reject", "max_repeats": 0},
        {"check": "missing", "action": "impute", "fill": math.nan},
    ],
)
def test_a_rule_that_cannot_be_kept_is_none(rule: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        InputRule(**rule)


@given(st.lists(st.floats(width=32, allow_nan=True, allow_infinity=True), min_size=4, max_size=4))
def test_whatever_comes_only_what_keeps_the_contract_reaches_the_model(values: list[float]) -> None:
    clamps = guard(InputRule("range", "clamp"), InputRule("not finite", "impute", fill=0.5))
    for some in (guard(), clamps):
        found = some.check_inputs(x(*values))
        if not isinstance(found, Rejection):
            assert ((found["x"] >= 0) & (found["x"] <= 1)).all()
