"""A crowd of devices that follow rollouts as they believe them, and say how they fare to whichever server answers.

Which arm a device is in is worked out as the agent does it; it runs no model. It believes what TUF's client does
(`Watcher`), which asks all the time and remembers what it has seen.
"""

import base64
import hashlib
import itertools
import json
import random
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import urllib3
from benchmarks.serving.wire import CHECK_IN

from edgewright.contract.api.device_api import PROOF, CheckInRequest
from edgewright.contract.api.device_status import DeviceStatus, StageOutcome
from edgewright.contract.refusal import RefusedError
from edgewright.contract.rollout.decision import CONTROL_ARM
from edgewright.contract.rollout.plan import RolloutPlan, RolloutPolicy
from edgewright.server.controller.stage_participants import assigned_arm_version, rollout_subject
from edgewright.server.store.records import rollout_key
from edgewright.trust.client.fetcher import Fetcher
from edgewright.trust.client.verification import TrustState, refresh
from edgewright.trust.keys.device_identity import DeviceKey

__all__ = ["MODEL", "Accepted", "Crowd", "Device", "Plans", "Watcher"]

MODEL = "digits"
_TIMEOUT_SECONDS = 15.0
# Whoever cannot be reached has shown nothing that is not signed.
_AWAY = ("unreachable", "missing", "slow")


