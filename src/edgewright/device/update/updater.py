"""One update, step by step: fetch, test, switch, watch, return. Each step is remembered before the next.

Between any two steps the power may fail. Whatever is on the disk then, the next start finds a record of where it
stood, a proven release that is verified before it answers, and goes on from there.
"""

import datetime
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from edgewright.contract.errors import CandidateError, EdgewrightError, ModelError, WorkError
from edgewright.contract.names import version_key
from edgewright.contract.refusal import Refusal, RefusedError
from edgewright.contract.release import Manifest, Variant
from edgewright.contract.rollout.plan import Policy
from edgewright.contract.timestamps import time_of
from edgewright.device.enrolment import Settings
from edgewright.device.host_info import boot_id, lacking
from edgewright.device.inference.predictor import Engine, Predictor
from edgewright.device.inference.shadow import Shadow
from edgewright.device.monitoring.outcomes import Outcome, Outcomes, is_worse
from edgewright.device.slots import Installed, begin_trial, end_trial, roll_back
from edgewright.device.update.download import Source, fetch_variant
from edgewright.device.update.installer import Installer, InstallerError
from edgewright.device.update.journal import Journal, Postponed, Record
from edgewright.device.update.release_loader import MODEL, Opener
from edgewright.device.update.release_store import Shelves
from edgewright.device.update.self_test import Probation
from edgewright.device.update.state_machine import Event, State, after
from edgewright.trust.client.fetcher import Fetcher
from edgewright.trust.client.verification import View
from edgewright.trust.keys.keystore import KeyStore, LockedError

__all__ = ["Update"]

# A release that failed so often for want of memory or in the heat, or took the process along, has failed.
_ATTEMPTS = 3
# After the first such failure it is tried again in so long, then in twice that.
_PAUSE = datetime.timedelta(minutes=5)
_IN_PROGRESS = (State.WAITING, State.FETCHING, State.STAGED)
_ON_TRIAL = (State.TESTING, State.PROBATION)
# What passes by itself: tried again at every check.
_TRANSIENT = ("unreachable", "slow", "missing", "disk", "expired")
# What this release itself has shown here: not tried again.
_FINAL = ("self-test", "budget", "probation", "installer", "external data")
# All else may change (a server that lies, a runtime that is too old): tried again after this, then twice as long, …
_POSTPONE, _LONGEST = datetime.timedelta(minutes=10), datetime.timedelta(days=1)
_MOST_REMEMBERED = 32
# So many of a model's inferences may fail if it still passes its self-test: then it is the inputs' fault.
_MOST_FAILING = 0.5


