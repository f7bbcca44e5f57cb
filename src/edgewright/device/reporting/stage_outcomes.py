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
from edgewright.contract.rollout.plan import HealthRule, RolloutPlan, RolloutPolicy
from edgewright.contract.timestamps import parse_iso8601
from edgewright.device.filesystem import FileSystem, checked_body, with_checksum
from edgewright.device.monitoring.outcomes import OutcomeTotal, is_worse
from edgewright.device.update.journal import JournalRecord
from edgewright.device.update.release_loader import MODEL_FILE
from edgewright.device.update.selection import DeviceContext, assigned_arm, has_begun, is_for

__all__ = [
    "StageReport",
    "StageReportFile",
    "add_failures",
    "failed_metrics",
    "failure_metric",
    "stage_outcome",
    "update_report",
    "worsened_outcomes",
]

_STAGES_FILE = "stages.json"
_MAX_STAGES, _MAX_FAILED_METRICS = 32, 32
# What a release itself has shown here. What keeps it from coming here (no network, no power, a policy) is not its.
_METRIC_BY_REFUSAL_CODE = {
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

OutcomeCountsByName = dict[str, dict[str, OutcomeTotal]]
"""What the application counted, by the manifest's sha256 and name."""


class StageReport(msgspec.Struct, frozen=True):
    """How this device fared in a rollout.

    Attributes:
        model: That is rolled out.
        rollout: Its name.
        epoch: Of its policy.
        stage: That was seen last.
        arm: Version that this device was assigned there, "" for the control.
        manifest: sha256 of that release's manifest, "" for the control.
        stage_seen_at: When each stage was first seen, UTC, ISO 8601.
        failed_metrics: Metrics that failed since the first of them, in order.
        rules: Of the rollout, those about outcomes.
        baseline_counts: What the application had counted when the rollout was first seen.
        active: Whether the rollout is what this device believes at present, and is for it.
    """

    model: str
    rollout: str
    epoch: int
    stage: int
    arm: str
    manifest: str
    stage_seen_at: dict[int, str]
    failed_metrics: tuple[str, ...] = ()
    rules: tuple[HealthRule, ...] = ()
    baseline_counts: OutcomeCountsByName = {}
    active: bool = True


def update_report(
    report: StageReport | None,
    plan: RolloutPlan | None,
    policy: RolloutPolicy,
    context: DeviceContext,
    counts: OutcomeCountsByName,
) -> StageReport | None:
    """Return what is known after a look at what is rolled out.

    Args:
        report: Known before.
        plan: That this device believes, None if there is none.
        policy: That it keeps to.
        context: What the device knows of itself.
        counts: What the application counted so far.
    """
    if plan is None or not is_for(plan, context.labels, context.channel):
        return None if report is None else msgspec.structs.replace(report, active=False)
    if report is not None and (report.model, report.rollout, report.epoch) != (
        plan.model,
        plan.rollout,
        plan.epoch,
    ):
        report = None
    now = context.now.isoformat()
    # A stage counts from when this device could have followed it.
    runs = plan.state == "running" and has_begun(plan, context.now)
    if report is None or plan.stage not in report.stage_seen_at:
        if not runs:
            return None if report is None else msgspec.structs.replace(report, active=True)
        seen = {**({} if report is None else report.stage_seen_at), plan.stage: now}
        seen = dict(list(seen.items())[-_MAX_STAGES:])
    else:  # what was seen by a clock that was ahead is seen now
        seen = {stage: min(at, now, key=parse_iso8601) for stage, at in report.stage_seen_at.items()}
    arm = assigned_arm(plan, policy, context.device_id)
    rules = tuple(rule for stage in plan.stages for rule in stage.rules if _rule_outcome(rule))
    return StageReport(
        model=plan.model,
        rollout=plan.rollout,
        epoch=plan.epoch,
        stage=plan.stage,
        arm="" if arm is None else arm.version,
        manifest="" if arm is None else arm.manifest_sha256,
        stage_seen_at=seen,
        failed_metrics=() if report is None else report.failed_metrics,
        rules=rules,
        baseline_counts=counts if report is None else report.baseline_counts,
    )


def add_failures(report: StageReport, metrics: set[str]) -> StageReport:
    """Return a fate in which these metrics have failed too."""
    failed = sorted(metrics | set(report.failed_metrics))
    return msgspec.structs.replace(report, failed_metrics=tuple(failed[:_MAX_FAILED_METRICS]))


def failure_metric(refusal: Refusal) -> str:
    """Return the metric in which a release failed that was refused, "" if it is not the release's fault.

    >>> failure_metric(Refusal("budget", "model.onnx", "")), failure_metric(Refusal("battery", "", ""))
    ('budget_breach', '')
    """
    if refusal.code == "probation" and refusal.file.startswith("outcome:"):
        return refusal.file
    if refusal.code == "self-test" and refusal.file == MODEL_FILE:  # it did not come as far as its self-test
        return "load_failure"
    return _METRIC_BY_REFUSAL_CODE.get(refusal.code, "")


def failed_metrics(report: StageReport, record: JournalRecord) -> set[str]:
    """Return the metrics that failed as far as the journal tells.

    Args:
        report: Whose arm it is about.
        record: What the device remembers.
    """
    found = set()
    refused = record.failed_releases.get(report.manifest)
    later = record.postponed_releases.get(report.manifest)
    for why in (refused, None if later is None else later.refusal):
        if why is not None:
            found.add(failure_metric(why))
    last, proven = record.last_refusal, record.slots.proven
    rotten = last is not None and (last.code, last.file) == ("tampered", MODEL_FILE)
    if rotten or (proven is not None and proven.manifest_digest in record.corrupt_releases):
        found.add("load_failure")
    return found - {""}


def worsened_outcomes(report: StageReport, counts: OutcomeCountsByName) -> set[str]:
    """Return the outcomes that are surely worse since the rollout was first seen, whatever served.

    Args:
        report: Whose rules are kept.
        counts: What the application counted so far.
    """
    found = set()
    for rule in report.rules:
        name = _rule_outcome(rule)
        before, since = OutcomeTotal(), OutcomeTotal()
        for manifest in {*report.baseline_counts, *counts}:
            then = report.baseline_counts.get(manifest, {}).get(name, OutcomeTotal())
            now = counts.get(manifest, {}).get(name, OutcomeTotal())
            before = OutcomeTotal(before.count + then.count, before.total + then.total)
            more = max(0, now.count - then.count)  # what was forgotten meanwhile counts anew
            since = OutcomeTotal(since.count + more, since.total + min(more, max(0.0, now.total - then.total)))
        if is_worse(since, before, margin=rule.margin, confidence=rule.confidence):
            found.add(rule.metric)
    return found


def stage_outcome(
    report: StageReport | None, now: datetime.datetime, median_latency_seconds: float | None = None
) -> StageOutcome | None:
    """Return what is told of a stage, None if this device is in no rollout.

    Args:
        report: What is known.
        now: The time that the device believes.
        median_latency_seconds: Median of an inference in the stage.
    """
    if report is None or not report.active:
        return None
    age_seconds = max(0.0, (now - parse_iso8601(report.stage_seen_at[report.stage])).total_seconds())
    return StageOutcome(
        report.rollout, report.stage, report.arm, report.failed_metrics, median_latency_seconds, age_seconds
    )


@dataclass(slots=True)
class StageReportFile:
    """The current fate, in a file beside the journal.

    Attributes:
        folder: That holds it.
        files: The disk.
        report: None before the first rollout.
    """

    folder: Path
    files: FileSystem
    report: StageReport | None = field(init=False, default=None)
    _stored_report: StageReport | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        """Read what the disk holds; of what is damaged there, the journal still knows the most."""
        with suppress(OSError, msgspec.MsgspecError, InputError, KeyError):
            body = checked_body(self.files.read(self.folder / _STAGES_FILE))
            fate = None if body is None else msgspec.json.decode(body, type=StageReport)
            stage_outcome(fate, datetime.datetime.now(datetime.UTC))
            self.report = self._stored_report = fate

    def write(self) -> None:
        """Bring it to the disk, if it has changed.

        Raises:
            OSError: The disk is full or broken.
        """
        if self.report != self._stored_report:
            self.files.write(self.folder / _STAGES_FILE, with_checksum(msgspec.json.encode(self.report)))
            self._stored_report = self.report


def _rule_outcome(rule: HealthRule) -> str:
    """Return the name of the outcome that a rule is about, "" if it is about something else."""
    return rule.metric.partition(":")[2]
