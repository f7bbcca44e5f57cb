"""Axes of plots: where a value lies, and which values deserve a tick."""

import math
from dataclasses import dataclass

__all__ = ["AxisScale", "linear_ticks", "log_ticks"]


@dataclass(frozen=True, slots=True)
class AxisScale:
    """From values to places on the page.

    Attributes:
        low: Value at `start`.
        high: Value at `end`, greater than `low`.
        start: Place, in units of the drawing.
        end: Place; may be less than `start`.
        log: Whether equal ratios are equally far apart; `low` must then be greater than zero.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def position(self, value: float) -> float:
        """Return where a value lies; values outside lie on the edge.

        >>> AxisScale(1, 100, 0, 10, log=True).position(10), AxisScale(0, 4, 10, 0).position(9)
        (5.0, 0.0)
        """
        inside = min(max(value, self.low), self.high)
        if self.log:
            share = math.log(inside / self.low) / math.log(self.high / self.low)
        else:
            share = (inside - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, count: int = 5) -> list[float]:
        """Return round values within the scale."""
        return log_ticks(self.low, self.high, count) if self.log else linear_ticks(self.low, self.high, count)

    @staticmethod
    def enclosing(
        values: list[float], start: float, end: float, *, log: bool = False, margin: float = 0.06
    ) -> "AxisScale":
        """Return a scale that holds all values with a margin, also where they are all the same or none.

        Args:
            values: Finite; greater than zero for a logarithmic scale.
            start: Place of the least.
            end: Place of the greatest.
            log: As above.
            margin: Share of the range left free on both sides.
        """
        low, high = (min(values), max(values)) if values else (1.0, 1.0)
        if log:
            spread = max(high / low, 1.5) ** margin
            middle = math.sqrt(low * high)
            low, high = min(low, middle / 1.25) / spread, max(high, middle * 1.25) * spread
        else:
            least = max(abs(low), abs(high), 1e-9) * 0.1
            spread = max(high - low, least)
            centre = (low + high) / 2
            low, high = (
                min(low, centre - spread / 2) - margin * spread,
                max(high, centre + spread / 2) + margin * spread,
            )
        return AxisScale(low, high, start, end, log)


def linear_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about `count` multiples of 1, 2 or 5 times a power of ten.

    >>> linear_ticks(0.58, 1.78)
    [0.6, 0.8, 1.0, 1.2, 1.4, 1.6]
    """
    rough = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = min((m * power for m in (1, 2, 5, 10)), key=lambda s: abs(math.log(s / rough)))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    digits = max(0, 1 - math.floor(math.log10(step)))
    return [round(i * step, digits) + 0.0 for i in range(first, last + 1)]


def log_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return at most about `count` round values, equally spread on a logarithmic scale.

    >>> log_ticks(40_000, 700_000)
    [50000.0, 100000.0, 200000.0, 500000.0]
    >>> log_ticks(1, 1e6)
    [1.0, 100.0, 10000.0, 1000000.0]
    >>> log_ticks(90, 110)
    [90.0, 95.0, 100.0, 105.0, 110.0]
    """
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for leads in ((1, 2, 5), (1, 3), (1,)):
        ticks = [lead * 10.0**decade for decade in decades for lead in leads]
        inside = [tick for tick in ticks if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
        if len(inside) <= count + 1:
            return inside if len(inside) >= 3 else linear_ticks(low, high, count)
    return inside[:: math.ceil(len(inside) / (count + 1))]
