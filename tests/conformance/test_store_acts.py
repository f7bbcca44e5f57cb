"""What alerts set off and how far people were told, on both databases."""

from collections.abc import Callable

import msgspec

from edgewright.contract.api.device_status import Status
from edgewright.contract.query.query import Counted, Query, Template, digest_of
from edgewright.server.store.records import Act, Alert, CheckIn, Device, Position
from edgewright.server.store.store import Store

Enrol = Callable[..., Device]
ACT = Act(
    id="7-pause",
    action="pause",
    subject="camera",
    alert="crashes",
    reason="8 % crash",
    state="waiting",
    why="asks",
    asked_s=1.0,
)


def test_an_act_is_kept_once_and_moves_only_from_where_it_is(store: Store) -> None:
    assert store.acts.add(ACT)
    assert not store.acts.add(msgspec.structs.replace(ACT, state="granted"))
    assert store.acts.get(ACT.id) == ACT
    assert store.acts.get("other") is None
    assert not store.acts.move(ACT.id, ("granted",), "done", why="x", at_s=2.0)
    assert store.acts.move(ACT.id, ("waiting",), "granted", why="ann approved", at_s=2.0, by="user:ann")
    assert not store.acts.move(ACT.id, ("waiting",), "refused", why="no", at_s=3.0, by="user:bob")
    assert store.acts.move(ACT.id, ("granted", "running"), "done", why="paused", at_s=4.0)
    wanted = msgspec.structs.replace(
        ACT, state="done", why="paused", decided_s=2.0, decided_by="user:ann", ended_s=4.0
    )
    assert store.acts.get(ACT.id) == wanted


def test_acts_are_listed_by_state_and_by_when_they_were_granted(store: Store) -> None:
    for number in range(4):
        store.acts.add(msgspec.structs.replace(ACT, id=f"{number}", asked_s=float(number)))
    for number in (3, 1):
        store.acts.move(f"{number}", ("waiting",), "granted", why="", at_s=10.0 - number, by="server")
    assert [act.id for act in store.acts.all()] == ["3", "2", "1", "0"]
    assert [act.id for act in store.acts.all("waiting")] == ["2", "0"]
    assert [act.id for act in store.acts.all("waiting", "granted", limit=3)] == ["3", "2", "1"]
    assert [act.id for act in store.acts.granted_since(7.0)] == ["3", "1"]
    assert [act.id for act in store.acts.granted_since(7.5)] == ["1"]


def test_a_position_is_kept_as_it_was_put_last(store: Store) -> None:
    assert store.positions.get("log") is None
    for position in (Position("log", 3), Position("log", 3, 2, 99.5), Position("hook", 1)):
        store.positions.put(position)
        assert store.positions.get(position.name) == position
    assert store.positions.get("log") == Position("log", 3, 2, 99.5)


def test_a_silence_that_is_over_is_told_of_what_fires_on(store: Store) -> None:
    for rule, state in (("a", "firing"), ("b", "resolved"), ("c", "firing")):
        store.alerts.put([Alert(rule, "camera", state, 1.0, 1.0, f"{rule}!")])  # type: ignore[arg-type]
    for rule, until_s in (("a", 50.0), ("b", 50.0), ("c", 70.0)):
        store.alerts.silence(rule, "camera", until_s=until_s)
    last = store.alerts.last_change()
    assert store.alerts.lift(now_s=49.0) == 0
    assert store.alerts.lift(now_s=60.0) == 2
    (change,) = store.alerts.changes_after(last)
    assert (change.rule, change.before, change.after, change.message) == ("a", "silenced", "firing", "a!")
    assert [one.silenced_until_s for one in store.alerts.all()] == [None, None, 70.0]
    assert store.alerts.lift(now_s=60.0) == 0


def test_devices_are_counted_by_a_label_of_theirs(store: Store, enrol: Enrol) -> None:
    for given in ({"site": "a"}, {"site": "a", "board": "x"}, {"site": "b"}, {}):
        last = enrol(labels=given)
    enrol("door", labels={"site": "a"})
    store.devices.retire(enrol(labels={"site": "c"}).id, now_s=5.0)
    assert store.devices.label_counts("camera", "site") == {"a": 2, "b": 1}
    assert store.devices.label_counts("camera", "board") == {"x": 1}
    assert store.devices.label_counts(last.device_class, "none") == {}


def test_versions_are_known_for_as_long_as_they_ran(store: Store, enrol: Enrol) -> None:
    device = enrol()
    for version, at_s in (("1.0", 100.0), ("1.1", 9000.0)):
        store.check_ins.take([CheckIn(device.id, "camera", Status("digits", version), at_s)])
    assert store.check_ins.versions(9000.0) == {("camera", "digits", "1.1")}
    assert {each[2] for each in store.check_ins.versions(3599.0)} == {"1.0", "1.1"}
    assert {each[2] for each in store.check_ins.versions(3600.0)} == {"1.1"}


def test_sums_that_ended_since_are_the_newest_in_order(store: Store) -> None:
    template = Template(
        *("signals", "histogram", "camera"),
        clip=10.0,
        least_noise=0.1,
        min_cohort=2,
        dearest_rho=1.0,
        every_s=1.0,
        expires="2027-01-01",
        signals=(Counted("mean", 4),),
    )
    times = ("2026-06-01", "2026-06-02", "2026-06-20")
    for number in range(5):
        query = Query(
            f"q{number}", "signals", digest_of(template), *times, 32, 1.0, 2.0, 2, 100, 0.1, "helper", "ab" * 32
        )
        store.sums.ask(query, template, "digits", now_s=float(number))
    for number in range(4):
        store.sums.end(f"q{number}", result={} if number != 2 else None, devices=3, now_s=10.0 + number)
    assert [each.id for each in store.sums.done_since(11.0)] == ["q1", "q3"]
    assert [each.id for each in store.sums.done_since(0.0, limit=2)] == ["q1", "q3"]
