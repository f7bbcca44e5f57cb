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
from edgewright.contract.rollout.plan import RolloutPolicy
from edgewright.contract.timestamps import parse_iso8601
from edgewright.device.enrolment import DeviceSettings
from edgewright.device.host_info import boot_id, missing_requirements
from edgewright.device.inference.predictor import LoadedRelease, Predictor
from edgewright.device.inference.shadow import ShadowRunner
from edgewright.device.monitoring.outcomes import OutcomeStore, OutcomeTotal, is_worse
from edgewright.device.slots import InstalledRelease, begin_trial, end_trial, roll_back
from edgewright.device.update.download import DownloadSource, fetch_variant
from edgewright.device.update.installer import Installer, InstallerError
from edgewright.device.update.journal import Journal, JournalRecord, PostponedRelease
from edgewright.device.update.release_loader import MODEL_FILE, ReleaseLoader
from edgewright.device.update.release_store import ReleaseStore
from edgewright.device.update.self_test import Probation
from edgewright.device.update.state_machine import UpdateEvent, UpdateLifecycleState, next_state
from edgewright.trust.client.fetcher import Fetcher
from edgewright.trust.client.verification import TrustedView
from edgewright.trust.keys.keystore import KeyStore, LockedError

__all__ = ["Updater"]

# A release that failed so often for want of memory or in the heat, or took the process along, has failed.
_MAX_TEST_ATTEMPTS = 3
# After the first such failure it is tried again in so long, then in twice that.
_RETEST_DELAY = datetime.timedelta(minutes=5)
_INSTALLING_STATES = (UpdateLifecycleState.WAITING, UpdateLifecycleState.FETCHING, UpdateLifecycleState.STAGED)
_TRIAL_STATES = (UpdateLifecycleState.TESTING, UpdateLifecycleState.PROBATION)
# What passes by itself: tried again at every check.
_TRANSIENT_REFUSALS = ("unreachable", "slow", "missing", "disk", "expired")
# What this release itself has shown here: not tried again.
_FINAL_REFUSALS = ("self-test", "budget", "probation", "installer", "external data")
# All else may change (a server that lies, a runtime that is too old): tried again after this, then twice as long, …
_MIN_POSTPONEMENT, _MAX_POSTPONEMENT = datetime.timedelta(minutes=10), datetime.timedelta(days=1)
_MAX_REMEMBERED_RELEASES = 32
# So many of a model's inferences may fail if it still passes its self-test: then it is the inputs' fault.
_MAX_FAILURE_RATE = 0.5


