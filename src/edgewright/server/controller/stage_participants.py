"""Who takes part in a stage of a rollout, in which arm, and how they fared: what evidence is counted from.

A device takes part if the rollout is for it, it had a model before, and the policy would let it have any of the
arms. All of that is known without its arm. Which arm it is in is worked out as the device does it.

What a device says of a stage counts from an age on (`counts`), once. Devices that were alive when the stage began
and have said nothing when its deadline passes are silent, and that is written down like any other outcome
(`settle`): whatever they say later changes nothing. Devices that come alive later count when they say something.
"""

import datetime
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from edgewright.contract.api.device_status import StageOutcome
from edgewright.contract.config.fleet import Looking
from edgewright.contract.names import version_key
from edgewright.contract.rollout.decision import CONTROL, DeviceOutcome
from edgewright.contract.rollout.plan import Plan, Policy, ceiling
from edgewright.contract.timestamps import time_of
from edgewright.device.update.selection import is_for
from edgewright.rollout.assignment import arm_of, is_held_back, is_in
from edgewright.rollout.comparison_design import watched
from edgewright.server.store.records import Candidate, rollout_key
from edgewright.server.store.store import Store

__all__ = [
    "SILENT",
    "Count",
    "Stretch",
    "arm_in",
    "candidates",
    "counts",
    "earlier_failures",
    "rows",
    "settle",
    "stretch_of",
    "subject_of",
    "takes_part",
]

SILENT = "silent"
_Said = tuple[int, str, tuple[str, ...], float]


@dataclass(frozen=True, slots=True)
class Stretch:
    """When things happen in a stage, seconds since 1970.

    Attributes:
        began_s: The stage, or its last resumption.
        earliest_s: No device can know before how it fared.
        deadline_s: Who was alive when it began and has said nothing until then is silent.
    """

    began_s: float
    earliest_s: float
    deadline_s: float


@dataclass(slots=True)
class Count:
    """What is seen on the way through the devices.

    Attributes:
        devices: That take part.
        askew: Devices that named another arm than theirs.
    """

    devices: int = 0
    askew: int = 0


def subject_of(plan: Plan) -> str:
    """Return what a plan's outcomes and decisions are kept under."""
    return rollout_key(plan.model, plan.device_class, plan.rollout)


def stretch_of(plan: Plan, looking: Looking) -> Stretch | None:
    """Return when things happen in the stage that a plan is at, None if nobody said when it began."""
    if not plan.since:
        return None
    began_s = time_of(plan.since).timestamp()
    earliest_s = began_s + looking.outcome_s
    return Stretch(began_s, earliest_s, earliest_s + looking.silent_s)


def counts(plan: Plan, looking: Looking, said: StageOutcome, now_s: float) -> bool:
    """Whether what a device says of a stage is to be kept.

    Not before it is old enough; and not while the rollout is paused, when devices that have not installed cannot.

    Args:
        plan: That is signed for the device's model and class.
        looking: From which age on.
        said: By the device.
        now_s: When.
    """
    stretch = stretch_of(plan, looking)
    return (
        plan.state == "running"
        and (said.rollout, said.stage) == (plan.rollout, plan.stage)
        and said.age_s >= looking.outcome_s
        and stretch is not None
        and now_s >= stretch.earliest_s
    )


def takes_part(plan: Plan, policy: Policy, device: Candidate) -> bool:
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
    highest = ceiling(policy, device.channel)
    return highest is None or all(version_key(arm.version) <= version_key(highest) for arm in plan.arms)


def arm_in(plan: Plan, policy: Policy, device_id: str) -> int:
    """Return a device's arm at the stage that a plan is at, as `device/update/selection.py` finds it."""
    if is_held_back(policy.holdback, policy.salt, device_id):
        return CONTROL
    number = 0
    if len(plan.arms) > 1:
        number = arm_of([arm.weight for arm in plan.arms], plan.rollout, policy.salt, device_id)
    return number if is_in(plan.fraction, plan.arms[number].manifest, policy.salt, device_id) else CONTROL


