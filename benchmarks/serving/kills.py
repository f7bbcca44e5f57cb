"""Two API workers and a controller on PostgreSQL, killed at random while devices check in and rollouts advance.

Every process is `edgewright serve`, started again as soon as it was killed. What was promised is compared with what
the database and the repository hold: a check-in that was answered, a decision, a signature.
"""

import hashlib
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.report import Figure
from benchmarks.serving.crowd import MODEL, Crowd, Device, Plans, Watcher
from benchmarks.serving.fleet import put
from benchmarks.serving.host import made_repository
from benchmarks.serving.judge import Judge, behind, decided, lost_outcomes
from benchmarks.serving.postgres import Postgres
from benchmarks.serving.processes import Process, kill_at_random, started
from benchmarks.serving.stated import count
from benchmarks.serving.wire import device_keys

from edgewright.contract.errors import EdgewrightError
from edgewright.contract.release import Manifest, StoredFile, Variant
from edgewright.contract.rollout.plan import HealthRule, RolloutPlan, RolloutStage
from edgewright.rollout.plan_transitions import begin_plan, resolve_arms
from edgewright.server.controller.decision_records import CHANGING_ACTIONS
from edgewright.server.process import free_port
from edgewright.server.store.store import FleetStore, create_store
from edgewright.trust.keys.signing_keys import KeyFolder
from edgewright.trust.publishing.publish import (
    current_plan,
    current_policy,
    list_releases,
    publish_plan,
    publish_release,
)
from edgewright.trust.repository.repository import Repository
from edgewright.trust.storage.storage import LocalStorage

__all__ = ["kills"]

_CLASSES = ("camera", "hall", "wrist")
_PROJECT = '[fleet]\noutcome_age = "{outcome} s"\noffline_after = "{offline} s"\nevaluation_interval = "1 s"\n'
_STAGES = (0.3, 0.6, 1.0)
_RULES = (HealthRule("crash", margin=0.2),)


@dataclass(frozen=True, slots=True)
class _Size:
    """How long, and with how many.

    Attributes:
        seconds: Of kills.
        devices: In the fleet.
        threads: That send for them.
        interval_seconds: How often each checks in.
        outcome_seconds: Age from which on an outcome counts.
        offline_seconds: Of a offline device.
        versions: Releases that there are.
        pause_seconds: Shortest and longest time between two kills.
    """

    seconds: float
    devices: int
    threads: int
    interval_seconds: float
    outcome_seconds: int
    offline_seconds: int
    versions: int
    pause_seconds: tuple[float, float]


_FULL = _Size(
    seconds=600.0,
    devices=900,
    threads=6,
    interval_seconds=4.0,
    outcome_seconds=4,
    offline_seconds=10,
    versions=40,
    pause_seconds=(2.0, 8.0),
)
_QUICK = _Size(
    seconds=20.0,
    devices=300,
    threads=3,
    interval_seconds=2.0,
    outcome_seconds=1,
    offline_seconds=5,
    versions=4,
    pause_seconds=(4.0, 7.0),
)


@dataclass(slots=True)
class _Operator:
    """Starts the next rollout as soon as one is over; of every three releases one is bad.

    Attributes:
        folder: Of the repository and its keys.
        started: Rollouts.
        bad: Releases.
    """

    folder: Path
    versions: int
    started: list[RolloutPlan] = field(default_factory=list)
    bad: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        self.bad = frozenset(f"1.{number}" for number in range(3, self.versions + 1, 3))

    @property
    def repository(self) -> Repository:
        anchor = (self.folder / "repo" / "metadata" / "1.root.json").read_bytes()
        return Repository(LocalStorage(self.folder / "repo"), anchor, lambda: datetime.now(UTC))

    def publish(self, repository: Repository, keys: KeyFolder) -> None:
        """Publish all releases; what they hold does not matter here."""
        for number in range(self.versions + 1):
            content = f"1.{number}".encode()
            file = StoredFile("image", hashlib.sha256(content).hexdigest(), len(content))
            variants = tuple(Variant(each, (file,)) for each in _CLASSES)
            manifest = Manifest(MODEL, f"1.{number}", "firmware", variants, created_at="2026-11-21")
            publish_release(
                repository, keys, manifest, {each: {"image": content} for each in _CLASSES}, deltas_from=0
            )

    def run(self, ended: threading.Event) -> None:
        """Start rollouts until the end; a lock of a controller that was killed is waited for."""
        while not ended.wait(0.5):
            for device_class in _CLASSES:
                try:
                    self._next(device_class)
                except EdgewrightError:
                    continue

    def _next(self, device_class: str) -> None:
        repository = self.repository
        before = current_plan(repository, MODEL, device_class)
        if before is not None and before.state not in ("done", "aborted"):
            return
        number = 1 if before is None else int(before.arms[0].version.partition(".")[2]) + 1
        if number > self.versions:
            return
        plan = begin_plan(
            MODEL,
            device_class,
            resolve_arms(MODEL, [(f"1.{number}", 1.0)], dict(list_releases(repository, MODEL))),
            tuple(RolloutStage(fraction, 0.0, _RULES) for fraction in _STAGES),
            policy=current_policy(repository, MODEL, device_class),
            before=before,
            now=datetime.now(UTC),
        )
        publish_plan(repository, KeyFolder(self.folder / "keys", lambda _: ""), plan)
        self.started.append(plan)


