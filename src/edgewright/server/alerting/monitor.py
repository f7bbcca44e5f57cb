"""One look at the fleet: read how it is, judge the alert rules, set off what follows, tell people. For the leader.

A look may end anywhere and begin again in another process: states of rules, what changed, what was set off and who
was told are in the store, each before what builds on it. All that is kept in memory is what can be read again.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgewright.contract.alert import AlertRule, MetricReading, RuleState
from edgewright.contract.errors import EdgewrightError, InputError
from edgewright.fleet.alert_rules import AlertEvent, RuleKey, evaluate_rules
from edgewright.fleet.health import GroupBy, GroupHealth, group_health, health_readings
from edgewright.fleet.release_retirement import RetirementInputs, RetirementProposal, propose_retirement
from edgewright.server.alerting.automated_actions import (
    ActionTools,
    RolloutChanger,
    begin_reading,
    finish_retraining,
    perform_granted,
    request_actions,
)
from edgewright.server.alerting.evidence_source import HealthSource
from edgewright.server.alerting.notifications import Notifier, open_channels
from edgewright.server.alerting.retraining import Retrainer
from edgewright.server.services import Services
from edgewright.server.store.records import Alert, ReaderPosition, StoredDecision
from edgewright.trust.publishing.publish import current_plan, current_policy, list_releases, set_policy
from edgewright.trust.repository.repository import Repository
from edgewright.trust.repository.staging import staged_metadata

__all__ = ["FleetMonitor", "MonitorResult", "check_fleet", "fleet_health", "make_monitor"]

_LOG = logging.getLogger("edgewright.watching")
_RETIREMENT, _DAY_SECONDS = "retirement", 86400.0
_REPEAT_SECONDS = 30 * _DAY_SECONDS


class _StoredRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is kept of a rule, as JSON beside its alert."""

    state: RuleState
    reason: str


@dataclass(frozen=True, slots=True)
class FleetMonitor:
    """What a look takes.

    Attributes:
        services: Of the server.
        source: Reads how the fleet is.
        notifier: Tells people.
        tools: Do what alerts set off.
    """

    services: Services
    source: HealthSource
    notifier: Notifier
    tools: ActionTools

    def close(self) -> None:
        """End what runs, and tell no more."""
        self.notifier.close()
        if self.tools.retrainer is not None:
            self.tools.retrainer.stop()


@dataclass(frozen=True, slots=True)
class MonitorResult:
    """What a look found.

    Attributes:
        readings: Of the fleet.
        events: Rules that fired or ended.
        busy_channels: Channels that are still at it.
    """

    readings: tuple[MetricReading, ...]
    events: tuple[AlertEvent, ...]
    busy_channels: int


def make_monitor(
    services: Services, acting: RolloutChanger, *, project: Path, state: Path, environment: Mapping[str, str]
) -> FleetMonitor:
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
    fleet = services.fleet_config
    notices = fleet.notifications
    hidden = [target.secret_env for target in notices.webhooks] + [mail.password_env for mail in notices.email]
    retrainer = None
    if fleet.retraining is not None:
        retrainer = Retrainer(fleet.retraining, project, state / "retraining", hidden)
    teller = Notifier(services.store, services.audience, fleet.alerts, open_channels(fleet, environment))
    return FleetMonitor(services, HealthSource(services), teller, ActionTools(acting, retrainer))


def check_fleet(watcher: FleetMonitor, now: float) -> MonitorResult:
    """Look once; see above.

    Raises:
        WorkError: The store or the repository does not answer; look again later.
    """
    services, tools = watcher.services, watcher.tools
    watcher.notifier.begin_channels()
    begin_reading(services)
    found = [*health_readings(watcher.source.evidence(now)), *watcher.source.sum_readings(now)]
    events = _evaluate(services, found, now)
    services.store.alerts.end_silences(now=now)
    request_actions(services, now)
    finish_retraining(services, tools, now)
    perform_granted(services, tools, now)
    _propose_retirements(services, now)
    return MonitorResult(tuple(found), tuple(events), watcher.notifier.send_new(now))


def fleet_health(watcher: FleetMonitor, by: GroupBy, now: float) -> list[GroupHealth]:
    """Return how devices are, by class and perhaps version or arm."""
    return group_health(watcher.source.evidence(now), by)


def _evaluate(services: Services, found: list[MetricReading], now: float) -> list[AlertEvent]:
    """Judge the rules, and keep where they stand."""
    alerts, rules = services.store.alerts, services.fleet_config.alerts
    kept = {(alert.rule, alert.subject): alert for alert in alerts.all()}
    before = {key: state for key, alert in kept.items() if (state := _state(alert)) is not None}
    after, events = evaluate_rules(rules, before, found)
    words = {(event.rule.name, event.device_class): event.message for event in events}
    whys = {(reading.metric, reading.device_class): reading.reason for reading in found}
    named = {rule.name: rule for rule in rules}
    put = [
        _alert(named[key[0]], state, kept.get(key), words.get(key), whys)
        for key, state in after.items()
        if state != before.get(key) and (state.state != "ok" or key in kept)
    ]
    alerts.put(put + [_ended(alert, now) for key, alert in kept.items() if _is_over(key, alert, named)])
    return events


