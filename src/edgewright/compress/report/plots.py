"""The report's plots: pure functions from records to inline SVG."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from edgewright.compress.report import formatting
from edgewright.compress.report.formatting import is_known
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
from edgewright.contract.certificate import Certificate
from edgewright.contract.compression_report import SearchTrial

__all__ = ["MAX_PLOTTED_LAYERS", "bound_plot", "latency_plot", "legend_mark", "pareto_plot", "sensitivity_plot"]

# Layers in the plot of sensitivity, the noisiest first.
MAX_PLOTTED_LAYERS = 30
_WIDTH = 480
# Beyond this quantile, or this multiple of its median, a curve leaves the plot: hiccups must not squeeze the rest.
_SHOWN_SHARE = 0.97
_SHOWN_MEDIANS = 2.0
_LABEL = 22  # characters that fit beside the plot of layers
# A ratio of latencies from which on a logarithmic axis shows more.
_WIDE = 4.0


class ParetoPoint(NamedTuple):
    """Where a model lies on the front's plot."""

    ratio: float
    size: float


def legend_mark(shape: MarkShape, kind: str) -> str:
    """Return a mark of the plots for a legend in the page; it is decoration beside its words."""
    return f'<svg class="key" viewBox="-10 -10 20 20" aria-hidden="true">{draw_mark(0, 0, shape, kind)}</svg>'


def pareto_plot(
    trials: Sequence[SearchTrial],
    *,
    metric: str,
    max_drop: float,
    original: ParetoPoint,
    chosen: ParetoPoint | None,
) -> str:
    """Draw complete trials by latency and size; shape and shade tell the drop, hollow marks are trained networks.

    Args:
        trials: All of them; those that are incomplete or lack a figure are left out.
        metric: That the drop is of.
        max_drop: The limit that separates the shades.
        original: The original model.
        chosen: The chosen model as measured at the end, None if it is the original.
    """
    shown = [(t, ParetoPoint(t.latency_ratio, t.size_bytes)) for t in trials if _is_complete(t) and t.latency_ratio]
    places = [original, *(place for _, place in shown), *([chosen] if chosen else [])]
    ratios = [place.ratio for place in places]
    x = AxisScale.enclosing(ratios, 62, _WIDTH - 14, log=max(ratios) / min(ratios) > _WIDE)
    y = AxisScale.enclosing([place.size for place in places], 300, 34, log=True)
    parts = [
        vertical_axis(y, 62, _WIDTH - 14, "size of the file", _round_size),
        horizontal_axis(x, 34, 300, "latency, relative to the original", lambda v: f"{v:g}"),
        polyline([(x.position(1), 34), (x.position(1), 300)], "even"),
    ]
    front = sorted(place for trial, place in shown if trial.on_pareto_front)
    if len(front) > 1:
        parts.append(polyline([(x.position(p.ratio), y.position(p.size)) for p in front], "front"))
    # The front is drawn last, so that nothing lies over it.
    for trial, place in sorted(shown, key=lambda item: item[0].on_pareto_front):
        shape, kind = drop_mark(trial.drop, max_drop)
        kind += " hollow" if trial.network_sha256 else ""
        whose = "trained network, " if trial.network_sha256 else ""
        hover = (
            f"{trial.number}: {trial.title}\n{whose}latency {place.ratio:.3g} times, "
            f"{formatting.format_size(place.size)}, drop {formatting.format_drop(metric, trial.drop)}"
            f"{', on the front' if trial.on_pareto_front else ''}"
        )
        parts.append(draw_mark(x.position(place.ratio), y.position(place.size), shape, f"mark {kind}", hover))
    hover = f"original: {formatting.format_size(original.size)}"
    parts.append(draw_mark(x.position(original.ratio), y.position(original.size), "square", "original", hover))
    if chosen is not None:
        hover = (
            f"chosen, as measured at the end: latency {chosen.ratio:.3g} times, "
            f"{formatting.format_size(chosen.size)}"
        )
        parts.append(draw_mark(x.position(chosen.ratio), y.position(chosen.size), "ring", "halo", hover))
    trained = sum(bool(trial.network_sha256) for trial, _ in shown)
    description = (
        f"{len(shown)} candidates by latency relative to the original and by size, {len(front)} on the front"
        f"{f', {trained} of trained networks' if trained else ''}. "
        "Further left is faster, further down is smaller."
    )
    return svg_element("front", _WIDTH, 345, "Candidates by latency and size", description, parts)


