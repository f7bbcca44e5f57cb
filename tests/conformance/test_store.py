"""What the store promises, whichever database is under it."""

import os
import threading
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from sqlalchemy import Connection, select, text

from edgewright.contract.api.device_status import DeviceStatus, StageOutcome
from edgewright.contract.errors import InputError, WorkError
from edgewright.contract.query.query import CountedSignal, Query, QueryTemplate, record_digest
from edgewright.contract.refusal import Refusal
from edgewright.server.access_control import UserRole
from edgewright.server.store import tables
from edgewright.server.store.decisions import DecisionExistsError
from edgewright.server.store.records import (
    Alert,
    ArmOutcomeCount,
    CheckIn,
    StoredAlertState,
    StoredDecision,
    StoredDevice,
    StoredMessage,
    rollout_key,
)
from edgewright.server.store.retention import DAY_SECONDS, RetentionPeriods
from edgewright.server.store.store import FleetStore
from edgewright.trust.keys.device_identity import AuthenticationError, device_id_of

Enrol = Callable[..., StoredDevice]
HOUR = 3600.0
ROLLOUT = rollout_key("digits", "camera", "r1")
BAD = DeviceStatus("digits", "1.1", "b" * 64, "probation", refusal=Refusal("disk", "", "full"), failed_inferences=2)
GOOD = DeviceStatus("digits", "1.0", "a" * 64, "idle", latency_seconds=0.01, battery_level=0.5)


def check_in(device: StoredDevice, status: DeviceStatus = GOOD, at: float = 10.0, **more: Any) -> CheckIn:
    return CheckIn(device.id, device.device_class, status, at, **more)


def changed(store: FleetStore, statement: str) -> None:
    """Do behind the store's back what only who owns the database can."""
    if store.database.is_sqlite:
        first = ["DROP TRIGGER audit_no_update", "DROP TRIGGER audit_no_delete"]
    else:
        first = ["DROP TRIGGER audit_kept ON audit"]

    def work(connection: Connection) -> None:
        for one in (*first, statement):
            connection.execute(text(one))

    store.database.write(work)


# Devices.


def test_a_token_enrols_one_device_with_what_it_offers(store: FleetStore) -> None:
    token = store.devices.create_enrolment_token(
        "camera",
        created_by="user:ann",
        now=0.0,
        lifetime_seconds=60.0,
        labels={"site": "berlin"},
        channel="beta",
        profiling=True,
    )
    (invited,) = store.devices.open_enrolment_tokens(now=1.0)
    assert (invited.device_class, invited.created_by, invited.device_id) == ("camera", "user:ann", "")
    public = os.urandom(32)
    device = store.devices.enrol(token, public, now=5.0)
    assert device == store.devices.get(device_id_of(public))
    assert (device.public_key, device.labels, device.channel, device.profiling) == (
        public,
        {"site": "berlin"},
        "beta",
        True,
    )
    assert (device.enrolled_at, device.last_seen_at, device.status) == (5.0, 0.0, DeviceStatus())
    assert store.devices.open_enrolment_tokens(now=6.0) == []


def test_a_device_that_heard_no_answer_may_enrol_again_and_no_other_with_its_token(store: FleetStore) -> None:
    token = store.devices.create_enrolment_token("camera", created_by="server", now=0.0, lifetime_seconds=60.0)
    public = os.urandom(32)
    first = store.devices.enrol(token, public, now=1.0)
    assert store.devices.enrol(token, public, now=2.0) == first
    with pytest.raises(AuthenticationError, match="used already"):
        store.devices.enrol(token, os.urandom(32), now=2.0)


@pytest.mark.parametrize(("shown", "now", "why"), [("", 60.0, "void"), ("x", 1.0, "none of this fleet")])
def test_a_token_that_is_void_or_guessed_enrols_nobody(store: FleetStore, shown: str, now: float, why: str) -> None:
    token = store.devices.create_enrolment_token("camera", created_by="server", now=0.0, lifetime_seconds=60.0)
    with pytest.raises(AuthenticationError, match=why):
        store.devices.enrol(token + shown, os.urandom(32), now=now)
    assert store.devices.list_devices() == []


