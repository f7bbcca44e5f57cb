"""The controller: looks at every rollout again and again, decides by what devices said, and has the plan signed.

The leader calls `check_rollouts`. A look reads who takes part and what they said, counts it, and asks `rollout/`.
What was
decided is written down before it is done, under a number that nobody can take twice; a controller that was killed
between the two finds the decision and does it. Whether it was done the plan's counter tells.

Without anybody it advances, finishes and aborts, within what the offline keys allow. It takes no release back from
devices that rely on it already: that is a release again, which waits for its signatures.
"""

import dataclasses
import datetime
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import msgspec
from tuf.api.metadata import Targets

from edgewright.contract.errors import EdgewrightError, InputError
from edgewright.contract.names import next_version, version_key
from edgewright.contract.release import Manifest
from edgewright.contract.rollout.decision import (
    DeviceOutcome,
    ExperimentResult,
    RolloutDecision,
    StageEvidence,
    inputs_digest,
)
from edgewright.contract.rollout.plan import RolloutPlan, RolloutPolicy
from edgewright.contract.schema import decode_record
from edgewright.contract.timestamps import parse_iso8601
from edgewright.rollout import plan_transitions
from edgewright.rollout.decision import decide_rollout
from edgewright.rollout.experiment import evaluate_experiment
from edgewright.rollout.outcome_counts import count_outcomes
from edgewright.server.controller import stage_participants
from edgewright.server.controller.decision_records import (
    CHANGING_ACTIONS,
    DecisionBasis,
    StageFact,
    basis_of,
    encode_basis,
)
from edgewright.server.controller.online_key import online_keys, release_stale_lock
from edgewright.server.services import Services
from edgewright.server.store import records
from edgewright.server.store.database import DatabaseUnavailableError
from edgewright.server.store.decisions import DecisionExistsError
from edgewright.trust.keys.signing_keys import KeyFolder
from edgewright.trust.publishing.publish import (
    current_plan,
    current_policy,
    list_releases,
    plan_keys,
    publish_plan,
    republish,
)
from edgewright.trust.repository.repository import Repository
from edgewright.trust.repository.staging import staged_metadata
from edgewright.trust.target_paths import release_path

__all__ = ["CONTROLLER_ACTOR", "RolloutController"]

CONTROLLER_ACTOR = "controller"
"""Who it is in the audit log."""

_log = logging.getLogger(__name__)
# A look that changes nothing is kept at most every so many looks.
_HOLD_REPEAT_FACTOR = 6
# A look at a large fleet takes seconds, which check-ins need too: for so many times as long there is no other.
_REST = 9.0
_CHANGES: Mapping[str, Callable[[RolloutPlan, datetime.datetime], RolloutPlan]] = {
    "advance": plan_transitions.advance_plan,
    "finish": plan_transitions.finish_plan,
    "roll_back": plan_transitions.abort_plan,
}
_DONE = {"advance": "advanced to its next stage", "finish": "finished", "roll_back": "aborted"}


@dataclass(frozen=True, slots=True)
class _RolloutView:
    """One rollout, as it is found.

    Attributes:
        repository: As of now.
        plan: That is signed.
        policy: That is signed.
        subject: What it is kept under.
        last_decision: What was decided last, if anything.
        now_at: The time.
    """

    repository: Repository
    plan: RolloutPlan
    policy: RolloutPolicy
    subject: str
    last_decision: records.StoredDecision | None
    now_at: float

    @property
    def now(self) -> datetime.datetime:
        return datetime.datetime.fromtimestamp(self.now_at, datetime.UTC)

    @property
    def number(self) -> int:
        return 1 if self.last_decision is None else self.last_decision.number + 1


