"""What the store takes and returns: frozen records, which the API shows as they are. No database here.

Times are seconds since 1970, UTC. Secrets are not in any of them.
"""

from typing import Literal

import msgspec

from edgewright.contract.alert import AlertAction
from edgewright.contract.api.device_status import DeviceStatus
from edgewright.contract.names import checked_name

__all__ = [
    "ActionState",
    "Alert",
    "AlertChange",
    "ApiToken",
    "ArmOutcomeCount",
    "AuditEntry",
    "AutomatedAction",
    "CheckIn",
    "CheckInRollup",
    "DeviceGroupCount",
    "EnrolmentToken",
    "JobState",
    "ProfilingJob",
    "QueryState",
    "ReaderPosition",
    "RolloutCandidate",
    "StoredAlertState",
    "StoredDecision",
    "StoredDevice",
    "StoredMessage",
    "StoredQuery",
    "UserAccount",
    "rollout_key",
]

ActionState = Literal["waiting", "granted", "running", "done", "failed", "refused"]
StoredAlertState = Literal["pending", "firing", "resolved"]
JobState = Literal["waiting", "taken", "done", "failed"]
QueryState = Literal["open", "done", "failed"]


class StoredDevice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A device that was enrolled.

    Attributes:
        id: Its name, which its key alone can prove.
        public_key: Its Ed25519 key, 32 bytes.
        device_class: Its own.
        enrolled_at: When.
        labels: By which rollouts select.
        channel: By which rollouts select, "" for none.
        profiling: Whether it takes profiling jobs.
        last_seen_at: When it checked in last, 0 for never.
        arm: Version that it was assigned last, "" for what it had.
        status: What it said last.
        retired_at: Since when it is not believed any more.
    """

    id: str
    public_key: bytes
    device_class: str
    enrolled_at: float
    labels: dict[str, str] = {}
    channel: str = ""
    profiling: bool = False
    last_seen_at: float = 0.0
    arm: str = ""
    status: DeviceStatus = DeviceStatus()
    retired_at: float | None = None


class RolloutCandidate(msgspec.Struct, frozen=True):
    """What decides whether a device takes part in a rollout.

    Attributes:
        id: Its name.
        labels: Its labels.
        channel: Its channel, "" for none.
        enrolled_at: When.
        last_seen_at: When it checked in last, 0 for never.
        model: That it runs, "" for none.
        proven: Version in its proven slot, "" for none.
        previous: Version that it could go back to, "" for none.
    """

    id: str
    labels: dict[str, str]
    channel: str
    enrolled_at: float
    last_seen_at: float
    model: str = ""
    proven: str = ""
    previous: str = ""


class CheckIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One heartbeat, already known to be the device's.

    Attributes:
        device_id: Whose.
        device_class: Its own, as it was enrolled.
        status: What it said.
        at: When it came.
        nonce: Of its request; a request whose nonce was seen counts for nothing. "" where that was looked after.
        arm: Version that the device was assigned, "" for what it had.
    """

    device_id: str
    device_class: str
    status: DeviceStatus
    at: float
    nonce: str = ""
    arm: str = ""


