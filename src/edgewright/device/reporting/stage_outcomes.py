"""How this device fares in the rollout that it believes: one answer for each stage, as it was assigned.

A device is judged alike in every arm: by what fails of whatever it runs, from when it first saw the rollout on.
What has failed stays failed for the rest of the rollout, also in the control. No clocks and no network here.
"""

import datetime
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from edgewright.contract.api.device_status import StageOutcome
from edgewright.contract.errors import InputError
from edgewright.contract.refusal import Refusal
from edgewright.contract.rollout.plan import HealthRule, Plan, Policy
from edgewright.contract.timestamps import time_of
from edgewright.device.filesystem import Files, body_of, summed
from edgewright.device.monitoring.outcomes import Outcome, is_worse
from edgewright.device.update.journal import Record
from edgewright.device.update.release_loader import MODEL
from edgewright.device.update.selection import Situation, assigned, has_begun, is_for

__all__ = ["Fate", "Fates", "fail", "metric_of", "metrics_of", "outcome_of", "see", "worse"]

_FILE = "stages.json"
_MOST_STAGES, _MOST_FAILED = 32, 32
# What a release itself has shown here. What keeps it from coming here (no network, no power, a policy) is not its.
_METRICS = {
    "self-test": "self_test",
    "budget": "budget_breach",
    "probation": "crash",
    "external data": "load_failure",
    "installer": "load_failure",
    "locked": "load_failure",
    "oversized": "load_failure",
    "requirement": "load_failure",
    "tampered": "load_failure",
    "wrong class": "load_failure",
}

Counts = dict[str, dict[str, Outcome]]
"""What the application counted, by the manifest's sha256 and name."""


class Fate(msgspec.Struct, frozen=True):
    """How this device fared in a rollout.

    Attributes:
        model: That is rolled out.
        rollout: Its name.
        epoch: Of its policy.
        stage: That was seen last.
        arm: Version that this device was assigned there, "" for the control.
        manifest: sha256 of that release's manifest, "" for the control.
        seen: When each stage was first seen, UTC, ISO 8601.
        failed: Metrics that failed since the first of them, in order.
        rules: Of the rollout, those about outcomes.
        before: What the application had counted when the rollout was first seen.
        live: Whether the rollout is what this device believes at present, and is for it.
    """

    model: str
    rollout: str
    epoch: int
    stage: int
    arm: str
    manifest: str
    seen: dict[int, str]
    failed: tuple[str, ...] = ()
    rules: tuple[HealthRule, ...] = ()
    before: Counts = {}
    live: bool = True


def see(fate: Fate | None, plan: Plan | None, policy: Policy, situation: Situation, counts: Counts) -> Fate | None:
    """Return what is known after a look at what is rolled out.

    Args:
        fate: Known before.
        plan: That this device believes, None if there is none.
        policy: That it keeps to.
        situation: What the device knows of itself.
        counts: What the application counted so far.
    """
    if plan is None or not is_for(plan, situation.labels, situation.channel):
        return None if fate is None else msgspec.structs.replace(fate, live=False)
    if fate is not None and (fate.model, fate.rollout, fate.epoch) != (plan.model, plan.rollout, plan.epoch):
        fate = None
    now = situation.now.isoformat()
    # A stage counts from when this device could have followed it.
    runs = plan.state == "running" and has_begun(plan, situation.now)
    if fate is None or plan.stage not in fate.seen:
        if not runs:
            return None if fate is None else msgspec.structs.replace(fate, live=True)
        seen = {**({} if fate is None else fate.seen), plan.stage: now}
        seen = dict(list(seen.items())[-_MOST_STAGES:])
    else:  # what was seen by a clock that was ahead is seen now
        seen = {stage: min(at, now, key=time_of) for stage, at in fate.seen.items()}
    arm = assigned(plan, policy, situation.device_id)
    rules = tuple(rule for stage in plan.stages for rule in stage.rules if _outcome(rule))
    return Fate(
        model=plan.model,
        rollout=plan.rollout,
        epoch=plan.epoch,
        stage=plan.stage,
        arm="" if arm is None else arm.version,
        manifest="" if arm is None else arm.manifest,
        seen=seen,
        failed=() if fate is None else fate.failed,
        rules=rules,
        before=counts if fate is None else fate.before,
    )


