"""One metric of two arms, side by side: rates, their difference with its bounds, and the evidence of harm.

To clear a margin, silence counts as a failure under every metric. Evidence of harm is sought in what was reported,
and in silence by itself: counted under every metric it would hide all of them behind devices that are merely off.
Either is an outcome of every device as assigned.
"""

from collections.abc import Mapping

import numpy as np

from edgewright.contract.rollout.decision import CONTROL_ARM, ArmComparison, StageEvidence
from edgewright.contract.rollout.plan import HealthRule
from edgewright.rollout.comparison_design import assignment_share
from edgewright.stats import sequential_ab

__all__ = ["CONFIDENCE", "compare_arms", "outcome_arms", "sample_ratio_mismatch"]

CONFIDENCE = 0.95
"""Of the bounds that are shown where no rule asks for another."""


def outcome_arms(
    evidence: StageEvidence, metric: str, arm: int, reference_arm: int, *, reported: bool = False
) -> sequential_ab.ArmOutcomes:
    """Return the devices of two arms by their outcome.

    Args:
        evidence: Of the stage.
        metric: Which.
        arm: Index in the plan's arms.
        reference_arm: The other.
        reported: Whether silence counts as a failure only where it is the metric.
    """
    forgiven = reported and metric != "offline"
    treated, control = (_by_value(evidence, metric, one, excused=forgiven) for one in (arm, reference_arm))
    values = sorted({*treated, *control})
    return sequential_ab.ArmOutcomes(
        np.array(values, np.float64),
        np.array([treated.get(value, 0) for value in values], np.int64),
        np.array([control.get(value, 0) for value in values], np.int64),
    )


def _by_value(evidence: StageEvidence, metric: str, arm: int, *, excused: bool) -> dict[float, int]:
    tally, silence = evidence.counts_of(metric, arm), evidence.counts_of("offline", arm)
    found = dict(zip(tally.values, tally.devices, strict=True))
    offline = dict(zip(silence.values, silence.devices, strict=True)).get(1.0, 0) if excused else 0
    if offline:
        found[1.0] = max(0, found.get(1.0, 0) - offline)
        found[0.0] = found.get(0.0, 0) + offline
    return found


def compare_arms(
    evidence: StageEvidence,
    metric: str,
    arm: int,
    reference_arm: int,
    *,
    share: float,
    rule: HealthRule | None,
    split: int = 1,
) -> ArmComparison:
    """Put a metric of two arms side by side.

    Args:
        evidence: Of the stage.
        metric: Which.
        arm: Index in the plan's arms.
        reference_arm: The arm that it is compared with.
        share: Chance with which a device of the two is assigned to the first.
        rule: What the stage asks of it, if anything.
        split: Over how many comparisons the error of the bounds is split.
    """
    arms = outcome_arms(evidence, metric, arm, reference_arm)
    centre = evidence.baseline_rates.get(metric, 0.0)
    confidence = CONFIDENCE if rule is None else rule.confidence
    alpha = (1 - confidence) / split
    low, high = sequential_ab.difference_interval(arms, share, alpha, center=centre)
    bound = sequential_ab.difference_upper_bound(arms, share, alpha, center=centre)
    (devices, against_devices), (rate, against_rate) = arms.device_counts, arms.mean_outcomes
    return ArmComparison(
        metric=metric,
        arm=arm,
        reference_arm=reference_arm,
        devices=devices,
        reference_devices=against_devices,
        rate=rate,
        reference_rate=against_rate,
        difference=rate - against_rate,
        low=low,
        high=high,
        upper_bound=bound,
        confidence=confidence,
        margin=None if rule is None else rule.margin,
        within_margin=rule is not None and bound <= rule.margin,
        log_e_value=sequential_ab.log_harm_evidence(
            outcome_arms(evidence, metric, arm, reference_arm, reported=True), share, center=centre
        ),
    )


def sample_ratio_mismatch(
    evidence: StageEvidence, arms: Mapping[int, float], metric: str, reference_arm: int = CONTROL_ARM
) -> float:
    """Return the logarithm of the strongest evidence that arms do not have their share of the devices.

    Args:
        evidence: Of the stage.
        arms: Shares of the devices, as `design.sizes` gives them.
        metric: Any; all have as many devices.
        reference_arm: The arm that others are compared with.
    """
    found = [0.0]
    for arm in arms:
        share = None if arm == reference_arm else assignment_share(dict(arms), arm, reference_arm)
        if share is not None:
            devices = [sum(evidence.counts_of(metric, one).devices) for one in (arm, reference_arm)]
            found.append(sequential_ab.log_imbalance_evidence(devices[0], devices[1], share))
    return max(found)
