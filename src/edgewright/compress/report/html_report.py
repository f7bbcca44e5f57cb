"""The result for people: a page that needs nothing but itself, and (in `summary`) a few lines in the terminal."""

from functools import cache
from importlib.resources import files
from pathlib import PurePath
from typing import Any

import msgspec
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from edgewright.compress.report import advice, formatting, plots
from edgewright.compress.report.comparison import compare_models, is_original
from edgewright.compress.report.formatting import is_known
from edgewright.compress.report.learning_curves import learning_plot, legend_curve
from edgewright.compress.report.sanitize import printable_report
from edgewright.compress.report.svg import MarkShape
from edgewright.compress.report.terminal_summary import print_summary
from edgewright.compress.report.training_summary import (
    ablation_summaries,
    training_rounds,
    training_sentence,
    validation_metric,
)
from edgewright.contract.compression_report import CompressionReport, FasterOptions

__all__ = ["html_report", "print_summary"]

_HEADLINES = {
    "certified": "The drop is certified to stay within its limit",
    "insufficient data": "The data does not suffice for a verdict",
    "refuted": "The drop breaks its limit",
}
_KINDS = {
    "few bits": "weights alone, in few bits",
    "integers": "the layer alone, on integers",
}


def html_report(report: CompressionReport) -> str:
    """Return the report as one HTML document that loads nothing, neither from the network nor from disk."""
    report = printable_report(report)
    certificate = report.certificate
    return (
        _environment()
        .get_template("report.html.jinja")
        .render(
            report=report,
            certificate=certificate,
            note=formatting,
            name=PurePath(report.original.path).name,
            headline=_HEADLINES[certificate.verdict],
            subject=advice.certified_model(report),
            method=advice.method_sentence(certificate),
            multiplicity=advice.multiplicity_sentence(certificate),
            next_steps=advice.next_steps(report),
            rows=compare_models(report),
            limits=advice.budget_limits(report),
            returned_original=is_original(report),
            effects=_effects(report),
            layers=len({layer for ratios in report.sensitivity.values() for layer in ratios}),
            most_layers=plots.MAX_PLOTTED_LAYERS,
            kinds={kind: _KINDS.get(kind, kind) for kind, ratios in report.sensitivity.items() if ratios},
            lints=[
                (name, report.lint.get(key) or {}) for key, name in (("original", "Original"), ("chosen", "Chosen"))
            ],
            recipe=msgspec.json.format(msgspec.json.encode(report.chosen.recipe), indent=2).decode(),
            facts=_run_facts(report),
            key=_key,
            learned=_training_section(report),
            **_plots(report),
        )
    )


