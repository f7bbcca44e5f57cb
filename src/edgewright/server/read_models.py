"""What operators see of the fleet: the store's and the repository's records, as people want them."""

from typing import Any

import msgspec

from edgewright.contract.api.device_status import DeviceStatus
from edgewright.contract.release import Manifest
from edgewright.contract.rollout.decision import CONTROL_ARM
from edgewright.contract.rollout.plan import RolloutPlan, RolloutPolicy
from edgewright.contract.schema import decode_record
from edgewright.server.controller.signed_plans import all_plans
from edgewright.server.controller.stage_participants import assigned_arm_version, participants
from edgewright.server.errors import NotFoundError
from edgewright.server.metrics import ALERTS, DEVICES, ROLLOUT_STAGE
from edgewright.server.services import Services
from edgewright.server.store.records import (
    Alert,
    DeviceGroupCount,
    JobState,
    ProfilingJob,
    QueryState,
    StoredAlertState,
    StoredDevice,
    StoredQuery,
)
from edgewright.trust.publishing.publish import current_plan, current_policy, list_releases
from edgewright.trust.target_paths import release_path

__all__ = [
    "AlertSummary",
    "ArmSummary",
    "DecisionSummary",
    "DeviceSummary",
    "FleetSummary",
    "JobSummary",
    "PendingAction",
    "QuerySummary",
    "RolloutSummary",
    "alert_summary",
    "arm_summaries",
    "device_summary",
    "find_decision",
    "find_plan",
    "find_policy",
    "find_release",
    "fleet_summary",
    "job_summary",
    "list_decisions",
    "list_models",
    "query_summary",
    "update_gauges",
]


class DeviceSummary(msgspec.Struct, frozen=True):
    """A device.

    Attributes:
        id: Its name.
        public_key: Its Ed25519 key, hexadecimal; what a list of enrolled devices holds.
        device_class: Its own.
        enrolled_at: When, seconds since 1970, UTC; likewise below.
        last_seen_at: When it checked in last, 0 for never.
        labels: By which rollouts select.
        channel: By which rollouts select, "" for none.
        profiling: Whether it takes profiling jobs.
        arm: Version that it was assigned last, "" for what it had.
        status: What it said last.
        retired_at: Since when it is not believed any more.
    """

    id: str
    public_key: str
    device_class: str
    enrolled_at: float
    last_seen_at: float
    labels: dict[str, str]
    channel: str
    profiling: bool
    arm: str
    status: DeviceStatus
    retired_at: float | None = None


class RolloutSummary(msgspec.Struct, frozen=True):
    """A rollout in one line.

    Attributes:
        model: Which.
        device_class: Which.
        rollout: Its name.
        versions: Of its arms.
        state: Of the rollout.
        stage: Which it is at, from 0.
        stages: How many there are.
        fraction: Of the devices at that stage.
        verdict: Of the last decision, "" if there was none.
        decided_at: When that was; None if there was none.
    """

    model: str
    device_class: str
    rollout: str
    versions: tuple[str, ...]
    state: str
    stage: int
    stages: int
    fraction: float
    verdict: str = ""
    decided_at: float | None = None


class FleetSummary(msgspec.Struct, frozen=True):
    """The fleet at a glance.

    Attributes:
        at: When this was so.
        devices: That are enrolled and not retired, and have checked in at least once.
        offline: Of these, how many have not checked in for `offline_seconds`.
        offline_seconds: What counts as offline.
        groups: How many devices are alike.
        rollouts: In a line each.
        firing: Alerts that fire.
        pending_actions: Actions that wait for somebody.
    """

    at: float
    devices: int
    offline: int
    offline_seconds: float
    groups: tuple[DeviceGroupCount, ...]
    rollouts: tuple[RolloutSummary, ...]
    firing: int
    pending_actions: int = 0


class ArmSummary(msgspec.Struct, frozen=True):
    """Devices of one arm of a rollout at its stage.

    Attributes:
        version: That they are assigned, "" for what they have: the control and the holdback.
        devices: Assigned, whatever they run.
        online: Of these, how many are not offline.
    """

    version: str
    devices: int
    online: int


class DecisionSummary(msgspec.Struct, frozen=True):
    """A decision, without what it was made from.

    Attributes:
        subject: What it is about.
        number: Counts a subject's decisions from 1.
        at: When.
        verdict: In a word.
        reason: In a sentence.
    """

    subject: str
    number: int
    at: float
    verdict: str
    reason: str


