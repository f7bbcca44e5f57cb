"""Migrations, and backups: what a store holds outlives releases and disks."""

import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from benchmarks.serving.postgres import Postgres
from sqlalchemy import func, inspect, select, text

from edgewright.contract.api.device_status import DeviceStatus, StageOutcome
from edgewright.contract.errors import InputError, OutputError, WorkError
from edgewright.server.access_control import UserRole
from edgewright.server.store import migration
from edgewright.server.store.database import open_database
from edgewright.server.store.migration import VersionError, latest_version, migrate, version_of
from edgewright.server.store.records import (
    Alert,
    AutomatedAction,
    CheckIn,
    ReaderPosition,
    StoredDecision,
    StoredDevice,
    StoredMessage,
)
from edgewright.server.store.store import FleetStore, create_store, open_fleet_store
from edgewright.server.store.tables import metadata

LATER = '''"""A later version, as a release after this one could bring it."""

import sqlalchemy as sa
from alembic import op

revision = "9999"
down_revision = "{head}"


def upgrade():
    """Add a column and fill it."""
    op.add_column("devices", sa.Column("note", sa.Text))
    op.execute("UPDATE devices SET note = device_class || '!'")
    {more}
'''


def fill(store: FleetStore) -> StoredDevice:
    """Leave something in every table that can hold something for long."""
    token = store.devices.create_enrolment_token(
        "camera", created_by="server", now=0.0, lifetime_seconds=60.0, labels={"site": "berlin"}, profiling=True
    )
    device = store.devices.enrol(token, os.urandom(32), now=1.0)
    store.check_ins.store_batch([CheckIn(device.id, "camera", DeviceStatus("digits", "1.0"), 10.0, "n", "1.0")])
    store.outcomes.put("digits/camera/r1", [(device.id, StageOutcome("r1", 0))], at=1.0, deadline_at=2.0)
    store.decisions.put(StoredDecision("digits/camera/r1", 1, 1.0, "hold", "too few"))
    store.audit.write("user:ann", "start", "digits/camera/r1", at=1.0)
    store.alerts.put([Alert("crashes", "camera", "firing", 1.0, 1.0)])
    store.queries.store_message(StoredMessage("a" * 64, "gift", b"\x00\xff" * 16, b"\x00\xff" * 800, 1.0))
    store.accounts.add_user("ann", UserRole.OPERATOR, "correct horse battery", now=0.0)
    store.accounts.add_token("ci", UserRole.VIEWER, created_by="server", now=0.0, lifetime_seconds=60.0)
    store.accounts.log_in("ann", "correct horse battery", now=0.0, lifetime_seconds=60.0)
    store.actions.add(
        AutomatedAction(
            id="1-pause",
            action="pause",
            device_class="camera",
            alert="crashes",
            reason="8 % crash",
            state="waiting",
            state_reason="asks",
            asked_at=1.0,
        )
    )
    store.positions.put(ReaderPosition("log", 1))
    store.jobs.add(device.id, "profile", b"x", created_by="user:ann", now=0.0)
    return device


def everything(store: FleetStore) -> dict[str, list[tuple[object, ...]]]:
    return store.database.read(
        lambda connection: {
            table.name: [tuple(row) for row in connection.execute(select(table).order_by(*table.primary_key))]
            for table in metadata.sorted_tables
        }
    )


def test_an_empty_database_comes_to_the_head_and_then_has_exactly_the_tables_of_the_code(
    empty_address: str,
) -> None:
    database = open_database(empty_address, make=True)
    if not database.is_sqlite:
        assert version_of(database) is None
    assert migrate(database) == version_of(database) == latest_version()
    found = database.read(
        lambda connection: compare_metadata(
            MigrationContext.configure(connection, opts={"compare_type": True}), metadata
        )
    )
    assert found == []
    assert set(database.read(lambda c: inspect(c).get_table_names())) == {*metadata.tables, "alembic_version"}
    database.close()


def test_migrating_again_changes_nothing(store: FleetStore) -> None:
    fill(store)
    before = everything(store)
    assert migrate(store.database) == latest_version()
    assert everything(store) == before


def test_a_database_without_tables_is_not_opened(empty_address: str) -> None:
    database = open_database(empty_address, make=True)
    assert database.read(lambda connection: connection.execute(text("SELECT 1")).scalar()) == 1
    database.close()
    with pytest.raises(VersionError, match="empty"):
        open_fleet_store(empty_address)


def test_a_file_that_is_not_there_is_not_created_by_opening_it(tmp_path: Path) -> None:
    with pytest.raises(WorkError, match=r"did not answer for 0\.1 s"):
        open_fleet_store(f"sqlite:///{tmp_path / 'lost.db'}", timeout_seconds=0.1)
    assert not (tmp_path / "lost.db").exists()


@pytest.fixture
def later(tmp_path: Path) -> Callable[[str], tuple[Path, ...]]:
    """Makes folders of migrations of which the second holds one after the head."""

    def run(more: str = "") -> tuple[Path, ...]:
        folder = tmp_path / "later"
        folder.mkdir()
        (folder / "m9999_later.py").write_text(LATER.format(head=latest_version(), more=more))
        return (Path(migration.__file__).parent / "migrations", folder)

    return run


Later = Callable[[str], tuple[Path, ...]]


def test_an_upgrade_keeps_what_is_there(store: FleetStore, later: Later) -> None:
    device = fill(store)
    before = everything(store)
    assert migrate(store.database, places=later("")) == "9999"
    assert store.database.read(lambda c: c.execute(text("SELECT note FROM devices")).scalar()) == "camera!"
    # Workers of the release before go on meanwhile.
    assert everything(store) == before
    assert store.check_ins.store_batch([CheckIn(device.id, "camera", DeviceStatus(), 20.0)]) == [True]