def kills(*, quick: bool) -> list[Figure]:
    """Kill processes at random, and compare what they promised with what is kept."""
    size = _QUICK if quick else _FULL
    server = Postgres()
    try:
        with tempfile.TemporaryDirectory(prefix="ew-") as folder:
            return _killed(Path(folder), server.make("fleet"), size)
    finally:
        server.close()


def _killed(folder: Path, address: str, size: _Size) -> list[Figure]:
    operator = _Operator(folder, size.versions)
    audience = made_repository(folder, operator.publish)
    keys = device_keys(size.devices)
    store = create_store(address)
    put(store, {name: key.public for name, key in keys.items()})
    plans = Plans()
    members = [
        # As `put` spreads them over classes.
        Device(name, key, _CLASSES[int(name, 16) % len(_CLASSES)], operator.bad)
        for name, key in keys.items()
    ]
    processes = _processes(folder, address, size)
    urls = tuple(f"http://127.0.0.1:{each.port}" for each in processes if each.port)
    crowds = [
        Crowd(members[number :: size.threads], audience, urls, plans, size.interval_seconds)
        for number in range(size.threads)
    ]
    anchor = (folder / "repo" / "metadata" / "1.root.json").read_bytes()
    repositories = tuple(f"{url}/repo/" for url in urls)
    watchers = [Watcher(repositories, anchor, folder / f"client-{each}", each, plans) for each in _CLASSES]
    judge = Judge(address, crowds)
    with started(processes):
        ended = threading.Event()
        works: list[Callable[[threading.Event], None]] = [operator.run, judge.run]
        works += [crowd.run for crowd in crowds] + [watcher.run for watcher in watchers]
        threads = [threading.Thread(target=work, args=(ended,)) for work in works]
        for each in threads:
            each.start()
        try:
            kill_at_random(processes, size.seconds, size.pause_seconds)
        finally:
            ended.set()
            for each in threads:
                each.join()
    judge.finish()
    try:
        return _figures(
            store=store,
            operator=operator,
            processes=processes,
            crowds=crowds,
            watchers=watchers,
            judge=judge,
            plans=plans,
            size=size,
        )
    finally:
        store.close()


def _processes(folder: Path, address: str, size: _Size) -> list[Process]:
    project = folder / "edgewright.toml"
    project.write_text(_PROJECT.format(outcome=size.outcome_seconds, offline=size.offline_seconds))
    common: Sequence[str] = (
        "--database",
        address,
        "--repo",
        str(folder / "repo"),
        "--project",
        str(project),
        "--json",
    )
    made = []
    for name in ("worker-1", "worker-2"):
        port = free_port("127.0.0.1", 0)
        command = ["serve", "--state", str(folder / name), "--only", "api", "--port", str(port), *common]
        made.append(Process(name, command, folder, port))
    command = ["serve", "--state", str(folder / "controller"), "--only", "controller", *common]
    return [*made, Process("controller", [*command, "--keys", str(folder / "keys")], folder, None)]


def _figures(
    store: FleetStore,
    operator: _Operator,
    processes: Sequence[Process],
    crowds: Sequence[Crowd],
    watchers: Sequence[Watcher],
    judge: Judge,
    plans: Plans,
    size: _Size,
) -> list[Figure]:
    accepted = [one for crowd in crowds for one in crowd.accepted]
    requests = sum(crowd.requests for crowd in crowds)
    answers = Counter[int]()
    for crowd in crowds:
        answers.update(crowd.answers)
    counted = sum(hour.check_ins for hour in store.check_ins.rollups(0.0, 2e10))
    outcomes, lost = lost_outcomes(store, accepted, plans, size.outcome_seconds)
    verdicts, double, unlike = decided(store, operator.repository, operator.started)
    refused = [words for watcher in watchers for words in watcher.refused]
    words = ", ".join(f"{process.name} {process.kills}" for process in processes)
    checks = sum(watcher.checks for watcher in watchers)
    return [
        count(
            "kills.kills", sum(process.kills for process in processes), f"SIGKILLs in {size.seconds:g} s: {words}"
        ),
        count("kills.requests", requests, f"check-ins that were sent; by status, 0 for no answer: {dict(answers)}"),
        count("kills.accepted", len(accepted), f"of them answered with 200; {judge.found} found by their nonces"),
        count("kills.lost_reports", len(judge.lost), "answered with 200, and their nonce is not kept", limit=0),
        count(
            "kills.miscounted",
            max(0, len(accepted) - counted) + max(0, counted - requests),
            f"roll-ups count {counted}: fewer than were accepted, or more than were sent",
            limit=0,
        ),
        count("kills.behind", behind(store, accepted), "devices whose last status is older than accepted", limit=0),
        count("kills.lost_outcomes", lost, f"of {outcomes} that were accepted and old enough, not kept", limit=0),
        count(
            "kills.acts",
            sum(verdicts[act] for act in CHANGING_ACTIONS),
            "decisions after which a plan was signed anew",
        ),
        count("kills.rollouts", len(operator.started), f"begun; decisions about them: {dict(verdicts)}"),
        count(
            "kills.double_decisions", double, "a plan that was decided about twice, or changed undecided", limit=0
        ),
        count("kills.not_replayed", unlike, "decisions that do not follow from what is kept with them", limit=0),
        count(
            "kills.audit_broken", float(store.audit.broken_at() is not None), "whether its chain breaks", limit=0
        ),
        count(
            "kills.checks",
            checks,
            f"by TUF clients, of both workers in turns; {sum(each.away for each in watchers)} more got no answer",
        ),
        count("kills.unsigned", len(refused), f"refused by TUF clients: {refused[:3] or 'nothing'}", limit=0),
    ]
