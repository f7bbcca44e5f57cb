"""How devices are, from what they say by name: figures by class, version and arm, readings for rules. Pure.

=====================  =================================================================================
`failing`              share of the last hours' check-ins that told of failed inferences
`silent`               share of the devices that have not checked in for too long
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

from edgewright.contract.alert import HEALTH_METRICS, Reading
from edgewright.contract.api.device_status import Status
from edgewright.contract.timestamps import time_of

__all__ = ["STALE_S", "Alike", "By", "Evidence", "Figure", "Health", "Said", "Seen", "health", "readings"]

STALE_S = 86400.0
"""Age from which on what a device believes is stale."""

By = Literal["class", "version", "arm"]
"""Devices that are taken together: of a class, of a class and version, of a class and arm."""

_LEAST_DEVICES = 3
_TAIL = 0.05
# A release was tried and failed; `device/update/updater.py` knows them as final.
_WENT_BACK = ("self-test", "budget", "probation", "installer", "external data")
_WAITS = ("battery", "hours")


@dataclass(frozen=True, slots=True)
class Alike:
    """Devices that said the same.

    Attributes:
        device_class: Theirs.
        version: That they run.
        arm: That they were assigned.
        refusal: Code of what they refused last, "" for nothing.
        devices: How many.
        heard: How many of them checked in in time.
    """

    device_class: str
    version: str
    arm: str
    refusal: str
    devices: int
    heard: int


@dataclass(frozen=True, slots=True)
class Said:
    """Check-ins of a group, added up.

    Attributes:
        device_class: Of the group.
        version: Of the group.
        arm: Of the group.
        check_ins: How many.
        troubled: Those that told of failed inferences.
        latency_count: Those with a latency.
        latency_sum_s: Sum of their medians.
    """

    device_class: str
    version: str
    arm: str
    check_ins: int
    troubled: int
    latency_count: int
    latency_sum_s: float


@dataclass(frozen=True, slots=True)
class Seen:
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
    status: Status


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that health is read from.

    Attributes:
        alike: All devices.
        said: Check-ins of the last hours.
        seen: Sample of the devices that are not silent.
        snapshots: sha256 of all snapshots that the repository had; empty if they are not known.
        at_s: Unix time.
    """

    alike: Sequence[Alike]
    said: Sequence[Said]
    seen: Sequence[Seen]
    snapshots: Set[str]
    at_s: float


@dataclass(frozen=True, slots=True)
class Figure:
    """A value, or why there is none.

    Attributes:
        value: Of a metric; None if too few have said anything.
        why: What it is of.
    """

    value: float | None
    why: str


@dataclass(frozen=True, slots=True)
class Health:
    """How some devices are.

    Attributes:
        device_class: Theirs.
        name: Version or arm, "" for all of the class; devices without an arm have what they had.
        devices: How many.
        figures: By metric.
    """

    device_class: str
    name: str
    devices: int
    figures: dict[str, Figure]


def health(evidence: Evidence, by: By = "class", *, least: int = _LEAST_DEVICES) -> list[Health]:
    """Return how devices are, by class and perhaps version or arm, in order.

    Args:
        evidence: Of all of them.
        by: What is taken together.
        least: Devices that must have said something.

    Silent devices are counted with the version that they ran last.
    """

    def key(one: Alike | Said | Seen) -> tuple[str, str]:
        return one.device_class, {"class": "", "version": one.version, "arm": one.arm}[by]

    found = []
    for each in sorted({key(one) for one in evidence.alike}):
        alike = [one for one in evidence.alike if key(one) == each]
        said = [one for one in evidence.said if key(one) == each]
        seen = [one.status for one in evidence.seen if key(one) == each]
        figures = {
            **_of_all(alike, least),
            **_of_check_ins(said, sum(one.heard for one in alike), least),
            **_of_sample(seen, evidence, least),
        }
        found.append(
            Health(*each, sum(one.devices for one in alike), {name: figures[name] for name in HEALTH_METRICS})
        )
    return found


def readings(evidence: Evidence, *, least: int = _LEAST_DEVICES) -> list[Reading]:
    """Return the figures of each device class as readings for rules."""
    return [
        Reading(metric, each.device_class, figure.value, evidence.at_s, figure.why)
        for each in health(evidence, least=least)
        for metric, figure in each.figures.items()
    ]


def _of_all(alike: Sequence[Alike], least: int) -> dict[str, Figure]:
    devices, heard = sum(one.devices for one in alike), sum(one.heard for one in alike)
    back = sum(one.heard for one in alike if one.refusal in _WENT_BACK)
    refused = sum(one.heard for one in alike if one.refusal not in ("", *_WENT_BACK, *_WAITS))
    return {
        "silent": _share(devices - heard, devices, "devices", least),
        "rolled_back": _share(back, heard, "devices", least),
        "refused": _share(refused, heard, "devices", least),
    }


def _of_check_ins(said: Sequence[Said], heard: int, least: int) -> dict[str, Figure]:
    if heard < least:
        few = Figure(None, f"{heard} devices have checked in, {least} are needed")
        return {"failing": few, "latency_ms": few}
    measured = sum(one.latency_count for one in said)
    sum_s = math.fsum(one.latency_sum_s for one in said)
    latency = (
        Figure(1000 * sum_s / measured, f"{measured} check-ins") if measured else Figure(None, "none measured")
    )
    check_ins = sum(one.check_ins for one in said)
    return {
        "failing": _share(sum(one.troubled for one in said), check_ins, "check-ins", least),
        "latency_ms": latency,
    }


def _of_sample(seen: Sequence[Status], evidence: Evidence, least: int) -> dict[str, Figure]:
    free = sorted(one.free_bytes for one in seen if one.free_bytes is not None)
    checked = [time_of(one.checked).timestamp() for one in seen if one.checked]
    believed = [one.snapshot for one in seen if one.snapshot]
    strange = sum(one not in evidence.snapshots for one in believed)
    # One is enough: nothing that this repository signed is strange.
    known = bool(evidence.snapshots) and bool(believed)
    return {
        "free_bytes": Figure(float(free[math.floor(_TAIL * len(free))]), f"{len(free)} devices")
        if len(free) >= max(1, least)
        else Figure(None, f"{len(free)} devices told it, {least} are needed"),
        "stale": _share(sum(evidence.at_s - each > STALE_S for each in checked), len(checked), "devices", least),
        "strange_snapshots": Figure(float(strange), f"{len(believed)} devices")
        if known
        else Figure(None, f"{len(believed)} devices told one, {len(evidence.snapshots)} are known"),
    }


def _share(hits: int, count: int, what: str, least: int) -> Figure:
    if count < max(1, least):
        return Figure(None, f"{count} {what}, {least} are needed")
    return Figure(hits / count, f"{hits} of {count} {what}")