class QuerySummary(msgspec.Struct, frozen=True):
    """A question to the fleet.

    Attributes:
        id: Of the query.
        model: That it is about.
        device_class: Whose devices are asked.
        state: Open until there is a result or there will be none.
        query: As it is signed.
        template: That permits it.
        asked_at: When.
        rho: What an answer costs each device that gives one, in zCDP.
        ended_at: When the state became another.
        devices: In the sum.
        result: The sum and what it says.
    """

    id: str
    model: str
    device_class: str
    state: QueryState
    query: dict[str, Any]
    template: dict[str, Any]
    asked_at: float
    rho: float
    ended_at: float | None = None
    devices: int | None = None
    result: dict[str, Any] | None = None


class JobSummary(msgspec.Struct, frozen=True):
    """A profiling job.

    Attributes:
        id: Of the job.
        device_id: Who does it.
        kind: What is to be done.
        state: Where it stands.
        created_by: Who wants it.
        created_at: Since when.
        ended_at: When it was done or had failed.
        attempts: How often it was given out.
        request_bytes: Of the request.
    """

    id: str
    device_id: str
    kind: str
    state: JobState
    created_by: str
    created_at: float
    ended_at: float | None
    attempts: int
    request_bytes: int


class AlertSummary(msgspec.Struct, frozen=True):
    """How an alert's rule stands.

    Attributes:
        rule: Its name.
        subject: What it watches.
        state: Pending until it has held long enough.
        since: Since when it is in that state, seconds since 1970, UTC; likewise below.
        at: When it was judged last.
        message: For people.
        inputs: What it was judged from.
        silenced_until: Nobody is told before.
    """

    rule: str
    subject: str
    state: StoredAlertState
    since: float
    at: float
    message: str
    inputs: Any
    silenced_until: float | None


class PendingAction(msgspec.Struct, frozen=True):
    """An action that waits for somebody's approval.

    Attributes:
        id: Of the item.
        action: What would be done.
        subject: Device class or rollout.
        reason: Why.
        at: Since when it waits.
    """

    id: str
    action: str
    subject: str
    reason: str
    at: float


def fleet_summary(services: Services) -> FleetSummary:
    """Return the fleet at a glance."""
    store, now, offline_seconds = (
        services.store,
        services.now(),
        services.fleet_config.monitoring.offline_after_seconds,
    )
    groups = store.devices.groups(seen_since=1.0)
    heard = store.devices.groups(seen_since=now - offline_seconds)
    total = sum(group.devices for group in groups)
    return FleetSummary(
        at=now,
        devices=total,
        offline=total - sum(group.devices for group in heard),
        offline_seconds=offline_seconds,
        groups=tuple(groups),
        rollouts=tuple(_rollout_summary(services, each) for each in all_plans(services)),
        firing=len(store.alerts.all("firing")),
    )


def _rollout_summary(services: Services, plan: RolloutPlan) -> RolloutSummary:
    last = services.store.decisions.for_subject(f"{plan.model}/{plan.device_class}/{plan.rollout}")[-1:]
    return RolloutSummary(
        model=plan.model,
        device_class=plan.device_class,
        rollout=plan.rollout,
        versions=tuple(arm.version for arm in plan.arms),
        state=plan.state,
        stage=plan.stage,
        stages=len(plan.stages),
        fraction=plan.fraction,
        verdict=last[0].verdict if last else "",
        decided_at=last[0].at if last else None,
    )


def device_summary(device: StoredDevice) -> DeviceSummary:
    """Return a device as operators see it."""
    return DeviceSummary(
        id=device.id,
        public_key=device.public_key.hex(),
        device_class=device.device_class,
        enrolled_at=device.enrolled_at,
        last_seen_at=device.last_seen_at,
        labels=device.labels,
        channel=device.channel,
        profiling=device.profiling,
        arm=device.arm,
        status=device.status,
        retired_at=device.retired_at,
    )


def query_summary(kept: StoredQuery) -> QuerySummary:
    """Return a question as operators see it."""
    return QuerySummary(
        id=kept.id,
        model=kept.model,
        device_class=kept.device_class,
        state=kept.state,
        query=msgspec.json.decode(kept.body),
        template=msgspec.json.decode(kept.template),
        asked_at=kept.asked_at,
        rho=kept.rho,
        ended_at=kept.ended_at,
        devices=kept.devices,
        result=None if kept.result is None else msgspec.json.decode(kept.result),
    )


def alert_summary(alert: Alert) -> AlertSummary:
    """Return an alert as operators see it."""
    return AlertSummary(
        rule=alert.rule,
        subject=alert.subject,
        state=alert.state,
        since=alert.since,
        at=alert.at,
        message=alert.message,
        inputs=msgspec.json.decode(alert.inputs),
        silenced_until=alert.silenced_until,
    )


