"""What alerts set off: wanted once per change, permitted by a pure policy, done, and told to the audit log.

From wanted to ended every step is in the store before the next, so a restart anywhere goes on where it was: what is
done twice does no harm, and retraining that was cut off is not begun again by itself. Offline keys are never here.
"""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import msgspec

from edgewright.contract.alert import AlertAction, AlertRule
from edgewright.contract.errors import EdgewrightError, InputError, WorkError
from edgewright.contract.query.query import DeviceQueryLimits, Query
from edgewright.contract.schema import decode_record
from edgewright.contract.timestamps import parse_iso8601
from edgewright.fleet.action_policy import ActionRequest, PastAction, decide_action
from edgewright.fleet.drill_down import DrillDownQuery, plan_drill_down
from edgewright.privacy.accountant import epsilon_of
from edgewright.privacy.private_sum import query_objection
from edgewright.privacy.query_calibration import draft_query
from edgewright.server.alerting.retraining import Retrainer, RetrainingResult
from edgewright.server.controller.online_key import online_keys
from edgewright.server.services import Services
from edgewright.server.store.records import AlertChange, AutomatedAction, ReaderPosition, StoredDecision
from edgewright.trust.publishing.publish import list_releases
from edgewright.trust.publishing.signed_queries import current_permit, current_queries, publish_query
from edgewright.trust.repository.metadata_rules import ROLLOUTS

__all__ = [
    "ActionTools",
    "RolloutChanger",
    "approve_action",
    "begin_reading",
    "finish_retraining",
    "pending_actions",
    "perform_granted",
    "refuse_action",
    "request_actions",
]

_LOG = logging.getLogger("edgewright.watching")
_READER_NAME = "acts"
_SERVER = "server"
_MONTH_SECONDS = 31 * 86400.0
_APPROVAL_SECONDS = 7 * 86400.0
_RETRY_LIMIT_SECONDS = 3600.0
_EPSILON = 1.0


class RolloutChanger(Protocol):
    """Who changes rollouts; saying the same again does no harm."""

    def pause_rollout(self, model: str, device_class: str, reason: str) -> bool:
        """Have a rollout advance no further, and return whether there was one that did."""

    def abort_rollout(self, model: str, device_class: str, reason: str) -> bool:
        """Take a rollout back, and return whether there was one."""


@dataclass(frozen=True, slots=True)
class ActionTools:
    """What acts are done with.

    Attributes:
        rollouts: Changes rollouts.
        retrainer: Retrains, None if the project file does not say how.
    """

    rollouts: RolloutChanger
    retrainer: Retrainer | None = None


def pending_actions(services: Services) -> list[AutomatedAction]:
    """Return what waits for somebody's approval, the newest first."""
    return services.store.actions.all("waiting", limit=1000)


def approve_action(services: Services, principal: str, act_id: str) -> AutomatedAction:
    """Have an act done; the caller has seen to it that this person may.

    Args:
        services: Of the server.
        principal: As the audit log names them.
        act_id: Of an act that waits.

    Raises:
        InputError: It does not wait.
    """
    return _decide(services, principal, act_id, granted=True, reason=f"{principal} approved")


def refuse_action(services: Services, principal: str, act_id: str, reason: str = "") -> AutomatedAction:
    """Have an act not done; as `approve_action`."""
    return _decide(
        services,
        principal,
        act_id,
        granted=False,
        reason=f"{principal} refused" + (f": {reason}" if reason else ""),
    )


def _decide(services: Services, principal: str, act_id: str, *, granted: bool, reason: str) -> AutomatedAction:
    store, now = services.store, services.now()
    moved = store.actions.transition(
        act_id, ("waiting",), "granted" if granted else "refused", reason=reason[:500], at=now, by=principal
    )
    act = store.actions.get(act_id)
    if act is None or not moved:
        state = "not there" if act is None else act.state
        raise InputError(f"action {act_id[:80]!r} is {state}", remedy="List what waits for approval.")
    store.audit.write(
        principal,
        "approve action" if granted else "refuse action",
        act.device_class,
        at=now,
        detail={"id": act_id, "action": act.action, "alert": act.alert, "reason": reason[:500]},
    )
    return act


