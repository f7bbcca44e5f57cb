"""Operators that slide a window: convolution and pooling, with ONNX's ways of padding."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgewright.compress.train.node_context import BuiltNode, NodeContext, ParameterBinding

__all__ = ["WINDOW_OPERATORS"]

_CONVOLUTIONS: dict[int, type[Any]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED: dict[int, type[Any]] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_MAXIMA: dict[int, type[Any]] = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
_MEANS: dict[int, type[Any]] = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}


class _Padded(nn.Module):
    """A layer after padding that differs between its sides."""

    def __init__(self, widths: list[int], value: float, layer: nn.Module) -> None:
        super().__init__()
        self._widths, self._value, self.layer = widths, value, layer

    def forward(self, value: Tensor) -> Tensor:
        return self.layer(functional.pad(value, self._widths, value=self._value))  # type: ignore[no-any-return]


class _Cropped(nn.Module):
    """A layer whose output loses its borders."""

    def __init__(self, layer: nn.Module, cuts: list[tuple[int, int]]) -> None:
        super().__init__()
        self.layer, self._cuts = layer, cuts

    def forward(self, value: Tensor) -> Tensor:
        made: Tensor = self.layer(value)
        for axis, (first, last) in enumerate(self._cuts, 2):
            made = made.narrow(axis, first, made.shape[axis] - first - last)
        return made


class _PartialMean(nn.Module):
    """The mean over a window that counts only what lies in the tensor."""

    def __init__(self, widths: list[int], pool: nn.Module) -> None:
        super().__init__()
        self._widths, self.pool = widths, pool

    def forward(self, value: Tensor) -> Tensor:
        there = functional.pad(torch.ones_like(value[:1, :1]), self._widths)
        made: Tensor = self.pool(functional.pad(value, self._widths)) / self.pool(there)
        return made


def _sides(
    site: NodeContext, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> list[tuple[int, int]]:
    """Return the padding before and after each axis."""
    rule = site.attr("auto_pad", "NOTSET")
    rank = len(kernel)
    if rule in ("NOTSET", ""):
        pads = site.attr("pads") or [0] * (2 * rank)
        return [(int(pads[i]), int(pads[i + rank])) for i in range(rank)]
    if rule == "VALID":
        return [(0, 0)] * rank
    sides = []
    for size, window, stride, spread in zip(site.shapes[0][2:], kernel, strides, dilations, strict=True):
        total = max((math.ceil(size / stride) - 1) * stride + (window - 1) * spread + 1 - size, 0)
        small, large = total // 2, total - total // 2
        sides.append((small, large) if rule == "SAME_UPPER" else (large, small))
    return sides


def _widths(sides: list[tuple[int, int]]) -> list[int]:
    return [width for pair in reversed(sides) for width in pair]


def _even(sides: list[tuple[int, int]]) -> bool:
    return all(first == last for first, last in sides)


def _bindings(site: NodeContext, layer: nn.Module) -> tuple[ParameterBinding, ...]:
    found = [ParameterBinding(site.node.input[1], layer, "weight")]
    if site.has_input(2):
        found.append(ParameterBinding(site.node.input[2], layer, "bias", "line"))
    return tuple(found)


def _convolution(site: NodeContext) -> BuiltNode:
    weight = site.constant_input(1)
    if weight is None or (site.has_input(2) and site.constant_input(2) is None):
        raise site.unsupported("its weight is computed")
    rank = weight.ndim - 2
    strides = site.attr("strides") or [1] * rank
    dilations = site.attr("dilations") or [1] * rank
    groups = site.attr("group", 1)
    sides = _sides(site, weight.shape[2:], strides, dilations)
    layer = _CONVOLUTIONS[rank](
        weight.shape[1] * groups,
        weight.shape[0],
        tuple(weight.shape[2:]),
        stride=tuple(strides),
        padding=tuple(first for first, _ in sides) if _even(sides) else 0,
        dilation=tuple(dilations),
        groups=groups,
        bias=site.has_input(2),
    )
    call = layer if _even(sides) else _Padded(_widths(sides), 0.0, layer)
    return BuiltNode(call, (0,), _bindings(site, layer))


def _transposed(site: NodeContext) -> BuiltNode:
    weight = site.constant_input(1)
    if weight is None or site.attr("output_shape") or site.attr("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise site.unsupported("its weight or its output's shape is computed")
    rank = weight.ndim - 2
    groups = site.attr("group", 1)
    sides = _sides(site, weight.shape[2:], [1] * rank, [1] * rank)
    layer = _TRANSPOSED[rank](
        weight.shape[0],
        weight.shape[1] * groups,
        tuple(weight.shape[2:]),
        stride=tuple(site.attr("strides") or [1] * rank),
        padding=tuple(first for first, _ in sides) if _even(sides) else 0,
        output_padding=tuple(site.attr("output_padding") or [0] * rank),
        groups=groups,
        bias=site.has_input(2),
        dilation=tuple(site.attr("dilations") or [1] * rank),
    )
    return BuiltNode(layer if _even(sides) else _Cropped(layer, sides), (0,), _bindings(site, layer))


def _max_pool(site: NodeContext) -> BuiltNode:
    kernel = tuple(site.attr("kernel_shape"))
    if len(site.node.output) > 1 and site.node.output[1]:
        raise site.unsupported("the places of its maxima are an output")
    strides = tuple(site.attr("strides") or [1] * len(kernel))
    dilations = tuple(site.attr("dilations") or [1] * len(kernel))
    sides = _sides(site, kernel, strides, dilations)
    plain = _even(sides) and all(first <= window // 2 for (first, _), window in zip(sides, kernel, strict=True))
    padding = tuple(first for first, _ in sides) if plain else 0
    pool = _MAXIMA[len(kernel)](kernel, strides, padding, dilations, ceil_mode=bool(site.attr("ceil_mode", 0)))
    return BuiltNode(pool if plain else _Padded(_widths(sides), -np.inf, pool), (0,))


def _average_pool(site: NodeContext) -> BuiltNode:
    kernel = tuple(site.attr("kernel_shape"))
    strides = tuple(site.attr("strides") or [1] * len(kernel))
    if site.attr("dilations") and set(site.attr("dilations")) != {1}:
        raise site.unsupported("its window is dilated")
    sides = _sides(site, kernel, strides, [1] * len(kernel))
    count = bool(site.attr("count_include_pad", 0))
    ceil = bool(site.attr("ceil_mode", 0))
    if _even(sides) and all(first <= window // 2 for (first, _), window in zip(sides, kernel, strict=True)):
        padding = tuple(first for first, _ in sides)
        return BuiltNode(_MEANS[len(kernel)](kernel, strides, padding, ceil, count), (0,))
    pool = _MEANS[len(kernel)](kernel, strides, 0, ceil)
    return BuiltNode(_Padded(_widths(sides), 0.0, pool) if count else _PartialMean(_widths(sides), pool), (0,))


def _global_average(site: NodeContext) -> BuiltNode:
    axes = tuple(range(2, len(site.shapes[0])))
    return BuiltNode(lambda value: value.mean(axes, keepdim=True), (0,))


def _global_max(site: NodeContext) -> BuiltNode:
    axes = tuple(range(2, len(site.shapes[0])))
    return BuiltNode(lambda value: value.amax(axes, keepdim=True), (0,))


WINDOW_OPERATORS = {
    "AveragePool": _average_pool,
    "Conv": _convolution,
    "ConvTranspose": _transposed,
    "GlobalAveragePool": _global_average,
    "GlobalMaxPool": _global_max,
    "MaxPool": _max_pool,
}
