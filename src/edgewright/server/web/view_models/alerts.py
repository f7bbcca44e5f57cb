"""Alerts: what rings, what waits, what was; and what may be done only if somebody agrees."""

from collections.abc import Sequence
from dataclasses import dataclass

from edgewright.contract.alert import AlertRule
from edgewright.server.read_models import PendingAction
from edgewright.server.store.records import Alert, AlertChange
from edgewright.server.web.view_models.formatting import (
    Badge,
    DisplayTime,
    Tone,
    display_time,
    duration,
    make_badge,
)

__all__ = [
    "AlertRow",
    "AwaitingRow",
    "ChangeRow",
    "RuleRow",
    "alert_rows",
    "awaiting_rows",
    "change_rows",
    "rule_rows",
]

_TONES: dict[str, Tone] = {"firing": "bad", "pending": "warn", "resolved": "good"}


@dataclass(frozen=True, slots=True)
class AlertRow:
    """How a rule stands for a subject.

    Attributes:
        rule: Its name.
        subject: What it watches.
        state: Of the rule.
        message: For people.
        since: When that state began.
        silenced: Until when nobody is told, None if people are.
    """

    rule: str
    subject: str
    state: Badge
    message: str
    since: DisplayTime | None
    silenced: DisplayTime | None


@dataclass(frozen=True, slots=True)
class ChangeRow:
    """When an alert changed.

    Attributes:
        at: When.
        rule: Its name.
        subject: What it watches.
        after: What it became.
        message: For people.
    """

    at: DisplayTime | None
    rule: str
    subject: str
    after: Badge
    message: str


@dataclass(frozen=True, slots=True)
class AwaitingRow:
    """An action that waits for somebody.

    Attributes:
        id: Of the action.
        action: What would be done.
        subject: To what.
        reason: For people.
        since: How long it waits.
    """

    id: str
    action: str
    subject: str
    reason: str
    since: DisplayTime | None


@dataclass(frozen=True, slots=True)
class RuleRow:
    """A rule of the project file.

    Attributes:
        name: Of the rule.
        condition: When it fires, in words.
        actions: What follows.
        severity: Of it.
    """

    name: str
    condition: str
    actions: str
    severity: str


def alert_rows(alerts: Sequence[Alert], now: float) -> tuple[AlertRow, ...]:
    """Return alerts, those that ring first."""
    order = list(_TONES)
    return tuple(
        AlertRow(
            one.rule,
            one.subject,
            make_badge(_TONES[one.state], one.state),
            one.message,
            display_time(one.since, now),
            display_time(one.silenced_until, now) if (one.silenced_until or 0.0) > now else None,
        )
        for one in sorted(alerts, key=lambda alert: (order.index(alert.state), alert.rule, alert.subject))
    )


def change_rows(changes: Sequence[AlertChange], now: float) -> tuple[ChangeRow, ...]:
    """Return changes in the order given."""
    return tuple(
        ChangeRow(
            display_time(one.at, now),
            one.rule,
            one.subject,
            make_badge(_TONES.get(one.after, "quiet"), one.after),
            one.message,
        )
        for one in changes
    )


def awaiting_rows(awaiting: Sequence[PendingAction], now: float) -> tuple[AwaitingRow, ...]:
    """Return actions that wait, in the order given."""
    return tuple(
        AwaitingRow(one.id, one.action, one.subject, one.reason, display_time(one.at, now)) for one in awaiting
    )


def rule_rows(rules: Sequence[AlertRule]) -> tuple[RuleRow, ...]:
    """Return the rules of the project file."""
    return tuple(
        RuleRow(rule.name, _condition(rule), ", ".join(rule.actions) or "nothing", rule.severity) for rule in rules
    )


def _condition(rule: AlertRule) -> str:
    side, limit = ("above", rule.above) if rule.above is not None else ("below", rule.below)
    where = f" on {rule.device_class}" if rule.device_class else ""
    lasting = f" for {duration(rule.for_seconds)}" if rule.for_seconds else ""
    return f"{rule.metric}{where} {side} {limit:g}{lasting}"
