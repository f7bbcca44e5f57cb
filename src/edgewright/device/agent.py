"""The agent: it performs what the others decide, and remembers each step before the next.

Between any two steps the power may fail. Whatever is on the disk then, the next start finds a record of where it
stood, a proven release that is verified before it answers, and goes on from there.
"""

import datetime
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from numpy.typing import NDArray

from edgewright.contract.errors import CandidateError, EdgewrightError, ModelError, WorkError
from edgewright.contract.names import version_key
from edgewright.contract.plan import Policy
from edgewright.contract.refusal import Refusal, RefusedError
from edgewright.contract.release import Manifest, Variant
from edgewright.device.choose import Choice, Situation, choose
from edgewright.device.fetching import Source, fetch_variant
from edgewright.device.files import Files
from edgewright.device.guard import Guard
from edgewright.device.journal import Journal, Record
from edgewright.device.lifecycle import Event, State, after
from edgewright.device.predictor import Engine, Prediction, Predictor
from edgewright.device.settings import Settings, read_settings
from edgewright.device.shelves import Shelves
from edgewright.device.slots import Installed, begin_trial, end_trial, heal, roll_back
from edgewright.device.trial import Probation, peak_bytes, self_test
from edgewright.runtime.session import Session, open_session
from edgewright.trust.fetch import Fetcher
from edgewright.trust.keystore import KeyStore, LockedError, new_key_file
from edgewright.trust.verify import View, refresh

__all__ = ["Agent"]

_KEY = "device.key"
_MODEL = "model.onnx"
# A release that took the process along so often while it was tested has failed.
_ATTEMPTS = 3


def _utc_now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


