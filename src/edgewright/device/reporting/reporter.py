"""What a device tells the control plane: how it is by name, and how it fares in the rollout that it believes.

Updates need none of it. Whatever goes wrong here is a note for the device's owner, and is tried again.
"""

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from edgewright import __version__
from edgewright.contract.api.device_api import CheckInRequest, CheckInResponse
from edgewright.contract.api.device_status import DeviceStatus
from edgewright.contract.errors import EdgewrightError
from edgewright.contract.refusal import Refusal
from edgewright.contract.rollout.plan import RolloutPlan, RolloutPolicy
from edgewright.contract.timestamps import parse_iso8601
from edgewright.device.control_plane_client import ControlPlaneClient
from edgewright.device.encryption_keys import IDENTITY_KEY_FILE
from edgewright.device.enrolment import DeviceSettings
from edgewright.device.filesystem import FileSystem
from edgewright.device.inference.predictor import LoadedRelease
from edgewright.device.reporting.crash_marker import CrashMarker
from edgewright.device.reporting.stage_outcomes import (
    StageReportFile,
    add_failures,
    failed_metrics,
    stage_outcome,
    update_report,
    worsened_outcomes,
)
from edgewright.device.update.selection import DeviceContext
from edgewright.device.update.updater import Updater
from edgewright.trust.client.fetcher import open_pool
from edgewright.trust.keys.device_identity import load_or_create_device_key

__all__ = ["Reporter", "ServerContact", "device_status"]

_CONTACT_FILE = "server.json"
# Longest wait for the server, seconds.
_TIMEOUT_SECONDS = 20.0
_MAX_REASON_LENGTH, _MAX_FAILED_RELEASES, _MAX_COUNT = 500, 32, 1 << 53


class ServerContact(msgspec.Struct, frozen=True):
    """How it stands with the control plane.

    Attributes:
        last_success_at: When it took what this device told last, UTC, ISO 8601; "" for never.
        last_error: Why it did not since then, "" for nothing.
    """

    last_success_at: str = ""
    last_error: str = ""