@dataclass(slots=True)
class Plans:
    """What is believed at present, and when each stage of each rollout was seen; shared by threads.

    Attributes:
        known: Plan and policy by device class.
        seen: First and last moment, seconds since 1970, by rollout's key, stage and state.
    """

    known: dict[str, tuple[RolloutPlan, RolloutPolicy]] = field(default_factory=dict)
    seen: dict[tuple[str, int, str], tuple[float, float]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def believe(self, plan: RolloutPlan, policy: RolloutPolicy, asked_at: float) -> None:
        """Take over a plan that was believed, unless a later one was already; it was so when it was asked for."""
        with self._lock:
            before = self.known.get(plan.device_class)
            if before is None or before[0].counter <= plan.counter:
                self.known[plan.device_class] = plan, policy
            key = rollout_subject(plan), plan.stage, plan.state
            first, last = self.seen.get(key, (asked_at, asked_at))
            self.seen[key] = min(first, asked_at), max(last, asked_at)


@dataclass(slots=True)
class Watcher:
    """TUF's client with a device's memory, that asks again and again, each time another server.

    Attributes:
        urls: Of the repository at the servers.
        anchor: Root that it was enrolled with.
        folder: For metadata.
        device_class: Its own.
        plans: Takes what is believed.
        checks: How often everything was believed.
        away: How often nobody answered.
        refused: What was not believed, in words: there must be nothing.
    """

    urls: tuple[str, ...]
    anchor: bytes
    folder: Path
    device_class: str
    plans: Plans
    checks: int = 0
    away: int = 0
    refused: list[str] = field(default_factory=list)

    def run(self, ended: threading.Event, *, interval_seconds: float = 0.3) -> None:
        """Ask until the end."""
        memory, fetcher = TrustState(), Fetcher(timeout_seconds=5)
        for url in itertools.cycle(self.urls):
            if ended.wait(interval_seconds):
                return
            asked_at = time.time()
            try:
                view = refresh(self.folder, url, self.anchor, memory, fetcher, now=lambda: datetime.now(UTC))
                policy = view.policy(MODEL, self.device_class)
                plan = view.plan(policy)
                if plan is not None:
                    self.plans.believe(plan, policy, asked_at)
                memory = view.memory
                self.checks += 1
            except RefusedError as error:
                if error.refusal.code in _AWAY:
                    self.away += 1
                else:
                    self.refused.append(f"{error.refusal.code}: {error}")


@dataclass(frozen=True, slots=True)
class Accepted:
    """A check-in that was answered with 200.

    Attributes:
        device: Whose.
        spent: Its nonce as the database keeps it.
        said: The device's count of what it said.
        at: When it was sent, seconds since 1970.
        subject: Key of the rollout that its outcome is of, "" for none.
        stage: Of its outcome.
        age_seconds: Of its outcome.
    """

    device: str
    spent: str
    said: int
    at: float
    subject: str
    stage: int
    age_seconds: float


@dataclass(slots=True)
class Device:
    """A device.

    Attributes:
        name: Its own.
        key: Its own.
        device_class: Its own.
        bad: Releases that crash on some devices.
        said: How often it has tried to say something.
    """

    name: str
    key: DeviceKey
    device_class: str
    bad: frozenset[str]
    said: int = 0
    _proven: str = "1.0"
    _arm: str = ""
    _stage: tuple[str, int] = ("", 0)
    _last_seen_at: float = 0.0
    _failed: bool = False

    def says(self, plans: Plans, now: float) -> CheckInRequest:
        """Follow the plan that is believed, and say how it is going."""
        self.said += 1
        outcome = None
        believed = plans.known.get(self.device_class)
        if believed is not None:
            plan, policy = believed
            if plan.state == "running":
                self._follow(plan, policy, now)
                failed = ("crash",) if self._failed else ()
                outcome = StageOutcome(plan.rollout, plan.stage, self._arm, failed, None, now - self._last_seen_at)
            elif plan.rollout == self._stage[0]:
                self._proven = self._arm if self._arm and plan.state == "done" else self._proven
                self._arm = ""
        runs = self._arm or self._proven
        status = DeviceStatus(
            MODEL,
            runs,
            "a" * 64,
            "idle",
            proven=self._proven,
            uptime_seconds=float(self.said),
            agent_version="0.6.0",
        )
        return CheckInRequest(status, outcome)

    def _follow(self, plan: RolloutPlan, policy: RolloutPolicy, now: float) -> None:
        if self._stage == (plan.rollout, plan.stage):
            return
        if self._stage[0] != plan.rollout:
            if self._arm:  # it was not asked between two rollouts
                self._proven, self._arm = self._arm, ""
            self._failed = False
        self._stage, self._last_seen_at = (plan.rollout, plan.stage), now
        number = assigned_arm_version(plan, policy, self.name)
        self._arm = "" if number == CONTROL_ARM else plan.arms[number].version
        chance = 0.6 if self._arm in self.bad else 0.01
        self._failed = self._failed or random.random() < chance  # noqa: S311 (no secret)


@dataclass(slots=True)
class Crowd:
    """Some of the devices, one after the other in one thread.

    Attributes:
        devices: Its own.
        audience: Whom requests are for.
        urls: Of the servers.
        plans: What is believed.
        interval_seconds: How often each device checks in.
        accepted: What was answered with 200.
        requests: How many were sent.
        answers: How many were answered how; 0 for no answer.
    """

    devices: list[Device]
    audience: str
    urls: tuple[str, ...]
    plans: Plans
    interval_seconds: float
    accepted: list[Accepted] = field(default_factory=list)
    requests: int = 0
    answers: dict[int, int] = field(default_factory=dict)
    _pool: urllib3.PoolManager = field(
        default_factory=lambda: urllib3.PoolManager(retries=False, timeout=_TIMEOUT_SECONDS, maxsize=2)
    )

    def run(self, ended: threading.Event) -> None:
        """Check in until the end; whoever gets no answer asks another server, signed anew."""
        turn = 0
        while not ended.is_set():
            started_at = time.monotonic()
            for number, device in enumerate(self.devices):
                due_at = started_at + self.interval_seconds * number / len(self.devices)
                if ended.wait(max(0.0, due_at - time.monotonic())):
                    return
                turn += 1
                for attempt in range(len(self.urls)):
                    if self._check_in(device, self.urls[(turn + attempt) % len(self.urls)]):
                        break
            ended.wait(max(0.0, started_at + self.interval_seconds - time.monotonic()))

    def _check_in(self, device: Device, url: str) -> bool:
        now = time.time()
        asked = device.says(self.plans, now)
        body = msgspec.json.encode(asked)
        proof = device.key.sign(self.audience, "POST", CHECK_IN, body, now=datetime.fromtimestamp(now, UTC))
        self.requests += 1
        try:
            status = self._pool.request("POST", url + CHECK_IN, body=body, headers={PROOF: proof}).status
        except urllib3.exceptions.HTTPError:
            status = 0
        self.answers[status] = self.answers.get(status, 0) + 1
        if status != 200:
            return False
        nonce = json.loads(base64.urlsafe_b64decode(proof.partition(".")[0]))["nonce"]
        # As `server/store/check_ins.py` binds it to the device.
        spent = hashlib.sha256(f"{device.name}.{nonce}".encode()).hexdigest()[:32]
        mine = asked.outcome
        self.accepted.append(
            Accepted(
                device.name,
                spent,
                device.said,
                now,
                rollout_key(MODEL, device.device_class, mine.rollout) if mine else "",
                mine.stage if mine else 0,
                mine.age_seconds if mine else 0.0,
            )
        )
        return True
