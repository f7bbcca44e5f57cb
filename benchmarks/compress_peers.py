"""Edgewright's `compress` against other tools: latency, size and certified accuracy on the same models and data.

    python benchmarks/compress_peers.py            everything; writes benchmarks/results/compress_peers.json
    python benchmarks/compress_peers.py --quick    a smoke run of less than a minute, without torch and environments
    python benchmarks/compress_peers.py --only digits
    python benchmarks/compress_peers.py --only training    tasks with training data; --only fashion-train for one

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
from benchmarks.report import Figure, circumstances, document, emit, figures_table, merged, table
from benchmarks.taskrun import Outcome, run_task
from benchmarks.tasks.preparation import MODELS, SHARED, prepare, prepare_quick
from benchmarks.tasks.trained import TASKS, TRAINING_TASKS
from benchmarks.tools import PEER_TOOLS
from benchmarks.training_figures import figures_of_training
from benchmarks.trainingrun import run_training_task

NAME = "compress_peers"
TRAINING = "compress_training"
RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("edgewright", "numpy", "onnx", "onnxruntime", "optuna", "scipy")


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print tables to stderr and the figures to stdout; 0 if everything ran, whether or not limits hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smoke run of less than a minute")
    parser.add_argument("--fresh", action="store_true", help="run tools again whose results are in the cache")
    names = [*(task.name for task in TASKS), "models", *(path.stem for path in sorted(MODELS.glob("*.onnx")))]
    names += ["training", *(task.name for task in TRAINING_TASKS)]
    parser.add_argument(
        "--only", action="append", choices=names, help="one task, the models, one model, training; repeatable"
    )
    parser.add_argument("--time-limit", type=float, default=150.0, help="seconds given to each `compress`")
    parser.add_argument(
        "--train-time-limit", type=float, default=300.0, help="seconds given to each tool that trains"
    )
    parser.add_argument("--seconds", type=float, default=40.0, help="for measuring one task's models side by side")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as state:
        if arguments.quick:
            figures, detail = _quick(Path(state), fresh=arguments.fresh)
        else:
            figures, detail = _full(arguments, Path(state))
            if not arguments.only:
                _write(NAME, document(NAME, figures) | circumstances(PACKAGES) | {"detail": detail})
            figures += _training(arguments, Path(state))
    print(figures_table(figures), file=sys.stderr)
    emit(document(NAME, figures))
    return 0


def _write(name: str, record: dict[str, Any]) -> None:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")


def _training(arguments: argparse.Namespace, state: Path) -> list[Figure]:
    """Run the tasks with training data that are asked for; each is written to the results as soon as it is done."""
    chosen = set(arguments.only or ["training"])
    figures: list[Figure] = []
    for task in TRAINING_TASKS:
        if not chosen & {"training", task.name}:
            continue
        try:
            outcome = run_training_task(
                task,
                prepare(task),
                state,
                time_limit_seconds=arguments.train_time_limit,
                seconds=arguments.seconds,
                fresh=arguments.fresh,
            )
        except (FileNotFoundError, RuntimeError) as error:
            print(f"{task.name}: {error}", file=sys.stderr)
            figures.append(Figure(task.name, None, None, None, False, str(error)))
            continue
        print(outcome.table, file=sys.stderr, flush=True)
        found = figures_of_training(outcome.run)
        figures += found
        kept = RESULTS / f"{TRAINING}.json"
        earlier = json.loads(kept.read_text()) if kept.exists() else {}
        _write(TRAINING, merged(earlier, TRAINING, task.name, found, circumstances(PACKAGES), outcome.detail))
    return figures


def _quick(state: Path, *, fresh: bool) -> tuple[list[Figure], dict[str, Any]]:
    """Run one small task with onnxruntime's quantiser as the only peer, in this interpreter."""
    prepared = prepare_quick(CACHE / "tasks" / "quick")
    peers = tuple(peer for peer in PEER_TOOLS if peer.environment == "ort")
    outcome = run_task(prepared, peers, state, time_limit_seconds=8, seconds=3, fresh=fresh, here=True)
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
                time_limit_seconds=arguments.time_limit,
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
        run, row, record = run_model(
            path, SHARED, state, time_limit_seconds=arguments.time_limit, fresh=arguments.fresh
        )
        figures += figures_of_models([run])
        rows.append(row)
        detail[path.stem] = record
    if rows:
        columns = ["model", "KB", "to KB", "us", "to us", "ratio", "interval", "dB", "agreement", "s"]
        print(table("models", columns, rows), file=sys.stderr)
    return figures, detail


if __name__ == "__main__":
    sys.exit(main())
