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

from edgewright.contract.alert import Action, AlertRule
from edgewright.contract.errors import EdgewrightError, InputError, WorkError
from edgewright.contract.query.query import Limits, Query
from edgewright.contract.schema import decode_record
from edgewright.contract.timestamps import time_of
from edgewright.fleet.action_policy import Done, Wish, decide
from edgewright.fleet.drill_down import Asking, narrow
from edgewright.privacy.accountant import epsilon_of
from edgewright.privacy.private_sum import objection
from edgewright.privacy.query_calibration import question
from edgewright.server.alerting.retraining import Ended, Retrainer
from edgewright.server.controller.online_key import online_keys
from edgewright.server.services import Services
from edgewright.server.store.records import Act, AlertChange, Decision, Position
from edgewright.trust.publishing.publish import releases
from edgewright.trust.publishing.signed_queries import ask, known_permit, known_questions
from edgewright.trust.repository.metadata_rules import ROLLOUTS

__all__ = ["Acting", "Tools", "approve", "awaiting", "begin", "do_granted", "end_retraining", "refuse", "wish"]

_LOG = logging.getLogger("edgewright.watching")
_READER = "acts"
_SERVER = "server"
_MONTH_S = 31 * 86400.0
_APPROVAL_S = 7 * 86400.0
_TRIED_S = 3600.0
_EPSILON = 1.0


class Acting(Protocol):
    """Who changes rollouts; saying the same again does no harm."""

    def pause(self, model: str, device_class: str, reason: str) -> bool:
        """Have a rollout advance no further, and return whether there was one that did."""

    def abort(self, model: str, device_class: str, reason: str) -> bool:
        """Take a rollout back, and return whether there was one."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What acts are done with.

    Attributes:
        acting: Changes rollouts.
        retrainer: Retrains, None if the project file does not say how.
    """

    acting: Acting
    retrainer: Retrainer | None = None


def awaiting(services: Services) -> list[Act]:
    """Return what waits for somebody's approval, the newest first."""
    return services.store.acts.all("waiting", limit=1000)


def approve(services: Services, who: str, act_id: str) -> Act:
    """Have an act done; the caller has seen to it that this person may.

    Args:
        services: Of the server.
        who: As the audit log names them.
        act_id: Of an act that waits.

    Raises:
        InputError: It does not wait.
    """
    return _settled(services, who, act_id, granted=True, why=f"{who} approved")


def refuse(services: Services, who: str, act_id: str, why: str = "") -> Act:
    """Have an act not done; as `approve`."""
    return _settled(services, who, act_id, granted=False, why=f"{who} refused" + (f": {why}" if why else ""))


def _settled(services: Services, who: str, act_id: str, *, granted: bool, why: str) -> Act:
    store, now_s = services.store, services.now()
    moved = store.acts.move(
        act_id, ("waiting",), "granted" if granted else "refused", why=why[:500], at_s=now_s, by=who
    )
    act = store.acts.get(act_id)
    if act is None or not moved:
        state = "not there" if act is None else act.state
        raise InputError(f"action {act_id[:80]!r} is {state}", remedy="List what waits for approval.")
    store.audit.write(
        who,
        "approve action" if granted else "refuse action",
        act.subject,
        at_s=now_s,
        detail={"id": act_id, "action": act.action, "alert": act.alert, "why": why[:500]},
    )
    return act


def begin(services: Services) -> None:
    """Note where the reader of changes begins, if it is new: what fired before it watched sets off nothing."""
    if services.store.positions.get(_READER) is None:
        services.store.positions.put(Position(_READER, services.store.alerts.last_change()))


def wish(services: Services, now_s: float) -> None:
    """Take up what fired since, and decide what of it may be done."""
    store = services.store
    rules = {rule.name: rule for rule in services.fleet.alerts}
    at = store.positions.get(_READER) or Position(_READER, 0)
    while changes := store.alerts.changes_after(at.number):
        for change in changes:
            rule = rules.get(change.rule)
            # One that fires on after a silence has fired before.
            if rule is not None and change.after == "firing" and change.before != "silenced":
                for action in rule.actions:
                    if action != "notify":
                        _want(services, change, rule, action, now_s)
        at = Position(_READER, changes[-1].number)
        store.positions.put(at)


