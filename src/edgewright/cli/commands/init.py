"""`edgewright init`: look at a model and its data, and write a commented project file."""

import argparse
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from edgewright.cli.console import SCHEMA_VERSION, print_json
from edgewright.compress.data.loader import Dataset, Splits, load_data, split_dataset
from edgewright.compress.data.sources.function import is_function_reference
from edgewright.compress.metrics.metric import Metric, choose_metric, model_outputs
from edgewright.compress.model.loading import LoadedModel, read_model
from edgewright.contract.config.project import Project, parse_project
from edgewright.contract.config.project_template import project_text
from edgewright.contract.config.sections import DataSection, MetricSection, ModelSection
from edgewright.contract.device_class import DEFAULT_DEVICE_CLASS, Budget, DeviceClass
from edgewright.contract.errors import EdgewrightError, OutputError, ProjectError
from edgewright.contract.units import Dimension, format_quantity, parse_quantity
from edgewright.profiling.latency import measure_latency
from edgewright.profiling.memory import measure_memory
from edgewright.profiling.target import open_target
from edgewright.profiling.workload import Workload
from edgewright.runtime.options import RuntimeOptions

__all__ = ["register"]

_LATENCY_SECONDS = 1.0
_JUDGED_SAMPLES = 256  # enough to say how good the original is, without waiting
_MIN_MEMORY_BYTES = 1e6  # below it the measurement is noise
_DROPS = (0.01, 0.02, 0.05, 0.1, 0.2)


@dataclass(frozen=True, slots=True)
class ProjectFindings:
    """What was seen of model and data.

    Attributes:
        model: Checked.
        dataset: Checked against the model.
        splits: For how many samples can certify.
        metric: The task's own.
        value: Of the original on a part of the calibrate and select samples.
        latency_p50_seconds: Of the original on this machine, seconds.
        latency_p95_seconds: Likewise.
        peak_memory_bytes: That loading and running the original adds to the runtime's own.
    """

    model: LoadedModel
    dataset: Dataset
    splits: Splits
    metric: Metric
    value: float
    latency_p50_seconds: float
    latency_p95_seconds: float
    peak_memory_bytes: float


