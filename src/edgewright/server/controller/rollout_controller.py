"""The controller: looks at every rollout again and again, decides by what devices said, and has the plan signed.

The leader calls `step`. A look reads who takes part and what they said, counts it, and asks `rollout/`. What was
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
from edgewright.contract.rollout.decision import Decision, DeviceOutcome, Evidence, Trial, digest_of
from edgewright.contract.rollout.plan import Plan, Policy
from edgewright.contract.schema import decode_record
from edgewright.contract.timestamps import time_of
from edgewright.rollout import plan_transitions
from edgewright.rollout.decision import decide
from edgewright.rollout.experiment import judge
from edgewright.rollout.outcome_counts import collect
from edgewright.server.controller import stage_participants
from edgewright.server.controller.decision_records import ACTIONS, Fact, Ground, ground_of, packed
from edgewright.server.controller.online_key import free, online_keys
from edgewright.server.services import Services
from edgewright.server.store import records
from edgewright.server.store.database import GoneError
from edgewright.server.store.decisions import TakenError
from edgewright.trust.keys.signing_keys import KeyFolder
from edgewright.trust.publishing.publish import (
    known_plan,
    known_policy,
    planned,
    publish_again,
    publish_plan,
    releases,
)
from edgewright.trust.repository.repository import Repository
from edgewright.trust.repository.staging import staged
from edgewright.trust.target_paths import release_path

__all__ = ["ACTOR", "Controller"]

ACTOR = "controller"
"""Who it is in the audit log."""

_log = logging.getLogger(__name__)
# A look that changes nothing is kept at most every so many looks.
_SELDOM = 6
# A look at a large fleet takes seconds, which check-ins need too: for so many times as long there is no other.
_REST = 9.0
_CHANGES: Mapping[str, Callable[[Plan, datetime.datetime], Plan]] = {
    "advance": plan_transitions.advance,
    "finish": plan_transitions.finish,
    "roll_back": plan_transitions.abort,
}
_DONE = {"advance": "advanced to its next stage", "finish": "finished", "roll_back": "aborted"}


@dataclass(frozen=True, slots=True)
class _Look:
    """One rollout, as it is found.

    Attributes:
        repository: As of now.
        plan: That is signed.
        policy: That is signed.
        subject: What it is kept under.
        last: What was decided last, if anything.
        now_s: The time.
    """

    repository: Repository
    plan: Plan
    policy: Policy
    subject: str
    last: records.Decision | None
    now_s: float

    @property
    def now(self) -> datetime.datetime:
        return datetime.datetime.fromtimestamp(self.now_s, datetime.UTC)

    @property
    def number(self) -> int:
        return 1 if self.last is None else self.last.number + 1


@dataclass(slots=True)
class Controller:
    """Decides about rollouts; one at a time in a fleet.

    Attributes:
        services: Of the server, with online keys and none of the offline ones.
    """

    services: Services
    _keys: KeyFolder = field(init=False)
    _born: datetime.datetime = field(init=False)
    _last_s: float | None = field(init=False, default=None)
    # Since when devices could have been heard without a break, as far as is known.
    _listening_s: float = field(init=False, default=-math.inf)
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

    def step(self, now_s: float) -> list[str]:
        """Look at every rollout once, and return in words what was done.

        One that cannot be judged does not keep the others from it.

        Args:
            now_s: Seconds since 1970, UTC.

        Raises:
            TakenError: Somebody else decides here too.
            GoneError: The database does not answer.
            TrustError: The repository cannot be believed.
        """
        repository = self.services.repository()
        if free(repository, self._born):
            self._note("lock removed", "repository", now_s)
        self._listen(now_s)
        done = []
        for model, device_class in planned(repository):
            try:
                done += self._look(repository, model, device_class, now_s)
            except (TakenError, GoneError):
                raise
            except (EdgewrightError, msgspec.MsgspecError, OSError) as error:
                _log.warning("the rollout of %s for %s cannot be judged: %s", model, device_class, error)
        return done

    def _listen(self, now_s: float) -> None:
        """Notice when nobody could have been heard: whoever was not listened to is not silent."""
        looking, heard_s = self.services.fleet.looking, self.services.store.devices.heard_s()
        if self._last_s is None:
            deaf = now_s - heard_s > _SELDOM * looking.look_s
        else:
            deaf = now_s - self._last_s > looking.silent_s / 4 or now_s - heard_s > looking.silent_s
        if deaf:
            self._listening_s = now_s
        self._last_s = now_s

    def _look(self, repository: Repository, model: str, device_class: str, now_s: float) -> list[str]:
        plan = known_plan(repository, model, device_class)
        policy = known_policy(repository, model, device_class)
        if plan is None or policy is None or plan.state == "done":
            return []
        subject = stage_participants.subject_of(plan)
        look = _Look(repository, plan, policy, subject, self.services.store.decisions.last(subject), now_s)
        if _is_pending(look):
            return self._act(look)
        if plan.state == "aborted":
            return self._take_back(look) if look.last is not None and look.last.verdict == "roll_back" else []
        if now_s < self._rests.get(subject, -math.inf):
            return []
        began_s = self.services.now()
        look, settled = self._settle(look)
        done = self._decide(look, settled=settled)
        self._rests[subject] = now_s + _REST * max(0.0, self.services.now() - began_s)
        return done

    def _settle(self, look: _Look) -> tuple[_Look, bool]:
        """Write down who is silent once the stage's deadline has passed, and return whether that is done."""
        store, looking = self.services.store, self.services.fleet.looking
        stretch = stage_participants.stretch_of(look.plan, looking)
        if stretch is None:
            return look, False
        before = store.decisions.last(look.subject, "settle")
        fact = None if before is None else ground_of(before).fact
        if fact is not None and (fact.stage, fact.since) == (look.plan.stage, look.plan.since):
            return look, True
        if look.plan.state != "running" or look.now_s < max(
            stretch.deadline_s, self._listening_s + looking.silent_s
        ):
            return look, False
        found = stage_participants.settle(store, look.plan, look.policy, stretch, now_s=look.now_s)
        reason = f"the deadline of stage {look.plan.stage + 1} has passed: {sum(found.values())} devices are silent"
        fact = Fact(look.plan.stage, look.plan.since, found)
        return self._keep(look, "settle", reason, Ground(fact=fact)), True

    def _decide(self, look: _Look, *, settled: bool) -> list[str]:
        store, looking = self.services.store, self.services.fleet.looking
        stretch, count = stage_participants.stretch_of(look.plan, looking), stage_participants.Count()
        plan = look.plan
        rows: Iterable[DeviceOutcome] = ()
        if stretch is not None:
            ends_s = (
                stretch.deadline_s if settled else max(stretch.deadline_s, self._listening_s + looking.silent_s)
            )
            plan = _lasting(plan, ends_s - stretch.began_s)
            rows = stage_participants.rows(
                store, plan, look.policy, stretch, now_s=look.now_s, settled=settled, count=count
            )
        evidence = collect(plan, rows, look.now)
        decision = decide(plan, look.policy, evidence, look.now, alpha=looking.alpha)
        trial = None
        if len(plan.arms) > 1 and plan.stages[plan.stage].rules:
            trial = judge(plan, look.policy, evidence, look.now)
        verdict, reason = _verdict(decision, trial, settled=settled)
        if count.askew:
            reason += f"; {count.askew} devices named another arm than theirs and count in theirs"
        if verdict == "hold" and not self._is_news(look, evidence):
            return []
        self._holds[look.subject] = (digest_of(look.plan, evidence), look.now_s)
        look = self._keep(look, verdict, reason, Ground(decision, trial, askew=count.askew))
        return self._act(look) if verdict in ACTIONS else []

    def _is_news(self, look: _Look, evidence: Evidence) -> bool:
        """Whether a look that changes nothing is worth keeping."""
        if look.subject not in self._holds:
            self._holds[look.subject] = self._held(look)
        digest, at_s = self._holds[look.subject]
        seldom_s = _SELDOM * self.services.fleet.looking.look_s
        return digest != digest_of(look.plan, evidence) and look.now_s - at_s >= seldom_s

    def _held(self, look: _Look) -> tuple[str, float]:
        """Return what was held on last, by another process, and when."""
        last = self.services.store.decisions.last(look.subject, "hold")
        before = None if last is None else ground_of(last).decision
        if last is None or before is None or _age(before.inputs.plan) != _age(look.plan):
            return "", -math.inf
        # A decision's plan lasts longer than the one that is signed; they are the same by their counters.
        return digest_of(look.plan, before.inputs.evidence), last.at_s

    def _act(self, look: _Look) -> list[str]:
        """Do what was decided last, and return it in words."""
        if look.last is None:
            raise ValueError("nothing was decided")
        verdict = look.last.verdict
        if (look.subject, look.last.number) not in self._announced:
            self._note(f"rollout {verdict}", look.subject, look.now_s, number=look.last.number)
            self._announced.add((look.subject, look.last.number))
        changed = _CHANGES[verdict](look.plan, look.now)
        try:
            publish_plan(look.repository, self._keys, changed)
        except InputError:
            # Somebody did it, or something else, meanwhile: the next look sees what.
            now = known_plan(look.repository, look.plan.model, look.plan.device_class)
            if now is None or _age(now) == _age(look.plan):
                raise
            return []
        done = [f"{look.subject} is {_DONE[verdict]}: {look.last.reason}"]
        if verdict == "roll_back":
            done += self._take_back(dataclasses.replace(look, plan=changed))
        return done

    def _take_back(self, look: _Look) -> list[str]:
        """Have the release before staged if devices rely on the one that was aborted, and say so in the log."""
        version, found = self._relied_on(look)
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
                    publish_again(
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
        self._keep(look, verdict, reason, Ground(fact=Fact(look.plan.stage, look.plan.since, found, version)))
        return [f"{look.subject}: {reason}"]

    def _relied_on(self, look: _Look) -> tuple[str, dict[str, int]]:
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
            for version, digest in releases(look.repository, look.plan.model)
            if version not in arms
            and digest not in look.policy.denied
            and version_key(version) >= version_key(look.policy.floor)
        }
        lowest = min(arms, key=version_key)
        lower = [version for version in known if version_key(version) < version_key(lowest)]
        usual = [version for version, _ in before.most_common() if version in known]
        return next(iter([*usual, *sorted(lower, key=version_key, reverse=True)]), ""), dict(found)

    def _keep(self, look: _Look, verdict: str, reason: str, ground: Ground) -> _Look:
        """Write a decision down, and return the look with it as the last."""
        decision = records.Decision(look.subject, look.number, look.now_s, verdict, reason, packed(ground))
        self.services.store.decisions.put(decision)
        if verdict not in ACTIONS:  # those are announced when they are done, also by another process
            self._note(f"rollout {verdict}", look.subject, look.now_s, number=decision.number)
        return dataclasses.replace(look, last=decision)

    def _note(self, action: str, subject: str, now_s: float, **detail: object) -> None:
        self.services.store.audit.write(ACTOR, action, subject, at_s=now_s, detail=detail)
        _log.info("%s: %s %s", action, subject, detail)


