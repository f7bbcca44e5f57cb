"""Where the features of a tensor go, and taking some of them out of everything that they reach.

Every element of a tensor carries a tag: the unit that it belongs to, or -1. Tags walk through the graph as the
values would; whatever tensor they reach, they say which of its slices go when a unit goes. Torch-Pruning
follows channels through a traced module; this follows what it cannot: units of recurrent layers, and heads.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from edgewright.compress.model.graph import Graph, attribute
from edgewright.contract.errors import CandidateError

__all__ = ["TagTrace", "UnitTags", "remove_tagged", "trace_tags"]

UnitTags = NDArray[np.int64]

_MOVES = frozenset("Transpose Reshape Squeeze Unsqueeze Flatten Identity Dropout Slice Gather Split Concat".split())
_EACH = frozenset(
    (
        "Relu LeakyRelu Sigmoid Tanh HardSigmoid HardSwish Clip Elu Gelu Erf Exp Log Sqrt Neg Abs Cast Softmax "
        "LogSoftmax Softplus Swish Mish IsNaN"
    ).split()
)
_PAIRS = frozenset("Add Sub Mul Div Pow Where PRelu Max Min".split())
_REDUCES = frozenset("ReduceMean ReduceSum ReduceMax ReduceMin ReduceL2".split())
_POOLS = frozenset("GlobalAveragePool GlobalMaxPool AveragePool MaxPool".split())
_NORMS = frozenset("LayerNormalization BatchNormalization".split())
_READERS = frozenset("MatMul Gemm Conv GRU LSTM RNN".split())


@dataclass(slots=True)
class TagTrace:
    """What tags reached.

    Attributes:
        tags: Per tensor the unit of each element, for a batch of one; -1 where there is none.
        nodes: The nodes that read a tagged tensor, in order.
    """

    tags: dict[str, UnitTags]
    nodes: list[onnx.NodeProto] = field(default_factory=list)


def trace_tags(graph: Graph, starts: Mapping[str, UnitTags], *, until: Collection[str] = ()) -> TagTrace:
    """Let tags walk from `starts` to the layers that read them with weights.

    Args:
        graph: The nodes in order.
        starts: Tags of the first tensors, in their shape for a batch of one.
        until: Names of nodes that are not passed.

    Raises:
        CandidateError: They reach an output of the model or an operator that mixes units; its name is given.
    """
    trail = TagTrace(dict(starts))
    for node in graph.nodes:
        if not any(_tagged(trail, name) for name in node.input):
            continue
        trail.nodes.append(node)
        if node.name in until or _reads_with_weights(node, graph, trail):
            continue
        for name, tags in zip(node.output, _walked(node, graph, trail), strict=False):
            if name and name not in starts:
                trail.tags[name] = tags
    for name in graph.output_names:
        if _tagged(trail, name):
            raise CandidateError(f"units reach the output {name!r}", remedy="Such a layer keeps its width.")
    return trail


def remove_tagged(graph: Graph, trace: TagTrace, units: Collection[int]) -> None:
    """Remove units from all that `trace` reached but where it started; the graph is changed in place."""
    kept = {name: _kept(tags, units, name) for name, tags in trace.tags.items()}
    for node in trace.nodes:
        if node.op_type in _READERS and _reads_with_weights(node, graph, trace):
            _narrow_reader(node, graph, kept)
        elif node.op_type in _PAIRS | _NORMS:
            _narrow_parameters(node, graph, kept)
        elif node.op_type == "Reshape":
            _narrow_target(node, graph, kept)
        elif node.op_type in ("Slice", "Split", "Gather"):
            _narrow_choice(node, graph, kept)


def _tagged(trail: TagTrace, name: str) -> bool:
    return name in trail.tags and bool((trail.tags[name] >= 0).any())


def _reads_with_weights(node: onnx.NodeProto, graph: Graph, trail: TagTrace) -> bool:
    return node.op_type in _READERS and _tagged(trail, node.input[0]) and node.input[1] in graph.constants


def _blank(graph: Graph, name: str) -> UnitTags:
    value = graph.constants.get(name)
    shape = value.shape if value is not None else tuple(d or 1 for d in graph.shapes.get(name, ()))
    return np.full(shape, -1, np.int64)


def _walked(node: onnx.NodeProto, graph: Graph, trail: TagTrace) -> list[UnitTags]:
    """Return the tags of a node's outputs."""
    given = [trail.tags[name] if name in trail.tags else _blank(graph, name) for name in node.input if name]
    first = given[0]
    if node.op_type in ("Softmax", "LogSoftmax"):
        _uniform(first, (int(attribute(node, "axis", -1)),), node, keep=True)
    if node.op_type in _EACH | _NORMS:
        return [first]
    if node.op_type in _MOVES:
        return _moved(node, graph, trail)
    if node.op_type in _PAIRS and all(
        name in trail.tags or name in graph.constants or _blank(graph, name).size == 1 for name in node.input
    ):
        return [_agreed(np.broadcast_arrays(*given), node)]
    if node.op_type in _REDUCES:
        axes = graph.constants.get(node.input[1]) if len(node.input) > 1 else attribute(node, "axes")
        chosen = tuple(range(first.ndim)) if axes is None else tuple(int(axis) for axis in axes)
        keep = bool(attribute(node, "keepdims", 1))
        return [_uniform(first, chosen, node, keep=keep)]
    if node.op_type in _POOLS:
        spread = _uniform(first, tuple(range(2, first.ndim)), node, keep=True)
        return [np.broadcast_to(spread, (*first.shape[:2], *_blank(graph, node.output[0]).shape[2:]))]
    if node.op_type == "MatMul":
        left = _uniform(given[0], (given[0].ndim - 1,), node, keep=True)
        right = _uniform(given[1], (given[1].ndim - 2,), node, keep=True)
        return [_agreed(np.broadcast_arrays(left, right), node)]
    raise CandidateError(
        f"units cannot be followed through {node.op_type} ({node.name!r})",
        remedy="The layer before keeps its width.",
    )


