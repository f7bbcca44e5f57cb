"""How devices are, from what they say by name: figures by class, version and arm, readings for rules. Pure.

=====================  =================================================================================
`failing`              share of the last hours' check-ins that told of failed inferences
`offline`               share of the devices that have not checked in for too long
`rolled_back`          share of the others whose last word is that a release failed on them and that they
                       went back, or kept what they had
`refused`              share of those whose last word is another refusal, but for waiting for battery or hours
`latency_ms`           mean over the last hours' check-ins of the device's own median
`free_bytes`           a twentieth of the devices looked at have less
`stale`                share of the devices looked at that check in and have believed nothing from the
                       repository for a day
`strange_snapshots`    how many of the devices looked at believe a snapshot that this repository never had
=====================  =================================================================================

The last three are of a sample of devices, another one each time; the others of all. There are no percentiles of
latency: devices tell their medians, and only sums of these are kept.
"""

import math
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Literal

from edgewright.contract.alert import HEALTH_METRICS, MetricReading
from edgewright.contract.api.device_status import DeviceStatus
from edgewright.contract.timestamps import parse_iso8601

__all__ = [
    "STALE_SECONDS",
    "CheckInTotals",
    "DeviceGroup",
    "GroupBy",
    "GroupHealth",
    "HealthEvidence",
    "HealthFigure",
    "SampledDevice",
    "group_health",
    "health_readings",
]

STALE_SECONDS = 86400.0
"""Age from which on what a device believes is stale."""

GroupBy = Literal["class", "version", "arm"]
"""Devices that are taken together: of a class, of a class and version, of a class and arm."""

_MIN_DEVICES = 3
_TAIL = 0.05
# A release was tried and failed; `device/update/updater.py` knows them as final.
_ROLLBACK_CODES = ("self-test", "budget", "probation", "installer", "external data")
_WAITING_CODES = ("battery", "hours")


@dataclass(frozen=True, slots=True)
class DeviceGroup:
    """Devices that said the same.

    Attributes:
        device_class: Theirs.
        version: That they run.
        arm: That they were assigned.
        refusal: Code of what they refused last, "" for nothing.
        devices: How many.
        recently_seen: How many of them checked in in time.
    """

    device_class: str
    version: str
    arm: str
    refusal: str
    devices: int
    recently_seen: int


@dataclass(frozen=True, slots=True)
class CheckInTotals:
    """Check-ins of a group, added up.

    Attributes:
        device_class: Of the group.
        version: Of the group.
        arm: Of the group.
        check_ins: How many.
        with_failures: Those that told of failed inferences.
        latency_count: Those with a latency.
        latency_sum_seconds: Sum of their medians.
    """

    device_class: str
    version: str
    arm: str
    check_ins: int
    with_failures: int
    latency_count: int
    latency_sum_seconds: float


@dataclass(frozen=True, slots=True)
class SampledDevice:
    """One device that was looked at.

    Attributes:
        device_class: Its own.
        version: That it runs.
        arm: That it was assigned.
        status: What it said last, in time.
    """

    device_class: str
    version: str
    arm: str
    status: DeviceStatus


@dataclass(frozen=True, slots=True)
class HealthEvidence:
    """All that health is read from.

    Attributes:
        groups: All devices.
        check_ins: Check-ins of the last hours.
        sample: Sample of the devices that are not offline.
        snapshots: sha256 of all snapshots that the repository had; empty if they are not known.
        at: Unix time.
    """

    groups: Sequence[DeviceGroup]
    check_ins: Sequence[CheckInTotals]
    sample: Sequence[SampledDevice]
    snapshots: Set[str]
    at: float


@dataclass(frozen=True, slots=True)
class HealthFigure:
    """A value, or why there is none.

    Attributes:
        value: Of a metric; None if too few have said anything.
        reason: What it is of.
    """

    value: float | None
    reason: str


@dataclass(frozen=True, slots=True)
class GroupHealth:
    """How some devices are.

    Attributes:
        device_class: Theirs.
        name: Version or arm, "" for all of the class; devices without an arm have what they had.
        devices: How many.
        values: By metric.
    """

    device_class: str
    name: str
    devices: int
    values: dict[str, HealthFigure]


