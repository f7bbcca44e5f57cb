"""One store, two databases: what the rest of the server keeps things in.

SQLite for one machine, PostgreSQL for more; both pass the same tests. Each attribute is one subject.
"""

from dataclasses import dataclass, field
from pathlib import Path

from edgewright.server.store import backup as backups
from edgewright.server.store import retention as retentions
from edgewright.server.store.accounts import People
from edgewright.server.store.actions import Acts, Positions
from edgewright.server.store.alerts import Alerts
from edgewright.server.store.audit import Audit
from edgewright.server.store.check_ins import CheckIns
from edgewright.server.store.database import Database, open_database
from edgewright.server.store.decisions import Decisions, Outcomes
from edgewright.server.store.devices import Devices
from edgewright.server.store.jobs import Jobs
from edgewright.server.store.leader_election import Leadership, leadership_of
from edgewright.server.store.migration import check_version, migrate
from edgewright.server.store.queries import Sums
from edgewright.server.store.retention import Retention

__all__ = ["Store", "make_store", "open_store"]


@dataclass(frozen=True, slots=True)
class Store:
    """Everything that the control plane keeps.

    Attributes:
        database: Under all of it.
        devices: Enrolment, lists, groups.
        check_ins: Heartbeats: the hot path.
        outcomes: How devices fared in stages of rollouts.
        decisions: What was decided, from what.
        audit: Who did what.
        alerts: How rules stand.
        acts: What alerts set off.
        positions: How far readers of changes have come.
        sums: Queries, letters, results.
        people: Users, tokens, sessions.
        jobs: For bench devices.
    """

    database: Database
    devices: Devices = field(init=False)
    check_ins: CheckIns = field(init=False)
    outcomes: Outcomes = field(init=False)
    decisions: Decisions = field(init=False)
    audit: Audit = field(init=False)
    alerts: Alerts = field(init=False)
    acts: Acts = field(init=False)
    positions: Positions = field(init=False)
    sums: Sums = field(init=False)
    people: People = field(init=False)
    jobs: Jobs = field(init=False)

    def __post_init__(self) -> None:
        """Put all subjects on the same database."""
        for name, kind in (
            ("devices", Devices),
            ("check_ins", CheckIns),
            ("outcomes", Outcomes),
            ("decisions", Decisions),
            ("audit", Audit),
            ("alerts", Alerts),
            ("acts", Acts),
            ("positions", Positions),
            ("sums", Sums),
            ("people", People),
            ("jobs", Jobs),
        ):
            object.__setattr__(self, name, kind(self.database))

    def leadership(self) -> Leadership:
        """Return a lock by which this process may become the one that decides."""
        return leadership_of(self.database)

    def backup(self, path: Path, *, now_s: float) -> int:
        """See `backup.backup`."""
        return backups.backup(self.database, path, now_s=now_s)

    def restore(self, path: Path) -> int:
        """See `backup.restore`."""
        return backups.restore(self.database, path)

    def sweep(self, retention: Retention, *, now_s: float) -> dict[str, int]:
        """See `retention.sweep`."""
        return retentions.sweep(self.database, retention, now_s=now_s)

    def forget_nonces(self, *, now_s: float) -> int:
        """See `retention.forget_nonces`."""
        return retentions.forget_nonces(self.database, now_s=now_s)

    def close(self) -> None:
        """Give back all connections."""
        self.database.close()


def open_store(address: str, *, patience_s: float = 20.0) -> Store:
    """Return a store that was made before.

    Args:
        address: `sqlite:///fleet.db` or `postgresql://user@host/name`.
        patience_s: How long a database that is away is waited for.

    Raises:
        InputError: The address is none.
        VersionError: The database is of another version.
        GoneError: It did not answer for too long.
    """
    database = open_database(address, patience_s=patience_s)
    try:
        check_version(database)
    except BaseException:
        database.close()
        raise
    return Store(database)


def make_store(address: str, *, patience_s: float = 20.0) -> Store:
    """Return a store, made or brought to this release's version first; see `open_store`.

    Raises:
        InputError: The address is none.
        VersionError: The database is of a later version, or of something else.
        GoneError: It did not answer for too long.
    """
    database = open_database(address, make=True, patience_s=patience_s)
    try:
        migrate(database)
    except BaseException:
        database.close()
        raise
    return Store(database)
