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
from edgewright.contract.query.permit import QueryPermit
from edgewright.contract.query.query import Query, QueryTemplate
from edgewright.contract.refusal import Refusal, RefusedError
from edgewright.contract.rollout.plan import RolloutPlan, RolloutPolicy
from edgewright.contract.timestamps import parse_iso8601
from edgewright.device.encryption_keys import load_fleet_keys, open_device_keys
from edgewright.device.enrolment import DeviceSettings, read_settings
from edgewright.device.filesystem import FileSystem
from edgewright.device.guard import Rejection
from edgewright.device.host_info import battery_level
from edgewright.device.inference.predictor import Prediction, Predictor
from edgewright.device.inference.uncertainty import Uncertainty, uncertainty_of
from edgewright.device.lock import FileLock
from edgewright.device.monitoring.monitor import Monitor, MonitorThread
from edgewright.device.monitoring.outcomes import OutcomeStore
from edgewright.device.queries.responder import QueryResponder
from edgewright.device.reporting.reporter import Reporter
from edgewright.device.update.installer import Installer, open_installer
from edgewright.device.update.journal import Journal, JournalRecord
from edgewright.device.update.release_store import ReleaseStore
from edgewright.device.update.selection import DeviceContext, UpdateChoice, choose_update, retirement_notice
from edgewright.device.update.self_test import Probation
from edgewright.device.update.state_machine import UpdateLifecycleState
from edgewright.device.update.updater import Updater
from edgewright.trust.client.fetcher import Fetcher, open_pool
from edgewright.trust.client.verification import TrustedView, refresh
from edgewright.trust.keys.keystore import KeyStore, LockedError

__all__ = ["Agent", "RejectedInputError"]

_LOCK_FILE = "lock"
# Steps of a private sum that others follow.
_UNFINISHED_STEPS = ("advertised", "shared", "masked", "waiting")
# Of a server that collects answers or check-ins, seconds.
_TIMEOUT_SECONDS = 20.0
# A plan names two or three releases.
_MAX_SEEN_RELEASES = 16


def _utc_now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _monitor_of(predictor: Predictor | None) -> Monitor | None:
    engine = None if predictor is None else predictor.current
    return None if engine is None else engine.monitor


