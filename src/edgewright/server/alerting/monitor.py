"""One look at the fleet: read how it is, judge the alert rules, set off what follows, tell people. For the leader.

A look may end anywhere and begin again in another process: states of rules, what changed, what was set off and who
was told are in the store, each before what builds on it. All that is kept in memory is what can be read again.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgewright.contract.alert import AlertRule, AlertState, Reading
from edgewright.contract.errors import EdgewrightError, InputError
from edgewright.fleet.alert_rules import Event, Key, judge
from edgewright.fleet.health import By, Health, health, readings
from edgewright.fleet.release_retirement import Old, Proposal, propose
from edgewright.server.alerting.automated_actions import Acting, Tools, begin, do_granted, end_retraining, wish
from edgewright.server.alerting.evidence_source import Gatherer
from edgewright.server.alerting.notifications import Teller, channels_of
from edgewright.server.alerting.retraining import Retrainer
from edgewright.server.services import Services
from edgewright.server.store.records import Alert, Decision, Position
from edgewright.trust.publishing.publish import known_plan, known_policy, releases, set_policy
from edgewright.trust.repository.repository import Repository
from edgewright.trust.repository.staging import staged

__all__ = ["Watched", "Watcher", "fleet_health", "make_watcher", "watch"]

_LOG = logging.getLogger("edgewright.watching")
_RETIREMENT, _DAY_S = "retirement", 86400.0
_AGAIN_S = 30 * _DAY_S


class _Kept(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is kept of a rule, as JSON beside its alert."""

    state: AlertState
    why: str


@dataclass(frozen=True, slots=True)
class Watcher:
    """What a look takes.

    Attributes:
        services: Of the server.
        gatherer: Reads how the fleet is.
        teller: Tells people.
        tools: Do what alerts set off.
    """

    services: Services
    gatherer: Gatherer
    teller: Teller
    tools: Tools

    def close(self) -> None:
        """End what runs, and tell no more."""
        self.teller.close()
        if self.tools.retrainer is not None:
            self.tools.retrainer.stop()


@dataclass(frozen=True, slots=True)
class Watched:
    """What a look found.

    Attributes:
        readings: Of the fleet.
        events: Rules that fired or ended.
        untold: Channels that are still at it.
    """

    readings: tuple[Reading, ...]
    events: tuple[Event, ...]
    untold: int


def make_watcher(
    services: Services, acting: Acting, *, project: Path, state: Path, environment: Mapping[str, str]
) -> Watcher:
    """Return what looks at a fleet.

    Args:
        services: Of the server.
        acting: Changes rollouts.
        project: Folder of the project file, in which retraining runs.
        state: Folder of the server.
        environment: With the secrets that the project file names.

    Raises:
        InputError: A secret is missing.
    """
    fleet = services.fleet
    notices = fleet.notices
    hidden = [target.secret_env for target in notices.webhooks] + [mail.password_env for mail in notices.mail]
    retrainer = None
    if fleet.retraining is not None:
        retrainer = Retrainer(fleet.retraining, project, state / "retraining", hidden)
    teller = Teller(services.store, services.audience, fleet.alerts, channels_of(fleet, environment))
    return Watcher(services, Gatherer(services), teller, Tools(acting, retrainer))


def watch(watcher: Watcher, now_s: float) -> Watched:
    """Look once; see above.

    Raises:
        WorkError: The store or the repository does not answer; look again later.
    """
    services, tools = watcher.services, watcher.tools
    watcher.teller.begin()
    begin(services)
    found = [*readings(watcher.gatherer.evidence(now_s)), *watcher.gatherer.sums(now_s)]
    events = _judge(services, found, now_s)
    services.store.alerts.lift(now_s=now_s)
    wish(services, now_s)
    end_retraining(services, tools, now_s)
    do_granted(services, tools, now_s)
    _retire(services, now_s)
    return Watched(tuple(found), tuple(events), watcher.teller.tell(now_s))


def fleet_health(watcher: Watcher, by: By, now_s: float) -> list[Health]:
    """Return how devices are, by class and perhaps version or arm."""
    return health(watcher.gatherer.evidence(now_s), by)


def _judge(services: Services, found: list[Reading], now_s: float) -> list[Event]:
    """Judge the rules, and keep where they stand."""
    alerts, rules = services.store.alerts, services.fleet.alerts
    kept = {(alert.rule, alert.subject): alert for alert in alerts.all()}
    before = {key: state for key, alert in kept.items() if (state := _state(alert)) is not None}
    after, events = judge(rules, before, found)
    words = {(event.rule.name, event.device_class): event.words for event in events}
    whys = {(reading.metric, reading.device_class): reading.why for reading in found}
    named = {rule.name: rule for rule in rules}
    put = [
        _alert(named[key[0]], state, kept.get(key), words.get(key), whys)
        for key, state in after.items()
        if state != before.get(key) and (state.state != "ok" or key in kept)
    ]
    alerts.put(put + [_ended(alert, now_s) for key, alert in kept.items() if _is_over(key, alert, named)])
    return events


