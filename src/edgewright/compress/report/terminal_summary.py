"""The result in a terminal: what was chosen, what is proved, what to do next."""

from collections.abc import Sequence
from functools import partial

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from edgewright.compress.report import formatting
from edgewright.compress.report.advice import budget_limits, certified_model, next_steps
from edgewright.compress.report.comparison import compare_models, is_original
from edgewright.compress.report.formatting import ABSENT, FormatFunction, is_known
from edgewright.compress.report.sanitize import printable_report
from edgewright.compress.report.training_summary import describe_ratio, known_ablations, training_sentence
from edgewright.contract.compression_report import CompressionReport, SearchTrial

__all__ = ["print_summary"]

_SHOWN_TRIALS = 6
_STYLES = {"certified": "green", "refuted": "red", "insufficient data": "yellow"}
_ROWS = ("Size", "Latency, p50", "Latency, p95", "Peak memory", "Energy per inference")


def print_summary(report: CompressionReport, console: Console) -> None:
    """Print what matters, in plain ASCII but for the names given, so that every terminal and log can show it."""
    report = printable_report(report)
    certificate = report.certificate
    style = _STYLES[certificate.verdict]
    good = certificate.verdict == "certified" and report.budget.met
    console.print(Text(report.verdict, style=f"bold {style if not good else 'green'}"), highlight=False)
    console.print()
    _print_comparison(report, console)
    _print_certificate(report, console)
    _print_budget(report, console)
    _print_front(report, console)
    _print_training(report, console)
    steps = next_steps(report)
    if steps:
        console.print("\nWhat to do next", style="bold")
        for step in steps:
            console.print(_hanging_indent("- ", step))
    console.print()
    for name, path in (("model ", report.chosen.path), ("report", report.report_path)):
        console.print(Text.assemble(f"{name}  ", (path, "bold")), soft_wrap=True, highlight=False)
    console.print("\nRun it with")
    for row in report.usage_example.splitlines():
        console.print(Text(f"    {row}", style="cyan"), soft_wrap=True, highlight=False)


def _hanging_indent(bullet: str, text: str) -> Table:
    """Return a paragraph whose further lines are indented as the first."""
    grid = Table.grid()
    grid.add_column(width=len(bullet))
    grid.add_column()
    grid.add_row(bullet, Text(text))
    return grid