def begin_reading(services: Services) -> None:
    """Note where the reader of changes begins, if it is new: what fired before it watched sets off nothing."""
    if services.store.positions.get(_READER_NAME) is None:
        services.store.positions.put(ReaderPosition(_READER_NAME, services.store.alerts.last_change()))


def request_actions(services: Services, now: float) -> None:
    """Take up what fired since, and decide what of it may be done."""
    store = services.store
    rules = {rule.name: rule for rule in services.fleet_config.alerts}
    at = store.positions.get(_READER_NAME) or ReaderPosition(_READER_NAME, 0)
    while changes := store.alerts.changes_after(at.number):
        for change in changes:
            rule = rules.get(change.rule)
            # One that fires on after a silence has fired before.
            if rule is not None and change.after == "firing" and change.before != "silenced":
                for action in rule.actions:
                    if action != "notify":
                        _request_action(services, change, rule, action, now)
        at = ReaderPosition(_READER_NAME, changes[-1].number)
        store.positions.put(at)


def _request_action(
    services: Services, change: AlertChange, rule: AlertRule, action: AlertAction, now: float
) -> None:
    store = services.store
    act_id = f"{change.number}-{action.replace(' ', '-')}"
    if store.actions.get(act_id) is not None:
        return
    subject = f"action/{change.subject}/{action}"
    known = store.decisions.for_subject(subject)
    before = msgspec.json.decode(known[-1].inputs, type=ActionRequest) if known else None
    # Decided already, by a server that was stopped before it went on: what was decided stays.
    again = before is not None and before.id == act_id
    asked = (
        before if again and before else _action_request(services, act_id, change.subject, rule.name, action, now)
    )
    permission = decide_action(asked)
    verdict = "grant" if permission.allowed else "ask" if permission.needs_approval else "refuse"
    if not again:
        inputs = msgspec.Raw(msgspec.json.encode(asked))
        store.decisions.put(StoredDecision(subject, len(known) + 1, now, verdict, permission.reason, inputs))
    store.audit.write(
        _SERVER,
        f"{verdict} action",
        change.subject,
        at=now,
        detail={"id": act_id, "action": action, "alert": rule.name, "reason": permission.reason},
    )
    act = AutomatedAction(
        id=act_id,
        action=action,
        device_class=change.subject,
        alert=rule.name,
        reason=change.message,
        state="waiting",
        state_reason=permission.reason,
        asked_at=now,
    )
    if verdict == "grant":
        act = msgspec.structs.replace(act, state="granted", decided_at=now, decided_by=_SERVER)
    elif verdict == "refuse":
        act = msgspec.structs.replace(act, state="refused", decided_by=_SERVER, ended_at=now)
    store.actions.add(act)


def _action_request(
    services: Services, act_id: str, about: str, alert: str, action: AlertAction, now: float
) -> ActionRequest:
    policies = services.fleet_config.actions
    max_seconds = max([_MONTH_SECONDS, *(policy.cooldown_seconds for policy in policies)])
    # What is dated ahead counts too: a clock was set back.
    granted = services.store.actions.granted_since(now - max_seconds)
    history = tuple(
        PastAction(act.action, act.device_class, act.decided_at)
        for act in granted
        if act.decided_at and act.action == action
    )
    waiting = any((act.action, act.device_class) == (action, about) for act in pending_actions(services))
    return ActionRequest(
        id=act_id,
        action=action,
        subject=about,
        alert=alert,
        policies=policies,
        history=history,
        now=now,
        approval_pending=waiting,
    )