def _want(services: Services, change: AlertChange, rule: AlertRule, action: Action, now_s: float) -> None:
    store = services.store
    act_id = f"{change.number}-{action.replace(' ', '-')}"
    if store.acts.get(act_id) is not None:
        return
    subject = f"action/{change.subject}/{action}"
    known = store.decisions.of(subject)
    before = msgspec.json.decode(known[-1].inputs, type=Wish) if known else None
    # Decided already, by a server that was stopped before it went on: what was decided stays.
    again = before is not None and before.item == act_id
    asked = before if again and before else _wish(services, act_id, change.subject, rule.name, action, now_s)
    permission = decide(asked)
    verdict = "grant" if permission.granted else "ask" if permission.asks else "refuse"
    if not again:
        inputs = msgspec.Raw(msgspec.json.encode(asked))
        store.decisions.put(Decision(subject, len(known) + 1, now_s, verdict, permission.why, inputs))
    store.audit.write(
        _SERVER,
        f"{verdict} action",
        change.subject,
        at_s=now_s,
        detail={"id": act_id, "action": action, "alert": rule.name, "why": permission.why},
    )
    act = Act(
        id=act_id,
        action=action,
        subject=change.subject,
        alert=rule.name,
        reason=change.message,
        state="waiting",
        why=permission.why,
        asked_s=now_s,
    )
    if verdict == "grant":
        act = msgspec.structs.replace(act, state="granted", decided_s=now_s, decided_by=_SERVER)
    elif verdict == "refuse":
        act = msgspec.structs.replace(act, state="refused", decided_by=_SERVER, ended_s=now_s)
    store.acts.add(act)


def _wish(services: Services, act_id: str, about: str, alert: str, action: Action, now_s: float) -> Wish:
    policies = services.fleet.actions
    longest_s = max([_MONTH_S, *(policy.cooldown_s for policy in policies)])
    # What is dated ahead counts too: a clock was set back.
    granted = services.store.acts.granted_since(now_s - longest_s)
    history = tuple(
        Done(act.action, act.subject, act.decided_s) for act in granted if act.decided_s and act.action == action
    )
    waiting = any((act.action, act.subject) == (action, about) for act in awaiting(services))
    return Wish(
        item=act_id,
        action=action,
        about=about,
        alert=alert,
        policies=policies,
        history=history,
        now_s=now_s,
        waiting=waiting,
    )


def do_granted(services: Services, tools: Tools, now_s: float) -> None:
    """Do what is granted, and let go what waited for approval for too long."""
    acts = services.store.acts
    for act in awaiting(services):
        if now_s - act.asked_s > _APPROVAL_S:
            _end(services, act, "refused", f"nobody answered in {_APPROVAL_S / 86400:g} days", now_s)
    for act in acts.all("granted", limit=1000)[::-1]:
        try:
            if act.action == "retrain":
                _retrain(services, tools, act, now_s)
            else:
                _end(services, act, *_done(services, tools, act, now_s), now_s)
        except InputError as error:
            _end(services, act, "failed", error.message, now_s)
        except (EdgewrightError, OSError) as error:
            if now_s - (act.decided_s or 0.0) > _TRIED_S:
                _end(services, act, "failed", str(error), now_s)
            else:
                _LOG.warning("%s of %s is tried again: %s", act.action, act.subject, error)


def _done(services: Services, tools: Tools, act: Act, now_s: float) -> tuple[str, str]:
    """Return what became of an act, and why."""
    reason = f"alert {act.reason}"
    if act.action == "ask":
        return _ask(services, act, now_s)
    change: Callable[[str, str, str], bool] = tools.acting.pause if act.action == "pause" else tools.acting.abort
    changed = [model for model in _models(services, act.subject) if change(model, act.subject, reason)]
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


