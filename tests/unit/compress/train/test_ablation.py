"""Contributions: only pairs that differ in one step are compared."""

from typing import Any

import pytest

from edgewright.compress.train.ablation import find_ablations
from edgewright.contract.training_report import TrainedNetwork

ORIGINAL = 0.98


def network(title: str = "cnn", **changes: Any) -> TrainedNetwork:
    usual: dict[str, Any] = {
        "network_sha256": title,
        "title": title,
        "origin": "fresh",
        "parent_sha256": "start",
        "search_round": 1,
        "training_rows": 1000,
        "distilled": True,
        "parameters": 1000,
        "latency_ratio": 0.5,
        "validation_metric": 0.9,
        "drop": 0.01,
        "training_seconds": 1.0,
    }
    return TrainedNetwork(**(usual | changes))


def test_distillation_is_the_difference_to_the_twin_without_a_teacher() -> None:
    (found,) = find_ablations([network(), network(distilled=False, drop=0.05)], ORIGINAL)
    assert (found.step, found.compared_on, found.measured_on) == ("distillation", "cnn", "select split")
    assert found.metric_with == pytest.approx(0.97)
    assert found.metric_without == pytest.approx(0.93)
    assert found.size_ratio is None


@pytest.mark.parametrize(
    "changes",
    [
        {"parent_sha256": "another start"},
        {"search_round": 2},
        {"drop": None},
        {"distilled": False},
    ],
    ids=str,
)
def test_networks_that_differ_in_more_are_not_compared(changes: dict[str, Any]) -> None:
    assert find_ablations([network(**changes), network(distilled=False, drop=0.05)], ORIGINAL) == []


def test_a_twin_that_failed_says_nothing() -> None:
    assert find_ablations([network(), network(distilled=False, drop=None, network_sha256="")], ORIGINAL) == []


def test_pruning_is_compared_with_what_was_pruned_in_the_same_round() -> None:
    whole = network(search_round=2)
    narrow = network(
        "cnn, pruned by 25%",
        origin="pruned",
        search_round=2,
        drop=0.02,
        parameters=600,
        latency_ratio=0.4,
        parent_sha256="narrow",
    )
    (found,) = find_ablations([whole, narrow], ORIGINAL)
    assert (found.step, found.compared_on) == ("pruning", "cnn, pruned by 25%")
    assert [found.metric_without, found.metric_with] == pytest.approx([0.97, 0.96])
    assert [found.size_ratio, found.latency_ratio] == pytest.approx([0.6, 0.8])


def test_pruning_of_the_original_has_no_trained_twin() -> None:
    narrow = network("pruned by 30%", origin="pruned", search_round=1)
    longer = network("pruned by 30%", origin="continued", search_round=2)
    assert find_ablations([network(), narrow, longer], ORIGINAL) == []


def test_a_pruned_network_of_a_later_round_is_compared_with_its_own_round() -> None:
    early, late = network(search_round=2, drop=0.03), network(search_round=3, drop=0.01)
    narrow = network("cnn, pruned by 25%", origin="pruned", search_round=2, drop=0.04)
    (found,) = find_ablations([early, late, narrow], ORIGINAL)
    assert found.metric_without == pytest.approx(0.95)


def test_an_unknown_latency_stays_unknown() -> None:
    narrow = network("cnn, pruned by 25%", origin="pruned", search_round=2, latency_ratio=None)
    (found,) = find_ablations([network(search_round=2), narrow], ORIGINAL)
    assert found.latency_ratio is None


def test_nothing_trained_has_contributed_nothing() -> None:
    assert find_ablations([], ORIGINAL) == []
