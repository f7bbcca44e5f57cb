"""Figures of rounds: medians with quartiles, stated or held against a limit."""

import statistics
from collections.abc import Sequence

from benchmarks.report import Figure, Interval

__all__ = ["count", "held", "quartiles", "stated"]


def quartiles(values: Sequence[float]) -> Interval:
    """Return the median between its quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return Interval(middle, low, high)


def stated(name: str, value: Interval, note: str, peer: str | None = None) -> Figure:
    """Return a figure without a limit."""
    return Figure(name, value, None, peer, True, note)


def held(name: str, value: Interval, limit: float, note: str, peer: str | None = None) -> Figure:
    """Return a figure whose upper end must keep its limit."""
    return Figure(name, value, limit, peer, value.high <= limit, note)


def count(name: str, value: float, note: str, *, limit: float | None = None) -> Figure:
    """Return a figure that was counted, or measured once."""
    return Figure(name, Interval.exact(value), limit, None, limit is None or value <= limit, note)