def test_no_secret_is_in_the_database(store: FleetStore) -> None:
    secrets = [
        store.devices.create_enrolment_token("camera", created_by="server", now=0.0, lifetime_seconds=60.0),
        store.accounts.add_token("ci", UserRole.VIEWER, created_by="server", now=0.0, lifetime_seconds=60.0),
        "correct horse battery",
    ]
    store.accounts.add_user("ann", UserRole.OPERATOR, secrets[2], now=0.0)
    found = store.accounts.log_in("ann", secrets[2], now=0.0, lifetime_seconds=60.0)
    assert found is not None
    secrets.append(found[0])
    held = store.database.read(
        lambda connection: str(
            [
                connection.execute(select(table)).all()
                for table in (tables.enrolment_tokens, tables.tokens, tables.users, tables.sessions)
            ]
        )
    )
    assert "ann" in held
    assert all(secret not in held for secret in secrets)


def test_a_retired_device_has_no_key_and_cannot_come_back_with_it(store: FleetStore, enrol: Enrol) -> None:
    device = enrol()
    assert store.devices.credentials([device.id])[device.id].public_key == device.public_key
    store.devices.retire(device.id, now=7.0)
    store.devices.retire(device.id, now=9.0)
    assert store.devices.credentials([device.id]) == {}
    assert store.devices.list_devices() == []
    assert [one.retired_at for one in store.devices.list_devices(retired=True)] == [7.0]
    token = store.devices.create_enrolment_token("camera", created_by="server", now=8.0, lifetime_seconds=60.0)
    with pytest.raises(AuthenticationError, match="retired"):
        store.devices.enrol(token, device.public_key, now=9.0)
    with pytest.raises(AuthenticationError, match="no device"):
        store.devices.retire("nobody", now=1.0)


def test_a_device_that_enrols_anew_has_what_the_new_token_offers(store: FleetStore, enrol: Enrol) -> None:
    device = enrol(labels={"site": "berlin"})
    store.check_ins.store_batch([check_in(device)])
    token = store.devices.create_enrolment_token(
        "hall", created_by="server", now=2.0, lifetime_seconds=60.0, labels={"line": "4"}
    )
    again = store.devices.enrol(token, device.public_key, now=3.0)
    assert (again.device_class, again.labels, again.status) == ("hall", {"line": "4"}, GOOD)
    assert store.devices.list_devices(labels={"site": "berlin"}) == []


def test_lists_are_in_order_paged_and_chosen_by_what_devices_are(store: FleetStore, enrol: Enrol) -> None:
    cameras = [enrol(labels={"site": "berlin", "n": str(n % 2)}) for n in range(5)]
    hall = enrol("hall", profiling=True)
    everybody = sorted(one.id for one in (*cameras, hall))
    first = store.devices.list_devices(limit=4)
    assert [one.id for one in (*first, *store.devices.list_devices(after=first[-1].id))] == everybody
    assert [one.id for one in store.devices.iterate()] == everybody
    assert {one.id for one in store.devices.list_devices(labels={"site": "berlin", "n": "0"})} == {
        cameras[n].id for n in (0, 2, 4)
    }
    assert [one.id for one in store.devices.list_devices(device_class="hall")] == [hall.id]
    assert [one.id for one in store.devices.list_devices(profiling=True)] == [hall.id]
    store.check_ins.store_batch([check_in(cameras[0], at=50.0)])
    assert [one.id for one in store.devices.list_devices(version="1.0")] == [cameras[0].id]
    assert len(store.devices.list_devices(offline_since=50.0)) == 5


# Check-ins.


def test_a_check_in_is_the_devices_last_status_and_adds_to_its_hour(store: FleetStore, enrol: Enrol) -> None:
    one, two = enrol(), enrol()
    batch = [check_in(one, at=10.0, arm="1.1"), check_in(two, BAD, 20.0), check_in(one, at=30.0, arm="1.1")]
    assert store.check_ins.store_batch(batch) == [True, True, True]
    found = store.devices.get(one.id)
    assert found is not None
    assert (found.status, found.last_seen_at, found.arm) == (GOOD, 30.0, "1.1")
    bad, good = sorted(store.check_ins.rollups(0.0, HOUR), key=lambda hour: hour.check_ins)
    assert (good.version, good.arm, good.check_ins, good.latency_count) == ("1.0", "1.1", 2, 2)
    assert (good.latency_sum_seconds, good.battery_sum, good.refused, good.with_failures) == (0.02, 1.0, 0, 0)
    assert (bad.version, bad.check_ins, bad.refused, bad.with_failures, bad.battery_count) == ("1.1", 1, 1, 1, 0)


