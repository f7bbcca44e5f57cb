"""What operators without weights compute, in one table."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgewright.compress.train.node_context import BuiltNode, NodeContext

__all__ = ["ELEMENTWISE_OPERATORS"]

OperatorBuilder = Callable[[NodeContext], BuiltNode]


def _plain(call: Callable[..., Any]) -> OperatorBuilder:
    """Return the builder of an operator that takes all its inputs and has no attributes."""

    def build(site: NodeContext) -> BuiltNode:
        return BuiltNode(call, tuple(range(len(site.node.input))))

    return build


def _with(call: Callable[..., Any], **defaults: Any) -> OperatorBuilder:
    """Return the builder of an operator whose attributes are keywords of `call`."""

    def build(site: NodeContext) -> BuiltNode:
        return BuiltNode(partial(call, **{name: site.attr(name, value) for name, value in defaults.items()}), (0,))

    return build


def _divided(left: Tensor, right: Tensor) -> Tensor:
    whole = not (left.is_floating_point() or right.is_floating_point())
    return torch.div(left, right, rounding_mode="trunc") if whole else left / right


def _folded(call: Callable[[Tensor, Tensor], Tensor]) -> OperatorBuilder:
    def run(*values: Tensor) -> Tensor:
        result = values[0]
        for value in values[1:]:
            result = call(result, value)
        return result

    return _plain(run)


def _mean(*values: Tensor) -> Tensor:
    return sum(values[1:], values[0]) / len(values)


def _hard_sigmoid(value: Tensor, alpha: float, beta: float) -> Tensor:
    return (value * alpha + beta).clamp(0, 1)


def _leaky(value: Tensor, alpha: float) -> Tensor:
    return functional.leaky_relu(value, alpha)


def _elu(value: Tensor, alpha: float) -> Tensor:
    return functional.elu(value, alpha)


def _gelu(value: Tensor, approximate: str) -> Tensor:
    return functional.gelu(value, approximate=approximate)


def _prelu(value: Tensor, slope: Tensor) -> Tensor:
    return torch.where(value >= 0, value, value * slope)


def _thresholded(value: Tensor, alpha: float) -> Tensor:
    return functional.threshold(value, alpha, 0.0)


def _clip(site: NodeContext) -> BuiltNode:
    low, high = site.number(1, "min", -math.inf), site.number(2, "max", math.inf)
    if low == 0 and high == math.inf:
        return BuiltNode(functional.relu, (0,))
    return BuiltNode(partial(torch.clamp, min=low, max=high), (0,))


def _softmax(site: NodeContext) -> BuiltNode:
    call = functional.log_softmax if site.node.op_type == "LogSoftmax" else functional.softmax
    if site.opset >= 13:
        return BuiltNode(partial(call, dim=site.attr("axis", -1)), (0,))
    axis = site.attr("axis", 1)

    def run(value: Tensor) -> Tensor:
        return call(value.flatten(axis), dim=-1).reshape(value.shape)

    return BuiltNode(run, (0,))


_REDUCTIONS: dict[str, Callable[..., Tensor]] = {
    "ReduceMean": torch.mean,
    "ReduceSum": torch.sum,
    "ReduceMax": torch.amax,
    "ReduceMin": torch.amin,
    "ReduceL2": torch.linalg.vector_norm,
    "ReduceLogSumExp": torch.logsumexp,
    "ReduceSumSquare": lambda value, dim, keepdim: torch.sum(value * value, dim=dim, keepdim=keepdim),
    "ReduceL1": lambda value, dim, keepdim: torch.sum(value.abs(), dim=dim, keepdim=keepdim),
}


def _reduce(site: NodeContext) -> BuiltNode:
    axes = site.ints(1, "axes")
    if axes is None:
        if site.attr("noop_with_empty_axes", 0):
            return BuiltNode(_same, (0,))
        axes = list(range(len(site.shapes[0])))
    return BuiltNode(
        partial(_REDUCTIONS[site.node.op_type], dim=tuple(axes), keepdim=bool(site.attr("keepdims", 1))), (0,)
    )


def _argmax(site: NodeContext) -> BuiltNode:
    call = torch.argmax if site.node.op_type == "ArgMax" else torch.argmin
    return BuiltNode(partial(call, dim=site.attr("axis", 0), keepdim=bool(site.attr("keepdims", 1))), (0,))


def _same(value: Tensor) -> Tensor:
    return value


def _dropout(site: NodeContext) -> BuiltNode:
    if len(site.node.output) > 1 and site.node.output[1]:
        raise site.unsupported("its mask is an output")
    return BuiltNode(nn.Dropout(site.number(1, "ratio", 0.5)), (0,))


_TYPES = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
}


def _cast(site: NodeContext) -> BuiltNode:
    kind = _TYPES.get(site.attr("to"))
    if kind is None:
        raise site.unsupported(f"type {site.attr('to')} is not supported")
    return BuiltNode(partial(Tensor.to, dtype=kind), (0,))


def _cast_like(value: Tensor, other: Tensor) -> Tensor:
    return value.to(other.dtype)


def _einsum(site: NodeContext) -> BuiltNode:
    return BuiltNode(partial(torch.einsum, site.attr("equation")), tuple(range(len(site.node.input))))


ELEMENTWISE_OPERATORS: dict[str, OperatorBuilder] = {
    "Abs": _plain(torch.abs),
    "Add": _plain(torch.add),
    "And": _plain(torch.logical_and),
    "ArgMax": _argmax,
    "ArgMin": _argmax,
    "Cast": _cast,
    "CastLike": _plain(_cast_like),
    "Ceil": _plain(torch.ceil),
    "Clip": _clip,
    "Cos": _plain(torch.cos),
    "Div": _plain(_divided),
    "Dropout": _dropout,
    "Einsum": _einsum,
    "Elu": _with(_elu, alpha=1.0),
    "Equal": _plain(torch.eq),
    "Erf": _plain(torch.erf),
    "Exp": _plain(torch.exp),
    "Floor": _plain(torch.floor),
    "Gelu": _with(_gelu, approximate="none"),
    "Greater": _plain(torch.gt),
    "GreaterOrEqual": _plain(torch.ge),
    "HardSigmoid": _with(_hard_sigmoid, alpha=0.2, beta=0.5),
    "HardSwish": _plain(functional.hardswish),
    "Identity": _plain(_same),
    "LeakyRelu": _with(_leaky, alpha=0.01),
    "Less": _plain(torch.lt),
    "LessOrEqual": _plain(torch.le),
    "Log": _plain(torch.log),
    "LogSoftmax": _softmax,
    "Max": _folded(torch.maximum),
    "Mean": _plain(_mean),
    "Min": _folded(torch.minimum),
    "Mish": _plain(functional.mish),
    "Mul": _plain(torch.mul),
    "Neg": _plain(torch.neg),
    "Not": _plain(torch.logical_not),
    "Or": _plain(torch.logical_or),
    "PRelu": _plain(_prelu),
    "Pow": _plain(torch.pow),
    "Reciprocal": _plain(torch.reciprocal),
    **dict.fromkeys(_REDUCTIONS, _reduce),
    "Relu": _plain(functional.relu),
    "Round": _plain(torch.round),
    "Selu": _plain(functional.selu),
    "Sigmoid": _plain(torch.sigmoid),
    "Sign": _plain(torch.sign),
    "Sin": _plain(torch.sin),
    "Softmax": _softmax,
    "Softplus": _plain(functional.softplus),
    "Softsign": _plain(functional.softsign),
    "Sqrt": _plain(torch.sqrt),
    "Sub": _plain(torch.sub),
    "Sum": _folded(torch.add),
    "Tanh": _plain(torch.tanh),
    "ThresholdedRelu": _with(_thresholded, alpha=1.0),
    "Where": _plain(torch.where),
}