def _is_pending(look: _Look) -> bool:
    """Whether the last decision was to change the plan, and the plan is still the one that it was made about."""
    if look.last is None or look.last.verdict not in ACTIONS:
        return False
    decision = ground_of(look.last).decision
    return decision is not None and _age(decision.inputs.plan) == _age(look.plan)


def _age(plan: Plan) -> tuple[int, int]:
    """Return what tells a plan from the ones before it."""
    return plan.epoch, plan.counter


def _verdict(decision: Decision, trial: Trial | None, *, settled: bool) -> tuple[str, str]:
    """Return what is to become of a rollout, and why; an experiment ends with its answer, not before."""
    plan, now = decision.inputs.plan, time_of(decision.inputs.now)
    if trial is not None and decision.action != "roll_back":
        over = bool(plan.end) and now >= time_of(plan.end)
        if trial.ended and plan.state == "running" and (settled or over):
            return "finish", "; ".join(trial.reasons)
        if decision.action == "finish":
            return "hold", "; ".join(trial.reasons)
    if decision.action == "hold":
        return "hold", "; ".join(decision.missing or decision.reasons)
    return decision.action, "; ".join(decision.reasons)


def _lasting(plan: Plan, least_s: float) -> Plan:
    """Return a plan whose stage lasts until its last deadline at least: who is slow to say it may have failed."""
    stage = plan.stages[plan.stage]
    longer = msgspec.structs.replace(stage, min_seconds=max(stage.min_seconds, least_s))
    changed = (*plan.stages[: plan.stage], longer, *plan.stages[plan.stage + 1 :])
    return msgspec.structs.replace(plan, stages=changed)


def _is_staged(repository: Repository, model: str, version: str) -> bool:
    """Whether the release that takes a model back to a version waits already, or has landed."""
    highest = max((known for known, _ in releases(repository, model)), key=version_key)
    path = release_path(model, next_version(highest))
    waits = [metadata.signed for metadata in staged(repository).values()]
    if any(isinstance(signed, Targets) and path in signed.targets for signed in waits):
        return True
    path = release_path(model, highest)
    content = repository.read_target(repository.bin_of(path), path)
    return content is not None and decode_record(content, type=Manifest).lineage.again == version
