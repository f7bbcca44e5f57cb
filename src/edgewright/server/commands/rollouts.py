"""What people do with rollouts on the server: begin one that the fleet can decide, pause it, abort it.

Everything is written into the audit log before it is done, and signed by the online key within the offline policy.
"""

import datetime
from collections.abc import Mapping
from typing import Literal

import msgspec

from edgewright.contract.api.operator_api import StartRollout
from edgewright.contract.errors import EdgewrightError, InputError
from edgewright.contract.rollout.plan import RolloutPlan, RolloutPolicy
from edgewright.rollout import plan_transitions
from edgewright.rollout.comparison_design import stopping_metrics
from edgewright.rollout.power_analysis import Feasibility, assess_feasibility
from edgewright.server.controller.online_key import online_keys
from edgewright.server.controller.stage_participants import OFFLINE_METRIC, participants, rollout_subject
from edgewright.server.services import Services
from edgewright.server.store.store import FleetStore
from edgewright.trust.keys.signing_keys import KeyFolder
from edgewright.trust.publishing.publish import current_plan, current_policy, list_releases, publish_plan
from edgewright.trust.repository.repository import Repository

__all__ = [
    "RolloutChange",
    "StartedRollout",
    "change_rollout",
    "count_online_devices",
    "observed_rates",
    "start_rollout",
]

RolloutChange = Literal["advance", "pause", "resume", "abort"]
"""What a person may do with a rollout."""

# Fewer devices say little of how many fail.
_MIN_OBSERVED = 100
_MAX_REASON = 500


class StartedRollout(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A rollout that has begun.

    Attributes:
        plan: As it was signed.
        devices: That it is for and that are alive.
        warnings: Why it may never be decided; empty if all is well.
    """

    plan: RolloutPlan
    devices: int
    warnings: tuple[str, ...]


def start_rollout(services: Services, request: StartRollout, principal: str) -> StartedRollout:
    """Begin a rollout, if the fleet can decide it.

    Args:
        services: Of the server.
        request: What is wanted.
        principal: For the audit log.

    Raises:
        InputError: No such release, another rollout is not over, the policy forbids it, or the fleet is too small.
        TrustError: The repository cannot be believed.
    """
    keys, now = online_keys(services), services.now()
    repository = services.repository()
    policy = current_policy(repository, request.model, request.device_class)
    before = current_plan(repository, request.model, request.device_class)
    published = dict(list_releases(repository, request.model))
    plan = plan_transitions.begin_plan(
        request.model,
        request.device_class,
        plan_transitions.resolve_arms(
            request.model, [(arm.version, arm.weight) for arm in request.arms], published
        ),
        request.stages,
        policy=policy,
        before=before,
        now=_to_datetime(now),
        selector=request.selector,
        start_at=request.start_at,
        end_at=request.end_at,
        min_battery_level=request.min_battery_level,
        install_hours=request.hours,
        shadow_mode=request.shadow,
        replace=request.replace,
    )
    if services.store.decisions.last_number(rollout_subject(plan)):
        raise InputError(
            f"there was a rollout {plan.rollout} before", remedy="Have the policy signed with another epoch."
        )
    devices, foreseen = _assess(services, plan, policy, before, now)
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
    _publish(services, repository, plan, keys=keys, principal=principal, action="rollout start", detail=detail)
    return StartedRollout(plan, devices, foreseen.reasons)


def change_rollout(
    services: Services, principal: str, model: str, device_class: str, kind: RolloutChange, reason: str
) -> RolloutPlan:
    """Advance, pause, resume or abort a rollout, and return it as it was signed.

    Raises:
        InputError: There is none, or it is not in a state for that.
        TrustError: The repository cannot be believed.
    """
    keys = online_keys(services)
    if len(reason) > _MAX_REASON:
        raise InputError(
            f"a reason of {len(reason)} letters", remedy=f"Say it in {_MAX_REASON}; more goes elsewhere."
        )
    repository = services.repository()
    before = current_plan(repository, model, device_class)
    if before is None:
        raise InputError(f"there is no rollout of {model} for {device_class}", remedy="Begin one.")
    plan = plan_transitions.PLAN_CHANGES[kind](before, _to_datetime(services.now()))
    detail: dict[str, object] = {"reason": reason, "stage": plan.stage}
    _publish(services, repository, plan, keys=keys, principal=principal, action=f"rollout {kind}", detail=detail)
    return plan


def count_online_devices(store: FleetStore, plan: RolloutPlan, policy: RolloutPolicy, *, since: float) -> int:
    """Return how many devices a rollout compares of those that checked in since some moment."""
    return sum(device.last_seen_at >= since for page in participants(store, plan, policy) for device in page)


def observed_rates(store: FleetStore, plan: RolloutPlan, before: RolloutPlan | None) -> Mapping[str, float]:
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
    told = [one for stage in stages for one in store.outcomes.counts(rollout_subject(before), stage) if not one.arm]
    devices = sum(tally.devices for tally in told)
    if devices < _MIN_OBSERVED:
        return {}
    # One failure more than was seen (Laplace): none among a hundred does not mean never.
    return {
        metric: (1 + sum(tally.devices for tally in told if {metric, OFFLINE_METRIC} & {*tally.failed}))
        / (devices + 2)
        for metric in stopping_metrics(plan)
    }


def _assess(
    services: Services, plan: RolloutPlan, policy: RolloutPolicy | None, before: RolloutPlan | None, now: float
) -> tuple[int, Feasibility]:
    """Return how many devices take part, and whether they are enough."""
    if policy is None:  # refused when it is published
        return 0, Feasibility("fine", (), ())
    looking = services.fleet_config.monitoring
    devices = count_online_devices(services.store, plan, policy, since=now - looking.offline_after_seconds)
    rates = observed_rates(services.store, plan, before)
    return devices, assess_feasibility(plan, policy, devices, rates=rates, alpha=looking.alpha)


def _publish(
    services: Services,
    repository: Repository,
    plan: RolloutPlan,
    *,
    keys: KeyFolder,
    principal: str,
    action: str,
    detail: dict[str, object],
) -> None:
    """Write down what is about to be done, do it, and write down if it was not."""
    store, subject = services.store, rollout_subject(plan)
    store.audit.write(principal, action, subject, at=services.now(), detail=detail | {"counter": plan.counter})
    try:
        publish_plan(repository, keys, plan)
    except EdgewrightError as error:
        store.audit.write(
            principal,
            f"{action} failed",
            subject,
            at=services.now(),
            detail={"counter": plan.counter, "error": str(error)},
        )
        raise


def _to_datetime(at: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(at, datetime.UTC)
