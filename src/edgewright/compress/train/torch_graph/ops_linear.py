"""Matrix products, embeddings and normalisations as torch's own layers."""

from collections.abc import Callable
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgewright.compress.train.node_context import Binding, Built, Layout, Site
from edgewright.compress.train.torch_graph.ops_shape import MOVES

__all__ = ["MATRICES"]

_BATCH_NORMS: dict[int, type[nn.Module]] = {
    2: nn.BatchNorm1d,
    3: nn.BatchNorm1d,
    4: nn.BatchNorm2d,
    5: nn.BatchNorm3d,
}
_INSTANCE_NORMS: dict[int, type[nn.Module]] = {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}


def _linear(site: Site, weight: NDArray[Any], layout: Layout) -> Built:
    """Return the layer for a product with a constant matrix, and perhaps a bias as third input."""
    bias = site.fixed(2)
    inside, outside = weight.shape if layout == "transposed" else weight.shape[::-1]
    joined = bias is not None and bias.size == outside and (bias.ndim == 0 or bias.shape[-1] == outside)
    layer = nn.Linear(inside, outside, bias=joined)
    bindings = [Binding(site.node.input[1], layer, "weight", layout)]
    if joined:
        bindings.append(Binding(site.node.input[2], layer, "bias", "line"))
        return Built(layer, (0,), tuple(bindings))
    if site.has(2):
        return Built(_Added(layer), (0, 2), tuple(bindings))
    return Built(layer, (0,), tuple(bindings))


class _Added(nn.Module):
    """A layer plus a tensor."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, value: Tensor, more: Tensor) -> Tensor:
        made: Tensor = self.layer(value) + more
        return made


def _matmul(site: Site) -> Built:
    weight = site.fixed(1)
    if weight is not None and weight.ndim == 2 and weight.dtype.kind == "f" and len(site.shapes[0]) > 1:
        return _linear(site, weight, "transposed")
    return Built(torch.matmul, (0, 1))


def _gemm(site: Site) -> Built:
    alpha, beta = site.attr("alpha", 1.0), site.attr("beta", 1.0)
    flip_left, flip_right = bool(site.attr("transA", 0)), bool(site.attr("transB", 0))
    weight = site.fixed(1)
    if weight is not None and (alpha, beta) == (1.0, 1.0) and not flip_left:
        return _linear(site, weight, "same" if flip_right else "transposed")

    def run(left: Tensor, right: Tensor, more: Tensor | None = None) -> Tensor:
        product: Tensor = alpha * (left.mT if flip_left else left) @ (right.mT if flip_right else right)
        return product if more is None else product + beta * more

    return Built(run, (0, 1, 2) if site.has(2) else (0, 1))


def _batch_norm(site: Site) -> Built:
    scale = site.fixed(1)
    if scale is None or any(site.fixed(i) is None for i in (2, 3, 4)) or site.attr("training_mode", 0):
        raise site.cannot("its statistics are computed")
    layer = _BATCH_NORMS[len(site.shapes[0])](
        scale.size,
        eps=site.attr("epsilon", 1e-5),
        momentum=1 - site.attr("momentum", 0.9),
    )
    names = ("weight", "bias", "running_mean", "running_var")
    return Built(layer, (0,), tuple(Binding(site.node.input[i], layer, name) for i, name in enumerate(names, 1)))


def _instance_norm(site: Site) -> Built:
    scale = site.fixed(1)
    if scale is None or site.fixed(2) is None:
        raise site.cannot("its scale is computed")
    layer = _INSTANCE_NORMS[len(site.shapes[0])](scale.size, eps=site.attr("epsilon", 1e-5), affine=True)
    bindings = (Binding(site.node.input[1], layer, "weight"), Binding(site.node.input[2], layer, "bias"))
    return Built(layer, (0,), bindings)


def _layer_norm(site: Site) -> Built:
    scale = site.fixed(1)
    if scale is None or (site.has(2) and site.fixed(2) is None) or len([o for o in site.node.output if o]) > 1:
        raise site.cannot("its scale is computed or its statistics are outputs")
    axis = site.attr("axis", -1) % len(site.shapes[0])
    if scale.shape != tuple(site.shapes[0][axis:]):
        raise site.cannot("its scale is broadcast")
    layer = nn.LayerNorm(list(scale.shape), eps=site.attr("epsilon", 1e-5), bias=site.has(2))
    bindings = [Binding(site.node.input[1], layer, "weight")]
    if site.has(2):
        bindings.append(Binding(site.node.input[2], layer, "bias"))
    return Built(layer, (0,), tuple(bindings))


def _gather(site: Site) -> Built:
    table = site.fixed(0)
    if table is None or table.dtype.kind != "f" or table.ndim != 2 or site.attr("axis", 0) != 0:
        return MOVES["Gather"](site)
    layer = nn.Embedding(table.shape[0], table.shape[1])
    return Built(layer, (1,), (Binding(site.node.input[0], layer, "weight"),))


MATRICES: dict[str, Callable[[Site], Built]] = {
    "BatchNormalization": _batch_norm,
    "Gather": _gather,
    "Gemm": _gemm,
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "MatMul": _matmul,
}
