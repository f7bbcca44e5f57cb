"""Holding a measured model against its budget."""

from typing import Any

import msgspec
import pytest

from edgewright.compress.certify.final_measurement import evaluate_budget
from edgewright.contract.certificate import Certificate
from edgewright.contract.compression_report import ModelFigures
from edgewright.contract.device_class import Budget

ORIGIN = {"kind": "measured", "machine": "m", "method": "m"}


def figure(value: float, unit: str) -> dict[str, Any]:
    return {"value": value, "unit": unit, "origin": ORIGIN}


def figures(**changes: Any) -> ModelFigures:
    facts = {
        "path": "m.onnx",
        "sha256": "0",
        "size_bytes": figure(1000, "bytes"),
        "compressed_bytes": figure(900, "bytes"),
        "latency_p50_ms": figure(2, "ms"),
        "latency_p95_ms": figure(4, "ms"),
        "latency_ratio": figure(0.5, "ratio"),
        "peak_memory_bytes": figure(5000, "bytes"),
        "energy_mj": figure(1, "mJ"),
        "recipe": None,
        "title": "",
        "runtime": {},
    }
    return msgspec.convert(facts | changes, ModelFigures)


def certificate(**changes: Any) -> Certificate:
    facts: dict[str, Any] = {
        "verdict": "certified",
        "metric": "accuracy",
        "original_metric": 0.95,
        "chosen_metric": 0.94,
        "drop": 0.01,
        "upper_bound": 0.015,
        "lower_bound": 0.0,
        "confidence": 0.95,
        "sample_count": 100,
        "max_drop": 0.02,
        "method": "",
        "look": 1,
        "look_confidence": 0.95,
        "cluster_count": None,
        "additional_samples_needed": None,
        "reason": "",
        "data_fingerprint": "",
        "candidate_sha256": "",
    }
    return msgspec.convert(facts | changes, Certificate)


def test_the_drop_alone_is_a_budget() -> None:
    outcome = evaluate_budget(figures(), certificate(), Budget())
    assert (outcome.met, outcome.binding_limit, set(outcome.limits)) == (True, "max_drop", {"max_drop"})
    assert outcome.limits["max_drop"]["share"] == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("limit", "tight", "loose", "name"),
    [
        ("latency_p50_seconds", 0.0019, 0.0021, "latency_p50_ms"),
        ("latency_p95_seconds", 0.0039, 0.0041, "latency_p95_ms"),
        ("size_bytes", 999.0, 1001.0, "size_bytes"),
        ("peak_memory_bytes", 4999.0, 5001.0, "peak_memory_bytes"),
        ("energy_j", 0.00099, 0.00101, "energy_mj"),
        ("min_metric", 0.941, 0.939, "min_metric"),
    ],
)
def test_every_limit_binds_when_it_is_broken_and_when_it_is_nearest(
    limit: str, tight: float, loose: float, name: str
) -> None:
    broken = evaluate_budget(figures(), certificate(), Budget(**{limit: tight}))
    assert (broken.met, broken.binding_limit) == (False, name)
    kept = evaluate_budget(figures(), certificate(), Budget(**{limit: loose}))
    assert (kept.met, kept.binding_limit) == (True, name)
    assert kept.limits[name]["kept"]


def test_what_was_not_certified_is_not_kept() -> None:
    outcome = evaluate_budget(figures(), certificate(verdict="insufficient data"), Budget(size_bytes=10_000))
    assert (outcome.met, outcome.binding_limit) == (False, "max_drop")


def test_of_several_broken_limits_the_most_broken_binds() -> None:
    outcome = evaluate_budget(figures(), certificate(), Budget(size_bytes=900, latency_p50_seconds=0.0001))
    assert outcome.binding_limit == "latency_p50_ms"


def test_a_limit_that_could_not_be_measured_is_not_said_to_be_kept() -> None:
    outcome = evaluate_budget(figures(energy_mj=None), certificate(), Budget(energy_j=1.0))
    assert not outcome.met
    assert outcome.binding_limit == "energy_mj"
