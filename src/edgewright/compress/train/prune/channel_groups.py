"""Structured pruning of channels with Torch-Pruning's dependency graph (Fang 2023, arXiv:2301.12900).

Torch-Pruning reads couplings off the traced module and knows most operators, not all. So each group is tried
on a copy first: taking channels out must give what the network answers when its readers ignore them. A group
that fails this keeps its width.
"""

import copy
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch_pruning
from numpy.typing import NDArray
from torch import Tensor, nn
from torch_pruning.ops import OPTYPE, module2type

from edgewright.compress.model.graph import session_bytes
from edgewright.compress.train.torch_graph.onnx_module import TrainableGraph
from edgewright.contract.errors import CandidateError

__all__ = ["ChannelGroup", "channel_groups", "is_removal_safe", "remove_channels"]

_LAYERS = (nn.modules.conv._ConvNd, nn.Linear)
_MIXES = (nn.LayerNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm)
_READS = (torch_pruning.prune_conv_in_channels, torch_pruning.prune_linear_in_channels)


@dataclass(frozen=True, slots=True)
class ChannelGroup:
    """Channels of several layers that can only go together.

    Attributes:
        root: Module name of the first layer that makes them.
        members: Module names of all layers that make them, the first included.
        channels: How many.
        parts: Torch-Pruning's own record, with all channels.
    """

    root: str
    members: tuple[str, ...]
    channels: int
    parts: Any


class _RecurrentInputs(torch_pruning.BasePruningFunc):  # type: ignore[misc]
    """Narrows what a recurrent layer reads; its units are `recurrent_prune.py`'s."""

    def prune_in_channels(self, layer: nn.RNNBase, idxs: Sequence[int]) -> nn.Module:
        """Keep the other columns of the input weights, in each direction."""
        stay = [i for i in range(layer.input_size) if i not in set(idxs)]
        for name in ("weight_ih_l0", "weight_ih_l0_reverse"):
            if hasattr(layer, name):
                setattr(layer, name, self._prune_parameter_and_grad(getattr(layer, name), stay, 1))
        layer.input_size = len(stay)
        return layer

    def prune_out_channels(self, layer: nn.RNNBase, idxs: Sequence[int]) -> nn.Module:
        """Refuse: the group that asks for it keeps its width."""
        raise CandidateError(
            f"units {list(idxs)} of {type(layer).__name__} are coupled", remedy="Its group keeps its width."
        )

    def get_in_channels(self, layer: nn.RNNBase) -> int:
        """Return the width of the input."""
        return layer.input_size

    def get_out_channels(self, layer: nn.RNNBase) -> int:
        """Return the width of the output."""
        return layer.hidden_size * (2 if layer.bidirectional else 1)


def channel_groups(
    network: TrainableGraph, example: Sequence[Tensor], keep: Collection[str] = ()
) -> list[ChannelGroup]:
    """Return the groups of coupled channels as Torch-Pruning sees them; see `is_removal_safe`.

    Args:
        network: The module; stays as it is.
        example: Inputs, a batch of two or more.
        keep: Module names of layers that keep their width.

    Raises:
        CandidateError: The network cannot be traced.
    """
    graph = _trace(network, example)
    names = {module: name for name, module in network.named_modules()}
    found = []
    with warnings.catch_warnings(action="ignore"):
        try:
            every = list(graph.get_all_groups(root_module_types=_LAYERS))
        except Exception as error:  # as above
            raise _untraceable(error) from error
        for parts in every:
            members = [
                names[item.dep.layer]
                for item in parts
                if isinstance(item.dep.layer, _LAYERS) and graph.is_out_channel_pruning_fn(item.dep.pruning_fn)
            ]
            members = list(dict.fromkeys(members))
            if not _reaches_outside(parts, graph) and not set(members) & set(keep):
                found.append(ChannelGroup(members[0], tuple(members), len(parts[0].idxs), parts))
    return found


def is_removal_safe(network: TrainableGraph, example: Sequence[Tensor], group: ChannelGroup) -> bool:
    """Whether taking channels out is what ignoring them is, tried with every other channel."""
    going = list(range(0, group.channels, 2))
    if len(going) == group.channels:
        return False
    narrow = copy.deepcopy(network)
    try:
        remove_channels(narrow, {group.root: np.array(going)}, example)
        with torch.no_grad():
            given = narrow.eval()(*example)
        answers = session_bytes(narrow.to_onnx()).run(
            list(network.output_names),
            {name: value[:1].numpy() for name, value in zip(network.input_names, example, strict=True)},
        )
        wanted = _ignoring(copy.deepcopy(network), example, group, going)
    except Exception:  # shapes that no longer fit, in whichever operator
        return False
    if any(a.shape != b.shape for a, b in zip(wanted, given, strict=True)):
        return False
    if not all(_close(a[:1], torch.from_numpy(b)) for a, b in zip(given, answers, strict=True)):
        return False
    if any(isinstance(item.dep.layer, _MIXES) for item in group.parts):
        return True  # a norm over the channels themselves: ignoring is not removing
    return all(_close(a, b) for a, b in zip(wanted, given, strict=True))