def register(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb."""
    parser = verbs.add_parser(
        "init",
        help="write a commented edgewright.toml from a model and data",
        description="Look at a model and its data, and write a commented project file with a budget to start from.",
        epilog="example: edgewright init --model model.onnx --data samples.npz",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_argument_group("model and data")
    what.add_argument("--model", type=Path, required=True, metavar="MODEL", help="the ONNX file")
    what.add_argument(
        "--data", required=True, metavar="DATA", help=".npz, .csv, .parquet, folder of images, or module:function"
    )
    what.add_argument("--label", metavar="NAME", help="column or array of labels (default: y)")
    what.add_argument("--features", metavar="NAME,…", default="", help="feature columns, or arrays in input order")
    what.add_argument("--group", metavar="NAME", help="column or array that names each sample's group")
    output = parser.add_argument_group("output")
    output.add_argument("--out", type=Path, default=Path("edgewright.toml"), metavar="FILE", help="where to write")
    output.add_argument("--force", action="store_true", help="replace an existing file")
    output.add_argument("--json", action="store_true", help="print one JSON document to stdout")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Look, write, and say what was written."""
    out: Path = arguments.out
    if out.is_dir():
        raise OutputError(f"{out} is a folder", remedy="Name the file to write.")
    if out.exists() and not arguments.force:
        raise ProjectError(f"{out} exists already", remedy="Add --force to replace it, or --out for another file.")
    features = tuple(name.strip() for name in arguments.features.split(",") if name.strip())
    data = DataSection(source=arguments.data, label=arguments.label, features=features, group=arguments.group)
    console = Console(stderr=True)
    with console.status("reading the model and the data, measuring the original on this machine"):
        findings = inspect_model(arguments.model, data)
    project = propose_project(findings, data, out.parent)
    text = project_text(project, remarks_on(findings))
    parse_project(text, out.name)
    write_atomically(out, text)
    console.print(f"Wrote {out}. Look at the budget in it, then run 'edgewright compress'.", highlight=False)
    if arguments.json:
        print_json(init_document(findings, project, out))
    return 0


def inspect_model(model: Path, data: DataSection) -> ProjectFindings:
    """Read model and data, and measure the original here.

    Raises:
        EdgewrightError: Whatever is wrong with either.
    """
    loaded = read_model(model)
    dataset = load_data(
        data.source,
        loaded.contract,
        label=data.label,
        features=data.features,
        group=data.group,
        task=data.task,
        model=model,
    )
    splits = split_dataset(dataset, seed=0)
    judged = dataset.subset(np.concatenate([splits.calibrate, splits.select])[:_JUDGED_SAMPLES])
    outputs = model_outputs(model, judged, range(len(judged)), loaded.contract)
    metric = choose_metric(judged, loaded.contract, None, outputs)
    value = float(metric.scores(outputs, outputs, judged.labels, judged.inputs).mean())
    target = open_target(DEFAULT_DEVICE_CLASS.target)
    subject = Workload("original", model, RuntimeOptions(), dataset.inputs_of(0))
    latency = measure_latency(target, [subject], seconds=_LATENCY_SECONDS)[0]
    if isinstance(latency, EdgewrightError):
        raise latency
    memory = measure_memory(target, subject)
    return ProjectFindings(
        model=loaded,
        dataset=dataset,
        splits=splits,
        metric=metric,
        value=value,
        latency_p50_seconds=latency.p50.value,
        latency_p95_seconds=latency.p95.value,
        peak_memory_bytes=memory.session_peak.value,
    )


def propose_project(findings: ProjectFindings, data: DataSection, folder: Path) -> Project:
    """Return a project whose budget asks for half the size, and for no loss in speed or memory beyond noise."""
    source = data.source if is_function_reference(data.source) else _relative(Path(data.source), folder)
    budget = Budget(
        latency_p50_seconds=_rounded_up(1.1 * findings.latency_p50_seconds, "time"),
        latency_p95_seconds=_rounded_up(1.5 * findings.latency_p95_seconds, "time"),
        peak_memory_bytes=_rounded_up(max(findings.peak_memory_bytes, _MIN_MEMORY_BYTES), "size"),
        size_bytes=_rounded_up(findings.model.size_bytes / 2, "size"),
        max_drop=certifiable_drop(findings),
    )
    return Project(
        model=ModelSection(path=_relative(findings.model.path, folder)),
        data=DataSection(
            source=source, label=data.label, features=data.features, group=data.group, task=findings.dataset.task
        ),
        metric=MetricSection(name=findings.metric.name),
        preprocess=findings.dataset.preprocess,
        device_classes=(DeviceClass(name=DEFAULT_DEVICE_CLASS.name, budget=budget),),
    )


def certifiable_drop(findings: ProjectFindings) -> float:
    """Return the least customary drop that the certify split could certify if no answer changed.

    With n samples and no change the one-sided 95 % bound is about 3 / n (the rule of three); twice that leaves
    room for a few changes.
    """
    samples = len(findings.splits.certify)
    if findings.dataset.groups is not None:
        samples = min(samples, 50 * len(np.unique(findings.dataset.groups[findings.splits.certify])))
    return next((drop for drop in _DROPS if drop >= 6 / samples), _DROPS[-1])


def remarks_on(findings: ProjectFindings) -> dict[str, Sequence[str]]:
    """Return what was found, as sentences for the file's sections."""
    model, dataset = findings.model, findings.dataset
    certify = len(findings.splits.certify)
    seen = "; ".join(
        f"{spec.name} {spec.dtype} [{', '.join(map(str, spec.shape))}]" for spec in model.contract.inputs
    )
    drop = certifiable_drop(findings)
    return {
        "model": (f"{format_quantity(model.size_bytes, 'size')}, opset {model.opset}, takes {seen}",),
        "data": (f"{len(dataset)} samples, of which {certify} are kept for the certificate", *dataset.notes),
        "metric": (
            f"the original has {findings.metric.name} {findings.value:.4g} "
            f"on {min(_JUDGED_SAMPLES, len(dataset) - certify)} samples",
            *([findings.metric.note] if findings.metric.note else []),
        ),
        "preprocess": ()
        if dataset.preprocess
        else ("state it if the data is raw and the model takes scaled values",),
        "device_class": ("this machine stands for the device; give its address to measure there",),
        "budget": (
            f"measured here with one thread: latency p50 {format_quantity(findings.latency_p50_seconds, 'time')}, "
            f"p95 {format_quantity(findings.latency_p95_seconds, 'time')}, "
            f"memory {format_quantity(findings.peak_memory_bytes, 'size')}",
            "to start with: that latency with a margin for noise, that memory, half the size; "
            "replace by what your device needs",
            f"{certify} samples can certify a drop of about {6 / certify:.2g} or more; max_drop is set to {drop:g}",
        ),
        "pilot": ("a small trial on real devices before everyone gets the model, and when it is a success",),
    }


def init_document(findings: ProjectFindings, project: Project, out: Path) -> dict[str, Any]:
    """Return the JSON document."""
    return {
        "schema": SCHEMA_VERSION,
        "project": str(out),
        "model": {
            "path": str(findings.model.path),
            "size_bytes": findings.model.size_bytes,
            "sha256": findings.model.sha256,
            "opset": findings.model.opset,
            "contract": findings.model.contract,
        },
        "data": {
            "samples": len(findings.dataset),
            "certify_samples": len(findings.splits.certify),
            "task": findings.dataset.task,
            "fingerprint": findings.dataset.fingerprint,
            "notes": findings.dataset.notes,
        },
        "metric": {"name": findings.metric.name, "original": findings.value, "note": findings.metric.note},
        "budget": project.device_classes[0].budget,
        "pilot": project.pilot,
    }


def write_atomically(path: Path, text: str) -> None:
    """Write all of the text or nothing.

    Raises:
        OutputError: The folder is missing, cannot be written, or its disk is full.
    """
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise OutputError(
            f"{path} cannot be written: {error.strerror}", remedy="Give a writable folder with --out."
        ) from error


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path.absolute(), folder.absolute())).as_posix()


def _rounded_up(value: float, dimension: Dimension) -> float:
    """Return a round number of two digits, at most a tenth above."""
    exponent = math.floor(math.log10(max(value, 1e-12))) - 1
    steps = math.ceil(value / 10.0**exponent - 1e-9)
    return parse_quantity(format_quantity(steps * 10.0**exponent, dimension, digits=3), dimension)