def test_a_migration_that_fails_leaves_all_as_it_was(store: FleetStore, later: Later) -> None:
    fill(store)
    before = everything(store)
    with pytest.raises(WorkError, match="nowhere"):
        migrate(store.database, places=later('op.execute("SELECT 1 FROM nowhere")'))
    assert version_of(store.database) == latest_version()
    assert everything(store) == before
    names = store.database.read(lambda c: {column["name"] for column in inspect(c).get_columns("devices")})
    assert "note" not in names


def test_a_database_of_a_later_release_is_refused_and_left_alone(
    address: str, store: FleetStore, later: Later
) -> None:
    migrate(store.database, places=later(""))
    with pytest.raises(VersionError, match=f"version 9999, this release reads {latest_version()}"):
        open_fleet_store(address)
    with pytest.raises(VersionError, match="version 9999"):
        create_store(address)
    assert version_of(store.database) == "9999"


def test_a_database_of_something_else_is_refused_and_left_alone(empty_address: str) -> None:
    database = open_database(empty_address, make=True)
    database.write(lambda connection: connection.execute(text("CREATE TABLE theirs (n INTEGER)")))
    with pytest.raises(VersionError, match="something else, such as theirs"):
        create_store(empty_address)
    assert database.read(lambda c: inspect(c).get_table_names()) == ["theirs"]
    database.close()


def test_two_that_migrate_at_once_do_not_get_in_each_others_way(empty_address: str) -> None:
    failed: list[BaseException] = []

    def run() -> None:
        try:
            create_store(empty_address).close()
        except BaseException as error:  # what a thread raises is told below
            failed.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    open_fleet_store(empty_address).close()


# Backups.


@pytest.fixture
def others(store: FleetStore, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[list[FleetStore]]:
    """Empty stores on both databases, whichever the other one is on."""
    server: Postgres = request.getfixturevalue("postgres")
    name = f"other{os.getpid()}"
    found = [create_store(f"sqlite:///{tmp_path / 'other.db'}"), create_store(server.make(name, like="made"))]
    yield found
    for one in found:
        one.close()
    server.tell(f'DROP DATABASE "{name}" WITH (FORCE)')


def test_a_backup_restores_everything_on_either_database(
    store: FleetStore, others: list[FleetStore], tmp_path: Path
) -> None:
    fill(store)
    count = store.backup(tmp_path / "backup", now=1.0)
    assert stat.S_IMODE((tmp_path / "backup").stat().st_mode) == 0o600
    for other in others:
        assert other.restore(tmp_path / "backup") == count
        assert everything(other) == everything(store)
        assert other.audit.broken_at(known=store.audit.head()) is None
        # It goes on where it stopped.
        other.alerts.put([Alert("crashes", "camera", "resolved", 2.0, 2.0)])
        assert [change.after for change in other.alerts.changes()] == ["resolved", "firing"]
        assert other.audit.write("server", "restore", "", at=2.0).number == 2
        with pytest.raises(WorkError, match="kept for good"):
            other.database.write(lambda connection: connection.execute(text("DELETE FROM decisions")))


def test_a_backup_is_of_one_moment_while_others_write(store: FleetStore, tmp_path: Path) -> None:
    fill(store)
    over = threading.Event()

    def write() -> None:
        n = 0
        while invited and not over.is_set():
            n += 1
            # Both or neither: a backup must not hold one without the other.
            store.devices.enrol(invited.pop(), n.to_bytes(32, "big"), now=1.0)

    invited = [
        store.devices.create_enrolment_token("camera", created_by="x", now=0.0, lifetime_seconds=9.0)
        for _ in range(1000)
    ]
    thread = threading.Thread(target=write)
    thread.start()
    try:
        for n in range(5):
            store.backup(tmp_path / f"backup{n}", now=1.0)
    finally:
        over.set()
        thread.join()
    for n in range(5):
        other = create_store(f"sqlite:///{tmp_path / f'{n}.db'}")
        other.restore(tmp_path / f"backup{n}")
        counts = other.database.read(
            lambda c: [
                c.execute(select(func.count()).select_from(metadata.tables[name])).scalar() for name in PAIRED
            ]
        )
        assert counts[0] == counts[1]
        assert counts[0]
        other.close()


PAIRED = ("devices", "statuses")


def test_a_backup_replaces_no_file_and_leaves_no_half(store: FleetStore, tmp_path: Path) -> None:
    (tmp_path / "backup").write_bytes(b"precious")
    with pytest.raises(OutputError, match="cannot be written"):
        store.backup(tmp_path / "backup", now=1.0)
    with pytest.raises(OutputError):
        store.backup(tmp_path / "nowhere" / "backup", now=1.0)
    assert (tmp_path / "backup").read_bytes() == b"precious"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".backup")] == []


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "nothing"])
def test_a_damaged_backup_restores_nothing(store: FleetStore, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "backup"
    source = create_store(f"sqlite:///{tmp_path / 'source.db'}")
    fill(source)
    source.backup(path, now=1.0)
    source.close()
    content = path.read_bytes()
    middle = len(content) // 2
    damaged = {
        "cut": content[:-20],
        "flipped": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        "empty": b"",
        "nothing": content[:9],
    }
    path.write_bytes(damaged[damage])
    with pytest.raises(InputError):
        store.restore(path)
    assert store.devices.list_devices() == []


def test_a_backup_is_not_restored_over_what_is_there(store: FleetStore, tmp_path: Path) -> None:
    fill(store)
    store.backup(tmp_path / "backup", now=1.0)
    before = everything(store)
    with pytest.raises(WorkError, match="not empty"):
        store.restore(tmp_path / "backup")
    assert everything(store) == before
