"""Drift and fairness from private sums, with the power that they have. Nothing here ever says that all is well."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgewright.server.web.view_models.formatting import Badge, make_badge, percent_text, points_text
from edgewright.server.web.view_models.interval_bars import IntervalBar, share_bar

__all__ = ["DriftView", "RateRow", "SignalRow", "SubgroupRates", "drift_view"]


@dataclass(frozen=True, slots=True)
class SignalRow:
    """A signal.

    Attributes:
        name: Of it.
        verdict: Of the test.
        says: In a sentence, with the power.
        p_value: Of the test.
        power: Chance that a shift of the size looked for would have been found.
        detectable: Least shift that would have been found nine times in ten.
    """

    name: str
    verdict: Badge
    says: str
    p_value: str
    power: str
    detectable: str


@dataclass(frozen=True, slots=True)
class RateRow:
    """A rate of a subgroup.

    Attributes:
        subgroup: Its labels.
        value: With its interval, or why there is none.
        interval: Of it, "" without a value.
        bar: The same, drawn; None without a value.
        assumes: What was taken for granted, "" for nothing.
    """

    subgroup: str
    value: str
    interval: str
    bar: IntervalBar | None
    assumes: str


@dataclass(frozen=True, slots=True)
class SubgroupRates:
    """How subgroups fare under an outcome.

    Attributes:
        name: Of the outcome.
        rates: By subgroup.
        says: About the greatest difference.
    """

    name: str
    rates: tuple[RateRow, ...]
    says: str


@dataclass(frozen=True, slots=True)
class DriftView:
    """What sums say of a model on a device class.

    Attributes:
        model: Which.
        device_class: Whose.
        cohorts: Sums that were judged together.
        devices: In all of them.
        warnings: That the sums carry.
        signals: Those that moved first.
        outcomes: By name.
        classes: How often each class was answered.
        calibration: How often answers were right, by tenth of confidence.
    """

    model: str
    device_class: str
    cohorts: int
    devices: str
    warnings: tuple[str, ...]
    signals: tuple[SignalRow, ...]
    outcomes: tuple[SubgroupRates, ...]
    classes: tuple[SubgroupRates, ...]
    calibration: tuple[SubgroupRates, ...]


def drift_view(model: str, device_class: str, found: Mapping[str, Any]) -> DriftView:
    """Return what sums say.

    Args:
        model: Which.
        device_class: Whose.
        found: As `edgewright query judge --json` has it.
    """
    signals = [_signal(name, one) for name, one in found["signals"].items()]
    signals.sort(key=lambda row: (row.verdict.tone != "bad", row.name))
    return DriftView(
        model=model,
        device_class=device_class,
        cohorts=found["cohorts"],
        devices=f"{found['devices']:,}",
        warnings=tuple(found["warnings"]),
        signals=tuple(signals),
        outcomes=tuple(_outcome(name, one) for name, one in found["outcomes"].items()),
        classes=tuple(
            SubgroupRates(f"answers of {label}", _numbered("class", rates), "")
            for label, rates in found["classes"].items()
        ),
        calibration=tuple(
            SubgroupRates(f"{name.removeprefix('calibration.')}, {label}", _tenths(rates), "")
            for name, groups in found["calibration"].items()
            for label, rates in groups.items()
        ),
    )


def _signal(name: str, one: Mapping[str, Any]) -> SignalRow:
    # "Nothing was found" is only said with the power of the test, and never as a good sign.
    verdict = make_badge("bad", "drift") if one["verdict"] == "drift" else make_badge("quiet", one["verdict"])
    if one["verdict"] == "too few devices":
        verdict = make_badge("warn", "too few devices to see a shift of this size")
    detectable = one["detectable"]
    return SignalRow(
        name,
        verdict,
        one["says"],
        f"{one['p_value']:.2g}",
        percent_text(one["power"], 0),
        "none" if detectable is None else f"{detectable:.2g}",
    )


def _outcome(name: str, one: Mapping[str, Any]) -> SubgroupRates:
    rates = tuple(_rate(label, found) for label, found in one["rates"].items())
    says = "There is nothing to compare: fewer than two subgroups have a rate."
    if "difference" in one:
        gap = one["difference"]
        if gap["value"] is None:
            says = f"How far {one['worst']} and {one['best']} are apart is not known: {gap['reason']}."
        else:
            surely = "surely" if gap["low"] > 0 else "perhaps not"
            says = (
                f"{one['worst']} fares worse than {one['best']} by {points_text(gap['value'])[1:]}, {surely}: "
                f"between {points_text(gap['low'])} and {points_text(gap['high'])}."
            )
    return SubgroupRates(name.removeprefix("outcome."), rates, says)


def _numbered(what: str, rates: Sequence[Mapping[str, Any]]) -> tuple[RateRow, ...]:
    return tuple(_rate(f"{what} {number}", one) for number, one in enumerate(rates))


def _tenths(rates: Sequence[Mapping[str, Any]]) -> tuple[RateRow, ...]:
    return tuple(
        _rate(f"confidence {number / 10:.1f} to {(number + 1) / 10:.1f}", one) for number, one in enumerate(rates)
    )


def _rate(subgroup: str, one: Mapping[str, Any]) -> RateRow:
    if one["value"] is None:
        return RateRow(subgroup, f"not known: {one['reason']}", "", None, one["assumes"])
    interval = f"{percent_text(one['low'], 2)} to {percent_text(one['high'], 2)}"
    value = percent_text(one["value"], 2)
    bar = share_bar(one["value"], one["low"], one["high"], words=f"{subgroup}: {value}, between {interval}")
    return RateRow(subgroup, value, interval, bar, one["assumes"])
