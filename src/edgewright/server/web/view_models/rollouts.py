"""A rollout as people judge it: where it stands, what its devices showed, what is missing, what was decided."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from edgewright.contract.errors import WorkError
from edgewright.contract.rollout.decision import CONTROL_ARM, ArmComparison, ExperimentResult, RolloutDecision
from edgewright.contract.rollout.plan import RolloutPlan, RolloutPolicy
from edgewright.contract.timestamps import parse_iso8601
from edgewright.rollout.comparison_design import arm_shares
from edgewright.rollout.decision import replay_decision
from edgewright.server.access_control import UserRole, has_permission
from edgewright.server.controller.decision_records import DecisionBasis, basis_of
from edgewright.server.store import records
from edgewright.server.web.view_models.formatting import (
    Badge,
    DisplayTime,
    Tone,
    display_time,
    duration,
    labels_text,
    make_badge,
    odds_text,
    percent_text,
    points_text,
)
from edgewright.server.web.view_models.interval_bars import IntervalBar, difference_bar

__all__ = [
    "DecisionInputsView",
    "DecisionRow",
    "RolloutButton",
    "RolloutRow",
    "RolloutView",
    "decision_inputs_view",
    "decision_rows",
    "rollout_row",
    "rollout_view",
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
    "offline": "falls offline",
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
    since: DisplayTime | None


@dataclass(frozen=True, slots=True)
class StageView:
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
class ArmView:
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
class EvidenceView:
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
    bar: IntervalBar


@dataclass(frozen=True, slots=True)
class HarmView:
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
    at: DisplayTime | None
    verdict: Badge
    reason: str
    href: str


@dataclass(frozen=True, slots=True)
class RolloutButton:
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
class RolloutView:
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
    since: DisplayTime | None
    facts: tuple[tuple[str, str], ...]
    stages: tuple[StageView, ...]
    arms: tuple[ArmView, ...]
    evidence: tuple[EvidenceView, ...]
    experiment: tuple[str, ...]
    harm: HarmView | None
    missing: tuple[str, ...]
    harmful: tuple[str, ...]
    reasons: tuple[str, ...]
    askew: str
    decisions: tuple[DecisionRow, ...]
    acts: tuple[RolloutButton, ...]
    digest: str


@dataclass(frozen=True, slots=True)
class DecisionInputsView:
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
    evidence: tuple[EvidenceView, ...]
    experiment: tuple[str, ...]
    missing: tuple[str, ...]


def rollout_row(plan: RolloutPlan, now: float) -> RolloutRow:
    """Return a rollout for a list."""
    return RolloutRow(
        href=_href(plan),
        model=plan.model,
        device_class=plan.device_class,
        name=plan.rollout,
        state=_state(plan),
        stage=_stage(plan),
        arms=", ".join(arm.version for arm in plan.arms),
        since=_since(plan, now),
    )


def rollout_view(
    plan: RolloutPlan,
    policy: RolloutPolicy | None,
    decided: Sequence[records.StoredDecision],
    *,
    role: UserRole,
    now: float,
) -> RolloutView:
    """Return a rollout.

    Args:
        plan: As it is signed.
        policy: Of the offline keys.
        decided: In order; what was counted last is in the last one.
        role: Of whoever looks.
        now: Unix time.
    """
    grounds = (_basis(one) for one in decided[::-1])
    ground = next(
        (one for one in grounds if one.decision is not None and _is_of(one.decision, plan)), DecisionBasis()
    )
    of_now = ground.decision
    rows = decision_rows(decided, _href(plan), now)
    evidence = () if of_now is None else tuple(_evidence(one, plan) for one in of_now.comparisons)
    missing = () if of_now is None else of_now.waiting_for
    said = f"{plan.state}, {_stage(plan)}"
    if of_now is not None:
        said += f"; {_action(of_now.action)}" + (f": {missing[0]}" if missing else "")
    parts = (
        msgspec.json.encode(plan),
        b"" if of_now is None else msgspec.json.encode((of_now.comparisons, missing, of_now.reasons)),
        str(len(decided)).encode(),
    )
    return RolloutView(
        href=_href(plan),
        model=plan.model,
        device_class=plan.device_class,
        name=plan.rollout,
        counter=plan.counter,
        state=_state(plan),
        said=said,
        since=_since(plan, now),
        facts=_facts(plan, policy),
        stages=tuple(_stage_shown(plan, number) for number in range(len(plan.stages))),
        arms=_arms(plan, policy, of_now),
        evidence=evidence,
        experiment=_experiment(ground.experiment),
        harm=None if of_now is None else _harm(of_now),
        missing=missing,
        harmful=of_now.reasons if of_now is not None and of_now.action == "roll_back" else (),
        reasons=() if of_now is None else of_now.reasons,
        askew=_imbalance_warning(of_now),
        decisions=rows[::-1][:_ROWS],
        acts=_acts(plan, missing, role),
        digest=hashlib.sha256(b"\n".join(parts)).hexdigest()[:16],
    )


def decision_rows(decided: Sequence[records.StoredDecision], href: str, now: float) -> tuple[DecisionRow, ...]:
    """Return decisions about a rollout, in order."""
    return tuple(
        DecisionRow(
            one.number,
            display_time(one.at, now),
            make_badge(_VERDICTS.get(one.verdict.replace(" ", "_"), "quiet"), one.verdict.replace("_", " ")),
            one.reason,
            f"{href}/decisions/{one.subject.rpartition('/')[2]}/{one.number}",
        )
        for one in decided
    )


def decision_inputs_view(one: records.StoredDecision, href: str, now: float) -> DecisionInputsView:
    """Return what a decision was made from, and whether it would be made again."""
    (row,) = decision_rows([one], href, now)
    ground = _basis(one)
    then = ground.decision
    if then is None:
        again = make_badge("quiet", "nothing was decided from evidence here")
    elif replay_decision(then) == then:
        again = make_badge("good", "decided again from these inputs: the same")
    else:
        again = make_badge(
            "warn", "decided again from these inputs: something else, for the rules have changed since"
        )
    return DecisionInputsView(
        row,
        msgspec.json.format(bytes(one.inputs), indent=2).decode(),
        "" if then is None else then.digest,
        again,
        () if then is None else tuple(_evidence(comparison, then.inputs.plan) for comparison in then.comparisons),
        _experiment(ground.experiment),
        () if then is None else then.waiting_for,
    )


def _basis(one: records.StoredDecision) -> DecisionBasis:
    try:
        return basis_of(one)
    except WorkError:  # of a version that kept it otherwise: it is shown as it is
        return DecisionBasis()


def _experiment(trial: ExperimentResult | None) -> tuple[str, ...]:
    return () if trial is None else tuple(trial.reasons)


def _href(plan: RolloutPlan) -> str:
    return f"/rollouts/{plan.model}/{plan.device_class}"


def _state(plan: RolloutPlan) -> Badge:
    return make_badge(_STATES[plan.state], plan.state)


def _since(plan: RolloutPlan, now: float) -> DisplayTime | None:
    return display_time(parse_iso8601(plan.stage_started_at).timestamp(), now) if plan.stage_started_at else None


def _stage(plan: RolloutPlan) -> str:
    return f"stage {plan.stage + 1} of {len(plan.stages)}, {percent_text(plan.fraction, 0)} of devices"


def _is_of(candidate: RolloutDecision, plan: RolloutPlan) -> bool:
    told = candidate.inputs.plan
    return (told.rollout, told.epoch, told.stage) == (plan.rollout, plan.epoch, plan.stage)


def _action(action: str) -> str:
    return {"advance": "it may advance", "finish": "it may finish", "hold": "it holds", "roll_back": "roll back"}[
        action
    ]


def _facts(plan: RolloutPlan, policy: RolloutPolicy | None) -> tuple[tuple[str, str], ...]:
    found = [("plan", f"number {plan.counter} of epoch {plan.epoch}")]
    if plan.selector.labels:
        found.append(("only devices with", labels_text(plan.selector.labels)))
    if plan.selector.channel:
        found.append(("only on channel", plan.selector.channel))
    if plan.shadow_mode:
        found.append(("shadow", "the new model's answers are only compared"))
    if plan.min_battery_level:
        found.append(("least battery", percent_text(plan.min_battery_level, 0)))
    if plan.install_hours is not None:
        found.append(
            (
                "installs between",
                f"{plan.install_hours.start_hour}:00 and {plan.install_hours.end_hour}:00, the device's time",
            )
        )
    if plan.end_at:
        found.append(("ends", plan.end_at))
    if policy is not None:
        found.append(("holdback", percent_text(policy.holdout_fraction, 0)))
    return tuple(found)


def _stage_shown(plan: RolloutPlan, number: int) -> StageView:
    stage = plan.stages[number]
    over = number < plan.stage or plan.state == "done"
    return StageView(
        number + 1,
        percent_text(stage.fraction, 0),
        "done" if over else "now" if number == plan.stage else "to come",
        duration(stage.min_duration_seconds) if stage.min_duration_seconds else "no least time",
        tuple(
            f"{_metric(rule.metric)}: at most {points_text(rule.margin)[1:]} worse, "
            f"{percent_text(rule.confidence, 0)} sure"
            for rule in stage.rules
        ),
    )


def _arms(
    plan: RolloutPlan, policy: RolloutPolicy | None, candidate: RolloutDecision | None
) -> tuple[ArmView, ...]:
    shares = arm_shares(plan, plan.stage, 0.0 if policy is None else policy.holdout_fraction)
    found = []
    for index in (*range(len(plan.arms)), CONTROL_ARM):
        devices = waiting = "not counted yet"
        if candidate is not None:
            evidence = candidate.inputs.evidence
            counted = max((sum(one.devices) for one in evidence.counts if one.arm == index), default=0)
            devices = f"{counted:,}"
            waiting = f"{evidence.pending[index + 1]:,}" if len(evidence.pending) > index + 1 else "0"
        version = "" if index == CONTROL_ARM else plan.arms[index].version
        found.append(ArmView(_arm(plan, index), version, percent_text(shares[index]), devices, waiting))
    return tuple(found)


def _arm(plan: RolloutPlan, index: int) -> str:
    return "control, with what they had" if index == CONTROL_ARM else f"arm {index}, {plan.arms[index].version}"


def _metric(name: str) -> str:
    kind, _, outcome = name.partition(":")
    return f"outcome {outcome} is bad" if kind == "outcome" else _METRICS.get(name, name)


def _evidence(one: ArmComparison, plan: RolloutPlan) -> EvidenceView:
    sure = percent_text(one.confidence, 0)
    interval = f"{points_text(one.low)} to {points_text(one.high)}"
    if one.margin is None:
        verdict = make_badge("quiet", "watched for harm only")
    elif one.within_margin:
        verdict = make_badge("good", "within its margin")
    else:
        verdict = make_badge("warn", "not shown yet")
    margin = "none asked" if one.margin is None else f"{points_text(one.margin)[1:]}"
    return EvidenceView(
        metric=one.metric,
        words=_metric(one.metric),
        arm=_arm(plan, one.arm),
        rate=f"{percent_text(one.rate, 2)} of {one.devices:,}",
        against=f"{percent_text(one.reference_rate, 2)} of {one.reference_devices:,}",
        difference=points_text(one.difference),
        interval=interval,
        bound=points_text(one.upper_bound),
        margin=margin,
        verdict=verdict,
        harm=odds_text(one.log_e_value),
        bar=difference_bar(
            one.difference,
            one.low,
            one.high,
            bound=one.upper_bound,
            limit=one.margin,
            words=(
                f"{_metric(one.metric)}: difference {points_text(one.difference)}, from {interval} with {sure}; "
                f"at most {points_text(one.upper_bound)} worse, margin {margin}"
            ),
        ),
    )


def _harm(candidate: RolloutDecision) -> HarmView:
    share = max(0.0, min(1.0, candidate.log_e_value / candidate.log_e_limit)) if candidate.log_e_limit > 0 else 1.0
    found, enough = odds_text(candidate.log_e_value), odds_text(candidate.log_e_limit)
    return HarmView(
        found,
        enough,
        round(100 * share, 1),
        f"Evidence that the release does harm, all metrics together: {found}. At {enough} it is rolled back.",
    )


def _imbalance_warning(candidate: RolloutDecision | None) -> str:
    if candidate is None or candidate.log_imbalance < candidate.log_imbalance_limit:
        return ""
    return (
        "Devices are not in the arms as they should be "
        f"({odds_text(candidate.log_imbalance)}): what is counted wrongly "
        "has to be found before anything is concluded."
    )


def _acts(plan: RolloutPlan, missing: Sequence[str], role: UserRole) -> tuple[RolloutButton, ...]:
    if plan.state not in ("running", "paused"):
        return ()
    found = []
    if plan.state == "paused" and has_permission(role, "advance rollouts"):
        found.append(
            RolloutButton("resume", "Resume", "Devices follow the plan again, at the stage where it stopped.")
        )
    if plan.state == "running" and plan.stage < len(plan.stages) - 1 and has_permission(role, "advance rollouts"):
        reach = percent_text(plan.stages[plan.stage + 1].fraction, 0)
        lacking = f" What is missing: {'; '.join(missing)}." if missing else ""
        warning = f"The release reaches {reach} of the devices, whatever the evidence says.{lacking}"
        found.append(RolloutButton("advance", f"Advance to {reach}", warning, grave=bool(missing)))
    if plan.state == "running" and has_permission(role, "pause rollouts"):
        found.append(
            RolloutButton("pause", "Pause", "No further device installs the release; those that have it keep it.")
        )
    if has_permission(role, "roll back"):
        given_up = ", ".join(arm.version for arm in plan.arms)
        warning = f"Every device goes back to what it had before; {given_up} is given up."
        found.append(RolloutButton("abort", "Roll back", warning, grave=True))
    return tuple(found)
