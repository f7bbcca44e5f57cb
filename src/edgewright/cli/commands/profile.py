"""`edgewright profile`: measure a model on a target."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from edgewright.cli.console import print_json
from edgewright.cli.project_options import PROJECT_FILE, device_class_of, find_project
from edgewright.compress.data.loader import load_data
from edgewright.compress.model.loading import read_model
from edgewright.contract.errors import InputError
from edgewright.contract.measurement import Measurement
from edgewright.contract.units import Dimension, format_quantity
from edgewright.profiling.profiler import LatencyProfile, ProfiledInput, ProfiledModel, profile_model
from edgewright.profiling.random_inputs import runnable_inputs
from edgewright.profiling.runtime_tuning import describe_options
from edgewright.profiling.target import open_target

__all__ = ["register", "run"]

_EPILOG = """\
examples:
  edgewright profile model.onnx
  edgewright profile small.onnx --against large.onnx --seconds 30
  edgewright profile model.onnx --on ssh://pi@camera.local --data test.npz --json
  edgewright profile model.onnx --on bench:camera-7
  edgewright profile model.onnx --device-class camera

A remote target needs an ssh login without a password, Python 3.9 or newer, numpy and
onnxruntime; nothing stays there.
EDGEWRIGHT_SSH_OPTIONS adds options for the ssh client, EDGEWRIGHT_SSH_PYTHON names the Python there.
A bench device is reached through the control plane: EDGEWRIGHT_SERVER is its address,
EDGEWRIGHT_API_TOKEN a token of it that may run jobs.
"""


def register(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb."""
    parser = verbs.add_parser(
        "profile",
        help="measure a model on a target",
        description="Measure latency, memory, size and energy of a model, find its best runtime options, and see "
        "how it holds up over time and beside other work.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", type=Path, help="ONNX file")
    what = parser.add_argument_group("what to measure")
    what.add_argument("--against", metavar="OTHER", type=Path, help="measure another model in turns with it")
    what.add_argument("--data", metavar="DATA", help="take the first sample as input; random input without it")
    where = parser.add_argument_group("where")
    where.add_argument(
        "--on", metavar="TARGET", help='"local", ssh://user@host[:port] or bench:NAME (default: of the class)'
    )
    where.add_argument("--device-class", metavar="CLASS", help="device class of the project file, with its budget")
    where.add_argument("--project", metavar="FILE", type=Path, help=f"project file (default: {PROJECT_FILE})")
    how = parser.add_argument_group("how")
    how.add_argument("--seconds", metavar="N", type=float, default=10.0, help="for all timings (default: 10)")
    how.add_argument("--seed", metavar="N", type=int, default=0, help="of order and resampling (default: 0)")
    how.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Profile and print.

    Raises:
        InputError: The model, the data, the target or the device class cannot be used.
        WorkError: The measurement failed.
    """
    if not 0.1 <= arguments.seconds <= 86400:
        raise InputError(
            f"--seconds is {arguments.seconds:g}, it must be 0.1 to 86400", remedy="10 is enough for most models."
        )
    project = find_project(arguments.project) if arguments.project or arguments.device_class else None
    device_class = device_class_of(arguments.device_class, project)
    target = open_target(arguments.on or device_class.target)
    with _ProgressLines() as progress:
        progress("reading the model")
        model = _model_input(arguments.model, arguments.data, arguments.seed)
        against = None
        if arguments.against is not None:
            against = _model_input(arguments.against, arguments.data, arguments.seed)
        profile = profile_model(
            target,
            model,
            comparison_model=against,
            device_class=device_class,
            # A class that was named says how many threads it grants; otherwise the target's cores are the limit.
            threads_limit=device_class.threads if arguments.device_class else None,
            time_limit_seconds=arguments.seconds,
            seed=arguments.seed,
            progress=progress,
        )
    if arguments.json:
        print_json(profile)
    else:
        _print(profile, Console())
    return 0


def _model_input(path: Path, data: str | None, seed: int) -> ProfiledInput:
    contract = read_model(path).contract
    if data is None:
        return ProfiledInput(path, runnable_inputs(path, contract, seed))
    return ProfiledInput(path, load_data(data, contract, model=path, seed=seed).inputs_of(0))


class _ProgressLines:
    """Show the stage on stderr: moving on a terminal, a line for each stage elsewhere."""

    def __init__(self) -> None:
        self.bar: Progress | None = None
        if sys.stderr.isatty():
            columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
            self.bar = Progress(*columns, console=Console(stderr=True), transient=True)

    def __enter__(self) -> Callable[[str], None]:
        if self.bar is None:
            return lambda stage: print(f"edgewright: {stage}", file=sys.stderr, flush=True)
        bar = self.bar
        bar.start()
        task = bar.add_task("")
        return lambda stage: bar.update(task, description=stage)

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()


_ROWS: tuple[tuple[str, str, Dimension | None, float], ...] = (
    ("latency p50", "latency_p50_ms", "time", 1e-3),
    ("latency p95", "latency_p95_ms", "time", 1e-3),
    ("latency p99", "latency_p99_ms", "time", 1e-3),
    ("cold start", "cold_start_ms", "time", 1e-3),
    ("throughput", "throughput_per_second", None, 1.0),
    ("peak memory, model", "peak_memory_bytes", "size", 1.0),
    ("peak memory, process", "process_peak_memory_bytes", "size", 1.0),
    ("model file", "size_bytes", "size", 1.0),
    ("runtime on disk", "runtime_size_bytes", "size", 1.0),
    ("energy per inference", "energy_mj", "energy", 1e-3),
)


def _print(profile: LatencyProfile, console: Console) -> None:
    """Write tables and sentences for people."""
    against = profile.compared_with
    console.print(
        f"[bold]{escape(profile.model.path)}[/bold] on {profile.target}: {escape(profile.machine.summary)}"
    )
    inputs = ", ".join(f"{name} {list(shape)}" for name, shape in profile.model.input_shapes.items())
    console.print(f"input: {escape(inputs)}")
    table = Table("figure", "value", "95 % interval", *(("against", "interval") if against else ()))
    for title, name, dimension, scale in _ROWS:
        cells = [title, *_cells(profile.model, name, dimension, scale)]
        if against:
            cells += _cells(against.model, name, dimension, scale)
        table.add_row(*cells)
    console.print(table)
    if against:
        ratio = against.latency_ratio
        console.print(
            f"against {escape(against.model.path)}: "
            f"latency × {ratio.value:.3f} ({ratio.low:.3f} to {ratio.high:.3f}), "
            f"size × {against.size_ratio:.3f}, energy × {against.energy_ratio:.3f}"
        )
    options = profile.runtime_options
    gained = (
        f": latency × {options.gain.value:.3f}"
        if options.gain
        else ", the default; nothing tried is clearly faster"
    )
    console.print(f"runtime options: {describe_options(options.best)}{gained} ({len(options.trials)} tried)")
    console.print(f"sustained: {profile.sustained.verdict}; {profile.sustained.reason}")
    load = profile.contention
    console.print(
        f"beside other work: mean latency × {load.cpu_slowdown:.2f} with every core busy, "
        f"× {load.io_slowdown:.2f} with writers to the disk"
    )
    for check in profile.budget:
        verdict = "kept" if check.is_met else "[red]not kept[/red]"
        console.print(f"budget {check.name}: {check.value:.4g}, limit {check.limit:.4g}: {verdict}")


def _cells(figures: ProfiledModel, name: str, dimension: Dimension | None, scale: float) -> list[str]:
    figure: Measurement = getattr(figures, name)

    def show(value: float) -> str:
        return format_quantity(value * scale, dimension) if dimension else f"{value:.4g}/s"

    value = show(figure.value) + (" (estimated)" if figure.origin.kind == "estimated" else "")
    if figure.low is None or figure.high is None:
        return [value, ""]
    # Few repetitions reach less than the confidence of the column.
    note = "" if figure.confidence >= 0.945 else f" ({figure.confidence:.0%})"
    return [value, f"{show(figure.low)} to {show(figure.high)}{note}"]
