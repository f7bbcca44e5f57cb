"""Moving scale from one layer into the next, so that both quantise better; the network's answers stay the same.

`CrossLayerEqualization` balances the weights of neighbouring layers (cross-layer equalisation, Nagel 2019,
arXiv:1906.04721); `SmoothQuant` moves peaks of activations into the weights that read them (SmoothQuant, Xiao 2022,
arXiv:2211.10438). Both rescale the channels between two layers with nothing but Relu between them, since
relu(s x) = s relu(x) for s > 0.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray

from edgewright.compress.model.graph import Graph, attribute
from edgewright.compress.model.layers import weights_of
from edgewright.compress.quantize.activation_ranges import TensorStatistics
from edgewright.contract.errors import CandidateError

__all__ = ["CrossLayerEqualization", "SmoothQuant", "equalize_layers", "layer_pairs", "smooth_activations"]

_SWEEPS = 8


class CrossLayerEqualization(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="step", tag="equalize"
):
    """Balance the weights' channel ranges of neighbouring layers."""


class SmoothQuant(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="step", tag="smooth"):
    """Move peaks of activations into the weights.

    Attributes:
        strength: 0 leaves all to the activations, 1 moves all into the weights; 0.5 is customary.
    """

    strength: float = 0.5


@dataclass(frozen=True, slots=True)
class LayerPair:
    """Two layers whose channels between them may be rescaled.

    Attributes:
        first: The producer.
        second: The reader.
        tensor: The tensor that `second` reads.
    """

    first: onnx.NodeProto
    second: onnx.NodeProto
    tensor: str


def layer_pairs(graph: Graph) -> list[LayerPair]:
    """Return the neighbours with constant weights and at most Relu between them."""
    consumers, producers = graph.consumers(), graph.producers()
    outputs = set(graph.output_names)
    shared = {name for node in graph.nodes for name in node.input[1:] if len(consumers.get(name, [])) > 1}

    def alone(name: str) -> bool:
        return len(consumers.get(name, [])) == 1 and name not in outputs

    found = []
    for second in graph.nodes:
        if not _is_layer(second, graph) or second.input[1] in shared:
            continue
        between = second.input[0]
        first = producers.get(between)
        if first is not None and first.op_type == "Relu" and alone(between):
            first = producers.get(first.input[0])
        if first is None or not _is_layer(first, graph) or any(name in shared for name in first.input[1:]):
            continue
        if alone(between) and alone(first.output[0]) and _outputs(first, graph) == _inputs(second, graph):
            found.append(LayerPair(first, second, between))
    return found


def equalize_layers(model: onnx.ModelProto, step: CrossLayerEqualization) -> onnx.ModelProto:
    """Return an equivalent model whose neighbouring layers have alike channel ranges.

    Raises:
        CandidateError: No two layers are neighbours.
    """
    del step
    graph = Graph(model)
    neighbours = layer_pairs(graph)
    if not neighbours:
        raise CandidateError("no two layers are neighbours", remedy="Leave equalisation out.")
    for _ in range(_SWEEPS):
        for pair in neighbours:
            first, second = _output_peaks(pair.first, graph), _input_peaks(pair.second, graph)
            live = (first > 0) & (second > 0)
            factors = np.where(live, np.sqrt(np.where(live, first / np.where(live, second, 1), 1)), 1)
            _rescale(graph, pair, factors)
    return graph.to_model()


def smooth_activations(
    model: onnx.ModelProto, step: SmoothQuant, statistics: Mapping[str, TensorStatistics]
) -> onnx.ModelProto:
    """Return an equivalent model whose activations have fewer peaks.

    Raises:
        CandidateError: No activation can be rescaled.
    """
    graph = Graph(model)
    neighbours = [pair for pair in layer_pairs(graph) if pair.tensor in statistics]
    if not neighbours:
        raise CandidateError("no activation lies between two layers", remedy="Leave smoothing out.")
    for pair in neighbours:
        peaks = statistics[pair.tensor].channel_peak.astype(np.float64)
        weights = _input_peaks(pair.second, graph)
        if len(peaks) != len(weights):
            continue
        live = (peaks > 0) & (weights > 0)
        factors = np.where(live, peaks**step.strength / np.where(live, weights, 1) ** (1 - step.strength), 1)
        # Only ratios between channels matter; a mean of one keeps biases in their range.
        _rescale(graph, pair, factors / np.exp(np.log(np.maximum(factors, 1e-12)).mean()))
    return graph.to_model()


def _is_layer(node: onnx.NodeProto, graph: Graph) -> bool:
    if node.op_type not in ("Conv", "Gemm") or not list(weights_of(node, graph)):
        return False
    if len(node.input) > 2 and node.input[2] and node.input[2] not in graph.constants:
        return False
    if node.op_type == "Gemm":
        plain = attribute(node, "alpha", 1.0) == 1.0 and attribute(node, "beta", 1.0) == 1.0
        return plain and not attribute(node, "transA", 0)
    groups = attribute(node, "group", 1)
    return bool(groups == 1 or groups == graph.constants[node.input[1]].shape[0])


def _depthwise(node: onnx.NodeProto) -> bool:
    return node.op_type == "Conv" and bool(attribute(node, "group", 1) > 1)


def _outputs(node: onnx.NodeProto, graph: Graph) -> int:
    weight = next(iter(weights_of(node, graph)))
    return int(graph.constants[weight.tensor].shape[weight.channel_axes[0]])


def _inputs(node: onnx.NodeProto, graph: Graph) -> int:
    weight = next(iter(weights_of(node, graph)))
    axis = weight.channel_axes[0] if _depthwise(node) else weight.input_axis
    return int(graph.constants[weight.tensor].shape[axis or 0])


def _output_peaks(node: onnx.NodeProto, graph: Graph) -> NDArray[np.float64]:
    weight = next(iter(weights_of(node, graph)))
    moved = np.moveaxis(graph.constants[weight.tensor], weight.channel_axes[0], 0)
    peaks: NDArray[np.float64] = np.abs(moved).reshape(len(moved), -1).max(axis=1).astype(np.float64)
    return peaks


def _input_peaks(node: onnx.NodeProto, graph: Graph) -> NDArray[np.float64]:
    weight = next(iter(weights_of(node, graph)))
    axis = weight.channel_axes[0] if _depthwise(node) else weight.input_axis
    moved = np.moveaxis(graph.constants[weight.tensor], axis or 0, 0)
    peaks: NDArray[np.float64] = np.abs(moved).reshape(len(moved), -1).max(axis=1).astype(np.float64)
    return peaks


def _rescale(graph: Graph, pair: LayerPair, factors: NDArray[np.float64]) -> None:
    """Divide the channels between the two layers by `factors`."""
    for node, along, power in ((pair.first, "output", -1), (pair.second, "input", 1)):
        weight = next(iter(weights_of(node, graph)))
        values = graph.constants[weight.tensor]
        by_channel = along == "output" or _depthwise(node)
        axis = weight.channel_axes[0] if by_channel else weight.input_axis
        view = [1] * values.ndim
        view[axis or 0] = -1
        graph.constants[weight.tensor] = (values * (factors**power).reshape(view)).astype(np.float32)
    if len(pair.first.input) > 2 and pair.first.input[2]:
        name = pair.first.input[2]
        graph.constants[name] = (graph.constants[name] / factors).astype(np.float32)