@cache
def _environment() -> Environment:
    return Environment(
        loader=FunctionLoader(_source),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _source(name: str) -> str:
    return files("edgewright.compress.report").joinpath(name).read_text(encoding="utf-8")


def _key(shape: MarkShape, kind: str) -> Markup:
    return _safe_svg(plots.legend_mark(shape, kind))


def _safe_svg(svg: str) -> Markup:
    """Let a drawing through; `drawing` has escaped what it was given."""
    return Markup(svg)  # noqa: S704 - escaped in `drawing`, which the tests attack


def _plots(report: CompressionReport) -> dict[str, Markup]:
    """Draw what there are figures for; empty where there are none."""
    latencies = {name: values for name, values in report.latencies.items() if any(map(is_known, values))}
    if is_original(report) and len(latencies) > 1:
        latencies = {"original": latencies["original"]} if "original" in latencies else latencies
    sensitivity = any(is_known(v) and v > 0 for ratios in report.sensitivity.values() for v in ratios.values())
    complete = any(trial.state == "complete" for trial in report.trials)
    ratio = report.chosen.latency_ratio.value
    chosen = None if is_original(report) else plots.ParetoPoint(ratio, report.chosen.size_bytes.value)
    front = ""
    if complete and (chosen is None or (is_known(ratio) and ratio > 0)):
        front = plots.pareto_plot(
            report.trials,
            metric=report.certificate.metric,
            max_drop=report.certificate.max_drop,
            original=plots.ParetoPoint(1.0, report.original.size_bytes.value),
            chosen=chosen,
        )
    return {
        "bound_plot": _safe_svg(plots.bound_plot(report.certificate)),
        "front_plot": _safe_svg(front),
        "latency_plot": _safe_svg(plots.latency_plot(latencies) if latencies else ""),
        "sensitivity_plot": _safe_svg(plots.sensitivity_plot(report.sensitivity) if sensitivity else ""),
    }


def _training_section(report: CompressionReport) -> dict[str, Any]:
    """Return what the section on training shows; empty if nothing was trained."""
    if report.training is None:
        return {}
    metric, is_share = validation_metric(report)
    found = training_rounds(report)
    shapes = [
        {
            "stage": stage,
            "plot": _safe_svg(learning_plot(stage, f"learning-{place}", metric=metric, is_share=is_share)),
            "idle": [learner.number for learner in stage.networks if not learner.curve_points],
        }
        for place, stage in enumerate(found)
    ]
    return {
        "training": report.training,
        "sentence": training_sentence(report),
        "metric": metric,
        "unit": "accuracy" if is_share else "r2",
        "shapes": shapes,
        "gains": ablation_summaries(report),
        "key": lambda kind: _safe_svg(legend_curve(kind)),
        "is_untaught": any(
            not network.distilled and network.learning_curve for network in report.training.networks
        ),
        "is_on_front": any(trial.network_sha256 for trial in report.trials if trial.state == "complete"),
    }


def _effects(report: CompressionReport) -> list[dict[str, Any]]:
    """Return the recipe's steps with the share of the original's size that is left after each."""
    whole = report.original.size_bytes.value
    return [
        {
            "step": effect.get("step", ""),
            "size": formatting.format_size(effect.get("size_bytes")),
            "share": effect["size_bytes"] / whole if is_known(effect.get("size_bytes")) and whole else None,
            "sqnr": formatting.format_decibel(effect.get("sqnr_db")),
        }
        for effect in report.step_effects
    ]


def _faster_options_section(faster: FasterOptions) -> list[tuple[str, str]]:
    ratio = (
        f"{formatting.format_number(faster.latency_ratio.value, 3)} of the options above, of "
        f"{faster.compared_options} tried"
    )
    return [("latency", ratio), *((_label(k), _plain_value(k, v)) for k, v in faster.options.items())]


def _run_facts(report: CompressionReport) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return what a run can be repeated and judged by, in groups."""
    data = {k: v for k, v in report.data.items() if k != "notes"}
    figures = report.chosen.runtime
    return [
        ("Data", [(_label(k), _plain_value(k, v)) for k, v in data.items()]),
        ("Machine", [(_label(k), _plain_value(k, v)) for k, v in report.machine.items()]),
        ("Search", [(_label(k), _plain_value(k, v)) for k, v in report.search.items()]),
        ("Session options", [(_label(k), _plain_value(k, v)) for k, v in figures.items()]),
        *(
            [("Faster session options", _faster_options_section(report.faster_options))]
            if report.faster_options
            else []
        ),
        ("Versions", list(report.versions.items())),
        (
            "Files",
            [
                ("original", report.original.path),
                ("its sha256", report.original.sha256),
                ("chosen", report.chosen.path),
                ("its sha256", report.chosen.sha256),
                ("candidates of the front", f"{report.output_folder}/candidates"),
                ("this report", report.report_path),
            ],
        ),
    ]


def _label(name: str) -> str:
    if name.endswith("_bytes"):
        name = f"{name.removesuffix('_bytes')}_size"
    return name.removesuffix("_s").replace("_", " ")


def _plain_value(name: str, value: Any) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case int() | float() if name.endswith("_bytes"):
            return formatting.format_size(value)
        case float():
            text = formatting.format_number(value)
            return f"{text} s" if name in ("seconds", "time_limit_seconds") else text
        case list() | tuple():
            return ", ".join(str(entry) for entry in value) or "none"
        case dict():
            return ", ".join(f"{count} {key}" for key, count in value.items()) or "none"
        case _:
            return str(value)
