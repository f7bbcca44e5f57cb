"""A rollout as people judge it: where it stands, what its devices showed, what is missing, what was decided."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from edgewright.contract.errors import WorkError
from edgewright.contract.rollout.decision import CONTROL, Comparison, Decision, Trial
from edgewright.contract.rollout.plan import Plan, Policy
from edgewright.contract.timestamps import time_of
from edgewright.rollout.comparison_design import sizes
from edgewright.rollout.decision import replay
from edgewright.server.access_control import Role, may
from edgewright.server.controller.decision_records import Ground, ground_of
from edgewright.server.store import records
from edgewright.server.web.view_models.formatting import (
    Badge,
    Moment,
    Tone,
    badge,
    duration,
    labels,
    moment,
    odds,
    percent,
    points,
)
from edgewright.server.web.view_models.interval_bars import Bar, difference_bar

__all__ = [
    "Act",
    "DecisionRow",
    "InputsShown",
    "RolloutRow",
    "RolloutShown",
    "decision_rows",
    "inputs_shown",
    "rollout_row",
    "rollout_shown",
]

_ROWS = 50
_STATES: dict[str, Tone] = {"running": "good", "paused": "warn", "aborted": "bad", "done": "quiet"}
_VERDICTS: dict[str, Tone] = {
    "advance": "good",
    "finish": "good",
    "hold": "quiet",
    "roll_back": "bad",
    "awaiting_signatures": "warn",
}
_METRICS = {
    "crash": "crashes",
    "load_failure": "the model does not load",
    "self_test": "self-test fails",
    "budget_breach": "over its budget",
    "silent": "falls silent",
}


@dataclass(frozen=True, slots=True)
class RolloutRow:
    """One rollout in a list.

    Attributes:
        href: Of its page.
        model: Which.
        device_class: Whose.
        name: Of the rollout.
        state: Where it is.
        stage: In words.
        arms: Versions.
        since: When its stage began.
    """

    href: str
    model: str
    device_class: str
    name: str
    state: Badge
    stage: str
    arms: str
    since: Moment | None


@dataclass(frozen=True, slots=True)
class StageShown:
    """A stage.

    Attributes:
        number: From 1.
        fraction: Of the devices.
        place: `done`, `now` or `to come`.
        least: How long it lasts at least.
        rules: What must hold before the next one.
    """

    number: int
    fraction: str
    place: str
    least: str
    rules: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ArmShown:
    """An arm.

    Attributes:
        name: For people.
        version: That its devices get, "" for what they have.
        share: Of the devices that the rollout is for.
        devices: Whose outcome is fixed.
        waiting: Whose deadline is to come.
    """

    name: str
    version: str
    share: str
    devices: str
    waiting: str


@dataclass(frozen=True, slots=True)
class EvidenceShown:
    """One metric of one arm beside the control.

    Attributes:
        metric: By its name.
        words: What it means.
        arm: Of whom.
        rate: In the arm.
        against: In the control.
        difference: Of the two.
        interval: Of the difference.
        bound: Held against the margin.
        margin: How much worse it may be.
        verdict: Whether the bound is within the margin.
        harm: Evidence of harm.
        bar: All of it, drawn.
    """

    metric: str
    words: str
    arm: str
    rate: str
    against: str
    difference: str
    interval: str
    bound: str
    margin: str
    verdict: Badge
    harm: str
    bar: Bar


@dataclass(frozen=True, slots=True)
class HarmShown:
    """Evidence of harm beside what is enough for a rollback.

    Attributes:
        found: So far.
        enough: From where on it is rolled back.
        share: Of the way there, 0 to 100, on the logarithmic scale.
        words: The same in a sentence.
    """

    found: str
    enough: str
    share: float
    words: str


@dataclass(frozen=True, slots=True)
class DecisionRow:
    """A decision.

    Attributes:
        number: Of it.
        at: When.
        verdict: In a word.
        reason: In a sentence.
        href: Of the page with its inputs.
    """

    number: int
    at: Moment | None
    verdict: Badge
    reason: str
    href: str


@dataclass(frozen=True, slots=True)
class Act:
    """Something that may be done.

    Attributes:
        name: In its address.
        button: What the button says.
        warning: What comes of it.
        grave: Whether it deserves a second look.
    """

    name: str
    button: str
    warning: str
    grave: bool = False


@dataclass(frozen=True, slots=True)
class RolloutShown:
    """A rollout.

    Attributes:
        href: Of its page.
        model: Which.
        device_class: Whose.
        name: Of the rollout.
        counter: Of its plan: an act that was meant for an earlier one is refused.
        state: Where it is.
        said: All of it in a sentence.
        since: When its stage began.
        facts: What else the plan says, name and value.
        stages: In order.
        arms: Devices in each.
        evidence: By arm and metric; empty if nothing was counted yet.
        experiment: What an experiment between arms has come to, in words.
        harm: All metrics together, None if nothing was counted yet.
        missing: What has to happen before it goes on.
        harmful: Why it is to be rolled back; empty unless it is.
        reasons: Why it stands as it does.
        askew: A warning if arms are not as large as they should be, else "".
        decisions: The newest first, 50 of them at most.
        acts: That whoever looks may do.
        digest: Of all that changes.
    """

    href: str
    model: str
    device_class: str
    name: str
    counter: int
    state: Badge
    said: str
    since: Moment | None
    facts: tuple[tuple[str, str], ...]
    stages: tuple[StageShown, ...]
    arms: tuple[ArmShown, ...]
    evidence: tuple[EvidenceShown, ...]
    experiment: tuple[str, ...]
    harm: HarmShown | None
    missing: tuple[str, ...]
    harmful: tuple[str, ...]
    reasons: tuple[str, ...]
    askew: str
    decisions: tuple[DecisionRow, ...]
    acts: tuple[Act, ...]
    digest: str


@dataclass(frozen=True, slots=True)
class InputsShown:
    """What a decision was made from.

    Attributes:
        row: The decision.
        text: Its inputs, as JSON.
        digest: sha256 of them, "" if they are of a form that this version does not read.
        again: What the same inputs give when they are decided again.
        evidence: As it was then.
        experiment: What an experiment had come to.
        missing: As it was then.
    """

    row: DecisionRow
    text: str
    digest: str
    again: Badge
    evidence: tuple[EvidenceShown, ...]
    experiment: tuple[str, ...]
    missing: tuple[str, ...]


def rollout_row(plan: Plan, now_s: float) -> RolloutRow:
    """Return a rollout for a list."""
    return RolloutRow(
        href=_href(plan),
        model=plan.model,
        device_class=plan.device_class,
        name=plan.rollout,
        state=_state(plan),
        stage=_stage(plan),
        arms=", ".join(arm.version for arm in plan.arms),
        since=_since(plan, now_s),
    )


def rollout_shown(
    plan: Plan,
    policy: Policy | None,
    decided: Sequence[records.Decision],
    *,
    role: Role,
    now_s: float,
) -> RolloutShown:
    """Return a rollout.

    Args:
        plan: As it is signed.
        policy: Of the offline keys.
        decided: In order; what was counted last is in the last one.
        role: Of whoever looks.
        now_s: Unix time.
    """
    grounds = (_ground(one) for one in decided[::-1])
    ground = next((one for one in grounds if one.decision is not None and _is_of(one.decision, plan)), Ground())
    of_now = ground.decision
    rows = decision_rows(decided, _href(plan), now_s)
    evidence = () if of_now is None else tuple(_evidence(one, plan) for one in of_now.comparisons)
    missing = () if of_now is None else of_now.missing
    said = f"{plan.state}, {_stage(plan)}"
    if of_now is not None:
        said += f"; {_action(of_now.action)}" + (f": {missing[0]}" if missing else "")
    parts = (
        msgspec.json.encode(plan),
        b"" if of_now is None else msgspec.json.encode((of_now.comparisons, missing, of_now.reasons)),
        str(len(decided)).encode(),
    )
    return RolloutShown(
        href=_href(plan),
        model=plan.model,
        device_class=plan.device_class,
        name=plan.rollout,
        counter=plan.counter,
        state=_state(plan),
        said=said,
        since=_since(plan, now_s),
        facts=_facts(plan, policy),
        stages=tuple(_stage_shown(plan, number) for number in range(len(plan.stages))),
        arms=_arms(plan, policy, of_now),
        evidence=evidence,
        experiment=_experiment(ground.trial),
        harm=None if of_now is None else _harm(of_now),
        missing=missing,
        harmful=of_now.reasons if of_now is not None and of_now.action == "roll_back" else (),
        reasons=() if of_now is None else of_now.reasons,
        askew=_askew(of_now),
        decisions=rows[::-1][:_ROWS],
        acts=_acts(plan, missing, role),
        digest=hashlib.sha256(b"\n".join(parts)).hexdigest()[:16],
    )


def decision_rows(decided: Sequence[records.Decision], href: str, now_s: float) -> tuple[DecisionRow, ...]:
    """Return decisions about a rollout, in order."""
    return tuple(
        DecisionRow(
            one.number,
            moment(one.at_s, now_s),
            badge(_VERDICTS.get(one.verdict.replace(" ", "_"), "quiet"), one.verdict.replace("_", " ")),
            one.reason,
            f"{href}/decisions/{one.subject.rpartition('/')[2]}/{one.number}",
        )
        for one in decided
    )


def inputs_shown(one: records.Decision, href: str, now_s: float) -> InputsShown:
    """Return what a decision was made from, and whether it would be made again."""
    (row,) = decision_rows([one], href, now_s)
    ground = _ground(one)
    then = ground.decision
    if then is None:
        again = badge("quiet", "nothing was decided from evidence here")
    elif replay(then) == then:
        again = badge("good", "decided again from these inputs: the same")
    else:
        again = badge("warn", "decided again from these inputs: something else, for the rules have changed since")
    return InputsShown(
        row,
        msgspec.json.format(bytes(one.inputs), indent=2).decode(),
        "" if then is None else then.digest,
        again,
        () if then is None else tuple(_evidence(comparison, then.inputs.plan) for comparison in then.comparisons),
        _experiment(ground.trial),
        () if then is None else then.missing,
    )


def _ground(one: records.Decision) -> Ground:
    try:
        return ground_of(one)
    except WorkError:  # of a version that kept it otherwise: it is shown as it is
        return Ground()


def _experiment(trial: Trial | None) -> tuple[str, ...]:
    return () if trial is None else tuple(trial.reasons)


def _href(plan: Plan) -> str:
    return f"/rollouts/{plan.model}/{plan.device_class}"


def _state(plan: Plan) -> Badge:
    return badge(_STATES[plan.state], plan.state)


def _since(plan: Plan, now_s: float) -> Moment | None:
    return moment(time_of(plan.since).timestamp(), now_s) if plan.since else None


def _stage(plan: Plan) -> str:
    return f"stage {plan.stage + 1} of {len(plan.stages)}, {percent(plan.fraction, 0)} of devices"


def _is_of(standing: Decision, plan: Plan) -> bool:
    told = standing.inputs.plan
    return (told.rollout, told.epoch, told.stage) == (plan.rollout, plan.epoch, plan.stage)


def _action(action: str) -> str:
    return {"advance": "it may advance", "finish": "it may finish", "hold": "it holds", "roll_back": "roll back"}[
        action
    ]


def _facts(plan: Plan, policy: Policy | None) -> tuple[tuple[str, str], ...]:
    found = [("plan", f"number {plan.counter} of epoch {plan.epoch}")]
    if plan.selector.labels:
        found.append(("only devices with", labels(plan.selector.labels)))
    if plan.selector.channel:
        found.append(("only on channel", plan.selector.channel))
    if plan.shadow:
        found.append(("shadow", "the new model's answers are only compared"))
    if plan.min_battery:
        found.append(("least battery", percent(plan.min_battery, 0)))
    if plan.hours is not None:
        found.append(("installs between", f"{plan.hours.first}:00 and {plan.hours.last}:00, the device's time"))
    if plan.end:
        found.append(("ends", plan.end))
    if policy is not None:
        found.append(("holdback", percent(policy.holdback, 0)))
    return tuple(found)


def _stage_shown(plan: Plan, number: int) -> StageShown:
    stage = plan.stages[number]
    over = number < plan.stage or plan.state == "done"
    return StageShown(
        number + 1,
        percent(stage.fraction, 0),
        "done" if over else "now" if number == plan.stage else "to come",
        duration(stage.min_seconds) if stage.min_seconds else "no least time",
        tuple(
            f"{_metric(rule.metric)}: at most {points(rule.margin)[1:]} worse, {percent(rule.confidence, 0)} sure"
            for rule in stage.rules
        ),
    )


def _arms(plan: Plan, policy: Policy | None, standing: Decision | None) -> tuple[ArmShown, ...]:
    shares = sizes(plan, plan.stage, 0.0 if policy is None else policy.holdback)
    found = []
    for index in (*range(len(plan.arms)), CONTROL):
        devices = waiting = "not counted yet"
        if standing is not None:
            evidence = standing.inputs.evidence
            counted = max((sum(one.devices) for one in evidence.tallies if one.arm == index), default=0)
            devices = f"{counted:,}"
            waiting = f"{evidence.waiting[index + 1]:,}" if len(evidence.waiting) > index + 1 else "0"
        version = "" if index == CONTROL else plan.arms[index].version
        found.append(ArmShown(_arm(plan, index), version, percent(shares[index]), devices, waiting))
    return tuple(found)


def _arm(plan: Plan, index: int) -> str:
    return "control, with what they had" if index == CONTROL else f"arm {index}, {plan.arms[index].version}"


def _metric(name: str) -> str:
    kind, _, outcome = name.partition(":")
    return f"outcome {outcome} is bad" if kind == "outcome" else _METRICS.get(name, name)


def _evidence(one: Comparison, plan: Plan) -> EvidenceShown:
    sure = percent(one.confidence, 0)
    interval = f"{points(one.low)} to {points(one.high)}"
    if one.margin is None:
        verdict = badge("quiet", "watched for harm only")
    elif one.clears:
        verdict = badge("good", "within its margin")
    else:
        verdict = badge("warn", "not shown yet")
    margin = "none asked" if one.margin is None else f"{points(one.margin)[1:]}"
    return EvidenceShown(
        metric=one.metric,
        words=_metric(one.metric),
        arm=_arm(plan, one.arm),
        rate=f"{percent(one.rate, 2)} of {one.devices:,}",
        against=f"{percent(one.against_rate, 2)} of {one.against_devices:,}",
        difference=points(one.difference),
        interval=interval,
        bound=points(one.bound),
        margin=margin,
        verdict=verdict,
        harm=odds(one.log_e),
        bar=difference_bar(
            one.difference,
            one.low,
            one.high,
            bound=one.bound,
            limit=one.margin,
            words=(
                f"{_metric(one.metric)}: difference {points(one.difference)}, from {interval} with {sure}; "
                f"at most {points(one.bound)} worse, margin {margin}"
            ),
        ),
    )


def _harm(standing: Decision) -> HarmShown:
    share = max(0.0, min(1.0, standing.log_e / standing.log_e_limit)) if standing.log_e_limit > 0 else 1.0
    found, enough = odds(standing.log_e), odds(standing.log_e_limit)
    return HarmShown(
        found,
        enough,
        round(100 * share, 1),
        f"Evidence that the release does harm, all metrics together: {found}. At {enough} it is rolled back.",
    )


def _askew(standing: Decision | None) -> str:
    if standing is None or standing.log_imbalance < standing.log_imbalance_limit:
        return ""
    return (
        f"Devices are not in the arms as they should be ({odds(standing.log_imbalance)}): what is counted wrongly "
        "has to be found before anything is concluded."
    )


def _acts(plan: Plan, missing: Sequence[str], role: Role) -> tuple[Act, ...]:
    if plan.state not in ("running", "paused"):
        return ()
    found = []
    if plan.state == "paused" and may(role, "advance rollouts"):
        found.append(Act("resume", "Resume", "Devices follow the plan again, at the stage where it stopped."))
    if plan.state == "running" and plan.stage < len(plan.stages) - 1 and may(role, "advance rollouts"):
        reach = percent(plan.stages[plan.stage + 1].fraction, 0)
        lacking = f" What is missing: {'; '.join(missing)}." if missing else ""
        warning = f"The release reaches {reach} of the devices, whatever the evidence says.{lacking}"
        found.append(Act("advance", f"Advance to {reach}", warning, grave=bool(missing)))
    if plan.state == "running" and may(role, "pause rollouts"):
        found.append(Act("pause", "Pause", "No further device installs the release; those that have it keep it."))
    if may(role, "roll back"):
        given_up = ", ".join(arm.version for arm in plan.arms)
        warning = f"Every device goes back to what it had before; {given_up} is given up."
        found.append(Act("abort", "Roll back", warning, grave=True))
    return tuple(found)
