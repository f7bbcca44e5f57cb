"""Can this fleet ever answer what its rollout asks? Said at the start, from counts of devices and rates of failure.

After n devices the best bet's wealth is about exp(n d^2 / 2 v), with d the distance between the observed difference
and the one to be refuted, and v the variance of a score. Averaging over bets costs some nats. From both comes how
many devices a bound takes, with which power. Simulations agree within a tenth for margins, and find harm with up to
a fifth fewer devices (`benchmarks/rollouts.py`).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

from edgewright.contract.rollout.decision import CONTROL_ARM
from edgewright.contract.rollout.plan import HealthRule, RolloutPlan, RolloutPolicy
from edgewright.rollout.comparison_design import arm_shares, assignment_share, stage_alpha, stopping_metrics

__all__ = [
    "DEFAULT_FAILURE_RATE",
    "MIN_CONTROL_SHARE",
    "Feasibility",
    "StagePower",
    "assess_feasibility",
    "clear_power",
    "detection_power",
    "devices_to_clear",
    "devices_to_detect",
]

DEFAULT_FAILURE_RATE = 0.02
"""Share of devices that fail in a stage, where nobody said."""
MIN_CONTROL_SHARE = 0.05
"""Of the devices that are compared, for a stage that asks anything."""

# Under the first a rollout is hopeless, under the second doubtful.
_REFUSE_BELOW, _WARN_BELOW = 0.1, 0.8
# What averaging over bets costs, in nats, as simulated.
_CLEAR_COST, _HARM_COST = 0.7, 0.0
_NORMAL = NormalDist()


@dataclass(frozen=True, slots=True)
class StagePower:
    """What a stage asks of one metric, and what its devices can answer.

    Attributes:
        stage: Index of the stage.
        metric: Which.
        margin: By how much it may be worse.
        rate: Of failures, in both arms.
        treated: Devices that get the release.
        control: Devices that it is compared with.
        power: Chance that a harmless release clears the margin with them.
        devices_for_half_power: Treated devices with which every second harmless release clears, their controls in
            proportion.
        devices_for_95_power: Treated devices with which 95 % do.
        detectable_rate: Rate of failures that is found with 95 %; 1 if none is.
    """

    stage: int
    metric: str
    margin: float
    rate: float
    treated: int
    control: int
    power: float
    devices_for_half_power: int
    devices_for_95_power: int
    detectable_rate: float


@dataclass(frozen=True, slots=True)
class Feasibility:
    """Whether a rollout can be decided.

    Attributes:
        verdict: `refuse` if some stage never could be, `warn` if some may well not be.
        reasons: In words, worst first; empty if all is well.
        stages: By stage and rule.
    """

    verdict: Literal["fine", "warn", "refuse"]
    reasons: tuple[str, ...]
    stages: tuple[StagePower, ...]


def devices_to_clear(
    rate: float,
    margin: float,
    *,
    share: float = 0.5,
    confidence: float = 0.95,
    power: float = 0.5,
    shift: float = 0.0,
) -> float:
    """Return how many devices of both arms together it takes until a release clears its margin.

    Args:
        rate: Of failures in the control.
        margin: By how much it may be worse.
        share: Of the treated among them.
        confidence: Of the rule.
        power: Chance with which that many are enough.
        shift: By how much the release is worse in truth.

    Returns:
        Infinity if it is worse by the margin.

    >>> round(devices_to_clear(0.02, 0.01) / 2, -2)
    3000.0
    """
    if shift >= margin:
        return math.inf
    reach = math.sqrt(2 * _clear_nats(confidence)) + _NORMAL.inv_cdf(power)
    return max(0.0, reach) ** 2 * _variance(rate, rate + shift, share) / (margin - shift) ** 2


def clear_power(
    rate: float, margin: float, devices: float, *, share: float = 0.5, confidence: float = 0.95
) -> float:
    """Return the chance that a harmless release clears its margin with so many devices of both arms together."""
    if devices <= 0 or not 0 < share < 1:
        return 0.0
    signal = margin * math.sqrt(devices / _variance(rate, rate, share))
    return _NORMAL.cdf(signal - math.sqrt(2 * _clear_nats(confidence)))


def devices_to_detect(rate: float, worse: float, *, alpha: float, share: float = 0.5, power: float = 0.5) -> float:
    """Return how many devices of both arms together it takes to stop a release for a rate of failures.

    Args:
        rate: In the control.
        worse: With the release.
        alpha: Error of this one test.
        share: Of the treated among them.
        power: Chance with which that many are enough.

    >>> round(devices_to_detect(0.02, 0.08, alpha=0.05) / 2, -1)
    170.0
    """
    if worse <= rate:
        return math.inf
    pooled = share * worse + (1 - share) * rate
    even, uneven = _variance(pooled, pooled, share), _variance(rate, worse, share)
    nats = math.log(1 / alpha) + _HARM_COST
    reach = math.sqrt(2 * nats * even) + _NORMAL.inv_cdf(power) * math.sqrt(uneven)
    return (max(0.0, reach) / (worse - rate)) ** 2


def detection_power(rate: float, worse: float, devices: float, *, alpha: float, share: float = 0.5) -> float:
    """Return the chance that a rate of failures stops a release within so many devices of both arms together."""
    if devices <= 0 or worse <= rate or not 0 < share < 1:
        return 0.0
    pooled = share * worse + (1 - share) * rate
    nats = math.log(1 / alpha) + _HARM_COST
    reach = (worse - rate) * math.sqrt(devices) - math.sqrt(2 * nats * _variance(pooled, pooled, share))
    return _NORMAL.cdf(reach / math.sqrt(_variance(rate, worse, share)))


def assess_feasibility(
    plan: RolloutPlan,
    policy: RolloutPolicy,
    devices: int,
    *,
    rates: Mapping[str, float] | None = None,
    alpha: float = 0.05,
) -> Feasibility:
    """Say whether a fleet can decide a rollout.

    Args:
        plan: Before it begins.
        policy: Of the offline keys; its holdback is the control that remains.
        devices: That the rollout is for.
        rates: Share of devices that fail in a stage, the offline ones included, by metric.
        alpha: As for `decide`.
    """
    questions, hopeless, doubtful = [], [], []
    for number, stage in enumerate(plan.stages):
        arms = arm_shares(plan, number, policy.holdout_fraction)
        for arm in range(len(plan.arms) if stage.rules else 0):
            share = assignment_share(arms, arm, CONTROL_ARM)
            if share is None:
                hopeless.append(
                    f"stage {number} leaves no devices to compare; the policy's holdback is "
                    f"{policy.holdout_fraction:.0%}, "
                    f"it should be {MIN_CONTROL_SHARE:.0%}"
                )
                continue
            if arms[CONTROL_ARM] < MIN_CONTROL_SHARE:
                doubtful.append(f"stage {number} is compared with less than {MIN_CONTROL_SHARE:.0%} of the devices")
            for rule in stage.rules:
                test = stage_alpha(alpha, number, len(plan.stages)) / len(stopping_metrics(plan)) / len(plan.arms)
                rate = (rates or {}).get(rule.metric, DEFAULT_FAILURE_RATE)
                compared = round(devices * (arms[arm] + arms[CONTROL_ARM]))
                question = _stage_power(number, rule, rate, compared, share, test)
                questions.append(question)
                if question.power < _WARN_BELOW:
                    (hopeless if question.power < _REFUSE_BELOW else doubtful).append(_describe(question))
    verdict: Literal["fine", "warn", "refuse"] = "refuse" if hopeless else "warn" if doubtful else "fine"
    return Feasibility(verdict, tuple(dict.fromkeys(hopeless + doubtful)), tuple(questions))


def _stage_power(
    number: int, rule: HealthRule, rate: float, devices: int, share: float, alpha: float
) -> StagePower:
    treated = round(devices * share)
    half, most = (
        devices_to_clear(rate, rule.margin, share=share, confidence=rule.confidence, power=power) * share
        for power in (0.5, 0.95)
    )
    low, high = rate, 1.0
    if detection_power(rate, high, devices, alpha=alpha, share=share) >= 0.95:
        for _ in range(40):
            middle = (low + high) / 2
            seen = detection_power(rate, middle, devices, alpha=alpha, share=share) >= 0.95
            low, high = (low, middle) if seen else (middle, high)
    power = clear_power(rate, rule.margin, devices, share=share, confidence=rule.confidence)
    return StagePower(
        stage=number,
        metric=rule.metric,
        margin=rule.margin,
        rate=rate,
        treated=treated,
        control=devices - treated,
        power=power,
        devices_for_half_power=math.ceil(half),
        devices_for_95_power=math.ceil(most),
        detectable_rate=high,
    )


def _describe(question: StagePower) -> str:
    return (
        f"stage {question.stage}: {question.treated} devices and {question.control} in the control clear a margin "
        f"of {question.margin:.2%} of {question.metric} with {question.power:.0%} if {question.rate:.1%} fail in "
        f"both; it takes {question.devices_for_half_power} for every second harmless release and "
        f"{question.devices_for_95_power} for 95 %"
    )


def _variance(rate: float, worse: float, share: float) -> float:
    """Return the variance of a score: of inverse probability weighting, around 0."""
    return worse / share + rate / (1 - share)


def _clear_nats(confidence: float) -> float:
    return -math.log(1 - confidence) + _CLEAR_COST
