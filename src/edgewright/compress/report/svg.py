"""Inline SVG: escaped text, marks that differ in shape as well as in shade, axes, a title and a description.

Colours are classes, so that the page decides about light, dark and print.
"""

from collections.abc import Callable, Iterable
from html import escape
from typing import Literal

from edgewright.compress.report.plot_axes import AxisScale
from edgewright.compress.report.sanitize import printable

__all__ = ["MarkShape", "draw_mark", "horizontal_axis", "polyline", "svg_element", "text_label", "vertical_axis"]

MarkShape = Literal["circle", "triangle", "diamond", "square", "ring", "star", "cross"]

_SHAPES: dict[MarkShape, str] = {
    "circle": "M-4.5,0a4.5,4.5 0 1,0 9,0a4.5,4.5 0 1,0 -9,0Z",
    "ring": "M-9,0a9,9 0 1,0 18,0a9,9 0 1,0 -18,0Z",
    "triangle": "M0,-5.5L5.5,4.5L-5.5,4.5Z",
    "diamond": "M0,-5.5L5.5,0L0,5.5L-5.5,0Z",
    "square": "M-5,-5H5V5H-5Z",
    "cross": "M-5,-3L-3,-5L0,-2L3,-5L5,-3L2,0L5,3L3,5L0,2L-3,5L-5,3L-2,0Z",
    "star": "M0,-8L2.1,-2.8L7.6,-2.5L3.3,1.1L4.7,6.5L0,3.4L-4.7,6.5L-3.3,1.1L-7.6,-2.5L-2.1,-2.8Z",
}


def svg_element(name: str, width: int, height: int, title: str, description: str, parts: Iterable[str]) -> str:
    """Return an SVG element; `name` must be unlike that of every other drawing on the page."""
    name = escape(name)
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-labelledby="{name}-title {name}-desc">'
        f'<title id="{name}-title">{_text(title)}</title>'
        f'<desc id="{name}-desc">{_text(description)}</desc>{"".join(parts)}</svg>'
    )


def text_label(x: float, y: float, text: str, kind: str = "", anchor: str = "start", hover: str = "") -> str:
    """Return a line of text."""
    title = f"<title>{_text(hover)}</title>" if hover else ""
    names = f' class="{escape(kind)}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{names}>{title}{_text(text)}</text>'


def polyline(points: Iterable[tuple[float, float]], kind: str) -> str:
    """Return a line through places."""
    return f'<polyline class="{escape(kind)}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>'


def draw_mark(x: float, y: float, shape: MarkShape, kind: str, hover: str = "") -> str:
    """Return a mark with a text that shows on hovering."""
    title = f"<title>{_text(hover)}</title>" if hover else ""
    return (
        f'<path class="{escape(kind)}" transform="translate({x:.1f},{y:.1f})" d="{_SHAPES[shape]}">{title}</path>'
    )


def horizontal_axis(
    scale: AxisScale, top: float, bottom: float, name: str, write: Callable[[float], str], count: int = 5
) -> str:
    """Return a horizontal axis with grid lines, at the bottom."""
    parts = []
    for tick in scale.ticks(count):
        x = scale.position(tick)
        parts.append(polyline([(x, top), (x, bottom)], "grid"))
        parts.append(text_label(x, bottom + 16, write(tick), "tick", "middle"))
    parts.append(polyline([(scale.start, bottom), (scale.end, bottom)], "axis"))
    parts.append(text_label((scale.start + scale.end) / 2, bottom + 35, name, "name", "middle"))
    return "".join(parts)


def vertical_axis(
    scale: AxisScale, left: float, right: float, name: str, write: Callable[[float], str], count: int = 5
) -> str:
    """Return a vertical axis with grid lines, at the left; its name stands above it."""
    parts = []
    for tick in scale.ticks(count):
        y = scale.position(tick)
        parts.append(polyline([(left, y), (right, y)], "grid"))
        parts.append(text_label(left - 7, y + 4, write(tick), "tick", "end"))
    parts.append(polyline([(left, scale.start), (left, scale.end)], "axis"))
    parts.append(text_label(2, scale.end - 10, name, "name"))
    return "".join(parts)


def _text(text: str) -> str:
    return escape(printable(text))
