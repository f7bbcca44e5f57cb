"""Looking at a fleet: what fires, who is told, what is done; through restarts between any two steps."""

import hashlib
import itertools
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgewright.contract.api.device_status import DeviceStatus
from edgewright.contract.config.fleet import FleetConfig, parse_fleet
from edgewright.contract.errors import EdgewrightError, InputError, WorkError
from edgewright.contract.query.permit import QueryPermit
from edgewright.contract.query.query import CountedSignal, Query, QueryTemplate, template_violation
from edgewright.contract.release import Manifest, StoredFile, Variant
from edgewright.contract.rollout.plan import RolloutArm, RolloutPlan, RolloutStage
from edgewright.contract.timestamps import to_iso8601
from edgewright.fleet.action_policy import ActionRequest, decide_action
from edgewright.fleet.release_retirement import RetirementInputs, propose_retirement
from edgewright.server.alerting import automated_actions, monitor, notifications
from edgewright.server.alerting.automated_actions import approve_action, pending_actions, refuse_action
from edgewright.server.alerting.monitor import FleetMonitor, check_fleet, fleet_health, make_monitor
from edgewright.server.alerting.notifications import Notification, NotificationChannel, Notifier
from edgewright.server.services import Services
from edgewright.server.store.actions import ActionStore, ReaderPositions
from edgewright.server.store.alerts import AlertStore
from edgewright.server.store.audit import AuditLog
from edgewright.server.store.decisions import DecisionStore
from edgewright.server.store.records import AutomatedAction, CheckIn, StoredDevice
from edgewright.server.store.store import FleetStore, create_store
from edgewright.trust.keys import signing_keys
from edgewright.trust.keys.signing_keys import OFFLINE_ROLES, KeyFolder
from edgewright.trust.publishing.publish import current_policy, list_releases, publish_plan, publish_release
from edgewright.trust.publishing.signed_queries import current_queries, publish_permit
from edgewright.trust.repository.bootstrap import create_repository, read_trusted_root
from edgewright.trust.repository.repository import Repository
from edgewright.trust.repository.staging import staged_metadata
from edgewright.trust.storage.storage import LocalStorage

START = datetime(2026, 11, 21, 12, tzinfo=UTC).timestamp()
PASSPHRASE = "correct horse"  # noqa: S105 - of test keys
DARK = '[[alert]]\nname = "dark"\nmetric = "offline"\nabove = 0.25\nclear_at = 0.1\nfor = "1min"\n'


class Rollouts:
    """Changes rollouts, and remembers it."""

    def __init__(self) -> None:
        self.said: list[tuple[str, str, str]] = []
        self.fails: EdgewrightError | None = None

    def pause_rollout(self, model: str, device_class: str, reason: str) -> bool:
        return self._do("pause", model, device_class, reason)

    def abort_rollout(self, model: str, device_class: str, reason: str) -> bool:
        return self._do("abort", model, device_class, reason)

    def _do(self, what: str, model: str, device_class: str, reason: str) -> bool:
        if self.fails is not None:
            raise self.fails
        self.said.append((what, f"{model}/{device_class}", reason))
        return True


