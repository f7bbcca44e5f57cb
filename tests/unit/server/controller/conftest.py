"""A fleet that is simulated, against a real store and a really signed repository."""

import datetime
import hashlib
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import insert

from edgewright.contract.api.device_status import DeviceStatus, StageOutcome
from edgewright.contract.config.fleet import FleetConfig, FleetMonitoring
from edgewright.contract.release import Manifest, StoredFile, Variant
from edgewright.contract.rollout.plan import HealthRule, RolloutArm, RolloutPlan, RolloutPolicy, RolloutStage
from edgewright.device.slots import InstalledRelease, Slots
from edgewright.device.update.selection import DeviceContext, choose_update
from edgewright.server.controller.rollout_controller import RolloutController
from edgewright.server.controller.stage_participants import is_outcome_kept, rollout_subject
from edgewright.server.services import Services
from edgewright.server.store.database import _PRAGMAS
from edgewright.server.store.records import CheckIn, StoredDecision
from edgewright.server.store.store import FleetStore, create_store, open_fleet_store
from edgewright.server.store.tables import devices, statuses
from edgewright.trust.keys import signing_keys
from edgewright.trust.keys.signing_keys import KeyFolder
from edgewright.trust.publishing.publish import (
    current_plan,
    current_policy,
    list_releases,
    publish_plan,
    publish_release,
    set_policy,
)
from edgewright.trust.repository.bootstrap import create_repository, read_trusted_root
from edgewright.trust.repository.repository import Repository
from edgewright.trust.storage.storage import LocalStorage

BEGIN = datetime.datetime(2026, 11, 21, 12, tzinfo=datetime.UTC)
LOOKING = FleetMonitoring(outcome_age_seconds=600, offline_after_seconds=1200, evaluation_interval_seconds=10)
CRASH = HealthRule("crash", margin=0.15)
PASSPHRASE = "correct horse"  # noqa: S105 - of test keys
TICK_SECONDS = 150.0

Fails = Callable[["Device", str, int], tuple[str, ...]]
"""From a device, its version and the stage to the metrics in which it fails."""


@dataclass(slots=True)
class Device:
    """A device, as it is simulated with the agent's own decision.

    Attributes:
        id: Its name.
        slots: What it runs.
        labels: Its own.
        channel: Its own.
        luck: Decides what becomes of it.
        dead: Says nothing any more.
        knows: Rollout and stage that it saw last, since when, and its arm.
    """

    id: str
    slots: Slots
    labels: dict[str, str]
    channel: str
    luck: random.Random
    dead: bool = False
    knows: tuple[str, int, float, str] = ("", 0, 0.0, "")
    judged: int = -1

    @property
    def proven_version(self) -> str:
        assert self.slots.proven is not None
        return self.slots.proven.version

    @property
    def status(self) -> DeviceStatus:
        proven, previous = self.slots.proven, self.slots.previous
        version = "" if proven is None else proven.version
        return DeviceStatus(
            model="m" if proven else "",
            version=version,
            proven=version,
            previous="" if previous is None else previous.version,
        )

    def follow(self, plan: RolloutPlan, policy: RolloutPolicy, at: datetime.datetime) -> StageOutcome:
        """Do what the plan says, and say how it went."""
        situation = DeviceContext(self.id, self.labels, self.channel, at, 12)
        if (plan.rollout, plan.stage) != self.knows[:2]:
            self.knows = (plan.rollout, plan.stage, at.timestamp(), "")
        if self.judged != plan.counter:
            choice = choose_update(plan, policy, self.slots, {}, situation)
            if choice.action == "install" and choice.release is not None:
                self.slots = Slots(proven=choice.release, previous=self.slots.proven)
            arms = {arm.version for arm in plan.arms}
            mine = choice.release.version if choice.release else ""
            if not mine and choice.rules and self.slots.proven and self.slots.proven.version in arms:
                mine = self.slots.proven.version
            if plan.state == "running":
                self.knows = (*self.knows[:3], mine)
            self.judged = plan.counter
        return StageOutcome(plan.rollout, plan.stage, self.knows[3], (), None, at.timestamp() - self.knows[2])