def remove_channels(
    network: TrainableGraph, removal: Mapping[str, NDArray[np.intp]], example: Sequence[Tensor]
) -> None:
    """Take channels out, in place.

    Args:
        network: The module.
        removal: Per group's root the channels that go.
        example: As for `channel_groups`.
    """
    graph = _trace(network, example)
    modules = dict(network.named_modules())
    with warnings.catch_warnings(action="ignore"):
        for root, channels in removal.items():
            if len(channels):
                layer = modules[root]
                way = graph.get_pruner_of_module(layer).prune_out_channels
                graph.get_pruning_group(layer, way, [int(channel) for channel in channels]).prune()


@contextmanager
def _simple_recurrence(network: TrainableGraph) -> Iterator[None]:
    """Let recurrent layers be one product while the network is traced, instead of many small operators."""
    cells = [module for module in network.modules() if isinstance(module, nn.RNNBase)]

    def stand_in(cell: nn.RNNBase) -> Callable[..., Any]:
        turns = 2 if cell.bidirectional else 1
        weight = torch.ones(turns * cell.hidden_size, cell.input_size)

        def forward(value: Tensor, _: Any = None) -> Any:
            made = nn.functional.linear(value, weight)
            state = made[-1].reshape(-1, turns, cell.hidden_size).transpose(0, 1)
            return made, ((state, state) if isinstance(cell, nn.LSTM) else state)

        return forward

    for cell in cells:
        cell.forward = stand_in(cell)
    try:
        yield
    finally:
        for cell in cells:
            del cell.forward


def _trace(network: TrainableGraph, example: Sequence[Tensor]) -> Any:
    """Return Torch-Pruning's dependency graph of the network."""
    try:
        with torch.enable_grad(), warnings.catch_warnings(action="ignore"), _simple_recurrence(network):
            return torch_pruning.DependencyGraph().build_dependency(
                network,
                example_inputs=tuple(example),
                forward_fn=lambda module, inputs: module(*inputs),
                output_transform=lambda outputs: [o for o in outputs if o.grad_fn is not None],
                unwrapped_parameters=_free_maps(network),
                customized_pruners={nn.GRU: _RecurrentInputs(), nn.LSTM: _RecurrentInputs()},
                verbose=False,
            )
    except Exception as error:  # Torch-Pruning raises what it meets
        raise _untraceable(error) from error


def _untraceable(error: Exception) -> CandidateError:
    return CandidateError(
        f"the network cannot be traced for pruning: {type(error).__name__}: {error}",
        remedy="Prune single weights instead, or train a smaller network.",
    )


def _free_maps(network: TrainableGraph) -> list[tuple[nn.Parameter, int]]:
    """Return the parameters of no layer that are maps, and their channel axis; of others it is the last one."""
    return [(p, 1) for p in network.parameters(recurse=False) if p.ndim == 4 and p.shape[1] > 1]


def _reaches_outside(parts: Any, graph: Any) -> bool:
    """Whether the channels are an output of the network, or those of a layer in groups."""
    for item in parts:
        layer = item.dep.layer
        makes = graph.is_out_channel_pruning_fn(item.dep.pruning_fn)
        if makes and (item.dep.target.type == OPTYPE.OUTPUT or not item.dep.target.outputs):
            return True
        if isinstance(layer, nn.modules.conv._ConvNd) and layer.groups > 1:
            depthwise = module2type(layer) == OPTYPE.DEPTHWISE_CONV
            if not depthwise or layer.in_channels != layer.out_channels:
                return True
    return False


def _close(wanted: Tensor, given: Tensor) -> bool:
    return bool((wanted - given).abs().max() <= 1e-3 * wanted.abs().max() + 1e-5)


def _ignoring(
    network: TrainableGraph, example: Sequence[Tensor], group: ChannelGroup, going: list[int]
) -> tuple[Tensor, ...]:
    """Return the answers when readers' weights for the channels are zero."""
    graph = _trace(network, example)
    layer = dict(network.named_modules())[group.root]
    way = graph.get_pruner_of_module(layer).prune_out_channels
    with torch.no_grad(), warnings.catch_warnings(action="ignore"):
        for item in graph.get_pruning_group(layer, way, going):
            reader, columns = item.dep.layer, torch.tensor(item.idxs)
            if item.dep.pruning_fn in _READS:
                reader.weight.index_fill_(0 if getattr(reader, "transposed", False) else 1, columns, 0.0)
            elif isinstance(reader, nn.RNNBase):
                for name in ("weight_ih_l0", "weight_ih_l0_reverse"):
                    if hasattr(reader, name):
                        getattr(reader, name).index_fill_(1, columns, 0.0)
        answers: tuple[Tensor, ...] = network.eval()(*example)
        return answers
