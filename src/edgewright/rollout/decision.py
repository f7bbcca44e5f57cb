"""What is to become of a rollout: a pure function of its plan, its policy, the evidence, and the time.

Harm is looked for first, since it needs no quorum: once the evidence against "no worse than the control", averaged
over arms and metrics, passes what the stage may spend, the release is rolled back. (A mean of e-values is one, and
passes whenever one of them would with error split over them.) A metric that has been shown to stay within its
margin no longer speaks for that. A stage is advanced when its least time is over and every rule's bound, valid over
all looks, is within its margin: all must hold, so none of their error is split. Otherwise it holds.
"""

import datetime
import math
from collections.abc import Sequence

from edgewright.contract.errors import InputError
from edgewright.contract.rollout.decision import (
    CONTROL_ARM,
    ArmComparison,
    DecisionAction,
    DecisionInputs,
    RolloutDecision,
    StageEvidence,
    inputs_digest,
)
from edgewright.contract.rollout.plan import HealthRule, RolloutPlan, RolloutPolicy
from edgewright.contract.timestamps import parse_iso8601
from edgewright.rollout.arm_comparison import compare_arms, outcome_arms, sample_ratio_mismatch
from edgewright.rollout.comparison_design import arm_shares, assignment_share, stage_alpha, stopping_metrics
from edgewright.stats import sequential_ab

__all__ = ["IMBALANCE_ALPHA", "decide_rollout", "replay_decision"]

IMBALANCE_ALPHA = 0.001
"""Chance with which arms that are as they should be are taken for askew."""


def decide_rollout(
    plan: RolloutPlan,
    policy: RolloutPolicy,
    evidence: StageEvidence,
    now: datetime.datetime,
    *,
    alpha: float = 0.05,
) -> RolloutDecision:
    """Decide about a rollout at the stage that it is at; whoever asks acts on it and keeps it.

    Args:
        plan: As it is signed.
        policy: Of the offline keys.
        evidence: Of that stage, as `collect` makes it.
        now: The time.
        alpha: Chance with which a harmless rollout may be stopped, over all stages, metrics and looks.

    Raises:
        InputError: The evidence is of another rollout or stage.
    """
    return _decide(DecisionInputs(plan, policy, evidence, now.isoformat(), alpha))


def replay_decision(decision: RolloutDecision) -> RolloutDecision:
    """Decide again from what a decision was made from; the same, unless the rules have changed since."""
    return _decide(decision.inputs)


def _decide(inputs: DecisionInputs) -> RolloutDecision:
    plan, evidence = inputs.plan, inputs.evidence
    if (evidence.rollout, evidence.stage) != (plan.rollout, plan.stage):
        raise InputError(
            f"the evidence is of stage {evidence.stage} of {evidence.rollout}, the plan is at stage {plan.stage} "
            f"of {plan.rollout}",
            remedy="Count the outcomes of the plan's stage.",
        )
    arms = arm_shares(plan, plan.stage, inputs.policy.holdout_fraction)
    rules = {rule.metric: rule for rule in plan.stages[plan.stage].rules}
    comparisons = _comparisons(inputs, arms, rules)
    skew = sample_ratio_mismatch(evidence, arms, stopping_metrics(plan)[0])
    skew_limit = -math.log(IMBALANCE_ALPHA / len(plan.arms))
    log_e = _log_mean_evidence(comparisons, len(plan.arms) * len(stopping_metrics(plan)))
    limit = -math.log(stage_alpha(inputs.alpha, plan.stage, len(plan.stages)))
    action: DecisionAction
    reasons: tuple[str, ...]
    missing: tuple[str, ...] = ()
    if plan.state in ("aborted", "done"):
        action, reasons = "hold", (f"the rollout is {plan.state}",)
    elif log_e >= limit:
        action, reasons = "roll_back", tuple(_describe_harm(comparisons, log_e, limit))
    else:
        missing = tuple(_what_is_missing(inputs, arms, rules, comparisons, skew >= skew_limit))
        last = plan.stage == len(plan.stages) - 1
        action = "hold" if missing else "finish" if last else "advance"
        reasons = tuple(_describe_clearance(comparison) for comparison in comparisons if comparison.within_margin)
        if not missing and not rules:
            reasons = (f"stage {plan.stage} has no rules, and no harm was seen",)
    return RolloutDecision(
        action=action,
        reasons=reasons,
        waiting_for=missing,
        comparisons=comparisons,
        log_e_value=log_e,
        log_e_limit=limit,
        log_imbalance=skew,
        log_imbalance_limit=skew_limit,
        digest=inputs_digest(inputs),
        inputs=inputs,
    )


