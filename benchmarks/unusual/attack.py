"""Attacks on a network that change no value by more than so much: FGSM, PGD, also knowing the energy, squares."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from edgewright.compress.train.torch_graph.onnx_module import TrainableGraph

__all__ = ["ATTACKS", "Attack"]

Floats = NDArray[np.float32]
Attack = Callable[[TrainableGraph, Tensor, Tensor, float, tuple[float, float]], Tensor]

_STEPS = 20
_QUERIES = 300
_SEED = 0


def fgsm(network: TrainableGraph, x: Tensor, y: Tensor, strength: float, limits: tuple[float, float]) -> Tensor:
    """One step along the gradient's sign (Goodfellow et al. 2015, arXiv:1412.6572)."""
    return _within(x + strength * _slope(network, x, y, hide=False).sign(), x, strength, limits)


def pgd(network: TrainableGraph, x: Tensor, y: Tensor, strength: float, limits: tuple[float, float]) -> Tensor:
    """Twenty steps from a random start (Madry et al. 2018, arXiv:1706.06083)."""
    return _steps(network, x, y, strength, limits, hide=False)


def aware(network: TrainableGraph, x: Tensor, y: Tensor, strength: float, limits: tuple[float, float]) -> Tensor:
    """PGD that lowers the energy of what is fooled already: an attacker who knows what is watched.

    Source: selective gradients, Bryniarski et al. 2022, arXiv:2106.15023.
    """
    return _steps(network, x, y, strength, limits, hide=True)


def square(network: TrainableGraph, x: Tensor, y: Tensor, strength: float, limits: tuple[float, float]) -> Tensor:
    """Random squares, kept if they lower the margin; needs answers only (Andriushchenko 2020, arXiv:1912.00049)."""
    random = np.random.default_rng(_SEED)
    channels, height, width = x.shape[1:]
    signs = random.choice([-1.0, 1.0], (len(x), channels, 1, width)).astype(np.float32)
    best = _within(x + strength * torch.from_numpy(signs), x, strength, limits)
    margin = _margin(network, best, y)
    for query in range(_QUERIES):
        # The share of values that a square covers is halved as the search goes on, as in the paper's schedule.
        share = 0.3 * 0.5 ** sum(query / _QUERIES * 10_000 > step for step in (10, 50, 200, 500, 1000, 2000, 4000))
        side = max(1, round((share * height * width) ** 0.5))
        tall, wide = min(side, height), min(side, width)
        top, left = random.integers(0, height - tall + 1), random.integers(0, width - wide + 1)
        tried = best.clone()
        change = random.choice([-1.0, 1.0], (len(x), channels, 1, 1)).astype(np.float32)
        area = (..., slice(top, top + tall), slice(left, left + wide))
        tried[area] = x[area] + strength * torch.from_numpy(change)
        tried = _within(tried, x, strength, limits)
        found = _margin(network, tried, y)
        better = (found < margin) & (margin > 0)
        best[better], margin[better] = tried[better], found[better]
    return best


ATTACKS: dict[str, Attack] = {"fgsm": fgsm, "pgd": pgd, "pgd that knows the energy": aware, "square": square}


def _steps(
    network: TrainableGraph, x: Tensor, y: Tensor, strength: float, limits: tuple[float, float], *, hide: bool
) -> Tensor:
    generator = torch.Generator().manual_seed(_SEED)
    at = _within(x + strength * (2 * torch.rand(x.shape, generator=generator) - 1), x, strength, limits)
    for _ in range(_STEPS):
        slope = _slope(network, at, y, hide=hide)
        at = _within(at + strength / 4 * slope.sign(), x, strength, limits)
    return at


def _slope(network: TrainableGraph, x: Tensor, y: Tensor, *, hide: bool) -> Tensor:
    at = x.detach().clone().requires_grad_()
    logits = network(at)[0]
    gain = functional.cross_entropy(logits, y, reduction="none")
    if hide:
        gain = torch.where(logits.argmax(dim=1) == y, gain, logits.logsumexp(dim=1))
    return torch.autograd.grad(gain.sum(), at)[0]


def _within(values: Tensor, x: Tensor, strength: float, limits: tuple[float, float]) -> Tensor:
    return torch.minimum(torch.maximum(values, x - strength), x + strength).clamp(*limits).detach()


def _margin(network: TrainableGraph, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        logits = network(x)[0]
    own = logits.gather(1, y[:, None])[:, 0]
    others = logits.scatter(1, y[:, None], -torch.inf).amax(dim=1)
    return torch.as_tensor(own - others)
