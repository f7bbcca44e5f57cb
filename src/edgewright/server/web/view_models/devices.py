"""Devices in a list, and one device with all that it said by name."""

from collections.abc import Sequence
from dataclasses import dataclass

from edgewright.contract.refusal import Refusal
from edgewright.contract.timestamps import time_of
from edgewright.server.store.records import Device
from edgewright.server.web.view_models.formatting import (
    Badge,
    Moment,
    badge,
    duration,
    labels,
    moment,
    percent,
    short,
    size,
    time,
)

__all__ = ["DeviceRow", "DeviceShown", "device_rows", "device_shown", "labels_of"]


@dataclass(frozen=True, slots=True)
class DeviceRow:
    """A device in a list.

    Attributes:
        id: Its name.
        short: The beginning of it.
        device_class: Its own.
        labels: By which rollouts select.
        runs: Model and version.
        state: Of its update.
        seen: When it checked in last.
        silent: Whether that is too long ago.
        refusal: What it refused last, "" for nothing.
        bench: Whether it takes profiling jobs.
    """

    id: str
    short: str
    device_class: str
    labels: str
    runs: str
    state: str
    seen: Moment | None
    silent: Badge
    refusal: str
    bench: bool


@dataclass(frozen=True, slots=True)
class DeviceShown:
    """A device.

    Attributes:
        row: As in a list.
        retired: Since when it is not believed, None if it is.
        refusal: What it refused last and why, None for nothing.
        notice: What serves though it would not be installed any more, None for nothing.
        facts: What else it said: name, value, what it means.
        failed: Digests of releases that failed on it.
        broken: Digests of releases whose bytes are broken on it.
        checked: When it believed the repository last.
        enrolled: When.
    """

    row: DeviceRow
    retired: Moment | None
    refusal: tuple[str, str] | None
    notice: tuple[str, str] | None
    facts: tuple[tuple[str, str, str], ...]
    failed: tuple[str, ...]
    broken: tuple[str, ...]
    checked: Moment | None
    enrolled: Moment | None


def device_rows(devices: Sequence[Device], *, silent_s: float, now_s: float) -> tuple[DeviceRow, ...]:
    """Return devices for a list.

    Args:
        devices: In order.
        silent_s: After which a device is silent.
        now_s: Unix time.
    """
    return tuple(_row(device, silent_s, now_s) for device in devices)


def device_shown(device: Device, *, silent_s: float, now_s: float) -> DeviceShown:
    """Return one device; see `device_rows`."""
    said = device.status
    facts = (
        ("version proven", said.proven or "none", "it goes back to this one"),
        ("version on trial", said.trial or "none", ""),
        ("version before", said.previous or "none", ""),
        ("version wanted", said.wanted or "none", "it is getting this one"),
        ("assigned", device.arm or "what it had", "its arm of the rollout"),
        ("manifest", said.digest or "none", "sha256 of what serves"),
        ("failed inferences", f"{said.failures:,}", "since the agent was started"),
        ("latency", time(said.latency_s), "median of an inference, measured there"),
        ("running for", "not said" if said.uptime_s is None else duration(said.uptime_s), ""),
        ("free on its disk", size(said.free_bytes), ""),
        ("battery", "on mains, or not said" if said.battery is None else percent(said.battery, 0), ""),
        ("waits for a restart", "yes" if said.restart_needed else "no", ""),
        ("agent", said.agent or "not said", ""),
        ("snapshot", said.snapshot or "none", "sha256 of what it acted on last"),
        ("channel", device.channel or "none", ""),
        ("public key", device.public.hex(), "Ed25519"),
    )
    return DeviceShown(
        row=_row(device, silent_s, now_s),
        retired=moment(device.retired_s, now_s),
        refusal=_refusal(said.refusal),
        notice=_refusal(said.notice),
        facts=facts,
        failed=said.failed,
        broken=said.broken,
        checked=moment(time_of(said.checked).timestamp(), now_s) if said.checked else None,
        enrolled=moment(device.enrolled_s, now_s),
    )


def labels_of(text: str) -> dict[str, str]:
    """Return labels as people type them; what has no value is left out.

    >>> labels_of("site=berlin, floor = 2,")
    {'site': 'berlin', 'floor': '2'}
    """
    pairs = (part.partition("=") for part in text.split(","))
    return {name.strip(): value.strip() for name, equals, value in pairs if equals and name.strip()}


def _row(device: Device, silent_s: float, now_s: float) -> DeviceRow:
    said = device.status
    if device.retired_s is not None:
        silent = badge("quiet", "retired")
    elif not device.seen_s:
        silent = badge("warn", "never heard")
    elif device.seen_s < now_s - silent_s:
        silent = badge("warn", "silent")
    else:
        silent = badge("good", "heard")
    return DeviceRow(
        id=device.id,
        short=short(device.id),
        device_class=device.device_class,
        labels=labels(device.labels),
        runs=f"{said.model} {said.version}".strip() or "nothing",
        state=said.state,
        seen=moment(device.seen_s, now_s),
        silent=silent,
        refusal="" if said.refusal is None else said.refusal.code,
        bench=device.bench,
    )


def _refusal(said: Refusal | None) -> tuple[str, str] | None:
    return None if said is None else (said.code + (f", {said.file}" if said.file else ""), said.reason)
