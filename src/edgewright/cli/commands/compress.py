"""`edgewright compress`: the best model that keeps a budget, with its evidence."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from edgewright.cli.console import print_json, was_interrupted
from edgewright.cli.project_options import PROJECT_FILE, device_class_of, find_project
from edgewright.compress.certify.look_ledger import state_folder
from edgewright.compress.context import TrainingRequest
from edgewright.compress.data.sources.function import is_function_reference
from edgewright.compress.output_folder import ORIGINAL_FILE, OutputFolder
from edgewright.compress.pipeline import CompressionRequest, compress_model
from edgewright.compress.report.html_report import html_report, print_summary
from edgewright.contract.config.project import Project
from edgewright.contract.config.sections import TaskKind
from edgewright.contract.device_class import Budget, DeviceClass
from edgewright.contract.errors import InputError
from edgewright.contract.units import Dimension, parse_quantity

__all__ = ["register", "run"]

_EPILOG = """\
examples:
  edgewright compress model.onnx --data test.npz
  edgewright compress model.onnx --data test.npz --max-latency 5ms --max-size 200KB --max-drop 0.005
  edgewright compress model.onnx --data photos/ --device-class camera --out camera/
  edgewright compress model.onnx --data windows.csv --label activity --group subject --max-drop 0.03
  edgewright compress model.onnx --data mydata:held_out --resume --out earlier/
  edgewright compress model.onnx --data test.npz --train train.npz --time-limit 600
  edgewright compress mymodel:make --data test.npz --train train.npz --engine ray

