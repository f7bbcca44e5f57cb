"""`edgewright calibrate`: make a classifier's confidence mean what it says."""

import argparse
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from edgewright.cli.console import SCHEMA_VERSION, print_json, show_progress
from edgewright.cli.project_options import find_project
from edgewright.compress.output_folder import write_file
from edgewright.compress.uncertainty.calibrated_classifier import calibrate_model

__all__ = ["register"]

_EPILOG = """\
examples:
  edgewright calibrate model.onnx --data held-out.npz --out calibrated.onnx
  edgewright calibrate model.onnx --data held-out.npz --vector --out calibrated.onnx

A temperature changes no answer, only its confidence. Calibrate before compress, so that the certificate is about
the model that is shipped. On data from elsewhere nothing is promised.
exit codes: 0 done; 1 the graph cannot be changed so; 2 the input or usage is wrong.
"""


def register(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb."""
    parser = verbs.add_parser(
        "calibrate",
        help="make a classifier's confidence mean what it says",
        description="Fit a temperature to half of the data, fold it into the graph, judge it on the other half.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", type=Path, help="ONNX classifier")
    parser.add_argument("--data", metavar="DATA", required=True, help="labelled samples it was not trained on")
    parser.add_argument("--label", metavar="NAME", help="column or array with the labels")
    parser.add_argument("--group", metavar="NAME", help="column or array with each sample's group")
    parser.add_argument("--out", metavar="FILE", required=True, type=Path, help="the calibrated model")
    parser.add_argument("--vector", action="store_true", help="a factor and a shift for each class")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="of the split (0)")
    parser.add_argument("--project", metavar="FILE", type=Path, help="project file with the preprocessing")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Calibrate.

    Raises:
        InputError: The model or the data cannot be used.
        CandidateError: The graph does not end in logits or a softmax.
    """
    project = find_project(arguments.project)
    with show_progress("fitting, folding, judging"):
        found = calibrate_model(
            arguments.model,
            arguments.data,
            label=arguments.label,
            group=arguments.group,
            preprocess=None if project is None else project.preprocess,
            vector=arguments.vector,
            seed=arguments.seed,
        )
    write_file(arguments.out, found.model.SerializeToString())
    if arguments.json:
        print_json(
            {
                "schema": SCHEMA_VERSION,
                "out": str(arguments.out),
                "temperature": found.temperature,
                "before": msgspec.to_builtins(found.before),
                "after": msgspec.to_builtins(found.after),
                "fitted": found.fit_samples,
                "judged": found.evaluation_samples,
            }
        )
        return 0
    table = Table("", "before", "after")
    for name in ("accuracy", "calibration_error", "nll", "brier"):
        table.add_row(name, *(f"{getattr(each, name):.4f}" for each in (found.before, found.after)))
    console = Console()
    console.print(table)
    fitted = "a vector" if found.temperature is None else f"temperature {found.temperature:.3f}"
    console.print(
        f"{fitted}, fitted to {found.fit_samples} samples, judged on {found.evaluation_samples} others: {arguments.out}"
    )
    return 0