@dataclass(slots=True)
class World:
    """All of it, with a clock.

    Attributes:
        path: Holds store, repository and keys.
        fails: What becomes of a device.
        at: The time.
        store: Of the control plane.
        devices: Of the fleet.
        done: What the controller said.
        lied: What devices call their arms that are in another.
        looking: How it is counted.
        slow: How much later than it could a device says how it fared.
    """

    path: Path
    fails: Fails
    at: datetime.datetime
    store: FleetStore
    devices: list[Device] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    local: LocalStorage = field(init=False)
    lied: dict[str, str] = field(default_factory=dict)
    looking: FleetMonitoring = LOOKING
    slow: Callable[[Device], float] = lambda _: 0.0

    def __post_init__(self) -> None:
        self.local = LocalStorage(self.path / "repo")

    def now(self) -> datetime.datetime:
        return self.at

    @property
    def online_keys(self) -> KeyFolder:
        keys = self.services.online_keys
        assert keys is not None
        return keys

    def last_decision(self, subject: str, verdict: str | None = None) -> StoredDecision:
        decision = self.store.decisions.last(subject, verdict)
        assert decision is not None
        return decision

    def repository(self) -> Repository:
        return Repository(self.local, read_trusted_root(self.path / "keys"), self.now)

    @property
    def services(self) -> Services:
        return Services(
            self.store,
            "fleet",
            self.repository,
            self.local,
            KeyFolder(self.path / "online", lambda _: ""),
            FleetConfig(self.looking),
            lambda: self.at.timestamp(),
        )

    @property
    def people(self) -> KeyFolder:
        return KeyFolder(self.path / "keys", lambda _: PASSPHRASE)

    def publish(self, version: str) -> None:
        content = version.encode()
        file = StoredFile("image", hashlib.sha256(content).hexdigest(), len(content))
        manifest = Manifest("m", version, "firmware", (Variant("pi", (file,)),), created_at="2026-11-21")
        publish_release(self.repository(), self.people, manifest, {"pi": {"image": content}})

    def allow(self, **changes: Any) -> RolloutPolicy:
        policy = current_policy(self.repository(), "m", "pi")
        assert policy is not None
        policy = msgspec.structs.replace(policy, revision=policy.revision + 1, **changes)
        assert set_policy(self.repository(), self.people, policy)
        return policy

    def enrol(self, count: int, *, version: str = "1.0", **of: Any) -> None:
        """Add devices that run a version, "" for none."""
        first = len(self.devices)
        rows, states = [], []
        for number in range(first, first + count):
            name = hashlib.sha256(str(number).encode()).hexdigest()
            proven = InstalledRelease("m", version, "0" * 64) if version else None
            labels, channel = of.get("labels", {}), of.get("channel", "")
            device = Device(name, Slots(proven), labels, channel, random.Random(number))  # noqa: S311
            self.devices.append(device)
            rows.append(
                {
                    "id": name,
                    "public_key": b"\0" * 32,
                    "device_class": "pi",
                    "channel": channel,
                    "labels": msgspec.json.encode(labels),
                    "profiling": False,
                    "enrolled_at": self.at.timestamp(),
                }
            )
            states.append(
                {
                    "device_id": name,
                    "last_seen_at": self.at.timestamp(),
                    "model": "m",
                    "version": version,
                    "digest": "",
                    "arm": "",
                    "refusal": "",
                    "state": "idle",
                    "body": msgspec.json.encode(device.status),
                }
            )
        self.store.database.write(
            lambda connection: (
                connection.execute(insert(devices), rows),
                connection.execute(insert(statuses), states),
            )
        )

    def start(self, *fractions: float, versions: tuple[str, ...] = ("1.1",), **of: Any) -> RolloutPlan:
        """Sign a plan, as the command does."""
        repository = self.repository()
        known = dict(list_releases(repository, "m"))
        rules = of.pop("rules", (CRASH,))
        plan = RolloutPlan(
            "m",
            "pi",
            of.pop("rollout", "spring"),
            of.pop("epoch", 1),
            of.pop("counter", 1),
            tuple(RolloutArm(version, known[version]) for version in versions),
            tuple(RolloutStage(fraction, 0, rules) for fraction in fractions),
            stage_started_at=self.at.isoformat(),
            **of,
        )
        publish_plan(repository, self.services.online_keys or self.people, plan)
        return plan

    @property
    def plan(self) -> RolloutPlan:
        plan = current_plan(self.repository(), "m", "pi")
        assert plan is not None
        return plan

    def live(self) -> None:
        """Have all devices check in once, and the intake keep what counts."""
        repository, now = self.repository(), self.at.timestamp()
        plan, policy = current_plan(repository, "m", "pi"), current_policy(repository, "m", "pi")
        assert plan is not None
        assert policy is not None
        said, batch = [], []
        for device in self.devices:
            if device.dead:
                continue
            batch.append(CheckIn(device.id, "pi", device.status, now))
            outcome = device.follow(plan, policy, self.at)
            version = outcome.arm or "1.0"
            failed = (
                self.fails(device, version, plan.stage)
                if outcome.age_seconds >= self.looking.outcome_age_seconds
                else ()
            )
            if "dies" in failed:
                device.dead = True
                continue
            outcome = msgspec.structs.replace(
                outcome, failed_metrics=tuple(sorted(failed)), arm=self.lied.get(device.id, outcome.arm)
            )
            if outcome.age_seconds >= self.looking.outcome_age_seconds + self.slow(device) and is_outcome_kept(
                plan, self.looking, outcome, now
            ):
                said.append((device.id, outcome))
        self.store.check_ins.store_batch(batch)
        self.store.outcomes.put(rollout_subject(plan), said, at=now, deadline_at=now + 1e9)

    def run(
        self, controller: RolloutController, ticks: int, *, until: tuple[str, ...] = ("done", "aborted")
    ) -> str:
        """Let time pass, and return the state of the plan at the end."""
        for _ in range(ticks):
            self.live()
            self.done += controller.check_rollouts(self.at.timestamp())
            if self.plan.state in until:
                break
            self.at += datetime.timedelta(seconds=TICK_SECONDS)
        return self.plan.state

    def verdicts(self, subject: str = "m/pi/spring") -> list[str]:
        return [one.verdict for one in self.store.decisions.for_subject(subject)]

    def copy(self, path: Path) -> "World":
        """Return the same, elsewhere; the store must be closed."""
        shutil.copytree(self.path, path)
        return replace_world(self, path)