def test_a_check_in_that_arrives_late_does_not_undo_a_newer_one(store: FleetStore, enrol: Enrol) -> None:
    device = enrol()
    store.check_ins.store_batch([check_in(device, at=20.0)])
    store.check_ins.store_batch([check_in(device, BAD, at=10.0)])
    found = store.devices.get(device.id)
    assert found is not None
    assert (found.last_seen_at, found.status) == (20.0, GOOD)
    store.check_ins.store_batch([check_in(device, GOOD, at=40.0), check_in(device, BAD, at=30.0)])
    found = store.devices.get(device.id)
    assert found is not None
    assert (found.last_seen_at, found.status) == (40.0, GOOD)
    assert sum(hour.check_ins for hour in store.check_ins.rollups(0.0, HOUR)) == 4


def test_a_nonce_counts_once_over_all_batches_and_cannot_be_used_up_by_another(
    store: FleetStore, enrol: Enrol
) -> None:
    one, two = enrol(), enrol()
    assert store.check_ins.store_batch(
        [check_in(one, nonce="n"), check_in(one, nonce="n"), check_in(two, nonce="n"), check_in(two, nonce="m")]
    ) == [True, False, True, True]
    assert store.check_ins.store_batch([check_in(one, nonce="n", at=50.0), check_in(one, nonce="k")]) == [
        False,
        True,
    ]
    assert not store.check_ins.use_nonce(two.id, "m", now=10.0)
    assert store.check_ins.use_nonce(two.id, "k", now=10.0)
    assert not store.check_ins.use_nonce(two.id, "k", now=10.0)
    found = store.devices.get(one.id)
    assert found is not None
    assert found.last_seen_at == 10.0
    assert sum(hour.check_ins for hour in store.check_ins.rollups(0.0, HOUR)) == 4


def test_a_device_that_was_never_enrolled_leaves_no_status(store: FleetStore) -> None:
    store.check_ins.store_batch([CheckIn("ab" * 16, "camera", GOOD, 10.0)])
    assert store.devices.get("ab" * 16) is None
    assert store.devices.groups() == []


def test_an_empty_batch_does_nothing(store: FleetStore) -> None:
    assert store.check_ins.store_batch([]) == []


def test_groups_count_devices_once_and_a_closed_hour_keeps_how_many(store: FleetStore, enrol: Enrol) -> None:
    devices = [enrol() for _ in range(3)]
    store.check_ins.store_batch([check_in(one, at=at) for one in devices for at in (10.0, 3610.0)])
    store.check_ins.store_batch([check_in(devices[0], BAD, 3700.0)])
    groups = {(group.version, group.refusal): group.devices for group in store.devices.groups()}
    assert groups == {("1.0", ""): 2, ("1.1", "disk"): 1}
    assert store.devices.groups(seen_since=4000.0) == []
    assert store.check_ins.close_hour(3600) == 2
    assert {hour.version: hour.devices for hour in store.check_ins.rollups(HOUR, 2 * HOUR)} == {"1.0": 2, "1.1": 1}
    store.devices.retire(devices[1].id, now=1.0)
    assert {group.version: group.devices for group in store.devices.groups()} == {"1.0": 1, "1.1": 1}


# Outcomes and decisions.


def test_a_devices_first_outcome_of_a_stage_is_the_one_that_counts(store: FleetStore) -> None:
    good, bad = StageOutcome("r1", 0, "1.1"), StageOutcome("r1", 0, "1.1", ("crash",))
    assert store.outcomes.put(ROLLOUT, [("d1", good), ("d2", bad)], at=5.0, deadline_at=9.0) == 2
    assert store.outcomes.put(ROLLOUT, [("d1", bad), ("d3", bad)], at=6.0, deadline_at=9.0) == 1
    assert store.outcomes.put(ROLLOUT, [("d1", StageOutcome("r1", 1))], at=7.0, deadline_at=9.0) == 1
    assert store.outcomes.for_stage(ROLLOUT, 0) == [
        ("d1", 5.0, False, good),
        ("d2", 5.0, False, bad),
        ("d3", 6.0, False, bad),
    ]