def fail(fate: Fate, metrics: set[str]) -> Fate:
    """Return a fate in which these metrics have failed too."""
    failed = sorted(metrics | set(fate.failed))
    return msgspec.structs.replace(fate, failed=tuple(failed[:_MOST_FAILED]))


def metric_of(why: Refusal) -> str:
    """Return the metric in which a release failed that was refused, "" if it is not the release's fault.

    >>> metric_of(Refusal("budget", "model.onnx", "")), metric_of(Refusal("battery", "", ""))
    ('budget_breach', '')
    """
    if why.code == "probation" and why.file.startswith("outcome:"):
        return why.file
    if why.code == "self-test" and why.file == MODEL:  # it did not come as far as its self-test
        return "load_failure"
    return _METRICS.get(why.code, "")


def metrics_of(fate: Fate, record: Record) -> set[str]:
    """Return the metrics that failed as far as the journal tells.

    Args:
        fate: Whose arm it is about.
        record: What the device remembers.
    """
    found = set()
    refused = record.failed.get(fate.manifest)
    later = record.postponed.get(fate.manifest)
    for why in (refused, None if later is None else later.why):
        if why is not None:
            found.add(metric_of(why))
    last, proven = record.last_refusal, record.slots.proven
    rotten = last is not None and (last.code, last.file) == ("tampered", MODEL)
    if rotten or (proven is not None and proven.manifest in record.broken):
        found.add("load_failure")
    return found - {""}


def worse(fate: Fate, counts: Counts) -> set[str]:
    """Return the outcomes that are surely worse since the rollout was first seen, whatever served.

    Args:
        fate: Whose rules are kept.
        counts: What the application counted so far.
    """
    found = set()
    for rule in fate.rules:
        name = _outcome(rule)
        before, since = Outcome(), Outcome()
        for manifest in {*fate.before, *counts}:
            then = fate.before.get(manifest, {}).get(name, Outcome())
            now = counts.get(manifest, {}).get(name, Outcome())
            before = Outcome(before.count + then.count, before.total + then.total)
            more = max(0, now.count - then.count)  # what was forgotten meanwhile counts anew
            since = Outcome(since.count + more, since.total + min(more, max(0.0, now.total - then.total)))
        if is_worse(since, before, margin=rule.margin, confidence=rule.confidence):
            found.add(rule.metric)
    return found


def outcome_of(fate: Fate | None, now: datetime.datetime, latency_s: float | None = None) -> StageOutcome | None:
    """Return what is told of a stage, None if this device is in no rollout.

    Args:
        fate: What is known.
        now: The time that the device believes.
        latency_s: Median of an inference in the stage.
    """
    if fate is None or not fate.live:
        return None
    age_s = max(0.0, (now - time_of(fate.seen[fate.stage])).total_seconds())
    return StageOutcome(fate.rollout, fate.stage, fate.arm, fate.failed, latency_s, age_s)


@dataclass(slots=True)
class Fates:
    """The current fate, in a file beside the journal.

    Attributes:
        folder: That holds it.
        files: The disk.
        fate: None before the first rollout.
    """

    folder: Path
    files: Files
    fate: Fate | None = field(init=False, default=None)
    _written: Fate | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        """Read what the disk holds; of what is damaged there, the journal still knows the most."""
        with suppress(OSError, msgspec.MsgspecError, InputError, KeyError):
            body = body_of(self.files.read(self.folder / _FILE))
            fate = None if body is None else msgspec.json.decode(body, type=Fate)
            outcome_of(fate, datetime.datetime.now(datetime.UTC))
            self.fate = self._written = fate

    def write(self) -> None:
        """Bring it to the disk, if it has changed.

        Raises:
            OSError: The disk is full or broken.
        """
        if self.fate != self._written:
            self.files.write(self.folder / _FILE, summed(msgspec.json.encode(self.fate)))
            self._written = self.fate


def _outcome(rule: HealthRule) -> str:
    """Return the name of the outcome that a rule is about, "" if it is about something else."""
    return rule.metric.partition(":")[2]
