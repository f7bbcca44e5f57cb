"""Who takes part in a stage of a rollout, in which arm, and how they fared: what evidence is counted from.

A device takes part if the rollout is for it, it had a model before, and the policy would let it have any of the
arms. All of that is known without its arm. Which arm it is in is worked out as the device does it.

What a device says of a stage counts from an age on (`is_outcome_kept`), once. Devices that were alive when the stage
began and have said nothing when its deadline passes are offline, and that is written down like any other outcome
(`record_offline_devices`): whatever they say later changes nothing. Devices that come alive later count when they say
something.
"""

import datetime
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from edgewright.contract.api.device_status import StageOutcome
from edgewright.contract.config.fleet import FleetMonitoring
from edgewright.contract.names import version_key
from edgewright.contract.rollout.decision import CONTROL_ARM, DeviceOutcome
from edgewright.contract.rollout.plan import RolloutPlan, RolloutPolicy, max_version
from edgewright.contract.timestamps import parse_iso8601
from edgewright.device.update.selection import is_for
from edgewright.rollout.assignment import arm_of, is_in, is_in_holdout
from edgewright.rollout.comparison_design import stopping_metrics
from edgewright.server.store.records import RolloutCandidate, rollout_key
from edgewright.server.store.store import FleetStore

__all__ = [
    "OFFLINE_METRIC",
    "ParticipantCount",
    "StageTiming",
    "assigned_arm_version",
    "earlier_failures",
    "is_outcome_kept",
    "is_participant",
    "participants",
    "record_offline_devices",
    "rollout_subject",
    "stage_outcomes",
    "stage_timing",
]

OFFLINE_METRIC = "offline"
_Report = tuple[int, str, tuple[str, ...], float]


@dataclass(frozen=True, slots=True)
class StageTiming:
    """When things happen in a stage, seconds since 1970.

    Attributes:
        began_at: The stage, or its last resumption.
        earliest_at: No device can know before how it fared.
        deadline_at: Who was alive when it began and has said nothing until then is offline.
    """

    began_at: float
    earliest_at: float
    deadline_at: float


@dataclass(slots=True)
class ParticipantCount:
    """What is seen on the way through the devices.

    Attributes:
        devices: That take part.
        mismatched_arms: Devices that named another arm than theirs.
    """

    devices: int = 0
    mismatched_arms: int = 0


def rollout_subject(plan: RolloutPlan) -> str:
    """Return what a plan's outcomes and decisions are kept under."""
    return rollout_key(plan.model, plan.device_class, plan.rollout)


def stage_timing(plan: RolloutPlan, monitoring: FleetMonitoring) -> StageTiming | None:
    """Return when things happen in the stage that a plan is at, None if nobody said when it began."""
    if not plan.stage_started_at:
        return None
    started_at = parse_iso8601(plan.stage_started_at).timestamp()
    earliest_at = started_at + monitoring.outcome_age_seconds
    return StageTiming(started_at, earliest_at, earliest_at + monitoring.offline_after_seconds)


def is_outcome_kept(plan: RolloutPlan, monitoring: FleetMonitoring, reported: StageOutcome, now: float) -> bool:
    """Whether what a device says of a stage is to be kept.

    Not before it is old enough; and not while the rollout is paused, when devices that have not installed cannot.

    Args:
        plan: That is signed for the device's model and class.
        monitoring: From which age on.
        reported: By the device.
        now: When.
    """
    stretch = stage_timing(plan, monitoring)
    return (
        plan.state == "running"
        and (reported.rollout, reported.stage) == (plan.rollout, plan.stage)
        and reported.age_seconds >= monitoring.outcome_age_seconds
        and stretch is not None
        and now >= stretch.earliest_at
    )


def is_participant(plan: RolloutPlan, policy: RolloutPolicy, device: RolloutCandidate) -> bool:
    """Whether a device is compared; the same whatever its arm.

    A device whose first model is one of the arms had nothing to be compared with. One whose channel may not have
    some arm is left out in all of them, or shares would differ from channel to channel.
    """
    if device.model not in ("", plan.model) or not device.proven:
        return False
    if not device.previous and any(device.proven == arm.version for arm in plan.arms):
        return False
    if not is_for(plan, device.labels, device.channel):
        return False
    highest = max_version(policy, device.channel)
    return highest is None or all(version_key(arm.version) <= version_key(highest) for arm in plan.arms)


def assigned_arm_version(plan: RolloutPlan, policy: RolloutPolicy, device_id: str) -> int:
    """Return a device's arm at the stage that a plan is at, as `device/update/selection.py` finds it."""
    if is_in_holdout(policy.holdout_fraction, policy.salt, device_id):
        return CONTROL_ARM
    number = 0
    if len(plan.arms) > 1:
        number = arm_of([arm.weight for arm in plan.arms], plan.rollout, policy.salt, device_id)
    return (
        number if is_in(plan.fraction, plan.arms[number].manifest_sha256, policy.salt, device_id) else CONTROL_ARM
    )


