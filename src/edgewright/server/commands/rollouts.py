"""What people do with rollouts on the server: begin one that the fleet can decide, pause it, abort it.

Everything is written into the audit log before it is done, and signed by the online key within the offline policy.
"""

import datetime
from collections.abc import Mapping
from typing import Literal

import msgspec

from edgewright.contract.api.operator_api import StartRollout
from edgewright.contract.errors import EdgewrightError, InputError
from edgewright.contract.rollout.plan import Plan, Policy
from edgewright.rollout import plan_transitions
from edgewright.rollout.comparison_design import watched
from edgewright.rollout.power_analysis import Feasibility, foresee
from edgewright.server.controller.online_key import online_keys
from edgewright.server.controller.stage_participants import SILENT, candidates, subject_of
from edgewright.server.services import Services
from edgewright.server.store.store import Store
from edgewright.trust.keys.signing_keys import KeyFolder
from edgewright.trust.publishing.publish import known_plan, known_policy, publish_plan, releases
from edgewright.trust.repository.repository import Repository

__all__ = ["Change", "Started", "alive_devices", "change", "observed_rates", "start"]

Change = Literal["advance", "pause", "resume", "abort"]
"""What a person may do with a rollout."""

# Fewer devices say little of how many fail.
_FEWEST = 100
_LONGEST_REASON = 500


class Started(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A rollout that has begun.

    Attributes:
        plan: As it was signed.
        devices: That it is for and that are alive.
        warnings: Why it may never be decided; empty if all is well.
    """

    plan: Plan
    devices: int
    warnings: tuple[str, ...]


def start(services: Services, request: StartRollout, who: str) -> Started:
    """Begin a rollout, if the fleet can decide it.

    Args:
        services: Of the server.
        request: What is wanted.
        who: For the audit log.

    Raises:
        InputError: No such release, another rollout is not over, the policy forbids it, or the fleet is too small.
        TrustError: The repository cannot be believed.
    """
    keys, now_s = online_keys(services), services.now()
    repository = services.repository()
    policy = known_policy(repository, request.model, request.device_class)
    before = known_plan(repository, request.model, request.device_class)
    published = dict(releases(repository, request.model))
    plan = plan_transitions.begin(
        request.model,
        request.device_class,
        plan_transitions.arms_of(request.model, [(arm.version, arm.weight) for arm in request.arms], published),
        request.stages,
        policy=policy,
        before=before,
        now=_moment(now_s),
        selector=request.selector,
        start=request.start,
        end=request.end,
        min_battery=request.min_battery,
        hours=request.hours,
        shadow=request.shadow,
        replace=request.replace,
    )
    if services.store.decisions.last_number(subject_of(plan)):
        raise InputError(
            f"there was a rollout {plan.rollout} before", remedy="Have the policy signed with another epoch."
        )
    devices, foreseen = _foreseen(services, plan, policy, before, now_s)
    if foreseen.verdict == "refuse" and not request.force:
        raise InputError(
            f"this fleet can never decide it, with {devices} devices that it is for: {'; '.join(foreseen.reasons)}",
            remedy="Widen the margins, begin with larger stages, keep a holdback, or force it and decide yourself.",
        )
    detail: dict[str, object] = {
        "releases": [arm.version for arm in plan.arms],
        "stages": [stage.fraction for stage in plan.stages],
    }
    if foreseen.verdict == "refuse":
        detail |= {"forced": list(foreseen.reasons)}
    _publish(services, repository, plan, keys=keys, who=who, action="rollout start", detail=detail)
    return Started(plan, devices, foreseen.reasons)


def change(services: Services, who: str, model: str, device_class: str, kind: Change, reason: str) -> Plan:
    """Advance, pause, resume or abort a rollout, and return it as it was signed.

    Raises:
        InputError: There is none, or it is not in a state for that.
        TrustError: The repository cannot be believed.
    """
    keys = online_keys(services)
    if len(reason) > _LONGEST_REASON:
        raise InputError(
            f"a reason of {len(reason)} letters", remedy=f"Say it in {_LONGEST_REASON}; more goes elsewhere."
        )
    repository = services.repository()
    before = known_plan(repository, model, device_class)
    if before is None:
        raise InputError(f"there is no rollout of {model} for {device_class}", remedy="Begin one.")
    plan = plan_transitions.CHANGES[kind](before, _moment(services.now()))
    detail: dict[str, object] = {"reason": reason, "stage": plan.stage}
    _publish(services, repository, plan, keys=keys, who=who, action=f"rollout {kind}", detail=detail)
    return plan


def alive_devices(store: Store, plan: Plan, policy: Policy, *, since_s: float) -> int:
    """Return how many devices a rollout compares of those that checked in since some moment."""
    return sum(device.seen_s >= since_s for page in candidates(store, plan, policy) for device in page)


def observed_rates(store: Store, plan: Plan, before: Plan | None) -> Mapping[str, float]:
    """Return the share of devices that fail in a stage by metric, as the control of the rollout before had it.

    Args:
        store: Of the fleet.
        plan: That is to begin.
        before: The one before it, None if there was none.

    Returns:
        Silence counts as a failure of each. Empty if too few devices were counted.
    """
    if before is None:
        return {}
    stages = range(before.stage + 1)
    told = [one for stage in stages for one in store.outcomes.tally(subject_of(before), stage) if not one.arm]
    devices = sum(tally.devices for tally in told)
    if devices < _FEWEST:
        return {}
    # One failure more than was seen (Laplace): none among a hundred does not mean never.
    return {
        metric: (1 + sum(tally.devices for tally in told if {metric, SILENT} & {*tally.failed})) / (devices + 2)
        for metric in watched(plan)
    }


def _foreseen(
    services: Services, plan: Plan, policy: Policy | None, before: Plan | None, now_s: float
) -> tuple[int, Feasibility]:
    """Return how many devices take part, and whether they are enough."""
    if policy is None:  # refused when it is published
        return 0, Feasibility("fine", (), ())
    looking = services.fleet.looking
    devices = alive_devices(services.store, plan, policy, since_s=now_s - looking.silent_s)
    rates = observed_rates(services.store, plan, before)
    return devices, foresee(plan, policy, devices, rates=rates, alpha=looking.alpha)


def _publish(
    services: Services,
    repository: Repository,
    plan: Plan,
    *,
    keys: KeyFolder,
    who: str,
    action: str,
    detail: dict[str, object],
) -> None:
    """Write down what is about to be done, do it, and write down if it was not."""
    store, subject = services.store, subject_of(plan)
    store.audit.write(who, action, subject, at_s=services.now(), detail=detail | {"counter": plan.counter})
    try:
        publish_plan(repository, keys, plan)
    except EdgewrightError as error:
        store.audit.write(
            who,
            f"{action} failed",
            subject,
            at_s=services.now(),
            detail={"counter": plan.counter, "error": str(error)},
        )
        raise


def _moment(at_s: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(at_s, datetime.UTC)
