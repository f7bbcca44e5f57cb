"""What alerts set off and how far people were told, on both databases."""

from collections.abc import Callable

import msgspec

from edgewright.contract.api.device_status import DeviceStatus
from edgewright.contract.query.query import CountedSignal, Query, QueryTemplate, record_digest
from edgewright.server.store.records import Alert, AutomatedAction, CheckIn, ReaderPosition, StoredDevice
from edgewright.server.store.store import FleetStore

Enrol = Callable[..., StoredDevice]
ACT = AutomatedAction(
    id="7-pause",
    action="pause",
    device_class="camera",
    alert="crashes",
    reason="8 % crash",
    state="waiting",
    state_reason="asks",
    asked_at=1.0,
)


def test_an_act_is_kept_once_and_moves_only_from_where_it_is(store: FleetStore) -> None:
    assert store.actions.add(ACT)
    assert not store.actions.add(msgspec.structs.replace(ACT, state="granted"))
    assert store.actions.get(ACT.id) == ACT
    assert store.actions.get("other") is None
    assert not store.actions.transition(ACT.id, ("granted",), "done", reason="x", at=2.0)
    assert store.actions.transition(ACT.id, ("waiting",), "granted", reason="ann approved", at=2.0, by="user:ann")
    assert not store.actions.transition(ACT.id, ("waiting",), "refused", reason="no", at=3.0, by="user:bob")
    assert store.actions.transition(ACT.id, ("granted", "running"), "done", reason="paused", at=4.0)
    wanted = msgspec.structs.replace(
        ACT, state="done", state_reason="paused", decided_at=2.0, decided_by="user:ann", ended_at=4.0
    )
    assert store.actions.get(ACT.id) == wanted


def test_acts_are_listed_by_state_and_by_when_they_were_granted(store: FleetStore) -> None:
    for number in range(4):
        store.actions.add(msgspec.structs.replace(ACT, id=f"{number}", asked_at=float(number)))
    for number in (3, 1):
        store.actions.transition(f"{number}", ("waiting",), "granted", reason="", at=10.0 - number, by="server")
    assert [act.id for act in store.actions.all()] == ["3", "2", "1", "0"]
    assert [act.id for act in store.actions.all("waiting")] == ["2", "0"]
    assert [act.id for act in store.actions.all("waiting", "granted", limit=3)] == ["3", "2", "1"]
    assert [act.id for act in store.actions.granted_since(7.0)] == ["3", "1"]
    assert [act.id for act in store.actions.granted_since(7.5)] == ["1"]


def test_a_position_is_kept_as_it_was_put_last(store: FleetStore) -> None:
    assert store.positions.get("log") is None
    for position in (ReaderPosition("log", 3), ReaderPosition("log", 3, 2, 99.5), ReaderPosition("hook", 1)):
        store.positions.put(position)
        assert store.positions.get(position.name) == position
    assert store.positions.get("log") == ReaderPosition("log", 3, 2, 99.5)


def test_a_silence_that_is_over_is_told_of_what_fires_on(store: FleetStore) -> None:
    for rule, state in (("a", "firing"), ("b", "resolved"), ("c", "firing")):
        store.alerts.put([Alert(rule, "camera", state, 1.0, 1.0, f"{rule}!")])  # type: ignore[arg-type]
    for rule, until in (("a", 50.0), ("b", 50.0), ("c", 70.0)):
        store.alerts.silence(rule, "camera", until=until)
    last = store.alerts.last_change()
    assert store.alerts.end_silences(now=49.0) == 0
    assert store.alerts.end_silences(now=60.0) == 2
    (change,) = store.alerts.changes_after(last)
    assert (change.rule, change.before, change.after, change.message) == ("a", "silenced", "firing", "a!")
    assert [one.silenced_until for one in store.alerts.all()] == [None, None, 70.0]
    assert store.alerts.end_silences(now=60.0) == 0


def test_devices_are_counted_by_a_label_of_theirs(store: FleetStore, enrol: Enrol) -> None:
    for given in ({"site": "a"}, {"site": "a", "board": "x"}, {"site": "b"}, {}):
        last = enrol(labels=given)
    enrol("door", labels={"site": "a"})
    store.devices.retire(enrol(labels={"site": "c"}).id, now=5.0)
    assert store.devices.label_counts("camera", "site") == {"a": 2, "b": 1}
    assert store.devices.label_counts("camera", "board") == {"x": 1}
    assert store.devices.label_counts(last.device_class, "none") == {}


def test_versions_are_known_for_as_long_as_they_ran(store: FleetStore, enrol: Enrol) -> None:
    device = enrol()
    for version, at in (("1.0", 100.0), ("1.1", 9000.0)):
        store.check_ins.store_batch([CheckIn(device.id, "camera", DeviceStatus("digits", version), at)])
    assert store.check_ins.versions(9000.0) == {("camera", "digits", "1.1")}
    assert {each[2] for each in store.check_ins.versions(3599.0)} == {"1.0", "1.1"}
    assert {each[2] for each in store.check_ins.versions(3600.0)} == {"1.1"}


def test_sums_that_ended_since_are_the_newest_in_order(store: FleetStore) -> None:
    template = QueryTemplate(
        *("signals", "histogram", "camera"),
        clip=10.0,
        min_noise=0.1,
        min_cohort=2,
        max_rho=1.0,
        min_interval_seconds=1.0,
        expires_at="2027-01-01",
        signals=(CountedSignal("mean", 4),),
    )
    times = ("2026-06-01", "2026-06-02", "2026-06-20")
    for number in range(5):
        query = Query(
            f"q{number}", "signals", record_digest(template), *times, 32, 1.0, 2.0, 2, 100, 0.1, "helper", "ab" * 32
        )
        store.queries.store_query(query, template, "digits", now=float(number))
    for number in range(4):
        store.queries.finish_query(f"q{number}", result={} if number != 2 else None, devices=3, now=10.0 + number)
    assert [each.id for each in store.queries.done_since(11.0)] == ["q1", "q3"]
    assert [each.id for each in store.queries.done_since(0.0, limit=2)] == ["q1", "q3"]
