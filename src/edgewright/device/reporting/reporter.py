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
from edgewright.contract.api.device_api import CheckedIn, CheckingIn
from edgewright.contract.api.device_status import Status
from edgewright.contract.errors import EdgewrightError
from edgewright.contract.refusal import Refusal
from edgewright.contract.rollout.plan import Plan, Policy
from edgewright.contract.timestamps import time_of
from edgewright.device.control_plane_client import Door
from edgewright.device.encryption_keys import IDENTITY
from edgewright.device.enrolment import Settings
from edgewright.device.filesystem import Files
from edgewright.device.inference.predictor import Engine
from edgewright.device.reporting.crash_marker import Presence
from edgewright.device.reporting.stage_outcomes import Fates, fail, metrics_of, outcome_of, see, worse
from edgewright.device.update.selection import Situation
from edgewright.device.update.updater import Update
from edgewright.trust.client.fetcher import open_pool
from edgewright.trust.keys.device_identity import new_device_key

__all__ = ["Contact", "Report", "status_of"]

_FILE = "server.json"
# Longest wait for the server, seconds.
_PATIENCE_S = 20.0
_LONGEST_REASON, _MOST_FAILED, _MOST_COUNT = 500, 32, 1 << 53


class Contact(msgspec.Struct, frozen=True):
    """How it stands with the control plane.

    Attributes:
        reached: When it took what this device told last, UTC, ISO 8601; "" for never.
        trouble: Why it did not since then, "" for nothing.
    """

    reached: str = ""
    trouble: str = ""


@dataclass(slots=True)
class Report:
    """What tells the control plane of this device.

    Attributes:
        state: Of the device.
        settings: Of the device.
        files: The disk.
        update: That it tells of.
        fates: How the device fares in its rollout.
        contact: How it stands with the control plane.
    """

    state: Path
    settings: Settings
    files: Files
    update: Update
    fates: Fates = field(init=False)
    contact: Contact = field(init=False)
    _presence: Presence = field(init=False)
    _door: Door | None = field(init=False, default=None)
    _base: tuple[Engine, int, int] | None = field(init=False, default=None)
    _telling: threading.Lock = field(init=False, default_factory=threading.Lock)

    def __post_init__(self) -> None:
        """Read what the disk holds; what is damaged there is forgotten."""
        self.fates = Fates(self.state, self.files)
        self._presence = Presence(self.state, self.files)
        try:
            self.contact = msgspec.json.decode(self.files.read(self.state / _FILE), type=Contact)
        except (OSError, msgspec.MsgspecError):
            self.contact = Contact()

    def begin(self) -> None:
        """Find out how the process before ended, and leave a mark of this one."""
        crashed = self._presence.begin()
        if crashed and self.update.record.slots.held:
            self._fail({"crash"})

    def end(self) -> None:
        """Remove the mark: this process ends as it should."""
        self._presence.end()

    def saw(self, plan: Plan | None, policy: Policy, situation: Situation) -> None:
        """Remember what is rolled out."""
        before, engine = self.fates.fate, self.update.predictor.engine
        fate = self.fates.fate = see(before, plan, policy, situation, self.update.outcomes.copied())
        is_new = fate is not None and (before is None or fate.before is not before.before)
        if is_new and engine is not None:  # what failed until now has nothing to do with it
            self._base = (engine, engine.failures.total, engine.served.total)
        self._fail(set())

    def judge(self) -> None:
        """Remember what has failed in the rollout that this device believes."""
        fate, engine = self.fates.fate, self.update.predictor.engine
        if fate is None or not fate.live:
            return
        found = metrics_of(fate, self.update.record) | worse(fate, self.update.outcomes.copied())
        if "crash" not in fate.failed and engine is not None:
            base = self._base if self._base is not None and self._base[0] is engine else (engine, 0, 0)
            failures, served = engine.failures.total - base[1], engine.served.total - base[2]
            if self.update.at_fault(engine.release, failures, served):
                found.add("crash")
        self._fail(found)

    def _fail(self, metrics: set[str]) -> None:
        fates = self.fates
        if fates.fate is not None and fates.fate.live:
            fates.fate = fail(fates.fate, metrics)
        with suppress(OSError):  # then it is tried again with the next check
            fates.write()

    def tell(self, told: Callable[[], Mapping[str, Any]]) -> CheckedIn | None:
        """Check in once, and return what the control plane said; None if something went wrong, which is noted.

        Args:
            told: `Agent.status`.
        """
        with self._telling:
            try:
                said = self._known_door().check_in(self._said(told()))
            except Exception as error:  # whatever a server does, the model serves on
                self.note(error)
                return None
            self._keep(Contact(self.update.now().isoformat()))
            return said

    def note(self, error: Exception) -> None:
        """Remember what went wrong, for the device's owner."""
        why = error.message if isinstance(error, EdgewrightError) else f"{type(error).__name__}: {error}"
        self._keep(msgspec.structs.replace(self.contact, trouble=why[:_LONGEST_REASON]))

    def contacted(self) -> dict[str, str | None]:
        """Return how it stands with the control plane, by name."""
        contact = self.contact
        return {
            "url": self.settings.server,
            "reached": contact.reached or None,
            "trouble": contact.trouble or None,
        }

    def _keep(self, contact: Contact) -> None:
        self.contact = contact
        with suppress(OSError):
            self.files.write(self.state / _FILE, msgspec.json.encode(contact))

    def _said(self, told: Mapping[str, Any]) -> CheckingIn:
        fate, engine = self.fates.fate, self.update.predictor.engine
        monitor = None if engine is None else engine.monitor
        latency_s = None
        if fate is not None and monitor is not None:
            latency_s = monitor.latency_s(time_of(fate.seen[fate.stage]).timestamp())
        return CheckingIn(status_of(told), outcome_of(fate, self.update.moment(), latency_s))

    def _known_door(self) -> Door:
        if self._door is None:
            key = new_device_key(self.state / IDENTITY)
            pool = open_pool(_PATIENCE_S)
            self._door = Door(self.settings.server, self.settings.audience, key, pool, self.update.now)
        return self._door


def status_of(told: Mapping[str, Any]) -> Status:
    """Return what a device says of itself in the form that the control plane takes, cut to its limits.

    Args:
        told: By `Agent.status`.
    """
    free = told["free_bytes"]
    charge = told["battery"]
    return Status(
        model=told["model"] or "",
        version=told["version"] or "",
        digest=told["digest"] or "",
        state=told["state"],
        proven=told["proven"] or "",
        trial=told["trial"] or "",
        previous=told["previous"] or "",
        wanted=told["wanted"] or "",
        refusal=_cut(told["last_refusal"]),
        notice=_cut(told["notice"]),
        failed=tuple(told["failed"])[-_MOST_FAILED:],
        broken=tuple(told["broken"])[-_MOST_FAILED:],
        restart_needed=told["restart_needed"],
        failures=min(told["failures"], _MOST_COUNT),
        latency_s=told["latency_s"],
        uptime_s=told["uptime_s"],
        free_bytes=None if free is None else min(free, _MOST_COUNT),
        battery=None if charge is None else min(1.0, max(0.0, charge)),
        agent=__version__,
        snapshot=told["snapshot"] or "",
        checked=told["checked"] or "",
    )


def _cut(refusal: Refusal | None) -> Refusal | None:
    if refusal is None:
        return None
    file = refusal.file[: _LONGEST_REASON // 2]
    return Refusal(refusal.code, file, refusal.reason[: _LONGEST_REASON - len(file)])
