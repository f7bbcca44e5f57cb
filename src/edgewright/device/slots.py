"""Which model a device runs, and what it falls back to.

Once a model is proven there is always one to fall back to: no function here forgets it. No files or clocks here.
"""

import msgspec

from edgewright.contract.errors import WorkError
from edgewright.contract.release import ReleaseKind

__all__ = ["InstalledRelease", "NoTrialError", "Slots", "begin_trial", "end_trial", "roll_back"]


class NoTrialError(WorkError):
    """There is no model on trial."""

    code = "no_trial"


class InstalledRelease(msgspec.Struct, frozen=True):
    """A release that lies in a slot.

    Attributes:
        name: Of the model.
        version: Of the release.
        manifest_digest: sha256 of its manifest.
        rollout: By which it came, "" for none.
        arm: Of that rollout.
        release_kind: What it is.
        is_shadow: Whether it only runs beside the proven one, which answers.
    """

    name: str
    version: str
    manifest_digest: str
    rollout: str = ""
    arm: int = 0
    release_kind: ReleaseKind = "model"
    is_shadow: bool = False


class Slots(msgspec.Struct, frozen=True):
    """What is installed.

    Attributes:
        proven: Has passed its trial; None only before the first has.
        trial: During an update, what is being proven.
        previous: What was proven before, for a return by hand.
    """

    proven: InstalledRelease | None = None
    trial: InstalledRelease | None = None
    previous: InstalledRelease | None = None

    @property
    def serving_release(self) -> InstalledRelease | None:
        """What answers: the one on trial in its probation, else the proven one."""
        return self.trial if self.trial is not None and not self.trial.is_shadow else self.proven

    @property
    def all_releases(self) -> tuple[InstalledRelease, ...]:
        """All releases, the newest first."""
        return tuple(each for each in (self.trial, self.proven, self.previous) if each is not None)

    def contains(self, manifest: str) -> bool:
        """Whether a release lies in some slot."""
        return any(each.manifest_digest == manifest for each in self.all_releases)


def begin_trial(slots: Slots, installed: InstalledRelease) -> Slots:
    """Put a release on trial; one that was on trial is given up."""
    return msgspec.structs.replace(slots, trial=installed)


def end_trial(slots: Slots, *, passed: bool) -> Slots:
    """Promote the release on trial, or return to the proven one.

    Raises:
        NoTrialError: There is none.
    """
    if slots.trial is None:
        raise NoTrialError("no model is on trial", remedy="Nothing has to be done.")
    if not passed:
        return msgspec.structs.replace(slots, trial=None)
    if slots.proven is not None and slots.proven.manifest_digest == slots.trial.manifest_digest:
        return msgspec.structs.replace(slots, proven=slots.trial, trial=None)
    return Slots(proven=slots.trial, trial=None, previous=slots.proven)


def roll_back(slots: Slots) -> Slots:
    """Return to what was proven before: give a trial up, or make the previous release the proven one.

    Raises:
        NoTrialError: There is nothing to return to.
    """
    if slots.trial is not None:
        return end_trial(slots, passed=False)
    if slots.previous is None:
        raise NoTrialError("there is no model to return to", remedy="The proven one goes on serving.")
    return Slots(proven=slots.previous, trial=None, previous=slots.proven)
