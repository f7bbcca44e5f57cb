"""A benchmark in parts: each is run, shown, and merged into the benchmark's results as soon as it is done."""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.report import Figure, circumstances, document, emit, figures_table, merged

__all__ = ["RESULTS", "run_parts"]

RESULTS = Path(__file__).resolve().parent / "results"


def run_parts(
    name: str,
    parts: Mapping[str, Callable[..., list[Figure]]],
    packages: Sequence[str],
    description: str | None,
    argv: Sequence[str] | None = None,
) -> int:
    """Run what the command line asks for, print a table to stderr and the figures to stdout.

    Args:
        name: Of the benchmark, and of its file of results.
        parts: Each takes `quick` and returns its figures.
        packages: Whose versions are kept with the results.
        description: Of the benchmark.
        argv: Instead of the command line's.

    Returns:
        0 if everything ran, whether or not limits hold.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smoke run of less than a minute; writes nothing")
    parser.add_argument("--only", action="append", choices=parts, help="one part; repeatable")
    arguments = parser.parse_args(argv)
    figures: list[Figure] = []
    for part in arguments.only or parts:
        print(f"{part} ...", file=sys.stderr, flush=True)
        found = parts[part](quick=arguments.quick)
        figures += found
        if not arguments.quick:
            _keep(name, part, found, packages)
    print(figures_table(figures), file=sys.stderr)
    for figure in figures:
        print(f"  {figure.name}: {figure.note}", file=sys.stderr)
    emit(document(name, figures))
    return 0


def _keep(name: str, part: str, figures: Sequence[Figure], packages: Sequence[str]) -> None:
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    earlier = json.loads(path.read_text()) if path.exists() else {}
    record = merged(earlier, name, part, figures, circumstances(packages), {})
    path.write_text(json.dumps(record, indent=1) + "\n")
