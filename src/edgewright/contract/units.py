"""Quantities as people write them: "5ms", "200KB", "2mJ".

Sizes are decimal (1 KB = 1000 bytes) unless written with an i (1 KiB = 1024 bytes).
"""

import math
import re
from typing import Literal

from edgewright.contract.errors import UnitError

__all__ = ["Dimension", "format_quantity", "parse_quantity"]

Dimension = Literal["time", "size", "energy", "power"]

_SCALES: dict[Dimension, dict[str, float]] = {
    "time": {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0},
    "size": {
        "B": 1.0,
        "KB": 1e3,
        "kB": 1e3,
        "MB": 1e6,
        "GB": 1e9,
        "KiB": 2.0**10,
        "MiB": 2.0**20,
        "GiB": 2.0**30,
    },
    "energy": {"nJ": 1e-9, "uJ": 1e-6, "µJ": 1e-6, "mJ": 1e-3, "J": 1.0},
    "power": {"mW": 1e-3, "W": 1.0},
}
_SHOWN: dict[Dimension, tuple[tuple[str, float], ...]] = {
    "time": (("s", 1.0), ("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9)),
    "size": (("GB", 1e9), ("MB", 1e6), ("KB", 1e3), ("B", 1.0)),
    "energy": (("J", 1.0), ("mJ", 1e-3), ("uJ", 1e-6), ("nJ", 1e-9)),
    "power": (("W", 1.0), ("mW", 1e-3)),
}
_PATTERN = re.compile(r"\s*([+-]?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)\s*([A-Za-zµ]*)\s*")


def parse_quantity(text: str, dimension: Dimension) -> float:
    """Read a positive quantity; the result is in s, bytes, J or W.

    Raises:
        UnitError: No number, no unit or another dimension's, or a value that is not positive.

    >>> parse_quantity("5ms", "time")
    0.005
    >>> parse_quantity("200 KB", "size")
    200000.0
    """
    scales = _SCALES[dimension]
    example = {"time": "5ms", "size": "200KB", "energy": "2mJ", "power": "3W"}[dimension]
    match = _PATTERN.fullmatch(text)
    if match is None or match[2] not in scales:
        raise UnitError(
            f"{text!r} is not a {dimension}",
            remedy=f"Write a number and one of {', '.join(scales)}, for example {example}.",
        )
    value = float(match[1]) * scales[match[2]]
    if not (0 < value < math.inf):
        raise UnitError(
            f"{text!r} is not a possible {dimension}: it must be greater than zero",
            remedy=f"Give a positive limit such as {example}, or leave it out for no limit.",
        )
    return value


def format_quantity(value: float, dimension: Dimension, digits: int = 3) -> str:
    """Write a quantity with the largest unit that keeps it at one or more.

    >>> format_quantity(0.000163, "time"), format_quantity(194_120, "size"), format_quantity(0, "time")
    ('163 us', '194 KB', '0 s')
    """
    for unit, scale in _SHOWN[dimension]:
        if abs(value) >= scale:
            scaled = value / scale
            places = max(0, digits - 1 - math.floor(math.log10(abs(scaled))))
            return f"{scaled:.{places}f} {unit}"
    unit, scale = _SHOWN[dimension][-1 if value else 0]
    return f"{value / scale:.{digits}g} {unit}"
