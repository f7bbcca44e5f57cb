"""How the report writes figures for people; what is unknown, infinite or NaN is written as absent."""

import math
from collections.abc import Callable
from typing import TypeGuard

from edgewright.contract.units import format_quantity

__all__ = [
    "ABSENT",
    "EXACT_DB",
    "FormatFunction",
    "format_decibel",
    "format_drop",
    "format_energy",
    "format_latency",
    "format_metric",
    "format_number",
    "format_percent",
    "format_size",
    "is_known",
    "is_percentage",
    "shorten_middle",
]

ABSENT = "-"
# Signal to noise of identical answers, where `sqnr_db` ends.
EXACT_DB = 200.0
# Bounds about which nothing can be said are stored as the largest float.
_BOUNDLESS = 1e300
_SHARES = ("accuracy", "label_accuracy", "agreement")

FormatFunction = Callable[[float | None], str]


def is_known(value: float | None) -> TypeGuard[float]:
    """Whether a figure is there, finite, and no stand-in for "anything"."""
    return value is not None and math.isfinite(value) and abs(value) < _BOUNDLESS


def format_number(value: float | None, digits: int = 4) -> str:
    """Write a plain number.

    >>> format_number(0.62646), format_number(None), format_number(float("nan"))
    ('0.6265', '-', '-')
    """
    return f"{value:.{digits}g}" if is_known(value) else ABSENT


def format_size(value: float | None) -> str:
    """Write bytes.

    >>> format_size(62_288)
    '62.3 KB'
    """
    return format_quantity(value, "size") if is_known(value) else ABSENT


def format_latency(value: float | None) -> str:
    """Write milliseconds.

    >>> format_latency(0.0369), format_latency(12)
    ('36.9 us', '12.0 ms')
    """
    return format_quantity(value * 1e-3, "time") if is_known(value) else ABSENT


def format_energy(value: float | None) -> str:
    """Write millijoules.

    >>> format_energy(0.0939)
    '93.9 uJ'
    """
    return format_quantity(value * 1e-3, "energy") if is_known(value) else ABSENT


def format_percent(value: float | None) -> str:
    """Write a share.

    >>> format_percent(0.6129), format_percent(12.5), format_percent(0.99996)
    ('61.3 %', '1250 %', '99.996 %')
    """
    if not is_known(value):
        return ABSENT
    if 0.999 < value < 1:
        return f"{100 * value:.5g} %"
    return f"{100 * value:.1f} %" if abs(value) < 9.9995 else f"{100 * value:.0f} %"


def format_decibel(value: float | None) -> str:
    """Write a signal to noise ratio.

    >>> format_decibel(20.41), format_decibel(200.0)
    ('20.4 dB', 'no difference')
    """
    if not is_known(value):
        return ABSENT
    return "no difference" if value >= EXACT_DB else f"{value:.1f} dB"


def is_percentage(metric: str) -> bool:
    """Whether a metric is a share of samples, written in percent, and its drop in percentage points."""
    return metric in _SHARES


def format_metric(metric: str, value: float | None) -> str:
    """Write a metric's value.

    >>> format_metric("accuracy", 0.99), format_metric("r2", 0.99)
    ('99.00 %', '0.99')
    """
    if is_percentage(metric) and is_known(value):
        return f"{100 * value:.2f} %"
    return format_number(value)


def format_drop(metric: str, value: float | None) -> str:
    """Write a loss of a metric.

    >>> format_drop("accuracy", 0.00613), format_drop("r2", 0.00613), format_drop("accuracy", -1e-9)
    ('0.61 pp', '0.00613', '0.00 pp')
    """
    if is_percentage(metric) and is_known(value):
        # Digits for a bound that must be told from a limit; no minus before a zero.
        places = 2 if abs(value) >= 1e-3 else 3
        text = f"{100 * value:.{places}f}"
        return f"{'0.00' if not float(text) else text} pp"
    return format_number(value)


def shorten_middle(text: str, width: int, ellipsis: str = "\N{HORIZONTAL ELLIPSIS}") -> str:
    """Cut the middle out of a text that is too long: names of layers differ at their ends.

    >>> shorten_middle("/backbone/stage1/block2/conv1/Conv", 15, "...")
    '/backb...1/Conv'
    """
    if len(text) <= width:
        return text
    kept = max(2, width - len(ellipsis))
    return text[: kept // 2] + ellipsis + text[-(kept - kept // 2) :]
