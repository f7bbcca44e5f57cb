"""The nodes that hold weights, and along which axes a weight's channels lie."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx

from edgewright.compress.model.graph import Graph, attribute, walk_nodes

__all__ = ["LayerWeight", "layer_weights", "multiply_accumulates", "weights_of"]

# A weight smaller than this is not worth the nodes that would unpack it.
MIN_WEIGHT_ELEMENTS = 128


@dataclass(frozen=True, slots=True)
class LayerWeight:
    """One weight tensor of one node.

    Attributes:
        layer: Name of the node (in branches, of the node inside the branch).
        op_type: The node's operator.
        tensor: Name of the initializer.
        channel_axes: Axes that get a scale of their own.
        input_axis: Axis of the input channels, None where there is none.
    """

    layer: str
    op_type: str
    tensor: str
    channel_axes: tuple[int, ...]
    input_axis: int | None


def weights_of(node: onnx.NodeProto, graph: Graph) -> Iterator[LayerWeight]:
    """Yield the float weights of a node."""

    def weight(position: int, axes: tuple[int, ...], input_axis: int | None) -> Iterator[LayerWeight]:
        name = node.input[position] if len(node.input) > position else ""
        value = graph.constants.get(name)
        if value is None or value.dtype != np.float32 or value.ndim <= max((*axes, input_axis or 0)):
            return
        if np.isfinite(value).all():  # tables of masks hold infinity on purpose; integers cannot
            yield LayerWeight(node.name or node.output[0], node.op_type, name, axes, input_axis)

    if node.op_type == "Conv":
        yield from weight(1, (0,), 1)
    elif node.op_type == "ConvTranspose":
        yield from weight(1, (1,), 0)
    elif node.op_type == "Gemm":
        transposed = bool(attribute(node, "transB", 0))
        yield from weight(1, (0,) if transposed else (1,), 1 if transposed else 0)
    elif node.op_type == "MatMul":
        value = graph.constants.get(node.input[1]) if len(node.input) > 1 else None
        if value is not None and value.ndim >= 2:
            axes = tuple(axis for axis in range(value.ndim) if axis != value.ndim - 2)
            yield from weight(1, axes, value.ndim - 2)
    elif node.op_type in ("LSTM", "GRU", "RNN"):
        yield from weight(1, (0, 1), 2)
        yield from weight(2, (0, 1), 2)
    elif node.op_type == "Gather":
        yield from weight(0, (0,), None)


def layer_weights(graph: Graph) -> list[LayerWeight]:
    """Return all weights of a graph and its branches, each tensor once."""
    found: dict[str, LayerWeight] = {}
    for node in walk_nodes(graph.nodes):
        for weight in weights_of(node, graph):
            if graph.constants[weight.tensor].size >= MIN_WEIGHT_ELEMENTS:
                found.setdefault(weight.tensor, weight)
    return list(found.values())


def multiply_accumulates(graph: Graph) -> dict[str, int]:
    """Return the multiply-accumulates of each layer for one inference, where shapes are known (batch as 1)."""
    counts: dict[str, int] = {}
    for node in graph.nodes:
        for weight in weights_of(node, graph):
            value = graph.constants[weight.tensor]
            shape = graph.shapes.get(node.output[0], ())
            if node.op_type in ("Conv", "ConvTranspose"):
                positions = int(np.prod([d or 1 for d in shape[2:]])) if shape else 1
                counts[weight.layer] = value.size * positions
            else:
                rows = int(np.prod([d or 1 for d in shape[1:-1]])) if len(shape) > 2 else 1
                counts[weight.layer] = counts.get(weight.layer, 0) + value.size * rows
    return counts
