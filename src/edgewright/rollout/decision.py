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
from edgewright.contract.rollout.decision import CONTROL, Action, Comparison, Decision, Evidence, Inputs, digest_of
from edgewright.contract.rollout.plan import HealthRule, Plan, Policy
from edgewright.contract.timestamps import time_of
from edgewright.rollout.arm_comparison import arms_of, compare, imbalance
from edgewright.rollout.comparison_design import harm_alpha, share_of, sizes, watched
from edgewright.stats import sequential_ab

__all__ = ["IMBALANCE_ALPHA", "decide", "replay"]

IMBALANCE_ALPHA = 0.001
"""Chance with which arms that are as they should be are taken for askew."""


def decide(
    plan: Plan, policy: Policy, evidence: Evidence, now: datetime.datetime, *, alpha: float = 0.05
) -> Decision:
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
    return _decide(Inputs(plan, policy, evidence, now.isoformat(), alpha))


def replay(decision: Decision) -> Decision:
    """Decide again from what a decision was made from; the same, unless the rules have changed since."""
    return _decide(decision.inputs)


def _decide(inputs: Inputs) -> Decision:
    plan, evidence = inputs.plan, inputs.evidence
    if (evidence.rollout, evidence.stage) != (plan.rollout, plan.stage):
        raise InputError(
            f"the evidence is of stage {evidence.stage} of {evidence.rollout}, the plan is at stage {plan.stage} "
            f"of {plan.rollout}",
            remedy="Count the outcomes of the plan's stage.",
        )
    arms = sizes(plan, plan.stage, inputs.policy.holdback)
    rules = {rule.metric: rule for rule in plan.stages[plan.stage].rules}
    comparisons = _comparisons(inputs, arms, rules)
    skew = imbalance(evidence, arms, watched(plan)[0])
    skew_limit = -math.log(IMBALANCE_ALPHA / len(plan.arms))
    log_e = _together(comparisons, len(plan.arms) * len(watched(plan)))
    limit = -math.log(harm_alpha(inputs.alpha, plan.stage, len(plan.stages)))
    action: Action
    reasons: tuple[str, ...]
    missing: tuple[str, ...] = ()
    if plan.state in ("aborted", "done"):
        action, reasons = "hold", (f"the rollout is {plan.state}",)
    elif log_e >= limit:
        action, reasons = "roll_back", tuple(_harm_words(comparisons, log_e, limit))
    else:
        missing = tuple(_missing(inputs, arms, rules, comparisons, skew >= skew_limit))
        last = plan.stage == len(plan.stages) - 1
        action = "hold" if missing else "finish" if last else "advance"
        reasons = tuple(_clear_words(comparison) for comparison in comparisons if comparison.clears)
        if not missing and not rules:
            reasons = (f"stage {plan.stage} has no rules, and no harm was seen",)
    return Decision(
        action=action,
        reasons=reasons,
        missing=missing,
        comparisons=comparisons,
        log_e=log_e,
        log_e_limit=limit,
        log_imbalance=skew,
        log_imbalance_limit=skew_limit,
        digest=digest_of(inputs),
        inputs=inputs,
    )


def _comparisons(inputs: Inputs, arms: dict[int, float], rules: dict[str, HealthRule]) -> tuple[Comparison, ...]:
    found = []
    for arm in range(len(inputs.plan.arms)):
        share = share_of(arms, arm, CONTROL)
        if share is not None:
            found += [
                compare(inputs.evidence, metric, arm, CONTROL, share=share, rule=rules.get(metric))
                for metric in watched(inputs.plan)
            ]
    return tuple(found)


def _together(comparisons: Sequence[Comparison], number: int) -> float:
    """Return the logarithm of the mean evidence; what has cleared its margin speaks for no harm."""
    logs = [min(one.log_e, 0.0) if one.clears else one.log_e for one in comparisons]
    logs += [0.0] * (number - len(logs))
    peak = max(logs)
    return peak + math.log(sum(math.exp(log - peak) for log in logs) / number)


def _harm_words(comparisons: Sequence[Comparison], log_e: float, limit: float) -> list[str]:
    worst = sorted((one for one in comparisons if not one.clears), key=lambda one: -one.log_e)
    words = [
        f"{_rates(one)}: evidence of harm {_odds(one.log_e)}"
        for one in worst
        if one.log_e > 0 and one.log_e >= worst[0].log_e - math.log(10)
    ]
    return [f"the evidence of harm, all metrics together, is {_odds(log_e)}, and {_odds(limit)} is enough", *words]


def _missing(
    inputs: Inputs,
    arms: dict[int, float],
    rules: dict[str, HealthRule],
    comparisons: Sequence[Comparison],
    askew: bool,
) -> list[str]:
    plan, evidence = inputs.plan, inputs.evidence
    missing = []
    if plan.state == "paused":
        missing.append("the rollout is paused")
    if askew:
        missing.append("devices are not in the arms as they should be; whatever is counted wrongly has to be found")
    missing += _time_left(inputs)
    if rules and len(comparisons) < len(plan.arms) * len(watched(plan)):
        missing.append(
            f"there is no control, at fraction {plan.fraction:g} with a holdback of {inputs.policy.holdback:g}"
        )
    for one in comparisons:
        if one.margin is not None and not one.clears:
            share = arms[one.arm] / (arms[one.arm] + arms[CONTROL])
            missing.append(_clear_missing(evidence, one, share))
    return missing


def _time_left(inputs: Inputs) -> list[str]:
    plan = inputs.plan
    last = plan.stage == len(plan.stages) - 1
    least = max(plan.stages[plan.stage].min_seconds, 0.0 if last else inputs.policy.least_stage_s)
    if least <= 0:
        return []
    if not plan.since:
        return ["nobody said when the stage began"]
    left = least - (time_of(inputs.now) - time_of(plan.since)).total_seconds()
    return [f"the stage lasts {left:.0f} s more"] if left > 0 else []


def _clear_missing(evidence: Evidence, one: Comparison, share: float) -> str:
    """Say how many devices more a bound takes at the present rates."""
    margin, waiting = one.margin or 0.0, sum(evidence.waiting)
    if min(one.devices, one.against_devices) == 0:
        return (
            f"{one.metric} of arm {one.arm}: no outcomes in both arms yet, {waiting} are waiting for their deadline"
        )
    stands = f"{_rates(one)}: worse by at most {one.bound:.2%}, {margin:.2%} is allowed"
    grown = sequential_ab.growth_to_refute(
        arms_of(evidence, one.metric, one.arm, one.against),
        share,
        margin,
        1 - one.confidence,
        centre=evidence.centres.get(one.metric, 0.0),
    )
    if math.isinf(grown):
        return f"{stands}; at the present rates it never clears"
    more, other = (max(1, math.ceil((grown - 1) * devices)) for devices in (one.devices, one.against_devices))
    return (
        f"{stands}; about {more} more devices with the release and {other} in the control at the present rates, "
        f"{waiting} are waiting for their deadline"
    )


def _clear_words(one: Comparison) -> str:
    return f"{_rates(one)}: worse by at most {one.bound:.2%}, {one.margin or 0.0:.2%} is allowed"


def _rates(one: Comparison) -> str:
    return (
        f"{one.metric} of arm {one.arm} {one.rate:.2%} of {one.devices} devices, in the control "
        f"{one.against_rate:.2%} of {one.against_devices}"
    )


def _odds(log: float) -> str:
    return f"{math.exp(min(log, 700.0)):.3g} to 1"
