"""How a plan changes: begun, advanced, paused, resumed, aborted, finished. Whoever asks has the result signed.

Every change is a new plan with a higher counter, so a change that was done once can be told from one that was not.
"""

import datetime
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from edgewright.contract.errors import InputError
from edgewright.contract.rollout.plan import (
    DeviceSelector,
    InstallHours,
    RolloutArm,
    RolloutPlan,
    RolloutPolicy,
    RolloutStage,
)
from edgewright.contract.timestamps import parse_iso8601

__all__ = [
    "PLAN_CHANGES",
    "abort_plan",
    "advance_plan",
    "begin_plan",
    "check_replaceable",
    "finish_plan",
    "full_rollout",
    "pause_plan",
    "resolve_arms",
    "resume_plan",
]


def resolve_arms(
    model: str, requested: Sequence[tuple[str, float]], published: Mapping[str, str]
) -> tuple[RolloutArm, ...]:
    """Return the arms of some releases.

    Args:
        model: Of the releases.
        requested: Version and weight of each.
        published: sha256 of the manifests by version.

    Raises:
        InputError: One is not published, or a weight is none.
    """
    for version, _ in requested:
        if version not in published:
            raise InputError(
                f"{model} {version} is not published",
                remedy=f"Publish it first; there are {', '.join(published) or 'no releases'}.",
            )
    return tuple(RolloutArm(version, published[version], weight) for version, weight in requested)


def begin_plan(
    model: str,
    device_class: str,
    arms: tuple[RolloutArm, ...],
    stages: tuple[RolloutStage, ...],
    *,
    policy: RolloutPolicy | None,
    before: RolloutPlan | None,
    now: datetime.datetime,
    selector: DeviceSelector | None = None,
    start_at: str = "",
    end_at: str = "",
    min_battery_level: float = 0.0,
    install_hours: InstallHours | None = None,
    shadow_mode: bool = False,
    replace: bool = False,
) -> RolloutPlan:
    """Return a rollout at its first stage.

    Args:
        model: Which.
        device_class: Which.
        arms: From `resolve_arms`.
        stages: In order of their fractions.
        policy: That is signed, None if there is none.
        before: The plan that is signed, None if there is none.
        now: The time; the first stage begins then, or at `start_at` if that is later.
        selector: Which devices it is for; None for all.
        start_at: As for `Plan`, and so are the others.
        end_at: When devices stop.
        min_battery_level: For an installation.
        install_hours: For an installation.
        shadow_mode: Whether it only runs beside.
        replace: Whether a rollout that is not at its end may be replaced.

    Raises:
        InputError: Another rollout is not over, or no device could follow the plan.
    """
    check_replaceable(before, replace=replace)
    epoch, counter = _next_counter(policy, before)
    since = max(now, parse_iso8601(start_at)) if start_at else now
    return RolloutPlan(
        model=model,
        device_class=device_class,
        rollout=_name(model, "-".join(arm.version for arm in arms), epoch, counter),
        epoch=epoch,
        counter=counter,
        arms=arms,
        stages=stages,
        selector=selector or DeviceSelector(),
        stage_started_at=since.isoformat(),
        start_at=start_at,
        end_at=end_at,
        min_battery_level=min_battery_level,
        install_hours=install_hours,
        shadow_mode=shadow_mode,
    )


def full_rollout(
    model: str,
    device_class: str,
    arm: RolloutArm,
    *,
    policy: RolloutPolicy | None,
    before: RolloutPlan | None,
    now: datetime.datetime,
) -> RolloutPlan:
    """Return a plan that brings a release to all devices in as few stages as the policy allows."""
    step = 1.0 if policy is None else policy.max_stage_step
    least = 0.0 if policy is None else policy.min_stage_seconds
    count = math.ceil(1 / step - 1e-9)
    stages = tuple(RolloutStage(min(1.0, (number + 1) * step), least) for number in range(count))
    return begin_plan(model, device_class, (arm,), stages, policy=policy, before=before, now=now, replace=True)


def check_replaceable(plan: RolloutPlan | None, *, replace: bool = False) -> None:
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


def advance_plan(plan: RolloutPlan, now: datetime.datetime) -> RolloutPlan:
    """Go to the next stage.

    Raises:
        InputError: There is none, its time has not come, or the rollout is over.
    """
    if plan.stage + 1 >= len(plan.stages):
        raise InputError(f"rollout {plan.rollout} is at its last stage", remedy="There is nothing to advance to.")
    least = plan.stages[plan.stage].min_duration_seconds
    lasted = (now - parse_iso8601(plan.stage_started_at)).total_seconds() if plan.stage_started_at else least
    if lasted < least:
        raise InputError(
            f"stage {plan.stage + 1} of rollout {plan.rollout} lasts {lasted:.0f} s, it must last {least:.0f} s",
            remedy="Wait, or start the rollout anew with other stages.",
        )
    return _checked_state(plan, ("running", "paused"), stage=plan.stage + 1, stage_started_at=now.isoformat())


def pause_plan(plan: RolloutPlan, _: datetime.datetime) -> RolloutPlan:
    """Have no device begin an installation.

    Raises:
        InputError: It does not run.
    """
    return _checked_state(plan, ("running",), state="paused")


def resume_plan(plan: RolloutPlan, now: datetime.datetime) -> RolloutPlan:
    """Go on after a pause.

    The stage begins anew: in the pause devices could not install, so having done well in it says nothing.

    Raises:
        InputError: It is not paused.
    """
    return _checked_state(plan, ("paused",), state="running", stage_started_at=now.isoformat())


def abort_plan(plan: RolloutPlan, _: datetime.datetime) -> RolloutPlan:
    """Have devices on trial return to their proven model.

    Raises:
        InputError: It is over already.
    """
    return _checked_state(plan, ("running", "paused"), state="aborted")


def finish_plan(plan: RolloutPlan, _: datetime.datetime) -> RolloutPlan:
    """End a rollout that has come to what it was for.

    Raises:
        InputError: It does not run.
    """
    return _checked_state(plan, ("running",), state="done")


PLAN_CHANGES: Mapping[str, Callable[[RolloutPlan, datetime.datetime], RolloutPlan]] = {
    "advance": advance_plan,
    "pause": pause_plan,
    "resume": resume_plan,
    "abort": abort_plan,
}
"""What a person may do with a rollout, by the command's word."""


def _next_counter(policy: RolloutPolicy | None, before: RolloutPlan | None) -> tuple[int, int]:
    """Return epoch and counter of the next plan."""
    epoch = 1 if policy is None else policy.epoch
    return epoch, before.counter + 1 if before is not None and before.epoch == epoch else 1


def _name(model: str, versions: str, epoch: int, counter: int) -> str:
    """Return a name that no rollout had before: counters start anew in each epoch."""
    return f"{model}-{versions}-{counter}" if epoch == 1 else f"{model}-{versions}-{epoch}.{counter}"


def _checked_state(plan: RolloutPlan, states: tuple[str, ...], **changes: Any) -> RolloutPlan:
    if plan.state not in states:
        raise InputError(f"rollout {plan.rollout} is {plan.state}", remedy=f"It must be {' or '.join(states)}.")
    return msgspec.structs.replace(plan, counter=plan.counter + 1, **changes)
