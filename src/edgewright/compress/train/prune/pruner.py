"""Structured pruning: channels, recurrent units and attention heads go; the network that is left is a plain one."""

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import msgspec
import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgewright.compress.model.graph import Graph
from edgewright.compress.train.prune.attention_heads import (
    AttentionHeads,
    find_attention,
    output_axis,
    remove_heads,
)
from edgewright.compress.train.prune.channel_groups import (
    ChannelGroup,
    channel_groups,
    is_removal_safe,
    remove_channels,
)
from edgewright.compress.train.prune.importance import LabelledBatch, PruningCriterion, group_score, weight_scores
from edgewright.compress.train.prune.recurrent_units import recurrent_layers, remove_units, unit_count, unit_scores
from edgewright.compress.train.torch_graph.onnx_module import TrainableGraph
from edgewright.compress.train.torch_graph.prepare import prepare_graph
from edgewright.contract.errors import CandidateError

__all__ = ["PrunableWidth", "StructuredPruning", "prunable_widths", "prune_network"]

PrunableKind: TypeAlias = Literal["channels", "units", "heads"]

# Without a given ratio no layer loses more than this, even if all its channels rank last in the model.
_MAX_RATIO = 0.9


class PrunableWidth(msgspec.Struct, frozen=True):
    """Something of a network that can become narrower.

    Attributes:
        kind: Channels, units of a recurrent layer, or heads of an attention.
        count: How many there are.
        members: Layers that share them, in the graph's order.
    """

    kind: PrunableKind
    count: int
    members: tuple[str, ...]


class StructuredPruning(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="step", tag="prune"):
    """Take out what matters least.

    Attributes:
        ratio: Share of channels and recurrent units that go, in [0, 1).
        ratios: The same for single layers (any member of what `prunable_widths` names); others take `ratio`.
        criterion: What matters (see `importance.py`).
        scope: `layer`: the ratio holds in each layer; `model`: over all layers, whose importances are compared.
        round_to: Widths become multiples of it, and never smaller unless they were.
        head_ratio: Share of attention heads that go.
        seed: Of the criterion `random`.
    """

    ratio: float = 0.5
    ratios: dict[str, float] = {}
    criterion: PruningCriterion = "magnitude"
    scope: Literal["layer", "model"] = "layer"
    round_to: int = 8
    head_ratio: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse shares that leave nothing."""
        for share in (self.ratio, self.head_ratio, *self.ratios.values()):
            if not 0 <= share < 1:
                raise CandidateError(f"pruning ratio {share} is not in [0, 1)", remedy="Use 0.5, say.")
        if self.round_to < 1:
            raise CandidateError(f"widths cannot be multiples of {self.round_to}", remedy="Use 8, say.")

    def remaining(self, width: PrunableWidth, share: float) -> int:
        """Return how many of a width stay when `share` goes: the nearest multiple.

        >>> StructuredPruning(round_to=8).remaining(PrunableWidth("channels", 48, ()), 0.4)
        32
        """
        if width.kind == "heads":
            return max(1, round(width.count * (1 - share)))
        multiple = round(width.count * (1 - share) / self.round_to + 1e-9) * self.round_to
        return width.count if share == 0 else min(max(multiple, self.round_to), width.count)

    def removed_share(self, name: str, width: PrunableWidth) -> float:
        """Return the share of a width that goes."""
        if width.kind == "heads":
            return self.ratios.get(name, self.head_ratio)
        return next((self.ratios[member] for member in width.members if member in self.ratios), self.ratio)


def prunable_widths(model: onnx.ModelProto) -> dict[str, PrunableWidth]:
    """Return what can become narrower, by the name of its first layer (heads: of the softmax).

    Raises:
        CandidateError: The model cannot be trained or traced; the operator is named.
    """
    graph = prepare_graph(model)
    found: dict[str, PrunableWidth] = {}
    attentions = find_attention(graph)
    for attention in attentions:
        found[attention.name] = PrunableWidth("heads", attention.heads, tuple(attention.columns))
    for node in recurrent_layers(graph):
        found[node.name] = PrunableWidth("units", unit_count(node, graph), (node.name,))
    network, example = TrainableGraph(model), _example(model, ())
    for group, width in _channel_widths(network, attentions, example):
        if is_removal_safe(network, example, group):
            found[width.members[0]] = width
    return found


def prune_network(
    model: onnx.ModelProto, step: StructuredPruning, batches: Sequence[LabelledBatch] = ()
) -> onnx.ModelProto:
    """Return the model without its least important heads, units and channels.

    Inputs and outputs keep their shapes. What cannot be taken out exactly keeps its width.

    Args:
        model: A float graph.
        step: How much of what.
        batches: Data for the criteria that look at it.

    Raises:
        CandidateError: The model cannot be trained or traced, a ratio names no layer, or there is no data for
            the criterion.
    """
    known: set[str] = set()
    for narrow in (_without_heads, _without_units, _without_channels):
        model = narrow(model, step, batches, known)
    unknown = sorted(set(step.ratios) - known)
    if unknown:
        raise CandidateError(
            f"there is nothing to prune in {unknown[0]!r}", remedy="Name layers that `prunable_widths` returns."
        )
    return model


def _least_important(scores: NDArray[np.float64], left: int) -> NDArray[np.intp]:
    """Return the places of all but the `left` largest, ascending."""
    order = np.argsort(scores, kind="stable")
    return np.sort(order[: len(scores) - left])


def _without_heads(
    model: onnx.ModelProto, step: StructuredPruning, batches: Sequence[LabelledBatch], known: set[str]
) -> onnx.ModelProto:
    for attention in find_attention(prepare_graph(model)):
        width = PrunableWidth("heads", attention.heads, tuple(attention.columns))
        known.add(attention.name)
        left = step.remaining(width, step.removed_share(attention.name, width))
        if left < attention.heads:
            scored = prepare_graph(weight_scores(model, step.criterion, batches, step.seed))
            graph = prepare_graph(model)
            try:
                remove_heads(graph, attention, _least_important(_head_scores(attention, scored), left).tolist())
            except CandidateError:
                continue  # heads that do not lie apart stay
            model = graph.to_model()
    return model


def _head_scores(attention: AttentionHeads, scored: Graph) -> NDArray[np.float64]:
    total = np.zeros(attention.heads)
    for node in scored.nodes:
        of = attention.columns.get(node.name)
        if of is not None:
            weight = np.moveaxis(scored.constants[node.input[1]], output_axis(node), 0).astype(np.float64)
            by_column = weight.reshape(len(of), -1).sum(axis=1)
            np.add.at(total, of[of >= 0], by_column[of >= 0])
    return total


def _without_units(
    model: onnx.ModelProto, step: StructuredPruning, batches: Sequence[LabelledBatch], known: set[str]
) -> onnx.ModelProto:
    for name in [node.name for node in recurrent_layers(prepare_graph(model))]:
        graph = prepare_graph(model)
        node = next(n for n in graph.nodes if n.name == name)
        width = PrunableWidth("units", unit_count(node, graph), (name,))
        known.add(name)
        left = step.remaining(width, step.removed_share(name, width))
        if left < width.count:
            scored = prepare_graph(weight_scores(model, step.criterion, batches, step.seed))
            twin = next(n for n in scored.nodes if n.name == name)
            try:
                remove_units(graph, node, _least_important(unit_scores(twin, scored), left).tolist())
            except CandidateError:
                continue  # a state from outside, or units that reach an output, stay
            model = graph.to_model()
    return model


def _without_channels(
    model: onnx.ModelProto, step: StructuredPruning, batches: Sequence[LabelledBatch], known: set[str]
) -> onnx.ModelProto:
    network, example = TrainableGraph(model), _example(model, batches)
    found = _channel_widths(network, find_attention(prepare_graph(model)), example)
    known.update(member for _, width in found for member in width.members)
    if not found:
        return model
    score = group_score(step.criterion, network, batches, step.seed)
    scores = {group.root: _scored(score(group.parts), group.channels) for group, _ in found}
    if step.scope == "model":
        left = _left_in_model(found, scores, step)
    else:
        left = {
            group.root: step.remaining(width, step.removed_share(width.members[0], width)) for group, width in found
        }
    removal = {
        group.root: _least_important(scores[group.root], left[group.root])
        for group, _ in found
        if left[group.root] < group.channels and is_removal_safe(network, example, group)
    }
    if not removal:
        return model
    remove_channels(network, removal, example)
    return network.to_onnx()


def _scored(scores: Tensor | None, channels: int) -> NDArray[np.float64]:
    return np.ones(channels) if scores is None else scores.detach().double().numpy()


def _left_in_model(
    found: Sequence[tuple[ChannelGroup, PrunableWidth]],
    scores: Mapping[str, NDArray[np.float64]],
    step: StructuredPruning,
) -> dict[str, int]:
    """Return the channels that stay when all layers' are ranked together."""
    ranked = np.sort(np.concatenate([scores[group.root] for group, _ in found]))
    going = int(step.ratio * len(ranked))
    threshold = ranked[going - 1] if going else -np.inf
    left = {}
    for group, width in found:
        named = next((step.ratios[member] for member in width.members if member in step.ratios), None)
        share = min(float((scores[group.root] <= threshold).mean()), _MAX_RATIO) if named is None else named
        left[group.root] = step.remaining(width, share)
    return left


