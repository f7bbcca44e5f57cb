"""The result for people: a page that needs nothing but itself, and (in `summary`) a few lines in the terminal."""

from functools import cache
from importlib.resources import files
from pathlib import PurePath
from typing import Any

import msgspec
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from edgewright.compress.report import advice, formatting, plots
from edgewright.compress.report.comparison import compare, is_original
from edgewright.compress.report.formatting import is_known
from edgewright.compress.report.learning_curves import learning_plot, legend_curve
from edgewright.compress.report.sanitize import printable_report
from edgewright.compress.report.svg import Mark
from edgewright.compress.report.terminal_summary import print_summary
from edgewright.compress.report.training_summary import gains, stages, training_sentence, validation_metric
from edgewright.contract.compression_report import FasterOptions, Report

__all__ = ["page", "print_summary"]

_HEADLINES = {
    "certified": "The drop is certified to stay within its limit",
    "insufficient data": "The data does not suffice for a verdict",
    "refuted": "The drop breaks its limit",
}
_KINDS = {
    "few bits": "weights alone, in few bits",
    "integers": "the layer alone, on integers",
}


def page(report: Report) -> str:
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
            subject=advice.subject(report),
            method=advice.method_sentence(certificate),
            multiplicity=advice.multiplicity_sentence(certificate),
            next_steps=advice.next_steps(report),
            rows=compare(report),
            limits=advice.limits(report),
            returned_original=is_original(report),
            effects=_effects(report),
            layers=len({layer for ratios in report.sensitivity.values() for layer in ratios}),
            most_layers=plots.MOST_LAYERS,
            kinds={kind: _KINDS.get(kind, kind) for kind, ratios in report.sensitivity.items() if ratios},
            lints=[
                (name, report.lint.get(key) or {}) for key, name in (("original", "Original"), ("chosen", "Chosen"))
            ],
            recipe=msgspec.json.format(msgspec.json.encode(report.chosen.recipe), indent=2).decode(),
            facts=_facts(report),
            key=_key,
            learned=_learned(report),
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


def _key(shape: Mark, kind: str) -> Markup:
    return _drawn(plots.legend_mark(shape, kind))


def _drawn(svg: str) -> Markup:
    """Let a drawing through; `drawing` has escaped what it was given."""
    return Markup(svg)  # noqa: S704 - escaped in `drawing`, which the tests attack


def _plots(report: Report) -> dict[str, Markup]:
    """Draw what there are figures for; empty where there are none."""
    latencies = {name: values for name, values in report.latencies.items() if any(map(is_known, values))}
    if is_original(report) and len(latencies) > 1:
        latencies = {"original": latencies["original"]} if "original" in latencies else latencies
    sensitivity = any(is_known(v) and v > 0 for ratios in report.sensitivity.values() for v in ratios.values())
    complete = any(trial.state == "complete" for trial in report.trials)
    ratio = report.chosen.latency_ratio.value
    chosen = None if is_original(report) else plots.Place(ratio, report.chosen.size_bytes.value)
    front = ""
    if complete and (chosen is None or (is_known(ratio) and ratio > 0)):
        front = plots.front_plot(
            report.trials,
            metric=report.certificate.metric,
            max_drop=report.certificate.max_drop,
            original=plots.Place(1.0, report.original.size_bytes.value),
            chosen=chosen,
        )
    return {
        "bound_plot": _drawn(plots.bound_plot(report.certificate)),
        "front_plot": _drawn(front),
        "latency_plot": _drawn(plots.latency_plot(latencies) if latencies else ""),
        "sensitivity_plot": _drawn(plots.sensitivity_plot(report.sensitivity) if sensitivity else ""),
    }


def _learned(report: Report) -> dict[str, Any]:
    """Return what the section on training shows; empty if nothing was trained."""
    if report.training is None:
        return {}
    metric, is_share = validation_metric(report)
    found = stages(report)
    shapes = [
        {
            "stage": stage,
            "plot": _drawn(learning_plot(stage, f"learning-{place}", metric=metric, is_share=is_share)),
            "idle": [learner.number for learner in stage.learners if not learner.places],
        }
        for place, stage in enumerate(found)
    ]
    return {
        "training": report.training,
        "sentence": training_sentence(report),
        "metric": metric,
        "unit": "accuracy" if is_share else "r2",
        "shapes": shapes,
        "gains": gains(report),
        "key": lambda kind: _drawn(legend_curve(kind)),
        "is_untaught": any(not network.distilled and network.curve for network in report.training.networks),
        "is_on_front": any(trial.network for trial in report.trials if trial.state == "complete"),
    }


def _effects(report: Report) -> list[dict[str, Any]]:
    """Return the recipe's steps with the share of the original's size that is left after each."""
    whole = report.original.size_bytes.value
    return [
        {
            "step": effect.get("step", ""),
            "size": formatting.size(effect.get("size_bytes")),
            "share": effect["size_bytes"] / whole if is_known(effect.get("size_bytes")) and whole else None,
            "sqnr": formatting.decibel(effect.get("sqnr_db")),
        }
        for effect in report.effects
    ]


def _faster(faster: FasterOptions) -> list[tuple[str, str]]:
    ratio = f"{formatting.number(faster.latency_ratio.value, 3)} of the options above, of {faster.tried} tried"
    return [("latency", ratio), *((_words(k), _plain(k, v)) for k, v in faster.options.items())]


def _facts(report: Report) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return what a run can be repeated and judged by, in groups."""
    data = {k: v for k, v in report.data.items() if k != "notes"}
    figures = report.chosen.runtime
    return [
        ("Data", [(_words(k), _plain(k, v)) for k, v in data.items()]),
        ("Machine", [(_words(k), _plain(k, v)) for k, v in report.machine.items()]),
        ("Search", [(_words(k), _plain(k, v)) for k, v in report.search.items()]),
        ("Session options", [(_words(k), _plain(k, v)) for k, v in figures.items()]),
        *([("Faster session options", _faster(report.faster_options))] if report.faster_options else []),
        ("Versions", list(report.versions.items())),
        (
            "Files",
            [
                ("original", report.original.path),
                ("its sha256", report.original.sha256),
                ("chosen", report.chosen.path),
                ("its sha256", report.chosen.sha256),
                ("candidates of the front", f"{report.folder}/candidates"),
                ("this report", report.report),
            ],
        ),
    ]


def _words(name: str) -> str:
    if name.endswith("_bytes"):
        name = f"{name.removesuffix('_bytes')}_size"
    return name.removesuffix("_s").replace("_", " ")


def _plain(name: str, value: Any) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case int() | float() if name.endswith("_bytes"):
            return formatting.size(value)
        case float():
            text = formatting.number(value)
            return f"{text} s" if name in ("seconds", "time_limit_s") else text
        case list() | tuple():
            return ", ".join(str(entry) for entry in value) or "none"
        case dict():
            return ", ".join(f"{count} {key}" for key, count in value.items()) or "none"
        case _:
            return str(value)
