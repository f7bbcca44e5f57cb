"""SQLite or PostgreSQL: how it is opened, what a transaction is, what is tried again and for how long.

Work that is handed in is a function of a connection and may run more than once: a connection can be lost after the
database has committed. So each piece of work must leave the same behind when it is repeated.
"""

import os
import random
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, Table, create_engine, event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from edgewright.contract.errors import InputError, OutputError, WorkError

__all__ = ["Database", "DatabaseUnavailableError", "checked_address", "file_of", "insert_new", "open_database"]

_T = TypeVar("_T")
_WRITES = "edgewright_writes"
# A commit is on the disk when it returns (FULL); readers do not wait for writers (WAL); a writer waits for another.
_PRAGMAS = {
    "journal_mode": "WAL",
    "synchronous": "FULL",
    "foreign_keys": "ON",
    "busy_timeout": "1000",
    "cache_size": "-65536",
    "temp_store": "MEMORY",
    "journal_size_limit": "67108864",
    "trusted_schema": "OFF",
}
# Conflicts of transactions, servers that start or stop, too many connections; class 08 is the connection itself.
_TRANSIENT = {"40001", "40P01", "53300", "55P03", "57P01", "57P02", "57P03"}
_TRANSIENT_SQLITE = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_CANTOPEN}
_MIN_SQLITE = (3, 35)  # RETURNING
_FIRST_WAIT_SECONDS, _MAX_WAIT_SECONDS = 0.02, 1.0


class DatabaseUnavailableError(WorkError):
    """The database did not answer for as long as one waits for it."""

    code = "unavailable"


@dataclass(slots=True)
class Database:
    """A database.

    Attributes:
        engine: Of SQLAlchemy.
        timeout_seconds: How long work is tried again before it fails.
        clock: Seconds, from any beginning.
        sleep: Waits.
    """

    engine: Engine
    timeout_seconds: float = 20.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    _jitter: random.Random = field(default_factory=random.Random)

    @property
    def is_sqlite(self) -> bool:
        """Whether it is SQLite."""
        return self.engine.dialect.name == "sqlite"

    def read(self, work: Callable[[Connection], _T]) -> _T:
        """Return what work finds in one transaction that writes nothing.

        Raises:
            GoneError: The database did not answer for too long.
            WorkError: It failed in another way.
        """
        return self._tried(work, writes=False)

    def write(self, work: Callable[[Connection], _T]) -> _T:
        """Return what work says, once all that it wrote is on the disk; nothing is if it raises.

        Raises:
            GoneError: The database did not answer for too long.
            WorkError: It failed in another way.
        """
        return self._tried(work, writes=True)

    def _tried(self, work: Callable[[Connection], _T], *, writes: bool) -> _T:
        begun, wait_seconds, tries = self.clock(), _FIRST_WAIT_SECONDS, 1
        while True:
            try:
                plain = self.engine.connect().execution_options(**{_WRITES: writes})
                with plain as connection, connection.begin():
                    return work(connection)
            except SQLAlchemyError as error:
                if not _is_transient(error):
                    raise WorkError(
                        f"the database failed: {_driver_message(error)}",
                        remedy="See its own log; nothing was written.",
                    ) from error
                left_seconds = self.timeout_seconds - (self.clock() - begun)
                if left_seconds <= 0:
                    raise DatabaseUnavailableError(
                        f"the database did not answer for {self.timeout_seconds:g} s, in {tries} "
                        f"tries: {_driver_message(error)}",
                        remedy=f"See that {_redacted(self.engine.url)} runs and can be reached; then try again.",
                    ) from error
            # Spread, so that workers that lost the same database do not all come back at once.
            self.sleep(min(left_seconds, wait_seconds * (0.5 + self._jitter.random())))
            wait_seconds, tries = min(2 * wait_seconds, _MAX_WAIT_SECONDS), tries + 1

    def close(self) -> None:
        """Give back all connections."""
        self.engine.dispose()