def _comparisons(
    inputs: DecisionInputs, arms: dict[int, float], rules: dict[str, HealthRule]
) -> tuple[ArmComparison, ...]:
    found = []
    for arm in range(len(inputs.plan.arms)):
        share = assignment_share(arms, arm, CONTROL_ARM)
        if share is not None:
            found += [
                compare_arms(inputs.evidence, metric, arm, CONTROL_ARM, share=share, rule=rules.get(metric))
                for metric in stopping_metrics(inputs.plan)
            ]
    return tuple(found)


def _log_mean_evidence(comparisons: Sequence[ArmComparison], number: int) -> float:
    """Return the logarithm of the mean evidence; what has cleared its margin speaks for no harm."""
    logs = [min(one.log_e_value, 0.0) if one.within_margin else one.log_e_value for one in comparisons]
    logs += [0.0] * (number - len(logs))
    peak = max(logs)
    return peak + math.log(sum(math.exp(log - peak) for log in logs) / number)


def _describe_harm(comparisons: Sequence[ArmComparison], log_e: float, limit: float) -> list[str]:
    worst = sorted((one for one in comparisons if not one.within_margin), key=lambda one: -one.log_e_value)
    words = [
        f"{_describe_rates(one)}: evidence of harm {_describe_odds(one.log_e_value)}"
        for one in worst
        if one.log_e_value > 0 and one.log_e_value >= worst[0].log_e_value - math.log(10)
    ]
    return [
        f"the evidence of harm, all metrics together, is {_describe_odds(log_e)}, and "
        f"{_describe_odds(limit)} is enough",
        *words,
    ]


def _what_is_missing(
    inputs: DecisionInputs,
    arms: dict[int, float],
    rules: dict[str, HealthRule],
    comparisons: Sequence[ArmComparison],
    imbalanced: bool,
) -> list[str]:
    plan, evidence = inputs.plan, inputs.evidence
    missing = []
    if plan.state == "paused":
        missing.append("the rollout is paused")
    if imbalanced:
        missing.append("devices are not in the arms as they should be; whatever is counted wrongly has to be found")
    missing += _time_left(inputs)
    if rules and len(comparisons) < len(plan.arms) * len(stopping_metrics(plan)):
        missing.append(
            f"there is no control, at fraction {plan.fraction:g} with a holdback of {inputs.policy.holdout_fraction:g}"
        )
    for one in comparisons:
        if one.margin is not None and not one.within_margin:
            share = arms[one.arm] / (arms[one.arm] + arms[CONTROL_ARM])
            missing.append(_devices_missing(evidence, one, share))
    return missing


def _time_left(inputs: DecisionInputs) -> list[str]:
    plan = inputs.plan
    last = plan.stage == len(plan.stages) - 1
    least = max(plan.stages[plan.stage].min_duration_seconds, 0.0 if last else inputs.policy.min_stage_seconds)
    if least <= 0:
        return []
    if not plan.stage_started_at:
        return ["nobody said when the stage began"]
    left = least - (parse_iso8601(inputs.decided_at) - parse_iso8601(plan.stage_started_at)).total_seconds()
    return [f"the stage lasts {left:.0f} s more"] if left > 0 else []


def _devices_missing(evidence: StageEvidence, one: ArmComparison, share: float) -> str:
    """Say how many devices more a bound takes at the present rates."""
    margin, waiting = one.margin or 0.0, sum(evidence.pending)
    if min(one.devices, one.reference_devices) == 0:
        return (
            f"{one.metric} of arm {one.arm}: no outcomes in both arms yet, {waiting} are waiting for their deadline"
        )
    stands = f"{_describe_rates(one)}: worse by at most {one.upper_bound:.2%}, {margin:.2%} is allowed"
    grown = sequential_ab.sample_growth_to_refute(
        outcome_arms(evidence, one.metric, one.arm, one.reference_arm),
        share,
        margin,
        1 - one.confidence,
        center=evidence.baseline_rates.get(one.metric, 0.0),
    )
    if math.isinf(grown):
        return f"{stands}; at the present rates it never clears"
    more, other = (max(1, math.ceil((grown - 1) * devices)) for devices in (one.devices, one.reference_devices))
    return (
        f"{stands}; about {more} more devices with the release and {other} in the control at the present rates, "
        f"{waiting} are waiting for their deadline"
    )


def _describe_clearance(one: ArmComparison) -> str:
    return f"{_describe_rates(one)}: worse by at most {one.upper_bound:.2%}, {one.margin or 0.0:.2%} is allowed"


def _describe_rates(one: ArmComparison) -> str:
    return (
        f"{one.metric} of arm {one.arm} {one.rate:.2%} of {one.devices} devices, in the control "
        f"{one.reference_rate:.2%} of {one.reference_devices}"
    )


def _describe_odds(log: float) -> str:
    return f"{math.exp(min(log, 700.0)):.3g} to 1"