@dataclass(slots=True)
class Update:
    """What performs an update.

    Attributes:
        settings: Of the device.
        journal: What it remembers.
        shelves: Where releases lie.
        predictor: Answers with what this opens.
        outcomes: What the application learned.
        fetcher: Gets bytes from the repository.
        fleet: Keys of the fleet by name.
        installer: For images; None if this device takes none.
        probation: How long a new release is watched.
        now: The clock.
    """

    settings: Settings
    journal: Journal
    shelves: Shelves
    predictor: Predictor
    outcomes: Outcomes
    fetcher: Fetcher
    fleet: Mapping[str, KeyStore]
    installer: Installer | None
    probation: Probation
    now: Callable[[], datetime.datetime]

    @property
    def opener(self) -> Opener:
        """Opens what lies on the shelves."""
        return Opener(self.shelves)

    @property
    def record(self) -> Record:
        """What the device remembers."""
        return self.journal.record

    @property
    def serving(self) -> Installed | None:
        """The release that should answer: on probation, else the proven one, as far as their bytes are sound."""
        record = self.record
        slots = record.slots
        trial = slots.trial if record.state is State.PROBATION else None
        for each in (None if trial is None or trial.shadow else trial, slots.proven):
            if each is not None and each.manifest not in record.broken:
                return each
        previous = slots.previous
        if previous is None or previous.manifest in record.broken or not self._may_serve(previous):
            return None
        return previous if slots.proven is not None and slots.proven.manifest in record.broken else None

    def moment(self) -> datetime.datetime:
        """Return the time that is believed: the device's own, but not before what was signed."""
        issued = self.record.memory.issued
        return max(self.now(), time_of(issued)) if issued else self.now()

    def boot(self) -> None:
        """Go on from wherever the last process ended; what is proven serves even if nothing can be written."""
        self.open_serving()
        with suppress(WorkError, OSError):
            self.recover()
            self._sweep()
            self.settle_image()

    def recover(self) -> None:
        """Go back from a test that nobody is performing any more, and test again while attempts are left."""
        record = self.record
        trial = record.slots.trial
        interrupted = trial is None or trial.kind == "model" or not record.handed
        if record.state is State.TESTING and interrupted:
            self.step(Event.FOUND_BROKEN, slots=end_trial(record.slots, passed=False))

    def install(self, view: View, policy: Policy, release: Installed) -> None:
        """Bring a release to its trial."""
        if self.record.state is State.PROBATION and self.record.slots.proven is None:
            return  # it is all that there is: it serves to the end of its probation
        later = self.record.postponed.get(release.manifest)
        if later is not None and self.moment() < time_of(later.until):
            self.remember(last_refusal=later.why)
            return
        if self.record.state in _ON_TRIAL:  # a newer one replaces what is on trial
            why = Refusal("policy", release.version, f"{release.version} is rolled out now")
            self.end_badly(Event.WITHDRAWN, why, sweep=False)
        self.want(release)
        try:
            manifest, content = view.manifest(release.name, release.version, release.manifest)
            variant = self._admitted(manifest, policy)
            installed = msgspec.structs.replace(release, kind=manifest.kind)
            if self.record.state is State.WAITING:
                self.step(Event.ADMITTED)
            self._fetch(content, variant, installed)
            if manifest.kind == "model":
                self._test(variant, installed)
            else:
                self._hand_over(variant, installed)
        except RefusedError as refused:
            self._refuse(release, refused.refusal)
        except OSError as error:
            self.remember_if_possible(Refusal("disk", "", f"the disk failed: {error.strerror}"))

    def want(self, release: Installed) -> None:
        """Begin an installation, or go on with it."""
        if self.record.state in _ON_TRIAL:
            return
        if self.record.wanted != release or self.record.state not in _IN_PROGRESS:
            self.give_up(sweep=False)
            self.step(Event.CHOSEN, wanted=release, attempts=0, not_before="")

    def give_up(self, *, sweep: bool = True) -> None:
        """Stop an installation that is not wanted any more."""
        if self.record.state in _IN_PROGRESS:
            self.step(Event.WITHDRAWN, wanted=None, attempts=0, not_before="")
            if sweep:
                self._sweep()

    def withdraw(self, why: Refusal) -> None:
        """Take back what is on trial or being installed."""
        if self.record.state in _ON_TRIAL:
            self.end_badly(Event.WITHDRAWN, why)
        else:
            self.give_up()

    def settle(self) -> None:
        """End a probation that is over: promote the release on trial, or return to the proven one."""
        self.recover()
        self.settle_image()
        trial = self.record.slots.trial
        if self.record.state is not State.PROBATION or trial is None:
            return
        why = self._failing(trial)
        if why is not None:
            self.end_badly(Event.PROBATION_FAILED, why)
        elif not trial.shadow and self._is_over(trial):  # a shadow answers nobody, so it proves nothing
            self._promote(trial)
        elif self.predictor.served and not trial.shadow:
            self.remember(served=self.record.served + self.predictor.take_served())

    def _is_over(self, trial: Installed) -> bool:
        """Whether a release on trial was watched for long enough."""
        if trial.kind != "model":  # nobody sees its inferences: it has come up, and stays up for that time
            return self._elapsed() >= self.probation.seconds
        served = self.record.served + self.predictor.served
        return self.probation.is_over(served, self._elapsed())

    def _failing(self, trial: Installed) -> Refusal | None:
        """Return why a release on trial is sent back, None if nothing speaks against it."""
        if trial.kind != "model" and self.installer is not None:
            try:
                runs = self.installer.running()
            except InstallerError:
                return None
            fell = runs == self.record.ran
            return Refusal("probation", trial.version, f"the platform fell back to {runs!r}") if fell else None
        failures = self.predictor.failures
        if self.at_fault(trial, failures, self.record.served + self.predictor.served):
            return Refusal("probation", trial.version, f"{failures} inferences failed in its probation")
        return self._worse(trial)

    def at_fault(self, release: Installed, failures: int, served: int) -> bool:
        """Whether failed inferences are a release's own fault.

        Args:
            release: Which.
            failures: Inferences that failed.
            served: Inferences that did not.
        """
        if failures <= self.probation.most_failures:
            return False
        if failures > _MOST_FAILING * (served + failures):
            return True
        engine = self.predictor.engine
        if engine is None or engine.release.manifest != release.manifest:
            return False
        # If it passes its self-test, the inputs that it failed on were at fault.
        return not self.opener.still_passes(engine)

    def settle_image(self) -> None:
        """Find out whether an image that was handed over runs now."""
        record = self.record
        trial = record.slots.trial
        if record.state is not State.TESTING or trial is None or trial.kind == "model" or self.installer is None:
            return
        try:
            runs = self.installer.running()
        except InstallerError as error:
            self.remember_if_possible(Refusal("installer", trial.version, error.message))
            return
        if runs != record.ran:
            since = self.moment().isoformat()
            self.step(Event.TEST_PASSED, wanted=None, attempts=0, trial_since=since, last_refusal=None)
        elif boot_id() != record.boot:
            why = Refusal("self-test", trial.version, f"the platform came up with {runs!r} as before")
            self.end_badly(Event.TEST_FAILED, why)

    def roll_back(self) -> None:
        """Return to what was proven before.

        Raises:
            NoTrialError: There is nothing to return to.
            RefusedError: The offline keys do not allow what there is to return to.
            InstallerError: The platform does not return to its other slot.
        """
        slots = roll_back(self.record.slots)
        to = slots.proven
        if to is not None and not self._may_serve(to):
            raise RefusedError(
                "policy", to.version, f"{to.version} is denied, or below the floor {self.record.floor}"
            )
        self.give_up()
        left = self.record.slots.trial or self.record.slots.proven
        failed = dict(self.record.failed)
        if left is not None:
            failed = _with(failed, left.manifest, Refusal("policy", left.version, "it was rolled back by hand"))
            if left.kind != "model":
                self._back()
        self.step(Event.ROLLED_BACK, slots=slots, wanted=None, failed=failed, served=0, trial_since="")
        self.open_serving()

    def fault(self, installed: Installed) -> Refusal | None:
        """Return what is wrong with a release on the disk, None if nothing."""
        try:
            variant = self.shelves.variant(installed.manifest)
            shelf = self.shelves.shelf(installed.manifest, sealed=installed.kind == "model")
            for file in variant.files if installed.kind == "model" else ():
                shelf.check(file)
        except (LockedError, OSError) as error:
            return Refusal("tampered", installed.version, str(error))
        return None

    def mend_all(self) -> None:
        """Try again to mend what was found broken and could not be mended."""
        for installed in self.record.slots.held:
            if installed.manifest in self.record.broken:
                self.mend(installed, Refusal("tampered", installed.version, "it was found broken"))

    def mend(self, installed: Installed, why: Refusal) -> None:
        """Fill a broken release's shelf again, from other slots or from the repository."""
        shelf = self.shelves.shelf(installed.manifest, sealed=installed.kind == "model")
        try:
            variant = self.shelves.variant(installed.manifest)
            others = [
                entry for entry in self.shelves.contents(self.record.slots) if entry[0].folder != shelf.folder
            ]
            fetch_variant(variant, shelf, Source(self.settings.url, self.fetcher, self.fleet, others))
        except (EdgewrightError, OSError):
            self._mark_broken(installed, why)
            return
        broken = tuple(each for each in self.record.broken if each != installed.manifest)
        self.remember(last_refusal=why, broken=broken)
        self.open_serving()

    def open_serving(self) -> None:
        """Open the release that should answer; what is broken gives way to what is not."""
        while (serving := self.serving) is not None and serving.kind == "model":
            current = self.predictor.engine
            if current is not None and current.release.manifest == serving.manifest:
                break
            try:
                self.predictor.engine = self.opener.open(serving)
                break
            except (LockedError, CandidateError, ModelError, OSError) as error:
                self._mark_broken(serving, Refusal("tampered", MODEL, str(error)))
        else:
            self.predictor.engine = None
        self._open_shadow()

    def end_badly(self, event: Event, why: Refusal, *, sweep: bool = True) -> None:
        """Return to the proven release, and remember why."""
        trial = self.record.slots.trial
        failed = dict(self.record.failed)
        if trial is not None and event is not Event.WITHDRAWN:
            failed = _with(failed, trial.manifest, why)
        if trial is not None and trial.kind != "model":
            try:
                self._back()
            except InstallerError as error:
                why = Refusal("installer", trial.version, f"{why.reason}; {error.message}")
        self.step(
            event,
            slots=end_trial(self.record.slots, passed=False),
            wanted=None,
            failed=failed,
            last_refusal=why,
            attempts=0,
            served=0,
            trial_since="",
        )
        self.open_serving()
        if sweep:
            self._sweep()

    def step(self, event: Event, **changes: Any) -> Record:
        """Remember what happened."""
        slots = changes.get("slots", self.record.slots)
        state = after(self.record.state, event, has_proven=slots.proven is not None)
        return self.remember(state=state, **changes)

    def remember(self, **changes: Any) -> Record:
        """Remember changes.

        Raises:
            WorkError: The disk is full or broken; the record before is still there.
        """
        record = msgspec.structs.replace(self.record, **changes)
        if record == self.record:
            return record
        try:
            return self.journal.write(record)
        except OSError as error:
            raise WorkError(
                f"the journal in {self.shelves.state} cannot be written: {error.strerror}",
                remedy="Free space on the device.",
            ) from error

    def remember_if_possible(self, why: Refusal) -> Record:
        """Remember what was refused, if the disk permits."""
        try:
            return self.remember(last_refusal=why)
        except WorkError:
            return self.record

    def _admitted(self, manifest: Manifest, policy: Policy) -> Variant:
        """Return the variant for this device, if it may and can run it."""
        path = f"{manifest.name} {manifest.version}"
        if manifest.kind != "model" and self.installer is None:
            raise RefusedError(
                "requirement",
                path,
                f"it is of the kind {manifest.kind}, and this device was enrolled without an installer",
            )
        if version_key(manifest.version) < version_key(policy.floor):
            raise RefusedError("policy", path, f"it is below the floor {policy.floor}")
        if manifest.end_of_life and time_of(manifest.end_of_life) <= self.moment():
            raise RefusedError("retired", path, f"its end of life was {manifest.end_of_life}")
        variant = manifest.variant(self.settings.device_class)
        if variant is None:
            classes = ", ".join(each.device_class for each in manifest.variants)
            raise RefusedError(
                "wrong class", path, f"it is for {classes}, this device is {self.settings.device_class}"
            )
        missing = lacking(variant) if manifest.kind == "model" else ""
        if missing:
            raise RefusedError("requirement", path, missing)
        return variant

    def _fetch(self, manifest: bytes, variant: Variant, release: Installed) -> None:
        if self.record.state is State.STAGED:
            if self.fault(release) is None:
                return
            self.step(Event.FOUND_BROKEN)
            self.step(Event.ADMITTED)
        shelf = self.shelves.staging(release.manifest, manifest, sealed=release.kind == "model")
        others = self.shelves.contents(self.record.slots)
        fetch_variant(variant, shelf, Source(self.settings.url, self.fetcher, self.fleet, others))
        self.shelves.stand(release.manifest)
        self.step(Event.FETCHED)

    def _test(self, variant: Variant, release: Installed) -> None:
        if self.record.not_before and self.moment() < time_of(self.record.not_before):
            return
        attempts = self.record.attempts + 1
        if attempts > _ATTEMPTS:
            raise RefusedError(
                "self-test", release.version, f"it ended this process {_ATTEMPTS} times while it was tested"
            )
        self.step(Event.SWITCHED, slots=begin_trial(self.record.slots, release), attempts=attempts, not_before="")
        proof = self.opener.prove(release, variant)
        if proof.engine is None or proof.why is not None:
            why = proof.why or Refusal("self-test", release.version, "it cannot be opened")
            if proof.passing and attempts < _ATTEMPTS:
                again = self.moment() + _PAUSE * 2 ** (attempts - 1)
                slots = end_trial(self.record.slots, passed=False)
                self.step(Event.POSTPONED, slots=slots, not_before=again.isoformat(), last_refusal=why)
            else:
                self.end_badly(Event.TEST_FAILED, why)
            return
        self.step(
            Event.TEST_PASSED,
            wanted=None,
            attempts=0,
            served=0,
            trial_since=self.moment().isoformat(),
            last_refusal=None,
        )
        if release.shadow:
            self._shadow(proof.engine)
        else:
            self.predictor.engine = proof.engine

    def _hand_over(self, variant: Variant, release: Installed) -> None:
        """Give an image to the platform's installer; it is on trial from the platform's next start on."""
        assert self.installer is not None  # noqa: S101 - _admitted has refused it otherwise
        shelf = self.shelves.shelf(release.manifest, sealed=False)
        attempts = self.record.attempts + 1
        if attempts > _ATTEMPTS:
            raise RefusedError("installer", release.version, f"its installation was broken off {_ATTEMPTS} times")
        try:
            ran = self.installer.running()
            slots = begin_trial(self.record.slots, release)
            # Remembered first: a platform that starts anew in the middle of it must find it.
            self.step(
                Event.SWITCHED,
                slots=slots,
                boot=boot_id(),
                ran=ran,
                handed=False,
                attempts=attempts,
                last_refusal=None,
            )
            self.installer.install(shelf.folder / variant.files[0].name, release.version)
            self.remember(handed=True)
        except InstallerError as error:
            why = Refusal("installer", release.version, error.message)
            if self.record.state is State.TESTING:
                self.end_badly(Event.TEST_FAILED, why)
            else:
                self.remember_if_possible(why)

    def _back(self) -> None:
        """Have the platform start what ran before an image was handed over."""
        if self.installer is None:
            return
        if self.record.state in _ON_TRIAL and self.installer.running() == self.record.ran:
            self.installer.keep()  # it was not started, or the platform has fallen back
        else:
            self.installer.revert()

    def _worse(self, trial: Installed) -> Refusal | None:
        """Return why a release on trial does worse than the proven one, by what the application counted."""
        proven = self.record.slots.proven
        if proven is None:
            return None
        new, old = self.outcomes.of(trial.manifest), self.outcomes.of(proven.manifest)
        for rule in self.record.rules:
            name = rule.metric.partition(":")[2]
            one, other = new.get(name, Outcome()), old.get(name, Outcome())
            if name and is_worse(one, other, margin=rule.margin, confidence=rule.confidence):
                reason = f"its {name} is {one.mean:.3g} on the average, {other.mean:.3g} with {proven.version}"
                return Refusal("probation", rule.metric, reason)
        return None

    def _promote(self, trial: Installed) -> None:
        if trial.kind != "model" and self.installer is not None:
            try:
                self.installer.confirm()
            except InstallerError as error:
                self.remember_if_possible(Refusal("installer", trial.version, error.message))
                return
        slots = end_trial(self.record.slots, passed=True)
        self.step(Event.PROMOTED, slots=slots, wanted=None, served=0, trial_since="", last_refusal=None)
        self.predictor.take_served()
        self._sweep()

    def _may_serve(self, installed: Installed) -> bool:
        """Whether the offline keys, as last believed, would have a release served that does not serve yet."""
        record = self.record
        return (
            version_key(installed.version) >= version_key(record.floor) and installed.manifest not in record.denied
        )

    def _refuse(self, release: Installed, why: Refusal) -> None:
        """End an installation: tried again at the next check, later and later, or not at all."""
        if why.code in _TRANSIENT:
            if self.record.state is State.FETCHING:
                self.step(Event.FETCH_FAILED, last_refusal=why)
            else:
                self.remember(last_refusal=why)
            return
        failed, postponed = self.record.failed, self.record.postponed
        if why.code in _FINAL:
            failed = _with(failed, release.manifest, why)
        else:
            before = postponed.get(release.manifest)
            count = 1 if before is None else before.count + 1
            until = self.moment() + min(_LONGEST, _POSTPONE * 2 ** min(count - 1, 16))
            postponed = _with(postponed, release.manifest, Postponed(why, count, until.isoformat()))
        if self.record.state in _IN_PROGRESS:
            self.step(Event.REFUSED, wanted=None, failed=failed, postponed=postponed, last_refusal=why)
        self._sweep()

    def _open_shadow(self) -> None:
        trial = self.record.slots.trial
        known = self.predictor.shadow
        if trial is None or not trial.shadow or self.record.state is not State.PROBATION:
            self._shadow(None)
        elif known is None or known.release.manifest != trial.manifest:
            try:
                self._shadow(self.opener.open(trial))
            except (LockedError, CandidateError, ModelError, OSError) as error:
                self._mark_broken(trial, Refusal("tampered", MODEL, str(error)))

    def _shadow(self, engine: Engine | None) -> None:
        before, self.predictor.shadow = self.predictor.shadow, None
        if before is not None:
            before.close()
        if engine is not None:
            self.predictor.shadow = Shadow(engine.release, engine.run)

    def _mark_broken(self, installed: Installed, why: Refusal) -> None:
        """Go on without a release whose bytes are broken, until they can be had again.

        An engine that was opened before its bytes rotted goes on answering.
        """
        record = self.record
        if record.state is State.PROBATION and record.slots.trial == installed:
            slots = end_trial(record.slots, passed=False)
            self.step(
                Event.FOUND_BROKEN, slots=slots, wanted=None, last_refusal=why, served=0, trial_since="", attempts=0
            )
        elif installed.manifest not in record.broken:
            self.remember(broken=(*record.broken, installed.manifest), last_refusal=why)

    def _sweep(self) -> None:
        if self.journal.keeps and not self.journal.lost:
            self.shelves.sweep(self.record.slots, self.record.wanted)

    def _elapsed(self) -> float:
        since = self.record.trial_since
        return (self.moment() - time_of(since)).total_seconds() if since else 0.0


Entry = TypeVar("Entry")


def _with(known: dict[str, Entry], key: str, entry: Entry) -> dict[str, Entry]:
    """Return a table with an entry as its newest; the oldest make room."""
    others = [item for item in known.items() if item[0] != key]
    return dict([*others[-(_MOST_REMEMBERED - 1) :], (key, entry)])