def checked_address(address: str) -> URL:
    """Return the address of a database.

    Args:
        address: `sqlite:///relative.db`, `sqlite:////absolute.db` or `postgresql://user@host/name`.

    Raises:
        InputError: It is none of them.
    """
    advice = "Write sqlite:///fleet.db or postgresql://user@host/name."
    try:
        url = make_url(address)
    except (ArgumentError, ValueError) as error:
        raise InputError("the database's address cannot be read", remedy=advice) from error
    if url.drivername == "sqlite" and url.database and url.database != ":memory:" and not url.query:
        return url
    if url.drivername in ("postgresql", "postgres", "postgresql+psycopg"):
        return url.set(drivername="postgresql+psycopg")
    raise InputError(f"the address {_redacted(url)} is of no database known here", remedy=advice)


def file_of(url: URL) -> Path:
    """Return where an SQLite database lies."""
    return Path(url.database or "").absolute()


def open_database(address: str, *, make: bool = False, timeout_seconds: float = 20.0) -> Database:
    """Return a database; nothing is read yet.

    Args:
        address: See `checked_address`.
        make: Whether an SQLite file may be made; otherwise one that is lost is not replaced by an empty one.
        timeout_seconds: How long work is tried again before it fails.

    Raises:
        InputError: The address is none.
        OutputError: A file cannot be made.
    """
    url = checked_address(address)
    if url.drivername == "sqlite":
        if sqlite3.sqlite_version_info < _MIN_SQLITE:
            raise InputError(
                f"Python's SQLite is {sqlite3.sqlite_version}, at least 3.35 is needed",
                remedy="Use a newer Python, or PostgreSQL.",
            )
        if make:
            _make_file(file_of(url))
        uri = file_of(url).as_uri() + "?mode=rw"
        engine = create_engine(
            f"sqlite:///{file_of(url)}", creator=lambda: sqlite3.connect(uri, uri=True, check_same_thread=False)
        )
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    else:
        engine = create_engine(
            url,
            pool_size=5,
            max_overflow=10,
            pool_timeout=5,
            connect_args={
                "connect_timeout": 5,
                "application_name": "edgewright",
                "keepalives_idle": 10,
                "tcp_user_timeout": 15_000,
            },
        )
    return Database(engine, timeout_seconds)


def insert_new(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> int:
    """Add rows whose keys are not there yet, leave the others as they are, and return how many were added."""
    if not rows:
        return 0
    dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
    # Counted by what comes back: drivers know no number of rows for a statement with many sets of values.
    new = dialect.insert(table).on_conflict_do_nothing().returning(*table.primary_key)
    return len(connection.execute(new, [dict(row) for row in rows]).all())


def _make_file(path: Path) -> None:
    """Make an empty file that is its owner's alone, unless there is one; SQLite's others beside it are like it."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written: {error.strerror}",
            remedy="Give one in a folder that exists.",
        ) from error


def _prepare_sqlite(connection: Any, _: Any) -> None:
    # The driver must not begin transactions by itself: `_begin_sqlite` does.
    connection.isolation_level = None
    for name, value in _PRAGMAS.items():
        connection.execute(f"PRAGMA {name}={value}").close()


def _begin_sqlite(connection: Connection) -> None:
    # A reader that turns writer fails at once where another writes; who says first that it will write only waits.
    writes = connection.get_execution_options().get(_WRITES, True)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _is_transient(error: SQLAlchemyError) -> bool:
    """Whether trying again may help."""
    if isinstance(error, PoolTimeoutError):
        return True
    if not isinstance(error, DBAPIError):
        return False
    if isinstance(error.orig, sqlite3.Error):
        # The low byte is the primary code.
        return (getattr(error.orig, "sqlite_errorcode", 0) & 0xFF) in _TRANSIENT_SQLITE
    code = getattr(error.orig, "sqlstate", None)
    if code is None:
        return error.connection_invalidated or type(error.orig).__name__ in (
            "OperationalError",
            "ConnectionTimeout",
        )
    return code in _TRANSIENT or code.startswith("08")


def _driver_message(error: SQLAlchemyError) -> str:
    """Return a database's own words, without the statement and its values."""
    words = str(error.orig if isinstance(error, DBAPIError) else error).strip()
    return words.splitlines()[0][:300] if words else type(error).__name__


def _redacted(url: URL) -> str:
    return url.render_as_string(hide_password=True)
