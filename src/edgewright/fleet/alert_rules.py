"""Judging alert rules: a pure step from states and readings to states and events.

A rule fires when its value was beyond the limit for long enough, and ends when it was on the quiet side of `clear`
for as long. A reading without a value changes nothing: that nobody says anything is a metric of its own.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from edgewright.contract.alert import AlertRule, AlertSilence, MetricReading, RuleState

__all__ = ["AlertEvent", "RuleKey", "evaluate_rules", "is_silenced"]

RuleKey = tuple[str, str]
"""Name of the rule, device class."""


@dataclass(frozen=True, slots=True)
class AlertEvent:
    """A rule that began or ended.

    Attributes:
        rule: Which.
        device_class: Of which devices.
        kind: What happened.
        value: That did it.
        at: Unix time.
        silenced: Whether people asked not to be told; it is kept all the same.
        message: For people.
    """

    rule: AlertRule
    device_class: str
    kind: Literal["fired", "ended"]
    value: float
    at: float
    silenced: bool
    message: str


def evaluate_rules(
    rules: Sequence[AlertRule],
    states: Mapping[RuleKey, RuleState],
    readings: Iterable[MetricReading],
    silences: Sequence[AlertSilence] = (),
) -> tuple[dict[RuleKey, RuleState], list[AlertEvent]]:
    """Take readings in order of time, and return where each rule stands and what happened.

    Args:
        rules: Of the project file.
        states: Before; what belongs to no rule any more is dropped.
        readings: Since.
        silences: At present.
    """
    names = {rule.name for rule in rules}
    known = {key: state for key, state in states.items() if key[0] in names}
    events: list[AlertEvent] = []
    for reading in sorted(readings, key=lambda each: each.at):
        for rule in rules:
            concerns = rule.device_class in ("", reading.device_class)
            if rule.metric != reading.metric or not concerns or reading.value is None:
                continue
            key = (rule.name, reading.device_class)
            before = known.get(key) or RuleState(*key, "ok", reading.at, reading.at)
            if reading.at < before.at:  # it came late, and what came after it was judged
                continue
            after, kind = _step(rule, before, reading.value, reading.at)
            known[key] = after
            if kind is not None:
                quiet = is_silenced(silences, rule.name, reading.device_class, reading.at)
                words = _describe(rule, reading.device_class, kind, reading.value)
                events.append(AlertEvent(rule, reading.device_class, kind, reading.value, reading.at, quiet, words))
    return known, events


def is_silenced(silences: Iterable[AlertSilence], rule: str, device_class: str, at: float) -> bool:
    """Whether people asked not to be told of a rule at a time."""
    return any(
        each.rule == rule and each.device_class in ("", device_class) and at < each.until for each in silences
    )


def _step(
    rule: AlertRule, before: RuleState, value: float, at: float
) -> tuple[RuleState, Literal["fired", "ended"] | None]:
    turned = before.crossed_at
    if before.state == "firing":
        quiet = _is_cleared(rule, value)
        # The time on the quiet side counts from when it came there.
        turned = (turned if before.crossed_at > before.since else at) if quiet else before.since
        if quiet and at - turned >= rule.for_seconds:
            return RuleState(rule.name, before.device_class, "ok", at, at, value, at), "ended"
        return msgspec.structs.replace(before, crossed_at=turned, value=value, at=at), None
    if not _is_beyond(rule, value):
        since = before.since if before.state == "ok" else at
        return RuleState(rule.name, before.device_class, "ok", since, at, value, at), None
    since = before.since if before.state == "pending" else at
    if at - since >= rule.for_seconds:
        return RuleState(rule.name, before.device_class, "firing", at, at, value, at), "fired"
    return RuleState(rule.name, before.device_class, "pending", since, since, value, at), None


def _is_beyond(rule: AlertRule, value: float) -> bool:
    # Not "greater": what is no number is beyond every limit.
    return not (value <= rule.above if rule.above is not None else value >= (rule.below or 0.0))


def _is_cleared(rule: AlertRule, value: float) -> bool:
    if rule.above is not None:
        return value <= (rule.above if rule.clear_at is None else rule.clear_at)
    return value >= ((rule.below or 0.0) if rule.clear_at is None else rule.clear_at)


def _describe(rule: AlertRule, device_class: str, kind: str, value: float) -> str:
    side, limit = ("above", rule.above) if rule.above is not None else ("below", rule.below)
    where = f" on {device_class}" if device_class else ""
    if kind == "fired":
        lasted = f" for {rule.for_seconds:g} s" if rule.for_seconds else ""
        return f"{rule.name}: {rule.metric}{where} is {value:.4g}, {side} {limit:g}{lasted}"
    return f"{rule.name}: {rule.metric}{where} is {value:.4g} again"
