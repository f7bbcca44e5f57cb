"""Judging alert rules: a pure step from states and readings to states and events.

A rule fires when its value was beyond the limit for long enough, and ends when it was on the quiet side of `clear`
for as long. A reading without a value changes nothing: that nobody says anything is a metric of its own.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from edgewright.contract.alert import AlertRule, AlertState, Reading, Silence

__all__ = ["Event", "Key", "judge", "silenced"]

Key = tuple[str, str]
"""Name of the rule, device class."""


@dataclass(frozen=True, slots=True)
class Event:
    """A rule that began or ended.

    Attributes:
        rule: Which.
        device_class: Of which devices.
        kind: What happened.
        value: That did it.
        at_s: Unix time.
        silenced: Whether people asked not to be told; it is kept all the same.
        words: For people.
    """

    rule: AlertRule
    device_class: str
    kind: Literal["fired", "ended"]
    value: float
    at_s: float
    silenced: bool
    words: str


def judge(
    rules: Sequence[AlertRule],
    states: Mapping[Key, AlertState],
    readings: Iterable[Reading],
    silences: Sequence[Silence] = (),
) -> tuple[dict[Key, AlertState], list[Event]]:
    """Take readings in order of time, and return where each rule stands and what happened.

    Args:
        rules: Of the project file.
        states: Before; what belongs to no rule any more is dropped.
        readings: Since.
        silences: At present.
    """
    names = {rule.name for rule in rules}
    known = {key: state for key, state in states.items() if key[0] in names}
    events: list[Event] = []
    for reading in sorted(readings, key=lambda each: each.at_s):
        for rule in rules:
            concerns = rule.device_class in ("", reading.device_class)
            if rule.metric != reading.metric or not concerns or reading.value is None:
                continue
            key = (rule.name, reading.device_class)
            before = known.get(key) or AlertState(*key, "ok", reading.at_s, reading.at_s)
            if reading.at_s < before.at_s:  # it came late, and what came after it was judged
                continue
            after, kind = _step(rule, before, reading.value, reading.at_s)
            known[key] = after
            if kind is not None:
                quiet = silenced(silences, rule.name, reading.device_class, reading.at_s)
                words = _words(rule, reading.device_class, kind, reading.value)
                events.append(Event(rule, reading.device_class, kind, reading.value, reading.at_s, quiet, words))
    return known, events


def silenced(silences: Iterable[Silence], rule: str, device_class: str, at_s: float) -> bool:
    """Whether people asked not to be told of a rule at a time."""
    return any(
        each.rule == rule and each.device_class in ("", device_class) and at_s < each.until_s for each in silences
    )


def _step(
    rule: AlertRule, before: AlertState, value: float, at_s: float
) -> tuple[AlertState, Literal["fired", "ended"] | None]:
    turned = before.turned_s
    if before.state == "firing":
        quiet = _is_quiet(rule, value)
        # The time on the quiet side counts from when it came there.
        turned = (turned if before.turned_s > before.since_s else at_s) if quiet else before.since_s
        if quiet and at_s - turned >= rule.for_s:
            return AlertState(rule.name, before.device_class, "ok", at_s, at_s, value, at_s), "ended"
        return msgspec.structs.replace(before, turned_s=turned, value=value, at_s=at_s), None
    if not _is_beyond(rule, value):
        since = before.since_s if before.state == "ok" else at_s
        return AlertState(rule.name, before.device_class, "ok", since, at_s, value, at_s), None
    since = before.since_s if before.state == "pending" else at_s
    if at_s - since >= rule.for_s:
        return AlertState(rule.name, before.device_class, "firing", at_s, at_s, value, at_s), "fired"
    return AlertState(rule.name, before.device_class, "pending", since, since, value, at_s), None


def _is_beyond(rule: AlertRule, value: float) -> bool:
    # Not "greater": what is no number is beyond every limit.
    return not (value <= rule.above if rule.above is not None else value >= (rule.below or 0.0))


def _is_quiet(rule: AlertRule, value: float) -> bool:
    if rule.above is not None:
        return value <= (rule.above if rule.clear is None else rule.clear)
    return value >= ((rule.below or 0.0) if rule.clear is None else rule.clear)


def _words(rule: AlertRule, device_class: str, kind: str, value: float) -> str:
    side, limit = ("above", rule.above) if rule.above is not None else ("below", rule.below)
    where = f" on {device_class}" if device_class else ""
    if kind == "fired":
        lasted = f" for {rule.for_s:g} s" if rule.for_s else ""
        return f"{rule.name}: {rule.metric}{where} is {value:.4g}, {side} {limit:g}{lasted}"
    return f"{rule.name}: {rule.metric}{where} is {value:.4g} again"