class RejectedInputError(WorkError):
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
        state_folder: The folder that `edgewright device enrol` made.
        files: The disk.
        fetcher: Gets bytes from the repository.
        clock: The device's clock.
        keys: Of this device; a key file in `state_folder` if not given.
        fleet_keys: Keys of the fleet by name, beside those that the device was enrolled with.
        probation: How long a new release is watched.
        read_battery: Returns the state of charge, 0 to 1; None on mains or without a battery. The system's if not
            given.
        installer: Of the platform, for images; what the device was enrolled with if not given.
        serves_model: Whether to open the model; who only asks for the status need not.
        run_profiling_jobs: Does the profiling jobs that wait for this device at the control plane; called after a
            check-in that tells of one, if the device was enrolled for that.
        has_waiting_job: Whether one waited when the control plane was last reached.
    """

    state_folder: Path
    files: FileSystem = field(default_factory=FileSystem)
    fetcher: Fetcher = field(default_factory=Fetcher)
    clock: Callable[[], datetime.datetime] = _utc_now
    keys: KeyStore | None = None
    fleet_keys: Mapping[str, KeyStore] = field(default_factory=dict)
    probation: Probation = field(default_factory=Probation)
    read_battery: Callable[[], float | None] = battery_level
    installer: Installer | None = None
    serves_model: bool = True
    run_profiling_jobs: Callable[[], None] | None = None
    has_waiting_job: bool = field(init=False, default=False)
    settings: DeviceSettings = field(init=False)
    predictor: Predictor = field(init=False, default_factory=Predictor)
    _root: bytes = field(init=False)
    _journal: Journal = field(init=False)
    _releases: ReleaseStore = field(init=False)
    _outcomes: OutcomeStore = field(init=False)
    _updater: Updater = field(init=False)
    _lock: FileLock | None = field(init=False, default=None)
    _monitor_thread: MonitorThread = field(init=False)
    _responder: QueryResponder | None = field(init=False, default=None)
    _reporter: Reporter | None = field(init=False, default=None)
    _started_at: float = field(init=False, default_factory=time.monotonic)
    _query_progress: dict[str, str] = field(init=False, default_factory=dict)
    _query_lock: threading.Lock = field(init=False, default_factory=threading.Lock)
    _state_lock: threading.RLock = field(init=False, default_factory=threading.RLock)

    def __post_init__(self) -> None:
        """Read what the device remembers, and open what it ran.

        Raises:
            InputError: The folder holds no enrolled device.
            OutputError: The folder cannot be written.
        """
        self.settings, self._root = read_settings(self.state_folder)
        if self.serves_model:
            self._lock = FileLock(self.state_folder / _LOCK_FILE)
        self._journal = Journal(self.state_folder, self.files, writable=self.is_owner)
        if self.settings.encrypted and self.keys is None:
            self.keys = open_device_keys(self.state_folder, self.settings.tpm_pcrs, create=self.is_owner)
        keys = self.keys if self.settings.encrypted else None
        self.fleet_keys = {**load_fleet_keys(self.state_folder, self.keys), **self.fleet_keys}
        self._releases = ReleaseStore(self.state_folder, self.files, keys, self.settings.device_class)
        self._outcomes = OutcomeStore.read(self.state_folder, self.files)
        self._updater = Updater(
            settings=self.settings,
            journal=self._journal,
            releases=self._releases,
            predictor=self.predictor,
            outcomes=self._outcomes,
            fetcher=self.fetcher,
            fleet_keys=self.fleet_keys,
            installer=self.installer or open_installer(self.settings.installer),
            probation=self.probation,
            clock=self.clock,
        )
        predictor, journal = weakref.ref(self.predictor), self._journal
        self._monitor_thread = MonitorThread(lambda: _monitor_of(predictor()), lambda: journal.writable)
        if self.settings.server_url:
            self._reporter = Reporter(self.state_folder, self.settings, self.files, self._updater)
        if self.serves_model:
            if self._reporter is not None and self.is_owner:
                self._reporter.start()  # before the model is opened: it may take the process along
            self._updater.resume_after_start()
            if self._reporter is not None and self.is_owner:
                self._reporter.evaluate_stage()
            self._monitor_thread.start()

    @property
    def monitor(self) -> Monitor | None:
        """What watches the release that answers; None if it came without a reference profile."""
        return _monitor_of(self.predictor)

    @property
    def journal_record(self) -> JournalRecord:
        """What the device remembers."""
        return self._journal.record

    @property
    def is_owner(self) -> bool:
        """Whether this agent is the one that changes the device's state."""
        return self._lock is not None and self._lock.is_held

    def close(self) -> None:
        """Let another agent change the device's state; what was counted is kept."""
        with self._state_lock:
            self._monitor_thread.stop()
            if self._lock is not None and self._lock.is_held:
                self._settle_probation()
                if self._reporter is not None:
                    self._reporter.stop()
                self._journal.writable = False
                self._lock.release()

    def prepare_exit(self) -> None:
        """Take note that this process was told to end: whatever ends it now, the model has not."""
        if self._reporter is not None and self.is_owner:
            self._reporter.stop()

    def __enter__(self) -> "Agent":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def predict(self, inputs: Mapping[str, NDArray[Any]], *, strict: bool = False) -> Prediction:
        """Return the answer for one feed; it never waits for an update.

        Args:
            inputs: Arrays by input name.
            strict: Whether to raise what is rejected.

        Raises:
            RejectedError: `strict`, and the input or the output was rejected.
        """
        prediction = self.predictor.predict(inputs)
        if strict and prediction.rejection is not None:
            raise RejectedInputError(prediction.rejection)
        return prediction

    def record_outcome(self, name: str, value: float, *, prediction: Prediction | None = None) -> None:
        """Tell what became of an answer: a correction, a defect that was found, a tap that was missing.

        Args:
            name: What was observed; nothing is kept of what the release's guard drops.
            value: 0 to 1, the greater the worse.
            prediction: That it is about; what serves now if not given.

        Raises:
            InputError: The name or the value is none, or there are too many names.
        """
        about = self._updater.serving_release if prediction is None else prediction.release
        if about is None:
            return
        engine = self.predictor.current
        current = engine if engine is not None and engine.release.manifest_digest == about.manifest_digest else None
        kept = {name: value} if current is None else current.guard.filter_fields({name: value})
        if name not in kept:
            return
        if kept[name] is True:  # redacted: that there was one, and no more
            name, value = f"{name}.there"[:64], 1.0
        slots = self.journal_record.slots
        held = (slots.trial, slots.proven)
        keep = {each.manifest_digest for each in held if each is not None}
        self._outcomes.add(about.manifest_digest, name, value, retain=keep)
        if current is not None and current.monitor is not None:
            current.monitor.add_outcome(name, value, {} if prediction is None else prediction.outputs)

    def uncertainty(self, prediction: Prediction) -> Uncertainty | None:
        """Return how far an answer can be trusted, by the rules of the release; None if it has none.

        Args:
            prediction: An answer of the release that answers now.
        """
        monitor, engine = self.monitor, self.predictor.current
        if monitor is None or engine is None or prediction.release != engine.release or not prediction.outputs:
            return None
        profile = monitor.reference.profile
        if not profile.output_kind:
            return None
        scores = next(iter(prediction.outputs.values())).reshape(-1)[: profile.classes]
        return uncertainty_of(profile, scores)

    def check_for_update(self) -> JournalRecord:
        """Ask the repository once, and do what it wants as far as this device can: fetch, test, switch.

        Returns:
            What the device remembers now; `last_refusal` tells what was refused.

        Raises:
            WorkError: Another agent changes this device's state, or the disk does not take the journal.
        """
        self.require_ownership()
        try:
            with self._state_lock:
                self.require_ownership()
                self._settle_probation()
                view = self._check_for_update()
                self._monitor_thread.start()
                asked = None if view is None else self._live_queries(view)
                if self._reporter is not None:
                    self._reporter.evaluate_stage()
        except Exception:
            self.check_in()
            raise
        told = self.check_in()  # a server that is slow holds nobody up
        if asked is not None:
            self._answer_queries(*asked)
        if told and self.has_waiting_job and self.settings.profiling and self.run_profiling_jobs is not None:
            self._run_jobs(self.run_profiling_jobs)
        return self.journal_record

    def check_in(self) -> bool:
        """Tell the control plane, if there is one, how this device is and how it fares in its rollout.

        What goes wrong there is remembered as a note, concerns no update, and is tried again with the next check.

        Returns:
            Whether it took what was told.
        """
        if self._reporter is None or not self.is_owner:
            return False
        said = self._reporter.check_in(self.status)
        self.has_waiting_job = self.has_waiting_job if said is None else said.job_waiting
        return said is not None

    def settle_probation(self) -> JournalRecord:
        """End a probation that is over: promote the release on trial, or return to the proven one."""
        with self._state_lock:
            if self.is_owner:
                self._settle_probation()
                self._monitor_thread.start()
            return self.journal_record

    def roll_back(self) -> JournalRecord:
        """Return to what was proven before.

        Raises:
            NoTrialError: There is nothing to return to.
            WorkError: Another agent changes this device's state.
        """
        with self._state_lock:
            self.require_ownership()
            self._updater.roll_back()
            return self.journal_record

    def verify_slots(self) -> list[Refusal]:
        """Check the bytes of all slots on the disk, heal what is broken, and return what was found.

        What is broken comes from another slot if that has it, else from the repository, else with the next check.

        Raises:
            WorkError: Another agent changes this device's state.
        """
        with self._state_lock:
            self.require_ownership()
            found = []
            for installed in self.journal_record.slots.all_releases:
                why = self._updater.release_fault(installed)
                if why is not None:
                    found.append(why)
                    self._updater.repair(installed, why)
            return found

    def status(self) -> dict[str, Any]:
        """Return what the device says of itself, by name; nothing in it comes from its inputs."""
        record = self.journal_record
        slots = record.slots
        serving = self._updater.serving_release
        shadow = self.predictor.shadow
        return {
            "device_id": self.settings.device_id,
            "device_class": self.settings.device_class,
            "model": None if serving is None else serving.name,
            "version": None if serving is None else serving.version,
            "digest": None if serving is None else serving.manifest_digest,
            "state": str(record.state),
            "proven": None if slots.proven is None else slots.proven.version,
            "trial": None if slots.trial is None else slots.trial.version,
            "previous": None if slots.previous is None else slots.previous.version,
            "target": None if record.target is None else record.target.version,
            "restart_needed": record.state is UpdateLifecycleState.TESTING and slots.trial is not None,
            "shadow": None if shadow is None else shadow.comparison,
            "last_refusal": record.last_refusal,
            "failed_releases": dict(record.failed_releases),
            "postponed_releases": dict(record.postponed_releases),
            "corrupt_releases": list(record.corrupt_releases),
            "served": record.served_inferences + self.predictor.served,
            "failed_inferences": self.predictor.failures,
            "rejected": self.predictor.rejected,
            "notice": record.retirement_notice or self._retirement_notice(),
            "metadata_checked_at": record.metadata_checked_at or None,
            "snapshot_digest": record.snapshot_digest or None,
            "free_bytes": self.files.free_bytes(self.state_folder),
            "battery_level": self.read_battery(),
            "latency_seconds": None if self.monitor is None else self.monitor.median_latency_seconds(),
            "uptime_seconds": time.monotonic() - self._started_at if self.serves_model else None,
            "server": None if self._reporter is None else self._reporter.contact_status(),
        }

    def _retirement_notice(self) -> Refusal | None:
        """Return that what serves is past its end of life, if it is."""
        serving = self._updater.serving_release
        try:
            end = "" if serving is None else self._releases.read_manifest(serving.manifest_digest)[0].end_of_life_at
        except LockedError:
            return None
        if serving is None or not end or parse_iso8601(end) > self._updater.believed_time():
            return None
        return Refusal("retired", serving.version, f"its end of life was {end}")

    def require_ownership(self) -> None:
        """See to it that this agent is the one that changes the device's state.

        Raises:
            WorkError: Another process is.
        """
        if not self.is_owner:
            raise WorkError(
                f"another process keeps the device in {self.state_folder} up to date",
                remedy="Stop it first, or ask it over its socket.",
            )

    def _settle_probation(self) -> None:
        self._updater.settle_probation()
        try:
            self._outcomes.write()
        except OSError as error:
            self._updater.try_write_record(Refusal("disk", "", f"the disk failed: {error.strerror}"))

    def _run_jobs(self, jobs: Callable[[], None]) -> None:
        """Do the jobs that wait; what goes wrong with them concerns no update."""
        try:
            jobs()
        except Exception as error:
            if self._reporter is not None:
                self._reporter.record_error(error)

    @property
    def is_awaited(self) -> bool:
        """Whether somebody waits for this device's next step, in a sum or for a job: it should soon check again."""
        return any(step in _UNFINISHED_STEPS for step in self._query_progress.values()) or (
            self.has_waiting_job and self.settings.profiling
        )

    def privacy_report(self) -> dict[str, Any]:
        """Return what this device was asked, what it told and what that cost, for its owner.

        Raises:
            RefusedError: What it told is not known any more; then it tells nothing.
        """
        return self._has_server().report()

    def _has_server(self) -> QueryResponder:
        if self._responder is None:
            self._responder = QueryResponder(
                self.state_folder, self.settings, self.files, open_pool(_TIMEOUT_SECONDS)
            )
        return self._responder

    def _live_queries(self, view: TrustedView) -> tuple[QueryPermit, tuple[Query, ...], str] | None:
        """Return what this device is asked, and about which release; what is wrong with it concerns no update."""
        serving = self._updater.serving_release
        try:
            asked = None if serving is None else view.live_queries(serving.name, self.settings.device_class)
            self._updater.write_record(trust_state=view.memory)
        except (EdgewrightError, OSError) as error:
            self._query_progress = {"": str(error)}
            with suppress(EdgewrightError, OSError):
                self._has_server().record_progress(self._query_progress)
            return None
        return None if serving is None or asked is None else (*asked, serving.manifest_digest)

    def _answer_queries(self, permit: QueryPermit, queries: tuple[Query, ...], release: str) -> None:
        """Answer what the fleet is asked."""
        issued = self.journal_record.trust_state.latest_signed_at
        now = min(self.clock(), parse_iso8601(issued)).timestamp() if issued else 0.0
        try:
            with self._query_lock:
                self._query_progress = self._has_server().answer_all(
                    permit, queries, release, self._query_counts, now=now
                )
        except (EdgewrightError, OSError) as error:
            self._query_progress = {"": str(error)}

    def _query_counts(self, query: Query, template: QueryTemplate) -> NDArray[np.float64]:
        """Return what is summed; zeros where there is nothing, for who answers must not depend on it."""
        monitor = self.monitor
        if template.kind != "histogram":
            raise InputError("this device learns nothing, so it has no vectors", remedy="Ask for histograms.")
        return np.zeros(template.values) if monitor is None else monitor.query_counts(query, template)

    def _check_for_update(self) -> TrustedView | None:
        update = self._updater
        update.repair_all()
        try:
            view, policy, choice = self._choose_update()
        except RefusedError as refused:
            update.write_record(last_refusal=refused.refusal)
            return None
        except InputError as error:
            update.write_record(last_refusal=Refusal("tampered", "", error.message))
            return None
        except OSError as error:
            update.try_write_record(Refusal("disk", "", f"the disk failed: {error.strerror}"))
            return None
        update.write_record(
            trust_state=view.memory,
            snapshot_digest=view.snapshot,
            metadata_checked_at=self.clock().isoformat(),
            rollout_rules=choice.rules
            or (self.journal_record.rollout_rules if self.journal_record.slots.trial is not None else ()),
            retirement_notice=retirement_notice(policy, self.journal_record.slots),
            min_version=policy.min_version,
            denied_manifests=policy.denied_manifests,
        )
        if choice.action == "withdraw" and choice.refusal is not None:
            update.withdraw(choice.refusal)
        elif choice.action == "wait" and choice.release is not None:
            update.begin_installation(choice.release)
            update.write_record(last_refusal=choice.refusal)
        elif choice.action == "install" and choice.release is not None:
            update.install(view, policy, choice.release)
        else:
            update.cancel_installation()
            update.write_record(last_refusal=choice.refusal)
        return view

    def _choose_update(self) -> tuple[TrustedView, RolloutPolicy, UpdateChoice]:
        view = refresh(
            self.state_folder / "metadata",
            self.settings.repository_url,
            self._root,
            self.journal_record.trust_state,
            self.fetcher,
            now=self.clock,
        )
        model = self.settings.model or self._require_single_model(view)
        policy = view.policy(model, self.settings.device_class)
        refused: Refusal | None = None
        plan: RolloutPlan | None = None
        try:
            plan = view.plan(policy)
        except RefusedError as error:  # the policy counts all the same: it may have denied what is on trial
            refused = error.refusal
        situation = DeviceContext(
            self.settings.device_id,
            self.settings.labels,
            self.settings.channel,
            self._updater.believed_time(),
            self.clock().astimezone().hour,
            self.read_battery(),
            self._rollout_seen_at(plan),
        )
        if refused is None and self._reporter is not None:
            self._reporter.observe_plan(plan, policy, situation)
        choice = choose_update(
            plan, policy, self.journal_record.slots, self.journal_record.failed_releases, situation
        )
        if refused is not None and choice.refusal is None:
            choice = replace(choice, refusal=refused)
        return view, policy, choice

    def _rollout_seen_at(self, plan: RolloutPlan | None) -> Mapping[str, str]:
        """Return when this device first saw releases rolled out, those of a plan among them."""
        # What was seen by a clock that was ahead is seen now.
        moment = self._updater.believed_time()
        known = {
            manifest: at
            for manifest, at in self.journal_record.rollout_seen_at.items()
            if parse_iso8601(at) <= moment
        }
        for arm in () if plan is None or plan.state not in ("running", "done") else plan.arms:
            known.setdefault(arm.manifest_sha256, moment.isoformat())
        newest = dict(sorted(known.items(), key=lambda entry: entry[1])[-_MAX_SEEN_RELEASES:])
        self._updater.write_record(rollout_seen_at=newest)
        return newest

    def _require_single_model(self, view: TrustedView) -> str:
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
