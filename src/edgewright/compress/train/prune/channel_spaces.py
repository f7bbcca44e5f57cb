"""Which axes of a network's weights carry the same channels, followed along the graph.

A convolution makes new channels; normalisation, clamps, pooling and depthwise convolution keep them; an addition
makes those of both sides one. So every weight axis belongs to a *space* of channels, and whoever changes a space
changes all its axes in the same way.
"""

from dataclasses import dataclass, field, replace

import numpy as np
import onnx
from numpy.typing import NDArray

from edgewright.compress.model.graph import Graph, attribute

__all__ = ["ChannelSpaces", "SpacePart", "find_channel_spaces"]

_KEEPS = frozenset(
    (
        "AveragePool BatchNormalization Cast Clip Dropout Elu Flatten Gelu GlobalAveragePool GlobalMaxPool "
        "HardSigmoid HardSwish Identity LeakyRelu MaxPool Relu Sigmoid Softmax Squeeze Tanh Transpose"
    ).split()
)
_JOINS = frozenset(("Add", "Mul", "Sub", "Div"))


@dataclass(frozen=True, slots=True)
class SpacePart:
    """One initializer of a layer, and the space of each of its axes.

    Attributes:
        role: Layer and place among its inputs; equal roles in two networks correspond.
        tensor: Name of the initializer.
        spaces: Per axis the space's number, None where the axis holds no channels.
        repeats: Per axis how often the space's channels stand behind each other (gates of a GRU: 3).
        produced_axis: Axis of the channels that the layer makes, None for what only carries them.
        consumed_axis: Axis of the channels that it reads.
        scales: Whether it multiplies each channel of its first space by itself.
    """

    role: tuple[str, int]
    tensor: str
    spaces: tuple[int | None, ...]
    repeats: tuple[int, ...]
    produced_axis: int | None = None
    consumed_axis: int | None = None
    scales: bool = False


@dataclass(slots=True)
class ChannelSpaces:
    """The spaces of one network.

    Attributes:
        parts: All float weights.
        sizes: Channels per space.
        ordered: Spaces whose channels must keep their order, since something outside the rules reads or makes them.
    """

    parts: list[SpacePart]
    sizes: dict[int, int]
    ordered: frozenset[int]


@dataclass(slots=True)
class _SpaceFinder:
    graph: Graph
    parents: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    of_tensor: dict[str, int] = field(default_factory=dict)
    parts: list[SpacePart] = field(default_factory=list)
    ordered: set[int] = field(default_factory=set)

    def new(self, size: int) -> int:
        self.parents.append(len(self.parents))
        self.sizes.append(size)
        return len(self.parents) - 1

    def root(self, space: int) -> int:
        while self.parents[space] != space:
            space = self.parents[space]
        return space

    def join(self, a: int, b: int) -> int:
        a, b = self.root(a), self.root(b)
        if self.sizes[a] == self.sizes[b]:
            self.parents[b] = a
        return a

    def entering(self, name: str, size: int) -> int:
        """Return the space of a tensor's channels; a new one where they are not known or do not fit."""
        space = self.of_tensor.get(name)
        if space is None or self.sizes[space] != size:
            if space is not None:
                self.ordered.add(space)
            space = self.of_tensor[name] = self.new(size)
            self.ordered.add(space)
        return space

    def part(
        self,
        node: onnx.NodeProto,
        place: int,
        spaces: tuple[int | None, ...],
        *,
        repeats: tuple[int, ...] | None = None,
        made: int | None = None,
        read: int | None = None,
        scales: bool = False,
    ) -> None:
        name = node.input[place] if len(node.input) > place else ""
        value = self.graph.constants.get(name)
        if value is not None and value.dtype == np.float32 and value.ndim == len(spaces):
            self.parts.append(
                SpacePart((node.name, place), name, spaces, repeats or (1,) * len(spaces), made, read, scales)
            )


def find_channel_spaces(graph: Graph) -> ChannelSpaces:
    """Return the spaces and the weights that lie in them; what no rule knows keeps its size by itself."""
    survey = _SpaceFinder(graph)
    for node in graph.nodes:
        _visit(survey, node)
    outputs = {survey.of_tensor[name] for name in graph.output_names if name in survey.of_tensor}
    parts = [
        replace(part, spaces=tuple(None if space is None else survey.root(space) for space in part.spaces))
        for part in survey.parts
    ]
    return ChannelSpaces(
        parts,
        {survey.root(space): survey.sizes[space] for space in range(len(survey.parents))},
        frozenset(survey.root(space) for space in survey.ordered | outputs),
    )


