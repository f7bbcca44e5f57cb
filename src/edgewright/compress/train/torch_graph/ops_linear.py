"""Matrix products, embeddings and normalisations as torch's own layers."""

from collections.abc import Callable
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgewright.compress.train.node_context import BuiltNode, NodeContext, ParameterBinding, TensorLayout
from edgewright.compress.train.torch_graph.ops_shape import SHAPE_OPERATORS

__all__ = ["LINEAR_OPERATORS"]

_BATCH_NORMS: dict[int, type[nn.Module]] = {
    2: nn.BatchNorm1d,
    3: nn.BatchNorm1d,
    4: nn.BatchNorm2d,
    5: nn.BatchNorm3d,
}
_INSTANCE_NORMS: dict[int, type[nn.Module]] = {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}


def _linear(site: NodeContext, weight: NDArray[Any], layout: TensorLayout) -> BuiltNode:
    """Return the layer for a product with a constant matrix, and perhaps a bias as third input."""
    bias = site.constant_input(2)
    inside, outside = weight.shape if layout == "transposed" else weight.shape[::-1]
    joined = bias is not None and bias.size == outside and (bias.ndim == 0 or bias.shape[-1] == outside)
    layer = nn.Linear(inside, outside, bias=joined)
    bindings = [ParameterBinding(site.node.input[1], layer, "weight", layout)]
    if joined:
        bindings.append(ParameterBinding(site.node.input[2], layer, "bias", "line"))
        return BuiltNode(layer, (0,), tuple(bindings))
    if site.has_input(2):
        return BuiltNode(_Added(layer), (0, 2), tuple(bindings))
    return BuiltNode(layer, (0,), tuple(bindings))


class _Added(nn.Module):
    """A layer plus a tensor."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, value: Tensor, more: Tensor) -> Tensor:
        made: Tensor = self.layer(value) + more
        return made


def _matmul(site: NodeContext) -> BuiltNode:
    weight = site.constant_input(1)
    if weight is not None and weight.ndim == 2 and weight.dtype.kind == "f" and len(site.shapes[0]) > 1:
        return _linear(site, weight, "transposed")
    return BuiltNode(torch.matmul, (0, 1))


def _gemm(site: NodeContext) -> BuiltNode:
    alpha, beta = site.attr("alpha", 1.0), site.attr("beta", 1.0)
    flip_left, flip_right = bool(site.attr("transA", 0)), bool(site.attr("transB", 0))
    weight = site.constant_input(1)
    if weight is not None and (alpha, beta) == (1.0, 1.0) and not flip_left:
        return _linear(site, weight, "same" if flip_right else "transposed")

    def run(left: Tensor, right: Tensor, more: Tensor | None = None) -> Tensor:
        product: Tensor = alpha * (left.mT if flip_left else left) @ (right.mT if flip_right else right)
        return product if more is None else product + beta * more

    return BuiltNode(run, (0, 1, 2) if site.has_input(2) else (0, 1))


def _batch_norm(site: NodeContext) -> BuiltNode:
    scale = site.constant_input(1)
    if scale is None or any(site.constant_input(i) is None for i in (2, 3, 4)) or site.attr("training_mode", 0):
        raise site.unsupported("its statistics are computed")
    layer = _BATCH_NORMS[len(site.shapes[0])](
        scale.size,
        eps=site.attr("epsilon", 1e-5),
        momentum=1 - site.attr("momentum", 0.9),
    )
    names = ("weight", "bias", "running_mean", "running_var")
    return BuiltNode(
        layer, (0,), tuple(ParameterBinding(site.node.input[i], layer, name) for i, name in enumerate(names, 1))
    )


def _instance_norm(site: NodeContext) -> BuiltNode:
    scale = site.constant_input(1)
    if scale is None or site.constant_input(2) is None:
        raise site.unsupported("its scale is computed")
    layer = _INSTANCE_NORMS[len(site.shapes[0])](scale.size, eps=site.attr("epsilon", 1e-5), affine=True)
    bindings = (
        ParameterBinding(site.node.input[1], layer, "weight"),
        ParameterBinding(site.node.input[2], layer, "bias"),
    )
    return BuiltNode(layer, (0,), bindings)


def _layer_norm(site: NodeContext) -> BuiltNode:
    scale = site.constant_input(1)
    if (
        scale is None
        or (site.has_input(2) and site.constant_input(2) is None)
        or len([o for o in site.node.output if o]) > 1
    ):
        raise site.unsupported("its scale is computed or its statistics are outputs")
    axis = site.attr("axis", -1) % len(site.shapes[0])
    if scale.shape != tuple(site.shapes[0][axis:]):
        raise site.unsupported("its scale is broadcast")
    layer = nn.LayerNorm(list(scale.shape), eps=site.attr("epsilon", 1e-5), bias=site.has_input(2))
    bindings = [ParameterBinding(site.node.input[1], layer, "weight")]
    if site.has_input(2):
        bindings.append(ParameterBinding(site.node.input[2], layer, "bias"))
    return BuiltNode(layer, (0,), tuple(bindings))


def _gather(site: NodeContext) -> BuiltNode:
    table = site.constant_input(0)
    if table is None or table.dtype.kind != "f" or table.ndim != 2 or site.attr("axis", 0) != 0:
        return SHAPE_OPERATORS["Gather"](site)
    layer = nn.Embedding(table.shape[0], table.shape[1])
    return BuiltNode(layer, (1,), (ParameterBinding(site.node.input[0], layer, "weight"),))


LINEAR_OPERATORS: dict[str, Callable[[NodeContext], BuiltNode]] = {
    "BatchNormalization": _batch_norm,
    "Gather": _gather,
    "Gemm": _gemm,
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "MatMul": _matmul,
}