def _ask(services: Services, act: Act, now_s: float) -> tuple[str, str]:
    """Ask the fleet by subgroup; queries have names of the act, so that none is asked twice."""
    store, device_class = services.store, act.subject
    repository, keys = services.repository(), online_keys(services)
    running: dict[tuple[str, str], int] = {}
    for group in store.devices.groups():
        if group.device_class == device_class and group.model:
            key = (group.model, group.version)
            running[key] = running.get(key, 0) + group.devices
    if not running:
        return "failed", f"no device of {device_class} runs a model"
    model, version = max(running, key=lambda key: (running[key], key))
    permit = known_permit(repository, model, device_class)
    labels = {label for template in (permit.templates if permit else ()) for label in template.subgroups}
    known = {each.id: each for each in known_questions(repository, model, device_class).queries}
    mine = {name: each for name, each in known.items() if name.startswith(f"alert-{act.id}-")}
    asked_s: dict[str, float] = {}
    recent = (*store.sums.all("open"), *store.sums.done_since(now_s - _MONTH_S))
    for kept in recent:
        asked = decode_record(kept.body, type=Query)
        if kept.device_class == device_class and asked.id not in mine:
            asked_s[asked.template] = max(kept.asked_s, asked_s.get(asked.template, 0.0))
    found = narrow(
        permit,
        sum(count for (name, _), count in running.items() if name == model),
        {label: store.devices.label_counts(device_class, label) for label in labels},
        asked_s,
        now_s=act.decided_s or now_s,
    )
    if isinstance(found, str):
        return "failed", f"nothing can be asked: {found}"
    digest = dict(releases(repository, model)).get(version, "")
    for query in known.values():  # 64 at most are live, and nobody answers these any more
        if query.id.startswith("alert-") and time_of(query.deadline).timestamp() < now_s:
            ask(repository, keys, model, device_class, without=query.id)
    names = []
    for query in _queries(found, act, digest):
        names.append(query.id)
        if query.id not in mine:
            ask(repository, keys, model, device_class, query=query)
        store.sums.ask(mine.get(query.id, query), found.template, model, now_s=now_s)
    return "done", f"asked {', '.join(names)}"


def _queries(asking: Asking, act: Act, release: str) -> list[Query]:
    template = asking.template
    # A hair below, for the two formulas round.
    epsilon = min(_EPSILON, 0.999 * epsilon_of(template.dearest_rho, template.delta))
    made = []
    for number, subgroup in enumerate(asking.subgroups):
        query = question(
            template,
            name=f"alert-{act.id}-{number}",
            window=(asking.start, asking.end),
            deadline=asking.deadline,
            release=release,
            epsilon=epsilon,
            seed=os.urandom(32).hex(),
            backend=template.backends[0],
            cohort=template.min_cohort,
            largest=max(template.min_cohort, 2 * subgroup.devices),
            subgroup=subgroup.labels,
        )
        if reason := objection(query, template, Limits(least_cohort=2)):
            raise InputError(f"devices would refuse {query.id}: {reason}", remedy="Change the template.")
        made.append(query)
    return made


def _retrain(services: Services, tools: Tools, act: Act, now_s: float) -> None:
    if tools.retrainer is None:
        _end(services, act, "failed", "the project file does not say how to retrain", now_s)
    # In the store first: what was cut off is not begun again by itself.
    elif tools.retrainer.is_free() and services.store.acts.move(
        act.id, ("granted",), "running", why="it runs", at_s=now_s
    ):
        try:
            if not tools.retrainer.start(act.id):
                raise WorkError("another retraining runs", remedy="Wait for it.")
        except WorkError as error:
            _end(services, act, "failed", error.message, now_s)


def end_retraining(services: Services, tools: Tools, now_s: float) -> None:
    """Note what came of retraining that has ended, or that an earlier server left behind."""
    retrainer = tools.retrainer
    ended = None if retrainer is None else retrainer.poll()
    for act in services.store.acts.all("running"):
        if ended is not None and ended.act == act.id:
            state = "done" if ended.code == 0 else "failed"
            _note_retraining(services, act, ended, now_s)
            _end(
                services, act, state, f"exit code {ended.code} after {ended.seconds:.0f} s, see {ended.log}", now_s
            )
        elif retrainer is None or (retrainer.running != act.id and retrainer.is_free()):
            _end(services, act, "failed", "the server was stopped while it ran", now_s)


def _note_retraining(services: Services, act: Act, ended: Ended, now_s: float) -> None:
    store, subject = services.store, f"retraining/{act.subject}"
    inputs = msgspec.Raw(msgspec.json.encode(ended))
    store.decisions.put(
        Decision(
            subject,
            store.decisions.last_number(subject) + 1,
            now_s,
            "timed out" if ended.timed_out else "done" if ended.code == 0 else "failed",
            f"exit code {ended.code} after {ended.seconds:.0f} s",
            inputs,
        )
    )


def _end(services: Services, act: Act, state: str, why: str, now_s: float) -> None:
    """Note what became of an act: in the audit log first, so that nothing is done without."""
    after = "done" if state == "done" else "refused" if state == "refused" else "failed"
    detail = {"id": act.id, "action": act.action, "alert": act.alert, "why": why[:500]}
    services.store.audit.write(_SERVER, f"action {after}", act.subject, at_s=now_s, detail=detail)
    by = _SERVER if after == "refused" else ""
    services.store.acts.move(
        act.id,
        ("waiting", "granted", "running"),
        after,  # type: ignore[arg-type] # one of three words
        why=why[:500],
        at_s=now_s,
        by=by,
    )