def _print_comparison(report: CompressionReport, console: Console) -> None:
    table = Table("", "original", "chosen", "change", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
        column.no_wrap = True
    rows = compare_models(report)
    for row in rows:
        if row.name in _ROWS or row is rows[-1]:
            name = escape(row.name) + (" [yellow](estimated)[/]" if row.is_estimated else "")
            style = {"better": "green", "worse": "yellow", "same": "dim"}[row.direction]
            table.add_row(name, row.original.value, row.chosen.value, Text(row.change, style=style))
    console.print(table, highlight=False)
    ratio = next(row for row in rows if row.name == "Latency, paired ratio").chosen
    if ratio.interval and not is_original(report):
        interval = ratio.interval.replace("(", "at ").replace(")", "")
        console.print(f"latency relative to the original: {ratio.value} ({interval})", highlight=False)
    if ratio.machine:
        console.print(Text(f"measured on: {ratio.machine}"))
    if not is_original(report):
        console.print(Text(f"recipe: {report.chosen.title}"))


def _print_certificate(report: CompressionReport, console: Console) -> None:
    certificate = report.certificate
    text = Text("\ncertificate: ")
    text.append(certificate.verdict, style=f"bold {_STYLES[certificate.verdict]}")
    if certificate.look:
        text.append(
            f" for {certified_model(report)}: drop of {certificate.metric} at most "
            f"{formatting.format_drop(certificate.metric, certificate.upper_bound)} (limit "
            f"{formatting.format_drop(certificate.metric, certificate.max_drop)}) at "
            f"{formatting.format_number(100 * certificate.confidence)} % confidence, {certificate.sample_count} samples"
            + ("" if certificate.cluster_count is None else f" of {certificate.cluster_count} groups")
            + f", {certificate.method}, look {certificate.look}"
        )
    else:
        text.append(f": {certificate.reason}")
    console.print(text, highlight=False)


def _print_budget(report: CompressionReport, console: Console) -> None:
    found = budget_limits(report)
    text = Text("budget: ")
    text.append("met" if report.budget.met else "not met", style="green" if report.budget.met else "bold red")
    for limit in found:
        if limit.is_binding or not limit.is_kept:
            share = (
                ""
                if limit.share_of_limit is None
                else f" ({formatting.format_percent(limit.share_of_limit)} of it)"
            )
            binds = "; it binds" if limit.is_binding else ""
            text.append(f"; {limit.name} {limit.reached_text}, limit {limit.limit}{share}{binds}")
    console.print(text, highlight=False)


def _print_front(report: CompressionReport, console: Console) -> None:
    if not report.pareto_front:
        return
    metric = report.certificate.metric
    table = Table(
        "", "no.", "size", "latency", "drop", "candidate", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
    )
    for column in table.columns[1:5]:
        column.justify = "right"
        column.no_wrap = True
    width = max(16, console.width - 42)
    for trial in _shown_trials(report):
        table.add_row(
            "*" if trial.sha256 == report.chosen.sha256 else "",
            str(trial.number),
            formatting.format_size(trial.size_bytes),
            formatting.format_number(trial.latency_ratio, 3),
            formatting.format_drop(metric, trial.drop),
            Text(formatting.shorten_middle(trial.title, width, "...")),
        )
    more = f", {_SHOWN_TRIALS} of {len(report.pareto_front)}" if len(report.pareto_front) > _SHOWN_TRIALS else ""
    chosen = ", * chosen" if any(trial.sha256 == report.chosen.sha256 for trial in report.pareto_front) else ""
    console.print(f"\nfront{more}{chosen} (drop on the samples that chose, not certified)", highlight=False)
    console.print(Padding(table, 0), highlight=False)


def _print_training(report: CompressionReport, console: Console) -> None:
    sentence = training_sentence(report)
    if not sentence:
        return
    console.print(Text(f"\ntraining: {sentence}"))
    found = known_ablations(report)
    if not found:
        return
    table = Table("", "tried", "metric", "size", "latency", box=box.SIMPLE_HEAD, pad_edge=False)
    table.columns[1].justify = "right"
    for step in dict.fromkeys(contribution.step for contribution in found):
        same = [contribution for contribution in found if contribution.step == step]
        table.add_row(
            Text(step),
            str(len(same)),
            _span([c.metric_with - c.metric_without for c in same], partial(_change, report.certificate.metric)),
            _span([c.size_ratio for c in same], describe_ratio),
            _span([c.latency_ratio for c in same], describe_ratio),
        )
    console.print("what each step gave, in networks of this search that differ in it alone", highlight=False)
    console.print(table, highlight=False)


def _change(metric: str, value: float | None) -> str:
    """Write a change of a metric with its sign."""
    if not is_known(value):
        return ABSENT
    text = formatting.format_drop(metric, abs(value))
    return f"{'-' if value < 0 else '+'}{text}"


def _span(values: Sequence[float | None], write: FormatFunction) -> str:
    """Write the least and the greatest of some figures."""
    known = sorted(value for value in values if is_known(value))
    if not known:
        return ABSENT
    least, most = write(known[0]), write(known[-1])
    return least if least == most else f"{least} to {most}"


def _shown_trials(report: CompressionReport) -> list[SearchTrial]:
    """Return a few of the front, spread evenly over the sizes, the chosen one among them."""
    front = sorted(report.pareto_front, key=lambda trial: trial.size_bytes)
    if len(front) <= _SHOWN_TRIALS:
        return front
    places = {round(i * (len(front) - 1) / (_SHOWN_TRIALS - 1)) for i in range(_SHOWN_TRIALS)}
    chosen = next((i for i, trial in enumerate(front) if trial.sha256 == report.chosen.sha256), None)
    if chosen is not None and chosen not in places:
        places.remove(min(places, key=lambda place: (abs(place - chosen), place)))
        places.add(chosen)
    return [front[place] for place in sorted(places)]