def job_summary(job: ProfilingJob) -> JobSummary:
    """Return a job as operators see it."""
    return JobSummary(
        id=job.id,
        device_id=job.device_id,
        kind=job.kind,
        state=job.state,
        created_by=job.created_by,
        created_at=job.created_at,
        ended_at=job.ended_at,
        attempts=job.attempts,
        request_bytes=len(job.request),
    )


def update_gauges(services: Services) -> None:
    """Set the metrics that are counted only when somebody looks: devices, alerts, stages of rollouts."""
    DEVICES.clear()
    for group in services.store.devices.groups(seen_since=1.0):
        DEVICES.labels(group.device_class, group.version, group.state).inc(group.devices)
    ALERTS.clear()
    severities = {rule.name: rule.severity for rule in services.fleet_config.alerts}
    for alert in services.store.alerts.all("firing"):
        ALERTS.labels(alert.rule, severities.get(alert.rule, "warning")).inc()
    ROLLOUT_STAGE.clear()
    for each in all_plans(services):
        ROLLOUT_STAGE.labels(each.model, each.device_class).set(each.stage)


def list_models(services: Services) -> dict[str, list[str]]:
    """Return the versions of each model, in order.

    Raises:
        TrustError: The repository cannot be believed.
    """
    repository = services.repository()
    spread = repository.bin_delegations()
    found: set[str] = set()
    for name in () if spread is None else spread.get_roles():
        metadata = repository.role(name)
        for path in () if metadata is None else metadata.signed.targets:
            if path.startswith("releases/"):
                found.add(path.split("/")[1])
    return {model: [version for version, _ in list_releases(repository, model)] for model in sorted(found)}


def find_release(services: Services, model: str, version: str) -> Manifest:
    """Return the manifest of a release.

    Raises:
        MissingError: There is none.
        TrustError: The repository cannot be believed.
    """
    repository = services.repository()
    path = release_path(model, version)
    content = repository.read_target(repository.bin_of(path), path)
    if content is None:
        raise NotFoundError(f"{model} {version} is not published", remedy="List the releases.")
    return decode_record(content, type=Manifest)


def find_plan(services: Services, model: str, device_class: str) -> RolloutPlan:
    """Return the rollout of a model for a device class.

    Raises:
        MissingError: There is none.
    """
    found = current_plan(services.repository(), model, device_class)
    if found is None:
        raise NotFoundError(f"there is no rollout of {model} for {device_class}", remedy="List the rollouts.")
    return found


def find_policy(services: Services, model: str, device_class: str) -> RolloutPolicy:
    """Return the policy of a model for a device class.

    Raises:
        MissingError: There is none.
    """
    found = current_policy(services.repository(), model, device_class)
    if found is None:
        raise NotFoundError(f"there is no policy for {model} on {device_class}", remedy="Publish a release first.")
    return found


def arm_summaries(services: Services, model: str, device_class: str) -> list[ArmSummary]:
    """Return how many devices each arm of a rollout has, the control first.

    Raises:
        MissingError: There is no such rollout.
    """
    found, allowed = find_plan(services, model, device_class), find_policy(services, model, device_class)
    last_seen_at = services.now() - services.fleet_config.monitoring.offline_after_seconds
    counts = {CONTROL_ARM: [0, 0]} | {arm: [0, 0] for arm in range(len(found.arms))}
    for page in participants(services.store, found, allowed):
        for device in page:
            count = counts[assigned_arm_version(found, allowed, device.id)]
            count[0] += 1
            count[1] += device.last_seen_at >= last_seen_at
    return [
        ArmSummary("" if arm == CONTROL_ARM else found.arms[arm].version, *count) for arm, count in counts.items()
    ]


def list_decisions(services: Services, subject: str, limit: int) -> list[DecisionSummary]:
    """Return decisions about a subject, or about anything if it is ""; the newest first."""
    store = services.store
    found = store.decisions.for_subject(subject)[::-1][:limit] if subject else store.decisions.latest(limit=limit)
    return [DecisionSummary(one.subject, one.number, one.at, one.verdict, one.reason) for one in found]


def find_decision(services: Services, subject: str, number: int) -> dict[str, Any]:
    """Return a decision with all that it was made from.

    Raises:
        MissingError: There is none.
    """
    for one in services.store.decisions.for_subject(subject):
        if one.number == number:
            shown = DecisionSummary(one.subject, one.number, one.at, one.verdict, one.reason)
            return msgspec.structs.asdict(shown) | {"decision": msgspec.json.decode(one.inputs)}
    raise NotFoundError(f"there is no decision {number} about {subject[:200]}", remedy="List the decisions.")
