"""Records of doubt: what is no rule is refused when it is read."""

import math
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from edgewright.contract.errors import InputError
from edgewright.contract.model.guarantee import AcceptanceRule, Guarantee, PredictionSetRule
from edgewright.contract.model.ood_detector import MAX_PARAMETER_BYTES, EncodedArray, OodRule

# What msgspec finds, and what the records find.
REFUSED = (msgspec.ValidationError, InputError)
REJECTION = {"kind": "rejection", "level": 0.01, "calibration_samples": 300, "confidence": 0.95}
COVERAGE = {"kind": "coverage", "level": 0.9, "calibration_samples": 300}
LOGITS = {"kind": "logits", "score": "energy"}


def packed(*shape: int, value: float = 1.0) -> dict[str, Any]:
    built: dict[str, Any] = msgspec.to_builtins(EncodedArray.of(np.full(shape, value)))
    return built


def ellipsoid(features: int, directions: int, rest: float = 1.0, variance: float = 1.0) -> dict[str, Any]:
    return {
        "directions": packed(features, directions),
        "variances": packed(directions, value=variance),
        "residual_variance": rest,
    }


@given(hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=6), elements=st.floats(-1e6, 1e6, width=32)))
def test_arrays_travel_unchanged(values: NDArray[np.float32]) -> None:
    content = msgspec.json.encode(EncodedArray.of(values))
    np.testing.assert_array_equal(msgspec.json.decode(content, type=EncodedArray).array(), values)


BAD_MEASURES: dict[str, dict[str, Any]] = {
    "unknown": {"kind": "hunch"},
    "unknown score": LOGITS | {"score": "entropy"},
    "extra field": LOGITS | {"temperature": 1.0},
    "no neighbour": {"kind": "neighbours", "output": "e", "points": packed(3, 2), "k": 4},
    "neighbour zero": {"kind": "neighbours", "output": "e", "points": packed(3, 2), "k": 0},
    "too many directions": {
        "kind": "mahalanobis",
        "output": "e",
        "means": packed(3, 2),
        "within_class": ellipsoid(2, 3),
    },
    "other features": {
        "kind": "mahalanobis",
        "output": "e",
        "means": packed(3, 4),
        "within_class": ellipsoid(2, 2),
    },
    "no variance": {
        "kind": "mahalanobis",
        "output": "e",
        "means": packed(3, 2),
        "within_class": ellipsoid(2, 2, variance=0.0),
    },
    "no rest": {
        "kind": "mahalanobis",
        "output": "e",
        "means": packed(3, 2),
        "within_class": ellipsoid(2, 2, rest=0.0),
    },
    "half a background": {
        "kind": "mahalanobis",
        "output": "e",
        "means": packed(3, 2),
        "within_class": ellipsoid(2, 2),
        "background": ellipsoid(2, 2),
    },
    "bytes missing": {
        "kind": "neighbours",
        "output": "e",
        "points": packed(3, 2) | {"shape": [4, 2]},
        "k": 1,
    },
    "squeezing nothing": {"kind": "squeezing", "input": "x"},
    "even window": {"kind": "squeezing", "input": "x", "window": 4},
    "upside down": {"kind": "squeezing", "input": "x", "bits": 3, "low": 1.0, "high": 0.0},
    "axis of the batch": {"kind": "squeezing", "input": "x", "window": 3, "axes": [0]},
}


@pytest.mark.parametrize("name", BAD_MEASURES)
def test_a_measure_that_is_none_is_refused(name: str) -> None:
    content = msgspec.json.encode({"score": BAD_MEASURES[name], "threshold": 1.0, "guarantee": REJECTION})
    with pytest.raises(REFUSED):
        msgspec.json.decode(content, type=OodRule)


def test_a_good_measure_is_read() -> None:
    within = ellipsoid(2, 2)
    measure = {"kind": "mahalanobis", "output": "e", "means": packed(3, 2), "within_class": within}
    for one in (LOGITS, measure, measure | {"background_mean": packed(1, 2), "background": within}):
        content = msgspec.json.encode({"score": one, "threshold": 1.0, "guarantee": REJECTION})
        assert msgspec.json.decode(content, type=OodRule).threshold == 1.0


def test_a_rule_without_a_threshold_or_of_another_promise_is_refused() -> None:
    for threshold, promise in ((None, REJECTION), (1.0, COVERAGE), (1.0, REJECTION | {"level": 1.5})):
        content = msgspec.json.encode({"score": LOGITS, "threshold": threshold, "guarantee": promise})
        with pytest.raises(REFUSED):
            msgspec.json.decode(content, type=OodRule)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_arrays_of_what_is_no_number_are_refused(bad: float) -> None:
    with pytest.raises(Exception, match="NaN or infinity"):
        EncodedArray.of(np.array([1.0, bad]))


def test_arrays_that_would_fill_a_device_are_refused() -> None:
    with pytest.raises(Exception, match="allowed"):
        EncodedArray.of(np.zeros(MAX_PARAMETER_BYTES // 4 + 1))


@pytest.mark.parametrize(
    "rule",
    [
        {"method": "lac", "stratified_by": "all", "thresholds": [], "guarantee": COVERAGE},
        {"method": "lac", "stratified_by": "all", "thresholds": [0.5, 0.5], "guarantee": COVERAGE},
        {"method": "lac", "stratified_by": "group", "thresholds": [0.5], "guarantee": COVERAGE},
        {
            "method": "lac",
            "stratified_by": "group",
            "thresholds": [0.5, 0.5],
            "groups": ["a", "a"],
            "guarantee": COVERAGE,
        },
        {"method": "raps", "stratified_by": "all", "thresholds": [0.5], "guarantee": COVERAGE},
    ],
    ids=["none", "two for all", "unnamed", "same name", "unknown method"],
)
def test_a_rule_of_sets_that_does_not_fit_is_refused(rule: dict[str, Any]) -> None:
    with pytest.raises(REFUSED):
        msgspec.json.decode(msgspec.json.encode(rule), type=PredictionSetRule)


def test_full_sets_and_acceptance_travel_as_json() -> None:
    sets = PredictionSetRule("aps", "class", (0.5, None), Guarantee("coverage by class", 0.9, 40))
    assert msgspec.json.decode(msgspec.json.encode(sets), type=PredictionSetRule) == sets
    accepted = AcceptanceRule(0.7, 0.5, Guarantee("accepted error", 0.05, 40, 0.9))
    assert msgspec.json.decode(msgspec.json.encode(accepted), type=AcceptanceRule) == accepted
    with pytest.raises(Exception, match="finite"):
        AcceptanceRule(math.inf, 0.5, accepted.guarantee)


@pytest.mark.parametrize("kind", ["coverage", "coverage by class", "coverage by group", "risk", "accepted error"])
def test_every_promise_says_level_samples_and_assumption(kind: Any) -> None:
    words = Guarantee(kind, 0.875, 123, 0.9).describe
    assert "0.875" in words
    assert "123" in words
    assert "After a shift nothing is promised" in words
