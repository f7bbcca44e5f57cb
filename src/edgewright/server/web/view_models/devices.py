"""Devices in a list, and one device with all that it said by name."""

from collections.abc import Sequence
from dataclasses import dataclass

from edgewright.contract.refusal import Refusal
from edgewright.contract.timestamps import parse_iso8601
from edgewright.server.store.records import StoredDevice
from edgewright.server.web.view_models.formatting import (
    Badge,
    DisplayTime,
    display_time,
    duration,
    labels_text,
    latency_text,
    make_badge,
    percent_text,
    short_digest,
    size_text,
)

__all__ = ["DeviceRow", "DeviceView", "device_rows", "device_view", "labels_of"]


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
        offline: Whether that is too long ago.
        refusal: What it refused last, "" for nothing.
        profiling: Whether it takes profiling jobs.
    """

    id: str
    short: str
    device_class: str
    labels: str
    runs: str
    state: str
    seen: DisplayTime | None
    offline: Badge
    refusal: str
    profiling: bool


@dataclass(frozen=True, slots=True)
class DeviceView:
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
    retired: DisplayTime | None
    refusal: tuple[str, str] | None
    notice: tuple[str, str] | None
    facts: tuple[tuple[str, str, str], ...]
    failed: tuple[str, ...]
    broken: tuple[str, ...]
    checked: DisplayTime | None
    enrolled: DisplayTime | None


def device_rows(devices: Sequence[StoredDevice], *, offline_seconds: float, now: float) -> tuple[DeviceRow, ...]:
    """Return devices for a list.

    Args:
        devices: In order.
        offline_seconds: After which a device is offline.
        now: Unix time.
    """
    return tuple(_row(device, offline_seconds, now) for device in devices)


def device_view(device: StoredDevice, *, offline_seconds: float, now: float) -> DeviceView:
    """Return one device; see `device_rows`."""
    said = device.status
    facts = (
        ("version proven", said.proven or "none", "it goes back to this one"),
        ("version on trial", said.trial or "none", ""),
        ("version before", said.previous or "none", ""),
        ("version wanted", said.target or "none", "it is getting this one"),
        ("assigned", device.arm or "what it had", "its arm of the rollout"),
        ("manifest", said.digest or "none", "sha256 of what serves"),
        ("failed inferences", f"{said.failed_inferences:,}", "since the agent was started"),
        ("latency", latency_text(said.latency_seconds), "median of an inference, measured there"),
        ("running for", "not said" if said.uptime_seconds is None else duration(said.uptime_seconds), ""),
        ("free on its disk", size_text(said.free_bytes), ""),
        (
            "battery",
            "on mains, or not said" if said.battery_level is None else percent_text(said.battery_level, 0),
            "",
        ),
        ("waits for a restart", "yes" if said.restart_needed else "no", ""),
        ("agent", said.agent_version or "not said", ""),
        ("snapshot", said.snapshot_digest or "none", "sha256 of what it acted on last"),
        ("channel", device.channel or "none", ""),
        ("public key", device.public_key.hex(), "Ed25519"),
    )
    return DeviceView(
        row=_row(device, offline_seconds, now),
        retired=display_time(device.retired_at, now),
        refusal=_refusal(said.refusal),
        notice=_refusal(said.notice),
        facts=facts,
        failed=said.failed_releases,
        broken=said.corrupt_releases,
        checked=display_time(parse_iso8601(said.metadata_checked_at).timestamp(), now)
        if said.metadata_checked_at
        else None,
        enrolled=display_time(device.enrolled_at, now),
    )


def labels_of(text: str) -> dict[str, str]:
    """Return labels as people type them; what has no value is left out.

    >>> labels_of("site=berlin, floor = 2,")
    {'site': 'berlin', 'floor': '2'}
    """
    pairs = (part.partition("=") for part in text.split(","))
    return {name.strip(): value.strip() for name, equals, value in pairs if equals and name.strip()}


def _row(device: StoredDevice, offline_seconds: float, now: float) -> DeviceRow:
    said = device.status
    if device.retired_at is not None:
        offline = make_badge("quiet", "retired")
    elif not device.last_seen_at:
        offline = make_badge("warn", "never heard")
    elif device.last_seen_at < now - offline_seconds:
        offline = make_badge("warn", "offline")
    else:
        offline = make_badge("good", "heard")
    return DeviceRow(
        id=device.id,
        short=short_digest(device.id),
        device_class=device.device_class,
        labels=labels_text(device.labels),
        runs=f"{said.model} {said.version}".strip() or "nothing",
        state=said.state,
        seen=display_time(device.last_seen_at, now),
        offline=offline,
        refusal="" if said.refusal is None else said.refusal.code,
        profiling=device.profiling,
    )


def _refusal(reported: Refusal | None) -> tuple[str, str] | None:
    return (
        None
        if reported is None
        else (reported.code + (f", {reported.file}" if reported.file else ""), reported.reason)
    )