def group_health(
    evidence: HealthEvidence, by: GroupBy = "class", *, min_devices: int = _MIN_DEVICES
) -> list[GroupHealth]:
    """Return how devices are, by class and perhaps version or arm, in order.

    Args:
        evidence: Of all of them.
        by: What is taken together.
        min_devices: Devices that must have said something.

    Silent devices are counted with the version that they ran last.
    """

    def key(one: DeviceGroup | CheckInTotals | SampledDevice) -> tuple[str, str]:
        return one.device_class, {"class": "", "version": one.version, "arm": one.arm}[by]

    found = []
    for each in sorted({key(one) for one in evidence.groups}):
        alike = [one for one in evidence.groups if key(one) == each]
        said = [one for one in evidence.check_ins if key(one) == each]
        seen = [one.status for one in evidence.sample if key(one) == each]
        figures = {
            **_of_all(alike, min_devices),
            **_of_check_ins(said, sum(one.recently_seen for one in alike), min_devices),
            **_of_sample(seen, evidence, min_devices),
        }
        found.append(
            GroupHealth(*each, sum(one.devices for one in alike), {name: figures[name] for name in HEALTH_METRICS})
        )
    return found


def health_readings(evidence: HealthEvidence, *, min_devices: int = _MIN_DEVICES) -> list[MetricReading]:
    """Return the figures of each device class as readings for rules."""
    return [
        MetricReading(metric, each.device_class, figure.value, evidence.at, figure.reason)
        for each in group_health(evidence, min_devices=min_devices)
        for metric, figure in each.values.items()
    ]


def _of_all(alike: Sequence[DeviceGroup], min_devices: int) -> dict[str, HealthFigure]:
    devices, heard = sum(one.devices for one in alike), sum(one.recently_seen for one in alike)
    back = sum(one.recently_seen for one in alike if one.refusal in _ROLLBACK_CODES)
    refused = sum(one.recently_seen for one in alike if one.refusal not in ("", *_ROLLBACK_CODES, *_WAITING_CODES))
    return {
        "offline": _share(devices - heard, devices, "devices", min_devices),
        "rolled_back": _share(back, heard, "devices", min_devices),
        "refused": _share(refused, heard, "devices", min_devices),
    }


def _of_check_ins(
    reported: Sequence[CheckInTotals], recent_devices: int, min_devices: int
) -> dict[str, HealthFigure]:
    if recent_devices < min_devices:
        few = HealthFigure(None, f"{recent_devices} devices have checked in, {min_devices} are needed")
        return {"failing": few, "latency_ms": few}
    measured = sum(one.latency_count for one in reported)
    sum_seconds = math.fsum(one.latency_sum_seconds for one in reported)
    latency = (
        HealthFigure(1000 * sum_seconds / measured, f"{measured} check-ins")
        if measured
        else HealthFigure(None, "none measured")
    )
    check_ins = sum(one.check_ins for one in reported)
    return {
        "failing": _share(sum(one.with_failures for one in reported), check_ins, "check-ins", min_devices),
        "latency_ms": latency,
    }


def _of_sample(seen: Sequence[DeviceStatus], evidence: HealthEvidence, min_devices: int) -> dict[str, HealthFigure]:
    free = sorted(one.free_bytes for one in seen if one.free_bytes is not None)
    checked = [parse_iso8601(one.metadata_checked_at).timestamp() for one in seen if one.metadata_checked_at]
    believed = [one.snapshot_digest for one in seen if one.snapshot_digest]
    strange = sum(one not in evidence.snapshots for one in believed)
    # One is enough: nothing that this repository signed is strange.
    known = bool(evidence.snapshots) and bool(believed)
    return {
        "free_bytes": HealthFigure(float(free[math.floor(_TAIL * len(free))]), f"{len(free)} devices")
        if len(free) >= max(1, min_devices)
        else HealthFigure(None, f"{len(free)} devices told it, {min_devices} are needed"),
        "stale": _share(
            sum(evidence.at - each > STALE_SECONDS for each in checked), len(checked), "devices", min_devices
        ),
        "strange_snapshots": HealthFigure(float(strange), f"{len(believed)} devices")
        if known
        else HealthFigure(None, f"{len(believed)} devices told one, {len(evidence.snapshots)} are known"),
    }


def _share(hits: int, count: int, what: str, min_devices: int) -> HealthFigure:
    if count < max(1, min_devices):
        return HealthFigure(None, f"{count} {what}, {min_devices} are needed")
    return HealthFigure(hits / count, f"{hits} of {count} {what}")