def _channel_widths(
    network: TrainableGraph, attentions: Sequence[AttentionHeads], example: Sequence[Tensor]
) -> list[tuple[ChannelGroup, PrunableWidth]]:
    modules = {id(parameter): name for name, parameter in network.named_parameters(remove_duplicate=False)}
    layers = {modules[id(parameter)].rpartition(".")[0]: layer for layer, parameter in network.weights().items()}
    heads = {layer for attention in attentions for layer in attention.columns}
    keep = [module for module, layer in layers.items() if layer in heads]
    groups = channel_groups(network, example, keep)
    order = list(layers)
    widths = [(g, sorted(g.members, key=order.index)) for g in groups]
    named = [(g, PrunableWidth("channels", g.channels, tuple(layers[m] for m in members))) for g, members in widths]
    return sorted(named, key=lambda pair: list(layers.values()).index(pair[1].members[0]))


def _example(model: onnx.ModelProto, batches: Sequence[LabelledBatch]) -> list[Tensor]:
    """Return a batch of two: of the data, or of seeded noise."""
    if batches and len(batches[0][0][0]) >= 2:
        return [torch.from_numpy(np.ascontiguousarray(array[:2])) for array in batches[0][0]]
    graph = prepare_graph(model)
    random = np.random.default_rng(0)
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    example = []
    for name in graph.input_names:
        shape = [2, *(size or 8 for size in graph.shapes[name][1:])]
        kind = onnx.helper.tensor_dtype_to_np_dtype(types[name])
        noise = random.standard_normal(shape) if kind.kind == "f" else np.zeros(shape)
        example.append(torch.from_numpy(noise.astype(kind)))
    return example