class CheckInRollup(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a group of devices said in an hour, or in a day once it is old; sums, so that they add up further.

    Attributes:
        started_at: When it began.
        span_seconds: How long it is.
        device_class: Of the group.
        model: That it ran.
        version: That it ran.
        arm: That it was assigned.
        devices: How many there were; of a day, the most of an hour. 0 until the hour was closed.
        check_ins: How many.
        refused: Check-ins with a refusal.
        with_failures: Check-ins with failed inferences.
        latency_count: Check-ins with a latency.
        latency_sum_seconds: Sum of their medians.
        battery_count: Check-ins with a battery.
        battery_sum: Sum of their states of charge.
    """

    started_at: int
    span_seconds: int
    device_class: str
    model: str
    version: str
    arm: str
    devices: int
    check_ins: int
    refused: int
    with_failures: int
    latency_count: int
    latency_sum_seconds: float
    battery_count: int
    battery_sum: float


class DeviceGroupCount(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many devices are alike at present.

    Attributes:
        device_class: Theirs.
        model: That they run.
        version: That they run.
        arm: That they were assigned.
        state: Of their updates.
        refusal: Code of what they refused last, "" for nothing.
        devices: How many.
    """

    device_class: str
    model: str
    version: str
    arm: str
    state: str
    refusal: str
    devices: int


class EnrolmentToken(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a token enrols one device into.

    Attributes:
        device_class: That it enrols into.
        created_by: Who invited.
        created_at: When.
        expires_at: When the token is void.
        labels: That it gives.
        channel: That it gives.
        profiling: Whether the device takes profiling jobs.
        device_id: Who has used it, "" for nobody yet.
    """

    device_class: str
    created_by: str
    created_at: float
    expires_at: float
    labels: dict[str, str] = {}
    channel: str = ""
    profiling: bool = False
    device_id: str = ""


class ArmOutcomeCount(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many devices of an arm fared alike in a stage.

    Attributes:
        arm: Version that they were assigned, "" for what they had.
        failed: Metrics in which they failed.
        late: Whether they said so after the deadline.
        devices: How many.
    """

    arm: str
    failed: tuple[str, ...]
    late: bool
    devices: int


class StoredDecision(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was decided, with all that it was decided from, so that it can be replayed.

    Attributes:
        subject: What it is about: a rollout's key, a rule, a release.
        number: Counts a subject's decisions from 1; nobody can take one twice.
        at: When.
        verdict: In a word: advance, hold, roll back.
        reason: In a sentence.
        inputs: The evidence, as JSON.
    """

    subject: str
    number: int
    at: float
    verdict: str
    reason: str
    inputs: msgspec.Raw = msgspec.Raw(b"{}")


class AuditEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who did what.

    Attributes:
        number: Counts from 1.
        id: Random; an entry that is written again after a lost connection stays one.
        at: When.
        actor: Who: `user:NAME`, `token:NAME`, `server`.
        action: What.
        subject: To what.
        detail: More, as JSON.
        previous_digest: Digest of the entry before, 64 zeros before the first.
        digest: sha256 over all of the above.
    """

    number: int
    id: str
    at: float
    actor: str
    action: str
    subject: str
    detail: msgspec.Raw
    previous_digest: str
    digest: str


class Alert(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a rule stands for a subject.

    Attributes:
        rule: Its name.
        subject: What it watches: a class, a version, a device.
        state: Pending until it has held long enough.
        since: Since when it is in that state.
        at: When it was judged last.
        message: For people.
        inputs: What it was judged from, as JSON.
        silenced_until: Nobody is told before.
    """

    rule: str
    subject: str
    state: StoredAlertState
    since: float
    at: float
    message: str = ""
    inputs: msgspec.Raw = msgspec.Raw(b"{}")
    silenced_until: float | None = None


class AlertChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When an alert went from a state to another.

    Attributes:
        number: Rises with each change.
        rule: Its name.
        subject: What it watches.
        before: State, "" before the first, `silenced` if a silence ended and it still fires.
        after: State.
        at: When.
        message: For people.
    """

    number: int
    rule: str
    subject: str
    before: str
    after: str
    at: float
    message: str


class AutomatedAction(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an alert set off, or would if somebody approved.

    Attributes:
        id: Of the alert's change and the action, so that nothing is set off twice.
        action: Which.
        device_class: Device class.
        alert: Rule that wants it.
        reason: What the alert said.
        state: `waiting` for a person's approval, `granted` and about to be done, `running`; ended if `done`,
            `failed` or `refused`.
        state_reason: Of the state.
        asked_at: When it was wanted.
        decided_at: When it was granted, None if it was not.
        decided_by: Who granted or refused: `server`, or a person; "" for nobody yet.
        ended_at: When it ended.
    """

    id: str
    action: AlertAction
    device_class: str
    alert: str
    reason: str
    state: ActionState
    state_reason: str
    asked_at: float
    decided_at: float | None = None
    decided_by: str = ""
    ended_at: float | None = None


class ReaderPosition(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far somebody has come who takes up things in order.

    Attributes:
        name: Who.
        number: Of the last one that is done.
        attempts: That failed since.
        next_attempt_at: No try before.
    """

    name: str
    number: int
    attempts: int = 0
    next_attempt_at: float = 0.0


class StoredQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A question to the fleet, and its answer.

    Attributes:
        id: Of the query.
        model: That it is about.
        device_class: Whose devices are asked.
        state: Open until there is a result or there will be none.
        body: The query, as JSON.
        template: Its template, as JSON.
        asked_at: When.
        rho: What an answer costs each device that gives one, in zCDP.
        ended_at: When the state became another.
        devices: In the sum.
        result: The sum and what it says, as JSON.
    """

    id: str
    model: str
    device_class: str
    state: QueryState
    body: msgspec.Raw
    template: msgspec.Raw
    asked_at: float
    rho: float
    ended_at: float | None = None
    devices: int | None = None
    result: msgspec.Raw | None = None


class StoredMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a device sent for a private sum.

    Attributes:
        sum_id: Digest of the sum's terms, hexadecimal.
        step: Of the sum.
        sender: The device's key, 32 bytes.
        body: As it came.
        at: When.
    """

    sum_id: str
    step: str
    sender: bytes
    body: bytes
    at: float


class UserAccount(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Somebody who may log in.

    Attributes:
        name: Theirs.
        role: By its name.
        created_at: Since when.
        retired_at: Since when they may not any more.
    """

    name: str
    role: str
    created_at: float
    retired_at: float | None = None


class ApiToken(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a script shows instead of logging in.

    Attributes:
        name: Of the token.
        role: By its name.
        created_by: Who made it.
        created_at: When.
        expires_at: When it is void.
        last_used_at: When it was used last, to the minute.
        retired_at: Since when it is void.
    """

    name: str
    role: str
    created_by: str
    created_at: float
    expires_at: float
    last_used_at: float | None = None
    retired_at: float | None = None


class ProfilingJob(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Work for a bench device.

    Attributes:
        id: Of the job.
        device_id: Who does it.
        kind: What is to be done.
        state: Where it stands.
        request: What is to be done, as the worker reads it.
        created_by: Who wants it.
        created_at: Since when.
        result: What came of it.
        lease_until: The device has it until then; later it is given out again.
        ended_at: When it was done or had failed.
        attempts: How often it was given out.
    """

    id: str
    device_id: str
    kind: str
    state: JobState
    request: bytes
    created_by: str
    created_at: float
    result: bytes | None = None
    lease_until: float | None = None
    ended_at: float | None = None
    attempts: int = 0


def rollout_key(model: str, device_class: str, rollout: str) -> str:
    """Return what a rollout is kept under: rollouts of different models may have one name.

    >>> rollout_key("digits", "camera", "r1")
    'digits/camera/r1'
    """
    return "/".join(
        checked_name(what, name)
        for what, name in (("model", model), ("device class", device_class), ("rollout", rollout))
    )
