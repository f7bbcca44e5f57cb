"""What operators see of the fleet: the store's and the repository's records, as people want them."""

from typing import Any

import msgspec

from edgewright.contract.api.device_status import Status
from edgewright.contract.release import Manifest
from edgewright.contract.rollout.decision import CONTROL
from edgewright.contract.rollout.plan import Plan, Policy
from edgewright.contract.schema import decode_record
from edgewright.server.controller.signed_plans import all_plans
from edgewright.server.controller.stage_participants import arm_in, candidates
from edgewright.server.errors import MissingError
from edgewright.server.metrics import ALERTS, DEVICES, ROLLOUT_STAGE
from edgewright.server.services import Services
from edgewright.server.store.records import Alert, AlertState, Device, Group, Job, JobState, KeptQuery, QueryState
from edgewright.trust.publishing.publish import known_plan, known_policy, releases
from edgewright.trust.target_paths import release_path

__all__ = [
    "AlertShown",
    "Awaiting",
    "CohortShown",
    "DecisionShown",
    "DeviceShown",
    "FleetShown",
    "JobShown",
    "QueryShown",
    "RolloutShown",
    "cohorts",
    "decision",
    "decisions",
    "gauge",
    "models",
    "overview",
    "plan",
    "policy",
    "release",
    "shown_alert",
    "shown_device",
    "shown_job",
    "shown_query",
]


class DeviceShown(msgspec.Struct, frozen=True):
    """A device.

    Attributes:
        id: Its name.
        public: Its Ed25519 key, hexadecimal; what a list of enrolled devices holds.
        device_class: Its own.
        enrolled_s: When, seconds since 1970, UTC; likewise below.
        seen_s: When it checked in last, 0 for never.
        labels: By which rollouts select.
        channel: By which rollouts select, "" for none.
        bench: Whether it takes profiling jobs.
        arm: Version that it was assigned last, "" for what it had.
        status: What it said last.
        retired_s: Since when it is not believed any more.
    """

    id: str
    public: str
    device_class: str
    enrolled_s: float
    seen_s: float
    labels: dict[str, str]
    channel: str
    bench: bool
    arm: str
    status: Status
    retired_s: float | None = None


class RolloutShown(msgspec.Struct, frozen=True):
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
        decided_s: When that was; None if there was none.
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
    decided_s: float | None = None


class FleetShown(msgspec.Struct, frozen=True):
    """The fleet at a glance.

    Attributes:
        at_s: When this was so.
        devices: That are enrolled and not retired, and have checked in at least once.
        silent: Of these, how many have not checked in for `silent_s`.
        silent_s: What counts as silent.
        groups: How many devices are alike.
        rollouts: In a line each.
        firing: Alerts that fire.
        awaiting: Actions that wait for somebody.
    """

    at_s: float
    devices: int
    silent: int
    silent_s: float
    groups: tuple[Group, ...]
    rollouts: tuple[RolloutShown, ...]
    firing: int
    awaiting: int = 0


class CohortShown(msgspec.Struct, frozen=True):
    """Devices of one arm of a rollout at its stage.

    Attributes:
        version: That they are assigned, "" for what they have: the control and the holdback.
        devices: Assigned, whatever they run.
        alive: Of these, how many are not silent.
    """

    version: str
    devices: int
    alive: int


class DecisionShown(msgspec.Struct, frozen=True):
    """A decision, without what it was made from.

    Attributes:
        subject: What it is about.
        number: Counts a subject's decisions from 1.
        at_s: When.
        verdict: In a word.
        reason: In a sentence.
    """

    subject: str
    number: int
    at_s: float
    verdict: str
    reason: str


class QueryShown(msgspec.Struct, frozen=True):
    """A question to the fleet.

    Attributes:
        id: Of the query.
        model: That it is about.
        device_class: Whose devices are asked.
        state: Open until there is a result or there will be none.
        query: As it is signed.
        template: That permits it.
        asked_s: When.
        rho: What an answer costs each device that gives one, in zCDP.
        ended_s: When the state became another.
        devices: In the sum.
        result: The sum and what it says.
    """

    id: str
    model: str
    device_class: str
    state: QueryState
    query: dict[str, Any]
    template: dict[str, Any]
    asked_s: float
    rho: float
    ended_s: float | None = None
    devices: int | None = None
    result: dict[str, Any] | None = None


