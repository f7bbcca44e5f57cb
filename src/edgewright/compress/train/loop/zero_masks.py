"""Zeros that stay zero while the other weights are trained, whether placed freely or N of every M."""

from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor

from edgewright.compress.train.torch_graph.onnx_module import TrainableGraph
from edgewright.contract.errors import CandidateError

__all__ = ["gradual_fractions", "make_zero_holder", "zero_masks"]

# Fewer zeros are chance, not sparsity.
_MIN_ZEROS = 0.05


def zero_masks(network: TrainableGraph, layers: Collection[str] = ()) -> dict[str, Tensor]:
    """Return where the weights of sparse layers are exactly zero.

    Args:
        network: Of a graph that `sparsify` made, say; quantised or not.
        layers: Names of the layers to look at; every sparse one if empty.

    Returns:
        Per parameter name, in its shape: True where the weight is zero.

    Raises:
        CandidateError: A named layer does not exist or has no zeros.
    """
    names = {id(parameter): name for name, parameter in network.named_parameters(remove_duplicate=False)}
    owner = {names[id(weight)].rpartition(".")[0]: layer for layer, weight in network.weights().items()}
    masks: dict[str, Tensor] = {}
    found = set()
    for name, parameter in network.named_parameters():
        layer = owner.get(name.rpartition(".")[0])
        zeros = parameter.detach() == 0
        if layer is None or parameter.ndim < 2 or (layers and layer not in layers):
            continue
        if zeros.float().mean() >= _MIN_ZEROS:
            masks[name] = zeros
            found.add(layer)
    missing = sorted(set(layers) - found)
    if missing:
        raise CandidateError(
            f"layer {missing[0]!r} has no zeros to keep", remedy="Name layers that were sparsified."
        )
    return masks


def make_zero_holder(network: TrainableGraph, masks: Mapping[str, Tensor]) -> Callable[[], None]:
    """Return what sets the masked weights back to zero; to be called after every step of the optimiser."""
    parameters = dict(network.named_parameters())
    held = [(parameters[name], mask) for name, mask in masks.items()]

    def again() -> None:
        with torch.no_grad():
            for parameter, mask in held:
                parameter.masked_fill_(mask, 0.0)

    return again


def gradual_fractions(final: float, steps: int) -> tuple[float, ...]:
    """Return the sparsity after each of `steps` prunings, fast at first and slow in the end.

    Source: the cubic schedule, Zhu and Gupta 2017, arXiv:1710.01878.

    >>> [round(fraction, 2) for fraction in gradual_fractions(0.8, 3)]
    [0.56, 0.77, 0.8]
    """
    if not 0 < final < 1 or steps < 1:
        raise CandidateError(f"sparsity {final} in {steps} steps is impossible", remedy="Use 0.5 in 3 steps, say.")
    return tuple(final * (1 - (1 - (i + 1) / steps) ** 3) for i in range(steps))
