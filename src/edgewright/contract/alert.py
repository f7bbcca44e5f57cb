"""Alert rules of the project file, readings that they judge, and what may follow by itself."""

import math
from typing import Literal

import msgspec

from edgewright.contract.errors import InputError
from edgewright.contract.names import checked_name

__all__ = [
    "HEALTH_METRICS",
    "SUM_FAMILIES",
    "SUM_METRICS",
    "ActionPolicy",
    "AlertAction",
    "AlertRule",
    "AlertRuleState",
    "AlertSilence",
    "MetricReading",
    "RuleState",
    "Severity",
]

Severity = Literal["info", "warning", "critical"]
AlertRuleState = Literal["ok", "pending", "firing"]
AlertAction = Literal["notify", "pause", "roll back", "ask", "retrain"]

HEALTH_METRICS = (
    "failing",
    "offline",
    "rolled_back",
    "refused",
    "latency_ms",
    "free_bytes",
    "stale",
    "strange_snapshots",
)
"""What devices say by name; `fleet/health.py` says what each is."""

SUM_METRICS = ("confidence", "rejected", "out_of_distribution")
SUM_FAMILIES = ("drift", "power", "outcome")
"""What private sums say; `fleet/cohort_drift.py` says what each is. A family has a name after a dot."""


class AlertRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When people are told, and what is done.

    Attributes:
        name: Of the rule.
        metric: One of `HEALTH_METRICS`; or of a private sum `confidence`, `rejected`, `unusual`, `drift.SIGNAL`,
            `power.SIGNAL`, `outcome.NAME`.
        above: It fires above this; None if it does not.
        below: It fires below this; None if it does not.
        clear_at: It ends at this value at the earliest, None for the same; beyond, so that it does not flutter.
        for_seconds: How long the value must be there before it fires, and away before it ends.
        device_class: That it is about, "" for each.
        severity: For people.
        actions: What follows when it fires.
    """

    name: str
    metric: str
    above: float | None = None
    below: float | None = None
    clear_at: float | None = None
    for_seconds: float = 0.0
    device_class: str = ""
    severity: Severity = "warning"
    actions: tuple[AlertAction, ...] = ("notify",)

    def __post_init__(self) -> None:
        """Refuse a rule that never fires, always fires, or flutters by design."""
        checked_name("alert", self.name)
        if self.device_class:
            checked_name("device class", self.device_class)
        family, _, name = self.metric.partition(".")
        if self.metric not in (*HEALTH_METRICS, *SUM_METRICS) and not (family in SUM_FAMILIES and name):
            raise InputError(
                f"alert {self.name}: there is no metric {self.metric!r}",
                remedy=f"Use {', '.join((*HEALTH_METRICS, *SUM_METRICS))}, or {', '.join(SUM_FAMILIES)} with a "
                "name after a dot.",
            )
        limits = [limit for limit in (self.above, self.below) if limit is not None]
        if len(limits) != 1 or not all(math.isfinite(limit) for limit in (*limits, self.clear_at or 0.0)):
            raise InputError(
                f"alert {self.name} has above {self.above} and below {self.below}",
                remedy="Give exactly one of them, a finite number.",
            )
        fluttering = self.clear_at is not None and (
            (self.above is not None and self.clear_at > self.above)
            or (self.below is not None and self.clear_at < self.below)
        )
        if fluttering or not 0 <= self.for_seconds < math.inf:
            raise InputError(
                f"alert {self.name} ends at {self.clear_at} and waits {self.for_seconds} s",
                remedy="It ends on the quiet side of its limit, and waits 0 s or more.",
            )


class MetricReading(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A value of a metric.

    Attributes:
        metric: Which.
        device_class: Of which devices.
        value: None if too few devices have said anything to tell.
        at: Unix time.
        reason: Where it comes from, or why there is none.
    """

    metric: str
    device_class: str
    value: float | None
    at: float
    reason: str = ""


class RuleState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a rule stands for one device class.

    Attributes:
        rule: Its name.
        device_class: Of which devices.
        state: Of the rule.
        since: When this state began.
        crossed_at: When the value last came to the other side of the limit; the same as `since` while it stays.
        value: Last one.
        at: Of the last value.
    """

    rule: str
    device_class: str
    state: AlertRuleState
    since: float
    crossed_at: float
    value: float | None = None
    at: float = 0.0


class AlertSilence(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A rule that people are not told about for a time; it is judged all the same.

    Attributes:
        rule: Its name.
        until: Unix time.
        created_by: Who.
        reason: For whoever looks later.
        device_class: Of which devices, "" for all.
    """

    rule: str
    until: float
    created_by: str
    reason: str
    device_class: str = ""


class ActionPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What may be done without asking anybody. Automation ends where offline keys would have to sign.

    Attributes:
        action: Which.
        cooldown_seconds: Least time between two of them.
        max_per_day: Most of them in any 24 hours.
        needs_approval: Whether a person must agree to each.
    """

    action: AlertAction
    cooldown_seconds: float = 3600.0
    max_per_day: int = 4
    needs_approval: bool = False

    def __post_init__(self) -> None:
        """Refuse what is no limit."""
        if not 0 <= self.cooldown_seconds < math.inf or self.max_per_day < 0:
            raise InputError(
                f"action {self.action!r}: cooldown {self.cooldown_seconds} s, {self.max_per_day} a day",
                remedy="A cooldown is 0 or more, a cap 0 or more.",
            )
