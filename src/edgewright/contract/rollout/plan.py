"""What devices believe about a rollout: the offline policy, and within it the plan that the online key signs."""

import math
from typing import Literal

import msgspec

from edgewright.contract.errors import InputError
from edgewright.contract.names import checked_digest, checked_name, checked_version, version_key
from edgewright.contract.schema import SCHEMA_VERSION, SchemaVersion
from edgewright.contract.timestamps import checked_iso8601

__all__ = [
    "HEALTH_EVENTS",
    "DeviceSelector",
    "HealthRule",
    "InstallHours",
    "PlanState",
    "RolloutArm",
    "RolloutPlan",
    "RolloutPolicy",
    "RolloutStage",
    "max_version",
    "policy_violations",
]

PlanState = Literal["running", "paused", "aborted", "done"]
_MAX_WEIGHT = 1e6
HEALTH_EVENTS = ("crash", "load_failure", "self_test", "budget_breach", "offline")


class RolloutPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the offline keys allow for one model on one device class; plans may only be stricter.

    Attributes:
        model: Which.
        device_class: Which.
        revision: Rises with every change; devices never go back.
        salt: Of the cohorts, hexadecimal; a new one for each experiment, kept over its stages.
        min_version: Lowest version that may be installed or returned to.
        denied_manifests: Digests of manifests that may not be installed, whatever their version.
        channel_ceilings: Versions that devices of a channel may get, by the channel's name; "" is every device's.
            A channel's version is the highest for it: its devices install nothing above, whatever the plan says.
        max_stage_step: By how much a stage may raise the fraction. Each device keeps to the steps by itself.
        min_stage_seconds: Least time of a stage: a device of the n-th step waits n - 1 times as long from when it first
            saw the release rolled out.
        holdout_fraction: Share of the devices that keeps what it has, even at fraction 1; 0 for none.
        min_battery_level: Least state of charge for an installation, 0 to 1.
        epoch: Plans of another epoch are void, so that their counters start anew.
    """

    model: str
    device_class: str
    revision: int
    salt: str
    min_version: str = "0"
    denied_manifests: tuple[str, ...] = ()
    channel_ceilings: dict[str, str] = {}
    max_stage_step: float = 1.0
    min_stage_seconds: float = 0.0
    holdout_fraction: float = 0.0
    min_battery_level: float = 0.0
    epoch: int = 1

    def __post_init__(self) -> None:
        """Refuse a policy that could not be kept."""
        checked_name("model", self.model)
        checked_name("device class", self.device_class)
        checked_version(self.min_version)
        for digest in self.denied_manifests:
            checked_digest("denied manifest", digest)
        for channel, version in self.channel_ceilings.items():
            if channel:
                checked_name("channel", channel)
            checked_version(version)
        for what, share in (
            ("holdout_fraction", self.holdout_fraction),
            ("min_battery_level", self.min_battery_level),
        ):
            _checked_share(what, share)
        if not 0 < self.max_stage_step <= 1:
            raise InputError(
                f"largest_step is {self.max_stage_step:g}", remedy="It must be more than 0 and at most 1."
            )
        _checked_seconds("min_stage_seconds", self.min_stage_seconds)
        if len(self.salt) < 16 or self.revision < 1 or self.epoch < 1:
            raise InputError(
                f"policy revision {self.revision}, epoch {self.epoch}, salt of {len(self.salt)} characters",
                remedy="Revision and epoch begin with 1; a salt has at least 16 hexadecimal digits.",
            )


class HealthRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a stage must show before the next one.

    Attributes:
        metric: What devices report by name; or `outcome:NAME`, which the application counts and each device
            compares by itself, between the release on trial and its proven one.
        margin: By how much the rate may be worse than the control's.
        confidence: With which that must be shown.
    """

    metric: str
    margin: float
    confidence: float = 0.95

    def __post_init__(self) -> None:
        """Refuse a rule that holds always or never."""
        if self.metric not in HEALTH_EVENTS:
            kind, _, name = self.metric.partition(":")
            if kind != "outcome":
                raise InputError(
                    f"there is no metric {self.metric[:80]!r}",
                    remedy=f"Use {', '.join(HEALTH_EVENTS)} or outcome:NAME.",
                )
            checked_name("outcome", name)
        if not 0 < self.margin < 1 or not 0.5 <= self.confidence < 1:
            raise InputError(
                f"health rule {self.metric}: margin {self.margin:g}, confidence {self.confidence:g}",
                remedy="A margin lies between 0 and 1, a confidence is at least 0.5 and less than 1.",
            )


class RolloutStage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A step of a rollout.

    Attributes:
        fraction: Of the devices.
        min_duration_seconds: Least time before the next one.
        rules: What must hold before the next one.
    """

    fraction: float
    min_duration_seconds: float = 0.0
    rules: tuple[HealthRule, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what is no share or time."""
        _checked_share("fraction", self.fraction)
        _checked_seconds("min_duration_seconds", self.min_duration_seconds)


class RolloutArm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One of the releases that a rollout's devices get.

    Attributes:
        version: Of the release.
        manifest_sha256: sha256 of its manifest.
        weight: Its share among the arms, in proportion.
    """

    version: str
    manifest_sha256: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what is no version, digest or weight."""
        checked_version(self.version)
        checked_digest("an arm's manifest", self.manifest_sha256)
        if not 0 < self.weight <= _MAX_WEIGHT:
            raise InputError(
                f"an arm's weight is {self.weight:g}",
                remedy=f"It must be greater than 0, {_MAX_WEIGHT:g} at most.",
            )


