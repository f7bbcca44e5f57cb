"""Which of several processes decides: whoever holds a lock that the system itself frees when the process dies.

A leader asks `is_held` before each piece of work. Between asking and acting it may still lose the lock, so what it
writes is numbered too (`evidence.Decisions`): of two leaders, the second to write is refused.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import SQLAlchemyError

from edgewright.device.lock import FileLock
from edgewright.server.store.database import Database, file_of

__all__ = ["AdvisoryLeadership", "FileLeadership", "Leadership", "open_leadership"]

_LOCK = 0x6564_6765_6C64_72


class Leadership(Protocol):
    """A lock of which one process has at most one."""

    def try_acquire(self) -> bool:
        """Try to lead; whether this process does now. It never waits."""

    def is_held(self) -> bool:
        """Whether this process leads still."""

    def release(self) -> None:
        """Let another one lead."""


@dataclass(slots=True)
class FileLeadership:
    """A lock on a file beside the SQLite database; all processes are on one machine.

    Attributes:
        path: Of the file.
    """

    path: Path
    _lock: FileLock | None = field(default=None)

    def try_acquire(self) -> bool:
        """See `Leadership`."""
        if self._lock is None or not self._lock.is_held:
            self._lock = FileLock(self.path)
        return self._lock.is_held

    def is_held(self) -> bool:
        """See `Leadership`."""
        return self._lock is not None and self._lock.is_held

    def release(self) -> None:
        """See `Leadership`."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None


@dataclass(slots=True)
class AdvisoryLeadership:
    """An advisory lock of PostgreSQL, held by a connection of its own: with the connection the lock is lost.

    It needs a session of its own, so no pooler that hands out connections by transaction may stand in between.

    Attributes:
        engine: Of the database.
    """

    engine: Engine
    _connection: Connection | None = field(default=None)
    _backend: int = field(default=0)

    def try_acquire(self) -> bool:
        """See `Leadership`."""
        if self.is_held():
            return True
        self.release()
        try:
            connection = self.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
            connection.detach()
            self._connection = connection
            if connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": _LOCK}).scalar():
                self._backend = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
                return True
        except SQLAlchemyError:
            pass  # a database that is away has no leader
        self.release()
        return False

    def is_held(self) -> bool:
        """See `Leadership`."""
        if self._connection is None or not self._backend:
            return False
        try:
            if self._connection.execute(text("SELECT pg_backend_pid()")).scalar() == self._backend:
                return True
        except SQLAlchemyError:
            pass
        self.release()
        return False

    def release(self) -> None:
        """See `Leadership`."""
        connection, self._connection, self._backend = self._connection, None, 0
        if connection is not None:
            try:
                connection.close()  # it was detached, so this ends the session, and with it the lock
            except SQLAlchemyError:
                connection.invalidate()


def open_leadership(database: Database) -> Leadership:
    """Return the leadership that goes with a database."""
    if database.is_sqlite:
        file = file_of(database.engine.url)
        return FileLeadership(file.with_name(f"{file.name}.leader"))
    return AdvisoryLeadership(database.engine)