def test_late_outcomes_are_marked_and_tallied_apart(store: FleetStore) -> None:
    quiet = StageOutcome("r1", 0, "", ("offline",))
    store.outcomes.put(ROLLOUT, [("d1", quiet), ("d2", StageOutcome("r1", 0))], at=9.0, deadline_at=9.0)
    store.outcomes.put(ROLLOUT, [("d1", StageOutcome("r1", 0)), ("d3", quiet)], at=9.5, deadline_at=9.0)
    assert store.outcomes.counts(ROLLOUT, 0) == [
        ArmOutcomeCount("", (), False, 1),
        ArmOutcomeCount("", ("offline",), False, 1),
        ArmOutcomeCount("", ("offline",), True, 1),
    ]
    assert store.outcomes.counts(rollout_key("digits", "hall", "r1"), 0) == []


def decision(number: int, verdict: str = "hold", inputs: bytes = b'{"devices":3}') -> StoredDecision:
    return StoredDecision(ROLLOUT, number, 10.0 + number, verdict, "too few devices", msgspec.Raw(inputs))


def test_decisions_are_numbered_without_gaps_and_come_back_as_they_were_made(store: FleetStore) -> None:
    for number in (1, 2, 3):
        store.decisions.put(decision(number))
    assert store.decisions.for_subject(ROLLOUT) == [decision(1), decision(2), decision(3)]
    assert store.decisions.last_number(ROLLOUT) == 3
    assert [one.number for one in store.decisions.latest(limit=2)] == [3, 2]
    with pytest.raises(DecisionExistsError, match="would follow number 3"):
        store.decisions.put(decision(5))


def test_nobody_can_decide_twice_and_saying_the_same_again_does_no_harm(store: FleetStore) -> None:
    store.decisions.put(decision(1))
    store.decisions.put(decision(1))
    for other in (decision(1, "roll back"), decision(1, inputs=b'{"devices":4}')):
        with pytest.raises(DecisionExistsError, match="already 'hold'"):
            store.decisions.put(other)
    assert store.decisions.for_subject(ROLLOUT) == [decision(1)]


@pytest.mark.parametrize("table", ["decisions", "audit"])
@pytest.mark.parametrize("statement", ["UPDATE {} SET number = 9", "DELETE FROM {}"])
def test_the_database_itself_keeps_decisions_and_the_audit_log(
    store: FleetStore, table: str, statement: str
) -> None:
    store.decisions.put(decision(1))
    store.audit.write("user:ann", "start", ROLLOUT, at=1.0)
    with pytest.raises(WorkError, match="kept for good"):
        store.database.write(lambda connection: connection.execute(text(statement.format(table))))


# The audit log.


def test_an_audit_log_that_nobody_touched_is_whole(store: FleetStore) -> None:
    assert (store.audit.head(), store.audit.broken_at()) == ((0, "0" * 64), None)
    entries = [
        store.audit.write("user:ann", "start", ROLLOUT, at=1.1, detail={"b": [1.5], "a": "Ü"}) for _ in range(3)
    ]
    assert store.audit.entries() == entries[::-1]
    assert store.audit.entries(before=3, limit=1) == [entries[1]]
    assert store.audit.head() == (3, entries[2].digest)
    assert store.audit.broken_at(known=(2, entries[1].digest)) is None


@pytest.mark.parametrize(
    ("statement", "first"),
    [
        ("UPDATE audit SET actor = 'user:eve' WHERE number = 2", 2),
        ("UPDATE audit SET at = 2 WHERE number = 3", 3),
        ("DELETE FROM audit WHERE number = 2", 2),
        ("UPDATE audit SET number = 9 WHERE number = 4", 4),
    ],
)
def test_what_was_changed_or_left_out_of_the_audit_log_is_found(
    store: FleetStore, statement: str, first: int
) -> None:
    for n in range(4):
        store.audit.write("user:ann", f"act {n}", ROLLOUT, at=1.0)
    changed(store, statement)
    assert store.audit.broken_at() == first


def test_what_was_cut_off_the_end_is_found_by_who_kept_a_later_head(store: FleetStore) -> None:
    for n in range(3):
        store.audit.write("user:ann", f"act {n}", ROLLOUT, at=1.0)
    head = store.audit.head()
    changed(store, "DELETE FROM audit WHERE number = 3")
    assert store.audit.broken_at() is None
    assert store.audit.broken_at(known=head) == 3


# Alerts.