class JobShown(msgspec.Struct, frozen=True):
    """A profiling job.

    Attributes:
        id: Of the job.
        device_id: Who does it.
        kind: What is to be done.
        state: Where it stands.
        made_by: Who wants it.
        made_s: Since when.
        ended_s: When it was done or had failed.
        tries: How often it was given out.
        bytes: Of the request.
    """

    id: str
    device_id: str
    kind: str
    state: JobState
    made_by: str
    made_s: float
    ended_s: float | None
    tries: int
    bytes: int


class AlertShown(msgspec.Struct, frozen=True):
    """How an alert's rule stands.

    Attributes:
        rule: Its name.
        subject: What it watches.
        state: Pending until it has held long enough.
        since_s: Since when it is in that state, seconds since 1970, UTC; likewise below.
        at_s: When it was judged last.
        message: For people.
        inputs: What it was judged from.
        silenced_until_s: Nobody is told before.
    """

    rule: str
    subject: str
    state: AlertState
    since_s: float
    at_s: float
    message: str
    inputs: Any
    silenced_until_s: float | None


class Awaiting(msgspec.Struct, frozen=True):
    """An action that waits for somebody's approval.

    Attributes:
        id: Of the item.
        action: What would be done.
        about: Device class or rollout.
        reason: Why.
        at_s: Since when it waits.
    """

    id: str
    action: str
    about: str
    reason: str
    at_s: float


def overview(services: Services) -> FleetShown:
    """Return the fleet at a glance."""
    store, now, silent_s = services.store, services.now(), services.fleet.looking.silent_s
    groups = store.devices.groups(seen_since_s=1.0)
    heard = store.devices.groups(seen_since_s=now - silent_s)
    total = sum(group.devices for group in groups)
    return FleetShown(
        at_s=now,
        devices=total,
        silent=total - sum(group.devices for group in heard),
        silent_s=silent_s,
        groups=tuple(groups),
        rollouts=tuple(_line(services, each) for each in all_plans(services)),
        firing=len(store.alerts.all("firing")),
    )


def _line(services: Services, plan: Plan) -> RolloutShown:
    last = services.store.decisions.of(f"{plan.model}/{plan.device_class}/{plan.rollout}")[-1:]
    return RolloutShown(
        model=plan.model,
        device_class=plan.device_class,
        rollout=plan.rollout,
        versions=tuple(arm.version for arm in plan.arms),
        state=plan.state,
        stage=plan.stage,
        stages=len(plan.stages),
        fraction=plan.fraction,
        verdict=last[0].verdict if last else "",
        decided_s=last[0].at_s if last else None,
    )


def shown_device(device: Device) -> DeviceShown:
    """Return a device as operators see it."""
    return DeviceShown(
        id=device.id,
        public=device.public.hex(),
        device_class=device.device_class,
        enrolled_s=device.enrolled_s,
        seen_s=device.seen_s,
        labels=device.labels,
        channel=device.channel,
        bench=device.bench,
        arm=device.arm,
        status=device.status,
        retired_s=device.retired_s,
    )


def shown_query(kept: KeptQuery) -> QueryShown:
    """Return a question as operators see it."""
    return QueryShown(
        id=kept.id,
        model=kept.model,
        device_class=kept.device_class,
        state=kept.state,
        query=msgspec.json.decode(kept.body),
        template=msgspec.json.decode(kept.template),
        asked_s=kept.asked_s,
        rho=kept.rho,
        ended_s=kept.ended_s,
        devices=kept.devices,
        result=None if kept.result is None else msgspec.json.decode(kept.result),
    )


def shown_alert(alert: Alert) -> AlertShown:
    """Return an alert as operators see it."""
    return AlertShown(
        rule=alert.rule,
        subject=alert.subject,
        state=alert.state,
        since_s=alert.since_s,
        at_s=alert.at_s,
        message=alert.message,
        inputs=msgspec.json.decode(alert.inputs),
        silenced_until_s=alert.silenced_until_s,
    )


