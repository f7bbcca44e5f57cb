"""What the store promises when several write, when a leader dies, and when the database goes away."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from benchmarks.serving.postgres import Postgres
from sqlalchemy import Connection, event, text
from sqlalchemy.exc import OperationalError

from edgewright.contract.api.device_status import DeviceStatus, StageOutcome
from edgewright.contract.errors import InputError, OutputError, WorkError
from edgewright.server.access_control import UserRole
from edgewright.server.store.database import DatabaseUnavailableError, checked_address, open_database
from edgewright.server.store.decisions import DecisionExistsError
from edgewright.server.store.records import CheckIn, StoredDecision, StoredDevice, StoredMessage
from edgewright.server.store.store import FleetStore, create_store, open_fleet_store
from edgewright.trust.keys.device_identity import AuthenticationError

Enrol = Callable[..., StoredDevice]
GOOD = DeviceStatus("digits", "1.0", "a" * 64, "idle")
ROLLOUT = "digits/camera/r1"

WRITER = """
import sys
from edgewright.contract.api.device_status import DeviceStatus, StageOutcome
from edgewright.server.store.records import CheckIn
from edgewright.server.store.store import open_fleet_store
store, (name, turns), devices = open_fleet_store(sys.argv[1]), sys.argv[2:4], sys.argv[4:]
for turn in range(int(turns)):
    batch = [
        CheckIn(one, "camera", DeviceStatus("digits", "1.0"), 10.0 + turn, f"{name}.{turn}.{one}") for one in devices
    ]
    assert all(store.check_ins.store_batch(batch)), "an own nonce was refused"
    said = [(one, StageOutcome("r1", turn, failed_metrics=("crash",) if name == "a" else ())) for one in devices]
    store.outcomes.put("digits/camera/r1", said, at=1.0, deadline_at=2.0)
    store.audit.write(name, "wrote", str(turn), at=1.0)