def test_an_alert_tells_when_it_changes_and_only_then(store: FleetStore) -> None:
    def judged(state: StoredAlertState, at: float) -> Alert:
        return Alert("crashes", "camera/1.1", state, at, at, "8 % crash", msgspec.Raw(b'{"rate":0.08}'))

    def told(after: int) -> list[tuple[str, str]]:
        return [(one.before, one.after) for one in store.alerts.changes_after(after)]

    store.alerts.put([judged("pending", 1.0)])
    assert told(0) == [("", "pending")]
    last = store.alerts.changes()[0].number
    store.alerts.put([judged("pending", 2.0)])
    assert told(last) == []
    assert store.alerts.silence("crashes", "camera/1.1", until=99.0)
    assert not store.alerts.silence("crashes", "hall", until=99.0)
    store.alerts.put([judged("firing", 3.0)])
    assert told(last) == [("pending", "firing")]
    (alert,) = store.alerts.all("firing")
    assert (alert.silenced_until, alert.at, alert.inputs) == (99.0, 3.0, msgspec.Raw(b'{"rate":0.08}'))
    assert store.alerts.all("resolved") == []
    assert [change.after for change in store.alerts.changes()] == ["firing", "pending"]


# Queries and letters.


def asked(name: str = "q1") -> tuple[Query, QueryTemplate]:
    template = QueryTemplate(
        name="drift",
        kind="histogram",
        device_class="camera",
        clip=4,
        min_noise=0.5,
        min_cohort=50,
        max_rho=0.1,
        min_interval_seconds=3600,
        expires_at="2027-12-31",
        signals=(CountedSignal("mean", 16),),
    )
    query = Query(
        id=name,
        template="drift",
        template_digest=record_digest(template),
        window_start="2026-11-20T00:00:00+00:00",
        window_end="2026-11-21T00:00:00+00:00",
        deadline="2026-11-22T00:00:00+00:00",
        bits=16,
        scale=1.0,
        sigma=4.0,
        min_cohort=60,
        max_cohort=100,
        rho=0.05,
        backend="helper",
        seed="c" * 64,
    )
    return query, template


def test_a_query_is_asked_once_ends_once_and_what_it_cost_adds_up(store: FleetStore) -> None:
    for name, now in (("q1", 10.0), ("q1", 11.0), ("q2", 20.0)):
        store.queries.store_query(*asked(name), "digits", now=now)
    other = msgspec.structs.replace(asked()[0], rho=0.06)
    with pytest.raises(WorkError, match="another query q1"):
        store.queries.store_query(other, asked()[1], "digits", now=12.0)
    assert store.queries.spent_rho("camera", since=0.0) == pytest.approx(0.1)
    assert store.queries.spent_rho("camera", since=15.0) == pytest.approx(0.05)
    assert store.queries.spent_rho("hall", since=0.0) == 0.0
    assert store.queries.finish_query("q1", result={"sum": [1, 2]}, devices=70, now=30.0)
    assert not store.queries.finish_query("q1", result=None, devices=None, now=31.0)
    found = store.queries.get("q1")
    assert found is not None
    assert (found.state, found.devices, found.ended_at) == ("done", 70, 30.0)
    assert found.result is not None
    assert msgspec.json.decode(found.result) == {"sum": [1, 2]}
    assert msgspec.json.decode(found.body, type=Query) == asked()[0]
    assert [one.id for one in store.queries.all("open")] == ["q2"]
    assert store.queries.get("q9") is None


def test_a_devices_first_letter_stays_and_the_same_again_is_the_same(store: FleetStore) -> None:
    letter = StoredMessage("a" * 64, "gift", b"\x01" * 32, b"\x00\xff" * 500, 1.0)
    assert store.queries.store_message(letter) == "new"
    assert store.queries.store_message(msgspec.structs.replace(letter, at=2.0)) == "same"
    assert store.queries.store_message(msgspec.structs.replace(letter, body=b"other")) == "other"
    assert store.queries.store_message(msgspec.structs.replace(letter, step="join", body=b"other")) == "new"
    assert store.queries.messages("a" * 64, "gift") == [letter]