def _visit(s: _SpaceFinder, node: onnx.NodeProto) -> None:
    op, constants = node.op_type, s.graph.constants
    if op == "Conv" and node.input[1] in constants:
        _conv(s, node, constants[node.input[1]])
    elif op in ("Gemm", "MatMul") and node.input[1] in constants and constants[node.input[1]].ndim == 2:
        turned = bool(attribute(node, "transB", 0))
        rows, columns = constants[node.input[1]].shape
        outer, inner = (rows, columns) if turned else (columns, rows)
        source, made = s.entering(node.input[0], inner), s.new(outer)
        s.part(node, 1, (made, source) if turned else (source, made), made=int(not turned), read=int(turned))
        s.part(node, 2, (made,))
        s.of_tensor[node.output[0]] = made
    elif op in ("GRU", "LSTM", "RNN") and node.input[1] in constants:
        _recurrent(s, node)
    elif op == "BatchNormalization" and node.input[1] in constants:
        space = s.entering(node.input[0], len(constants[node.input[1]]))
        for place in (1, 2, 3, 4):
            s.part(node, place, (space,), scales=place == 1)
        s.of_tensor[node.output[0]] = space
    elif op in _KEEPS:
        if node.input[0] in s.of_tensor:
            s.of_tensor[node.output[0]] = s.of_tensor[node.input[0]]
    elif op in _JOINS:
        _join(s, node)
    elif op == "Reshape" and _keeps_channels(s, node):
        s.of_tensor[node.output[0]] = s.of_tensor[node.input[0]]
    else:
        s.ordered.update(s.of_tensor[name] for name in node.input if name in s.of_tensor)


def _keeps_channels(s: _SpaceFinder, node: onnx.NodeProto) -> bool:
    """Whether a new shape leaves batch and channels where they are."""
    shape, space = s.graph.constants.get(node.input[1]), s.of_tensor.get(node.input[0])
    return shape is not None and len(shape) > 2 and space is not None and int(shape[1]) == s.sizes[space]


def _conv(s: _SpaceFinder, node: onnx.NodeProto, weight: NDArray[np.float32]) -> None:
    groups = attribute(node, "group", 1)
    windows: tuple[int | None, ...] = (None,) * (weight.ndim - 2)
    source = s.entering(node.input[0], weight.shape[1] * groups)
    if groups == 1:
        made = s.new(weight.shape[0])
        s.part(node, 1, (made, source, *windows), made=0, read=1)
    else:
        made = source if weight.shape[0] == groups else s.new(weight.shape[0])
        s.part(node, 1, (made, None, *windows), scales=True)
    s.part(node, 2, (made,))
    s.of_tensor[node.output[0]] = made


def _recurrent(s: _SpaceFinder, node: onnx.NodeProto) -> None:
    gates = {"GRU": 3, "LSTM": 4, "RNN": 1}[node.op_type]
    hidden = int(attribute(node, "hidden_size"))
    source = s.entering(node.input[0], s.graph.constants[node.input[1]].shape[2])
    made = s.new(hidden)
    s.part(node, 1, (None, made, source), repeats=(1, gates, 1), made=1, read=2)
    s.part(node, 2, (None, made, made), repeats=(1, gates, 1), made=1, read=2)
    s.part(node, 3, (None, made), repeats=(1, 2 * gates))
    for name in node.output:
        if name:
            s.of_tensor[name] = made


def _join(s: _SpaceFinder, node: onnx.NodeProto) -> None:
    """Two maps that are added have the same channels; a constant that fits them is a weight of its own."""
    known = [s.of_tensor[name] for name in node.input if name in s.of_tensor]
    for place, name in enumerate(node.input):
        value = s.graph.constants.get(name)
        if value is not None and value.size > 1:
            axis = 1 if value.ndim >= 3 else value.ndim - 1
            fits = known and value.shape[axis] == s.sizes[known[0]]
            spaces = (
                [None] * value.ndim if not fits else [known[0] if i == axis else None for i in range(value.ndim)]
            )
            s.part(node, place, tuple(spaces), scales=node.op_type == "Mul" and spaces[0] is not None)
    if known:
        joined = known[0]
        for other in known[1:]:
            joined = s.join(joined, other)
        s.of_tensor[node.output[0]] = joined
