"""Operators that move, cut or resize tensors. Their sizes follow the batch and channels that pruning removed."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from edgewright.compress.train.site import Built, Site

__all__ = ["MOVES", "Reshape"]

_Shape = tuple[int, ...]


class Reshape:
    """A reshape to constant sizes that works for any batch.

    It learns from its first two calls, with the graph's own batch and with twice that, which axes of its input
    each axis of its output is made of. Later sizes follow the input: flattening stays flattening when channels
    have gone, and where an axis is divided, its first part gives way, or that which the batch is in.

    Constants do not always say where the batch is in the output. A literal -1 does where the graph takes any
    batch; else the batch lies in front of all that it may lie in front of, or behind. `read_otherwise` goes
    from one possibility to the next.
    """

    def __init__(self, target: Sequence[int], allow_zero: bool, literal: bool) -> None:
        """Make a reshape.

        Args:
            target: As in the graph.
            allow_zero: Whether 0 is a size; else it says that the input's size stays.
            literal: Whether the graph takes any batch, so that what its target says comes first.
        """
        self._target = list(target)
        self._allow_zero = allow_zero
        self._literal_first = literal
        self._first: tuple[_Shape, _Shape] | None = None
        self._possible: list[_Shape] = []
        self._groups: list[tuple[list[int], list[int], int]] | None = None
        self.made: _Shape = ()

    def __call__(self, value: Tensor) -> Tensor:
        """Return the tensor in its new shape."""
        if self._groups is not None:
            shape = _sizes(value.shape, self._groups)
        elif self._first is None:
            shape = self._literal(value.shape)
            self._first = tuple(value.shape), tuple(value.reshape(shape).shape)
        else:
            after = self._first[1]
            self._possible = self._possible or self._larger(value, *self._first)
            now = self._possible[0]
            grown = next((axis for axis, (a, b) in enumerate(zip(after, now, strict=True)) if a != b), None)
            self._groups = _matched(value.shape, now, grown)
            shape = _sizes(value.shape, self._groups)
        result = value.reshape(shape)
        self.made = tuple(result.shape)
        return result

    def read_otherwise(self) -> bool:
        """Let the next call, with twice the graph's batch, be the second again, and try the next possibility.

        Returns:
            Whether there is one; if not, it begins anew.
        """
        self._groups = None
        self._possible = self._possible[1:]
        return bool(self._possible)

    def target_for(self, shape: _Shape) -> list[int]:
        """Return the constant for a graph in which the output has this shape."""
        return [size if size in (0, -1) else new for size, new in zip(self._target, shape, strict=True)]

    def _literal(self, shape: Sequence[int]) -> list[int]:
        if self._allow_zero:
            return self._target
        return [shape[i] if size == 0 else size for i, size in enumerate(self._target)]

    def _larger(self, value: Tensor, before: _Shape, after: _Shape) -> list[_Shape]:
        """Return what the output's shape may be for the larger batch, the likeliest first."""
        now = tuple(value.shape)
        possible = [_rebatched(before, now, after, inner=False), _rebatched(before, now, after, inner=True)]
        shape = self._literal(value.shape)
        if -1 in shape or math.prod(shape) == value.numel():
            possible.insert(0 if self._literal_first else 2, tuple(value.reshape(shape).shape))
        return list(dict.fromkeys(possible))