@dataclass(slots=True)
class RolloutController:
    """Decides about rollouts; one at a time in a fleet.

    Attributes:
        services: Of the server, with online keys and none of the offline ones.
    """

    services: Services
    _keys: KeyFolder = field(init=False)
    _born: datetime.datetime = field(init=False)
    _last_at: float | None = field(init=False, default=None)
    # Since when devices could have been heard without a break, as far as is known.
    _listening_since: float = field(init=False, default=-math.inf)
    _holds: dict[str, tuple[str, float]] = field(init=False, default_factory=dict)
    # Rollouts that are not looked at before some moment.
    _rests: dict[str, float] = field(init=False, default_factory=dict)
    _announced: set[tuple[str, int]] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        """Refuse to work without online keys, or with offline ones.

        Raises:
            InputError: The keys are not those of a server.
        """
        self._keys = online_keys(self.services)
        self._born = datetime.datetime.fromtimestamp(self.services.now(), datetime.UTC)

    def check_rollouts(self, now: float) -> list[str]:
        """Look at every rollout once, and return in words what was done.

        One that cannot be judged does not keep the others from it.

        Args:
            now: Seconds since 1970, UTC.

        Raises:
            TakenError: Somebody else decides here too.
            GoneError: The database does not answer.
            TrustError: The repository cannot be believed.
        """
        repository = self.services.repository()
        if release_stale_lock(repository, self._born):
            self._audit("lock removed", "repository", now)
        self._note_downtime(now)
        done = []
        for model, device_class in plan_keys(repository):
            try:
                done += self._read_rollout(repository, model, device_class, now)
            except (DecisionExistsError, DatabaseUnavailableError):
                raise
            except (EdgewrightError, msgspec.MsgspecError, OSError) as error:
                _log.warning("the rollout of %s for %s cannot be judged: %s", model, device_class, error)
        return done

    def _note_downtime(self, now: float) -> None:
        """Notice when nobody could have been heard: whoever was not listened to is not offline."""
        looking, last_seen_at = (
            self.services.fleet_config.monitoring,
            self.services.store.devices.last_check_in_at(),
        )
        if self._last_at is None:
            deaf = now - last_seen_at > _HOLD_REPEAT_FACTOR * looking.evaluation_interval_seconds
        else:
            deaf = (
                now - self._last_at > looking.offline_after_seconds / 4
                or now - last_seen_at > looking.offline_after_seconds
            )
        if deaf:
            self._listening_since = now
        self._last_at = now

    def _read_rollout(self, repository: Repository, model: str, device_class: str, now: float) -> list[str]:
        plan = current_plan(repository, model, device_class)
        policy = current_policy(repository, model, device_class)
        if plan is None or policy is None or plan.state == "done":
            return []
        subject = stage_participants.rollout_subject(plan)
        look = _RolloutView(repository, plan, policy, subject, self.services.store.decisions.last(subject), now)
        if _is_pending(look):
            return self._apply(look)
        if plan.state == "aborted":
            return (
                self._stage_rollback_release(look)
                if look.last_decision is not None and look.last_decision.verdict == "roll_back"
                else []
            )
        if now < self._rests.get(subject, -math.inf):
            return []
        started_at = self.services.now()
        look, settled = self._close_stage(look)
        done = self._decide(look, settled=settled)
        self._rests[subject] = now + _REST * max(0.0, self.services.now() - started_at)
        return done

    def _close_stage(self, look: _RolloutView) -> tuple[_RolloutView, bool]:
        """Write down who is offline once the stage's deadline has passed, and return whether that is done."""
        store, looking = self.services.store, self.services.fleet_config.monitoring
        stretch = stage_participants.stage_timing(look.plan, looking)
        if stretch is None:
            return look, False
        before = store.decisions.last(look.subject, "settle")
        fact = None if before is None else basis_of(before).fact
        if fact is not None and (fact.stage, fact.since) == (look.plan.stage, look.plan.stage_started_at):
            return look, True
        if look.plan.state != "running" or look.now_at < max(
            stretch.deadline_at, self._listening_since + looking.offline_after_seconds
        ):
            return look, False
        found = stage_participants.record_offline_devices(store, look.plan, look.policy, stretch, now=look.now_at)
        reason = (
            f"the deadline of stage {look.plan.stage + 1} has passed: {sum(found.values())} devices are offline"
        )
        fact = StageFact(look.plan.stage, look.plan.stage_started_at, found)
        return self._store_decision(look, "settle", reason, DecisionBasis(fact=fact)), True

    def _decide(self, look: _RolloutView, *, settled: bool) -> list[str]:
        store, looking = self.services.store, self.services.fleet_config.monitoring
        stretch, count = stage_participants.stage_timing(look.plan, looking), stage_participants.ParticipantCount()
        plan = look.plan
        rows: Iterable[DeviceOutcome] = ()
        if stretch is not None:
            ends_at = (
                stretch.deadline_at
                if settled
                else max(stretch.deadline_at, self._listening_since + looking.offline_after_seconds)
            )
            plan = _with_min_duration(plan, ends_at - stretch.began_at)
            rows = stage_participants.stage_outcomes(
                store, plan, look.policy, stretch, now=look.now_at, settled=settled, count=count
            )
        evidence = count_outcomes(plan, rows, look.now)
        decision = decide_rollout(plan, look.policy, evidence, look.now, alpha=looking.alpha)
        trial = None
        if len(plan.arms) > 1 and plan.stages[plan.stage].rules:
            trial = evaluate_experiment(plan, look.policy, evidence, look.now)
        verdict, reason = _verdict(decision, trial, settled=settled)
        if count.mismatched_arms:
            reason += f"; {count.mismatched_arms} devices named another arm than theirs and count in theirs"
        if verdict == "hold" and not self._is_news(look, evidence):
            return []
        self._holds[look.subject] = (inputs_digest(look.plan, evidence), look.now_at)
        look = self._store_decision(
            look, verdict, reason, DecisionBasis(decision, trial, mismatched_arms=count.mismatched_arms)
        )
        return self._apply(look) if verdict in CHANGING_ACTIONS else []

    def _is_news(self, look: _RolloutView, evidence: StageEvidence) -> bool:
        """Whether a look that changes nothing is worth keeping."""
        if look.subject not in self._holds:
            self._holds[look.subject] = self._held(look)
        digest, at = self._holds[look.subject]
        seldom_seconds = _HOLD_REPEAT_FACTOR * self.services.fleet_config.monitoring.evaluation_interval_seconds
        return digest != inputs_digest(look.plan, evidence) and look.now_at - at >= seldom_seconds

    def _held(self, look: _RolloutView) -> tuple[str, float]:
        """Return what was held on last, by another process, and when."""
        last = self.services.store.decisions.last(look.subject, "hold")
        before = None if last is None else basis_of(last).decision
        if last is None or before is None or _age(before.inputs.plan) != _age(look.plan):
            return "", -math.inf
        # A decision's plan lasts longer than the one that is signed; they are the same by their counters.
        return inputs_digest(look.plan, before.inputs.evidence), last.at

    def _apply(self, look: _RolloutView) -> list[str]:
        """Do what was decided last, and return it in words."""
        if look.last_decision is None:
            raise ValueError("nothing was decided")
        verdict = look.last_decision.verdict
        if (look.subject, look.last_decision.number) not in self._announced:
            self._audit(f"rollout {verdict}", look.subject, look.now_at, number=look.last_decision.number)
            self._announced.add((look.subject, look.last_decision.number))
        changed = _CHANGES[verdict](look.plan, look.now)
        try:
            publish_plan(look.repository, self._keys, changed)
        except InputError:
            # Somebody did it, or something else, meanwhile: the next look sees what.
            now = current_plan(look.repository, look.plan.model, look.plan.device_class)
            if now is None or _age(now) == _age(look.plan):
                raise
            return []
        done = [f"{look.subject} is {_DONE[verdict]}: {look.last_decision.reason}"]
        if verdict == "roll_back":
            done += self._stage_rollback_release(dataclasses.replace(look, plan=changed))
        return done

    def _stage_rollback_release(self, look: _RolloutView) -> list[str]:
        """Have the release before staged if devices rely on the one that was aborted, and say so in the log."""
        version, found = self._devices_relying_on(look)
        devices = sum(found.values())
        verdict = "awaiting_signatures"
        if not devices:
            verdict, reason = "taken_back", "no device has it as its proven model"
        elif not version:
            reason = f"{devices} devices have it as their proven model, and there is no release to return to"
        else:
            again = f"{devices} devices have it as their proven model; a release with the bytes of {version}"
            try:
                if not _is_staged(look.repository, look.plan.model, version):
                    republish(
                        look.repository,
                        self._keys,
                        look.plan.model,
                        version,
                        created=look.repository.now().isoformat(),
                        only_stage=True,
                    )
                reason = f"{again} waits for the signatures of the releases' keys: then start its rollout"
            except InputError as error:
                reason = f"{again} has to be published by hand: {error}"
        self._store_decision(
            look,
            verdict,
            reason,
            DecisionBasis(fact=StageFact(look.plan.stage, look.plan.stage_started_at, found, version)),
        )
        return [f"{look.subject}: {reason}"]

    def _devices_relying_on(self, look: _RolloutView) -> tuple[str, dict[str, int]]:
        """Return the release before, "" if there is none, and how many devices rely on which of the arms."""
        found, before = Counter[str](), Counter[str]()
        arms = {arm.version for arm in look.plan.arms}
        for page in self.services.store.devices.candidates(look.plan.device_class):
            for device in page:
                if device.model in ("", look.plan.model) and device.proven in arms:
                    found[device.proven] += 1
                    before[device.previous] += 1
        known = {
            version
            for version, digest in list_releases(look.repository, look.plan.model)
            if version not in arms
            and digest not in look.policy.denied_manifests
            and version_key(version) >= version_key(look.policy.min_version)
        }
        lowest = min(arms, key=version_key)
        lower = [version for version in known if version_key(version) < version_key(lowest)]
        usual = [version for version, _ in before.most_common() if version in known]
        return next(iter([*usual, *sorted(lower, key=version_key, reverse=True)]), ""), dict(found)

    def _store_decision(self, look: _RolloutView, verdict: str, reason: str, basis: DecisionBasis) -> _RolloutView:
        """Write a decision down, and return the look with it as the last."""
        decision = records.StoredDecision(
            look.subject, look.number, look.now_at, verdict, reason, encode_basis(basis)
        )
        self.services.store.decisions.put(decision)
        if verdict not in CHANGING_ACTIONS:  # those are announced when they are done, also by another process
            self._audit(f"rollout {verdict}", look.subject, look.now_at, number=decision.number)
        return dataclasses.replace(look, last_decision=decision)

    def _audit(self, action: str, subject: str, now: float, **detail: object) -> None:
        self.services.store.audit.write(CONTROLLER_ACTOR, action, subject, at=now, detail=detail)
        _log.info("%s: %s %s", action, subject, detail)


