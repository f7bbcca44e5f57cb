"""A benchmark in parts: each is run, shown, and merged into the benchmark's results as soon as it is done."""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from benchmarks.report import Figure, circumstances, document, emit, figures_table, merged

__all__ = ["RESULTS", "Part", "run_parts"]

Part: TypeAlias = list[Figure] | tuple[list[Figure], Mapping[str, Any]]
"""Figures, or figures and a record."""

RESULTS = Path(__file__).resolve().parent / "results"


def run_parts(
    name: str,
    parts: Mapping[str, Callable[..., Part]],
    packages: Sequence[str],
    description: str | None,
    *,
    quick: Sequence[str] = (),
    shown: Callable[[Sequence[Figure]], str] = lambda _: "",
) -> int:
    """Run what the command line asks for, print a table to stderr and the figures to stdout.

    Args:
        name: Of the benchmark, and of its file of results.
        parts: Each takes `quick` and returns its figures, or figures and a record of the part.
        packages: Whose versions are kept with the results.
        description: Of the benchmark.
        quick: Parts of a smoke run, all if not given.
        shown: Returns what is printed after the table of figures.

    Returns:
        0 if everything ran, whether or not limits hold.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smoke run of less than a minute; writes nothing")
    parser.add_argument("--only", action="append", choices=parts, help="one part; repeatable")
    arguments = parser.parse_args()
    figures: list[Figure] = []
    for part in arguments.only or (quick if arguments.quick and quick else parts):
        print(f"{part} ...", file=sys.stderr, flush=True)
        result = parts[part](quick=arguments.quick)
        found, detail = result if isinstance(result, tuple) else (result, {})
        figures += found
        if not arguments.quick:
            _keep(name, part, found, packages, detail)
    print(figures_table(figures), file=sys.stderr)
    for figure in figures:
        print(f"  {figure.name}: {figure.note}", file=sys.stderr)
    print(shown(figures), file=sys.stderr)
    emit(document(name, figures))
    return 0


def _keep(
    name: str, part: str, figures: Sequence[Figure], packages: Sequence[str], detail: Mapping[str, Any]
) -> None:
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    earlier = json.loads(path.read_text()) if path.exists() else {}
    record = merged(earlier, name, part, figures, circumstances(packages), detail)
    path.write_text(json.dumps(record, indent=1) + "\n")