def _sizes(shape: Sequence[int], groups: Sequence[tuple[list[int], list[int], int]]) -> list[int]:
    """Return the output's sizes for an input of this shape."""
    sizes: list[int] = []
    for axes, parts, free in groups:
        total = math.prod(shape[axis] for axis in axes)
        rest = math.prod(size for i, size in enumerate(parts) if i != free)
        sizes += [total // rest if i == free else size for i, size in enumerate(parts)]
    return sizes


def _rebatched(before: _Shape, now: _Shape, after: _Shape, *, inner: bool) -> _Shape:
    """Return the output's shape for the larger batch, from the shapes with the graph's own batch."""
    grown = [axis for axis, (a, b) in enumerate(zip(before, now, strict=True)) if a != b]
    if not grown:
        return after
    factor = now[grown[0]] // before[grown[0]]
    ahead = math.prod(before[: grown[0] + 1] if inner else before[: grown[0]])
    axes = range(len(after))
    alone = [axis for axis in axes if after[axis] == 1 and math.prod(after[:axis]) == ahead]
    last = [axis for axis in axes if math.prod(after[: axis + 1]) == ahead]
    first = [axis for axis in axes if math.prod(after[:axis]) >= ahead]
    for axis in (alone + last if inner else []) + first:
        return (*after[:axis], after[axis] * factor, *after[axis + 1 :])
    return after


def _matched(
    source: Sequence[int], target: Sequence[int], grown: int | None
) -> list[tuple[list[int], list[int], int]]:
    """Return groups of input axes with the output sizes made of them, and which of these gives way."""
    groups: list[tuple[list[int], list[int], int]] = []
    i = j = 0
    while i < len(source) and j < len(target):
        axes, parts, start = [i], [target[j]], j
        size, made = source[i], target[j]
        i, j = i + 1, j + 1
        while size != made:
            if size < made and i < len(source):
                size *= source[i]
                axes.append(i)
                i += 1
            elif j < len(target):
                made *= target[j]
                parts.append(target[j])
                j += 1
            else:
                break
        groups.append((axes, parts, start))
    if groups:
        groups[-1][0].extend(range(i, len(source)))
        groups[-1][1].extend(target[j:])
    return [
        (axes, parts, _first_wide(parts) if grown is None or not 0 <= grown - start < len(parts) else grown - start)
        for axes, parts, start in groups
    ]


def _first_wide(parts: Sequence[int]) -> int:
    return next((i for i, size in enumerate(parts) if size != 1), 0)


def _reshape(site: Site) -> Built:
    target = site.attr("shape") if site.opset < 5 else site.fixed(1)
    if target is None:
        return Built(lambda value, shape: value.reshape(_copied_sizes(value, shape)), (0, 1))
    return Built(Reshape([int(v) for v in target], bool(site.attr("allowzero", 0)), site.any_batch), (0,))


def _copied_sizes(value: Tensor, shape: Tensor) -> list[int]:
    return [value.shape[i] if size == 0 else int(size) for i, size in enumerate(shape.tolist())]


def _flatten(site: Site) -> Built:
    axis = site.attr("axis", 1)
    if axis == 1:
        return Built(partial(torch.flatten, start_dim=1), (0,))
    ahead = axis if axis >= 0 else len(site.shapes[0]) + axis
    return Built(lambda value: value.reshape(math.prod(value.shape[:ahead]), -1), (0,))


def _transpose(site: Site) -> Built:
    order = site.attr("perm") or list(range(len(site.shapes[0])))[::-1]
    return Built(partial(torch.permute, dims=tuple(order)), (0,))


def _squeeze(site: Site) -> Built:
    axes = site.ints(1, "axes")
    shape = site.shapes[0]
    if axes is None:  # the batch of the reference run is no axis to drop
        axes = [axis for axis, size in enumerate(shape) if size == 1 and axis > 0]
    return Built(partial(torch.squeeze, dim=tuple(axes)), (0,))


def _unsqueeze(site: Site) -> Built:
    axes = site.ints(1, "axes") or []
    rank = len(site.shapes[0]) + len(axes)
    places = sorted(axis % rank for axis in axes)

    def run(value: Tensor) -> Tensor:
        for place in places:
            value = value.unsqueeze(place)
        return value

    return Built(run, (0,))


def _concat(site: Site) -> Built:
    axis = site.attr("axis", 1)
    return Built(lambda *values: torch.cat(values, dim=axis), tuple(range(len(site.node.input))))


def _slice(site: Site) -> Built:
    starts, ends = site.ints(1, "starts"), site.ints(2, "ends")
    if starts is None or ends is None:
        raise site.cannot("it has no bounds")
    axes = site.ints(3, "axes") or list(range(len(starts)))
    steps = site.ints(4, "steps") or [1] * len(starts)
    rank = len(site.shapes[0])
    cuts = [slice(None)] * rank
    flipped: list[int] = []
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step < 0:
            whole = (start in (-1,) or start >= site.shapes[0][axis] - 1) and end < -site.shapes[0][axis]
            if step != -1 or not whole:
                raise site.cannot("it runs backwards over a part of an axis")
            flipped.append(axis)
        else:
            cuts[axis] = slice(start, end, step)
    index = tuple(cuts)
    if flipped:
        return Built(lambda value: value[index].flip(flipped), (0,))
    return Built(lambda value: value[index], (0,))


def _split(site: Site) -> Built:
    axis = site.attr("axis", 0)
    sizes = site.ints(1, "split")
    count = len(site.node.output)
    if sizes is None or len(set(sizes)) == 1:

        def run(value: Tensor) -> tuple[Tensor, ...]:
            return torch.split(value, -(-value.shape[axis] // count), dim=axis)

        return Built(run, (0,))
    fixed = list(sizes)
    return Built(lambda value: torch.split(value, fixed, dim=axis), (0,))


def _gather(site: Site) -> Built:
    axis = site.attr("axis", 0)
    index = site.fixed(1)
    if index is None:
        return Built(partial(_gathered, axis=axis), (0, 1))
    if index.ndim == 0:
        return Built(partial(torch.select, dim=axis, index=int(index)), (0,))
    return Built(partial(_gathered, index=torch.tensor(index, dtype=torch.int64), axis=axis), (0,))


def _gathered(value: Tensor, index: Tensor, axis: int) -> Tensor:
    axis %= value.ndim
    chosen = torch.where(index < 0, index + value.shape[axis], index).to(torch.int64)
    flat = value.index_select(axis, chosen.reshape(-1))
    return flat.reshape(*value.shape[:axis], *index.shape, *value.shape[axis + 1 :])


_PADDINGS = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}


def _pad(site: Site) -> Built:
    pads = site.ints(1, "pads") or site.attr("paddings")
    mode = site.attr("mode", "constant")
    if pads is None or mode not in _PADDINGS:
        raise site.cannot(f"mode {mode} is not supported")
    rank = len(site.shapes[0])
    axes = [axis % rank for axis in site.ints(3, "axes") or range(rank)]
    both = {axis: (pads[i], pads[i + len(axes)]) for i, axis in enumerate(axes)}
    moved = [axis for axis in range(rank) if any(both.get(axis, (0, 0)))]
    first = min(moved, default=rank - 1)
    widths = [width for axis in range(rank - 1, first - 1, -1) for width in both.get(axis, (0, 0))]
    if mode == "constant":
        return Built(partial(functional.pad, pad=widths, value=site.number(2, "value", 0.0)), (0,))
    return Built(partial(functional.pad, pad=widths, mode=_PADDINGS[mode]), (0,))


def _resize(site: Site) -> Built:
    old = site.opset < 11
    scales, sizes = site.fixed(1 if old else 2), None if old else site.fixed(3)
    rank = len(site.shapes[0])
    if site.attr("axes") is not None or ((scales is None or not scales.size) and sizes is None):
        raise site.cannot("its sizes are computed")
    shape = site.shapes[0]
    given = scales if sizes is None else sizes / np.array(shape)
    factors = [float(factor) for factor in given] if given is not None else []
    if factors[:2] != [1.0, 1.0]:
        raise site.cannot("it changes channels")
    target = [math.floor(shape[i] * factors[i]) for i in range(2, rank)]
    mode = site.attr("mode", "nearest")
    place = "asymmetric" if old else site.attr("coordinate_transformation_mode", "half_pixel")
    whole = all(factor >= 1 and factor == int(factor) for factor in factors)
    if mode == "nearest":
        rounding = site.attr("nearest_mode", "round_prefer_floor")
        if (place, rounding) != ("asymmetric", "floor") and not whole:
            raise site.cannot(f"nearest, {place}, {rounding} is not supported")
        if place == "asymmetric" and rounding not in ("floor", "round_prefer_floor"):
            raise site.cannot(f"nearest, {place}, {rounding} is not supported")
        return Built(partial(functional.interpolate, size=target, mode="nearest"), (0,))
    named = {1: "linear", 2: "bilinear", 3: "trilinear"}[rank - 2]
    if mode != "linear" or place not in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        raise site.cannot(f"{mode}, {place} is not supported")
    corners = place == "align_corners"
    return Built(partial(functional.interpolate, size=target, mode=named, align_corners=corners), (0,))


def _expand(site: Site) -> Built:
    shape = site.fixed(1)
    if shape is None:
        return Built(lambda value, sizes: value * torch.ones(sizes.tolist(), dtype=value.dtype), (0, 1))
    sizes = [int(v) for v in shape]
    return Built(lambda value: value.expand(torch.broadcast_shapes(value.shape, _batchless(sizes, value))), (0,))


def _batchless(sizes: list[int], value: Tensor) -> list[int]:
    """Return the sizes with that of the batch left to the value."""
    same_rank = len(sizes) == value.ndim
    return [1 if same_rank and i == 0 and value.shape[0] != 1 else size for i, size in enumerate(sizes)]


def _tile(site: Site) -> Built:
    repeats = site.ints(1, "repeats") or []
    return Built(lambda value: value.repeat(repeats), (0,))


def _depth_to_space(site: Site) -> Built:
    block = int(site.attr("blocksize"))
    if site.attr("mode", "DCR") == "CRD":
        return Built(partial(functional.pixel_shuffle, upscale_factor=block), (0,))

    def run(value: Tensor) -> Tensor:
        batch, depth, height, width = value.shape
        parts = value.reshape(batch, block, block, depth // block**2, height, width)
        return parts.permute(0, 3, 4, 1, 5, 2).reshape(batch, depth // block**2, height * block, width * block)

    return Built(run, (0,))


def _space_to_depth(site: Site) -> Built:
    block = int(site.attr("blocksize"))

    def run(value: Tensor) -> Tensor:
        batch, depth, height, width = value.shape
        parts = value.reshape(batch, depth, height // block, block, width // block, block)
        return parts.permute(0, 3, 5, 1, 2, 4).reshape(batch, -1, height // block, width // block)

    return Built(run, (0,))


def _shape(site: Site) -> Built:
    start, end = site.attr("start", 0), site.attr("end")
    return Built(lambda value: torch.tensor(value.shape[start:end], dtype=torch.int64), (0,))


def _constant_of_shape(site: Site) -> Built:
    given = site.attr("value")
    filling = torch.tensor(0.0) if given is None else torch.tensor(_scalar(given))
    return Built(lambda sizes: filling.expand(sizes.tolist()), (0,))


def _scalar(tensor: object) -> float | int:
    from onnx import numpy_helper

    return numpy_helper.to_array(tensor).reshape(()).item()  # type: ignore[arg-type, no-any-return]


MOVES: dict[str, Callable[[Site], Built]] = {
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