def _round_size(value: float) -> str:
    return formatting.format_size(value).replace(".00 ", " ").replace(".0 ", " ")


def _is_complete(trial: SearchTrial) -> bool:
    return trial.state == "complete" and is_known(trial.latency_ratio) and trial.size_bytes > 0


def drop_mark(drop: float | None, max_drop: float) -> tuple[MarkShape, str]:
    """Return shape and class for a drop: none, within the limit, beyond or unknown."""
    if not is_known(drop) or drop > max_drop:
        return "diamond", "beyond"
    return ("circle", "none") if drop <= 0 else ("triangle", "within")


def latency_plot(latencies: Mapping[str, Sequence[float]]) -> str:
    """Draw the share of rounds that were at least as fast, for each model.

    Args:
        latencies: Model to the median latency of each round, milliseconds. The first one is drawn dashed.
    """
    curves = {name: sorted(v for v in values if is_known(v)) for name, values in latencies.items()}
    curves = {name: values for name, values in curves.items() if values}
    ends = [v for values in curves.values() for v in (values[0], _last_shown_value(values))]
    x = AxisScale.enclosing(ends, 48, _WIDTH - 14)
    y = AxisScale(0, 1, 260, 34)
    unit, factor = ("us", 1e3) if x.high < 1 else ("ms", 1.0)
    shown = AxisScale(x.low * factor, x.high * factor, x.start, x.end)
    parts = [
        vertical_axis(y, 48, _WIDTH - 14, "share of rounds that were as fast or faster", lambda v: f"{v:.0%}"),
        horizontal_axis(
            shown, 34, 260, f"latency of one inference, {unit} (median of each round)", lambda v: f"{v:g}"
        ),
    ]
    said = []
    for place, (name, values) in enumerate(curves.items()):
        kind = "curve original-curve" if place == 0 and len(curves) > 1 else "curve chosen-curve"
        points = [(x.position(values[0]), y.position(0))]
        for i, value in enumerate(values):
            points += [
                (x.position(value), y.position(i / len(values))),
                (x.position(value), y.position((i + 1) / len(values))),
            ]
        if values[-1] < x.high:
            points.append((x.end, y.position(1)))
        parts.append(polyline(points, kind))
        median = values[_rank(values, 0.5)]
        said.append(f"{name}: median {formatting.format_latency(median)} over {len(values)} rounds")
        shape: MarkShape = "square" if place == 0 and len(curves) > 1 else "star"
        parts.append(
            draw_mark(
                x.position(median), y.position(0.5), shape, "original" if shape == "square" else "best", said[-1]
            )
        )
    return svg_element("latencies", _WIDTH, 305, "Distribution of latencies", "; ".join(said) + ".", parts)


def _last_shown_value(values: Sequence[float]) -> float:
    return min(values[_rank(values, _SHOWN_SHARE)], _SHOWN_MEDIANS * values[_rank(values, 0.5)])


def _rank(values: Sequence[float], share: float) -> int:
    return min(len(values) - 1, int(share * len(values)))


