"""Attention heads: where they lie in a graph, and taking whole heads out of it.

A head is a place on the second axis of the products of queries, keys and values, however the model computes
attention (softmax, linear) and whether its projections are one layer or three.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from edgewright.compress.model.graph import Graph, attribute
from edgewright.compress.train.prune.feature_tracing import UnitTags, remove_tagged, trace_tags
from edgewright.contract.errors import CandidateError

__all__ = ["AttentionHeads", "find_attention", "output_axis", "remove_heads"]

_PROJECTIONS = frozenset(("MatMul", "Gemm", "Conv"))


@dataclass(frozen=True, slots=True)
class AttentionHeads:
    """One attention of several heads.

    Attributes:
        name: Name of its first product.
        heads: How many.
        columns: Per projection layer the head of each of its outputs, -1 for those of no head.
    """

    name: str
    heads: int
    columns: dict[str, NDArray[np.int64]]


def find_attention(graph: Graph) -> list[AttentionHeads]:
    """Return the attentions whose queries, keys and values come from layers, and whose heads are an axis."""
    clusters: list[tuple[list[onnx.NodeProto], dict[str, onnx.NodeProto]]] = []
    for node in graph.nodes:
        if _heads_of(node, graph) < 2:
            continue
        products, sources = (
            [node],
            {source.name: source for name in node.input for source in _source_layers(name, graph)},
        )
        for other in [cluster for cluster in clusters if cluster[1].keys() & sources.keys()]:
            products, sources = other[0] + products, other[1] | sources
            clusters.remove(other)
        clusters.append((products, sources))
    found = (_attention(products, sources, graph) for products, sources in clusters)
    return [attention for attention in found if attention is not None]


def remove_heads(graph: Graph, attention: AttentionHeads, heads: Collection[int]) -> None:
    """Take these heads out of the projections and of what reads them; the graph is changed in place.

    Raises:
        CandidateError: The heads cannot be followed to the layer that reads them.
    """
    layers = {node.name: node for node in graph.nodes}
    starts = {layers[name].output[0]: _head_tags(graph, layers[name], of) for name, of in attention.columns.items()}
    remove_tagged(graph, trace_tags(graph, starts), heads)
    for name, of in attention.columns.items():
        node = layers[name]
        stay = np.flatnonzero(~np.isin(of, list(heads)))
        weight = graph.constants[node.input[1]]
        node.input[1] = graph.add_constant("weight", np.take(weight, stay, axis=output_axis(node)))
        if len(node.input) > 2 and node.input[2] and graph.constants[node.input[2]].size > 1:
            node.input[2] = graph.add_constant("bias", graph.constants[node.input[2]][..., stay])


def output_axis(node: onnx.NodeProto) -> int:
    """Return the axis of a layer's weight along which its outputs lie."""
    return 0 if node.op_type == "Conv" or (node.op_type == "Gemm" and attribute(node, "transB", 0)) else 1


def _heads_of(node: onnx.NodeProto, graph: Graph) -> int:
    """Return the size of the head axis of a product of two computed matrices, 0 for other nodes."""
    if node.op_type != "MatMul" or any(name in graph.constants for name in node.input):
        return 0
    shape = graph.shapes.get(node.output[0], ())
    return (shape[1] or 0) if len(shape) == 4 else 0


def _head_tags(graph: Graph, node: onnx.NodeProto, of: NDArray[np.int64]) -> UnitTags:
    """Return tags for a layer's output, where its features lie on the second (Conv) or the last axis."""
    shape = [size or 1 for size in graph.shapes[node.output[0]]]
    view = [1] * len(shape)
    view[1 if node.op_type == "Conv" else -1] = -1
    return np.ascontiguousarray(np.broadcast_to(of.reshape(view), shape))


def _attention(
    products: list[onnx.NodeProto], sources: dict[str, onnx.NodeProto], graph: Graph
) -> AttentionHeads | None:
    heads = _heads_of(products[0], graph)
    inside = {node.name for node in products}
    operands = {name for node in products for name in node.input}
    columns: dict[str, NDArray[np.int64]] = {}
    for name, node in sources.items():
        weight = graph.constants.get(node.input[1]) if len(node.input) > 1 else None
        in_groups = attribute(node, "group", 1) != 1
        if node.op_type not in _PROJECTIONS or weight is None or weight.ndim < 2 or in_groups:
            return None
        of = np.full(weight.shape[output_axis(node)], -1, np.int64)
        try:
            trail = trace_tags(graph, {node.output[0]: _head_tags(graph, node, np.arange(len(of)))}, until=inside)
        except CandidateError:
            return None
        for operand in operands & trail.tags.keys():
            tags = trail.tags[operand]
            if tags.ndim != 4 or tags.shape[1] != heads:
                return None
            for head in range(heads):
                reached = np.unique(tags[:, head])
                of[reached[reached >= 0]] = head
        columns[name] = of
    return AttentionHeads(products[0].name, heads, columns)


def _source_layers(name: str, graph: Graph) -> list[onnx.NodeProto]:
    """Return the layers that a tensor comes from, past products of computed matrices and what has no weights."""
    producers = graph.producers()
    found: list[onnx.NodeProto] = []
    waiting, seen = [name], set()
    while waiting:
        node = producers.get(waiting.pop())
        if node is None or node.name in seen:
            continue
        seen.add(node.name)
        has_weights = len(node.input) > 1 and node.input[1] in graph.constants
        if node.op_type in _PROJECTIONS and has_weights:
            found.append(node)
        else:
            waiting.extend(inner for inner in node.input if inner not in graph.constants)
    return found
