"""Magnitude pruning: which weights go, and what that is worth under compression."""

import numpy as np
import onnx
import pytest

from edgewright.compress.model.graph import Graph, clean_model
from edgewright.compress.model.layers import layer_weights
from edgewright.compress.quantize.sparsity import MagnitudePruning, compressed_size, prune_by_magnitude
from edgewright.contract.errors import CandidateError


@pytest.mark.parametrize("fraction", [0.25, 0.5, 0.9])
def test_the_smallest_weights_of_every_layer_go(digits_proto: onnx.ModelProto, fraction: float) -> None:
    before = Graph(clean_model(digits_proto))
    after = Graph(prune_by_magnitude(clean_model(digits_proto), MagnitudePruning(fraction=fraction)))
    for weight in layer_weights(before):
        old, new = before.constants[weight.tensor], after.constants[weight.tensor]
        dropped = new == 0
        assert abs(dropped.mean() - fraction) < 0.01
        assert np.abs(old[dropped]).max() <= np.abs(old[~dropped]).min()
        np.testing.assert_array_equal(new[~dropped], old[~dropped])


def test_of_every_four_inputs_the_two_largest_stay(digits_proto: onnx.ModelProto) -> None:
    before = Graph(clean_model(digits_proto))
    after = Graph(prune_by_magnitude(clean_model(digits_proto), MagnitudePruning(pattern=(2, 4))))
    for weight in layer_weights(before):
        assert weight.input_axis is not None
        old = np.moveaxis(before.constants[weight.tensor], weight.input_axis, -1)
        new = np.moveaxis(after.constants[weight.tensor], weight.input_axis, -1)
        whole = old.shape[-1] // 4 * 4
        groups = new[..., :whole].reshape(*new.shape[:-1], -1, 4)
        assert (np.count_nonzero(groups, axis=-1) <= 2).all()
        magnitudes = np.sort(np.abs(old[..., :whole]).reshape(*old.shape[:-1], -1, 4), axis=-1)[..., 2:]
        np.testing.assert_allclose(np.sort(np.abs(groups), axis=-1)[..., 2:], magnitudes)
        np.testing.assert_array_equal(new[..., whole:], old[..., whole:])


def test_dense_layers_are_left_alone(digits_proto: onnx.ModelProto) -> None:
    before = Graph(clean_model(digits_proto))
    kept = layer_weights(before)[0]
    after = Graph(prune_by_magnitude(clean_model(digits_proto), MagnitudePruning(dense_layers=(kept.layer,))))
    np.testing.assert_array_equal(after.constants[kept.tensor], before.constants[kept.tensor])


def test_zeros_show_under_compression_alone(digits_proto: onnx.ModelProto) -> None:
    cleaned = clean_model(digits_proto)
    sparse = prune_by_magnitude(cleaned, MagnitudePruning(fraction=0.8))
    assert abs(sparse.ByteSize() - cleaned.ByteSize()) < 100
    assert compressed_size(sparse) < 0.5 * compressed_size(cleaned)
    assert compressed_size(sparse) == compressed_size(sparse.SerializeToString())


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0, float("nan")])
def test_impossible_fractions_are_refused(fraction: float) -> None:
    with pytest.raises(CandidateError, match="sparsity"):
        MagnitudePruning(fraction=fraction)


@pytest.mark.parametrize("pattern", [(0, 4), (4, 4), (5, 4)])
def test_impossible_patterns_are_refused(pattern: tuple[int, int]) -> None:
    with pytest.raises(CandidateError, match="pattern"):
        MagnitudePruning(pattern=pattern)
