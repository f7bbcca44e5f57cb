"""What this device should run, from what is signed and what it knows of itself: a pure function."""

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from edgewright.contract.names import version_key
from edgewright.contract.refusal import Refusal, RefusalCode
from edgewright.contract.rollout.plan import HealthRule, RolloutArm, RolloutPlan, RolloutPolicy, max_version
from edgewright.contract.timestamps import parse_iso8601
from edgewright.device.slots import InstalledRelease, Slots
from edgewright.rollout.assignment import arm_of, is_in, is_in_holdout, ramp_step_of

__all__ = [
    "DeviceContext",
    "UpdateChoice",
    "assigned_arm",
    "choose_update",
    "has_begun",
    "is_for",
    "retirement_notice",
]


@dataclass(frozen=True, slots=True)
class DeviceContext:
    """What a device knows of itself.

    Attributes:
        device_id: Its own.
        labels: Its labels.
        channel: Its channel, "" for none.
        now: The time that it believes.
        rollout_seen_at: When it first saw releases rolled out, UTC, ISO 8601, by the manifest's sha256.
        local_hour: Of the local day.
        battery_level: State of charge, 0 to 1; None without a battery, or on mains.
    """

    device_id: str
    labels: dict[str, str]
    channel: str
    now: datetime.datetime
    local_hour: int
    battery_level: float | None = None
    rollout_seen_at: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class UpdateChoice:
    """What to do.

    Attributes:
        action: `keep` what serves, `install` a release, `withdraw` the one on trial, `wait` with an installation.
        release: To install.
        rules: Of the rollout's stage.
        refusal: For the record; a refusal if something was refused.
    """

    action: Literal["keep", "install", "withdraw", "wait"]
    release: InstalledRelease | None = None
    rules: tuple[HealthRule, ...] = ()
    refusal: Refusal | None = None


def choose_update(
    plan: RolloutPlan | None,
    policy: RolloutPolicy,
    slots: Slots,
    failed_releases: dict[str, Refusal],
    context: DeviceContext,
) -> UpdateChoice:
    """Return what a device should do.

    Args:
        plan: Within the policy; None if there is none.
        policy: Of the offline keys.
        slots: What is installed.
        failed_releases: What failed here, by its manifest's sha256.
        context: What the device knows of itself.
    """
    on_trial = slots.trial
    if on_trial is not None and _is_denied(on_trial, policy):
        return UpdateChoice(
            "withdraw", refusal=_refusal("denied", on_trial.version, "the offline keys have denied it")
        )
    if plan is None or not is_for(plan, context.labels, context.channel):
        return UpdateChoice("keep")
    if plan.state == "aborted":
        if on_trial is not None and on_trial.rollout == plan.rollout:
            return UpdateChoice(
                "withdraw", refusal=_refusal("policy", on_trial.version, f"rollout {plan.rollout} was aborted")
            )
        return UpdateChoice("keep")
    # What is done still reaches devices that come later; an experiment that has its answer does not.
    over = plan.state == "done" and len(plan.arms) > 1
    if plan.state == "paused" or over or not has_begun(plan, context.now):
        return UpdateChoice("keep")
    if slots.proven is not None and is_in_holdout(policy.holdout_fraction, policy.salt, context.device_id):
        return UpdateChoice("keep")  # a device without a model has nothing to be compared with
    if slots.proven is None and plan.shadow_mode:
        return UpdateChoice("keep")  # nor to run beside
    arm, number = _arm(plan, policy, context)
    if not _is_reached(plan, policy, arm, context):
        return UpdateChoice("keep")
    release = InstalledRelease(
        plan.model, arm.version, arm.manifest_sha256, plan.rollout, number, is_shadow=plan.shadow_mode
    )
    rules = plan.stages[plan.stage].rules
    if _is_installed(release, slots):
        return UpdateChoice("keep", rules=rules)
    if slots.trial is not None and slots.proven is not None and slots.proven.manifest_digest == arm.manifest_sha256:
        return UpdateChoice(
            "withdraw", refusal=_refusal("policy", slots.trial.version, f"{arm.version} is rolled out again")
        )
    if arm.manifest_sha256 in failed_releases:
        return UpdateChoice("keep", rules=rules, refusal=failed_releases[arm.manifest_sha256])
    lacking = _missing_condition(plan, policy, context)
    if lacking is not None:
        return UpdateChoice("wait", release, rules, lacking)
    return UpdateChoice("install", release, rules)