def test_letters_come_in_order_page_by_page_and_go_together(store: FleetStore) -> None:
    senders = [bytes([n]) * 32 for n in (200, 3, 130, 7)]
    for sender in senders:
        store.queries.store_message(StoredMessage("a" * 64, "gift", sender, sender, 1.0))
    store.queries.store_message(StoredMessage("b" * 64, "gift", senders[0], b"", 1.0))
    first = store.queries.messages("a" * 64, "gift", limit=3)
    rest = store.queries.messages("a" * 64, "gift", after=first[-1].sender)
    assert [one.sender for one in (*first, *rest)] == sorted(senders)
    assert store.queries.count_messages("a" * 64, "gift") == 4
    assert store.queries.delete_messages("a" * 64) == 4
    assert store.queries.count_messages("b" * 64, "gift") == 1


# Users, tokens, sessions.


def test_a_session_lasts_until_it_is_over_unused_or_ended(store: FleetStore) -> None:
    people = store.accounts
    people.add_user("ann", UserRole.OPERATOR, "correct horse battery", now=0.0)
    found = people.log_in("ann", "correct horse battery", now=0.0, lifetime_seconds=1000.0)
    assert found is not None
    secret, _ = found

    def role(now: float) -> UserRole | None:
        session = people.find_session(secret, now=now, idle_seconds=300.0)
        return None if session is None else session.role

    assert [role(at) for at in (200.0, 450.0, 700.0, 900.0)] == [UserRole.OPERATOR] * 4
    assert role(1000.0) is None
    assert role(901.0) is UserRole.OPERATOR
    people.log_out(secret)
    assert role(902.0) is None


def test_an_unused_session_ends(store: FleetStore) -> None:
    store.accounts.add_user("ann", UserRole.OPERATOR, "correct horse battery", now=0.0)
    found = store.accounts.log_in("ann", "correct horse battery", now=0.0, lifetime_seconds=1000.0)
    assert found is not None
    assert store.accounts.find_session(found[0], now=300.0, idle_seconds=300.0) is None
    assert store.accounts.find_session(found[0] + "x", now=1.0, idle_seconds=300.0) is None


def test_who_does_not_know_the_password_gets_no_session(store: FleetStore) -> None:
    store.accounts.add_user("ann", UserRole.OPERATOR, "correct horse battery", now=0.0)
    for name, password in (("ann", "correct horse batterz"), ("bob", "correct horse battery"), ("ann", "")):
        assert store.accounts.log_in(name, password, now=0.0, lifetime_seconds=60.0) is None
    with pytest.raises(InputError, match="already"):
        store.accounts.add_user("ann", UserRole.VIEWER, "another password", now=1.0)


@pytest.mark.parametrize(
    "change", [{"role": UserRole.VIEWER}, {"password": "another password"}, {"retired_at": 5.0}], ids=str
)
def test_changing_a_user_ends_their_sessions(store: FleetStore, change: dict[str, Any]) -> None:
    store.accounts.add_user("ann", UserRole.OPERATOR, "correct horse battery", now=0.0)
    found = store.accounts.log_in("ann", "correct horse battery", now=0.0, lifetime_seconds=60.0)
    assert found is not None
    store.accounts.update_user("ann", **change)
    assert store.accounts.find_session(found[0], now=1.0, idle_seconds=60.0) is None
    again = store.accounts.log_in("ann", "correct horse battery", now=0.0, lifetime_seconds=60.0)
    assert (again is None) == ("role" not in change)
    with pytest.raises(InputError, match="no user"):
        store.accounts.update_user("bob", **change)


def test_a_token_works_until_it_expires_or_is_retired(store: FleetStore) -> None:
    people = store.accounts
    secret = people.add_token(
        "ci", UserRole.RELEASE_MANAGER, created_by="user:ann", now=0.0, lifetime_seconds=100.0
    )
    found = people.find_token(secret, now=1.0)
    assert found is not None
    assert (found.name, found.role) == ("ci", "release manager")
    assert people.tokens()[0].last_used_at == 1.0
    assert people.find_token(secret + "x", now=1.0) is None
    assert people.find_token(secret, now=100.0) is None
    with pytest.raises(InputError, match="already"):
        people.add_token("ci", UserRole.VIEWER, created_by="user:ann", now=0.0, lifetime_seconds=100.0)
    people.revoke_token("ci", now=2.0)
    assert people.find_token(secret, now=3.0) is None
    with pytest.raises(InputError, match="no token"):
        people.revoke_token("other", now=2.0)


# Jobs.


