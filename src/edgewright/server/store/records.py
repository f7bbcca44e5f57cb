"""What the store takes and returns: frozen records, which the API shows as they are. No database here.

Times are seconds since 1970, UTC. Secrets are not in any of them.
"""

from typing import Literal

import msgspec

from edgewright.contract.alert import Action
from edgewright.contract.api.device_status import Status
from edgewright.contract.names import checked_name

__all__ = [
    "Act",
    "ActState",
    "Alert",
    "AlertChange",
    "AlertState",
    "AuditEntry",
    "Candidate",
    "CheckIn",
    "Decision",
    "Device",
    "Group",
    "Hour",
    "Invited",
    "Job",
    "JobState",
    "KeptLetter",
    "KeptQuery",
    "Position",
    "QueryState",
    "Tally",
    "Token",
    "User",
    "rollout_key",
]

ActState = Literal["waiting", "granted", "running", "done", "failed", "refused"]
AlertState = Literal["pending", "firing", "resolved"]
JobState = Literal["waiting", "taken", "done", "failed"]
QueryState = Literal["open", "done", "failed"]


class Device(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A device that was enrolled.

    Attributes:
        id: Its name, which its key alone can prove.
        public: Its Ed25519 key, 32 bytes.
        device_class: Its own.
        enrolled_s: When.
        labels: By which rollouts select.
        channel: By which rollouts select, "" for none.
        bench: Whether it takes profiling jobs.
        seen_s: When it checked in last, 0 for never.
        arm: Version that it was assigned last, "" for what it had.
        status: What it said last.
        retired_s: Since when it is not believed any more.
    """

    id: str
    public: bytes
    device_class: str
    enrolled_s: float
    labels: dict[str, str] = {}
    channel: str = ""
    bench: bool = False
    seen_s: float = 0.0
    arm: str = ""
    status: Status = Status()
    retired_s: float | None = None


class Candidate(msgspec.Struct, frozen=True):
    """What decides whether a device takes part in a rollout.

    Attributes:
        id: Its name.
        labels: Its labels.
        channel: Its channel, "" for none.
        enrolled_s: When.
        seen_s: When it checked in last, 0 for never.
        model: That it runs, "" for none.
        proven: Version in its proven slot, "" for none.
        previous: Version that it could go back to, "" for none.
    """

    id: str
    labels: dict[str, str]
    channel: str
    enrolled_s: float
    seen_s: float
    model: str = ""
    proven: str = ""
    previous: str = ""


class CheckIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One heartbeat, already known to be the device's.

    Attributes:
        device_id: Whose.
        device_class: Its own, as it was enrolled.
        status: What it said.
        at_s: When it came.
        nonce: Of its request; a request whose nonce was seen counts for nothing. "" where that was looked after.
        arm: Version that the device was assigned, "" for what it had.
    """

    device_id: str
    device_class: str
    status: Status
    at_s: float
    nonce: str = ""
    arm: str = ""


class Hour(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a group of devices said in an hour, or in a day once it is old; sums, so that they add up further.

    Attributes:
        start_s: When it began.
        span_s: How long it is.
        device_class: Of the group.
        model: That it ran.
        version: That it ran.
        arm: That it was assigned.
        devices: How many there were; of a day, the most of an hour. 0 until the hour was closed.
        check_ins: How many.
        refused: Check-ins with a refusal.
        troubled: Check-ins with failed inferences.
        latency_count: Check-ins with a latency.
        latency_sum_s: Sum of their medians.
        battery_count: Check-ins with a battery.
        battery_sum: Sum of their states of charge.
    """

    start_s: int
    span_s: int
    device_class: str
    model: str
    version: str
    arm: str
    devices: int
    check_ins: int
    refused: int
    troubled: int
    latency_count: int
    latency_sum_s: float
    battery_count: int
    battery_sum: float


class Group(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
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


class Invited(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a token enrols one device into.

    Attributes:
        device_class: That it enrols into.
        made_by: Who invited.
        made_s: When.
        expires_s: When the token is void.
        labels: That it gives.
        channel: That it gives.
        bench: Whether the device takes profiling jobs.
        device_id: Who has used it, "" for nobody yet.
    """

    device_class: str
    made_by: str
    made_s: float
    expires_s: float
    labels: dict[str, str] = {}
    channel: str = ""
    bench: bool = False
    device_id: str = ""


class Tally(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
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


class Decision(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was decided, with all that it was decided from, so that it can be replayed.

    Attributes:
        subject: What it is about: a rollout's key, a rule, a release.
        number: Counts a subject's decisions from 1; nobody can take one twice.
        at_s: When.
        verdict: In a word: advance, hold, roll back.
        reason: In a sentence.
        inputs: The evidence, as JSON.
    """

    subject: str
    number: int
    at_s: float
    verdict: str
    reason: str
    inputs: msgspec.Raw = msgspec.Raw(b"{}")


class AuditEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who did what.

    Attributes:
        number: Counts from 1.
        id: Random; an entry that is written again after a lost connection stays one.
        at_s: When.
        actor: Who: `user:NAME`, `token:NAME`, `server`.
        action: What.
        subject: To what.
        detail: More, as JSON.
        before: Digest of the entry before, 64 zeros before the first.
        digest: sha256 over all of the above.
    """

    number: int
    id: str
    at_s: float
    actor: str
    action: str
    subject: str
    detail: msgspec.Raw
    before: str
    digest: str


class Alert(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a rule stands for a subject.

    Attributes:
        rule: Its name.
        subject: What it watches: a class, a version, a device.
        state: Pending until it has held long enough.
        since_s: Since when it is in that state.
        at_s: When it was judged last.
        message: For people.
        inputs: What it was judged from, as JSON.
        silenced_until_s: Nobody is told before.
    """

    rule: str
    subject: str
    state: AlertState
    since_s: float
    at_s: float
    message: str = ""
    inputs: msgspec.Raw = msgspec.Raw(b"{}")
    silenced_until_s: float | None = None


class AlertChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When an alert went from a state to another.

    Attributes:
        number: Rises with each change.
        rule: Its name.
        subject: What it watches.
        before: State, "" before the first, `silenced` if a silence ended and it still fires.
        after: State.
        at_s: When.
        message: For people.
    """

    number: int
    rule: str
    subject: str
    before: str
    after: str
    at_s: float
    message: str


class Act(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an alert set off, or would if somebody approved.

    Attributes:
        id: Of the alert's change and the action, so that nothing is set off twice.
        action: Which.
        subject: Device class.
        alert: Rule that wants it.
        reason: What the alert said.
        state: `waiting` for a person's approval, `granted` and about to be done, `running`; ended if `done`,
            `failed` or `refused`.
        why: Of the state.
        asked_s: When it was wanted.
        decided_s: When it was granted, None if it was not.
        decided_by: Who granted or refused: `server`, or a person; "" for nobody yet.
        ended_s: When it ended.
    """

    id: str
    action: Action
    subject: str
    alert: str
    reason: str
    state: ActState
    why: str
    asked_s: float
    decided_s: float | None = None
    decided_by: str = ""
    ended_s: float | None = None


class Position(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far somebody has come who takes up things in order.

    Attributes:
        name: Who.
        number: Of the last one that is done.
        tries: That failed since.
        next_s: No try before.
    """

    name: str
    number: int
    tries: int = 0
    next_s: float = 0.0


class KeptQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A question to the fleet, and its answer.

    Attributes:
        id: Of the query.
        model: That it is about.
        device_class: Whose devices are asked.
        state: Open until there is a result or there will be none.
        body: The query, as JSON.
        template: Its template, as JSON.
        asked_s: When.
        rho: What an answer costs each device that gives one, in zCDP.
        ended_s: When the state became another.
        devices: In the sum.
        result: The sum and what it says, as JSON.
    """

    id: str
    model: str
    device_class: str
    state: QueryState
    body: msgspec.Raw
    template: msgspec.Raw
    asked_s: float
    rho: float
    ended_s: float | None = None
    devices: int | None = None
    result: msgspec.Raw | None = None


class KeptLetter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a device sent for a private sum.

    Attributes:
        sum: Digest of the sum's terms, hexadecimal.
        step: Of the sum.
        sender: The device's key, 32 bytes.
        body: As it came.
        at_s: When.
    """

    sum: str
    step: str
    sender: bytes
    body: bytes
    at_s: float


class User(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Somebody who may log in.

    Attributes:
        name: Theirs.
        role: By its name.
        made_s: Since when.
        retired_s: Since when they may not any more.
    """

    name: str
    role: str
    made_s: float
    retired_s: float | None = None


class Token(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a script shows instead of logging in.

    Attributes:
        name: Of the token.
        role: By its name.
        made_by: Who made it.
        made_s: When.
        expires_s: When it is void.
        used_s: When it was used last, to the minute.
        retired_s: Since when it is void.
    """

    name: str
    role: str
    made_by: str
    made_s: float
    expires_s: float
    used_s: float | None = None
    retired_s: float | None = None


class Job(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Work for a bench device.

    Attributes:
        id: Of the job.
        device_id: Who does it.
        kind: What is to be done.
        state: Where it stands.
        request: What is to be done, as the worker reads it.
        made_by: Who wants it.
        made_s: Since when.
        result: What came of it.
        until_s: The device has it until then; later it is given out again.
        ended_s: When it was done or had failed.
        tries: How often it was given out.
    """

    id: str
    device_id: str
    kind: str
    state: JobState
    request: bytes
    made_by: str
    made_s: float
    result: bytes | None = None
    until_s: float | None = None
    ended_s: float | None = None
    tries: int = 0


def rollout_key(model: str, device_class: str, rollout: str) -> str:
    """Return what a rollout is kept under: rollouts of different models may have one name.

    >>> rollout_key("digits", "camera", "r1")
    'digits/camera/r1'
    """
    return "/".join(
        checked_name(what, name)
        for what, name in (("model", model), ("device class", device_class), ("rollout", rollout))
    )