def candidates(store: Store, plan: Plan, policy: Policy) -> Iterator[list[Candidate]]:
    """Return the devices that take part, page by page."""
    for page in store.devices.candidates(plan.device_class):
        yield [device for device in page if takes_part(plan, policy, device)]


def settle(store: Store, plan: Plan, policy: Policy, stretch: Stretch, *, now_s: float) -> dict[str, int]:
    """Write down who is silent, and return how many are by the version of their arm.

    It may be broken off anywhere and done again.

    Args:
        store: Of the fleet.
        plan: At the stage whose deadline has passed.
        policy: Of the offline keys.
        stretch: Of that stage.
        now_s: The time.
    """
    found: dict[str, int] = {}
    for page, said in _told(store, plan, policy):
        silent = []
        for device in page:
            if not _is_awaited(device, said.get(device.id, ()), plan.stage, stretch):
                continue
            arm = _version(plan, arm_in(plan, policy, device.id))
            silent.append((device.id, StageOutcome(plan.rollout, plan.stage, arm, (SILENT,))))
            found[arm] = found.get(arm, 0) + 1
        store.outcomes.put(subject_of(plan), silent, at_s=now_s, deadline_s=now_s)
    return found


def rows(
    store: Store, plan: Plan, policy: Policy, stretch: Stretch, *, now_s: float, settled: bool, count: Count
) -> Iterator[DeviceOutcome]:
    """Return one outcome for each device that takes part, in order of the pages.

    Args:
        store: Of the fleet.
        plan: At the stage.
        policy: Of the offline keys.
        stretch: Of that stage.
        now_s: The time.
        settled: Whether it was written down who is silent.
        count: Is added to.
    """
    metrics = watched(plan)
    values: dict[frozenset[str], dict[str, float]] = {}
    later = _moment(max(stretch.deadline_s, now_s + 1))
    for page, told in _told(store, plan, policy):
        for device in page:
            said = told.get(device.id, ())
            arm = arm_in(plan, policy, device.id)
            failed, mine = earlier_failures(said, plan.stage)
            count.devices += 1
            if mine is None:
                if not settled and _is_awaited(device, said, plan.stage, stretch):
                    yield DeviceOutcome(device.id, arm, later)
                continue
            _, named, own, at_s = mine
            count.askew += named != _version(plan, arm)
            if SILENT in own:
                yield DeviceOutcome(device.id, arm, _moment(at_s))
                continue
            failures = failed.union(own)
            if failures not in values:
                values[failures] = {metric: float(metric in failures) for metric in metrics}
            yield DeviceOutcome(device.id, arm, _moment(at_s), values[failures])


def earlier_failures(said: Sequence[_Said], stage: int) -> tuple[frozenset[str], _Said | None]:
    """Return in what a device failed in earlier stages, silence aside, and what it said of this one.

    It may have given the release up by itself and do well now; it has failed by the release all the same.
    """
    failed = frozenset(metric for one in said if one[0] < stage for metric in one[2] if metric != SILENT)
    return failed, next((one for one in said if one[0] == stage), None)


def _is_awaited(device: Candidate, said: Sequence[_Said], stage: int, stretch: Stretch) -> bool:
    """Whether a device has said nothing of a stage and should have: it was alive, or silent ever since it was."""
    if any(one[0] == stage for one in said):
        return False
    alive_s = stretch.began_s - (stretch.deadline_s - stretch.earliest_s)
    was_silent = bool(said) and SILENT in said[-1][2]
    return device.enrolled_s <= stretch.began_s and (device.seen_s >= alive_s or was_silent)


def _told(
    store: Store, plan: Plan, policy: Policy
) -> Iterator[tuple[list[Candidate], Mapping[str, Sequence[_Said]]]]:
    for page in candidates(store, plan, policy):
        if page:
            yield page, store.outcomes.between(subject_of(plan), plan.stage, page[0].id, page[-1].id)


def _version(plan: Plan, arm: int) -> str:
    return "" if arm == CONTROL else plan.arms[arm].version


def _moment(at_s: float) -> str:
    return datetime.datetime.fromtimestamp(at_s, datetime.UTC).isoformat()