class DeviceSelector(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which devices of the class a rollout is for.

    Attributes:
        labels: Label and value that a device must all have.
        channel: Of the device, "" for every one.
    """

    labels: dict[str, str] = {}
    channel: str = ""


class InstallHours(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A time of day, local to the device, in which it may install; it may go past midnight.

    Attributes:
        start_hour: Hour that it begins with, 0 to 23.
        end_hour: Hour that it ends before, 0 to 24.
    """

    start_hour: int
    end_hour: int

    def __post_init__(self) -> None:
        """Refuse what is no hour."""
        if not 0 <= self.start_hour <= 23 or not 0 <= self.end_hour <= 24 or self.start_hour == self.end_hour:
            raise InputError(
                f"hours {self.start_hour} to {self.end_hour} are no time of day",
                remedy="Give two different hours, 0 to 23 and 0 to 24.",
            )

    def contains(self, hour: int) -> bool:
        """Whether an hour of the day lies within.

        >>> InstallHours(22, 6).contains(23), InstallHours(22, 6).contains(6)
        (True, False)
        """
        if self.start_hour < self.end_hour:
            return self.start_hour <= hour < self.end_hour
        return hour >= self.start_hour or hour < self.end_hour


class RolloutPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A rollout, as devices believe it.

    Attributes:
        model: Which.
        device_class: Which.
        rollout: Its name; with the policy's salt it decides who is in.
        epoch: Of the policy that it was made under.
        counter: Rises with every change of the plan.
        arms: What is rolled out.
        stages: In order of their fractions.
        stage: Which of them it is at.
        state: A running one makes devices install; so does one that is done, for devices that come later, unless
            it was an experiment between arms.
        selector: Which devices it is for.
        stage_started_at: When it reached that stage, UTC, ISO 8601; "" if nobody said.
        start_at: Not before, UTC, ISO 8601; "" for at once.
        end_at: Not after; "" for no end.
        min_battery_level: Least state of charge for an installation, 0 to 1.
        install_hours: When devices may install; None for at any time.
        shadow_mode: The new model runs beside the old one on the same inputs and its answers are only compared.
    """

    model: str
    device_class: str
    rollout: str
    epoch: int
    counter: int
    arms: tuple[RolloutArm, ...]
    stages: tuple[RolloutStage, ...]
    stage: int = 0
    stage_started_at: str = ""
    state: PlanState = "running"
    selector: DeviceSelector = DeviceSelector()
    start_at: str = ""
    end_at: str = ""
    min_battery_level: float = 0.0
    install_hours: InstallHours | None = None
    shadow_mode: bool = False
    schema: SchemaVersion = SCHEMA_VERSION

    def __post_init__(self) -> None:
        """Refuse a plan that no device could follow."""
        checked_name("model", self.model)
        checked_name("device class", self.device_class)
        checked_name("rollout", self.rollout)
        _checked_share("min_battery_level", self.min_battery_level)
        for what in ("stage_started_at", "start_at", "end_at"):
            checked_iso8601(what, getattr(self, what))
        for label in self.selector.labels:
            checked_name("label", label)
        fractions = [stage.fraction for stage in self.stages]
        if not self.arms or not fractions or fractions != sorted(fractions):
            raise InputError(
                f"rollout {self.rollout} has {len(self.arms)} arms and the fractions {fractions}",
                remedy="Give at least one arm, and stages whose fractions only rise.",
            )
        if not 0 <= self.stage < len(fractions) or self.counter < 1 or self.epoch < 1:
            raise InputError(
                f"rollout {self.rollout} is at stage {self.stage} of {len(fractions)}, counter {self.counter}",
                remedy="Stages are counted from 0, counters and epochs from 1.",
            )

    @property
    def fraction(self) -> float:
        """Share of the devices that are in at this stage."""
        return self.stages[self.stage].fraction


def max_version(policy: RolloutPolicy, channel: str) -> str | None:
    """Return the highest version that devices of a channel may get, None without a limit."""
    return policy.channel_ceilings.get(channel, policy.channel_ceilings.get(""))


def policy_violations(plan: RolloutPlan, policy: RolloutPolicy) -> list[str]:
    """Return in what a plan is laxer than its policy, nothing if it keeps it.

    A device asks before it follows a plan, and the publisher before it signs one.
    """
    found = []
    if (plan.model, plan.device_class) != (policy.model, policy.device_class):
        found.append(
            f"the plan is for {plan.model} on {plan.device_class}, the policy for {policy.model} on "
            f"{policy.device_class}"
        )
    if plan.epoch != policy.epoch:
        found.append(f"the plan is of epoch {plan.epoch}, the policy of {policy.epoch}")
    highest = max_version(policy, plan.selector.channel)
    for arm in plan.arms:
        if version_key(arm.version) < version_key(policy.min_version):
            found.append(f"version {arm.version} is below the floor {policy.min_version}")
        if arm.manifest_sha256 in policy.denied_manifests:
            found.append(f"version {arm.version} is denied")
        if highest is not None and version_key(arm.version) > version_key(highest):
            found.append(
                f"version {arm.version} is above {highest}, the highest for channel {plan.selector.channel!r}"
            )
    before = 0.0
    for number, stage in enumerate(plan.stages):
        if stage.fraction - before > policy.max_stage_step + 1e-9:
            found.append(
                f"stage {number} raises the fraction by {stage.fraction - before:g}, the policy allows "
                f"{policy.max_stage_step:g}"
            )
        if stage.min_duration_seconds < policy.min_stage_seconds and number < len(plan.stages) - 1:
            found.append(
                f"stage {number} lasts {stage.min_duration_seconds:g} s or more, the policy wants "
                f"{policy.min_stage_seconds:g} s"
            )
        before = stage.fraction
    return found


def _checked_share(what: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise InputError(f"{what} is {value:g}", remedy="It is a share: 0 to 1.")


def _checked_seconds(what: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise InputError(f"{what} is {value:g}", remedy="It is a time in seconds, at least 0.")