@dataclass
class Site:
    """A served fleet of ten cameras, with a clock that stands still."""

    folder: Path
    store: FleetStore
    fleet: FleetConfig
    now: float = START
    rollouts: Rollouts = field(default_factory=Rollouts)
    told: list[Notification] = field(default_factory=list)
    deaf: bool = False
    devices: list[StoredDevice] = field(default_factory=list)
    watcher: FleetMonitor | None = None

    def repository(self) -> Repository:
        place = LocalStorage(self.folder / "repo")
        return Repository(place, read_trusted_root(self.folder / "keys"), lambda: to_iso8601(self.now))

    def services(self) -> Services:
        keys = KeyFolder(self.folder / "online", lambda _: PASSPHRASE)
        files = LocalStorage(self.folder / "repo")
        return Services(self.store, "f", self.repository, files, keys, self.fleet, lambda: self.now)

    def offline(self) -> KeyFolder:
        return KeyFolder(self.folder / "keys", lambda _: PASSPHRASE)

    def restart(self) -> FleetMonitor:
        if self.watcher is not None:
            self.watcher.close()
        services = self.services()
        made = make_monitor(
            services, self.rollouts, project=self.folder, state=self.folder / "state", environment=os.environ
        )
        made.notifier.close()
        teller = Notifier(
            self.store, "f", self.fleet.alerts, [NotificationChannel("hook", self.hear)], timeout_seconds=30.0
        )
        self.watcher = FleetMonitor(services, made.source, teller, made.tools)
        return self.watcher

    def hear(self, notice: Notification, _now: float) -> None:
        if self.deaf:
            raise WorkError("nobody listens", remedy="Wait.")
        self.told.append(notice)

    def enrol(self, count: int, **offered: Any) -> None:
        for _ in range(count):
            token = self.store.devices.create_enrolment_token(
                "camera", created_by="user:ann", now=self.now, lifetime_seconds=60.0, **offered
            )
            self.devices.append(self.store.devices.enrol(token, os.urandom(32), now=self.now))

    def check_in(self, count: int | None = None, **more: Any) -> None:
        status = DeviceStatus(
            "m", more.pop("version", "1.0.0"), metadata_checked_at=to_iso8601(self.now).isoformat(), **more
        )
        self.store.check_ins.store_batch(
            [CheckIn(one.id, "camera", status, self.now) for one in self.devices[:count]]
        )

    def look(self, *, after_seconds: float = 0.0) -> None:
        self.now += after_seconds
        check_fleet(self.watcher or self.restart(), self.now)

    def publish(self, version: str) -> None:
        content = version.encode()
        file = StoredFile("image", hashlib.sha256(content).hexdigest(), len(content))
        manifest = Manifest("m", version, "firmware", (Variant("camera", (file,)),), created_at="2026-11-21")
        publish_release(self.repository(), self.offline(), manifest, {"camera": {"image": content}})

    def plan(self, version: str, **more: Any) -> None:
        manifest = dict(list_releases(self.repository(), "m"))[version]
        plan = RolloutPlan(
            "m", "camera", "r1", 1, 1, (RolloutArm(version, manifest),), (RolloutStage(1.0),), **more
        )
        publish_plan(self.repository(), self.offline(), plan)

    def audited(self) -> list[str]:
        return [entry.action for entry in self.store.audit.entries(limit=1000)[::-1]]

    def messages(self) -> list[tuple[str, str]]:
        return [(notice.rule, notice.state) for notice in self.told]


Make = Callable[..., Site]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    monkeypatch.setattr(signing_keys, "_SCRYPT_N", 2**4)
    made: list[Site] = []

    def run(text: str, *, devices: int = 10, like: Site | None = None) -> Site:
        folder = tmp_path / str(len(made))
        if like is not None:
            shutil.copytree(like.folder, folder)
            made.append(Site(folder, create_store(f"sqlite:///{folder / 'fleet.db'}"), like.fleet, like.now))
            return made[-1]
        folder.mkdir()
        keys = KeyFolder(folder / "keys", lambda _: PASSPHRASE)
        create_repository(
            LocalStorage(folder / "repo"),
            keys,
            passphrase=PASSPHRASE,
            offline=1,
            threshold=1,
            bits=2,
            now=lambda: to_iso8601(START),
        )
        shutil.copytree(folder / "keys", folder / "online")
        for path in (folder / "online").glob("*.key.json"):
            if {*OFFLINE_ROLES} & {*json.loads(path.read_text())["roles"]}:
                path.unlink()
        made.append(Site(folder, create_store(f"sqlite:///{folder / 'fleet.db'}"), parse_fleet(text)))
        made[-1].enrol(devices)
        return made[-1]

    yield run
    for site in made:
        if site.watcher is not None:
            site.watcher.close()
        site.store.close()