def shown_job(job: Job) -> JobShown:
    """Return a job as operators see it."""
    return JobShown(
        id=job.id,
        device_id=job.device_id,
        kind=job.kind,
        state=job.state,
        made_by=job.made_by,
        made_s=job.made_s,
        ended_s=job.ended_s,
        tries=job.tries,
        bytes=len(job.request),
    )


def gauge(services: Services) -> None:
    """Set the metrics that are counted only when somebody looks: devices, alerts, stages of rollouts."""
    DEVICES.clear()
    for group in services.store.devices.groups(seen_since_s=1.0):
        DEVICES.labels(group.device_class, group.version, group.state).inc(group.devices)
    ALERTS.clear()
    severities = {rule.name: rule.severity for rule in services.fleet.alerts}
    for alert in services.store.alerts.all("firing"):
        ALERTS.labels(alert.rule, severities.get(alert.rule, "warning")).inc()
    ROLLOUT_STAGE.clear()
    for each in all_plans(services):
        ROLLOUT_STAGE.labels(each.model, each.device_class).set(each.stage)


def models(services: Services) -> dict[str, list[str]]:
    """Return the versions of each model, in order.

    Raises:
        TrustError: The repository cannot be believed.
    """
    repository = services.repository()
    spread = repository.spread()
    found: set[str] = set()
    for name in () if spread is None else spread.get_roles():
        metadata = repository.role(name)
        for path in () if metadata is None else metadata.signed.targets:
            if path.startswith("releases/"):
                found.add(path.split("/")[1])
    return {model: [version for version, _ in releases(repository, model)] for model in sorted(found)}


def release(services: Services, model: str, version: str) -> Manifest:
    """Return the manifest of a release.

    Raises:
        MissingError: There is none.
        TrustError: The repository cannot be believed.
    """
    repository = services.repository()
    path = release_path(model, version)
    content = repository.read_target(repository.bin_of(path), path)
    if content is None:
        raise MissingError(f"{model} {version} is not published", remedy="List the releases.")
    return decode_record(content, type=Manifest)


def plan(services: Services, model: str, device_class: str) -> Plan:
    """Return the rollout of a model for a device class.

    Raises:
        MissingError: There is none.
    """
    found = known_plan(services.repository(), model, device_class)
    if found is None:
        raise MissingError(f"there is no rollout of {model} for {device_class}", remedy="List the rollouts.")
    return found


def policy(services: Services, model: str, device_class: str) -> Policy:
    """Return the policy of a model for a device class.

    Raises:
        MissingError: There is none.
    """
    found = known_policy(services.repository(), model, device_class)
    if found is None:
        raise MissingError(f"there is no policy for {model} on {device_class}", remedy="Publish a release first.")
    return found


def cohorts(services: Services, model: str, device_class: str) -> list[CohortShown]:
    """Return how many devices each arm of a rollout has, the control first.

    Raises:
        MissingError: There is no such rollout.
    """
    found, allowed = plan(services, model, device_class), policy(services, model, device_class)
    heard_s = services.now() - services.fleet.looking.silent_s
    counts = {CONTROL: [0, 0]} | {arm: [0, 0] for arm in range(len(found.arms))}
    for page in candidates(services.store, found, allowed):
        for device in page:
            count = counts[arm_in(found, allowed, device.id)]
            count[0] += 1
            count[1] += device.seen_s >= heard_s
    return [CohortShown("" if arm == CONTROL else found.arms[arm].version, *count) for arm, count in counts.items()]


def decisions(services: Services, subject: str, limit: int) -> list[DecisionShown]:
    """Return decisions about a subject, or about anything if it is ""; the newest first."""
    store = services.store
    found = store.decisions.of(subject)[::-1][:limit] if subject else store.decisions.latest(limit=limit)
    return [DecisionShown(one.subject, one.number, one.at_s, one.verdict, one.reason) for one in found]


def decision(services: Services, subject: str, number: int) -> dict[str, Any]:
    """Return a decision with all that it was made from.

    Raises:
        MissingError: There is none.
    """
    for one in services.store.decisions.of(subject):
        if one.number == number:
            shown = DecisionShown(one.subject, one.number, one.at_s, one.verdict, one.reason)
            return msgspec.structs.asdict(shown) | {"decision": msgspec.json.decode(one.inputs)}
    raise MissingError(f"there is no decision {number} about {subject[:200]}", remedy="List the decisions.")