@dataclass(slots=True)
class Agent:
    """What runs a model on a device and keeps it up to date.

    Attributes:
        state: The folder that `edgewright device enrol` made.
        files: The disk.
        fetcher: Gets bytes from the repository.
        now: The device's clock.
        keys: Of this device; a key file in `state` if not given.
        fleet: Keys of the fleet by name.
        probation: How long a new release is watched.
        battery: Returns the state of charge, 0 to 1; None without a battery.
    """

    state: Path
    files: Files = field(default_factory=Files)
    fetcher: Fetcher = field(default_factory=Fetcher)
    now: Callable[[], datetime.datetime] = _utc_now
    keys: KeyStore | None = None
    fleet: Mapping[str, KeyStore] = field(default_factory=dict)
    probation: Probation = field(default_factory=Probation)
    battery: Callable[[], float | None] = lambda: None
    settings: Settings = field(init=False)
    predictor: Predictor = field(init=False, default_factory=Predictor)
    _anchor: bytes = field(init=False)
    _journal: Journal = field(init=False)
    _shelves: Shelves = field(init=False)

    def __post_init__(self) -> None:
        """Read what the device remembers, and open what it ran.

        Raises:
            InputError: The folder holds no enrolled device.
        """
        self.settings, self._anchor = read_settings(self.state)
        if self.settings.sealed and self.keys is None:
            self.keys = new_key_file(self.state / _KEY)
        keys = self.keys if self.settings.sealed else None
        self._shelves = Shelves(self.state, self.files, keys, self.settings.device_class)
        self._journal = Journal(self.state, self.files)
        self._boot()

    @property
    def record(self) -> Record:
        """What the device remembers."""
        return self._journal.record

    def predict(self, feed: Mapping[str, NDArray[Any]]) -> Prediction:
        """Return the answer for one feed; it never waits for an update and never raises for what the feed holds.

        Args:
            feed: Arrays by input name.
        """
        return self.predictor.predict(feed)

    def check(self) -> Record:
        """Ask the repository once, and do what it wants as far as this device can: fetch, test, switch.

        Returns:
            What the device remembers now; `last_refusal` tells what was refused.
        """
        self.settle()
        try:
            view, policy, choice = self._choice()
        except RefusedError as refused:
            return self._remember(last_refusal=refused.refusal)
        except OSError as error:
            return self._remember_if_possible(Refusal("disk", "", f"the disk failed: {error.strerror}"))
        self._remember(memory=view.memory, snapshot=view.snapshot, checked=self.now().isoformat())
        if choice.action == "withdraw":
            self._withdraw(choice.why)
        elif choice.action == "wait" and choice.release is not None:
            self._want(choice.release)
            self._remember(last_refusal=choice.why)
        elif choice.action == "install" and choice.release is not None:
            self._install(view, policy, choice.release)
        else:
            self._give_up()
            self._remember(last_refusal=choice.why)
        return self.record

    def settle(self) -> Record:
        """End a probation that is over: promote the release on trial, or return to the proven one."""
        record = self.record
        if record.state is not State.PROBATION or record.slots.trial is None:
            return record
        served = record.served + self.predictor.served
        elapsed = (self.now() - _time(record.trial_since)).total_seconds() if record.trial_since else 0.0
        verdict = self.probation.verdict(served, self.predictor.failures, elapsed)
        if verdict is None:
            if self.predictor.served:
                self._remember(served=served)
                self.predictor.served = 0
            return self.record
        trial = record.slots.trial
        if verdict:
            slots = end_trial(record.slots, passed=True)
            self._step(Event.PROMOTED, slots=slots, wanted=None, served=0, trial_since="", last_refusal=None)
            self._shelves.sweep(slots, None)
        else:
            why = Refusal(
                "probation", trial.version, f"{self.predictor.failures} inferences failed in its probation"
            )
            self._end_badly(Event.PROBATION_FAILED, why)
        return self.record

    def rollback(self) -> Record:
        """Return to what was proven before.

        Raises:
            NoTrialError: There is nothing to return to.
        """
        slots = roll_back(self.record.slots)
        left = self.record.slots.serving
        failed = dict(self.record.failed)
        if left is not None:
            failed[left.manifest] = Refusal("policy", left.version, "it was rolled back by hand")
        self._step(Event.ROLLED_BACK, slots=slots, wanted=None, failed=failed, served=0, trial_since="")
        self._open_serving()
        return self.record

    def verify(self) -> list[Refusal]:
        """Check the bytes of all slots on the disk, heal what is broken, and return what was found.

        What is broken comes from another slot if that has it, else from the repository at the next check.
        """
        found = []
        for installed in (self.record.slots.trial, self.record.slots.proven, self.record.slots.previous):
            if installed is None:
                continue
            why = self._fault(installed)
            if why is not None:
                found.append(why)
                self._mend(installed, why)
        return found

    def status(self) -> dict[str, Any]:
        """Return what the device says of itself, by name; nothing in it comes from its inputs."""
        record = self.record
        serving = record.slots.serving
        return {
            "device_id": self.settings.device_id,
            "device_class": self.settings.device_class,
            "model": None if serving is None else serving.name,
            "version": None if serving is None else serving.version,
            "digest": None if serving is None else serving.manifest,
            "state": str(record.state),
            "proven": None if record.slots.proven is None else record.slots.proven.version,
            "trial": None if record.slots.trial is None else record.slots.trial.version,
            "previous": None if record.slots.previous is None else record.slots.previous.version,
            "wanted": None if record.wanted is None else record.wanted.version,
            "last_refusal": record.last_refusal,
            "failed": dict(record.failed),
            "served": record.served + self.predictor.served,
            "failures": self.predictor.failures,
            "rejected": self.predictor.rejected,
            "checked": record.checked or None,
            "snapshot": record.snapshot or None,
            "free_bytes": self.files.free_bytes(self.state),
            "battery": self.battery(),
        }

    def _choice(self) -> tuple[View, Policy, Choice]:
        view = refresh(
            self.state / "metadata", self.settings.url, self._anchor, self.record.memory, self.fetcher, now=self.now
        )
        model = self.settings.model or self._only_model(view)
        policy = view.policy(model, self.settings.device_class)
        plan = view.plan(policy)
        local = self.now().astimezone()
        situation = Situation(
            self.settings.device_id,
            self.settings.labels,
            self.settings.channel,
            self.now(),
            local.hour,
            self.battery(),
        )
        return view, policy, choose(plan, policy, self.record.slots, self.record.failed, situation)

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

    def _want(self, release: Installed) -> None:
        if self.record.wanted != release or self.record.state not in (State.WAITING, State.FETCHING, State.STAGED):
            self._give_up()
            self._step(Event.CHOSEN, wanted=release, attempts=0)

    def _give_up(self) -> None:
        """Stop an installation that is not wanted any more."""
        if self.record.state in (State.WAITING, State.FETCHING, State.STAGED):
            self._step(Event.WITHDRAWN, wanted=None, attempts=0)
            self._shelves.sweep(self.record.slots, None)

    def _withdraw(self, why: Refusal | None) -> None:
        if self.record.state is State.PROBATION:
            self._end_badly(Event.WITHDRAWN, why or Refusal("policy", "", "the rollout was withdrawn"))
        else:
            self._give_up()

    def _install(self, view: View, policy: Policy, release: Installed) -> None:
        if self.record.state is State.PROBATION:  # a newer one replaces what is on trial
            self._end_badly(Event.WITHDRAWN, Refusal("policy", release.version, "a newer release is rolled out"))
        self._want(release)
        try:
            manifest, content = view.manifest(release.name, release.version, release.manifest)
            variant = self._admitted(manifest, policy)
            if self.record.state is State.WAITING:
                self._step(Event.ADMITTED)
            self._fetch(content, variant, release)
            self._test(variant, release)
        except RefusedError as refused:
            self._refuse(release, refused.refusal)
        except OSError as error:
            self._remember_if_possible(Refusal("disk", "", f"the disk failed: {error.strerror}"))

    def _admitted(self, manifest: Manifest, policy: Policy) -> Variant:
        """Return the variant for this device, if it may and can run it."""
        path = f"{manifest.name} {manifest.version}"
        if manifest.kind != "model":
            raise RefusedError(
                "requirement", path, f"it is {manifest.kind}, which this agent hands to no installer yet"
            )
        if version_key(manifest.version) < version_key(policy.floor):
            raise RefusedError("policy", path, f"it is below the floor {policy.floor}")
        if manifest.end_of_life and _time(manifest.end_of_life) <= self.now():
            raise RefusedError("retired", path, f"its end of life was {manifest.end_of_life}")
        variant = manifest.variant(self.settings.device_class)
        if variant is None:
            classes = ", ".join(each.device_class for each in manifest.variants)
            raise RefusedError(
                "wrong class", path, f"it is for {classes}, this device is {self.settings.device_class}"
            )
        lacking = _lacking(variant)
        if lacking:
            raise RefusedError("requirement", path, lacking)
        return variant

    def _fetch(self, manifest: bytes, variant: Variant, release: Installed) -> None:
        if self.record.state is State.STAGED:
            if self._fault(release) is None:
                return
            self._step(Event.FOUND_BROKEN)
            self._step(Event.ADMITTED)
        shelf = self._shelves.staging(release.manifest, manifest)
        others = self._shelves.contents(self.record.slots)
        fetch_variant(variant, shelf, Source(self.settings.url, self.fetcher, self.fleet, others))
        self._shelves.stand(release.manifest)
        self._step(Event.FETCHED)

    def _test(self, variant: Variant, release: Installed) -> None:
        attempts = self.record.attempts + 1
        if attempts > _ATTEMPTS:
            raise RefusedError(
                "self-test", release.version, f"it ended this process {_ATTEMPTS} times while it was tested"
            )
        self._step(Event.SWITCHED, slots=begin_trial(self.record.slots, release), attempts=attempts)
        engine, why = self._proved(variant, release)
        if engine is None or why is not None:
            self._end_badly(Event.TEST_FAILED, why or Refusal("self-test", release.version, "it cannot be opened"))
            return
        self._step(
            Event.TEST_PASSED,
            wanted=None,
            attempts=0,
            served=0,
            trial_since=self.now().isoformat(),
            last_refusal=None,
        )
        self.predictor.switch(engine)

    def _proved(self, variant: Variant, release: Installed) -> tuple[Engine | None, Refusal | None]:
        before = peak_bytes()
        try:
            session = self._session(variant, release)
            if variant.self_test is None:
                return None, Refusal("self-test", release.version, "the release has no self-test")
            golden = self._shelves.shelf(release.manifest).read(variant.file(variant.self_test.file))
            trial = self_test(session, golden, variant.self_test, variant.budget, peak_before=before)
        except ModelError as error:
            return None, Refusal("external data", _MODEL, error.message)
        except (CandidateError, LockedError) as error:
            return None, Refusal("self-test", _MODEL, error.message)
        return self._engine(variant, release, session), trial.failure

    def _refuse(self, release: Installed, why: Refusal) -> None:
        """End an installation; what may pass by itself is tried again, the rest counts as failed here."""
        if why.code in ("unreachable", "slow", "missing", "disk", "expired"):
            if self.record.state is State.FETCHING:
                self._step(Event.FETCH_FAILED, last_refusal=why)
            else:
                self._remember(last_refusal=why)
            return
        failed = {**self.record.failed, release.manifest: why}
        if self.record.state in (State.WAITING, State.FETCHING):
            self._step(Event.REFUSED, wanted=None, failed=failed, last_refusal=why)
        elif self.record.state is State.STAGED:
            self._step(Event.WITHDRAWN, wanted=None, failed=failed, last_refusal=why)
        self._shelves.sweep(self.record.slots, None)

    def _end_badly(self, event: Event, why: Refusal) -> None:
        """Return to the proven release, and remember why."""
        trial = self.record.slots.trial
        failed = dict(self.record.failed)
        if trial is not None and event is not Event.WITHDRAWN:
            failed[trial.manifest] = why
        slots = end_trial(self.record.slots, passed=False)
        self._step(
            event, slots=slots, wanted=None, failed=failed, last_refusal=why, attempts=0, served=0, trial_since=""
        )
        self._open_serving()
        self._shelves.sweep(slots, None)

    def _boot(self) -> None:
        """Go on from wherever the last process ended."""
        record = self.record
        if record.state is State.TESTING:
            # The process ended in the middle of a test: go back, and test again while attempts are left.
            slots = end_trial(record.slots, passed=False)
            self._step(Event.FOUND_BROKEN, slots=slots)
        self._shelves.sweep(self.record.slots, self.record.wanted)
        self._open_serving()

    def _open_serving(self) -> None:
        """Open the release that should answer; what is broken gives way to what is not."""
        while (serving := self.record.slots.serving) is not None:
            current = self.predictor.engine
            if current is not None and current.release.manifest == serving.manifest:
                return
            try:
                variant = self._shelves.variant(serving.manifest)
                self.predictor.switch(self._engine(variant, serving, self._session(variant, serving)))
                return
            except (LockedError, CandidateError, ModelError) as error:
                self._drop(serving, Refusal("tampered", _MODEL, error.message))
        self.predictor.switch(None)

    def _session(self, variant: Variant, release: Installed) -> Session:
        content = self._shelves.shelf(release.manifest).read(variant.file(_MODEL))
        return open_session(content)

    def _engine(self, variant: Variant, release: Installed, session: Session) -> Engine:
        if variant.contract is None:
            raise CandidateError(f"{release.version} has no input contract", remedy="Publish it again.")
        return Engine(release, session, Guard(variant.contract))

    def _fault(self, installed: Installed) -> Refusal | None:
        """Return what is wrong with a release on the disk, None if nothing."""
        try:
            variant = self._shelves.variant(installed.manifest)
            shelf = self._shelves.shelf(installed.manifest)
            for file in variant.files:
                shelf.read(file)
        except (LockedError, OSError) as error:
            return Refusal("tampered", installed.version, str(error))
        return None

    def _mend(self, installed: Installed, why: Refusal) -> None:
        """Fill a broken release's shelf again, from other slots or from the repository."""
        try:
            variant = self._shelves.variant(installed.manifest)
            others = [
                entry
                for entry in self._shelves.contents(self.record.slots)
                if entry[0].folder != self._shelves.shelf(installed.manifest).folder
            ]
            source = Source(self.settings.url, self.fetcher, self.fleet, others)
            fetch_variant(variant, self._shelves.shelf(installed.manifest), source)
        except (EdgewrightError, OSError):
            self._drop(installed, why)
            self._open_serving()
            return
        self._remember(last_refusal=why)

    def _drop(self, installed: Installed, why: Refusal) -> None:
        """Go on without a release whose bytes are broken; the next check fetches it again."""
        record = self.record
        if record.slots.trial is not None and record.slots.trial.manifest == installed.manifest:
            slots = end_trial(record.slots, passed=False)
            self._step(
                Event.FOUND_BROKEN, slots=slots, wanted=None, last_refusal=why, served=0, trial_since="", attempts=0
            )
            return
        slots = heal(record.slots, installed.manifest)
        state = record.state
        if state is State.IDLE and slots.proven is None:
            state = State.EMPTY
        self._remember(slots=slots, state=state, last_refusal=why)

    def _step(self, event: Event, **changes: Any) -> Record:
        slots = changes.get("slots", self.record.slots)
        state = after(self.record.state, event, has_proven=slots.proven is not None)
        return self._remember(state=state, **changes)

    def _remember(self, **changes: Any) -> Record:
        record = msgspec.structs.replace(self.record, **changes)
        if record == self.record:
            return record
        try:
            return self._journal.write(record)
        except OSError as error:
            raise WorkError(
                f"the journal in {self.state} cannot be written: {error.strerror}",
                remedy="Free space on the device.",
            ) from error

    def _remember_if_possible(self, why: Refusal) -> Record:
        try:
            return self._remember(last_refusal=why)
        except WorkError:
            return self.record


def _time(text: str) -> datetime.datetime:
    found = datetime.datetime.fromisoformat(text)
    return found if found.tzinfo is not None else found.replace(tzinfo=datetime.UTC)


def _lacking(variant: Variant) -> str:
    """Return in words what this device lacks to run a variant, "" if nothing."""
    import onnxruntime as ort

    need = variant.requirement
    if need.runtime != "onnxruntime":
        return f"it needs {need.runtime}, this device has onnxruntime"
    have = ".".join(part for part in ort.__version__.split(".")[:3] if part.isdigit())
    if version_key(have) < version_key(need.at_least):
        return f"it needs onnxruntime {need.at_least}, this device has {have}"
    available = ort.get_available_providers()
    if need.providers and not set(need.providers) & set(available):
        return f"it needs one of {', '.join(need.providers)}, this device has {', '.join(available)}"
    features = _features() if need.features else frozenset()
    missing = [feature for feature in need.features if feature not in features]
    return f"it needs {', '.join(missing)}, which this {platform.machine()} lacks" if missing else ""


def _features() -> frozenset[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    words = (line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features")))
    return frozenset(word for line in words for word in line)