def participants(store: FleetStore, plan: RolloutPlan, policy: RolloutPolicy) -> Iterator[list[RolloutCandidate]]:
    """Return the devices that take part, page by page."""
    for page in store.devices.candidates(plan.device_class):
        yield [device for device in page if is_participant(plan, policy, device)]


def record_offline_devices(
    store: FleetStore, plan: RolloutPlan, policy: RolloutPolicy, timing: StageTiming, *, now: float
) -> dict[str, int]:
    """Write down who is offline, and return how many are by the version of their arm.

    It may be broken off anywhere and done again.

    Args:
        store: Of the fleet.
        plan: At the stage whose deadline has passed.
        policy: Of the offline keys.
        timing: Of that stage.
        now: The time.
    """
    found: dict[str, int] = {}
    for page, said in _reported(store, plan, policy):
        offline = []
        for device in page:
            if not _is_outcome_missing(device, said.get(device.id, ()), plan.stage, timing):
                continue
            arm = _version(plan, assigned_arm_version(plan, policy, device.id))
            offline.append((device.id, StageOutcome(plan.rollout, plan.stage, arm, (OFFLINE_METRIC,))))
            found[arm] = found.get(arm, 0) + 1
        store.outcomes.put(rollout_subject(plan), offline, at=now, deadline_at=now)
    return found


def stage_outcomes(
    store: FleetStore,
    plan: RolloutPlan,
    policy: RolloutPolicy,
    timing: StageTiming,
    *,
    now: float,
    settled: bool,
    count: ParticipantCount,
) -> Iterator[DeviceOutcome]:
    """Return one outcome for each device that takes part, in order of the pages.

    Args:
        store: Of the fleet.
        plan: At the stage.
        policy: Of the offline keys.
        timing: Of that stage.
        now: The time.
        settled: Whether it was written down who is offline.
        count: Is added to.
    """
    metrics = stopping_metrics(plan)
    values: dict[frozenset[str], dict[str, float]] = {}
    later = _iso_time(max(timing.deadline_at, now + 1))
    for page, told in _reported(store, plan, policy):
        for device in page:
            said = told.get(device.id, ())
            arm = assigned_arm_version(plan, policy, device.id)
            failed, mine = earlier_failures(said, plan.stage)
            count.devices += 1
            if mine is None:
                if not settled and _is_outcome_missing(device, said, plan.stage, timing):
                    yield DeviceOutcome(device.id, arm, later)
                continue
            _, named, own, at = mine
            count.mismatched_arms += named != _version(plan, arm)
            if OFFLINE_METRIC in own:
                yield DeviceOutcome(device.id, arm, _iso_time(at))
                continue
            failures = failed.union(own)
            if failures not in values:
                values[failures] = {metric: float(metric in failures) for metric in metrics}
            yield DeviceOutcome(device.id, arm, _iso_time(at), values[failures])


def earlier_failures(reported: Sequence[_Report], stage: int) -> tuple[frozenset[str], _Report | None]:
    """Return in what a device failed in earlier stages, silence aside, and what it said of this one.

    It may have given the release up by itself and do well now; it has failed by the release all the same.
    """
    failed = frozenset(
        metric for one in reported if one[0] < stage for metric in one[2] if metric != OFFLINE_METRIC
    )
    return failed, next((one for one in reported if one[0] == stage), None)


def _is_outcome_missing(
    device: RolloutCandidate, reported: Sequence[_Report], stage: int, timing: StageTiming
) -> bool:
    """Whether a device has said nothing of a stage and should have: it was alive, or offline ever since it was."""
    if any(one[0] == stage for one in reported):
        return False
    alive_at = timing.began_at - (timing.deadline_at - timing.earliest_at)
    was_silent = bool(reported) and OFFLINE_METRIC in reported[-1][2]
    return device.enrolled_at <= timing.began_at and (device.last_seen_at >= alive_at or was_silent)


def _reported(
    store: FleetStore, plan: RolloutPlan, policy: RolloutPolicy
) -> Iterator[tuple[list[RolloutCandidate], Mapping[str, Sequence[_Report]]]]:
    for page in participants(store, plan, policy):
        if page:
            yield page, store.outcomes.between(rollout_subject(plan), plan.stage, page[0].id, page[-1].id)


def _version(plan: RolloutPlan, arm: int) -> str:
    return "" if arm == CONTROL_ARM else plan.arms[arm].version


def _iso_time(at: float) -> str:
    return datetime.datetime.fromtimestamp(at, datetime.UTC).isoformat()
