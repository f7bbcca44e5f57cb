"""`edgewright lint`: why a model is slow on the runtime, and its mending."""

import argparse
from pathlib import Path

import msgspec
from rich.console import Console
from rich.markup import escape

from edgewright.cli.console import SCHEMA_VERSION, print_json
from edgewright.compress.model.fusion_lint import LintReport, fix_model, lint_model
from edgewright.compress.model.loading import read_model
from edgewright.compress.model.strip_metadata import strip_model
from edgewright.compress.output_folder import write_file

__all__ = ["register", "run"]

_EPILOG = """\
examples:
  edgewright lint model.onnx
  edgewright lint quantized.onnx --fix mended.onnx

Mending never changes an answer beyond rounding: it takes weights off the list of inputs, turns signed
activations into unsigned ones, and writes out zero points that the runtime's fusions ask for.
exit codes: 0 nothing found, or everything mended; 1 findings remain; 2 the model cannot be used.
"""


def register(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb."""
    parser = verbs.add_parser(
        "lint",
        help="explain why a graph is slow on the runtime, and mend it",
        description="Let the runtime optimise the graph, see which layers it fused into integer kernels, and "
        "explain the rest.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", type=Path, help="ONNX file")
    parser.add_argument("--fix", metavar="FILE", type=Path, help="write the mended model here")
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Lint, mend if asked, and print.

    Raises:
        ModelError: The model cannot be used.
        OutputError: The mended model cannot be written.
    """
    proto = read_model(arguments.model).proto
    found = lint_model(proto)
    done: list[str] = []
    left = found
    if arguments.fix is not None:
        mended, done = fix_model(proto)
        left = lint_model(mended)
        write_file(arguments.fix, strip_model(mended).SerializeToString())
    if arguments.json:
        print_json({"schema": SCHEMA_VERSION, "lint": msgspec.to_builtins(found), "fixed": done, "left": left})
    else:
        _print(found, done, Console())
    return 1 if left.findings else 0


def _print(found: LintReport, done: list[str], console: Console) -> None:
    console.print(
        f"{found.integer_layers} of {found.layers} layers run on integers, {found.conversions} conversions remain."
    )
    for finding in found.findings:
        mark = "mendable" if finding.fixable else "not mendable"
        console.print(f"[bold]{finding.rule}[/bold] at {escape(finding.where)} ({mark})")
        console.print(f"  why:    {escape(finding.reason)}")
        console.print(f"  remedy: {escape(finding.remedy)}")
    for deed in done:
        console.print(f"mended: {escape(deed)}")
    if not found.findings:
        console.print("Nothing slows this graph down that a different form of the same graph would cure.")
