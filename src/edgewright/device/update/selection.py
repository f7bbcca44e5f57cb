"""What this device should run, from what is signed and what it knows of itself: a pure function."""

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from edgewright.contract.names import version_key
from edgewright.contract.refusal import Refusal, RefusalCode
from edgewright.contract.rollout.plan import Arm, HealthRule, Plan, Policy, ceiling
from edgewright.contract.timestamps import time_of
from edgewright.device.slots import Installed, Slots
from edgewright.rollout.assignment import arm_of, is_held_back, is_in, step_of

__all__ = ["Choice", "Situation", "assigned", "choose", "has_begun", "is_for", "notice"]


@dataclass(frozen=True, slots=True)
class Situation:
    """What a device knows of itself.

    Attributes:
        device_id: Its own.
        labels: Its labels.
        channel: Its channel, "" for none.
        now: The time that it believes.
        seen: When it first saw releases rolled out, UTC, ISO 8601, by the manifest's sha256.
        hour: Of the local day.
        battery: State of charge, 0 to 1; None without a battery, or on mains.
    """

    device_id: str
    labels: dict[str, str]
    channel: str
    now: datetime.datetime
    hour: int
    battery: float | None = None
    seen: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Choice:
    """What to do.

    Attributes:
        action: `keep` what serves, `install` a release, `withdraw` the one on trial, `wait` with an installation.
        release: To install.
        rules: Of the rollout's stage.
        why: For the record; a refusal if something was refused.
    """

    action: Literal["keep", "install", "withdraw", "wait"]
    release: Installed | None = None
    rules: tuple[HealthRule, ...] = ()
    why: Refusal | None = None


def choose(
    plan: Plan | None, policy: Policy, slots: Slots, failed: dict[str, Refusal], situation: Situation
) -> Choice:
    """Return what a device should do.

    Args:
        plan: Within the policy; None if there is none.
        policy: Of the offline keys.
        slots: What is installed.
        failed: What failed here, by its manifest's sha256.
        situation: What the device knows of itself.
    """
    on_trial = slots.trial
    if on_trial is not None and _is_denied(on_trial, policy):
        return Choice("withdraw", why=_why("denied", on_trial.version, "the offline keys have denied it"))
    if plan is None or not is_for(plan, situation.labels, situation.channel):
        return Choice("keep")
    if plan.state == "aborted":
        if on_trial is not None and on_trial.rollout == plan.rollout:
            return Choice("withdraw", why=_why("policy", on_trial.version, f"rollout {plan.rollout} was aborted"))
        return Choice("keep")
    # What is done still reaches devices that come later; an experiment that has its answer does not.
    over = plan.state == "done" and len(plan.arms) > 1
    if plan.state == "paused" or over or not has_begun(plan, situation.now):
        return Choice("keep")
    if slots.proven is not None and is_held_back(policy.holdback, policy.salt, situation.device_id):
        return Choice("keep")  # a device without a model has nothing to be compared with
    if slots.proven is None and plan.shadow:
        return Choice("keep")  # nor to run beside
    arm, number = _arm(plan, policy, situation)
    if not _is_reached(plan, policy, arm, situation):
        return Choice("keep")
    release = Installed(plan.model, arm.version, arm.manifest, plan.rollout, number, shadow=plan.shadow)
    rules = plan.stages[plan.stage].rules
    if _is_there(release, slots):
        return Choice("keep", rules=rules)
    if slots.trial is not None and slots.proven is not None and slots.proven.manifest == arm.manifest:
        return Choice("withdraw", why=_why("policy", slots.trial.version, f"{arm.version} is rolled out again"))
    if arm.manifest in failed:
        return Choice("keep", rules=rules, why=failed[arm.manifest])
    lacking = _lacking(plan, policy, situation)
    if lacking is not None:
        return Choice("wait", release, rules, lacking)
    return Choice("install", release, rules)


def _is_reached(plan: Plan, policy: Policy, arm: Arm, situation: Situation) -> bool:
    """Whether the rollout has come to this device, as fast as the policy allows and no faster."""
    if not is_in(plan.fraction, arm.manifest, policy.salt, situation.device_id):
        return False
    highest = ceiling(policy, situation.channel)
    if highest is not None and version_key(arm.version) > version_key(highest):
        return False
    step = step_of(policy.largest_step, arm.manifest, policy.salt, situation.device_id)
    waited = situation.now - time_of(situation.seen.get(arm.manifest, situation.now.isoformat()))
    return max(0.0, waited.total_seconds()) >= step * policy.least_stage_s


def _is_there(release: Installed, slots: Slots) -> bool:
    if slots.trial is not None and slots.trial.manifest == release.manifest:
        return slots.trial.shadow == release.shadow
    return slots.trial is None and slots.proven is not None and slots.proven.manifest == release.manifest


def _arm(plan: Plan, policy: Policy, situation: Situation) -> tuple[Arm, int]:
    weights = [arm.weight for arm in plan.arms]
    number = arm_of(weights, plan.rollout, policy.salt, situation.device_id)
    return plan.arms[number], number


def assigned(plan: Plan, policy: Policy, device_id: str) -> Arm | None:
    """Return the arm that a device is assigned at the plan's stage, whatever it does; None for the control.

    Control are those that the fraction has not reached, and the holdback. Who knows a device's name knows its arm.
    """
    if is_held_back(policy.holdback, policy.salt, device_id):
        return None
    weights = [arm.weight for arm in plan.arms]
    arm = plan.arms[arm_of(weights, plan.rollout, policy.salt, device_id)]
    return arm if is_in(plan.fraction, arm.manifest, policy.salt, device_id) else None


def is_for(plan: Plan, labels: Mapping[str, str], channel: str) -> bool:
    """Whether a rollout is for a device of this channel with these labels."""
    wanted = plan.selector
    if wanted.channel and wanted.channel != channel:
        return False
    return all(labels.get(label) == value for label, value in wanted.labels.items())


def has_begun(plan: Plan, now: datetime.datetime) -> bool:
    """Whether it is neither before a rollout's start nor after its end."""
    if plan.start and now < time_of(plan.start):
        return False
    return not plan.end or now < time_of(plan.end)


def _lacking(plan: Plan, policy: Policy, situation: Situation) -> Refusal | None:
    least = max(plan.min_battery, policy.min_battery)
    if situation.battery is not None and situation.battery < least:
        return _why("battery", plan.rollout, f"the battery is at {situation.battery:.0%}, {least:.0%} are needed")
    if plan.hours is not None and not plan.hours.holds(situation.hour):
        return _why(
            "hours",
            plan.rollout,
            f"it is {situation.hour} o'clock, {plan.hours.first} to {plan.hours.last} are allowed",
        )
    return None


def notice(policy: Policy, slots: Slots) -> Refusal | None:
    """Return what the offline keys would not have installed any more and yet serves, for want of better."""
    serving = slots.serving
    if serving is None or not _is_denied(serving, policy):
        return None
    if serving.manifest in policy.denied:
        return _why("denied", serving.version, "the offline keys have denied it, and it serves")
    return _why("policy", serving.version, f"it is below the floor {policy.floor}, and it serves")


def _is_denied(installed: Installed, policy: Policy) -> bool:
    below = version_key(installed.version) < version_key(policy.floor)
    return below or installed.manifest in policy.denied


def _why(code: RefusalCode, file: str, reason: str) -> Refusal:
    return Refusal(code, file, reason)
