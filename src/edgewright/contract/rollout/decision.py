"""What is decided about a rollout, with all that it was decided from, so that it can be decided again.

Devices are counted by metric, arm and value: what is decided depends on these counts alone.
"""

import hashlib
from typing import Literal

import msgspec

from edgewright.contract.errors import InputError
from edgewright.contract.names import checked_name
from edgewright.contract.rollout.plan import RolloutPlan, RolloutPolicy
from edgewright.contract.schema import SCHEMA_VERSION, SchemaVersion
from edgewright.contract.timestamps import checked_iso8601

__all__ = [
    "CONTROL_ARM",
    "ArmComparison",
    "ComparisonOutcome",
    "DecisionAction",
    "DecisionInputs",
    "DeviceOutcome",
    "ExperimentResult",
    "OutcomeCounts",
    "RolloutDecision",
    "StageEvidence",
    "inputs_digest",
]

DecisionAction = Literal["advance", "hold", "roll_back", "finish"]
"""What is to become of a rollout."""

ComparisonOutcome = Literal["within_margin", "excluded", "inconclusive", "running"]
"""What became of an arm of an experiment."""

CONTROL_ARM = -1
"""The arm of the devices that keep what they have."""


class DeviceOutcome(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one device came to in one stage; whatever it did, it counts in the arm that it was assigned to.

    A device that gave a release up by itself no longer fails by it: what failed in an earlier stage of the rollout
    goes on to count as failed, in every arm.

    Attributes:
        device: Its name.
        arm: That its place in the cohort gives it: the index in the plan's arms, or `CONTROL_ARM`.
        deadline: When its outcome is fixed, UTC, ISO 8601: equally long after its chance to learn of the stage in
            every arm, never after its installation or its last report.
        values: By metric, 0 to 1, the greater the worse; None if it was offline until then.
    """

    device: str
    arm: int
    deadline: str
    values: dict[str, float] | None = None

    def __post_init__(self) -> None:
        """Refuse what is no arm, moment or outcome."""
        if not self.deadline or self.arm < CONTROL_ARM:
            raise InputError(
                f"device {self.device[:80]!r}: arm {self.arm}, deadline {self.deadline!r}",
                remedy=f"Arms are counted from 0, the control is {CONTROL_ARM}, and every outcome has a deadline.",
            )
        checked_iso8601("deadline", self.deadline)
        for metric, value in (self.values or {}).items():
            if not 0 <= value <= 1:
                raise InputError(
                    f"device {self.device[:80]!r}: {metric} is {value}",
                    remedy="Give a value from 0 to 1, the greater the worse.",
                )


class OutcomeCounts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Devices of one arm by the value of one metric.

    Attributes:
        metric: Which.
        arm: Index in the plan's arms, or `CONTROL_ARM`.
        values: That occurred, ascending.
        devices: How many had each.
    """

    metric: str
    arm: int
    values: tuple[float, ...]
    devices: tuple[int, ...]

    def __post_init__(self) -> None:
        """Refuse counts that are none."""
        values = self.values
        if (
            len(values) != len(self.devices)
            or list(values) != sorted(set(values))
            or any(not 0 <= value <= 1 for value in values)
            or any(devices < 0 for devices in self.devices)
        ):
            raise InputError(
                f"tally of {self.metric[:80]!r}, arm {self.arm}: values {values[:5]}, devices {self.devices[:5]}",
                remedy="Give ascending values from 0 to 1, and for each the number of its devices.",
            )


class StageEvidence(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All outcomes of a stage that are fixed.

    Attributes:
        rollout: Its name.
        stage: Which.
        counts: One per metric and arm; each arm has as many devices under every metric.
        pending: Devices of each arm whose deadline is still to come, the control first.
        rows_digest: sha256 of the outcomes that were counted, "" if they were counted elsewhere.
        baseline_rates: Rates by metric as they were before the stage began. They make bounds narrower where failures
            are frequent; one that was drawn from the stage's own devices would void them.
    """

    rollout: str
    stage: int
    counts: tuple[OutcomeCounts, ...]
    pending: tuple[int, ...] = ()
    rows_digest: str = ""
    baseline_rates: dict[str, float] = {}

    def __post_init__(self) -> None:
        """Refuse counts that do not fit each other."""
        checked_name("rollout", self.rollout)
        totals: dict[int, set[int]] = {}
        for tally in self.counts:
            totals.setdefault(tally.arm, set()).add(sum(tally.devices))
        places = {(tally.metric, tally.arm) for tally in self.counts}
        if len(places) < len(self.counts) or any(len(counts) > 1 for counts in totals.values()):
            raise InputError(
                f"the evidence of {self.rollout} counts an arm twice, or differently from metric to metric",
                remedy="Count every device once under every metric; the offline ones too.",
            )
        for metric, centre in self.baseline_rates.items():
            if not 0 <= centre < 1:
                raise InputError(f"the centre of {metric[:80]!r} is {centre}", remedy="It is a rate: 0 to 1.")

    def counts_of(self, metric: str, arm: int) -> OutcomeCounts:
        """Return the devices of one arm by the value of one metric; none if there are none."""
        for tally in self.counts:
            if (tally.metric, tally.arm) == (metric, arm):
                return tally
        return OutcomeCounts(metric, arm, (), ())


class DecisionInputs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that a decision depends on.

    Attributes:
        plan: The rollout.
        policy: Of the offline keys.
        evidence: Of the stage that the plan is at.
        decided_at: When it was decided, UTC, ISO 8601.
        alpha: Chance with which a harmless rollout may be stopped, over all its stages, metrics and looks.
    """

    plan: RolloutPlan
    policy: RolloutPolicy
    evidence: StageEvidence
    decided_at: str
    alpha: float

    def __post_init__(self) -> None:
        """Refuse what no decision could be made at."""
        if not self.decided_at or not 0 < self.alpha < 1:
            raise InputError(
                f"decided at {self.decided_at!r} with alpha {self.alpha}",
                remedy="Give a moment, and 0 < alpha < 1.",
            )
        checked_iso8601("decided_at", self.decided_at)


class ArmComparison(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One metric of one arm beside another's.

    Attributes:
        metric: Which.
        arm: Index in the plan's arms.
        reference_arm: The arm that it is compared with: `CONTROL_ARM`, or in an experiment the first.
        devices: Of the arm.
        reference_devices: Of the other.
        rate: Mean of the arm's outcomes.
        reference_rate: Mean of the other's.
        difference: Of the two.
        low: Lower end of the confidence sequence of the difference.
        high: Its upper end.
        upper_bound: One-sided upper bound of the difference, that is held against the margin.
        confidence: Of both.
        margin: By how much it may be worse; None if no rule of the stage asks.
        within_margin: Whether the bound is within the margin.
        log_e_value: Natural logarithm of the evidence that the arm is worse, in what its devices reported.
    """

    metric: str
    arm: int
    reference_arm: int
    devices: int
    reference_devices: int
    rate: float
    reference_rate: float
    difference: float
    low: float
    high: float
    upper_bound: float
    confidence: float
    margin: float | None
    within_margin: bool
    log_e_value: float


class RolloutDecision(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is to become of a rollout, and why.

    Attributes:
        action: `advance` to the next stage, `hold`, `roll_back`, or `finish` after the last stage.
        reasons: In words.
        waiting_for: What has to happen before it can go on, in words; empty unless it holds.
        comparisons: By arm and metric.
        log_e_value: Natural logarithm of the evidence of harm in this stage, all arms and metrics together.
        log_e_limit: From where on it is rolled back.
        log_imbalance: Evidence that devices were not assigned as they should have been.
        log_imbalance_limit: From where on nothing is advanced.
        digest: sha256 of the inputs.
        inputs: All that it was decided from.
    """

    action: DecisionAction
    reasons: tuple[str, ...]
    waiting_for: tuple[str, ...]
    comparisons: tuple[ArmComparison, ...]
    log_e_value: float
    log_e_limit: float
    log_imbalance: float
    log_imbalance_limit: float
    digest: str
    inputs: DecisionInputs
    schema: SchemaVersion = SCHEMA_VERSION


class ExperimentResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an experiment between arms has come to.

    Attributes:
        ended: Whether all its questions are answered, or its time is over.
        outcomes: By comparison, in their order: `within_margin` the margin; `excluded`, worse by more than the margin;
            `inconclusive` at the end; `running` before it.
        reasons: In words, by comparison.
        comparisons: Of each later arm with the first, by rule of the stage.
        log_imbalance: Evidence that devices were not assigned as they should have been.
        log_imbalance_limit: From where on nothing is concluded.
        digest: sha256 of the inputs.
        inputs: All that it was judged from.
    """

    ended: bool
    outcomes: tuple[ComparisonOutcome, ...]
    reasons: tuple[str, ...]
    comparisons: tuple[ArmComparison, ...]
    log_imbalance: float
    log_imbalance_limit: float
    digest: str
    inputs: DecisionInputs
    schema: SchemaVersion = SCHEMA_VERSION


def inputs_digest(*records: msgspec.Struct) -> str:
    """Return the sha256 of records: the same for those that were read from bytes as for those that were made."""
    digest = hashlib.sha256()
    for record in records:
        # What was made may hold an integer where bytes say 1.0, and mappings in another order.
        read = msgspec.json.decode(msgspec.json.encode(record), type=type(record))
        digest.update(msgspec.json.encode(read, order="deterministic") + b"\n")
    return digest.hexdigest()
