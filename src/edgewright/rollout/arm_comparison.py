"""One metric of two arms, side by side: rates, their difference with its bounds, and the evidence of harm.

To clear a margin, silence counts as a failure under every metric. Evidence of harm is sought in what was reported,
and in silence by itself: counted under every metric it would hide all of them behind devices that are merely off.
Either is an outcome of every device as assigned.
"""

from collections.abc import Mapping

import numpy as np

from edgewright.contract.rollout.decision import CONTROL, Comparison, Evidence
from edgewright.contract.rollout.plan import HealthRule
from edgewright.rollout.comparison_design import share_of
from edgewright.stats import sequential_ab

__all__ = ["CONFIDENCE", "arms_of", "compare", "imbalance"]

CONFIDENCE = 0.95
"""Of the bounds that are shown where no rule asks for another."""


def arms_of(
    evidence: Evidence, metric: str, arm: int, against: int, *, reported: bool = False
) -> sequential_ab.Arms:
    """Return the devices of two arms by their outcome.

    Args:
        evidence: Of the stage.
        metric: Which.
        arm: Index in the plan's arms.
        against: The other.
        reported: Whether silence counts as a failure only where it is the metric.
    """
    forgiven = reported and metric != "silent"
    treated, control = (_by_value(evidence, metric, one, forgiven=forgiven) for one in (arm, against))
    values = sorted({*treated, *control})
    return sequential_ab.Arms(
        np.array(values, np.float64),
        np.array([treated.get(value, 0) for value in values], np.int64),
        np.array([control.get(value, 0) for value in values], np.int64),
    )


def _by_value(evidence: Evidence, metric: str, arm: int, *, forgiven: bool) -> dict[float, int]:
    tally, silence = evidence.tally(metric, arm), evidence.tally("silent", arm)
    found = dict(zip(tally.values, tally.devices, strict=True))
    silent = dict(zip(silence.values, silence.devices, strict=True)).get(1.0, 0) if forgiven else 0
    if silent:
        found[1.0] = max(0, found.get(1.0, 0) - silent)
        found[0.0] = found.get(0.0, 0) + silent
    return found


def compare(
    evidence: Evidence,
    metric: str,
    arm: int,
    against: int,
    *,
    share: float,
    rule: HealthRule | None,
    split: int = 1,
) -> Comparison:
    """Put a metric of two arms side by side.

    Args:
        evidence: Of the stage.
        metric: Which.
        arm: Index in the plan's arms.
        against: The arm that it is compared with.
        share: Chance with which a device of the two is assigned to the first.
        rule: What the stage asks of it, if anything.
        split: Over how many comparisons the error of the bounds is split.
    """
    arms = arms_of(evidence, metric, arm, against)
    centre = evidence.centres.get(metric, 0.0)
    confidence = CONFIDENCE if rule is None else rule.confidence
    alpha = (1 - confidence) / split
    low, high = sequential_ab.interval(arms, share, alpha, centre=centre)
    bound = sequential_ab.upper_bound(arms, share, alpha, centre=centre)
    (devices, against_devices), (rate, against_rate) = arms.devices, arms.means
    return Comparison(
        metric=metric,
        arm=arm,
        against=against,
        devices=devices,
        against_devices=against_devices,
        rate=rate,
        against_rate=against_rate,
        difference=rate - against_rate,
        low=low,
        high=high,
        bound=bound,
        confidence=confidence,
        margin=None if rule is None else rule.margin,
        clears=rule is not None and bound <= rule.margin,
        log_e=sequential_ab.log_harm(arms_of(evidence, metric, arm, against, reported=True), share, centre=centre),
    )


def imbalance(evidence: Evidence, arms: Mapping[int, float], metric: str, against: int = CONTROL) -> float:
    """Return the logarithm of the strongest evidence that arms do not have their share of the devices.

    Args:
        evidence: Of the stage.
        arms: Shares of the devices, as `design.sizes` gives them.
        metric: Any; all have as many devices.
        against: The arm that others are compared with.
    """
    found = [0.0]
    for arm in arms:
        share = None if arm == against else share_of(dict(arms), arm, against)
        if share is not None:
            devices = [sum(evidence.tally(metric, one).devices) for one in (arm, against)]
            found.append(sequential_ab.log_imbalance(devices[0], devices[1], share))
    return max(found)