def perform_granted(services: Services, tools: ActionTools, now: float) -> None:
    """Do what is granted, and let go what waited for approval for too long."""
    acts = services.store.actions
    for act in pending_actions(services):
        if now - act.asked_at > _APPROVAL_SECONDS:
            _finish(services, act, "refused", f"nobody answered in {_APPROVAL_SECONDS / 86400:g} days", now)
    for act in acts.all("granted", limit=1000)[::-1]:
        try:
            if act.action == "retrain":
                _retrain(services, tools, act, now)
            else:
                _finish(services, act, *_perform(services, tools, act, now), now)
        except InputError as error:
            _finish(services, act, "failed", error.message, now)
        except (EdgewrightError, OSError) as error:
            if now - (act.decided_at or 0.0) > _RETRY_LIMIT_SECONDS:
                _finish(services, act, "failed", str(error), now)
            else:
                _LOG.warning("%s of %s is tried again: %s", act.action, act.device_class, error)


def _perform(services: Services, tools: ActionTools, act: AutomatedAction, now: float) -> tuple[str, str]:
    """Return what became of an act, and why."""
    reason = f"alert {act.reason}"
    if act.action == "ask":
        return _query_subgroups(services, act, now)
    change: Callable[[str, str, str], bool] = (
        tools.rollouts.pause_rollout if act.action == "pause" else tools.rollouts.abort_rollout
    )
    changed = [model for model in _models(services, act.device_class) if change(model, act.device_class, reason)]
    if changed:
        return "done", f"rollouts of {', '.join(changed)}"
    return "done", "there was no rollout to do it to"


def _models(services: Services, device_class: str) -> list[str]:
    """Return models that rollouts bring to devices of a class."""
    metadata = services.repository().role(ROLLOUTS)
    paths = [] if metadata is None else [path.split("/") for path in metadata.signed.targets]
    return sorted(
        path[1] for path in paths if len(path) == 3 and path[0] == "rollouts" and path[2] == f"{device_class}.json"
    )


def _query_subgroups(services: Services, act: AutomatedAction, now: float) -> tuple[str, str]:
    """Ask the fleet by subgroup; queries have names of the act, so that none is asked twice."""
    store, device_class = services.store, act.device_class
    repository, keys = services.repository(), online_keys(services)
    running: dict[tuple[str, str], int] = {}
    for group in store.devices.groups():
        if group.device_class == device_class and group.model:
            key = (group.model, group.version)
            running[key] = running.get(key, 0) + group.devices
    if not running:
        return "failed", f"no device of {device_class} runs a model"
    model, version = max(running, key=lambda key: (running[key], key))
    permit = current_permit(repository, model, device_class)
    labels = {label for template in (permit.templates if permit else ()) for label in template.subgroups}
    known = {each.id: each for each in current_queries(repository, model, device_class).queries}
    mine = {name: each for name, each in known.items() if name.startswith(f"alert-{act.id}-")}
    asked_at: dict[str, float] = {}
    recent = (*store.queries.all("open"), *store.queries.done_since(now - _MONTH_SECONDS))
    for kept in recent:
        asked = decode_record(kept.body, type=Query)
        if kept.device_class == device_class and asked.id not in mine:
            asked_at[asked.template] = max(kept.asked_at, asked_at.get(asked.template, 0.0))
    found = plan_drill_down(
        permit,
        sum(count for (name, _), count in running.items() if name == model),
        {label: store.devices.label_counts(device_class, label) for label in labels},
        asked_at,
        now=act.decided_at or now,
    )
    if isinstance(found, str):
        return "failed", f"nothing can be asked: {found}"
    digest = dict(list_releases(repository, model)).get(version, "")
    for query in known.values():  # 64 at most are live, and nobody answers these any more
        if query.id.startswith("alert-") and parse_iso8601(query.deadline).timestamp() < now:
            publish_query(repository, keys, model, device_class, without=query.id)
    names = []
    for query in _queries(found, act, digest):
        names.append(query.id)
        if query.id not in mine:
            publish_query(repository, keys, model, device_class, query=query)
        store.queries.store_query(mine.get(query.id, query), found.template, model, now=now)
    return "done", f"asked {', '.join(names)}"


