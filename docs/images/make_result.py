"""Draw the picture in the README from a report: `python docs/images/make_result.py REPORT.json PICTURE.svg`.

The picture in the repository is of the report that `make demo` left in edgewright-out/digits/report.json.
"""

import json
import sys
from html import escape
from pathlib import Path
from typing import Any

from edgewright.contract.units import format_quantity

WIDTH, LEFT, BAR = 760, 150, 380
INK, FAINT, BEFORE, AFTER, BOUND = "#1f2933", "#61707f", "#b8c2cc", "#2f6f4f", "#b4540a"


def picture(report: dict[str, Any]) -> str:
    """Return an SVG of the original's and the chosen model's figures, and of the certificate."""
    original, chosen, certificate = report["original"], report["chosen"], report["certificate"]
    rows = [
        ("file", "size_bytes", "size", 1.0),
        ("latency p50", "latency_p50_ms", "time", 1e-3),
        ("peak memory", "peak_memory_bytes", "size", 1.0),
    ]
    parts = [_text(24, 34, report["verdict"].split(" (")[0], size=17, weight=600)]
    y = 66
    for title, name, dimension, scale in rows:
        before, after = original[name]["value"], chosen[name]["value"]
        most = max(before, after)
        parts.append(_text(24, y + 24, title))
        for value, colour, who, down in ((before, BEFORE, "original", 0), (after, AFTER, "chosen", 20)):
            shown = format_quantity(value * scale, dimension)  # type: ignore[arg-type] # a literal from above
            parts.append(_bar(y + down, BAR * value / most, colour))
            parts.append(_text(LEFT + BAR * value / most + 8, y + down + 12, f"{shown} {who}", size=12))
        y += 54
    parts += _certificate(y, certificate)
    versions, origin = report["versions"], original["latency_p50_ms"]["origin"]
    parts.append(
        _text(
            24,
            y + 84,
            f"Measured on {origin['machine']}, one thread, onnxruntime {versions['onnxruntime']}, "
            f"edgewright {versions['edgewright']}, {report['search']['seconds']:.0f} s in all.",
            size=11,
            colour=FAINT,
        )
    )
    height = y + 104
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'font-family="system-ui, sans-serif"><title>{escape(report["verdict"])}</title>'
        f'<rect width="{WIDTH}" height="{height}" rx="10" fill="#fbfbf9" stroke="#dfe3e6"/>'
        + "".join(parts)
        + "</svg>\n"
    )


def _certificate(y: int, certificate: dict[str, Any]) -> list[str]:
    """Draw the drop, its bound and the limit on one line."""
    limit, bound = certificate["max_drop"], certificate["upper_bound"]
    scale = BAR / (1.2 * max(limit, bound))
    zero, at_bound, at_limit = LEFT, LEFT + bound * scale, LEFT + limit * scale
    drop = LEFT + max(certificate["drop"], 0.0) * scale
    name = certificate["metric"]
    return [
        _text(24, y + 16, f"drop of {name}"),
        f'<line x1="{zero}" x2="{LEFT + BAR}" y1="{y + 12}" y2="{y + 12}" stroke="{BEFORE}"/>',
        f'<line x1="{drop:.1f}" x2="{at_bound:.1f}" y1="{y + 12}" y2="{y + 12}" '
        f'stroke="{AFTER}" stroke-width="6"/>',
        f'<circle cx="{drop:.1f}" cy="{y + 12}" r="5" fill="{AFTER}"/>',
        f'<line x1="{at_limit:.1f}" x2="{at_limit:.1f}" y1="{y}" y2="{y + 24}" stroke="{BOUND}" stroke-width="2"/>',
        _text(drop - 4, y + 36, f"observed {100 * certificate['drop']:.2f} pp", size=12),
        _text(at_bound, y + 4, f"at most {100 * bound:.2f} pp", size=12, anchor="middle"),
        _text(at_limit, y + 36, f"limit {100 * limit:.2f} pp", size=12, colour=BOUND),
        _text(
            LEFT,
            y + 56,
            f"{certificate['verdict']} at {certificate['confidence']:.0%} on {certificate['samples']} samples "
            "that nothing was trained or chosen by",
            size=12,
            colour=FAINT,
        ),
    ]


def _bar(y: float, width: float, colour: str) -> str:
    return f'<rect x="{LEFT}" y="{y}" width="{width:.1f}" height="16" rx="2" fill="{colour}"/>'


def _text(
    x: float, y: float, text: str, *, size: int = 13, weight: int = 400, colour: str = INK, anchor: str = "start"
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y}" font-size="{size}" font-weight="{weight}" fill="{colour}" '
        f'text-anchor="{anchor}">{escape(text)}</text>'
    )


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    target.write_text(picture(json.loads(source.read_text("utf-8"))), "utf-8")