def _state(alert: Alert) -> AlertState | None:
    try:
        return msgspec.json.decode(alert.inputs, type=_Kept).state
    except msgspec.MsgspecError:
        return None  # of an earlier release, or of nobody: judged anew


def _alert(
    rule: AlertRule, state: AlertState, before: Alert | None, words: str | None, whys: Mapping[Key, str]
) -> Alert:
    kind = "resolved" if state.state == "ok" else state.state
    message = before.message if before is not None and before.state == kind else ""
    if words is not None:
        message = words
    elif not message:
        # Seldom: a rule that was not beyond its limit for long enough, or is not any more.
        where = f" on {state.device_class}" if state.device_class else ""
        lasting = ", not for long enough yet" if kind == "pending" else " again"
        message = f"{rule.name}: {rule.metric}{where} is {state.value:.4g}{lasting}"
    why = whys.get((rule.metric, state.device_class), "")
    inputs = msgspec.Raw(msgspec.json.encode(_Kept(state, why)))
    return Alert(rule.name, state.device_class, kind, state.since_s, state.at_s, message, inputs)


def _is_over(key: Key, alert: Alert, rules: Mapping[str, AlertRule]) -> bool:
    rule = rules.get(key[0])
    gone = rule is None or rule.device_class not in ("", key[1])
    return gone and alert.state != "resolved"


def _ended(alert: Alert, now_s: float) -> Alert:
    message = f"{alert.rule}: the project file has no such rule any more"
    return msgspec.structs.replace(alert, state="resolved", since_s=now_s, at_s=now_s, message=message)


def _retire(services: Services, now_s: float) -> None:
    """Once a day, stage floors under which old releases go; people sign them or do not."""
    store, rule = services.store, services.fleet.retirement
    if not rule.active or services.keys is None:
        return
    at = store.positions.get(_RETIREMENT) or Position(_RETIREMENT, 0)
    if at.next_s - _DAY_S <= now_s < at.next_s:
        return
    groups = store.devices.groups()
    running = {(group.device_class, group.model, group.version) for group in groups if group.model}
    used = running if rule.unused_s is None else store.check_ins.versions(now_s - rule.unused_s)
    for device_class, model in sorted({(each[0], each[1]) for each in running}):
        versions = tuple(sorted({each[2] for each in used if each[:2] == (device_class, model) and each[2]}))
        try:
            _propose(services, services.repository(), model, device_class, versions, now_s)
        except (EdgewrightError, OSError) as error:
            _LOG.warning("nothing of %s on %s can be retired now: %s", model, device_class, error)
    store.positions.put(Position(_RETIREMENT, at.number + 1, next_s=now_s + _DAY_S))


def _propose(
    services: Services,
    repository: Repository,
    model: str,
    device_class: str,
    used: tuple[str, ...],
    now_s: float,
) -> None:
    store, subject = services.store, f"retirement/{device_class}/{model}"
    policy = known_policy(repository, model, device_class)
    if policy is None or services.keys is None:
        return
    plan = known_plan(repository, model, device_class)
    live = plan is not None and plan.state in ("running", "paused")
    planned = {arm.version for arm in plan.arms} if plan is not None and live else set()
    versions = tuple(version for version, _ in releases(repository, model))
    old = Old(
        services.fleet.retirement,
        versions,
        used,
        # A channel whose highest version went would get nothing.
        tuple(sorted(planned | set(policy.channels.values()))),
        policy.floor,
    )
    proposal = propose(old)
    if proposal is None or _was_proposed(services, subject, proposal, now_s):
        return
    if staged(repository):
        raise InputError("something else waits for signatures", remedy="It is proposed once that is signed.")
    raised = msgspec.structs.replace(policy, revision=policy.revision + 1, floor=proposal.floor)
    set_policy(repository, services.keys, raised, only_stage=True)
    why = f"{proposal.why}; a floor of {proposal.floor} awaits signatures"
    detail = {"model": model, "floor": proposal.floor, "retired": list(proposal.retired), "why": why}
    store.audit.write("server", "stage retirement", device_class, at_s=now_s, detail=detail)
    number = store.decisions.last_number(subject) + 1
    inputs = msgspec.Raw(msgspec.json.encode(old))
    store.decisions.put(Decision(subject, number, now_s, _verdict(proposal), why, inputs))


def _was_proposed(services: Services, subject: str, proposal: Proposal, now_s: float) -> bool:
    """Whether people had the same before them lately, and did not sign it."""
    before = services.store.decisions.of(subject)
    return bool(before) and before[-1].verdict == _verdict(proposal) and now_s - before[-1].at_s < _AGAIN_S


def _verdict(proposal: Proposal) -> str:
    return f"floor {proposal.floor}"