def test_a_bench_device_gets_its_jobs_in_order_and_each_is_done_once(store: FleetStore, enrol: Enrol) -> None:
    bench, other = enrol(profiling=True), enrol(profiling=True)
    first, second = (store.jobs.add(bench.id, "profile", b"x", created_by="user:ann", now=at) for at in (1.0, 2.0))
    assert store.jobs.claim(other.id, now=3.0, lease_seconds=60.0) is None
    taken = [store.jobs.claim(bench.id, now=3.0, lease_seconds=60.0) for _ in range(3)]
    assert [None if job is None else job.id for job in taken] == [first, second, None]
    assert not store.jobs.finish(first, other.id, b"no", succeeded=True, now=4.0)
    assert store.jobs.finish(first, bench.id, b"yes", succeeded=True, now=4.0)
    assert not store.jobs.finish(first, bench.id, b"no", succeeded=False, now=5.0)
    found = store.jobs.get(first)
    assert found is not None
    assert (found.state, found.result, found.ended_at, found.attempts) == ("done", b"yes", 4.0, 1)
    assert [job.id for job in store.jobs.all(state="taken")] == [second]


def test_a_job_whose_device_went_silent_is_given_out_again_and_fails_in_the_end(
    store: FleetStore, enrol: Enrol
) -> None:
    bench = enrol(profiling=True)
    name = store.jobs.add(bench.id, "profile", b"x", created_by="user:ann", now=0.0)
    for tries in (1, 2, 3):
        job = store.jobs.claim(bench.id, now=100.0 * tries, lease_seconds=60.0)
        assert job is not None
        assert (job.id, job.attempts) == (name, tries)
        assert store.jobs.claim(bench.id, now=100.0 * tries + 59, lease_seconds=60.0) is None
    assert store.jobs.claim(bench.id, now=400.0, lease_seconds=60.0) is None
    found = store.jobs.get(name)
    assert found is not None
    assert found.state == "failed"


def test_a_job_that_was_cancelled_is_given_to_nobody_and_takes_no_answer(store: FleetStore, enrol: Enrol) -> None:
    bench = enrol(profiling=True)
    taken, waiting = (store.jobs.add(bench.id, "profile", b"x", created_by="user:ann", now=at) for at in (1.0, 2.0))
    assert store.jobs.claim(bench.id, now=3.0, lease_seconds=60.0) is not None
    assert store.jobs.count_unanswered(bench.id) == 2
    for name in (taken, waiting):
        assert store.jobs.cancel(name, b"reason", now=4.0)
        assert not store.jobs.cancel(name, b"again", now=5.0)
    assert not store.jobs.finish(taken, bench.id, b"late", succeeded=True, now=6.0)
    assert store.jobs.claim(bench.id, now=1e6, lease_seconds=60.0) is None
    assert store.jobs.count_unanswered(bench.id) == 0
    for name in (taken, waiting):
        found = store.jobs.get(name)
        assert found is not None
        assert (found.state, found.result, found.ended_at) == ("failed", b"reason", 4.0)
    assert not store.jobs.cancel("0" * 16, b"", now=7.0)


def test_what_a_job_asked_is_kept_only_until_it_is_over(store: FleetStore, enrol: Enrol) -> None:
    bench = enrol(profiling=True)
    done, died = (
        store.jobs.add(bench.id, "profile", b"x" * 99, created_by="user:ann", now=at) for at in (1.0, 2.0)
    )
    first = store.jobs.claim(bench.id, now=3.0, lease_seconds=1.0)
    assert first is not None
    assert first.request == b"x" * 99
    store.jobs.finish(done, bench.id, b"yes", succeeded=True, now=3.5)
    for at in (4.0, 6.0, 8.0, 10.0):
        store.jobs.claim(bench.id, now=at, lease_seconds=1.0)
    found = [store.jobs.get(name) for name in (done, died)]
    assert [(job.state, job.request) for job in found if job is not None] == [("done", b""), ("failed", b"")]


def test_only_bench_devices_take_jobs(store: FleetStore, enrol: Enrol) -> None:
    device = enrol()
    with pytest.raises(InputError, match="no bench device"):
        store.jobs.add(device.id, "profile", b"x", created_by="user:ann", now=0.0)
    store.devices.set_profiling(device.id, profiling=True)
    store.jobs.add(device.id, "profile", b"x", created_by="user:ann", now=0.0)


# What is forgotten.


