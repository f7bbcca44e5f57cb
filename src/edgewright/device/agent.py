"""The agent: what keeps a proven model running on a device, as applications and commands see it."""

import datetime
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewright.contract.errors import EdgewrightError, InputError, WorkError
from edgewright.contract.query.permit import Permit
from edgewright.contract.query.query import Query, Template
from edgewright.contract.refusal import Refusal, RefusedError
from edgewright.contract.rollout.plan import Plan, Policy
from edgewright.contract.timestamps import time_of
from edgewright.device.encryption_keys import fleet_keys, own_keys
from edgewright.device.enrolment import Settings, read_settings
from edgewright.device.filesystem import Files
from edgewright.device.guard import Rejection
from edgewright.device.host_info import battery
from edgewright.device.inference.predictor import Prediction, Predictor
from edgewright.device.inference.uncertainty import Doubt, doubt_of
from edgewright.device.lock import Lock
from edgewright.device.monitoring.monitor import Monitor, Watch
from edgewright.device.monitoring.outcomes import Outcomes
from edgewright.device.queries.responder import Uplink
from edgewright.device.reporting.reporter import Report
from edgewright.device.update.installer import Installer, installer_of
from edgewright.device.update.journal import Journal, Record
from edgewright.device.update.release_store import Shelves
from edgewright.device.update.selection import Choice, Situation, choose, notice
from edgewright.device.update.self_test import Probation
from edgewright.device.update.state_machine import State
from edgewright.device.update.updater import Update
from edgewright.trust.client.fetcher import Fetcher, open_pool
from edgewright.trust.client.verification import View, refresh
from edgewright.trust.keys.keystore import KeyStore, LockedError

__all__ = ["Agent", "RejectedError"]

_LOCK = "lock"
# Steps of a private sum that others follow.
_UNDER_WAY = ("joined", "shared", "masked", "waiting")
# Of a server that collects answers or check-ins, seconds.
_PATIENCE_S = 20.0
# A plan names two or three releases.
_MOST_SEEN = 16


def _utc_now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _monitor_of(predictor: Predictor | None) -> Monitor | None:
    engine = None if predictor is None else predictor.engine
    return None if engine is None else engine.monitor


class RejectedError(WorkError):
    """An input did not reach the model, or an output did not leave it."""

    code = "input_rejected"

    def __init__(self, rejection: Rejection) -> None:
        self.rejection = rejection
        super().__init__(rejection.reason, remedy="See the guard's rules of the release.")


