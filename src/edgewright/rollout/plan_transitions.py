"""How a plan changes: begun, advanced, paused, resumed, aborted, finished. Whoever asks has the result signed.

Every change is a new plan with a higher counter, so a change that was done once can be told from one that was not.
"""

import datetime
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from edgewright.contract.errors import InputError
from edgewright.contract.rollout.plan import Arm, Hours, Plan, Policy, Selector, Stage
from edgewright.contract.timestamps import time_of

__all__ = [
    "CHANGES",
    "abort",
    "advance",
    "arms_of",
    "at_once",
    "begin",
    "finish",
    "must_be_over",
    "pause",
    "resume",
]


def arms_of(model: str, wanted: Sequence[tuple[str, float]], published: Mapping[str, str]) -> tuple[Arm, ...]:
    """Return the arms of some releases.

    Args:
        model: Of the releases.
        wanted: Version and weight of each.
        published: sha256 of the manifests by version.

    Raises:
        InputError: One is not published, or a weight is none.
    """
    for version, _ in wanted:
        if version not in published:
            raise InputError(
                f"{model} {version} is not published",
                remedy=f"Publish it first; there are {', '.join(published) or 'no releases'}.",
            )
    return tuple(Arm(version, published[version], weight) for version, weight in wanted)


def begin(
    model: str,
    device_class: str,
    arms: tuple[Arm, ...],
    stages: tuple[Stage, ...],
    *,
    policy: Policy | None,
    before: Plan | None,
    now: datetime.datetime,
    selector: Selector | None = None,
    start: str = "",
    end: str = "",
    min_battery: float = 0.0,
    hours: Hours | None = None,
    shadow: bool = False,
    replace: bool = False,
) -> Plan:
    """Return a rollout at its first stage.

    Args:
        model: Which.
        device_class: Which.
        arms: From `arms_of`.
        stages: In order of their fractions.
        policy: That is signed, None if there is none.
        before: The plan that is signed, None if there is none.
        now: The time; the first stage begins then, or at `start` if that is later.
        selector: Which devices it is for; None for all.
        start: As for `Plan`, and so are the others.
        end: When devices stop.
        min_battery: For an installation.
        hours: For an installation.
        shadow: Whether it only runs beside.
        replace: Whether a rollout that is not at its end may be replaced.

    Raises:
        InputError: Another rollout is not over, or no device could follow the plan.
    """
    must_be_over(before, replace=replace)
    epoch, counter = _next(policy, before)
    since = max(now, time_of(start)) if start else now
    return Plan(
        model=model,
        device_class=device_class,
        rollout=_name(model, "-".join(arm.version for arm in arms), epoch, counter),
        epoch=epoch,
        counter=counter,
        arms=arms,
        stages=stages,
        selector=selector or Selector(),
        since=since.isoformat(),
        start=start,
        end=end,
        min_battery=min_battery,
        hours=hours,
        shadow=shadow,
    )


def at_once(
    model: str, device_class: str, arm: Arm, *, policy: Policy | None, before: Plan | None, now: datetime.datetime
) -> Plan:
    """Return a plan that brings a release to all devices in as few stages as the policy allows."""
    step = 1.0 if policy is None else policy.largest_step
    least = 0.0 if policy is None else policy.least_stage_s
    count = math.ceil(1 / step - 1e-9)
    stages = tuple(Stage(min(1.0, (number + 1) * step), least) for number in range(count))
    return begin(model, device_class, (arm,), stages, policy=policy, before=before, now=now, replace=True)


def must_be_over(plan: Plan | None, *, replace: bool = False) -> None:
    """See to it that another rollout may begin.

    Raises:
        InputError: This one is not at its end.
    """
    if plan is None or replace or plan.state in ("aborted", "done") or plan.stage + 1 == len(plan.stages):
        return
    raise InputError(
        f"rollout {plan.rollout} is {plan.state} at stage {plan.stage + 1} of {len(plan.stages)}",
        remedy="Abort it first, or add --replace.",
    )


def advance(plan: Plan, now: datetime.datetime) -> Plan:
    """Go to the next stage.

    Raises:
        InputError: There is none, its time has not come, or the rollout is over.
    """
    if plan.stage + 1 >= len(plan.stages):
        raise InputError(f"rollout {plan.rollout} is at its last stage", remedy="There is nothing to advance to.")
    least = plan.stages[plan.stage].min_seconds
    lasted = (now - time_of(plan.since)).total_seconds() if plan.since else least
    if lasted < least:
        raise InputError(
            f"stage {plan.stage + 1} of rollout {plan.rollout} lasts {lasted:.0f} s, it must last {least:.0f} s",
            remedy="Wait, or start the rollout anew with other stages.",
        )
    return _from(plan, ("running", "paused"), stage=plan.stage + 1, since=now.isoformat())


def pause(plan: Plan, _: datetime.datetime) -> Plan:
    """Have no device begin an installation.

    Raises:
        InputError: It does not run.
    """
    return _from(plan, ("running",), state="paused")


def resume(plan: Plan, now: datetime.datetime) -> Plan:
    """Go on after a pause.

    The stage begins anew: in the pause devices could not install, so having done well in it says nothing.

    Raises:
        InputError: It is not paused.
    """
    return _from(plan, ("paused",), state="running", since=now.isoformat())


def abort(plan: Plan, _: datetime.datetime) -> Plan:
    """Have devices on trial return to their proven model.

    Raises:
        InputError: It is over already.
    """
    return _from(plan, ("running", "paused"), state="aborted")


def finish(plan: Plan, _: datetime.datetime) -> Plan:
    """End a rollout that has come to what it was for.

    Raises:
        InputError: It does not run.
    """
    return _from(plan, ("running",), state="done")


CHANGES: Mapping[str, Callable[[Plan, datetime.datetime], Plan]] = {
    "advance": advance,
    "pause": pause,
    "resume": resume,
    "abort": abort,
}
"""What a person may do with a rollout, by the command's word."""


def _next(policy: Policy | None, before: Plan | None) -> tuple[int, int]:
    """Return epoch and counter of the next plan."""
    epoch = 1 if policy is None else policy.epoch
    return epoch, before.counter + 1 if before is not None and before.epoch == epoch else 1


def _name(model: str, versions: str, epoch: int, counter: int) -> str:
    """Return a name that no rollout had before: counters start anew in each epoch."""
    return f"{model}-{versions}-{counter}" if epoch == 1 else f"{model}-{versions}-{epoch}.{counter}"


def _from(plan: Plan, states: tuple[str, ...], **changes: Any) -> Plan:
    if plan.state not in states:
        raise InputError(f"rollout {plan.rollout} is {plan.state}", remedy=f"It must be {' or '.join(states)}.")
    return msgspec.structs.replace(plan, counter=plan.counter + 1, **changes)
