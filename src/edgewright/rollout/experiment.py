"""An experiment between arms: what is the difference, how surely, and is it time to end.

Arms are compared with the first, by the rules of the plan's stage. An answer is final: the interval holds over all
looks together, so that ending at the first one that answers is allowed. The error of a rule is split over the arms
that are compared, not over rules.
"""

import datetime
import math

from edgewright.contract.errors import InputError
from edgewright.contract.rollout.decision import Comparison, Evidence, Inputs, Outcome, Trial, digest_of
from edgewright.contract.rollout.plan import HealthRule, Plan, Policy
from edgewright.contract.timestamps import time_of
from edgewright.rollout.arm_comparison import compare, imbalance
from edgewright.rollout.comparison_design import sizes, watched
from edgewright.rollout.decision import IMBALANCE_ALPHA

__all__ = ["judge", "rejudge"]


def judge(plan: Plan, policy: Policy, evidence: Evidence, now: datetime.datetime) -> Trial:
    """Say what an experiment has come to.

    Args:
        plan: With two arms or more, and rules at its stage; its end is the experiment's.
        policy: Of the offline keys.
        evidence: Of that stage, as `collect` makes it; the control may be empty.
        now: The time.

    Raises:
        InputError: The plan is no experiment, or the evidence is not of its stage.
    """
    return _judge(Inputs(plan, policy, evidence, now.isoformat(), IMBALANCE_ALPHA))


def rejudge(trial: Trial) -> Trial:
    """Judge again from what an experiment was judged from."""
    return _judge(trial.inputs)


def _judge(inputs: Inputs) -> Trial:
    plan, evidence = inputs.plan, inputs.evidence
    rules = plan.stages[plan.stage].rules
    if len(plan.arms) < 2 or not rules or (evidence.rollout, evidence.stage) != (plan.rollout, plan.stage):
        raise InputError(
            f"rollout {plan.rollout} has {len(plan.arms)} arms and {len(rules)} rules at stage {plan.stage}, the "
            f"evidence is of stage {evidence.stage} of {evidence.rollout}",
            remedy="An experiment has two arms or more, and rules for the stage that its evidence is of.",
        )
    arms = {arm: share for arm, share in sizes(plan, plan.stage, inputs.policy.holdback).items() if arm >= 0}
    skew = imbalance(evidence, arms, watched(plan)[0], against=0)
    skew_limit = -math.log(inputs.alpha / (len(plan.arms) - 1))
    over = bool(plan.end) and time_of(inputs.now) >= time_of(plan.end)
    comparisons = tuple(_compare(inputs, arms, arm, rule) for arm in range(1, len(plan.arms)) for rule in rules)
    askew = skew >= skew_limit
    outcomes = tuple(_outcome(one, over=over, askew=askew) for one in comparisons)
    return Trial(
        ended=over or "running" not in outcomes,
        outcomes=outcomes,
        reasons=tuple(_words(one, outcome, askew) for one, outcome in zip(comparisons, outcomes, strict=True)),
        comparisons=comparisons,
        log_imbalance=skew,
        log_imbalance_limit=skew_limit,
        digest=digest_of(inputs),
        inputs=inputs,
    )


def _compare(inputs: Inputs, arms: dict[int, float], arm: int, rule: HealthRule) -> Comparison:
    share = arms[arm] / (arms[arm] + arms[0]) if arms[arm] > 0 else 0.5  # a stage of fraction 0 has no devices
    return compare(inputs.evidence, rule.metric, arm, 0, share=share, rule=rule, split=len(inputs.plan.arms) - 1)


def _outcome(one: Comparison, *, over: bool, askew: bool) -> Outcome:
    """Return what a comparison has come to, by both ends of its interval."""
    margin = one.margin or 0.0
    if not askew:
        if one.high <= margin:
            return "clears"
        if one.low > margin:
            return "excluded"
    return "inconclusive" if over else "running"


def _words(one: Comparison, outcome: Outcome, askew: bool) -> str:
    found = (
        f"{one.metric}: arm {one.arm} {one.rate:.2%} of {one.devices} devices, arm {one.against} "
        f"{one.against_rate:.2%} of {one.against_devices}; difference {one.difference:+.2%}, between "
        f"{one.low:+.2%} and {one.high:+.2%} with confidence {one.confidence:g}"
    )
    margin = f"{one.margin or 0.0:.2%}"
    if askew:
        return f"{found}; devices are not in the arms as they should be, so nothing follows"
    if outcome == "clears":
        sure = ", and better" if one.high < 0 else ", though worse" if one.low > 0 else ""
        return f"{found}: worse by less than {margin}{sure}"
    if outcome == "excluded":
        return f"{found}: worse by more than {margin}"
    if outcome == "inconclusive":
        return f"{found}: the time is over, and whether it is worse by {margin} is not known"
    return f"{found}: whether it is worse by {margin} is not known yet"