def _queries(asking: DrillDownQuery, act: AutomatedAction, release: str) -> list[Query]:
    template = asking.template
    # A hair below, for the two formulas round.
    epsilon = min(_EPSILON, 0.999 * epsilon_of(template.max_rho, template.delta))
    made = []
    for number, subgroup in enumerate(asking.subgroups):
        query = draft_query(
            template,
            query_id=f"alert-{act.id}-{number}",
            window=(asking.window_start, asking.window_end),
            deadline=asking.deadline,
            release=release,
            epsilon=epsilon,
            seed=os.urandom(32).hex(),
            backend=template.backends[0],
            min_cohort=template.min_cohort,
            max_cohort=max(template.min_cohort, 2 * subgroup.devices),
            subgroup=subgroup.labels,
        )
        if reason := query_objection(query, template, DeviceQueryLimits(min_cohort=2)):
            raise InputError(f"devices would refuse {query.id}: {reason}", remedy="Change the template.")
        made.append(query)
    return made


def _retrain(services: Services, tools: ActionTools, act: AutomatedAction, now: float) -> None:
    if tools.retrainer is None:
        _finish(services, act, "failed", "the project file does not say how to retrain", now)
    # In the store first: what was cut off is not begun again by itself.
    elif tools.retrainer.is_free() and services.store.actions.transition(
        act.id, ("granted",), "running", reason="it runs", at=now
    ):
        try:
            if not tools.retrainer.start(act.id):
                raise WorkError("another retraining runs", remedy="Wait for it.")
        except WorkError as error:
            _finish(services, act, "failed", error.message, now)


def finish_retraining(services: Services, tools: ActionTools, now: float) -> None:
    """Note what came of retraining that has ended, or that an earlier server left behind."""
    retrainer = tools.retrainer
    ended = None if retrainer is None else retrainer.poll()
    for act in services.store.actions.all("running"):
        if ended is not None and ended.action_id == act.id:
            state = "done" if ended.exit_code == 0 else "failed"
            _note_retraining(services, act, ended, now)
            _finish(
                services,
                act,
                state,
                f"exit code {ended.exit_code} after {ended.seconds:.0f} s, see {ended.log_file}",
                now,
            )
        elif retrainer is None or (retrainer.running != act.id and retrainer.is_free()):
            _finish(services, act, "failed", "the server was stopped while it ran", now)


def _note_retraining(services: Services, act: AutomatedAction, ended: RetrainingResult, now: float) -> None:
    store, subject = services.store, f"retraining/{act.device_class}"
    inputs = msgspec.Raw(msgspec.json.encode(ended))
    store.decisions.put(
        StoredDecision(
            subject,
            store.decisions.last_number(subject) + 1,
            now,
            "timed out" if ended.timed_out else "done" if ended.exit_code == 0 else "failed",
            f"exit code {ended.exit_code} after {ended.seconds:.0f} s",
            inputs,
        )
    )


def _finish(services: Services, act: AutomatedAction, state: str, reason: str, now: float) -> None:
    """Note what became of an act: in the audit log first, so that nothing is done without."""
    after = "done" if state == "done" else "refused" if state == "refused" else "failed"
    detail = {"id": act.id, "action": act.action, "alert": act.alert, "reason": reason[:500]}
    services.store.audit.write(_SERVER, f"action {after}", act.device_class, at=now, detail=detail)
    by = _SERVER if after == "refused" else ""
    services.store.actions.transition(
        act.id,
        ("waiting", "granted", "running"),
        after,  # type: ignore[arg-type] # one of three words
        reason=reason[:500],
        at=now,
        by=by,
    )