@dataclass(slots=True)
class Updater:
    """What performs an update.

    Attributes:
        settings: Of the device.
        journal: What it remembers.
        releases: Where releases lie.
        predictor: Answers with what this opens.
        outcomes: What the application learned.
        fetcher: Gets bytes from the repository.
        fleet_keys: Keys of the fleet by name.
        installer: For images; None if this device takes none.
        probation: How long a new release is watched.
        clock: The clock.
    """

    settings: DeviceSettings
    journal: Journal
    releases: ReleaseStore
    predictor: Predictor
    outcomes: OutcomeStore
    fetcher: Fetcher
    fleet_keys: Mapping[str, KeyStore]
    installer: Installer | None
    probation: Probation
    clock: Callable[[], datetime.datetime]

    @property
    def loader(self) -> ReleaseLoader:
        """Opens what lies on the shelves."""
        return ReleaseLoader(self.releases)

    @property
    def journal_record(self) -> JournalRecord:
        """What the device remembers."""
        return self.journal.record

    @property
    def serving_release(self) -> InstalledRelease | None:
        """The release that should answer: on probation, else the proven one, as far as their bytes are sound."""
        record = self.journal_record
        slots = record.slots
        trial = slots.trial if record.state is UpdateLifecycleState.PROBATION else None
        for each in (None if trial is None or trial.is_shadow else trial, slots.proven):
            if each is not None and each.manifest_digest not in record.corrupt_releases:
                return each
        previous = slots.previous
        if previous is None or previous.manifest_digest in record.corrupt_releases or not self._may_serve(previous):
            return None
        return (
            previous
            if slots.proven is not None and slots.proven.manifest_digest in record.corrupt_releases
            else None
        )

    def believed_time(self) -> datetime.datetime:
        """Return the time that is believed: the device's own, but not before what was signed."""
        issued = self.journal_record.trust_state.latest_signed_at
        return max(self.clock(), parse_iso8601(issued)) if issued else self.clock()

    def resume_after_start(self) -> None:
        """Go on from wherever the last process ended; what is proven serves even if nothing can be written."""
        self.open_serving()
        with suppress(WorkError, OSError):
            self.recover()
            self._delete_unused()
            self.settle_image_trial()

    def recover(self) -> None:
        """Go back from a test that nobody is performing any more, and test again while attempts are left."""
        record = self.journal_record
        trial = record.slots.trial
        interrupted = trial is None or trial.release_kind == "model" or not record.handed_to_installer
        if record.state is UpdateLifecycleState.TESTING and interrupted:
            self.apply_event(UpdateEvent.CORRUPTION_FOUND, slots=end_trial(record.slots, passed=False))

    def install(self, view: TrustedView, policy: RolloutPolicy, release: InstalledRelease) -> None:
        """Bring a release to its trial."""
        if self.journal_record.state is UpdateLifecycleState.PROBATION and self.journal_record.slots.proven is None:
            return  # it is all that there is: it serves to the end of its probation
        later = self.journal_record.postponed_releases.get(release.manifest_digest)
        if later is not None and self.believed_time() < parse_iso8601(later.not_before):
            self.write_record(last_refusal=later.refusal)
            return
        if self.journal_record.state in _TRIAL_STATES:  # a newer one replaces what is on trial
            why = Refusal("policy", release.version, f"{release.version} is rolled out now")
            self.fail_update(UpdateEvent.WITHDRAWN, why, sweep=False)
        self.begin_installation(release)
        try:
            manifest, content = view.manifest(release.name, release.version, release.manifest_digest)
            variant = self._check_admission(manifest, policy)
            installed = msgspec.structs.replace(release, release_kind=manifest.kind)
            if self.journal_record.state is UpdateLifecycleState.WAITING:
                self.apply_event(UpdateEvent.ADMITTED)
            self._fetch_release(content, variant, installed)
            if manifest.kind == "model":
                self._test_release(variant, installed)
            else:
                self._hand_to_installer(variant, installed)
        except RefusedError as refused:
            self._refuse_release(release, refused.refusal)
        except OSError as error:
            self.try_write_record(Refusal("disk", "", f"the disk failed: {error.strerror}"))

    def begin_installation(self, release: InstalledRelease) -> None:
        """Begin an installation, or go on with it."""
        if self.journal_record.state in _TRIAL_STATES:
            return
        if self.journal_record.target != release or self.journal_record.state not in _INSTALLING_STATES:
            self.cancel_installation(sweep=False)
            self.apply_event(UpdateEvent.CHOSEN, target=release, test_attempts=0, retest_not_before="")

    def cancel_installation(self, *, sweep: bool = True) -> None:
        """Stop an installation that is not wanted any more."""
        if self.journal_record.state in _INSTALLING_STATES:
            self.apply_event(UpdateEvent.WITHDRAWN, target=None, test_attempts=0, retest_not_before="")
            if sweep:
                self._delete_unused()

    def withdraw(self, refusal: Refusal) -> None:
        """Take back what is on trial or being installed."""
        if self.journal_record.state in _TRIAL_STATES:
            self.fail_update(UpdateEvent.WITHDRAWN, refusal)
        else:
            self.cancel_installation()

    def settle_probation(self) -> None:
        """End a probation that is over: promote the release on trial, or return to the proven one."""
        self.recover()
        self.settle_image_trial()
        trial = self.journal_record.slots.trial
        if self.journal_record.state is not UpdateLifecycleState.PROBATION or trial is None:
            return
        why = self._failure_of_trial(trial)
        if why is not None:
            self.fail_update(UpdateEvent.PROBATION_FAILED, why)
        elif not trial.is_shadow and self._is_probation_over(
            trial
        ):  # a shadow answers nobody, so it proves nothing
            self._promote(trial)
        elif self.predictor.served and not trial.is_shadow:
            self.write_record(
                served_inferences=self.journal_record.served_inferences + self.predictor.drain_served()
            )

    def _is_probation_over(self, trial: InstalledRelease) -> bool:
        """Whether a release on trial was watched for long enough."""
        if trial.release_kind != "model":  # nobody sees its inferences: it has come up, and stays up for that time
            return self._probation_elapsed_seconds() >= self.probation.min_seconds
        served = self.journal_record.served_inferences + self.predictor.served
        return self.probation.is_over(served, self._probation_elapsed_seconds())

    def _failure_of_trial(self, trial: InstalledRelease) -> Refusal | None:
        """Return why a release on trial is sent back, None if nothing speaks against it."""
        if trial.release_kind != "model" and self.installer is not None:
            try:
                runs = self.installer.running_image()
            except InstallerError:
                return None
            fell = runs == self.journal_record.image_before
            return Refusal("probation", trial.version, f"the platform fell back to {runs!r}") if fell else None
        failures = self.predictor.failures
        if self.is_release_at_fault(trial, failures, self.journal_record.served_inferences + self.predictor.served):
            return Refusal("probation", trial.version, f"{failures} inferences failed in its probation")
        return self._outcome_regression(trial)

    def is_release_at_fault(self, release: InstalledRelease, failures: int, served: int) -> bool:
        """Whether failed inferences are a release's own fault.

        Args:
            release: Which.
            failures: Inferences that failed.
            served: Inferences that did not.
        """
        if failures <= self.probation.max_failures:
            return False
        if failures > _MAX_FAILURE_RATE * (served + failures):
            return True
        engine = self.predictor.current
        if engine is None or engine.release.manifest_digest != release.manifest_digest:
            return False
        # If it passes its self-test, the inputs that it failed on were at fault.
        return not self.loader.still_passes(engine)

    def settle_image_trial(self) -> None:
        """Find out whether an image that was handed over runs now."""
        record = self.journal_record
        trial = record.slots.trial
        if (
            record.state is not UpdateLifecycleState.TESTING
            or trial is None
            or trial.release_kind == "model"
            or self.installer is None
        ):
            return
        try:
            runs = self.installer.running_image()
        except InstallerError as error:
            self.try_write_record(Refusal("installer", trial.version, error.message))
            return
        if runs != record.image_before:
            since = self.believed_time().isoformat()
            self.apply_event(
                UpdateEvent.TEST_PASSED, target=None, test_attempts=0, trial_started_at=since, last_refusal=None
            )
        elif boot_id() != record.boot_id:
            why = Refusal("self-test", trial.version, f"the platform came up with {runs!r} as before")
            self.fail_update(UpdateEvent.TEST_FAILED, why)

    def roll_back(self) -> None:
        """Return to what was proven before.

        Raises:
            NoTrialError: There is nothing to return to.
            RefusedError: The offline keys do not allow what there is to return to.
            InstallerError: The platform does not return to its other slot.
        """
        slots = roll_back(self.journal_record.slots)
        to = slots.proven
        if to is not None and not self._may_serve(to):
            raise RefusedError(
                "policy",
                to.version,
                f"{to.version} is denied, or below the floor {self.journal_record.min_version}",
            )
        self.cancel_installation()
        left = self.journal_record.slots.trial or self.journal_record.slots.proven
        failed = dict(self.journal_record.failed_releases)
        if left is not None:
            failed = _with_newest(
                failed, left.manifest_digest, Refusal("policy", left.version, "it was rolled back by hand")
            )
            if left.release_kind != "model":
                self._restart_former_image()
        self.apply_event(
            UpdateEvent.ROLLED_BACK,
            slots=slots,
            target=None,
            failed_releases=failed,
            served_inferences=0,
            trial_started_at="",
        )
        self.open_serving()

    def release_fault(self, installed: InstalledRelease) -> Refusal | None:
        """Return what is wrong with a release on the disk, None if nothing."""
        try:
            variant = self.releases.read_variant(installed.manifest_digest)
            shelf = self.releases.folder(installed.manifest_digest, encrypted=installed.release_kind == "model")
            for file in variant.files if installed.release_kind == "model" else ():
                shelf.check(file)
        except (LockedError, OSError) as error:
            return Refusal("tampered", installed.version, str(error))
        return None

    def repair_all(self) -> None:
        """Try again to mend what was found broken and could not be mended."""
        for installed in self.journal_record.slots.all_releases:
            if installed.manifest_digest in self.journal_record.corrupt_releases:
                self.repair(installed, Refusal("tampered", installed.version, "it was found broken"))

    def repair(self, installed: InstalledRelease, refusal: Refusal) -> None:
        """Fill a broken release's shelf again, from other slots or from the repository."""
        shelf = self.releases.folder(installed.manifest_digest, encrypted=installed.release_kind == "model")
        try:
            variant = self.releases.read_variant(installed.manifest_digest)
            others = [
                entry
                for entry in self.releases.files_by_folder(self.journal_record.slots)
                if entry[0].folder != shelf.folder
            ]
            fetch_variant(
                variant, shelf, DownloadSource(self.settings.repository_url, self.fetcher, self.fleet_keys, others)
            )
        except (EdgewrightError, OSError):
            self._mark_corrupt(installed, refusal)
            return
        broken = tuple(each for each in self.journal_record.corrupt_releases if each != installed.manifest_digest)
        self.write_record(last_refusal=refusal, corrupt_releases=broken)
        self.open_serving()

    def open_serving(self) -> None:
        """Open the release that should answer; what is broken gives way to what is not."""
        while (serving := self.serving_release) is not None and serving.release_kind == "model":
            current = self.predictor.current
            if current is not None and current.release.manifest_digest == serving.manifest_digest:
                break
            try:
                self.predictor.current = self.loader.load(serving)
                break
            except (LockedError, CandidateError, ModelError, OSError) as error:
                self._mark_corrupt(serving, Refusal("tampered", MODEL_FILE, str(error)))
        else:
            self.predictor.current = None
        self._open_shadow()

    def fail_update(self, event: UpdateEvent, refusal: Refusal, *, sweep: bool = True) -> None:
        """Return to the proven release, and remember why."""
        trial = self.journal_record.slots.trial
        failed = dict(self.journal_record.failed_releases)
        if trial is not None and event is not UpdateEvent.WITHDRAWN:
            failed = _with_newest(failed, trial.manifest_digest, refusal)
        if trial is not None and trial.release_kind != "model":
            try:
                self._restart_former_image()
            except InstallerError as error:
                refusal = Refusal("installer", trial.version, f"{refusal.reason}; {error.message}")
        self.apply_event(
            event,
            slots=end_trial(self.journal_record.slots, passed=False),
            target=None,
            failed_releases=failed,
            last_refusal=refusal,
            test_attempts=0,
            served_inferences=0,
            trial_started_at="",
        )
        self.open_serving()
        if sweep:
            self._delete_unused()

    def apply_event(self, event: UpdateEvent, **changes: Any) -> JournalRecord:
        """Remember what happened."""
        slots = changes.get("slots", self.journal_record.slots)
        state = next_state(self.journal_record.state, event, has_proven=slots.proven is not None)
        return self.write_record(state=state, **changes)

    def write_record(self, **changes: Any) -> JournalRecord:
        """Remember changes.

        Raises:
            WorkError: The disk is full or broken; the record before is still there.
        """
        record = msgspec.structs.replace(self.journal_record, **changes)
        if record == self.journal_record:
            return record
        try:
            return self.journal.write(record)
        except OSError as error:
            raise WorkError(
                f"the journal in {self.releases.state_folder} cannot be written: {error.strerror}",
                remedy="Free space on the device.",
            ) from error

    def try_write_record(self, refusal: Refusal) -> JournalRecord:
        """Remember what was refused, if the disk permits."""
        try:
            return self.write_record(last_refusal=refusal)
        except WorkError:
            return self.journal_record

    def _check_admission(self, manifest: Manifest, policy: RolloutPolicy) -> Variant:
        """Return the variant for this device, if it may and can run it."""
        path = f"{manifest.name} {manifest.version}"
        if manifest.kind != "model" and self.installer is None:
            raise RefusedError(
                "requirement",
                path,
                f"it is of the kind {manifest.kind}, and this device was enrolled without an installer",
            )
        if version_key(manifest.version) < version_key(policy.min_version):
            raise RefusedError("policy", path, f"it is below the floor {policy.min_version}")
        if manifest.end_of_life_at and parse_iso8601(manifest.end_of_life_at) <= self.believed_time():
            raise RefusedError("retired", path, f"its end of life was {manifest.end_of_life_at}")
        variant = manifest.variant(self.settings.device_class)
        if variant is None:
            classes = ", ".join(each.device_class for each in manifest.variants)
            raise RefusedError(
                "wrong class", path, f"it is for {classes}, this device is {self.settings.device_class}"
            )
        missing = missing_requirements(variant) if manifest.kind == "model" else ""
        if missing:
            raise RefusedError("requirement", path, missing)
        return variant

    def _fetch_release(self, manifest: bytes, variant: Variant, release: InstalledRelease) -> None:
        if self.journal_record.state is UpdateLifecycleState.STAGED:
            if self.release_fault(release) is None:
                return
            self.apply_event(UpdateEvent.CORRUPTION_FOUND)
            self.apply_event(UpdateEvent.ADMITTED)
        shelf = self.releases.staging_folder(
            release.manifest_digest, manifest, encrypted=release.release_kind == "model"
        )
        others = self.releases.files_by_folder(self.journal_record.slots)
        fetch_variant(
            variant, shelf, DownloadSource(self.settings.repository_url, self.fetcher, self.fleet_keys, others)
        )
        self.releases.commit(release.manifest_digest)
        self.apply_event(UpdateEvent.FETCHED)

    def _test_release(self, variant: Variant, release: InstalledRelease) -> None:
        if self.journal_record.retest_not_before and self.believed_time() < parse_iso8601(
            self.journal_record.retest_not_before
        ):
            return
        attempts = self.journal_record.test_attempts + 1
        if attempts > _MAX_TEST_ATTEMPTS:
            raise RefusedError(
                "self-test",
                release.version,
                f"it ended this process {_MAX_TEST_ATTEMPTS} times while it was tested",
            )
        self.apply_event(
            UpdateEvent.SWITCHED,
            slots=begin_trial(self.journal_record.slots, release),
            test_attempts=attempts,
            retest_not_before="",
        )
        proof = self.loader.load_and_test(release, variant)
        if proof.loaded is None or proof.refusal is not None:
            why = proof.refusal or Refusal("self-test", release.version, "it cannot be opened")
            if proof.is_transient and attempts < _MAX_TEST_ATTEMPTS:
                again = self.believed_time() + _RETEST_DELAY * 2 ** (attempts - 1)
                slots = end_trial(self.journal_record.slots, passed=False)
                self.apply_event(
                    UpdateEvent.POSTPONED, slots=slots, retest_not_before=again.isoformat(), last_refusal=why
                )
            else:
                self.fail_update(UpdateEvent.TEST_FAILED, why)
            return
        self.apply_event(
            UpdateEvent.TEST_PASSED,
            target=None,
            test_attempts=0,
            served_inferences=0,
            trial_started_at=self.believed_time().isoformat(),
            last_refusal=None,
        )
        if release.is_shadow:
            self._start_shadow(proof.loaded)
        else:
            self.predictor.current = proof.loaded

    def _hand_to_installer(self, variant: Variant, release: InstalledRelease) -> None:
        """Give an image to the platform's installer; it is on trial from the platform's next start on."""
        assert self.installer is not None  # noqa: S101 - _admitted has refused it otherwise
        shelf = self.releases.folder(release.manifest_digest, encrypted=False)
        attempts = self.journal_record.test_attempts + 1
        if attempts > _MAX_TEST_ATTEMPTS:
            raise RefusedError(
                "installer", release.version, f"its installation was broken off {_MAX_TEST_ATTEMPTS} times"
            )
        try:
            ran = self.installer.running_image()
            slots = begin_trial(self.journal_record.slots, release)
            # Remembered first: a platform that starts anew in the middle of it must find it.
            self.apply_event(
                UpdateEvent.SWITCHED,
                slots=slots,
                boot_id=boot_id(),
                image_before=ran,
                handed_to_installer=False,
                test_attempts=attempts,
                last_refusal=None,
            )
            self.installer.install(shelf.folder / variant.files[0].name, release.version)
            self.write_record(handed_to_installer=True)
        except InstallerError as error:
            why = Refusal("installer", release.version, error.message)
            if self.journal_record.state is UpdateLifecycleState.TESTING:
                self.fail_update(UpdateEvent.TEST_FAILED, why)
            else:
                self.try_write_record(why)

    def _restart_former_image(self) -> None:
        """Have the platform start what ran before an image was handed over."""
        if self.installer is None:
            return
        if (
            self.journal_record.state in _TRIAL_STATES
            and self.installer.running_image() == self.journal_record.image_before
        ):
            self.installer.keep_current()  # it was not started, or the platform has fallen back
        else:
            self.installer.revert()

    def _outcome_regression(self, trial: InstalledRelease) -> Refusal | None:
        """Return why a release on trial does worse than the proven one, by what the application counted."""
        proven = self.journal_record.slots.proven
        if proven is None:
            return None
        new, old = (
            self.outcomes.for_release(trial.manifest_digest),
            self.outcomes.for_release(proven.manifest_digest),
        )
        for rule in self.journal_record.rollout_rules:
            name = rule.metric.partition(":")[2]
            one, other = new.get(name, OutcomeTotal()), old.get(name, OutcomeTotal())
            if name and is_worse(one, other, margin=rule.margin, confidence=rule.confidence):
                reason = f"its {name} is {one.mean:.3g} on the average, {other.mean:.3g} with {proven.version}"
                return Refusal("probation", rule.metric, reason)
        return None

    def _promote(self, trial: InstalledRelease) -> None:
        if trial.release_kind != "model" and self.installer is not None:
            try:
                self.installer.confirm()
            except InstallerError as error:
                self.try_write_record(Refusal("installer", trial.version, error.message))
                return
        slots = end_trial(self.journal_record.slots, passed=True)
        self.apply_event(
            UpdateEvent.PROMOTED,
            slots=slots,
            target=None,
            served_inferences=0,
            trial_started_at="",
            last_refusal=None,
        )
        self.predictor.drain_served()
        self._delete_unused()

    def _may_serve(self, installed: InstalledRelease) -> bool:
        """Whether the offline keys, as last believed, would have a release served that does not serve yet."""
        record = self.journal_record
        return (
            version_key(installed.version) >= version_key(record.min_version)
            and installed.manifest_digest not in record.denied_manifests
        )

    def _refuse_release(self, release: InstalledRelease, refusal: Refusal) -> None:
        """End an installation: tried again at the next check, later and later, or not at all."""
        if refusal.code in _TRANSIENT_REFUSALS:
            if self.journal_record.state is UpdateLifecycleState.FETCHING:
                self.apply_event(UpdateEvent.FETCH_FAILED, last_refusal=refusal)
            else:
                self.write_record(last_refusal=refusal)
            return
        failed, postponed = self.journal_record.failed_releases, self.journal_record.postponed_releases
        if refusal.code in _FINAL_REFUSALS:
            failed = _with_newest(failed, release.manifest_digest, refusal)
        else:
            before = postponed.get(release.manifest_digest)
            count = 1 if before is None else before.count + 1
            until = self.believed_time() + min(_MAX_POSTPONEMENT, _MIN_POSTPONEMENT * 2 ** min(count - 1, 16))
            postponed = _with_newest(
                postponed, release.manifest_digest, PostponedRelease(refusal, count, until.isoformat())
            )
        if self.journal_record.state in _INSTALLING_STATES:
            self.apply_event(
                UpdateEvent.REFUSED,
                target=None,
                failed_releases=failed,
                postponed_releases=postponed,
                last_refusal=refusal,
            )
        self._delete_unused()

    def _open_shadow(self) -> None:
        trial = self.journal_record.slots.trial
        known = self.predictor.shadow
        if trial is None or not trial.is_shadow or self.journal_record.state is not UpdateLifecycleState.PROBATION:
            self._start_shadow(None)
        elif known is None or known.release.manifest_digest != trial.manifest_digest:
            try:
                self._start_shadow(self.loader.load(trial))
            except (LockedError, CandidateError, ModelError, OSError) as error:
                self._mark_corrupt(trial, Refusal("tampered", MODEL_FILE, str(error)))

    def _start_shadow(self, engine: LoadedRelease | None) -> None:
        before, self.predictor.shadow = self.predictor.shadow, None
        if before is not None:
            before.close()
        if engine is not None:
            self.predictor.shadow = ShadowRunner(engine.release, engine.run)

    def _mark_corrupt(self, installed: InstalledRelease, refusal: Refusal) -> None:
        """Go on without a release whose bytes are broken, until they can be had again.

        An engine that was opened before its bytes rotted goes on answering.
        """
        record = self.journal_record
        if record.state is UpdateLifecycleState.PROBATION and record.slots.trial == installed:
            slots = end_trial(record.slots, passed=False)
            self.apply_event(
                UpdateEvent.CORRUPTION_FOUND,
                slots=slots,
                target=None,
                last_refusal=refusal,
                served_inferences=0,
                trial_started_at="",
                test_attempts=0,
            )
        elif installed.manifest_digest not in record.corrupt_releases:
            self.write_record(
                corrupt_releases=(*record.corrupt_releases, installed.manifest_digest), last_refusal=refusal
            )

    def _delete_unused(self) -> None:
        if self.journal.writable and not self.journal.is_lost:
            self.releases.delete_unused(self.journal_record.slots, self.journal_record.target)

    def _probation_elapsed_seconds(self) -> float:
        since = self.journal_record.trial_started_at
        return (self.believed_time() - parse_iso8601(since)).total_seconds() if since else 0.0


TableEntry = TypeVar("TableEntry")


def _with_newest(known: dict[str, TableEntry], key: str, entry: TableEntry) -> dict[str, TableEntry]:
    """Return a table with an entry as its newest; the oldest make room."""
    others = [item for item in known.items() if item[0] != key]
    return dict([*others[-(_MAX_REMEMBERED_RELEASES - 1) :], (key, entry)])
