"""One store, two databases: what the rest of the server keeps things in.

SQLite for one machine, PostgreSQL for more; both pass the same tests. Each attribute is one subject.
"""

from dataclasses import dataclass, field
from pathlib import Path

from edgewright.server.store import backup as backups
from edgewright.server.store import retention as retentions
from edgewright.server.store.accounts import Accounts
from edgewright.server.store.actions import ActionStore, ReaderPositions
from edgewright.server.store.alerts import AlertStore
from edgewright.server.store.audit import AuditLog
from edgewright.server.store.check_ins import CheckInStore
from edgewright.server.store.database import Database, open_database
from edgewright.server.store.decisions import DecisionStore, StageOutcomeStore
from edgewright.server.store.devices import DeviceStore
from edgewright.server.store.jobs import JobStore
from edgewright.server.store.leader_election import Leadership, open_leadership
from edgewright.server.store.migration import check_version, migrate
from edgewright.server.store.queries import QueryStore
from edgewright.server.store.retention import RetentionPeriods

__all__ = ["FleetStore", "create_store", "open_fleet_store"]


@dataclass(frozen=True, slots=True)
class FleetStore:
    """Everything that the control plane keeps.

    Attributes:
        database: Under all of it.
        devices: Enrolment, lists, groups.
        check_ins: Heartbeats: the hot path.
        outcomes: How devices fared in stages of rollouts.
        decisions: What was decided, from what.
        audit: Who did what.
        alerts: How rules stand.
        actions: What alerts set off.
        positions: How far readers of changes have come.
        queries: Queries, letters, results.
        accounts: Users, tokens, sessions.
        jobs: For bench devices.
    """

    database: Database
    devices: DeviceStore = field(init=False)
    check_ins: CheckInStore = field(init=False)
    outcomes: StageOutcomeStore = field(init=False)
    decisions: DecisionStore = field(init=False)
    audit: AuditLog = field(init=False)
    alerts: AlertStore = field(init=False)
    actions: ActionStore = field(init=False)
    positions: ReaderPositions = field(init=False)
    queries: QueryStore = field(init=False)
    accounts: Accounts = field(init=False)
    jobs: JobStore = field(init=False)

    def __post_init__(self) -> None:
        """Put all subjects on the same database."""
        for name, kind in (
            ("devices", DeviceStore),
            ("check_ins", CheckInStore),
            ("outcomes", StageOutcomeStore),
            ("decisions", DecisionStore),
            ("audit", AuditLog),
            ("alerts", AlertStore),
            ("actions", ActionStore),
            ("positions", ReaderPositions),
            ("queries", QueryStore),
            ("accounts", Accounts),
            ("jobs", JobStore),
        ):
            object.__setattr__(self, name, kind(self.database))

    def leadership(self) -> Leadership:
        """Return a lock by which this process may become the one that decides."""
        return open_leadership(self.database)

    def backup(self, path: Path, *, now: float) -> int:
        """See `backup.backup`."""
        return backups.write_backup(self.database, path, now=now)

    def restore(self, path: Path) -> int:
        """See `backup.restore`."""
        return backups.restore_backup(self.database, path)

    def delete_expired(self, retention: RetentionPeriods, *, now: float) -> dict[str, int]:
        """See `retention.delete_expired`."""
        return retentions.delete_expired(self.database, retention, now=now)

    def delete_old_nonces(self, *, now: float) -> int:
        """See `retention.delete_old_nonces`."""
        return retentions.delete_old_nonces(self.database, now=now)

    def close(self) -> None:
        """Give back all connections."""
        self.database.close()


def open_fleet_store(address: str, *, timeout_seconds: float = 20.0) -> FleetStore:
    """Return a store that was made before.

    Args:
        address: `sqlite:///fleet.db` or `postgresql://user@host/name`.
        timeout_seconds: How long a database that is away is waited for.

    Raises:
        InputError: The address is none.
        VersionError: The database is of another version.
        GoneError: It did not answer for too long.
    """
    database = open_database(address, timeout_seconds=timeout_seconds)
    try:
        check_version(database)
    except BaseException:
        database.close()
        raise
    return FleetStore(database)


def create_store(address: str, *, timeout_seconds: float = 20.0) -> FleetStore:
    """Return a store, made or brought to this release's version first; see `open_fleet_store`.

    Raises:
        InputError: The address is none.
        VersionError: The database is of a later version, or of something else.
        GoneError: It did not answer for too long.
    """
    database = open_database(address, make=True, timeout_seconds=timeout_seconds)
    try:
        migrate(database)
    except BaseException:
        database.close()
        raise
    return FleetStore(database)