@dataclass(slots=True)
class Agent:
    """What runs a model on a device and keeps it up to date.

    One agent at a time changes a device's state; another one that is opened meanwhile answers with what it finds
    there and changes nothing.

    Attributes:
        state: The folder that `edgewright device enrol` made.
        files: The disk.
        fetcher: Gets bytes from the repository.
        now: The device's clock.
        keys: Of this device; a key file in `state` if not given.
        fleet: Keys of the fleet by name, beside those that the device was enrolled with.
        probation: How long a new release is watched.
        battery: Returns the state of charge, 0 to 1; None on mains or without a battery. The system's if not given.
        installer: Of the platform, for images; what the device was enrolled with if not given.
        answers: Whether to open the model; who only asks for the status need not.
        jobs: Does the profiling jobs that wait for this device at the control plane; called after a check-in that
            tells of one, if the device was enrolled for that.
        waiting_job: Whether one waited when the control plane was last reached.
    """

    state: Path
    files: Files = field(default_factory=Files)
    fetcher: Fetcher = field(default_factory=Fetcher)
    now: Callable[[], datetime.datetime] = _utc_now
    keys: KeyStore | None = None
    fleet: Mapping[str, KeyStore] = field(default_factory=dict)
    probation: Probation = field(default_factory=Probation)
    battery: Callable[[], float | None] = battery
    installer: Installer | None = None
    answers: bool = True
    jobs: Callable[[], None] | None = None
    waiting_job: bool = field(init=False, default=False)
    settings: Settings = field(init=False)
    predictor: Predictor = field(init=False, default_factory=Predictor)
    _anchor: bytes = field(init=False)
    _journal: Journal = field(init=False)
    _shelves: Shelves = field(init=False)
    _outcomes: Outcomes = field(init=False)
    _update: Update = field(init=False)
    _lock: Lock | None = field(init=False, default=None)
    _watch: Watch = field(init=False)
    _uplink: Uplink | None = field(init=False, default=None)
    _report: Report | None = field(init=False, default=None)
    _began_s: float = field(init=False, default_factory=time.monotonic)
    _asked: dict[str, str] = field(init=False, default_factory=dict)
    _answering: threading.Lock = field(init=False, default_factory=threading.Lock)
    _changing: threading.RLock = field(init=False, default_factory=threading.RLock)

    def __post_init__(self) -> None:
        """Read what the device remembers, and open what it ran.

        Raises:
            InputError: The folder holds no enrolled device.
            OutputError: The folder cannot be written.
        """
        self.settings, self._anchor = read_settings(self.state)
        if self.answers:
            self._lock = Lock(self.state / _LOCK)
        self._journal = Journal(self.state, self.files, keeps=self.changes)
        if self.settings.sealed and self.keys is None:
            self.keys = own_keys(self.state, self.settings.tpm, make=self.changes)
        keys = self.keys if self.settings.sealed else None
        self.fleet = {**fleet_keys(self.state, self.keys), **self.fleet}
        self._shelves = Shelves(self.state, self.files, keys, self.settings.device_class)
        self._outcomes = Outcomes.read(self.state, self.files)
        self._update = Update(
            settings=self.settings,
            journal=self._journal,
            shelves=self._shelves,
            predictor=self.predictor,
            outcomes=self._outcomes,
            fetcher=self.fetcher,
            fleet=self.fleet,
            installer=self.installer or installer_of(self.settings.installer),
            probation=self.probation,
            now=self.now,
        )
        predictor, journal = weakref.ref(self.predictor), self._journal
        self._watch = Watch(lambda: _monitor_of(predictor()), lambda: journal.keeps)
        if self.settings.server:
            self._report = Report(self.state, self.settings, self.files, self._update)
        if self.answers:
            if self._report is not None and self.changes:
                self._report.begin()  # before the model is opened: it may take the process along
            self._update.boot()
            if self._report is not None and self.changes:
                self._report.judge()
            self._watch.begin()

    @property
    def monitor(self) -> Monitor | None:
        """What watches the release that answers; None if it came without a reference profile."""
        return _monitor_of(self.predictor)

    @property
    def record(self) -> Record:
        """What the device remembers."""
        return self._journal.record

    @property
    def changes(self) -> bool:
        """Whether this agent is the one that changes the device's state."""
        return self._lock is not None and self._lock.held

    def close(self) -> None:
        """Let another agent change the device's state; what was counted is kept."""
        with self._changing:
            self._watch.end()
            if self._lock is not None and self._lock.held:
                self._settle()
                if self._report is not None:
                    self._report.end()
                self._journal.keeps = False
                self._lock.release()

    def will_end(self) -> None:
        """Take note that this process was told to end: whatever ends it now, the model has not."""
        if self._report is not None and self.changes:
            self._report.end()

    def __enter__(self) -> "Agent":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def predict(self, feed: Mapping[str, NDArray[Any]], *, strict: bool = False) -> Prediction:
        """Return the answer for one feed; it never waits for an update.

        Args:
            feed: Arrays by input name.
            strict: Whether to raise what is rejected.

        Raises:
            RejectedError: `strict`, and the input or the output was rejected.
        """
        prediction = self.predictor.predict(feed)
        if strict and prediction.rejection is not None:
            raise RejectedError(prediction.rejection)
        return prediction

    def outcome(self, name: str, value: float, *, prediction: Prediction | None = None) -> None:
        """Tell what became of an answer: a correction, a defect that was found, a tap that was missing.

        Args:
            name: What was observed; nothing is kept of what the release's guard drops.
            value: 0 to 1, the greater the worse.
            prediction: That it is about; what serves now if not given.

        Raises:
            InputError: The name or the value is none, or there are too many names.
        """
        about = self._update.serving if prediction is None else prediction.release
        if about is None:
            return
        engine = self.predictor.engine
        current = engine if engine is not None and engine.release.manifest == about.manifest else None
        kept = {name: value} if current is None else current.guard.storable({name: value})
        if name not in kept:
            return
        if kept[name] is True:  # redacted: that there was one, and no more
            name, value = f"{name}.there"[:64], 1.0
        slots = self.record.slots
        held = (slots.trial, slots.proven)
        keep = {each.manifest for each in held if each is not None}
        self._outcomes.add(about.manifest, name, value, keep=keep)
        if current is not None and current.monitor is not None:
            current.monitor.learn(name, value, {} if prediction is None else prediction.outputs)

    def doubt(self, prediction: Prediction) -> Doubt | None:
        """Return how far an answer can be trusted, by the rules of the release; None if it has none.

        Args:
            prediction: An answer of the release that answers now.
        """
        monitor, engine = self.monitor, self.predictor.engine
        if monitor is None or engine is None or prediction.release != engine.release or not prediction.outputs:
            return None
        profile = monitor.reference.profile
        if not profile.scores:
            return None
        scores = next(iter(prediction.outputs.values())).reshape(-1)[: profile.classes]
        return doubt_of(profile, scores)

    def check(self) -> Record:
        """Ask the repository once, and do what it wants as far as this device can: fetch, test, switch.

        Returns:
            What the device remembers now; `last_refusal` tells what was refused.

        Raises:
            WorkError: Another agent changes this device's state, or the disk does not take the journal.
        """
        self.must_change()
        try:
            with self._changing:
                self.must_change()
                self._settle()
                view = self._check()
                self._watch.begin()
                asked = None if view is None else self._questions(view)
                if self._report is not None:
                    self._report.judge()
        except Exception:
            self.report()
            raise
        told = self.report()  # a server that is slow holds nobody up
        if asked is not None:
            self._answer(*asked)
        if told and self.waiting_job and self.settings.bench and self.jobs is not None:
            self._work(self.jobs)
        return self.record

    def report(self) -> bool:
        """Tell the control plane, if there is one, how this device is and how it fares in its rollout.

        What goes wrong there is remembered as a note, concerns no update, and is tried again with the next check.

        Returns:
            Whether it took what was told.
        """
        if self._report is None or not self.changes:
            return False
        said = self._report.tell(self.status)
        self.waiting_job = self.waiting_job if said is None else said.job
        return said is not None

    def settle(self) -> Record:
        """End a probation that is over: promote the release on trial, or return to the proven one."""
        with self._changing:
            if self.changes:
                self._settle()
                self._watch.begin()
            return self.record

    def rollback(self) -> Record:
        """Return to what was proven before.

        Raises:
            NoTrialError: There is nothing to return to.
            WorkError: Another agent changes this device's state.
        """
        with self._changing:
            self.must_change()
            self._update.roll_back()
            return self.record

    def verify(self) -> list[Refusal]:
        """Check the bytes of all slots on the disk, heal what is broken, and return what was found.

        What is broken comes from another slot if that has it, else from the repository, else with the next check.

        Raises:
            WorkError: Another agent changes this device's state.
        """
        with self._changing:
            self.must_change()
            found = []
            for installed in self.record.slots.held:
                why = self._update.fault(installed)
                if why is not None:
                    found.append(why)
                    self._update.mend(installed, why)
            return found

    def status(self) -> dict[str, Any]:
        """Return what the device says of itself, by name; nothing in it comes from its inputs."""
        record = self.record
        slots = record.slots
        serving = self._update.serving
        shadow = self.predictor.shadow
        return {
            "device_id": self.settings.device_id,
            "device_class": self.settings.device_class,
            "model": None if serving is None else serving.name,
            "version": None if serving is None else serving.version,
            "digest": None if serving is None else serving.manifest,
            "state": str(record.state),
            "proven": None if slots.proven is None else slots.proven.version,
            "trial": None if slots.trial is None else slots.trial.version,
            "previous": None if slots.previous is None else slots.previous.version,
            "wanted": None if record.wanted is None else record.wanted.version,
            "restart_needed": record.state is State.TESTING and slots.trial is not None,
            "shadow": None if shadow is None else shadow.comparison,
            "last_refusal": record.last_refusal,
            "failed": dict(record.failed),
            "postponed": dict(record.postponed),
            "broken": list(record.broken),
            "served": record.served + self.predictor.served,
            "failures": self.predictor.failures,
            "rejected": self.predictor.rejected,
            "notice": record.notice or self._retired(),
            "checked": record.checked or None,
            "snapshot": record.snapshot or None,
            "free_bytes": self.files.free_bytes(self.state),
            "battery": self.battery(),
            "latency_s": None if self.monitor is None else self.monitor.latency_s(),
            "uptime_s": time.monotonic() - self._began_s if self.answers else None,
            "server": None if self._report is None else self._report.contacted(),
        }

    def _retired(self) -> Refusal | None:
        """Return that what serves is past its end of life, if it is."""
        serving = self._update.serving
        try:
            end = "" if serving is None else self._shelves.manifest(serving.manifest)[0].end_of_life
        except LockedError:
            return None
        if serving is None or not end or time_of(end) > self._update.moment():
            return None
        return Refusal("retired", serving.version, f"its end of life was {end}")

    def must_change(self) -> None:
        """See to it that this agent is the one that changes the device's state.

        Raises:
            WorkError: Another process is.
        """
        if not self.changes:
            raise WorkError(
                f"another process keeps the device in {self.state} up to date",
                remedy="Stop it first, or ask it over its socket.",
            )

    def _settle(self) -> None:
        self._update.settle()
        try:
            self._outcomes.write()
        except OSError as error:
            self._update.remember_if_possible(Refusal("disk", "", f"the disk failed: {error.strerror}"))

    def _work(self, jobs: Callable[[], None]) -> None:
        """Do the jobs that wait; what goes wrong with them concerns no update."""
        try:
            jobs()
        except Exception as error:
            if self._report is not None:
                self._report.note(error)

    @property
    def awaited(self) -> bool:
        """Whether somebody waits for this device's next step, in a sum or for a job: it should soon check again."""
        return any(step in _UNDER_WAY for step in self._asked.values()) or (
            self.waiting_job and self.settings.bench
        )

    def privacy(self) -> dict[str, Any]:
        """Return what this device was asked, what it told and what that cost, for its owner.

        Raises:
            RefusedError: What it told is not known any more; then it tells nothing.
        """
        return self._linked().shown()

    def _linked(self) -> Uplink:
        if self._uplink is None:
            self._uplink = Uplink(self.state, self.settings, self.files, open_pool(_PATIENCE_S))
        return self._uplink

    def _questions(self, view: View) -> tuple[Permit, tuple[Query, ...], str] | None:
        """Return what this device is asked, and about which release; what is wrong with it concerns no update."""
        serving = self._update.serving
        try:
            asked = None if serving is None else view.questions(serving.name, self.settings.device_class)
            self._update.remember(memory=view.memory)
        except (EdgewrightError, OSError) as error:
            self._asked = {"": str(error)}
            with suppress(EdgewrightError, OSError):
                self._linked().note(self._asked)
            return None
        return None if serving is None or asked is None else (*asked, serving.manifest)

    def _answer(self, permit: Permit, queries: tuple[Query, ...], release: str) -> None:
        """Answer what the fleet is asked."""
        issued = self.record.memory.issued
        now_s = min(self.now(), time_of(issued)).timestamp() if issued else 0.0
        try:
            with self._answering:
                self._asked = self._linked().answer_all(permit, queries, release, self._counts, now_s=now_s)
        except (EdgewrightError, OSError) as error:
            self._asked = {"": str(error)}

    def _counts(self, query: Query, template: Template) -> NDArray[np.float64]:
        """Return what is summed; zeros where there is nothing, for who answers must not depend on it."""
        monitor = self.monitor
        if template.kind != "histogram":
            raise InputError("this device learns nothing, so it has no vectors", remedy="Ask for histograms.")
        return np.zeros(template.values) if monitor is None else monitor.counts(query, template)

    def _check(self) -> View | None:
        update = self._update
        update.mend_all()
        try:
            view, policy, choice = self._choice()
        except RefusedError as refused:
            update.remember(last_refusal=refused.refusal)
            return None
        except InputError as error:
            update.remember(last_refusal=Refusal("tampered", "", error.message))
            return None
        except OSError as error:
            update.remember_if_possible(Refusal("disk", "", f"the disk failed: {error.strerror}"))
            return None
        update.remember(
            memory=view.memory,
            snapshot=view.snapshot,
            checked=self.now().isoformat(),
            rules=choice.rules or (self.record.rules if self.record.slots.trial is not None else ()),
            notice=notice(policy, self.record.slots),
            floor=policy.floor,
            denied=policy.denied,
        )
        if choice.action == "withdraw" and choice.why is not None:
            update.withdraw(choice.why)
        elif choice.action == "wait" and choice.release is not None:
            update.want(choice.release)
            update.remember(last_refusal=choice.why)
        elif choice.action == "install" and choice.release is not None:
            update.install(view, policy, choice.release)
        else:
            update.give_up()
            update.remember(last_refusal=choice.why)
        return view

    def _choice(self) -> tuple[View, Policy, Choice]:
        view = refresh(
            self.state / "metadata", self.settings.url, self._anchor, self.record.memory, self.fetcher, now=self.now
        )
        model = self.settings.model or self._only_model(view)
        policy = view.policy(model, self.settings.device_class)
        refused: Refusal | None = None
        plan: Plan | None = None
        try:
            plan = view.plan(policy)
        except RefusedError as error:  # the policy counts all the same: it may have denied what is on trial
            refused = error.refusal
        situation = Situation(
            self.settings.device_id,
            self.settings.labels,
            self.settings.channel,
            self._update.moment(),
            self.now().astimezone().hour,
            self.battery(),
            self._seen(plan),
        )
        if refused is None and self._report is not None:
            self._report.saw(plan, policy, situation)
        choice = choose(plan, policy, self.record.slots, self.record.failed, situation)
        if refused is not None and choice.why is None:
            choice = replace(choice, why=refused)
        return view, policy, choice

    def _seen(self, plan: Plan | None) -> Mapping[str, str]:
        """Return when this device first saw releases rolled out, those of a plan among them."""
        # What was seen by a clock that was ahead is seen now.
        moment = self._update.moment()
        known = {manifest: at for manifest, at in self.record.seen.items() if time_of(at) <= moment}
        for arm in () if plan is None or plan.state not in ("running", "done") else plan.arms:
            known.setdefault(arm.manifest, moment.isoformat())
        newest = dict(sorted(known.items(), key=lambda entry: entry[1])[-_MOST_SEEN:])
        self._update.remember(seen=newest)
        return newest

    def _only_model(self, view: View) -> str:
        models = view.models(self.settings.device_class)
        if len(models) == 1:
            return models[0]
        if not models:
            raise RefusedError(
                "missing", "rollouts.json", f"there is no rollout for {self.settings.device_class} yet"
            )
        raise RefusedError(
            "policy",
            "rollouts.json",
            f"there are rollouts of {', '.join(models)} for {self.settings.device_class}",
            remedy="Enrol the device with --model.",
        )
