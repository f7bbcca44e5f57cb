"""Reshapes to constant sizes, for any batch and whatever channels pruning leaves."""

import math
from collections.abc import Sequence

from torch import Tensor

__all__ = ["BatchFreeReshape"]

_Shape = tuple[int, ...]


class BatchFreeReshape:
    """A reshape to constant sizes that works for any batch.

    It learns from its first two calls, with the graph's own batch and with twice that, which axes of its input
    each axis of its output is made of. Later sizes follow the input: flattening stays flattening when channels
    have gone, and where an axis is divided, its first part gives way, or that which the batch is in.

    Constants do not always say where the batch is in the output. A literal -1 does where the graph takes any
    batch; else the batch lies in front of all that it may lie in front of, or behind. `try_next_reading` goes
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

    def try_next_reading(self) -> bool:
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
