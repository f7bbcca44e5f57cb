"""How much a channel, a head or a recurrent unit matters: by weights, gradients, activations, or chance."""

import copy
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import onnx
import torch
import torch_pruning
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from edgewright.compress.train.torch_graph.onnx_module import TrainableGraph
from edgewright.compress.train.torch_graph.prepare import prepare_graph
from edgewright.contract.errors import CandidateError

__all__ = ["GroupScore", "LabelledBatch", "PruningCriterion", "batch_loss", "group_score", "weight_scores"]

PruningCriterion: TypeAlias = Literal[
    "magnitude", "magnitude l1", "batch norm", "taylor", "lamp", "activation", "random"
]
# Inputs in the graph's order [n, ...], and class ids [n] (integers) or wanted answers of the first output (floats).
LabelledBatch: TypeAlias = tuple[Sequence[NDArray[Any]], NDArray[Any]]
# From a Torch-Pruning group to one number per channel, or None where the criterion has nothing to say.
GroupScore: TypeAlias = Callable[[Any], Tensor | None]


def batch_loss(network: TrainableGraph, batch: LabelledBatch) -> Tensor:
    """Return the mean loss of a batch: cross-entropy for class ids, the squared error otherwise."""
    inputs, wanted = batch
    answer = network(*(torch.from_numpy(np.ascontiguousarray(array)) for array in inputs))[0]
    target = torch.from_numpy(np.ascontiguousarray(wanted))
    if target.is_floating_point():
        return functional.mse_loss(answer, target.to(answer.dtype).reshape(answer.shape))
    rows = answer.reshape(len(answer), -1)
    sums_to_one = bool((rows >= 0).all() and torch.allclose(rows.sum(dim=1), torch.ones(len(rows)), atol=1e-3))
    if rows.shape[1] == 1:
        given = (
            rows[:, 0].clamp(1e-7, 1 - 1e-7) if bool(((rows >= 0) & (rows <= 1)).all()) else rows[:, 0].sigmoid()
        )
        return functional.binary_cross_entropy(given, target.to(given.dtype))
    chances = rows.clamp_min(1e-9).log() if sums_to_one else functional.log_softmax(rows, dim=1)
    return functional.nll_loss(chances, target.long())


def loss_gradients(network: TrainableGraph, batches: Sequence[LabelledBatch]) -> None:
    """Leave the gradient of the mean loss over the batches in the parameters."""
    if not batches:
        raise CandidateError("this criterion needs data", remedy="Hand in batches, or use magnitudes.")
    network.eval()
    network.zero_grad(set_to_none=False)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with torch.enable_grad():
        for batch in batches:
            (batch_loss(network, batch) / len(batches)).backward()


def group_score(
    criterion: PruningCriterion, network: TrainableGraph, batches: Sequence[LabelledBatch], seed: int
) -> GroupScore:
    """Return the importance of Torch-Pruning's groups of coupled channels under a criterion.

    Args:
        criterion: `magnitude`: weights' L2 norm; `batch norm`: the scale of normalisation (Liu 2017,
            arXiv:1708.06519), magnitudes where there is none; `taylor`: weight times gradient (Molchanov 2019,
            arXiv:1906.10771); `lamp`: magnitudes relative to what is larger (Lee 2021, arXiv:2010.07611);
            `activation`: the mean size of what readers read; `random`: for comparison.
        network: The one that is pruned.
        batches: Data for `taylor` and `activation`.
        seed: Of `random`.

    Raises:
        CandidateError: The criterion needs data and there is none.
    """
    magnitude: GroupScore = torch_pruning.importance.GroupMagnitudeImportance(p=2)
    match criterion:
        case "magnitude":
            return magnitude
        case "magnitude l1":
            by_size: GroupScore = torch_pruning.importance.GroupMagnitudeImportance(p=1)
            return by_size
        case "lamp":
            relative: GroupScore = torch_pruning.importance.LAMPImportance()
            return relative
        case "batch norm":
            scale: GroupScore = torch_pruning.importance.BNScaleImportance()
            return lambda group: found if (found := scale(group)) is not None else magnitude(group)
        case "taylor":
            loss_gradients(network, batches)
            by_gradient: GroupScore = torch_pruning.importance.GroupTaylorImportance()
            return by_gradient
        case "activation":
            return _by_activation(network, batches, magnitude)
        case "random":
            generator = torch.Generator().manual_seed(seed)
            return lambda group: torch.rand(len(group[0].idxs), generator=generator)


def weight_scores(
    model: onnx.ModelProto, criterion: PruningCriterion, batches: Sequence[LabelledBatch], seed: int
) -> onnx.ModelProto:
    """Return the graph with the importance of each single weight in its place.

    Heads and recurrent units are summed from it. Criteria that judge channels (`batch norm`, `lamp`,
    `activation`) fall back to squared weights.
    """
    if criterion == "taylor":
        network = TrainableGraph(model)
        loss_gradients(network, batches)
        scored = copy.deepcopy(network)
        with torch.no_grad():
            for parameter, given in zip(scored.parameters(), network.parameters(), strict=True):
                parameter.copy_((given * given.grad).abs() if given.grad is not None else torch.zeros_like(given))
        return scored.to_onnx()
    graph = prepare_graph(model)
    random = np.random.default_rng(seed)
    for name, value in graph.constants.items():
        if value.dtype == np.float32:
            by_chance = criterion == "random"
            sized = np.abs(value) if criterion == "magnitude l1" else np.square(value)
            graph.constants[name] = random.random(value.shape, np.float32) if by_chance else sized
    return graph.to_model()


def _by_activation(network: TrainableGraph, batches: Sequence[LabelledBatch], fallback: GroupScore) -> GroupScore:
    """Score a channel by the mean absolute value that its readers are given."""
    if not batches:
        raise CandidateError("this criterion needs data", remedy="Hand in batches, or use magnitudes.")
    means: dict[nn.Module, Tensor] = {}

    def note(module: nn.Module, given: tuple[Tensor, ...], _: Any) -> None:
        channel = given[0].ndim - 1 if isinstance(module, nn.Linear) else 1
        others = [axis for axis in range(given[0].ndim) if axis != channel]
        means[module] = means.get(module, torch.zeros(())) + given[0].abs().mean(dim=others) / len(batches)

    layers = [m for m in network.modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    with torch.no_grad():
        for inputs, _ in batches:
            network.eval()(*(torch.from_numpy(np.ascontiguousarray(array)) for array in inputs))
    for hook in hooks:
        hook.remove()
    reads = (torch_pruning.prune_conv_in_channels, torch_pruning.prune_linear_in_channels)

    def score(group: Any) -> Tensor | None:
        total = torch.zeros(len(group[0].idxs))
        found = False
        for item in group:
            if item.dep.pruning_fn in reads and item.dep.layer in means:
                roots = torch.tensor(item.root_idxs)
                total.scatter_add_(0, roots, means[item.dep.layer][torch.tensor(item.idxs)])
                found = True
        return total / total.mean().clamp_min(1e-12) if found else fallback(group)

    return score
