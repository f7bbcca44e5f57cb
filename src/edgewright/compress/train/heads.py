"""Attention heads: where they lie in a graph, and taking whole heads out of it."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from edgewright.compress.graph import Graph, attribute
from edgewright.compress.train.follow import Tags, follow, take_out

__all__ = ["Attention", "find_attention", "remove_heads"]

_ON_THE_WAY = frozenset(
    (
        "Transpose Reshape Squeeze Unsqueeze Flatten Identity Dropout Slice Gather Split Mul Div Add Where "
        "Cast Softmax Relu Elu"
    ).split()
)


@dataclass(frozen=True, slots=True)
class Attention:
    """One attention of several heads.

    Attributes:
        name: Name of its softmax.
        heads: How many.
        columns: Per projection layer the head of each of its outputs, -1 for those of no head.
    """

    name: str
    heads: int
    columns: dict[str, NDArray[np.int64]]


def find_attention(graph: Graph) -> list[Attention]:
    """Return the attentions whose queries, keys and values come from layers, and whose heads are an axis."""
    found = []
    for softmax in graph.nodes:
        shape = graph.shapes.get(softmax.output[0], ()) if softmax.op_type == "Softmax" else ()
        if len(shape) == 4 and shape[1] is not None and shape[1] > 1:
            attention = _around(softmax, int(shape[1]), graph)
            if attention is not None:
                found.append(attention)
    return found


def remove_heads(graph: Graph, attention: Attention, heads: Collection[int]) -> None:
    """Take these heads out of the projections and of what reads them; the graph is changed in place.

    Raises:
        CandidateError: The heads cannot be followed to the layer that reads them.
    """
    layers = {node.name: node for node in graph.nodes}
    starts = {layers[name].output[0]: _tags(graph, layers[name], of) for name, of in attention.columns.items()}
    take_out(graph, follow(graph, starts), heads)
    for name, of in attention.columns.items():
        node = layers[name]
        stay = np.flatnonzero(~np.isin(of, list(heads)))
        axis = 0 if node.op_type == "Gemm" and attribute(node, "transB", 0) else 1
        node.input[1] = graph.constant("weight", np.take(graph.constants[node.input[1]], stay, axis=axis))
        if len(node.input) > 2 and graph.constants[node.input[2]].size > 1:
            node.input[2] = graph.constant("bias", graph.constants[node.input[2]][..., stay])


def _tags(graph: Graph, node: onnx.NodeProto, of: NDArray[np.int64]) -> Tags:
    shape = [d or 1 for d in graph.shapes[node.output[0]]]
    return np.ascontiguousarray(np.broadcast_to(of, shape))


def _around(softmax: onnx.NodeProto, heads: int, graph: Graph) -> Attention | None:
    scores = _back(softmax.input[0], graph, stop_at_products=True)
    product = _ahead(softmax.output[0], graph)
    if len(scores) != 1 or product is None or scores[0].op_type != "MatMul":
        return None
    operands = [*scores[0].input, next(name for name in product.input if not _from(name, softmax, graph))]
    projections = {node.name: node for name in operands for node in _back(name, graph)}
    columns: dict[str, NDArray[np.int64]] = {}
    until = {scores[0].name, product.name}
    for name, node in projections.items():
        if node.op_type not in ("MatMul", "Gemm") or node.input[1] not in graph.constants:
            return None
        width = graph.constants[node.input[1]].shape[
            0 if node.op_type == "Gemm" and attribute(node, "transB", 0) else 1
        ]
        trail = follow(graph, {node.output[0]: _tags(graph, node, np.arange(width))}, until=until)
        of = np.full(width, -1, np.int64)
        for operand in operands:
            tags = trail.tags.get(operand)
            if tags is None:
                continue
            if tags.ndim != 4 or tags.shape[1] != heads:
                return None
            for head in range(heads):
                reached = np.unique(tags[:, head])
                of[reached[reached >= 0]] = head
        columns[name] = of
    return Attention(softmax.name, heads, columns)


def _back(name: str, graph: Graph, *, stop_at_products: bool = False) -> list[onnx.NodeProto]:
    """Return the layers, or products of two tensors, that a tensor was made by on movements and scalings alone."""
    producers = graph.producers()
    found, waiting, seen = [], [name], set()
    while waiting:
        node = producers.get(waiting.pop())
        if node is None or node.name in seen:
            continue
        seen.add(node.name)
        is_product = node.op_type == "MatMul" and node.input[1] not in graph.constants
        if node.op_type in ("MatMul", "Gemm") and (is_product or not stop_at_products):
            found.append(node)
        elif node.op_type in _ON_THE_WAY:
            waiting.extend(name for name in node.input if name not in graph.constants)
        else:
            found.append(node)
    return found


def _ahead(name: str, graph: Graph) -> onnx.NodeProto | None:
    """Return the product that reads a tensor."""
    consumers = graph.consumers()
    waiting = [name]
    while waiting:
        for node in consumers.get(waiting.pop(), []):
            if node.op_type == "MatMul":
                return node
            if node.op_type in ("Dropout", "Identity", "Where", "Cast"):
                waiting.extend(node.output)
    return None


def _from(name: str, softmax: onnx.NodeProto, graph: Graph) -> bool:
    """Whether a tensor is the softmax's output, on the way to its product."""
    producers = graph.producers()
    waiting = [name]
    while waiting:
        current = waiting.pop()
        if current == softmax.output[0]:
            return True
        node = producers.get(current)
        if node is not None and node.op_type in ("Dropout", "Identity", "Where", "Cast"):
            waiting.extend(node.input)
    return False
