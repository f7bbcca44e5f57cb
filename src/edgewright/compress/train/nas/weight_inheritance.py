"""A warm start: a network's weights from a trained network of another size.

Layers correspond by name. A smaller network takes the most important channels, the same ones all along the graph;
a larger one holds the smaller one's channels first and lets the new ones begin with almost no influence, and a
layer that only the larger one has begins as what changes nothing, so that it starts with nearly the same
answers (after Net2Net, Chen 2015, arXiv:1511.05641).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from edgewright.compress.model.graph import Graph, attribute
from edgewright.compress.train.prune.channel_spaces import ChannelSpaces, SpacePart, find_channel_spaces

__all__ = ["inherit_weights"]

# What begins with almost no influence is this small, so that it still learns and every channel has a range.
_SMALL_WEIGHT = 0.01
# How many layers importance flows back.
_MAX_ROUNDS = 12


@dataclass(frozen=True, slots=True)
class _ChannelSelection:
    """Which channels of the source's space go to the first places of a target's space."""

    origin: int
    channels: NDArray[np.intp]


def inherit_weights(target: onnx.ModelProto, source: onnx.ModelProto) -> tuple[onnx.ModelProto, float]:
    """Fill a drafted network with a trained one's weights.

    Args:
        target: The network to start, float, with its own random weights.
        source: The trained one.

    Returns:
        The target with inherited weights, and the share of its weights that were inherited, 0 to 1.
    """
    graph, old = Graph(target), Graph(source)
    here, there = find_channel_spaces(graph), find_channel_spaces(old)
    givers = {part.role: part for part in there.parts}
    pairs = [(p, givers[p.role]) for p in here.parts if p.role in givers and _alike(p, givers[p.role])]
    picks = _picks(pairs, here, there, _importance(there, old))
    total = sum(graph.constants[part.tensor].size for part in here.parts)
    inherited = 0
    for part, giver in pairs:
        drawn, given = graph.constants[part.tensor], old.constants[giver.tensor]
        graph.constants[part.tensor], count = _filled(part, giver, drawn, given, picks)
        inherited += count
    if inherited:
        _start_as_identity(graph, here, {part.role[0] for part, _ in pairs})
    return graph.to_model(), inherited / max(1, total)


def _alike(part: SpacePart, giver: SpacePart) -> bool:
    """Whether two tensors mean the same up to their sizes."""
    places = [space is None for space in part.spaces] == [space is None for space in giver.spaces]
    return places and (part.repeats, part.produced_axis, part.consumed_axis) == (
        giver.repeats,
        giver.produced_axis,
        giver.consumed_axis,
    )


def _importance(channels: ChannelSpaces, graph: Graph) -> dict[int, NDArray[np.float64]]:
    """Return per space how much each channel matters: what makes it times what carries it times what reads it.

    What reads it counts by the importance of what it makes of it, so that importance flows back from the answers
    (as in NISP, Yu 2017, arXiv:1711.05908, with norms in place of the absolute weights).
    """
    fixed = {space: np.ones(size) for space, size in channels.sizes.items()}
    tables: list[tuple[int, int, NDArray[np.float64]]] = []
    for part in channels.parts:
        value = graph.constants[part.tensor].astype(np.float64)
        energy = np.square(value / (np.sqrt(np.square(value).mean()) or 1.0))
        if part.produced_axis is not None and part.consumed_axis is not None:
            made, read = part.spaces[part.produced_axis], part.spaces[part.consumed_axis]
            if made is not None and read is not None:
                table = np.moveaxis(energy, (part.produced_axis, part.consumed_axis), (0, 1))
                table = table.reshape(
                    part.repeats[part.produced_axis], channels.sizes[made], channels.sizes[read], -1
                )
                tables.append((made, read, table.mean(axis=(0, 3))))
                fixed[made] = fixed[made] * _relative(tables[-1][2].mean(axis=1))
        elif part.scales and part.spaces[0] is not None:
            fixed[part.spaces[0]] = fixed[part.spaces[0]] * _relative(energy.reshape(len(energy), -1).mean(axis=1))
    scores = fixed
    for _ in range(min(len(tables), _MAX_ROUNDS)):
        reads = {space: np.zeros(size) for space, size in channels.sizes.items()}
        for made, read, table in tables:
            reads[read] += scores[made] @ table
        scores = {space: _relative(fixed[space] * (reads[space] if reads[space].any() else 1.0)) for space in fixed}
    return scores


def _relative(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scale to a mean of 1."""
    return np.asarray(values / (values.mean() or 1.0))