def _state(alert: Alert) -> RuleState | None:
    try:
        return msgspec.json.decode(alert.inputs, type=_StoredRule).state
    except msgspec.MsgspecError:
        return None  # of an earlier release, or of nobody: judged anew


def _alert(
    rule: AlertRule, state: RuleState, before: Alert | None, words: str | None, whys: Mapping[RuleKey, str]
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
    inputs = msgspec.Raw(msgspec.json.encode(_StoredRule(state, why)))
    return Alert(rule.name, state.device_class, kind, state.since, state.at, message, inputs)


def _is_over(key: RuleKey, alert: Alert, rules: Mapping[str, AlertRule]) -> bool:
    rule = rules.get(key[0])
    gone = rule is None or rule.device_class not in ("", key[1])
    return gone and alert.state != "resolved"


def _ended(alert: Alert, now: float) -> Alert:
    message = f"{alert.rule}: the project file has no such rule any more"
    return msgspec.structs.replace(alert, state="resolved", since=now, at=now, message=message)


def _propose_retirements(services: Services, now: float) -> None:
    """Once a day, stage floors under which old releases go; people sign them or do not."""
    store, rule = services.store, services.fleet_config.retirement
    if not rule.active or services.online_keys is None:
        return
    at = store.positions.get(_RETIREMENT) or ReaderPosition(_RETIREMENT, 0)
    if at.next_attempt_at - _DAY_SECONDS <= now < at.next_attempt_at:
        return
    groups = store.devices.groups()
    running = {(group.device_class, group.model, group.version) for group in groups if group.model}
    used = running if rule.unused_seconds is None else store.check_ins.versions(now - rule.unused_seconds)
    for device_class, model in sorted({(each[0], each[1]) for each in running}):
        versions = tuple(sorted({each[2] for each in used if each[:2] == (device_class, model) and each[2]}))
        try:
            _propose(services, services.repository(), model, device_class, versions, now)
        except (EdgewrightError, OSError) as error:
            _LOG.warning("nothing of %s on %s can be retired now: %s", model, device_class, error)
    store.positions.put(ReaderPosition(_RETIREMENT, at.number + 1, next_attempt_at=now + _DAY_SECONDS))


def _propose(
    services: Services,
    repository: Repository,
    model: str,
    device_class: str,
    used: tuple[str, ...],
    now: float,
) -> None:
    store, subject = services.store, f"retirement/{device_class}/{model}"
    policy = current_policy(repository, model, device_class)
    if policy is None or services.online_keys is None:
        return
    plan = current_plan(repository, model, device_class)
    live = plan is not None and plan.state in ("running", "paused")
    planned = {arm.version for arm in plan.arms} if plan is not None and live else set()
    versions = tuple(version for version, _ in list_releases(repository, model))
    old = RetirementInputs(
        services.fleet_config.retirement,
        versions,
        used,
        # A channel whose highest version went would get nothing.
        tuple(sorted(planned | set(policy.channel_ceilings.values()))),
        policy.min_version,
    )
    proposal = propose_retirement(old)
    if proposal is None or _was_proposed(services, subject, proposal, now):
        return
    if staged_metadata(repository):
        raise InputError("something else waits for signatures", remedy="It is proposed once that is signed.")
    raised = msgspec.structs.replace(policy, revision=policy.revision + 1, min_version=proposal.min_version)
    set_policy(repository, services.online_keys, raised, only_stage=True)
    why = f"{proposal.reason}; a floor of {proposal.min_version} awaits signatures"
    detail = {"model": model, "floor": proposal.min_version, "retired": list(proposal.retired), "reason": why}
    store.audit.write("server", "stage retirement", device_class, at=now, detail=detail)
    number = store.decisions.last_number(subject) + 1
    inputs = msgspec.Raw(msgspec.json.encode(old))
    store.decisions.put(StoredDecision(subject, number, now, _verdict(proposal), why, inputs))


def _was_proposed(services: Services, subject: str, proposal: RetirementProposal, now: float) -> bool:
    """Whether people had the same before them lately, and did not sign it."""
    before = services.store.decisions.for_subject(subject)
    return bool(before) and before[-1].verdict == _verdict(proposal) and now - before[-1].at < _REPEAT_SECONDS


def _verdict(proposal: RetirementProposal) -> str:
    return f"floor {proposal.min_version}"
