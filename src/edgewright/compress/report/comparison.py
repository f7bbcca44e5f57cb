"""Original and chosen model side by side, every figure with its origin."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from edgewright.compress.report import formatting
from edgewright.compress.report.formatting import ABSENT, FormatFunction, is_known
from edgewright.contract.compression_report import CompressionReport
from edgewright.contract.measurement import Measurement

__all__ = ["ComparisonCell", "ComparisonRow", "compare_models", "is_original"]

Direction = Literal["better", "worse", "same"]

# Changes below this share are not worth a word.
_NEGLIGIBLE = 0.005


@dataclass(frozen=True, slots=True)
class ComparisonCell:
    """One figure in words.

    Attributes:
        value: With its unit; for an estimate the label is `kind`.
        interval: With its confidence; empty where there is none.
        kind: measured, estimated or computed; empty for an absent figure.
        machine: That the figure is about.
        method: How it came about.
    """

    value: str
    interval: str = ""
    kind: str = ""
    machine: str = ""
    method: str = ""


@dataclass(frozen=True, slots=True)
class ComparisonRow:
    """One figure of both models.

    Attributes:
        name: Of the figure.
        original: Of the model as it came.
        chosen: Of the chosen model.
        change: In words.
        direction: Of the change.
    """

    name: str
    original: ComparisonCell
    chosen: ComparisonCell
    change: str
    direction: Direction

    @property
    def is_estimated(self) -> bool:
        """Whether either figure is no measurement."""
        return "estimated" in (self.original.kind, self.chosen.kind)


def is_original(report: CompressionReport) -> bool:
    """Whether the original itself was returned."""
    return report.chosen.sha256 == report.original.sha256


def compare_models(report: CompressionReport) -> list[ComparisonRow]:
    """Return the figures, the most asked for first."""
    return [*_figures(report), _metric(report)]


def _figures(report: CompressionReport) -> Iterator[ComparisonRow]:
    before, after = report.original, report.chosen
    yield _row("Size", before.size_bytes, after.size_bytes, formatting.format_size)
    yield _row("Size, compressed", before.compressed_bytes, after.compressed_bytes, formatting.format_size)
    yield _row("Latency, p50", before.latency_p50_ms, after.latency_p50_ms, formatting.format_latency)
    yield _row("Latency, p95", before.latency_p95_ms, after.latency_p95_ms, formatting.format_latency)
    yield _row(
        "Latency, paired ratio", before.latency_ratio, after.latency_ratio, lambda v: formatting.format_number(v, 3)
    )
    yield _row("Peak memory", before.peak_memory_bytes, after.peak_memory_bytes, formatting.format_size)
    yield _row("Energy per inference", before.energy_mj, after.energy_mj, formatting.format_energy)


def _row(name: str, before: Measurement | None, after: Measurement | None, write: FormatFunction) -> ComparisonRow:
    change, direction = _change(before, after)
    return ComparisonRow(name, _cell(before, write), _cell(after, write), change, direction)


def _cell(figure: Measurement | None, write: FormatFunction) -> ComparisonCell:
    if figure is None or not is_known(figure.value):
        return ComparisonCell(ABSENT)
    interval = ""
    if is_known(figure.low) and is_known(figure.high) and figure.low != figure.high:
        low, high = write(figure.low), write(figure.high)
        if low.split()[-1] == high.split()[-1]:
            low = low.split()[0]
        interval = f"{low} to {high} ({formatting.format_number(100 * figure.confidence)} %)"
    origin = figure.origin
    return ComparisonCell(write(figure.value), interval, origin.kind, origin.machine, origin.method)


def _change(before: Measurement | None, after: Measurement | None) -> tuple[str, Direction]:
    if (
        before is None
        or after is None
        or not (is_known(before.value) and is_known(after.value))
        or not before.value
    ):
        return "", "same"
    if before == after:
        return "unchanged", "same"
    change = after.value / before.value - 1
    if abs(change) < _NEGLIGIBLE or _overlap(before, after):
        return "no clear difference", "same"
    digits = 1 if abs(change) < 0.1 or change < -0.9 else 0
    text = f"{100 * abs(change):.{digits}f} %"
    return (f"{text} more", "worse") if change > 0 else (f"{text} less", "better")


def _overlap(a: Measurement, b: Measurement) -> bool:
    if not (is_known(a.low) and is_known(a.high) and is_known(b.low) and is_known(b.high)):
        return False
    return a.low <= b.high and b.low <= a.high


def _metric(report: CompressionReport) -> ComparisonRow:
    certificate = report.certificate
    # A certificate that failed is about a candidate that was not returned.
    value = certificate.original_metric if is_original(report) else certificate.chosen_metric
    lost = certificate.original_metric - value
    method = f"on {certificate.sample_count} samples of the certify split"
    cells = [
        ComparisonCell(
            formatting.format_metric(certificate.metric, figure),
            "",
            "computed" if is_known(figure) else "",
            "any",
            method,
        )
        for figure in (certificate.original_metric, value)
    ]
    if not is_known(lost):
        return ComparisonRow(certificate.metric, cells[0], cells[1], "", "same")
    text = formatting.format_drop(certificate.metric, abs(lost))
    if not lost:
        return ComparisonRow(certificate.metric, cells[0], cells[1], "unchanged", "same")
    change, direction = (f"{text} lost", "worse") if lost > 0 else (f"{text} gained", "better")
    return ComparisonRow(
        certificate.metric, cells[0], cells[1], change, "worse" if direction == "worse" else "better"
    )
