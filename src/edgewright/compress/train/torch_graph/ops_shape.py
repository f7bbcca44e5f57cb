"""Operators that move, cut or resize tensors. Their sizes follow the batch and channels that pruning removed."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from edgewright.compress.train.node_context import BuiltNode, NodeContext
from edgewright.compress.train.torch_graph.reshape import BatchFreeReshape

__all__ = ["SHAPE_OPERATORS"]


def _reshape(site: NodeContext) -> BuiltNode:
    target = site.attr("shape") if site.opset < 5 else site.constant_input(1)
    if target is None:
        return BuiltNode(lambda value, shape: value.reshape(_copied_sizes(value, shape)), (0, 1))
    return BuiltNode(
        BatchFreeReshape([int(v) for v in target], bool(site.attr("allowzero", 0)), site.any_batch), (0,)
    )


def _copied_sizes(value: Tensor, shape: Tensor) -> list[int]:
    return [value.shape[i] if size == 0 else int(size) for i, size in enumerate(shape.tolist())]


def _flatten(site: NodeContext) -> BuiltNode:
    axis = site.attr("axis", 1)
    if axis == 1:
        return BuiltNode(partial(torch.flatten, start_dim=1), (0,))
    ahead = axis if axis >= 0 else len(site.shapes[0]) + axis
    return BuiltNode(lambda value: value.reshape(math.prod(value.shape[:ahead]), -1), (0,))


def _transpose(site: NodeContext) -> BuiltNode:
    order = site.attr("perm") or list(range(len(site.shapes[0])))[::-1]
    return BuiltNode(partial(torch.permute, dims=tuple(order)), (0,))


def _squeeze(site: NodeContext) -> BuiltNode:
    axes = site.ints(1, "axes")
    shape = site.shapes[0]
    if axes is None:  # the batch of the reference run is no axis to drop
        axes = [axis for axis, size in enumerate(shape) if size == 1 and axis > 0]
    return BuiltNode(partial(torch.squeeze, dim=tuple(axes)), (0,))


def _unsqueeze(site: NodeContext) -> BuiltNode:
    axes = site.ints(1, "axes") or []
    rank = len(site.shapes[0]) + len(axes)
    places = sorted(axis % rank for axis in axes)

    def run(value: Tensor) -> Tensor:
        for place in places:
            value = value.unsqueeze(place)
        return value

    return BuiltNode(run, (0,))


def _concat(site: NodeContext) -> BuiltNode:
    axis = site.attr("axis", 1)
    return BuiltNode(lambda *values: torch.cat(values, dim=axis), tuple(range(len(site.node.input))))


def _slice(site: NodeContext) -> BuiltNode:
    starts, ends = site.ints(1, "starts"), site.ints(2, "ends")
    if starts is None or ends is None:
        raise site.unsupported("it has no bounds")
    axes = site.ints(3, "axes") or list(range(len(starts)))
    steps = site.ints(4, "steps") or [1] * len(starts)
    rank = len(site.shapes[0])
    cuts = [slice(None)] * rank
    flipped: list[int] = []
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step < 0:
            whole = (start in (-1,) or start >= site.shapes[0][axis] - 1) and end < -site.shapes[0][axis]
            if step != -1 or not whole:
                raise site.unsupported("it runs backwards over a part of an axis")
            flipped.append(axis)
        else:
            cuts[axis] = slice(start, end, step)
    index = tuple(cuts)
    if flipped:
        return BuiltNode(lambda value: value[index].flip(flipped), (0,))
    return BuiltNode(lambda value: value[index], (0,))


def _split(site: NodeContext) -> BuiltNode:
    axis = site.attr("axis", 0)
    sizes = site.ints(1, "split")
    count = len(site.node.output)
    if sizes is None or len(set(sizes)) == 1:

        def run(value: Tensor) -> tuple[Tensor, ...]:
            return torch.split(value, -(-value.shape[axis] // count), dim=axis)

        return BuiltNode(run, (0,))
    fixed = list(sizes)
    return BuiltNode(lambda value: torch.split(value, fixed, dim=axis), (0,))


def _gather(site: NodeContext) -> BuiltNode:
    axis = site.attr("axis", 0)
    index = site.constant_input(1)
    if index is None:
        return BuiltNode(partial(_gathered, axis=axis), (0, 1))
    if index.ndim == 0:
        return BuiltNode(partial(torch.select, dim=axis, index=int(index)), (0,))
    return BuiltNode(partial(_gathered, index=torch.tensor(index, dtype=torch.int64), axis=axis), (0,))


def _gathered(value: Tensor, index: Tensor, axis: int) -> Tensor:
    axis %= value.ndim
    chosen = torch.where(index < 0, index + value.shape[axis], index).to(torch.int64)
    flat = value.index_select(axis, chosen.reshape(-1))
    return flat.reshape(*value.shape[:axis], *index.shape, *value.shape[axis + 1 :])


_PADDINGS = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}


def _pad(site: NodeContext) -> BuiltNode:
    pads = site.ints(1, "pads") or site.attr("paddings")
    mode = site.attr("mode", "constant")
    if pads is None or mode not in _PADDINGS:
        raise site.unsupported(f"mode {mode} is not supported")
    rank = len(site.shapes[0])
    axes = [axis % rank for axis in site.ints(3, "axes") or range(rank)]
    both = {axis: (pads[i], pads[i + len(axes)]) for i, axis in enumerate(axes)}
    moved = [axis for axis in range(rank) if any(both.get(axis, (0, 0)))]
    first = min(moved, default=rank - 1)
    widths = [width for axis in range(rank - 1, first - 1, -1) for width in both.get(axis, (0, 0))]
    if mode == "constant":
        return BuiltNode(partial(functional.pad, pad=widths, value=site.number(2, "value", 0.0)), (0,))
    return BuiltNode(partial(functional.pad, pad=widths, mode=_PADDINGS[mode]), (0,))


def _resize(site: NodeContext) -> BuiltNode:
    old = site.opset < 11
    scales, sizes = site.constant_input(1 if old else 2), None if old else site.constant_input(3)
    rank = len(site.shapes[0])
    if site.attr("axes") is not None or ((scales is None or not scales.size) and sizes is None):
        raise site.unsupported("its sizes are computed")
    shape = site.shapes[0]
    given = scales if sizes is None else sizes / np.array(shape)
    factors = [float(factor) for factor in given] if given is not None else []
    if factors[:2] != [1.0, 1.0]:
        raise site.unsupported("it changes channels")
    target = [math.floor(shape[i] * factors[i]) for i in range(2, rank)]
    mode = site.attr("mode", "nearest")
    place = "asymmetric" if old else site.attr("coordinate_transformation_mode", "half_pixel")
    whole = all(factor >= 1 and factor == int(factor) for factor in factors)
    if mode == "nearest":
        rounding = site.attr("nearest_mode", "round_prefer_floor")
        if (place, rounding) != ("asymmetric", "floor") and not whole:
            raise site.unsupported(f"nearest, {place}, {rounding} is not supported")
        if place == "asymmetric" and rounding not in ("floor", "round_prefer_floor"):
            raise site.unsupported(f"nearest, {place}, {rounding} is not supported")
        return BuiltNode(partial(functional.interpolate, size=target, mode="nearest"), (0,))
    named = {1: "linear", 2: "bilinear", 3: "trilinear"}[rank - 2]
    if mode != "linear" or place not in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        raise site.unsupported(f"{mode}, {place} is not supported")
    corners = place == "align_corners"
    return BuiltNode(partial(functional.interpolate, size=target, mode=named, align_corners=corners), (0,))


def _expand(site: NodeContext) -> BuiltNode:
    shape = site.constant_input(1)
    if shape is None:
        return BuiltNode(lambda value, sizes: value * torch.ones(sizes.tolist(), dtype=value.dtype), (0, 1))
    sizes = [int(v) for v in shape]
    return BuiltNode(
        lambda value: value.expand(torch.broadcast_shapes(value.shape, _batchless(sizes, value))), (0,)
    )


def _batchless(sizes: list[int], value: Tensor) -> list[int]:
    """Return the sizes with that of the batch left to the value."""
    same_rank = len(sizes) == value.ndim
    return [1 if same_rank and i == 0 and value.shape[0] != 1 else size for i, size in enumerate(sizes)]


def _tile(site: NodeContext) -> BuiltNode:
    repeats = site.ints(1, "repeats") or []
    return BuiltNode(lambda value: value.repeat(repeats), (0,))


def _depth_to_space(site: NodeContext) -> BuiltNode:
    block = int(site.attr("blocksize"))
    if site.attr("mode", "DCR") == "CRD":
        return BuiltNode(partial(functional.pixel_shuffle, upscale_factor=block), (0,))

    def run(value: Tensor) -> Tensor:
        batch, depth, height, width = value.shape
        parts = value.reshape(batch, block, block, depth // block**2, height, width)
        return parts.permute(0, 3, 4, 1, 5, 2).reshape(batch, depth // block**2, height * block, width * block)

    return BuiltNode(run, (0,))


def _space_to_depth(site: NodeContext) -> BuiltNode:
    block = int(site.attr("blocksize"))

    def run(value: Tensor) -> Tensor:
        batch, depth, height, width = value.shape
        parts = value.reshape(batch, depth, height // block, block, width // block, block)
        return parts.permute(0, 3, 5, 1, 2, 4).reshape(batch, -1, height // block, width // block)

    return BuiltNode(run, (0,))


def _shape(site: NodeContext) -> BuiltNode:
    start, end = site.attr("start", 0), site.attr("end")
    return BuiltNode(lambda value: torch.tensor(value.shape[start:end], dtype=torch.int64), (0,))


def _constant_of_shape(site: NodeContext) -> BuiltNode:
    given = site.attr("value")
    filling = torch.tensor(0.0) if given is None else torch.tensor(_scalar(given))
    return BuiltNode(lambda sizes: filling.expand(sizes.tolist()), (0,))


def _scalar(tensor: object) -> float | int:
    from onnx import numpy_helper

    return numpy_helper.to_array(tensor).reshape(()).item()  # type: ignore[arg-type, no-any-return]


SHAPE_OPERATORS: dict[str, Callable[[NodeContext], BuiltNode]] = {
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Pad": _pad,
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": _shape,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Upsample": _resize,
}