@dataclass(slots=True)
class Reporter:
    """What tells the control plane of this device.

    Attributes:
        state_folder: Of the device.
        settings: Of the device.
        files: The disk.
        updater: That it tells of.
        stage_reports: How the device fares in its rollout.
        contact: How it stands with the control plane.
    """

    state_folder: Path
    settings: DeviceSettings
    files: FileSystem
    updater: Updater
    stage_reports: StageReportFile = field(init=False)
    contact: ServerContact = field(init=False)
    _crash_marker: CrashMarker = field(init=False)
    _client: ControlPlaneClient | None = field(init=False, default=None)
    _failure_baseline: tuple[LoadedRelease, int, int] | None = field(init=False, default=None)
    _check_in_lock: threading.Lock = field(init=False, default_factory=threading.Lock)

    def __post_init__(self) -> None:
        """Read what the disk holds; what is damaged there is forgotten."""
        self.stage_reports = StageReportFile(self.state_folder, self.files)
        self._crash_marker = CrashMarker(self.state_folder, self.files)
        try:
            self.contact = msgspec.json.decode(
                self.files.read(self.state_folder / _CONTACT_FILE), type=ServerContact
            )
        except (OSError, msgspec.MsgspecError):
            self.contact = ServerContact()

    def start(self) -> None:
        """Find out how the process before ended, and leave a mark of this one."""
        crashed = self._crash_marker.set()
        if crashed and self.updater.journal_record.slots.all_releases:
            self._record_failures({"crash"})

    def stop(self) -> None:
        """Remove the mark: this process ends as it should."""
        self._crash_marker.clear()

    def observe_plan(self, plan: RolloutPlan | None, policy: RolloutPolicy, context: DeviceContext) -> None:
        """Remember what is rolled out."""
        before, engine = self.stage_reports.report, self.updater.predictor.current
        fate = self.stage_reports.report = update_report(
            before, plan, policy, context, self.updater.outcomes.snapshot()
        )
        is_new = fate is not None and (before is None or fate.baseline_counts is not before.baseline_counts)
        if is_new and engine is not None:  # what failed until now has nothing to do with it
            self._failure_baseline = (engine, engine.failures.total, engine.served.total)
        self._record_failures(set())

    def evaluate_stage(self) -> None:
        """Remember what has failed in the rollout that this device believes."""
        fate, engine = self.stage_reports.report, self.updater.predictor.current
        if fate is None or not fate.active:
            return
        found = failed_metrics(fate, self.updater.journal_record) | worsened_outcomes(
            fate, self.updater.outcomes.snapshot()
        )
        if "crash" not in fate.failed_metrics and engine is not None:
            base = (
                self._failure_baseline
                if self._failure_baseline is not None and self._failure_baseline[0] is engine
                else (engine, 0, 0)
            )
            failures, served = engine.failures.total - base[1], engine.served.total - base[2]
            if self.updater.is_release_at_fault(engine.release, failures, served):
                found.add("crash")
        self._record_failures(found)

    def _record_failures(self, metrics: set[str]) -> None:
        fates = self.stage_reports
        if fates.report is not None and fates.report.active:
            fates.report = add_failures(fates.report, metrics)
        with suppress(OSError):  # then it is tried again with the next check
            fates.write()

    def check_in(self, read_status: Callable[[], Mapping[str, Any]]) -> CheckInResponse | None:
        """Check in once, and return what the control plane said; None if something went wrong, which is noted.

        Args:
            read_status: `Agent.status`.
        """
        with self._check_in_lock:
            try:
                said = self._open_client().check_in(self._request(read_status()))
            except Exception as error:  # whatever a server does, the model serves on
                self.record_error(error)
                return None
            self._store_contact(ServerContact(self.updater.clock().isoformat()))
            return said

    def record_error(self, error: Exception) -> None:
        """Remember what went wrong, for the device's owner."""
        why = error.message if isinstance(error, EdgewrightError) else f"{type(error).__name__}: {error}"
        self._store_contact(msgspec.structs.replace(self.contact, last_error=why[:_MAX_REASON_LENGTH]))

    def contact_status(self) -> dict[str, str | None]:
        """Return how it stands with the control plane, by name."""
        contact = self.contact
        return {
            "url": self.settings.server_url,
            "last_success_at": contact.last_success_at or None,
            "last_error": contact.last_error or None,
        }

    def _store_contact(self, contact: ServerContact) -> None:
        self.contact = contact
        with suppress(OSError):
            self.files.write(self.state_folder / _CONTACT_FILE, msgspec.json.encode(contact))

    def _request(self, agent_status: Mapping[str, Any]) -> CheckInRequest:
        fate, engine = self.stage_reports.report, self.updater.predictor.current
        monitor = None if engine is None else engine.monitor
        latency_seconds = None
        if fate is not None and monitor is not None:
            latency_seconds = monitor.median_latency_seconds(
                parse_iso8601(fate.stage_seen_at[fate.stage]).timestamp()
            )
        return CheckInRequest(
            device_status(agent_status), stage_outcome(fate, self.updater.believed_time(), latency_seconds)
        )

    def _open_client(self) -> ControlPlaneClient:
        if self._client is None:
            key = load_or_create_device_key(self.state_folder / IDENTITY_KEY_FILE)
            pool = open_pool(_TIMEOUT_SECONDS)
            self._client = ControlPlaneClient(
                self.settings.server_url, self.settings.audience, key, pool, self.updater.clock
            )
        return self._client


def device_status(agent_status: Mapping[str, Any]) -> DeviceStatus:
    """Return what a device says of itself in the form that the control plane takes, cut to its limits.

    Args:
        agent_status: By `Agent.status`.
    """
    free = agent_status["free_bytes"]
    charge = agent_status["battery_level"]
    return DeviceStatus(
        model=agent_status["model"] or "",
        version=agent_status["version"] or "",
        digest=agent_status["digest"] or "",
        state=agent_status["state"],
        proven=agent_status["proven"] or "",
        trial=agent_status["trial"] or "",
        previous=agent_status["previous"] or "",
        target=agent_status["target"] or "",
        refusal=_truncate_refusal(agent_status["last_refusal"]),
        notice=_truncate_refusal(agent_status["notice"]),
        failed_releases=tuple(agent_status["failed_releases"])[-_MAX_FAILED_RELEASES:],
        corrupt_releases=tuple(agent_status["corrupt_releases"])[-_MAX_FAILED_RELEASES:],
        restart_needed=agent_status["restart_needed"],
        failed_inferences=min(agent_status["failed_inferences"], _MAX_COUNT),
        latency_seconds=agent_status["latency_seconds"],
        uptime_seconds=agent_status["uptime_seconds"],
        free_bytes=None if free is None else min(free, _MAX_COUNT),
        battery_level=None if charge is None else min(1.0, max(0.0, charge)),
        agent_version=__version__,
        snapshot_digest=agent_status["snapshot_digest"] or "",
        metadata_checked_at=agent_status["metadata_checked_at"] or "",
    )


def _truncate_refusal(refusal: Refusal | None) -> Refusal | None:
    if refusal is None:
        return None
    file = refusal.file[: _MAX_REASON_LENGTH // 2]
    return Refusal(refusal.code, file, refusal.reason[: _MAX_REASON_LENGTH - len(file)])