def went_dark(site: Site) -> None:
    """All devices are heard, then for hours but five of ten."""
    site.check_in()
    site.look()
    site.now += 3 * 3600
    site.check_in(5)


def test_people_are_told_once_when_it_begins_and_once_when_it_ends(make: Make) -> None:
    site = make(DARK)
    went_dark(site)
    for _ in range(8):
        site.look(after_seconds=20)
    assert site.messages() == [("dark", "firing")]
    assert site.told[0].message == "dark: offline on camera is 0.5, above 0.25 for 60 s"
    assert (site.told[0].fleet_name, site.told[0].severity, site.told[0].device_class) == ("f", "warning", "camera")
    site.check_in()
    for _ in range(8):
        site.look(after_seconds=20)
    assert site.messages() == [("dark", "firing"), ("dark", "resolved")]


def test_a_moment_in_the_dark_tells_nobody(make: Make) -> None:
    site = make(DARK)
    went_dark(site)
    site.look(after_seconds=20)
    site.check_in()
    for _ in range(8):
        site.look(after_seconds=20)
    assert site.told == []
    assert [change.after for change in site.store.alerts.changes()] == ["resolved", "pending"]


def test_restarts_change_nothing(make: Make) -> None:
    """The same fleet, looked at by one process and by a new one each time."""
    told = []
    for restarts in (False, True):
        site = make(DARK)
        went_dark(site)
        for step in range(24):
            if step == 10:
                site.check_in()
            if restarts:
                site.restart()
            site.look(after_seconds=20)
        told.append([(notice.rule, notice.state, notice.at, notice.message) for notice in site.told])
    assert len(told[0]) == 2
    assert told[0] == told[1]


class Killed(BaseException):
    """The process ends here."""


WRITES = {
    ActionStore: ("add", "transition"),
    ReaderPositions: ("put",),
    AlertStore: ("put", "end_silences"),
    AuditLog: ("write",),
    DecisionStore: ("put",),
}


def die_at(monkeypatch: pytest.MonkeyPatch, number: int, *, after: bool) -> Callable[[], bool]:
    """Have the process end before or after the n-th time that anything is written; whether it came to that."""
    count = itertools.count(1)
    died: list[bool] = []

    def wrapped(write: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any, **more: Any) -> Any:
            if died:
                raise Killed
            if next(count) != number:
                return write(*given, **more)
            if after:
                write(*given, **more)
            died.append(True)
            raise Killed

        return run

    for kind, names in WRITES.items():
        for name in names:
            monkeypatch.setattr(kind, name, wrapped(getattr(kind, name)))
    return lambda: bool(died)


