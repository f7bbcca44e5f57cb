"""Sparsity with training: zeros stay zero, and the weights that are left make up for them."""

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch.nn import functional

from edgewright.compress.model.graph import Graph, clean_model, session_bytes
from edgewright.compress.model.layers import layer_weights
from edgewright.compress.quantize.sparsity import MagnitudePruning, compressed_size, prune_by_magnitude
from edgewright.compress.train.loop.zero_masks import gradual_fractions, make_zero_holder, zero_masks
from edgewright.compress.train.nas.architecture import Architecture
from edgewright.compress.train.nas.graph_builder import build_network
from edgewright.compress.train.torch_graph.onnx_module import TrainableGraph
from edgewright.contract.errors import CandidateError
from edgewright.contract.model.signature import ModelSignature, TensorSpec

torch.set_num_threads(1)

Rows = tuple[NDArray[np.float32], NDArray[np.int64]]
CONTRACT = ModelSignature(
    (TensorSpec("image", "float32", ("n", 1, 8, 8)),), (TensorSpec("scores", "float32", ("n", 10)),)
)


@pytest.fixture(scope="module")
def rows() -> tuple[Rows, Rows]:
    """Digits to train on, and others to judge by."""
    x, y = load_digits(return_X_y=True)
    images = (x.reshape(-1, 1, 8, 8) / 16).astype(np.float32)
    return (images[:1200], y[:1200].astype(np.int64)), (images[1200:], y[1200:].astype(np.int64))


def train(network: TrainableGraph, rows: Rows, epochs: int, *, keep_zeros: bool = False, seed: int = 0) -> None:
    again = make_zero_holder(network, zero_masks(network)) if keep_zeros else None
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-2)
    random = np.random.default_rng(seed)
    network.train()
    for _ in range(epochs):
        order = random.permutation(len(rows[1]))
        for start in range(0, len(order), 100):
            chosen = order[start : start + 100]
            optimiser.zero_grad()
            (scores,) = network(torch.from_numpy(rows[0][chosen]))
            functional.cross_entropy(scores, torch.from_numpy(rows[1][chosen])).backward()
            optimiser.step()
            if again is not None:
                again()
    network.eval()


def accuracy(model: onnx.ModelProto, rows: Rows) -> float:
    (scores,) = session_bytes(model).run(None, {"image": rows[0]})
    return float((np.asarray(scores).argmax(axis=1) == rows[1]).mean())


@pytest.fixture(scope="module")
def dense(rows: tuple[Rows, Rows]) -> onnx.ModelProto:
    """A small network, trained."""
    torch.manual_seed(0)
    network = TrainableGraph(build_network(Architecture("plain", width=16, stages=2, depth=1), CONTRACT, seed=0))
    train(network, rows[0], 8)
    return clean_model(network.to_onnx())


def zeros_of(model: onnx.ModelProto) -> dict[str, NDArray[np.bool_]]:
    graph = Graph(model)
    return {weight.layer: graph.constants[weight.tensor] == 0 for weight in layer_weights(graph)}


def is_two_of_four(model: onnx.ModelProto) -> bool:
    graph = Graph(model)
    for weight in layer_weights(graph):
        assert weight.input_axis is not None
        values = np.moveaxis(graph.constants[weight.tensor], weight.input_axis, -1)
        whole = values.shape[-1] // 4 * 4
        if (np.count_nonzero(values[..., :whole].reshape(-1, 4), axis=1) > 2).any():
            return False
    return True


@pytest.mark.parametrize("step", [MagnitudePruning(fraction=0.7), MagnitudePruning(pattern=(2, 4))])
def test_zeros_are_still_zero_after_training(
    dense: onnx.ModelProto, rows: tuple[Rows, Rows], step: MagnitudePruning
) -> None:
    start = prune_by_magnitude(dense, step)
    network = TrainableGraph(start)
    train(network, rows[0], 2, keep_zeros=True)
    trained = network.to_onnx()
    before, after = zeros_of(start), zeros_of(trained)
    assert all((after[layer] == before[layer]).all() for layer in before)
    changed = Graph(trained)
    for weight in layer_weights(Graph(start)):
        assert (changed.constants[weight.tensor] != Graph(start).constants[weight.tensor]).any()
    assert step.pattern is None or is_two_of_four(trained)
    assert compressed_size(trained) < 0.75 * compressed_size(dense)


def test_without_holding_the_zeros_are_lost(dense: onnx.ModelProto, rows: tuple[Rows, Rows]) -> None:
    network = TrainableGraph(prune_by_magnitude(dense, MagnitudePruning(pattern=(2, 4))))
    train(network, rows[0], 1)
    assert not is_two_of_four(network.to_onnx())


@pytest.mark.parametrize("seed", [0, 1])
def test_training_wins_back_what_two_of_four_lost(
    dense: onnx.ModelProto, rows: tuple[Rows, Rows], seed: int
) -> None:
    start = prune_by_magnitude(dense, MagnitudePruning(pattern=(2, 4)))
    network = TrainableGraph(start)
    train(network, rows[0], 4, keep_zeros=True, seed=seed)
    whole, lost, won = (accuracy(model, rows[1]) for model in (dense, start, network.to_onnx()))
    assert lost < whole - 0.02
    assert won > lost + 0.5 * (whole - lost)


def test_only_named_layers_are_held(dense: onnx.ModelProto) -> None:
    start = prune_by_magnitude(dense, MagnitudePruning(fraction=0.5))
    network = TrainableGraph(start)
    names = list(network.weights())
    assert len(zero_masks(network)) > 1
    assert len(zero_masks(network, names[1:2])) == 1
    with pytest.raises(CandidateError, match="no zeros"):
        zero_masks(TrainableGraph(dense), names[:1])


def test_dense_weights_have_no_masks(dense: onnx.ModelProto) -> None:
    assert zero_masks(TrainableGraph(dense)) == {}


def test_a_gradual_schedule_rises_to_its_end() -> None:
    fractions = gradual_fractions(0.9, 5)
    assert list(fractions) == sorted(fractions)
    assert fractions[-1] == pytest.approx(0.9)
    with pytest.raises(CandidateError, match="impossible"):
        gradual_fractions(1.0, 3)