def replace_world(world: World, path: Path) -> World:
    store = open_fleet_store(f"sqlite:///{path / 'fleet.db'}")
    devices = [
        replace(device, luck=random.Random(number))  # noqa: S311
        for number, device in enumerate(world.devices)
    ]
    return World(path, world.fails, world.at, store, devices, looking=world.looking)


def fine(_device: Device, _version: str, _stage: int) -> tuple[str, ...]:
    return ()


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., World]]:
    """Makes worlds with two releases and a fleet that runs the first."""
    monkeypatch.setattr(signing_keys, "_SCRYPT_N", 2**4)
    # Processes are killed here, not machines: nothing has to reach the disk.
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setitem(_PRAGMAS, "synchronous", "OFF")
    worlds: list[World] = []

    def made(fails: Fails = fine, *, count: int = 300, name: str = "world", holdout_fraction: float = 0.1) -> World:
        path = tmp_path / name
        path.mkdir()
        world = World(path, fails, BEGIN, create_store(f"sqlite:///{path / 'fleet.db'}"))
        worlds.append(world)
        people = world.people
        create_repository(world.local, people, passphrase=PASSPHRASE, bits=2, now=world.now)
        (path / "online").mkdir()
        for file in people.path.glob("online*"):
            shutil.copy(file, path / "online" / file.name)
        world.publish("1.0")
        world.publish("1.1")
        policy = current_policy(world.repository(), "m", "pi")
        assert policy is not None
        # A salt of its own, so that what a test finds it finds again.
        world.allow(holdout_fraction=holdout_fraction, salt="0123456789abcdef")
        if count:
            world.enrol(count)
        return world

    yield made
    for world in worlds:
        world.store.close()
