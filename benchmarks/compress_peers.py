"""Edgewright's `compress` against other tools: latency, size and certified accuracy on the same models and data.

    python benchmarks/compress_peers.py            everything; writes benchmarks/results/compress_peers.json
    python benchmarks/compress_peers.py --quick    a smoke run of less than a minute, without torch and environments
    python benchmarks/compress_peers.py --only digits

The page docs/reference/benchmarks.md says what is measured and what the columns mean.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from benchmarks.environments import CACHE
from benchmarks.figures import figures_of_models, figures_of_tasks
from benchmarks.modelrun import run_model
from benchmarks.report import Figure, circumstances, document, emit, table
from benchmarks.taskrun import Outcome, run_task
from benchmarks.tasks.preparation import MODELS, SHARED, prepare, prepare_quick
from benchmarks.tasks.trained import TASKS
from benchmarks.tools import PEER_TOOLS

NAME = "compress_peers"
RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("edgewright", "numpy", "onnx", "onnxruntime", "optuna", "scipy")


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print tables to stderr and the figures to stdout; 0 if everything ran, whether or not limits hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smoke run of less than a minute")
    parser.add_argument("--fresh", action="store_true", help="run tools again whose results are in the cache")
    names = [*(task.name for task in TASKS), "models", *(path.stem for path in sorted(MODELS.glob("*.onnx")))]
    parser.add_argument(
        "--only", action="append", choices=names, help="one task, the models, or one model; repeatable"
    )
    parser.add_argument("--time-limit", type=float, default=150.0, help="seconds given to each `compress`")
    parser.add_argument("--seconds", type=float, default=40.0, help="for measuring one task's models side by side")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as state:
        if arguments.quick:
            figures, detail = _quick(Path(state), fresh=arguments.fresh)
        else:
            figures, detail = _full(arguments, Path(state))
    result = document(NAME, figures)
    print(_figures_table(figures), file=sys.stderr)
    if not arguments.quick and not arguments.only:
        RESULTS.mkdir(exist_ok=True)
        kept = result | circumstances(PACKAGES) | {"detail": detail}
        (RESULTS / f"{NAME}.json").write_text(json.dumps(kept, indent=1) + "\n")
    emit(result)
    return 0


def _quick(state: Path, *, fresh: bool) -> tuple[list[Figure], dict[str, Any]]:
    """Run one small task with onnxruntime's quantiser as the only peer, in this interpreter."""
    prepared = prepare_quick(CACHE / "tasks" / "quick")
    peers = tuple(peer for peer in PEER_TOOLS if peer.environment == "ort")
    outcome = run_task(prepared, peers, state, time_limit_s=8, seconds=3, fresh=fresh, here=True)
    print(outcome.table, file=sys.stderr)
    return figures_of_tasks([outcome.run]), outcome.detail


def _full(arguments: argparse.Namespace, state: Path) -> tuple[list[Figure], dict[str, Any]]:
    """Run the tasks and the models asked for; what fails is a figure that does not hold."""
    chosen = set(arguments.only or [*(task.name for task in TASKS), "models"])
    figures: list[Figure] = []
    detail: dict[str, Any] = {}
    outcomes: list[Outcome] = []
    for task in TASKS:
        if task.name not in chosen:
            continue
        try:
            outcome = run_task(
                prepare(task),
                PEER_TOOLS,
                state,
                time_limit_s=arguments.time_limit,
                seconds=arguments.seconds,
                fresh=arguments.fresh,
                here=False,
            )
        except (FileNotFoundError, RuntimeError) as error:
            print(f"{task.name}: {error}", file=sys.stderr)
            figures.append(Figure(task.name, None, None, None, False, str(error)))
            continue
        print(outcome.table, file=sys.stderr, flush=True)
        outcomes.append(outcome)
        detail[task.name] = outcome.detail
    if outcomes:
        figures += figures_of_tasks([outcome.run for outcome in outcomes])
    models = [path for path in sorted(MODELS.glob("*.onnx")) if chosen & {"models", path.stem}]
    if "models" in chosen and not models:
        figures.append(Figure("models", None, None, None, False, f"no models in {MODELS}"))
    rows = []
    for path in models:
        print(f"compressing {path.stem}", file=sys.stderr, flush=True)
        run, row, record = run_model(path, SHARED, state, time_limit_s=arguments.time_limit, fresh=arguments.fresh)
        figures += figures_of_models([run])
        rows.append(row)
        detail[path.stem] = record
    if rows:
        columns = ["model", "KB", "to KB", "us", "to us", "ratio", "interval", "dB", "agreement", "s"]
        print(table("models", columns, rows), file=sys.stderr)
    return figures, detail


def _figures_table(figures: Sequence[Figure]) -> str:
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


if __name__ == "__main__":
    sys.exit(main())