store.close()
"""
LEADER = """
import sys, time
from edgewright.server.store.store import open_fleet_store
store = open_fleet_store(sys.argv[1])
leadership = store.leadership()
print(leadership.try_acquire(), leadership.is_held(), flush=True)
time.sleep(600)
"""


def test_two_processes_that_write_the_same_devices_lose_and_double_nothing(
    address: str, store: FleetStore, enrol: Enrol
) -> None:
    devices = [enrol().id for _ in range(20)]
    turns = 25
    writers = [
        # In opposite order, as two that would wait for each other for ever.
        subprocess.Popen([sys.executable, "-c", WRITER, address, name, str(turns), *order], stderr=subprocess.PIPE)
        for name, order in (("a", devices), ("b", devices[::-1]))
    ]
    said = [writer.communicate(timeout=120)[1] for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0], said
    assert sum(hour.check_ins for hour in store.check_ins.rollups(0.0, 3600.0)) == 2 * turns * len(devices)
    assert {one.last_seen_at for one in store.devices.list_devices()} == {10.0 + turns - 1}
    for turn in range(turns):
        assert sum(tally.devices for tally in store.outcomes.counts(ROLLOUT, turn)) == len(devices)
    assert store.audit.head()[0] == 2 * turns
    assert store.audit.broken_at() is None


def at_once(count: int, work: Callable[[int], object]) -> list[object]:
    """Return what threads that begin together said, or raised."""
    barrier = threading.Barrier(count)

    def run(number: int) -> object:
        barrier.wait()
        try:
            return work(number)
        except Exception as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


def test_of_many_devices_with_one_token_one_is_enrolled(store: FleetStore) -> None:
    token = store.devices.create_enrolment_token("camera", created_by="server", now=0.0, lifetime_seconds=60.0)
    said = at_once(8, lambda _: store.devices.enrol(token, os.urandom(32), now=1.0))
    assert sorted(type(one).__name__ for one in said) == ["AuthenticationError"] * 7 + ["StoredDevice"]
    assert all(isinstance(one, StoredDevice | AuthenticationError) for one in said)
    assert len(store.devices.list_devices()) == 1


def test_of_many_that_decide_one_does(store: FleetStore) -> None:
    said = at_once(8, lambda n: store.decisions.put(StoredDecision(ROLLOUT, 1, 1.0, f"verdict {n}", "")))
    assert [one is None for one in said].count(True) == 1
    assert all(one is None or isinstance(one, DecisionExistsError) for one in said)
    assert len(store.decisions.for_subject(ROLLOUT)) == 1


def test_of_many_requests_with_one_nonce_one_counts(store: FleetStore) -> None:
    said = at_once(8, lambda _: store.check_ins.use_nonce("ab" * 16, "n", now=1.0))
    assert sorted(map(bool, said)) == [False] * 7 + [True]
    assert not any(isinstance(one, Exception) for one in said)


def test_of_many_letters_of_one_device_the_first_stays(store: FleetStore) -> None:
    said = at_once(
        8, lambda n: store.queries.store_message(StoredMessage("a" * 64, "gift", b"\x01" * 32, b"%d" % n, 1.0))
    )
    assert sorted(map(str, said)) == ["new"] + ["other"] * 7
    assert store.queries.count_messages("a" * 64, "gift") == 1


def test_one_job_is_given_out_once(store: FleetStore, enrol: Enrol) -> None:
    bench = enrol(profiling=True)
    store.jobs.add(bench.id, "profile", b"x", created_by="user:ann", now=0.0)
    said = at_once(8, lambda _: store.jobs.claim(bench.id, now=1.0, lease_seconds=60.0))
    assert [one is None for one in said].count(False) == 1


# Leadership.


def until(holds: Callable[[], bool], seconds: float = 15.0) -> bool:
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def test_one_leads_and_another_follows_when_the_leaders_process_is_killed(address: str, store: FleetStore) -> None:
    leader = subprocess.Popen([sys.executable, "-c", LEADER, address], stdout=subprocess.PIPE)
    try:
        assert leader.stdout is not None
        assert leader.stdout.readline().split() == [b"True", b"True"]
        mine = store.leadership()
        assert not mine.try_acquire()
        assert not mine.is_held()
        leader.kill()
        leader.wait(10)
        assert until(mine.try_acquire)
        assert mine.is_held()
        assert mine.try_acquire(), "who leads may ask again"
        other = store.leadership()
        assert not other.try_acquire()
        mine.release()
        assert not mine.is_held()
        assert other.try_acquire()
        other.release()
    finally:
        leader.kill()
        leader.communicate()


def test_a_leader_whose_connection_was_cut_knows_that_it_leads_no_more(postgres: Postgres) -> None:
    store = create_store(postgres.make("cut", like="made"))
    mine, other = store.leadership(), store.leadership()
    assert mine.try_acquire()
    postgres.tell(
        "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND database = "
        "(SELECT oid FROM pg_database WHERE datname = 'cut')"
    )
    assert until(other.try_acquire)
    assert not mine.is_held()
    assert not mine.try_acquire()
    other.release()
    store.close()


# A database that goes away.


@pytest.fixture
def own_server() -> Iterator[Postgres]:
    """A server that this test may stop."""
    server = Postgres()
    yield server
    server.close()


def later(seconds: float, act: Callable[[], None]) -> threading.Timer:
    timer = threading.Timer(seconds, act)
    timer.start()
    return timer


def test_a_server_that_crashes_and_comes_back_costs_no_accepted_check_in(own_server: Postgres) -> None:
    store = create_store(own_server.make("fleet"), timeout_seconds=60.0)
    token = store.devices.create_enrolment_token("camera", created_by="server", now=0.0, lifetime_seconds=60.0)
    device = store.devices.enrol(token, os.urandom(32), now=1.0)
    leadership = store.leadership()
    assert leadership.try_acquire()
    own_server.stop(signal.SIGQUIT)
    assert not leadership.is_held()
    assert not leadership.try_acquire(), "nobody leads without a database"
    timer = later(2.0, own_server.start)
    begun = time.monotonic()
    counts = [
        store.check_ins.store_batch([CheckIn(device.id, "camera", GOOD, 10.0 + n, f"n{n}")]) for n in range(5)
    ]
    assert time.monotonic() - begun >= 2.0
    timer.join()
    assert counts == [[True]] * 5
    assert sum(hour.check_ins for hour in store.check_ins.rollups(0.0, 3600.0)) == 5
    assert until(leadership.try_acquire)
    leadership.release()
    store.close()


def test_a_server_that_stays_away_is_given_up_on_in_time(own_server: Postgres) -> None:
    address = own_server.make("fleet")
    store = create_store(address, timeout_seconds=1.0)
    store.audit.write("server", "start", "", at=1.0)
    own_server.stop(signal.SIGINT)
    begun = time.monotonic()
    with pytest.raises(DatabaseUnavailableError, match=r"did not answer for 1 s, in \d+ tries") as told:
        store.audit.write("server", "go on", "", at=2.0)
    assert 1.0 <= time.monotonic() - begun < 5.0
    assert "postgresql" in told.value.remedy
    own_server.start()
    assert store.audit.head()[0] == 1, "what was given up on was not written"
    store.close()


def test_a_file_that_another_holds_is_waited_for_and_given_up_on(tmp_path: Path) -> None:
    address = f"sqlite:///{tmp_path / 'fleet.db'}"
    one, other = create_store(address), open_fleet_store(address, timeout_seconds=0.1)
    holding, over = threading.Event(), threading.Event()

    def work(_: Connection) -> None:
        holding.set()
        over.wait(60)

    def hold() -> None:
        one.database.write(work)

    thread = threading.Thread(target=hold)
    thread.start()
    holding.wait(60)
    try:
        assert other.audit.head()[0] == 0, "readers do not wait"
        with pytest.raises(DatabaseUnavailableError, match="locked"):
            other.audit.write("server", "start", "", at=1.0)
        timer = later(1.0, over.set)
        assert (
            open_fleet_store(address, timeout_seconds=30.0).audit.write("server", "start", "", at=1.0).number == 1
        )
        timer.join()
    finally:
        over.set()
        thread.join()
    one.close()
    other.close()


def test_a_disk_that_goes_away_and_comes_back_costs_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    address = f"sqlite:///{folder / 'fleet.db'}"
    create_store(address).close()
    folder.rename(tmp_path / "away")
    timer = later(1.0, lambda: os.rename(tmp_path / "away", folder))  # noqa: PTH104 (returns nothing)
    store = open_fleet_store(address, timeout_seconds=30.0)
    timer.join()
    assert store.audit.write("server", "start", "", at=1.0).number == 1
    store.close()


def test_waiting_is_bounded_and_grows(tmp_path: Path) -> None:
    database = open_database(f"sqlite:///{tmp_path / 'lost.db'}", timeout_seconds=60.0)
    now, waits = [0.0], []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        now[0] += seconds

    database.clock, database.sleep = lambda: now[0], sleep
    with pytest.raises(DatabaseUnavailableError, match="for 60 s"):
        database.read(lambda connection: connection.execute(text("SELECT 1")))
    assert sum(waits) == pytest.approx(60.0)
    assert max(waits) <= 1.5
    assert waits[0] < 0.05
    assert len(waits) < 200


def test_what_cannot_help_is_not_tried_again(store: FleetStore) -> None:
    tries = []

    def work(connection: Connection) -> None:
        tries.append(1)
        connection.execute(text("SELECT 1 FROM nowhere"))

    with pytest.raises(WorkError, match="nowhere"):
        store.database.read(work)
    assert tries == [1]


def test_errors_show_no_password(tmp_path: Path) -> None:
    database = open_database(f"postgresql://ann:hunter22@/fleet?host={tmp_path}", timeout_seconds=0.0)
    with pytest.raises(DatabaseUnavailableError) as told:
        database.read(lambda connection: None)
    assert "hunter22" not in str(told.value)
    assert "ann" in str(told.value)


@pytest.fixture
def unheard(store: FleetStore) -> Callable[[], None]:
    """Lets the next commit succeed and its answer be lost."""
    lost = [False]

    def commit(connection: Connection) -> None:
        if lost[0]:
            lost[0] = False
            connection.connection.commit()
            raise OperationalError("COMMIT", {}, sqlite3.OperationalError("lost"), connection_invalidated=True)

    event.listen(store.database.engine, "commit", commit)

    def run() -> None:
        assert not lost[0], "the one before was never lost"
        lost[0] = True

    return run


def test_what_was_committed_unheard_is_not_done_twice(
    store: FleetStore, enrol: Enrol, unheard: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgewright.server.store.database._is_transient", lambda error: True)
    device = enrol(profiling=True)
    batch = [CheckIn(device.id, "camera", GOOD, 10.0, "n"), CheckIn(device.id, "camera", GOOD, 11.0, "n")]
    unheard()
    assert store.check_ins.store_batch(batch) == [True, False]
    unheard()
    assert store.check_ins.store_batch([CheckIn(device.id, "camera", GOOD, 12.0)]) == [True]
    assert [hour.check_ins for hour in store.check_ins.rollups(0.0, 3600.0)] == [2]
    unheard()
    assert store.audit.write("server", "start", "", at=1.0).number == store.audit.head()[0] == 1
    unheard()
    store.decisions.put(StoredDecision(ROLLOUT, 1, 1.0, "hold", ""))
    unheard()
    token = store.devices.create_enrolment_token("hall", created_by="server", now=0.0, lifetime_seconds=60.0)
    unheard()
    assert store.devices.enrol(token, os.urandom(32), now=1.0).device_class == "hall"
    unheard()
    store.jobs.add(device.id, "profile", b"x", created_by="user:ann", now=0.0)
    assert len(store.jobs.all()) == 1
    unheard()
    store.accounts.add_user("ann", UserRole.VIEWER, "correct horse battery", now=0.0)
    unheard()
    assert store.accounts.find_token(
        store.accounts.add_token("ci", UserRole.VIEWER, created_by="server", now=0.0, lifetime_seconds=60.0),
        now=1.0,
    )


def test_a_new_file_is_its_owners_alone_and_one_that_cannot_be_made_is_told_at_once(tmp_path: Path) -> None:
    store = create_store(f"sqlite:///{tmp_path / 'fleet.db'}")
    store.audit.write("server", "start", "", at=1.0)
    assert {path.name: path.stat().st_mode & 0o077 for path in tmp_path.iterdir()} == {
        "fleet.db": 0,
        "fleet.db-shm": 0,
        "fleet.db-wal": 0,
    }
    store.close()
    with pytest.raises(OutputError, match="cannot be written"):
        create_store(f"sqlite:///{tmp_path / 'nowhere' / 'fleet.db'}")


@pytest.mark.parametrize(
    "address",
    ["", "fleet.db", "sqlite://", "sqlite:///:memory:", "mysql://h/x", "sqlite:///x?mode=rwc", "http://x"],
)
def test_an_address_that_is_no_database_is_refused(address: str) -> None:
    with pytest.raises(InputError, match="address"):
        checked_address(address)


def test_outcomes_of_two_that_report_the_same_stage_are_one_each(store: FleetStore) -> None:
    at_once(
        4,
        lambda n: store.outcomes.put(
            ROLLOUT, [(f"d{k}", StageOutcome("r1", 0, str(n))) for k in range(50)], at=1.0, deadline_at=2.0
        ),
    )
    assert sum(tally.devices for tally in store.outcomes.counts(ROLLOUT, 0)) == 50
