"""Ratios per layer: speed where it is cheap, in order, and only as much as is wanted."""

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgewright.compress.model.graph import Graph
from edgewright.compress.model.layers import multiply_accumulates
from edgewright.compress.train.prune.pruner import StructuredPruning, prunable_widths, prune_network
from edgewright.compress.train.prune.ratio_allocation import (
    allocate_ratios,
    probe_gains,
    probe_sensitivity,
    prune_to_latency,
)
from edgewright.contract.errors import CandidateError

torch.set_num_threads(1)

SHARES = (0.25, 0.5, 0.75)
Curves = dict[str, dict[float, float]]

numbers = st.floats(-0.1, 1.0, allow_nan=False)
curves = st.dictionaries(
    st.sampled_from("abcde"), st.fixed_dictionaries(dict.fromkeys(SHARES, numbers)), min_size=1, max_size=5
)


def saved(ratios: dict[str, float], gains: Curves) -> float:
    return sum(gains[layer][share] for layer, share in ratios.items() if share)


@given(curves, st.data(), st.floats(0, 2), st.floats(0, 2))
def test_who_wants_more_speed_gets_no_less_in_any_layer(
    sensitivity: Curves, data: st.DataObject, first: float, second: float
) -> None:
    gains = {layer: data.draw(st.fixed_dictionaries(dict.fromkeys(SHARES, numbers))) for layer in sensitivity}
    less, more = (allocate_ratios(sensitivity, gains, wanted) for wanted in sorted((first, second)))
    assert all(less[layer] <= more[layer] for layer in sensitivity)
    assert saved(less, gains) <= saved(more, gains) + 1e-9


@given(curves)
def test_who_wants_nothing_loses_nothing(sensitivity: Curves) -> None:
    assert set(allocate_ratios(sensitivity, sensitivity, 0.0).values()) == {0.0}


def test_the_wanted_share_is_reached_at_the_least_loss() -> None:
    sensitivity = {"dear": {0.5: 1.0}, "cheap": {0.25: 0.01, 0.5: 0.03}, "vain": {0.5: 0.0}}
    gains = {"dear": {0.5: 0.3}, "cheap": {0.25: 0.1, 0.5: 0.2}, "vain": {0.5: 0.0}}
    assert allocate_ratios(sensitivity, gains, 0.1) == {"dear": 0.0, "cheap": 0.25, "vain": 0.0}
    assert allocate_ratios(sensitivity, gains, 0.2) == {"dear": 0.0, "cheap": 0.5, "vain": 0.0}
    assert allocate_ratios(sensitivity, gains, 0.4) == {"dear": 0.5, "cheap": 0.5, "vain": 0.0}
    assert allocate_ratios(sensitivity, gains, 5.0) == {"dear": 0.5, "cheap": 0.5, "vain": 0.0}


def test_speed_that_only_a_large_share_brings_is_found() -> None:
    assert allocate_ratios({"a": {0.25: 0.1, 0.5: 0.2}}, {"a": {0.25: 0.0, 0.5: 0.3}}, 0.1) == {"a": 0.5}


def work(model: onnx.ModelProto) -> float:
    """Stand in for a latency: multiply-accumulates."""
    return float(sum(multiply_accumulates(Graph(model)).values()))


def test_probed_layers_and_chosen_ratios_fit_together(
    digits_proto: onnx.ModelProto, digits: dict[str, NDArray[np.float32]]
) -> None:
    batches = [((digits["x"][:200],), digits["y"][:200])]
    layers = list(prunable_widths(digits_proto))
    sensitivity = probe_sensitivity(digits_proto, batches, layers, shares=(0.25, 0.3, 0.5))
    gains = probe_gains(digits_proto, work, layers, shares=(0.25, 0.3, 0.5))
    assert set(sensitivity) == set(gains) == set(layers)
    assert all(set(curve) == {0.25, 0.5} for curve in sensitivity.values())  # 0.3 is 0.25 in whole SIMD widths
    assert all(0 < curve[0.25] < curve[0.5] for curve in gains.values())
    assert all(curve[0.5] > -0.01 for curve in sensitivity.values())
    ratios = allocate_ratios(sensitivity, gains, 0.2)
    narrow = prune_network(digits_proto, StructuredPruning(ratio=0.0, ratios=ratios))
    assert work(narrow) <= 0.85 * work(digits_proto)  # layers share what they save, so a little less than the sum


@pytest.mark.parametrize("share", [0.7, 0.4])
def test_pruned_to_a_latency_the_model_takes_no_more_and_not_much_less(
    digits_proto: onnx.ModelProto, digits: dict[str, NDArray[np.float32]], share: float
) -> None:
    batches = [((digits["x"][:200],), digits["y"][:200])]
    narrow = prune_to_latency(digits_proto, batches, work, share)
    assert 0.6 * share <= work(narrow) / work(digits_proto) <= share


def test_what_cannot_become_so_fast_is_refused(
    digits_proto: onnx.ModelProto, digits: dict[str, NDArray[np.float32]]
) -> None:
    batches = [((digits["x"][:200],), digits["y"][:200])]
    with pytest.raises(CandidateError, match="pruned as far as possible"):
        prune_to_latency(digits_proto, batches, work, 0.001)