def _moved(node: onnx.NodeProto, graph: Graph, trail: TagTrace) -> list[UnitTags]:
    feed: dict[str, NDArray[Any]] = {}
    for i, name in enumerate(node.input):
        if i == 0 or node.op_type == "Concat":
            feed[name] = trail.tags[name] if name in trail.tags else _blank(graph, name)
        elif name:
            feed[name] = graph.constants[name]
    if node.op_type in ("Dropout", "Identity"):
        return [feed[node.input[0]]]
    return [np.asarray(value, np.int64) for value in ReferenceEvaluator(node).run(None, feed)]


def _agreed(tags: tuple[UnitTags, ...] | list[UnitTags], node: onnx.NodeProto) -> UnitTags:
    result = np.maximum.reduce(list(tags))
    if any(((one >= 0) & (one != result)).any() for one in tags):
        raise CandidateError(f"{node.op_type} {node.name!r} mixes units", remedy="Its layers keep their width.")
    return np.asarray(result, np.int64)


def _uniform(tags: UnitTags, axes: tuple[int, ...], node: onnx.NodeProto, *, keep: bool) -> UnitTags:
    low, high = tags.min(axis=axes, keepdims=keep), tags.max(axis=axes, keepdims=keep)
    if (low != high).any():
        raise CandidateError(f"{node.op_type} {node.name!r} mixes units", remedy="Its layers keep their width.")
    return np.asarray(low, np.int64)


def _kept(tags: UnitTags, units: Collection[int], name: str) -> tuple[NDArray[np.intp], ...]:
    """Return the positions that stay along each axis."""
    stays = ~np.isin(tags, list(units))
    axes = tuple(
        np.flatnonzero(stays.any(axis=tuple(other for other in range(tags.ndim) if other != axis)))
        for axis in range(tags.ndim)
    )
    if stays.sum() != np.prod([len(axis) for axis in axes]):
        raise CandidateError(
            f"without these units {name!r} would have gaps",
            remedy="Remove whole heads, or the same in each direction.",
        )
    return axes


