"""The whole fleet on one page: who runs what, who is offline, what rings, and how it went over time."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgewright.contract.rollout.plan import RolloutPlan
from edgewright.server.store.records import Alert, CheckInRollup, DeviceGroupCount
from edgewright.server.web.view_models.alerts import AlertRow, alert_rows
from edgewright.server.web.view_models.formatting import Badge, DisplayTime, display_time, make_badge, percent_text
from edgewright.server.web.view_models.rollouts import RolloutRow, rollout_row

__all__ = ["ClassRow", "HourRow", "OverviewView", "VersionRow", "hour_rows", "overview_view"]

_STATES = {
    "waiting": "waits",
    "fetching": "fetches",
    "staged": "staged",
    "testing": "tests",
    "probation": "on probation",
}


@dataclass(frozen=True, slots=True)
class VersionRow:
    """Devices of one class with one version.

    Attributes:
        model: That they run, "" for none.
        version: That they run, "" for none.
        devices: How many.
        share: Of the class.
        width: The same for a drawing, 0 to 100.
        states: Of their updates, where it is not idle.
        refused: How many refuse something.
        href: Of their list.
    """

    model: str
    version: str
    devices: str
    share: str
    width: float
    states: str
    refused: int
    href: str


@dataclass(frozen=True, slots=True)
class ClassRow:
    """Devices of one class.

    Attributes:
        name: Of the class.
        devices: How many.
        offline: How many of them are.
        silence: In words.
        silent_href: Of their list.
        versions: The most first.
    """

    name: str
    devices: str
    offline: int
    silence: Badge
    silent_href: str
    versions: tuple[VersionRow, ...]


@dataclass(frozen=True, slots=True)
class HourRow:
    """What all devices said in an hour.

    Attributes:
        started_at: When it began.
        at: The same in words.
        check_ins: How many.
        refused: With a refusal.
        troubled: With failed inferences.
    """

    started_at: int
    at: DisplayTime | None
    check_ins: int
    refused: int
    troubled: int


@dataclass(frozen=True, slots=True)
class OverviewView:
    """The fleet.

    Attributes:
        devices: How many.
        offline: How many say nothing.
        silent_after: From when on that is said of them.
        firing: Alerts that ring.
        rollouts: That are under way.
        ended: How many are over.
        classes: By name.
        awaiting: What waits for signatures of offline keys, in words; "" for nothing.
    """

    devices: int
    offline: int
    silent_after: str
    firing: tuple[AlertRow, ...]
    rollouts: tuple[RolloutRow, ...]
    ended: int
    classes: tuple[ClassRow, ...]
    awaiting: str


def overview_view(
    groups: Sequence[DeviceGroupCount],
    recent_devices: Sequence[DeviceGroupCount],
    plans: Mapping[tuple[str, str], RolloutPlan],
    firing: Sequence[Alert],
    staged: Sequence[str],
    *,
    silent_after: str,
    now: float,
) -> OverviewView:
    """Return the fleet.

    Args:
        groups: Of all devices.
        recent_devices: Of those that are not offline.
        plans: By model and device class.
        firing: Alerts.
        staged: Roles that wait for signatures.
        silent_after: In words.
        now: Unix time.
    """
    spoke = Counter[str]()
    for group in recent_devices:
        spoke[group.device_class] += group.devices
    names = sorted({group.device_class for group in groups})
    classes = tuple(
        _class_row(name, [group for group in groups if group.device_class == name], spoke[name]) for name in names
    )
    live = [plan for plan in plans.values() if plan.state in ("running", "paused")]
    total = sum(group.devices for group in groups)
    return OverviewView(
        devices=total,
        offline=total - sum(spoke.values()),
        silent_after=silent_after,
        firing=alert_rows(firing, now),
        rollouts=tuple(rollout_row(plan, now) for plan in live),
        ended=len(plans) - len(live),
        classes=classes,
        awaiting=", ".join(staged),
    )


def hour_rows(hours: Sequence[CheckInRollup], started_at: float, now: float) -> tuple[HourRow, ...]:
    """Return what all devices said, hour by hour, with zeros where nobody said anything.

    Args:
        hours: Of groups, in any order.
        started_at: Of the first row.
        now: Unix time.
    """
    step = 3600
    sums = {at: [0, 0, 0] for at in range(int(started_at // step) * step, int(now) + 1, step)}
    for hour in hours:
        if hour.started_at in sums:
            for index, value in enumerate((hour.check_ins, hour.refused, hour.with_failures)):
                sums[hour.started_at][index] += value
    return tuple(HourRow(at, display_time(at, now), *values) for at, values in sums.items())


def _class_row(name: str, groups: Sequence[DeviceGroupCount], spoke: int) -> ClassRow:
    total = sum(group.devices for group in groups)
    offline = total - spoke
    by_version: dict[tuple[str, str], list[DeviceGroupCount]] = {}
    for group in groups:
        by_version.setdefault((group.model, group.version), []).append(group)
    rows = [_version_row(name, model, version, some, total) for (model, version), some in by_version.items()]
    rows.sort(key=lambda row: -row.width)
    silence = make_badge("warn", f"{offline:,} offline") if offline else make_badge("good", "none offline")
    return ClassRow(name, f"{total:,}", offline, silence, f"/devices?device_class={name}&offline=yes", tuple(rows))


def _version_row(name: str, model: str, version: str, groups: Sequence[DeviceGroupCount], total: int) -> VersionRow:
    devices = sum(group.devices for group in groups)
    states = Counter[str]()
    for group in groups:
        if group.state in _STATES:
            states[_STATES[group.state]] += group.devices
    return VersionRow(
        model=model,
        version=version,
        devices=f"{devices:,}",
        share=percent_text(devices / total),
        width=round(100 * devices / total, 2),
        states=", ".join(f"{number:,} {state}" for state, number in sorted(states.items())),
        refused=sum(group.devices for group in groups if group.refusal),
        href=f"/devices?device_class={name}&version={version or '-'}",
    )