ACTIVE = (
    DARK
    + 'actions = ["notify", "roll back", "pause"]\n[[action]]\naction = "roll back"\n'
    + '[[action]]\naction = "pause"\nneeds_approval = true\n'
)


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True])
def test_whenever_it_is_killed_no_alert_is_untold_and_nothing_is_done_twice_over(
    make: Make, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    first = make(ACTIVE)
    first.publish("1.0.0")
    first.plan("1.0.0")
    went_dark(first)
    first.store.close()
    for number in itertools.count(1):
        site = make("", like=first)
        with monkeypatch.context() as patched:
            died = die_at(patched, number, after=after)
            for _ in range(3):
                try:
                    site.look(after_seconds=30)
                except Killed:
                    break
        site.restart()
        for _ in range(4):
            site.look(after_seconds=30)
        assert set(site.messages()) == {("dark", "firing")}
        assert len(site.told) <= 2, number
        assert {each[:2] for each in site.rollouts.said} == {("abort", "m/camera")}
        assert len(site.rollouts.said) <= 2, number
        states = {act.action: act.state for act in site.store.actions.all()}
        assert states == {"roll back": "done", "pause": "waiting"}, number
        assert len(site.store.decisions.for_subject("action/camera/roll back")) == 1
        assert {"grant action", "ask action", "action done"} <= set(site.audited())
        assert site.store.audit.broken_at() is None
        site.store.close()
        if not died():
            break
    assert number > 10, "it was killed at each of its writes"


def test_who_cannot_be_told_is_told_later_after_ever_longer_pauses(make: Make) -> None:
    site = make(DARK)
    went_dark(site)
    site.deaf = True
    tries = []
    for _ in range(60):
        site.look(after_seconds=20)
        position = site.store.positions.get("hook")
        assert position is not None
        tries.append((position.attempts, position.next_attempt_at))
    assert site.told == []
    counts = [count for count, _ in tries]
    assert counts == sorted(counts)
    pauses = [b[1] - a[1] for a, b in itertools.pairwise(dict(tries).items()) if a[1]]
    assert pauses == sorted(pauses)
    assert counts[-1] < 10
    site.deaf = False
    site.restart()
    site.look(after_seconds=3600)
    assert site.messages() == [("dark", "firing")]


def test_one_deaf_channel_holds_up_no_other_and_a_slow_one_not_the_look(make: Make) -> None:
    import threading

    site = make(DARK)
    gate, heard = threading.Event(), list[Notification]()

    def slow(notice: Notification, _: float) -> None:
        gate.wait(10)
        heard.append(notice)

    watcher = site.restart()
    watcher.notifier.close()
    channels = [NotificationChannel("slow", slow), NotificationChannel("hook", site.hear)]
    teller = Notifier(site.store, "f", site.fleet.alerts, channels, timeout_seconds=0.2)
    site.watcher = FleetMonitor(watcher.services, watcher.source, teller, watcher.tools)
    went_dark(site)
    for _ in range(6):
        site.look(after_seconds=20)
    assert site.messages() == [("dark", "firing")]
    assert heard == []
    gate.set()
    while site.watcher.notifier.send_new(site.now):
        pass
    assert len(heard) == 1


def test_a_silence_keeps_it_from_people_until_it_is_over(make: Make) -> None:
    site = make(DARK)
    went_dark(site)
    site.look(after_seconds=20)
    assert site.store.alerts.silence("dark", "camera", until=site.now + 300)
    for _ in range(10):
        site.look(after_seconds=20)
    assert site.told == []
    assert [one.state for one in site.store.alerts.all()] == ["firing"]
    for _ in range(10):
        site.look(after_seconds=20)
    assert site.messages() == [("dark", "firing")], "it fires on"


def test_a_new_channel_hears_what_comes_and_not_what_was(make: Make) -> None:
    site = make(DARK)
    went_dark(site)
    for _ in range(6):
        site.look(after_seconds=20)
    late: list[Notification] = []
    watcher = site.restart()
    channels = [NotificationChannel("late", lambda notice, _: late.append(notice))]
    teller = Notifier(site.store, "f", site.fleet.alerts, channels)
    site.watcher = FleetMonitor(watcher.services, watcher.source, teller, watcher.tools)
    site.look(after_seconds=20)
    assert late == []
    site.check_in()
    for _ in range(6):
        site.look(after_seconds=20)
    assert [notice.state for notice in late] == ["resolved"]


def test_a_rule_that_is_no_more_ends(make: Make) -> None:
    site = make(DARK)
    went_dark(site)
    for _ in range(6):
        site.look(after_seconds=20)
    site.fleet = FleetConfig()
    site.restart()
    site.look(after_seconds=20)
    assert site.messages() == [("dark", "firing"), ("dark", "resolved")]
    assert "no such rule" in site.told[-1].message


def test_the_log_is_told_with_all_that_a_script_needs(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    site = make(DARK)
    site.restart()
    made = make_monitor(
        site.services(), site.rollouts, project=site.folder, state=site.folder / "state", environment={}
    )
    site.watcher = made
    with caplog.at_level(logging.INFO, "edgewright.alerts"):
        went_dark(site)
        for _ in range(6):
            site.look(after_seconds=20)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    said = json.loads(record.getMessage())
    assert said["event"] == "dark: offline on camera is 0.5, above 0.25 for 60 s"
    assert (said["alert"]["rule"], said["alert"]["state"]) == ("dark", "firing")


def test_a_secret_that_is_missing_is_told_at_the_start(make: Make) -> None:
    site = make('[[notify.webhook]]\nurl = "https://hooks.example/"\nsecret_env = "NO_SUCH_SECRET"\n')
    with pytest.raises(InputError, match="NO_SUCH_SECRET is not set"):
        site.restart()


# What alerts set off.


def fired(site: Site) -> None:
    went_dark(site)
    for _ in range(5):
        site.look(after_seconds=20)


def again(site: Site, *, after_seconds: float = 600.0) -> None:
    """It ends, and fires once more."""
    site.now += after_seconds
    site.check_in()
    for _ in range(5):
        site.look(after_seconds=20)
    site.now += 3 * 3600
    site.check_in(5)
    for _ in range(5):
        site.look(after_seconds=20)


def by_number(site: Site) -> list[AutomatedAction]:
    return sorted(site.store.actions.all(), key=lambda act: int(act.id.partition("-")[0]))


def test_a_rollout_is_taken_back_at_once_and_only_as_often_as_the_policy_lets(make: Make) -> None:
    text = DARK + 'actions = ["roll back"]\n[[action]]\naction = "roll back"\nmax_per_day = 2\ncooldown = "1h"\n'
    site = make(text)
    site.publish("1.0.0")
    site.plan("1.0.0")
    fired(site)
    assert [each[:2] for each in site.rollouts.said] == [("abort", "m/camera")]
    assert "dark: offline on camera" in site.rollouts.said[0][2]
    again(site)
    again(site)
    assert len(site.rollouts.said) == 2
    assert [act.state for act in by_number(site)] == ["done", "done", "waiting"]
    assert "was done 2 times in 24 hours" in by_number(site)[-1].state_reason


def test_every_decision_can_be_made_again_from_its_inputs(make: Make) -> None:
    site = make(ACTIVE)
    fired(site)
    again(site)
    again(site)
    decisions = [
        *site.store.decisions.for_subject("action/camera/roll back"),
        *site.store.decisions.for_subject("action/camera/pause"),
    ]
    assert len(decisions) == 6
    for decision in decisions:
        found = decide_action(msgspec.json.decode(decision.inputs, type=ActionRequest))
        assert found.reason == decision.reason
        assert decision.verdict == ("grant" if found.allowed else "ask" if found.needs_approval else "refuse")


def test_what_takes_approval_waits_for_it_and_one_is_enough(make: Make) -> None:
    site = make(DARK + 'actions = ["pause"]\n[[action]]\naction = "pause"\nneeds_approval = true\n')
    site.publish("1.0.0")
    site.plan("1.0.0")
    fired(site)
    again(site, after_seconds=7200)
    (waiting,) = pending_actions(site.services())
    assert [act.state for act in by_number(site)] == ["waiting", "refused"]
    assert "waits for approval already" in by_number(site)[1].state_reason
    assert site.rollouts.said == []
    assert approve_action(site.services(), "user:ann", waiting.id).decided_by == "user:ann"
    with pytest.raises(InputError, match="is granted"):
        refuse_action(site.services(), "user:bob", waiting.id)
    with pytest.raises(InputError, match="not there"):
        approve_action(site.services(), "user:bob", "9-pause")
    site.look(after_seconds=10)
    assert [each[:2] for each in site.rollouts.said] == [("pause", "m/camera")]
    assert site.audited()[-2:] == ["approve action", "action done"]


def test_what_was_refused_or_forgotten_is_not_done(make: Make) -> None:
    site = make(DARK + 'actions = ["pause", "roll back"]\n')
    site.publish("1.0.0")
    site.plan("1.0.0")
    fired(site)
    one, _ = pending_actions(site.services())
    refuse_action(site.services(), "user:ann", one.id, "not now")
    site.look(after_seconds=8 * 86400)
    assert pending_actions(site.services()) == []
    assert {act.state for act in site.store.actions.all()} == {"refused"}
    assert {act.state_reason for act in site.store.actions.all()} == {
        "user:ann refused: not now",
        "nobody answered in 7 days",
    }
    assert site.rollouts.said == []


def test_what_cannot_be_done_now_is_tried_again_and_given_up_in_the_end(make: Make) -> None:
    site = make(ACTIVE)
    site.publish("1.0.0")
    site.plan("1.0.0")
    site.rollouts.fails = WorkError("the store answers 503", remedy="Wait.")
    fired(site)
    assert site.store.actions.all("granted")
    site.rollouts.fails = None
    site.look(after_seconds=20)
    assert [act.action for act in site.store.actions.all("done")] == ["roll back"]
    site.rollouts.fails = WorkError("the store answers 503", remedy="Wait.")
    again(site, after_seconds=7200)
    site.look(after_seconds=3700)
    (failed,) = site.store.actions.all("failed")
    assert "503" in failed.state_reason


def test_where_nothing_is_rolled_out_it_says_so(make: Make) -> None:
    site = make(DARK + 'actions = ["pause"]\n[[action]]\naction = "pause"\n')
    fired(site)
    (act,) = site.store.actions.all()
    assert (act.state, act.state_reason) == ("done", "there was no rollout to do it to")


TEMPLATE = QueryTemplate(
    *("signals", "histogram", "camera"),
    clip=100.0,
    min_noise=0.05,
    min_cohort=4,
    max_rho=0.05,
    min_interval_seconds=3600.0,
    expires_at="2027-12-31",
    model="m",
    signals=(CountedSignal("mean", 18),),
    subgroups=("site",),
)


def test_a_cause_is_narrowed_down_by_questions_that_the_offline_keys_permit(make: Make) -> None:
    site = make(DARK + 'actions = ["ask"]\n[[action]]\naction = "ask"\n', devices=0)
    for name in ("berlin", "paris"):
        site.enrol(5, labels={"site": name})
    site.publish("1.0.0")
    publish_permit(
        site.repository(),
        site.offline(),
        QueryPermit("m", "camera", 1, "https://s.example", "ab" * 32, (TEMPLATE,)),
    )
    fired(site)
    (act,) = site.store.actions.all()
    assert act.state == "done", act.state_reason
    queries = current_queries(site.repository(), "m", "camera").queries
    assert [query.subgroup for query in queries] == [{"site": "berlin"}, {"site": "paris"}]
    assert [query.id for query in queries] == [f"alert-{act.id}-0", f"alert-{act.id}-1"]
    kept = {one.id: msgspec.json.decode(one.body, type=Query) for one in site.store.queries.all("open")}
    for query in queries:
        assert kept[query.id] == query
        assert template_violation(query, TEMPLATE) is None
        assert query.release == dict(list_releases(site.repository(), "m"))["1.0.0"]
        assert query.rho <= TEMPLATE.max_rho
    again(site, after_seconds=600)
    assert len(current_queries(site.repository(), "m", "camera").queries) == 4


def test_without_a_permit_nothing_is_asked(make: Make) -> None:
    site = make(DARK + 'actions = ["ask"]\n[[action]]\naction = "ask"\n')
    site.publish("1.0.0")
    fired(site)
    (act,) = site.store.actions.all()
    assert act.state == "failed"
    assert "no permit is signed" in act.state_reason


def retrained(site: Site) -> AutomatedAction:
    for _ in range(1000):
        site.look(after_seconds=0.01)
        (act,) = site.store.actions.all()
        if act.state not in ("granted", "running"):
            return act
    raise AssertionError("it goes on")


RETRAIN = (
    DARK + 'actions = ["retrain"]\n[[action]]\naction = "retrain"\n[retraining]\ncommand = ["sh", "-c", "{}"]\n'
)


@pytest.mark.parametrize(
    ("script", "state", "verdict"), [("echo done", "done", "done"), ("exit 4", "failed", "failed")]
)
def test_retraining_is_run_and_what_came_of_it_is_kept(make: Make, script: str, state: str, verdict: str) -> None:
    site = make(RETRAIN.format(script))
    fired(site)
    act = retrained(site)
    assert act.state == state
    (decision,) = site.store.decisions.for_subject("retraining/camera")
    assert decision.verdict == verdict
    assert site.audited()[-1] == f"action {state}"
    assert (site.folder / "state" / "retraining" / f"{act.id}.log").exists()


def test_retraining_that_a_stop_cut_off_is_not_begun_again_by_itself(make: Make) -> None:
    site = make(RETRAIN.format("sleep 60"))
    fired(site)
    assert [act.state for act in site.store.actions.all()] == ["running"]
    site.restart()
    act = retrained(site)
    assert (act.state, act.state_reason) == ("failed", "the server was stopped while it ran")


# Retirement.


def test_old_releases_end_at_a_policy_that_awaits_signatures(make: Make) -> None:
    site = make("[fleet]\nretire_after_versions = 2\n")
    for version in ("1.0.0", "1.1.0", "1.2.0", "1.3.0"):
        site.publish(version)
    site.check_in(version="1.1.0")
    site.look()
    policy = current_policy(site.repository(), "m", "camera")
    assert policy is not None
    assert policy.min_version == "0", "nothing is in force that nobody signed"
    (waiting,) = staged_metadata(site.repository()).values()
    (target,) = [each for path, each in waiting.signed.targets.items() if path.startswith("policies/m/")]
    assert '"min_version":"1.1.0"' in target.custom["record"]
    assert not waiting.signatures
    (decision,) = site.store.decisions.for_subject("retirement/camera/m")
    again = propose_retirement(msgspec.json.decode(decision.inputs, type=RetirementInputs))
    assert again is not None
    assert (again.min_version, again.retired) == ("1.1.0", ("1.0.0",))
    assert "stage retirement" in site.audited()
    for _ in range(3):
        site.look(after_seconds=86400)
    assert len(site.store.decisions.for_subject("retirement/camera/m")) == 1


def test_a_release_that_was_used_lately_stays(make: Make) -> None:
    site = make('[fleet]\nretire_unused = "30d"\n')
    for version in ("1.0.0", "1.1.0"):
        site.publish(version)
    site.check_in(version="1.0.0")
    site.now += 7200
    site.check_in(version="1.1.0")
    site.look()
    assert staged_metadata(site.repository()) == {}
    for _ in range(4):
        site.now += 10 * 86400
        site.check_in(version="1.1.0")
        site.look()
    assert len(site.store.decisions.for_subject("retirement/camera/m")) == 1


# Health.


def test_strange_snapshots_are_those_that_the_repository_never_had(make: Make) -> None:
    site = make('[[alert]]\nname = "forked"\nmetric = "strange_snapshots"\nabove = 0\nseverity = "critical"\n')
    snapshot = site.repository().store.read("metadata/1.snapshot.json")
    assert snapshot is not None
    site.check_in(snapshot_digest=hashlib.sha256(snapshot).hexdigest())
    site.publish("1.0.0")
    site.look()
    assert site.told == []
    site.check_in(1, snapshot_digest="e" * 64)
    site.look(after_seconds=10)
    assert site.messages() == [("forked", "firing")]


def test_health_is_told_by_version(make: Make) -> None:
    site = make("")
    site.check_in(version="1.0.0")
    site.check_in(4, version="1.1.0", failed_inferences=3, latency_seconds=0.02)
    found = {one.name: one for one in fleet_health(site.restart(), "version", site.now)}
    assert {name: one.devices for name, one in found.items()} == {"1.0.0": 6, "1.1.0": 4}
    assert found["1.1.0"].values["failing"].value == 1.0
    assert found["1.1.0"].values["latency_ms"].value == pytest.approx(20.0)
    assert found["1.0.0"].values["failing"].value == 0.0


def test_everything_that_is_offered_is_there() -> None:
    for module in (automated_actions, notifications, monitor):
        assert all(hasattr(module, name) for name in module.__all__)
