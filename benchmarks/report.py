"""The form that every benchmark reports in: figures as JSON in the last line of stdout, tables before it."""

import json
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["ROOT", "Figure", "Interval", "circumstances", "document", "emit", "figures_table", "merged", "table"]

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True)
class Interval:
    """A value between its bounds; an exact one has no width."""

    value: float
    low: float
    high: float

    @classmethod
    def exact(cls, value: float) -> "Interval":
        """Return a value without spread.

        >>> Interval.exact(0.5).high
        0.5
        """
        return cls(value, value, value)


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure against its limit.

    Attributes:
        name: `TASK.FIGURE`.
        value: None if it is missing.
        limit: None for a figure that is only stated.
        peer: What it is measured against.
        holds: Whether the limit is kept.
        note: In words, what the comparison is.
    """

    name: str
    value: Interval | None
    limit: float | None
    peer: str | None
    holds: bool
    note: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return the entry of `figures`."""
        return {
            "value": None if self.value is None else self.value.value,
            "interval": None if self.value is None else [self.value.low, self.value.high],
            "limit": self.limit,
            "peer": self.peer,
            "holds": self.holds and self.value is not None,
        } | ({"note": self.note} if self.note else {})


def document(benchmark: str, figures: Sequence[Figure]) -> dict[str, Any]:
    """Return the object of the last line; a benchmark without figures does not hold."""
    entries = {figure.name: figure.as_json() for figure in figures}
    return {
        "benchmark": benchmark,
        "figures": entries,
        "holds": bool(entries) and all(entry["holds"] for entry in entries.values()),
    }


def merged(
    earlier: Mapping[str, Any],
    benchmark: str,
    part: str,
    figures: Sequence[Figure],
    made: Mapping[str, Any],
    detail: Mapping[str, Any],
) -> dict[str, Any]:
    """Return kept results with one part of them replaced.

    Args:
        earlier: Kept results, perhaps none.
        benchmark: Name of the whole.
        part: Whose figures are called `PART.FIGURE`.
        figures: Of the part.
        made: What the part's results depend on.
        detail: The part's record.
    """
    others = {name: entry for name, entry in earlier.get("figures", {}).items() if name.partition(".")[0] != part}
    entries = others | {figure.name: figure.as_json() for figure in figures}
    return {
        "benchmark": benchmark,
        "figures": entries,
        "holds": bool(entries) and all(entry["holds"] for entry in entries.values()),
        "parts": dict(earlier.get("parts", {})) | {part: dict(made) | {"detail": dict(detail)}},
    }


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows as text, the first column to the left, the others to the right.

    >>> print(table("T", ["a", "b"], [["x", "1.00"]]))
    T
      a     b
      x  1.00
    """
    lines = [list(columns), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    shown = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    return "\n".join([title, *("  " + line.rstrip() for line in shown)])


def figures_table(figures: Sequence[Figure]) -> str:
    """Return figures as text, one line each."""
    rows = []
    for figure in figures:
        value = figure.value
        shown = "missing" if value is None else f"{value.value:.4g}"
        spread = "" if value is None or value.low == value.high else f"{value.low:.3f} to {value.high:.3f}"
        limit = "" if figure.limit is None else f"{figure.limit:g}"
        rows.append(
            [figure.name, shown, spread, limit, figure.peer or "", "yes" if figure.as_json()["holds"] else "NO"]
        )
    return table("figures", ["figure", "value", "interval", "limit", "peer", "holds"], rows)


def circumstances(packages: Sequence[str]) -> dict[str, Any]:
    """Return what the results depend on: commit, machine, versions."""

    def git(*arguments: str) -> str:
        result = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
        return result.stdout.strip()

    return {
        "commit": git("rev-parse", "HEAD") or None,
        "modified": bool(git("status", "--porcelain", "--untracked-files=no")),
        "machine": {"system": platform.platform(), "processor": _processor(), "python": platform.python_version()},
        "versions": {package: metadata.version(package) for package in packages},
    }


def _processor() -> str:
    """Return the processor's name and the features that decide about integer arithmetic."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    entries = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")
    found = [flag for flag in entries.get("flags", entries.get("Features", "")).split() if flag in wanted]
    cores = sum(line.startswith("processor") for line in lines)
    return f"{entries.get('model name', platform.machine())}, {cores} cores, {' '.join(found)}"


def emit(result: dict[str, Any]) -> None:
    """Print the last line."""
    print(json.dumps(result), file=sys.stdout, flush=True)