DATA must not have been used for training. Without labels, the metric is agreement with the original.
With --train, smaller networks are trained with the model as their teacher.
--max-drop is a fraction of the metric: 0.01 is one percentage point of accuracy.
exit codes: 0 a certified model within the budget; 1 the budget or the certificate failed (the JSON is
complete, see "certificate" and "budget"); 2 the input or the usage is wrong.
"""

_TIME_LIMIT_SECONDS, _TRAINING_TIME_LIMIT_SECONDS = 120.0, 600.0

_LIMITS: tuple[tuple[str, str, Dimension, str, str], ...] = (
    ("--max-latency", "latency_p95_seconds", "time", "5ms", "95th percentile of the latency of one inference"),
    ("--max-latency-p50", "latency_p50_seconds", "time", "3ms", "median latency of one inference"),
    ("--max-size", "size_bytes", "size", "200KB", "size of the model file"),
    ("--max-memory", "peak_memory_bytes", "size", "20MB", "memory that the model adds to the runtime's own"),
    ("--max-energy", "energy_j", "energy", "2mJ", "energy of one inference"),
)


def register(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb."""
    parser = verbs.add_parser(
        "compress",
        help="make a model fit a device, with a certificate",
        description="Search quantisation, storage and graph forms of a trained model, and with --train also "
        "smaller networks, measure them on the target, and certify on unseen data that the chosen one loses no "
        "more than allowed.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        help="trained ONNX model, or module:function that makes a PyTorch module (default: the project file's)",
    )
    data = parser.add_argument_group("data")
    data.add_argument("--data", metavar="DATA", help=".npz, .csv, .parquet, folder of images, or module:function")
    data.add_argument("--label", metavar="NAME", help="column or array of labels (default: y)")
    data.add_argument("--features", metavar="NAME,…", help="feature columns, or arrays in input order")
    data.add_argument("--group", metavar="NAME", help="column or array of groups (subjects): bound by cluster")
    data.add_argument("--task", choices=get_args(TaskKind), help="what the labels mean (default: found out)")
    data.add_argument("--metric", metavar="NAME", help="metric, or module:function (default: by task)")
    data.add_argument(
        "--fold-preprocessing",
        action="store_true",
        help="let the chosen model take raw samples: the project file's [preprocess], or what was found for "
        "images, goes into the graph",
    )
    training = parser.add_argument_group("training")
    training.add_argument(
        "--train", metavar="DATA", help="train smaller networks on this; nothing of it may be in --data"
    )
    training.add_argument(
        "--teacher", metavar="FILE", action="append", help="a further teacher beside the model, ONNX; repeatable"
    )
    training.add_argument("--recipe", metavar="FUNCTION", help="the model's own training, module:function")
    training.add_argument(
        "--engine", metavar="ENGINE", help='where to train: "local", "ray", "ray://host:port" (default: local)'
    )
    training.add_argument(
        "--workers", metavar="N", type=int, help="networks trained at once (default: one per core)"
    )
    budget = parser.add_argument_group("budget")
    budget.add_argument("--device-class", metavar="CLASS", help="device class of the project file")
    for flag, field, _dimension, example, meaning in _LIMITS:
        budget.add_argument(flag, metavar="LIMIT", dest=field, help=f"{meaning}, as {example}")
    budget.add_argument(
        "--max-drop", metavar="FRACTION", type=float, help="largest loss of the metric, such as 0.01"
    )
    budget.add_argument("--min-metric", metavar="VALUE", type=float, help="least value of the metric")
    budget.add_argument("--confidence", metavar="LEVEL", type=float, help="of the certificate (default: 0.95)")
    search = parser.add_argument_group("search")
    search.add_argument(
        "--on", metavar="TARGET", help='where to measure: "local", ssh://user@host[:port] or bench:NAME'
    )
    search.add_argument(
        "--time-limit", metavar="SECONDS", type=float, help="for all of it (default: 120, with --train 600)"
    )
    search.add_argument("--trials", metavar="N", type=int, help="most candidates (default: 200)")
    search.add_argument("--seed", metavar="N", type=int, help="of every random choice (default: 0)")
    search.add_argument("--resume", action="store_true", help="go on with the search in the output folder")
    output = parser.add_argument_group("output")
    output.add_argument("--out", metavar="DIR", type=Path, help="output folder (default: edgewright-out/MODEL)")
    output.add_argument("--project", metavar="FILE", type=Path, help="project file (default: edgewright.toml)")
    output.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Compress and print.

    Raises:
        InputError: The arguments, the model, the data or the folder cannot be used.
        WorkError: The target or the disk failed.
    """
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console, transient=True
    ) as progress:
        task = progress.add_task("compress", total=1.0)

        def tell(stage: str, share: float) -> None:
            progress.update(task, description=stage, completed=share)

        request = _request(arguments, tell)
        try:
            report = compress_model(request)
        except BaseException as error:
            if was_interrupted(error) and OutputFolder(request.output_folder).journal.exists():
                print(
                    f"Interrupted. Go on with the same command and --resume --out {request.output_folder}",
                    file=sys.stderr,
                )
            raise
    OutputFolder(request.output_folder).write("report.html", html_report(report).encode())
    if arguments.json:
        print_json(report)
    else:
        print_summary(report, Console())
    return 0 if report.budget.met and report.certificate.verdict == "certified" else 1


def _request(arguments: argparse.Namespace, report_progress: Callable[[str, float], None]) -> CompressionRequest:
    """Put the command line over the project file over the defaults."""
    project = find_project(arguments.project)
    if project is not None and arguments.project is None:
        print(f"Using {PROJECT_FILE} of this folder.", file=sys.stderr)
    model = arguments.model or (project.model.path if project else None)
    if model is None:
        raise InputError(
            "no model was given", remedy="Name the ONNX file, or write a project file with 'edgewright init'."
        )
    data = arguments.data or (project.data.source if project else None)
    if data is None:
        raise InputError("no data was given", remedy="Name it with --data, or in the project file.")
    device = _device(arguments, project)
    section = None if project is None else project.data
    search = None if project is None else project.search
    features = (
        tuple(name.strip() for name in arguments.features.split(","))
        if arguments.features
        else (section.features if section else ())
    )
    training = _training(arguments, project)
    usual_limit = _TIME_LIMIT_SECONDS if training is None else _TRAINING_TIME_LIMIT_SECONDS
    if search is not None and (training is None or search.time_limit_seconds > usual_limit):
        usual_limit = search.time_limit_seconds
    is_module = is_function_reference(model) and not Path(model).exists()
    out = arguments.out or Path("edgewright-out") / (model.rpartition(":")[2] if is_module else Path(model).stem)
    return CompressionRequest(
        model=out / ORIGINAL_FILE if is_module else Path(model),
        module=model if is_module else None,
        data=data,
        output_folder=out,
        state_folder=state_folder(os.environ),
        device=device,
        label=arguments.label or (section.label if section else None),
        features=features,
        group=arguments.group or (section.group if section else None),
        task=arguments.task or (section.task if section else None),
        metric=arguments.metric or (project.metric.name if project else None),
        preprocess=project.preprocess if project else None,
        training=training,
        fold_preprocessing=arguments.fold_preprocessing,
        time_limit_seconds=_positive(arguments.time_limit, "--time-limit", usual_limit),
        max_trials=int(_positive(arguments.trials, "--trials", (search.trials if search else None) or 200)),
        seed=_seed(arguments.seed, search.seed if search else 0),
        resume=arguments.resume,
        report_progress=report_progress,
    )


def _training(arguments: argparse.Namespace, project: Project | None) -> TrainingRequest | None:
    """Put the command line's training over the project file's; None if nothing is to be trained."""
    section = None if project is None else project.training
    given = {
        "data": arguments.train,
        "teachers": None if arguments.teacher is None else tuple(arguments.teacher),
        "recipe": arguments.recipe,
        "engine": arguments.engine,
        "workers": None if arguments.workers is None else int(_positive(arguments.workers, "--workers", 1)),
    }
    chosen = {name: value for name, value in given.items() if value is not None}
    if section is not None:
        written = {
            "data": section.source,
            "teachers": section.teachers,
            "recipe": section.recipe,
            "engine": section.engine,
            "workers": section.workers,
            "temperature": section.temperature,
            "feature_loss_weight": section.feature_loss_weight,
            "relation_loss_weight": section.relation_loss_weight,
            "sparsity": section.sparsity,
        }
        chosen = {name: value for name, value in written.items() if value is not None} | chosen
    if chosen and "data" not in chosen:
        flag = next(iter(chosen)).replace("teachers", "teacher")
        raise InputError(
            f"--{flag} is about training, and there is nothing to train on",
            remedy="Name the training data with --train.",
        )
    return TrainingRequest(**chosen) if chosen else None


def _positive(value: float | None, flag: str, default: float) -> float:
    if value is not None and not 0 < value < float("inf"):
        raise InputError(
            f"{flag} is {value:g}, it must be a number greater than zero", remedy="Leave it out for the default."
        )
    return default if value is None else value


def _seed(value: int | None, default: int) -> int:
    if value is not None and not 0 <= value < 2**32:
        raise InputError(f"--seed is {value}, it must be 0 to 2^32 - 1", remedy="Any such number will do.")
    return default if value is None else value


def _device(arguments: argparse.Namespace, project: Project | None) -> DeviceClass:
    device = device_class_of(arguments.device_class, project)
    given: dict[str, Any] = {
        field: parse_quantity(getattr(arguments, field), dimension)
        for _flag, field, dimension, _example, _meaning in _LIMITS
        if getattr(arguments, field) is not None
    }
    given |= {
        name: getattr(arguments, name)
        for name in ("max_drop", "min_metric", "confidence")
        if getattr(arguments, name) is not None
    }
    budget: Budget = msgspec.structs.replace(device.budget, **given)
    return msgspec.structs.replace(device, budget=budget, target=arguments.on or device.target)