def sensitivity_plot(noise: Mapping[str, Mapping[str, float]]) -> str:
    """Draw how much noise each layer alone brings, the noisiest `MAX_PLOTTED_LAYERS` layers first.

    Args:
        noise: Kind ("few bits", "integers") to layer to noise over signal, as a power ratio.
    """
    decibels: dict[str, dict[str, float]] = {}
    for kind, ratios in noise.items():
        for layer, ratio in ratios.items():
            if is_known(ratio) and ratio > 0:
                decibels.setdefault(layer, {})[kind] = 10 * math.log10(ratio)
    loudest = sorted(decibels, key=lambda layer: -max(decibels[layer].values()))[:MAX_PLOTTED_LAYERS]
    values = [value for layer in loudest for value in decibels[layer].values()]
    x = AxisScale.enclosing(values, 178, _WIDTH - 14)
    bottom = 16 + 20 * len(loudest)
    parts = [horizontal_axis(x, 10, bottom, "noise over signal of the answers, dB", lambda v: f"{v:g}")]
    marks: tuple[tuple[MarkShape, str], ...] = (("circle", "bits"), ("diamond", "ints"))
    kinds = list(noise)
    names = _distinct_labels(loudest)
    for row, layer in enumerate(loudest):
        y = 24.0 + 20 * row
        hover = layer + "".join(f"\n{kind}: {value:.1f} dB" for kind, value in decibels[layer].items())
        parts.append(text_label(170, y + 4, names[layer], "layer", "end", hover))
        parts.append(polyline([(x.start, y), (x.position(max(decibels[layer].values())), y)], "stem"))
        for kind, value in decibels[layer].items():
            shape, style = marks[kinds.index(kind) % len(marks)]
            parts.append(draw_mark(x.position(value), y, shape, style, hover))
    description = f"{len(loudest)} of {len(decibels)} layers, the noisiest first. " + "; ".join(
        f"{layer}: " + ", ".join(f"{kind} {value:.0f} dB" for kind, value in decibels[layer].items())
        for layer in loudest[:5]
    )
    return svg_element("sensitivity", _WIDTH, bottom + 45, "Sensitivity of each layer", description, parts)


def _distinct_labels(layers: Sequence[str]) -> dict[str, str]:
    """Return labels that fit; what long names have in common goes first, since it tells nothing.

    >>> list(_distinct_labels(["/a_long/common/path/conv1/Conv", "/a_long/common/path/conv12/Conv"]).values())
    ['…/conv1/Conv', '…/conv12/Conv']
    """
    cut = 0
    if len(layers) > 1 and max(map(len, layers)) > _LABEL:
        # What the first and the last in order share, all share; parts of a path stay whole.
        pairs = list(zip(min(layers), max(layers), strict=False))
        common = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
        cut = max(min(layers).rfind("/", 0, common), 0)
    lead = "\N{HORIZONTAL ELLIPSIS}" if cut else ""
    return {layer: formatting.shorten_middle(lead + layer[cut:], _LABEL) for layer in layers}


def bound_plot(certificate: Certificate) -> str:
    """Draw the drop that was seen, its bounds, and the limit on one axis."""
    share = formatting.is_percentage(certificate.metric)
    factor = 100.0 if share else 1.0
    seen, limit = factor * certificate.drop, factor * certificate.max_drop
    if not (is_known(seen) and is_known(limit)):
        return ""
    reach = 12 * max(abs(seen), abs(limit), 1e-9)
    ends = [factor * v if is_known(v) else sign * math.inf for v, sign in _bounds(certificate)]
    low, high = max(ends[0], seen - reach), min(ends[1], seen + reach)
    x = AxisScale.enclosing([0.0, seen, limit, low, high], 16, _WIDTH - 16)
    unit = "percentage points" if share else "in the metric's unit"
    y = 44
    parts = [
        horizontal_axis(
            x, 24, 64, f"drop of {formatting.shorten_middle(certificate.metric, 30)}, {unit}", lambda v: f"{v:g}"
        ),
        polyline([(x.position(limit), 18), (x.position(limit), 64)], "limit"),
        text_label(
            min(max(x.position(limit), 70), _WIDTH - 70),
            12,
            f"limit {formatting.format_drop(certificate.metric, certificate.max_drop)}",
            "name",
            "middle",
        ),
        polyline([(x.position(low), y), (x.position(high), y)], "interval"),
        *(
            polyline([(x.position(end), y - 7), (x.position(end), y + 7)], "interval")
            for end, bound in ((low, ends[0]), (high, ends[1]))
            if end == bound
        ),
        draw_mark(
            x.position(seen),
            y,
            "circle",
            "seen",
            f"drop seen: {formatting.format_drop(certificate.metric, certificate.drop)}",
        ),
    ]
    description = (
        f"Drop seen {formatting.format_drop(certificate.metric, certificate.drop)}, at most "
        f"{formatting.format_drop(certificate.metric, certificate.upper_bound)}, limit "
        f"{formatting.format_drop(certificate.metric, certificate.max_drop)}."
    )
    return svg_element("bound", _WIDTH, 106, "The certificate's bounds", description, parts)


def _bounds(certificate: Certificate) -> tuple[tuple[float, int], tuple[float, int]]:
    return (certificate.lower_bound, -1), (certificate.upper_bound, 1)