def _is_pending(look: _RolloutView) -> bool:
    """Whether the last decision was to change the plan, and the plan is still the one that it was made about."""
    if look.last_decision is None or look.last_decision.verdict not in CHANGING_ACTIONS:
        return False
    decision = basis_of(look.last_decision).decision
    return decision is not None and _age(decision.inputs.plan) == _age(look.plan)


def _age(plan: RolloutPlan) -> tuple[int, int]:
    """Return what tells a plan from the ones before it."""
    return plan.epoch, plan.counter


def _verdict(decision: RolloutDecision, trial: ExperimentResult | None, *, settled: bool) -> tuple[str, str]:
    """Return what is to become of a rollout, and why; an experiment ends with its answer, not before."""
    plan, now = decision.inputs.plan, parse_iso8601(decision.inputs.decided_at)
    if trial is not None and decision.action != "roll_back":
        over = bool(plan.end_at) and now >= parse_iso8601(plan.end_at)
        if trial.ended and plan.state == "running" and (settled or over):
            return "finish", "; ".join(trial.reasons)
        if decision.action == "finish":
            return "hold", "; ".join(trial.reasons)
    if decision.action == "hold":
        return "hold", "; ".join(decision.waiting_for or decision.reasons)
    return decision.action, "; ".join(decision.reasons)


def _with_min_duration(plan: RolloutPlan, min_seconds: float) -> RolloutPlan:
    """Return a plan whose stage lasts until its last deadline at least: who is slow to say it may have failed."""
    stage = plan.stages[plan.stage]
    longer = msgspec.structs.replace(stage, min_duration_seconds=max(stage.min_duration_seconds, min_seconds))
    changed = (*plan.stages[: plan.stage], longer, *plan.stages[plan.stage + 1 :])
    return msgspec.structs.replace(plan, stages=changed)


def _is_staged(repository: Repository, model: str, version: str) -> bool:
    """Whether the release that takes a model back to a version waits already, or has landed."""
    highest = max((known for known, _ in list_releases(repository, model)), key=version_key)
    path = release_path(model, next_version(highest))
    waits = [metadata.signed for metadata in staged_metadata(repository).values()]
    if any(isinstance(signed, Targets) and path in signed.targets for signed in waits):
        return True
    path = release_path(model, highest)
    content = repository.read_target(repository.bin_of(path), path)
    return content is not None and decode_record(content, type=Manifest).lineage.republished_from == version