def test_old_hours_become_days_that_hold_the_same_sums(store: FleetStore, enrol: Enrol) -> None:
    devices = [enrol() for _ in range(2)]
    times = [10.0, 3700.0, DAY_SECONDS - 1.0, DAY_SECONDS + 5.0, 2.5 * DAY_SECONDS]
    store.check_ins.store_batch([check_in(one, at=at) for at in times for one in devices])
    store.check_ins.close_hour(0)
    before = store.check_ins.rollups(0.0, 10 * DAY_SECONDS)
    gone = store.delete_expired(RetentionPeriods(hourly_rollups_seconds=DAY_SECONDS / 2), now=2.6 * DAY_SECONDS)
    after = store.check_ins.rollups(0.0, 10 * DAY_SECONDS)
    assert gone["rollups"] == 4
    assert [(hour.started_at, hour.span_seconds, hour.check_ins) for hour in after] == [
        (0, DAY_SECONDS, 6),
        (DAY_SECONDS, DAY_SECONDS, 2),
        (int(2.5 * DAY_SECONDS), 3600, 2),
    ]
    assert after[0].devices == before[0].devices == 2
    for name in ("check_ins", "latency_count", "battery_count"):
        assert sum(getattr(hour, name) for hour in after) == sum(getattr(hour, name) for hour in before)
    assert sum(hour.latency_sum_seconds for hour in after) == pytest.approx(0.1)
    assert (
        store.delete_expired(RetentionPeriods(hourly_rollups_seconds=DAY_SECONDS / 2), now=2.6 * DAY_SECONDS)[
            "rollups"
        ]
        == 0
    )


def test_a_check_in_that_comes_after_its_day_was_folded_still_counts_once(store: FleetStore, enrol: Enrol) -> None:
    device = enrol()
    for _ in range(2):
        store.check_ins.store_batch([check_in(device, at=10.0)])
        store.delete_expired(RetentionPeriods(hourly_rollups_seconds=0.0), now=3.0 * DAY_SECONDS)
    assert [hour.check_ins for hour in store.check_ins.rollups(0.0, DAY_SECONDS)] == [2]


def test_nonces_go_as_soon_as_no_request_with_them_would_be_believed(store: FleetStore, enrol: Enrol) -> None:
    device = enrol()
    store.check_ins.store_batch([check_in(device, at=10.0, nonce="n")])
    assert store.delete_old_nonces(now=600.0) == 0
    assert store.check_ins.store_batch([check_in(device, at=500.0, nonce="n")]) == [False]
    gone = store.delete_old_nonces(now=2000.0)
    assert gone >= 1
    assert store.delete_old_nonces(now=2000.0) == 0


def test_what_is_due_goes_and_decisions_and_the_audit_log_stay(store: FleetStore, enrol: Enrol) -> None:
    device = enrol(profiling=True)
    store.check_ins.store_batch([check_in(device, nonce="n")])
    store.outcomes.put(ROLLOUT, [(device.id, StageOutcome("r1", 0))], at=1.0, deadline_at=2.0)
    store.decisions.put(decision(1))
    store.audit.write("server", "advance", ROLLOUT, at=1.0)
    store.queries.store_message(StoredMessage("a" * 64, "gift", b"\x01" * 32, b"x", 1.0))
    store.alerts.put([Alert("crashes", "camera", "firing", 1.0, 1.0)])
    waiting = store.jobs.add(device.id, "profile", b"x", created_by="server", now=1.0)
    assert set(store.delete_expired(RetentionPeriods(), now=20.0).values()) == {0}
    gone = store.delete_expired(RetentionPeriods(), now=9000.0 * DAY_SECONDS)
    assert {name for name, count in gone.items() if count} == {
        "rollups",
        "nonces",
        "outcomes",
        "sum_messages",
        "alert_changes",
        "enrolment_tokens",
    }
    assert store.devices.get(device.id) is not None
    assert store.jobs.get(waiting) is not None
    assert store.decisions.last_number(ROLLOUT) == store.audit.head()[0] == 1


def test_of_two_who_make_a_token_of_one_name_at_once_one_is_told(store: FleetStore) -> None:
    told: list[str] = []

    def make() -> None:
        try:
            store.accounts.add_token("first", UserRole.VIEWER, created_by="test", now=1.0, lifetime_seconds=60.0)
            told.append("made")
        except InputError as error:
            told.append(error.message)

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(told) == ["made", *["there is a token first already"] * 7]