def _is_reached(plan: RolloutPlan, policy: RolloutPolicy, arm: RolloutArm, context: DeviceContext) -> bool:
    """Whether the rollout has come to this device, as fast as the policy allows and no faster."""
    if not is_in(plan.fraction, arm.manifest_sha256, policy.salt, context.device_id):
        return False
    highest = max_version(policy, context.channel)
    if highest is not None and version_key(arm.version) > version_key(highest):
        return False
    step = ramp_step_of(policy.max_stage_step, arm.manifest_sha256, policy.salt, context.device_id)
    waited = context.now - parse_iso8601(context.rollout_seen_at.get(arm.manifest_sha256, context.now.isoformat()))
    return max(0.0, waited.total_seconds()) >= step * policy.min_stage_seconds


def _is_installed(release: InstalledRelease, slots: Slots) -> bool:
    if slots.trial is not None and slots.trial.manifest_digest == release.manifest_digest:
        return slots.trial.is_shadow == release.is_shadow
    return (
        slots.trial is None and slots.proven is not None and slots.proven.manifest_digest == release.manifest_digest
    )


def _arm(plan: RolloutPlan, policy: RolloutPolicy, context: DeviceContext) -> tuple[RolloutArm, int]:
    weights = [arm.weight for arm in plan.arms]
    number = arm_of(weights, plan.rollout, policy.salt, context.device_id)
    return plan.arms[number], number


def assigned_arm(plan: RolloutPlan, policy: RolloutPolicy, device_id: str) -> RolloutArm | None:
    """Return the arm that a device is assigned at the plan's stage, whatever it does; None for the control.

    Control are those that the fraction has not reached, and the holdback. Who knows a device's name knows its arm.
    """
    if is_in_holdout(policy.holdout_fraction, policy.salt, device_id):
        return None
    weights = [arm.weight for arm in plan.arms]
    arm = plan.arms[arm_of(weights, plan.rollout, policy.salt, device_id)]
    return arm if is_in(plan.fraction, arm.manifest_sha256, policy.salt, device_id) else None


def is_for(plan: RolloutPlan, labels: Mapping[str, str], channel: str) -> bool:
    """Whether a rollout is for a device of this channel with these labels."""
    wanted = plan.selector
    if wanted.channel and wanted.channel != channel:
        return False
    return all(labels.get(label) == value for label, value in wanted.labels.items())


def has_begun(plan: RolloutPlan, now: datetime.datetime) -> bool:
    """Whether it is neither before a rollout's start nor after its end."""
    if plan.start_at and now < parse_iso8601(plan.start_at):
        return False
    return not plan.end_at or now < parse_iso8601(plan.end_at)


def _missing_condition(plan: RolloutPlan, policy: RolloutPolicy, context: DeviceContext) -> Refusal | None:
    least = max(plan.min_battery_level, policy.min_battery_level)
    if context.battery_level is not None and context.battery_level < least:
        return _refusal(
            "battery", plan.rollout, f"the battery is at {context.battery_level:.0%}, {least:.0%} are needed"
        )
    if plan.install_hours is not None and not plan.install_hours.contains(context.local_hour):
        return _refusal(
            "hours",
            plan.rollout,
            f"it is {context.local_hour} o'clock, {plan.install_hours.start_hour} to "
            f"{plan.install_hours.end_hour} are allowed",
        )
    return None


def retirement_notice(policy: RolloutPolicy, slots: Slots) -> Refusal | None:
    """Return what the offline keys would not have installed any more and yet serves, for want of better."""
    serving = slots.serving_release
    if serving is None or not _is_denied(serving, policy):
        return None
    if serving.manifest_digest in policy.denied_manifests:
        return _refusal("denied", serving.version, "the offline keys have denied it, and it serves")
    return _refusal("policy", serving.version, f"it is below the floor {policy.min_version}, and it serves")


def _is_denied(installed: InstalledRelease, policy: RolloutPolicy) -> bool:
    below = version_key(installed.version) < version_key(policy.min_version)
    return below or installed.manifest_digest in policy.denied_manifests


def _refusal(code: RefusalCode, file: str, reason: str) -> Refusal:
    return Refusal(code, file, reason)
