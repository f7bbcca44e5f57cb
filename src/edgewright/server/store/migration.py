"""Bringing a database to the version that this release reads, and refusing one of another version.

A migration runs in one transaction, and one at a time. Those of a running fleet only add; what falls out of use is
removed a release later, so that old and new workers run side by side meanwhile.
"""

from collections.abc import Sequence
from pathlib import Path

from alembic.config import Config
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, inspect, text

from edgewright.contract.errors import WorkError
from edgewright.server.store.database import Database

__all__ = ["VersionError", "check_version", "latest_version", "migrate", "version_of"]

_MIGRATIONS = Path(__file__).parent / "migrations"
# Revisions of version 0.1, before schema 2.
_UNRELEASED = ("0001", "0002")
# Any number that other users of the same server are unlikely to take.
_LOCK = 0x6564_6765_6D69_67


class VersionError(WorkError):
    """The database is of a version that this release does not read."""

    code = "wrong_database_version"


def latest_version(places: Sequence[Path] = (_MIGRATIONS,)) -> str:
    """Return the version that this release reads."""
    found = _scripts(places).get_current_head()
    if found is None:
        raise ValueError("there are no migrations")
    return found


def version_of(database: Database) -> str | None:
    """Return a database's version, None for an empty one.

    Raises:
        VersionError: It holds tables of something else.
    """
    return database.read(_version)


def check_version(database: Database) -> None:
    """Refuse a database of another version.

    Raises:
        VersionError: It is one.
    """
    found = version_of(database)
    if found != latest_version():
        raise _wrong_version(found)


def migrate(database: Database, *, to: str = "head", places: Sequence[Path] = (_MIGRATIONS,)) -> str:
    """Bring a database to a version and return it; one that is there already is left alone.

    Args:
        database: Empty, or of an earlier version.
        to: A version, or `latest_version`.
        places: Folders of migrations.

    Raises:
        VersionError: It is of a later version, or of something else.
    """
    scripts = _scripts(places)

    def run(connection: Connection) -> str:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        found = _version(connection)
        try:
            scripts.get_revision(found or "base")
            context = MigrationContext.configure(
                connection,
                opts={"fn": lambda revision, _: scripts._upgrade_revs(to, revision)},
            )
            with Operations.context(context):
                context.run_migrations()
        except CommandError as error:
            raise _wrong_version(found) from error
        return _version(connection) or ""

    return database.write(run)


def _version(connection: Connection) -> str | None:
    found = MigrationContext.configure(connection).get_current_revision()
    if found is None and (tables := inspect(connection).get_table_names()):
        raise VersionError(
            f"the database holds tables of something else, such as {tables[0]}", remedy="Give an empty database."
        )
    return found


def _scripts(places: Sequence[Path]) -> ScriptDirectory:
    config = Config()
    config.set_main_option("script_location", str(places[0]).replace("%", "%%"))
    config.set_main_option("path_separator", "newline")
    config.set_main_option("version_locations", "\n".join(str(place).replace("%", "%%") for place in places))
    return ScriptDirectory.from_config(config)


def _wrong_version(found: str | None) -> VersionError:
    if found is None:
        return VersionError("the database is empty", remedy="Make its tables first: migrate it.")
    if found in _UNRELEASED:
        return VersionError(
            "the database was made by Edgewright 0.1, whose records this version does not read",
            remedy="Name an empty database; devices, users and alerts are entered anew.",
        )
    return VersionError(
        f"the database is of version {found}, this release reads {latest_version()}",
        remedy="Back it up and migrate it if it is older; if it is newer, run the release that made it.",
    )