_KeptPositions = Mapping[str, tuple[NDArray[np.intp], ...]]


def _narrow_reader(node: onnx.NodeProto, graph: Graph, kept: _KeptPositions) -> None:
    along = kept[node.input[0]]
    weight = graph.constants[node.input[1]]
    if node.op_type == "MatMul":
        axis, stay = weight.ndim - 2, along[-1]
    elif node.op_type == "Gemm":
        axis, stay = (1 if attribute(node, "transB", 0) else 0), along[-1]
    elif node.op_type == "Conv":
        if attribute(node, "group", 1) != 1:
            raise CandidateError(f"{node.name!r} reads units in groups", remedy="The layer before keeps its width.")
        axis, stay = 1, along[1]
    else:
        axis, stay = 2, along[-1]
    graph.constants[node.input[1]] = np.take(weight, stay, axis=axis)


def _narrow_parameters(node: onnx.NodeProto, graph: Graph, kept: _KeptPositions) -> None:
    along = kept[node.output[0]]
    for i, name in enumerate(node.input):
        value = graph.constants.get(name)
        if value is None:
            continue
        for axis in range(value.ndim):
            place = 1 if node.op_type == "BatchNormalization" else len(along) - value.ndim + axis
            if value.shape[axis] > 1:
                value = np.take(value, along[place], axis=axis)
        if value.shape != graph.constants[name].shape:
            node.input[i] = graph.add_constant("narrow", value)


def _narrow_target(node: onnx.NodeProto, graph: Graph, kept: _KeptPositions) -> None:
    target = graph.constants[node.input[1]].copy()
    for axis, stay in enumerate(kept[node.output[0]]):
        if target[axis] > 0 and axis > 0:
            target[axis] = len(stay)
    node.input[1] = graph.add_constant("shape", target)


def _narrow_choice(node: onnx.NodeProto, graph: Graph, kept: _KeptPositions) -> None:
    source = kept[node.input[0]]
    if node.op_type == "Split":
        axis = int(attribute(node, "axis", 0))
        sizes = [len(kept[name][axis]) for name in node.output]
        if len(node.input) > 1 and node.input[1]:
            node.input[1] = graph.add_constant("sizes", np.array(sizes, np.int64))
        elif len(set(sizes)) > 1:
            raise CandidateError(f"{node.name!r} would split unevenly", remedy="Its layers keep their width.")
    elif node.op_type == "Gather":
        axis = int(attribute(node, "axis", 0)) % len(source)
        wanted = graph.constants[node.input[1]]
        places = np.where(wanted < 0, wanted + (graph.shapes[node.input[0]][axis] or 1), wanted)
        if not np.isin(places, source[axis]).all():
            raise CandidateError(f"{node.name!r} picks removed units", remedy="Its layers keep their width.")
        node.input[1] = graph.add_constant("places", np.searchsorted(source[axis], places).astype(wanted.dtype))
    else:
        starts, ends = graph.constants[node.input[1]].copy(), graph.constants[node.input[2]].copy()
        given = graph.constants.get(node.input[3]) if len(node.input) > 3 else None
        axes = range(len(starts)) if given is None else [int(axis) for axis in given]
        full = graph.shapes[node.input[0]]
        for i, axis in enumerate(axes):
            length = full[axis]
            if length is None or len(source[axis]) == length:
                continue
            for limit in (starts, ends):
                place = int(np.clip(limit[i] + length if limit[i] < 0 else limit[i], 0, length))
                limit[i] = np.searchsorted(source[axis], place)
        node.input[1] = graph.add_constant("starts", starts)
        node.input[2] = graph.add_constant("ends", ends)
