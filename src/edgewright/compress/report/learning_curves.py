"""Learning curves: one drawing for each round, so that what was trained side by side is seen side by side."""

from collections.abc import Sequence

from edgewright.compress.report import formatting
from edgewright.compress.report.plot_axes import AxisScale
from edgewright.compress.report.svg import (
    MarkShape,
    draw_mark,
    horizontal_axis,
    polyline,
    svg_element,
    text_label,
    vertical_axis,
)
from edgewright.compress.report.training_summary import NetworkSummary, TrainingRound

__all__ = ["learning_plot", "legend_curve"]

_WIDTH, _HEIGHT = 340, 236
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, _WIDTH - 30, 30, 192
# Networks numbered at the end of their curves: more would not be told apart.
_MAX_NUMBERS = 12
_LINE = 12.5
_ORDER = ("other", "kept", "chosen")


def learning_plot(stage: TrainingRound, name: str, *, metric: str, is_share: bool) -> str:
    """Draw the validation metric over the rows that each network of a round was shown.

    Curves of chosen and kept networks are heavier, those without a teacher dashed; notes and failures are marks.
    The description says the same of every network, also of those that have no curve.

    Args:
        stage: The round.
        name: Unlike that of every other drawing.
        metric: In words.
        is_share: Whether the metric is written in percent; any other is not shown below 0, where a network is
            worse than the mean, if one is better.

    Returns:
        SVG; empty if no network of the round has a curve.
    """
    drawn = [learner for learner in stage.networks if learner.curve_points]
    if not drawn:
        return ""
    values = [value for learner in drawn for _, value, _ in learner.curve_points]
    if not is_share and max(values) > 0:
        values = [max(value, 0.0) for value in values]
    most = max(rows for learner in drawn for rows, _, _ in learner.curve_points)
    x = AxisScale(0.0, most or 1.0, _LEFT, _RIGHT)
    y = AxisScale.enclosing(values, _BOTTOM, _TOP, margin=0.04)
    if is_share:
        y = AxisScale(max(y.low, 0.0), min(y.high, 1.0), y.start, y.end)
    parts = [
        vertical_axis(y, _LEFT, _RIGHT, metric, lambda v: f"{100 * v:.4g} %" if is_share else f"{v:g}"),
        horizontal_axis(x, _TOP, _BOTTOM, "training rows shown", _count, 3),
    ]
    ordered = sorted(drawn, key=lambda learner: _ORDER.index(learner.outcome))
    parts += [_curve(learner, x, y) for learner in ordered]
    parts += [_marks(learner, x, y, is_share) for learner in ordered]
    parts += _numbers(ordered[::-1][:_MAX_NUMBERS], x, y)
    said = "; ".join(_hover_text(learner, is_share) for learner in stage.networks)
    return svg_element(name, _WIDTH, _HEIGHT, f"{stage.title}: learning curves", f"{metric}. {said}.", parts)


def legend_curve(kind: str) -> str:
    """Return a piece of a curve for a legend in the page; it is decoration beside its words."""
    piece = polyline([(-16, 0), (16, 0)], f"curve {kind}")
    return f'<svg class="key wide-key" viewBox="-16 -10 32 20" aria-hidden="true">{piece}</svg>'


def _count(value: float) -> str:
    return f"{value / 1e6:g} M" if value >= 1e6 else f"{value:,.0f}"


def _curve(learner: NetworkSummary, x: AxisScale, y: AxisScale) -> str:
    taught = "" if learner.network.distilled else " untaught"
    points = [(x.position(rows), y.position(value)) for rows, value, _ in learner.curve_points]
    return polyline(points, f"curve {learner.outcome}-learner{taught}")


def _marks(learner: NetworkSummary, x: AxisScale, y: AxisScale, is_share: bool) -> str:
    last = len(learner.curve_points) - 1
    parts = []
    for place, (rows, value, note) in enumerate(learner.curve_points):
        hover = f"{learner.number}: {learner.network.title}\n{_level(value, is_share)} after {rows:,.0f} rows"
        shape: MarkShape = "circle"
        kind = f"end {learner.outcome}-end"
        if place == last and learner.network.error:
            shape, kind, note = "cross", "failure", "; ".join((*filter(None, [note]), learner.network.error))
        elif note:
            shape, kind = "diamond", "event"
        elif place < last:
            continue
        parts.append(draw_mark(x.position(rows), y.position(value), shape, kind, f"{hover}\n{note}".strip()))
    return "".join(parts)


def _numbers(learners: Sequence[NetworkSummary], x: AxisScale, y: AxisScale) -> list[str]:
    """Write the numbers beside the ends of the curves, none over another."""
    ends = sorted(
        ((y.position(a.curve_points[-1][1]), a) for a in learners), key=lambda end: (end[0], end[1].number)
    )
    heights: list[float] = []
    for height, _ in ends:
        heights.append(max(height, heights[-1] + _LINE) if heights else height)
    over = heights[-1] - _BOTTOM
    for place in range(len(heights) - 1, -1, -1):
        ceiling = heights[place + 1] - _LINE if place + 1 < len(heights) else _BOTTOM
        heights[place] = min(heights[place], ceiling) if over > 0 else heights[place]
    return [
        text_label(
            x.position(learner.curve_points[-1][0]) + 9,
            height + 4,
            str(learner.number),
            f"end-number {learner.outcome}",
            hover=learner.network.title,
        )
        for height, (_, learner) in zip(heights, ends, strict=True)
    ]


def _hover_text(learner: NetworkSummary, is_share: bool) -> str:
    places = learner.curve_points
    words = []
    if places:
        best = max(value for _, value, _ in places)
        words = [f"{_level(places[0][1], is_share)} at first, {_level(best, is_share)} at best"]
        words.append(f"{places[-1][0]:,.0f} rows")
    return f"{learner.number}, {learner.network.title}: {', '.join((*words, *learner.events)) or 'not trained'}"


def _level(value: float, is_share: bool) -> str:
    return formatting.format_metric("accuracy" if is_share else "r2", value)