def _picks(
    pairs: list[tuple[SpacePart, SpacePart]],
    here: ChannelSpaces,
    there: ChannelSpaces,
    importance: Mapping[int, NDArray[np.float64]],
) -> dict[int, _ChannelSelection]:
    picks: dict[int, _ChannelSelection] = {}
    for part, giver in pairs:
        for space, origin in zip(part.spaces, giver.spaces, strict=True):
            if space is None or origin is None or space in picks:
                continue
            count = min(here.sizes[space], there.sizes[origin])
            if space in here.ordered or origin in there.ordered:
                best = np.arange(count)
            else:
                best = np.sort(np.argsort(-importance[origin], kind="stable")[:count])
            picks[space] = _ChannelSelection(origin, best.astype(np.intp))
    return picks


def _filled(
    part: SpacePart,
    giver: SpacePart,
    drawn: NDArray[np.float32],
    given: NDArray[np.float32],
    picks: Mapping[int, _ChannelSelection],
) -> tuple[NDArray[np.float32], int]:
    """Return the target's tensor with the inherited values in it, and how many those are."""
    into: list[NDArray[np.intp]] = []
    taken: list[NDArray[np.intp]] = []
    result = drawn.copy()
    for axis, (space, repeats) in enumerate(zip(part.spaces, part.repeats, strict=True)):
        size, have = drawn.shape[axis] // repeats, given.shape[axis] // repeats
        count = min(size, have)
        if space is None:  # windows have one middle; what a larger one sees besides counts nothing at first
            places, take = np.arange(count) + (size - count) // 2, np.arange(count) + (have - count) // 2
            outside = np.setdiff1d(np.arange(size), places)
            result[(slice(None),) * axis + (outside,)] = 0
        else:
            pick = picks[space]
            take = pick.channels if pick.origin == giver.spaces[axis] else np.arange(count)
            places = np.arange(len(take))
        into.append(np.concatenate([places + size * i for i in range(repeats)]))
        taken.append(np.concatenate([take + have * i for i in range(repeats)]))
    if part.produced_axis is not None and part.consumed_axis is not None:
        new = np.setdiff1d(np.arange(drawn.shape[part.consumed_axis]), into[part.consumed_axis])
        where = [np.arange(size) for size in drawn.shape]
        where[part.produced_axis], where[part.consumed_axis] = into[part.produced_axis], new
        result[np.ix_(*where)] *= _SMALL_WEIGHT
    result[np.ix_(*into)] = given[np.ix_(*taken)]
    return result, int(np.prod([len(each) for each in into]))


def _start_as_identity(graph: Graph, here: ChannelSpaces, known: set[str]) -> None:
    """Let layers without forebear change nothing: branches add nothing, single layers pass on what comes."""
    producers, consumers = graph.producers(), graph.consumers()
    weights = {part.role[0]: part for part in here.parts if part.role[1] == 1}
    for node in graph.nodes:
        if node.op_type == "Add":
            made_new = [producers.get(name) for name in node.input]
            new = [p for p in made_new if p is not None and p.name in weights and p.name not in known]
            if len(new) == 1:
                graph.constants[new[0].input[1]] = graph.constants[new[0].input[1]] * np.float32(_SMALL_WEIGHT)
    for node in graph.nodes:
        if node.op_type in ("Conv", "Gemm") and node.name in weights and node.name not in known:
            followers = _followers(node, consumers, known)
            if not any(follower.op_type == "Add" for follower in followers):
                _pass_on(graph, node, followers, weights[node.name])


def _followers(
    node: onnx.NodeProto, consumers: Mapping[str, list[onnx.NodeProto]], known: set[str]
) -> list[onnx.NodeProto]:
    """Return what comes behind a node up to the layers that have a forebear, and the first additions."""
    found: list[onnx.NodeProto] = []
    waiting = [node]
    while waiting:
        for reader in consumers.get(waiting.pop().output[0], []):
            if reader.name not in known and all(reader is not each for each in found):
                found.append(reader)
                waiting += [reader] if reader.op_type != "Add" else []
    return found


def _pass_on(graph: Graph, node: onnx.NodeProto, followers: list[onnx.NodeProto], part: SpacePart) -> None:
    """Make a layer the identity, where its output has the shape of its input."""
    weight = graph.constants[part.tensor]
    depthwise = node.op_type == "Conv" and attribute(node, "group", 1) > 1
    square = weight.shape[1] == 1 if depthwise else weight.shape[0] == weight.shape[1]
    if not square or any(step != 1 for step in attribute(node, "strides", [])):
        return
    middle = tuple(size // 2 for size in weight.shape[2:])
    one = np.zeros_like(weight)
    one[(slice(None), slice(None), *middle)] = np.ones((len(weight), 1)) if depthwise else np.eye(len(weight))
    graph.constants[part.tensor] = one
    norm = followers[0] if followers and followers[0].op_type == "BatchNormalization" else None
    if norm is not None:  # its statistics begin as those of mean 0 and variance 1
        variance = graph.constants[norm.input[4]] + attribute(norm, "epsilon", 1e-5)
        graph.constants[norm.input[1]] = np.sqrt(variance).astype(np.float32)
