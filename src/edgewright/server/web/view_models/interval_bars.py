"""Intervals as drawings: where their ends lie on a line from 0 to 100. Templates draw them beside the numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["IntervalBar", "difference_bar", "share_bar"]

_MARGIN = 4.0


@dataclass(frozen=True, slots=True)
class IntervalBar:
    """An interval on a line.

    Attributes:
        low: Its lower end, 0 to 100.
        width: Of it.
        at: The value.
        zero: Where 0 is, None if it is not on the line.
        bound: The bound that is held against the limit, None if there is none.
        limit: The limit, None if there is none.
        beyond: Whether the bound lies beyond the limit.
        words: The same for those who do not see it.
    """

    low: float
    width: float
    at: float
    zero: float | None
    bound: float | None
    limit: float | None
    beyond: bool
    words: str


def difference_bar(
    value: float, low: float, high: float, *, bound: float | None, limit: float | None, words: str
) -> IntervalBar:
    """Return an interval of a difference, with 0 and its limit on the same line."""
    marks = [mark for mark in (0.0, low, high, value, bound, limit) if mark is not None and math.isfinite(mark)]
    first, last = min(marks), max(marks)
    return _placed(value, low, high, bound, limit, (first, last), words)


def share_bar(value: float, low: float, high: float, *, last: float = 1.0, words: str = "") -> IntervalBar:
    """Return an interval of a share, on a line from 0 to `last`."""
    return _placed(value, low, high, None, None, (0.0, last), words)


def _placed(
    value: float,
    low: float,
    high: float,
    bound: float | None,
    limit: float | None,
    ends: Sequence[float],
    words: str,
) -> IntervalBar:
    first, last = ends
    span = (last - first) or 1.0

    def place(x: float) -> float:
        inside = min(max(x, first), last) if math.isfinite(x) else (last if x > 0 else first)
        return round(_MARGIN + (100 - 2 * _MARGIN) * (inside - first) / span, 2)

    return IntervalBar(
        low=place(low),
        width=round(max(place(high) - place(low), 0.5), 2),
        at=place(value),
        zero=place(0.0) if first <= 0 <= last else None,
        bound=None if bound is None else place(bound),
        limit=None if limit is None else place(limit),
        beyond=bound is not None and limit is not None and bound > limit,
        words=words,
    )
