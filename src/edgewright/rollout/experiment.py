"""An experiment between arms: what is the difference, how surely, and is it time to end.

Arms are compared with the first, by the rules of the plan's stage. An answer is final: the interval holds over all
looks together, so that ending at the first one that answers is allowed. The error of a rule is split over the arms
that are compared, not over rules.
"""

import datetime
import math

from edgewright.contract.errors import InputError
from edgewright.contract.rollout.decision import (
    ArmComparison,
    ComparisonOutcome,
    DecisionInputs,
    ExperimentResult,
    StageEvidence,
    inputs_digest,
)
from edgewright.contract.rollout.plan import HealthRule, RolloutPlan, RolloutPolicy
from edgewright.contract.timestamps import parse_iso8601
from edgewright.rollout.arm_comparison import compare_arms, sample_ratio_mismatch
from edgewright.rollout.comparison_design import arm_shares, stopping_metrics
from edgewright.rollout.decision import IMBALANCE_ALPHA

__all__ = ["evaluate_experiment", "replay_experiment"]


def evaluate_experiment(
    plan: RolloutPlan, policy: RolloutPolicy, evidence: StageEvidence, now: datetime.datetime
) -> ExperimentResult:
    """Say what an experiment has come to.

    Args:
        plan: With two arms or more, and rules at its stage; its end is the experiment's.
        policy: Of the offline keys.
        evidence: Of that stage, as `collect` makes it; the control may be empty.
        now: The time.

    Raises:
        InputError: The plan is no experiment, or the evidence is not of its stage.
    """
    return _evaluate(DecisionInputs(plan, policy, evidence, now.isoformat(), IMBALANCE_ALPHA))


def replay_experiment(trial: ExperimentResult) -> ExperimentResult:
    """Judge again from what an experiment was judged from."""
    return _evaluate(trial.inputs)


def _evaluate(inputs: DecisionInputs) -> ExperimentResult:
    plan, evidence = inputs.plan, inputs.evidence
    rules = plan.stages[plan.stage].rules
    if len(plan.arms) < 2 or not rules or (evidence.rollout, evidence.stage) != (plan.rollout, plan.stage):
        raise InputError(
            f"rollout {plan.rollout} has {len(plan.arms)} arms and {len(rules)} rules at stage {plan.stage}, the "
            f"evidence is of stage {evidence.stage} of {evidence.rollout}",
            remedy="An experiment has two arms or more, and rules for the stage that its evidence is of.",
        )
    arms = {
        arm: share
        for arm, share in arm_shares(plan, plan.stage, inputs.policy.holdout_fraction).items()
        if arm >= 0
    }
    skew = sample_ratio_mismatch(evidence, arms, stopping_metrics(plan)[0], reference_arm=0)
    skew_limit = -math.log(inputs.alpha / (len(plan.arms) - 1))
    over = bool(plan.end_at) and parse_iso8601(inputs.decided_at) >= parse_iso8601(plan.end_at)
    comparisons = tuple(_compare(inputs, arms, arm, rule) for arm in range(1, len(plan.arms)) for rule in rules)
    askew = skew >= skew_limit
    outcomes = tuple(_outcome(one, over=over, imbalanced=askew) for one in comparisons)
    return ExperimentResult(
        ended=over or "running" not in outcomes,
        outcomes=outcomes,
        reasons=tuple(_describe(one, outcome, askew) for one, outcome in zip(comparisons, outcomes, strict=True)),
        comparisons=comparisons,
        log_imbalance=skew,
        log_imbalance_limit=skew_limit,
        digest=inputs_digest(inputs),
        inputs=inputs,
    )


def _compare(inputs: DecisionInputs, arms: dict[int, float], arm: int, rule: HealthRule) -> ArmComparison:
    share = arms[arm] / (arms[arm] + arms[0]) if arms[arm] > 0 else 0.5  # a stage of fraction 0 has no devices
    return compare_arms(
        inputs.evidence, rule.metric, arm, 0, share=share, rule=rule, split=len(inputs.plan.arms) - 1
    )


def _outcome(one: ArmComparison, *, over: bool, imbalanced: bool) -> ComparisonOutcome:
    """Return what a comparison has come to, by both ends of its interval."""
    margin = one.margin or 0.0
    if not imbalanced:
        if one.high <= margin:
            return "within_margin"
        if one.low > margin:
            return "excluded"
    return "inconclusive" if over else "running"


def _describe(one: ArmComparison, outcome: ComparisonOutcome, imbalanced: bool) -> str:
    found = (
        f"{one.metric}: arm {one.arm} {one.rate:.2%} of {one.devices} devices, arm {one.reference_arm} "
        f"{one.reference_rate:.2%} of {one.reference_devices}; difference {one.difference:+.2%}, between "
        f"{one.low:+.2%} and {one.high:+.2%} with confidence {one.confidence:g}"
    )
    margin = f"{one.margin or 0.0:.2%}"
    if imbalanced:
        return f"{found}; devices are not in the arms as they should be, so nothing follows"
    if outcome == "within_margin":
        sure = ", and better" if one.high < 0 else ", though worse" if one.low > 0 else ""
        return f"{found}: worse by less than {margin}{sure}"
    if outcome == "excluded":
        return f"{found}: worse by more than {margin}"
    if outcome == "inconclusive":
        return f"{found}: the time is over, and whether it is worse by {margin} is not known"
    return f"{found}: whether it is worse by {margin} is not known yet"
