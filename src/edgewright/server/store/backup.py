"""A backup: all tables as they were at one moment, in a file that either database can be restored from.

A file of records of msgpack, packed with zstandard: a heading, rows, an end. The end holds the number of rows and
their sha256, so that a file that was cut off or damaged restores nothing. It holds hashes of secrets and what
devices said: keep it as safe as the database.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import zstandard
from sqlalchemy import Connection, Table, func, insert, select, text

from edgewright.contract.errors import InputError, OutputError, WorkError
from edgewright.server.store.database import Database
from edgewright.server.store.migration import check_version, latest_version
from edgewright.server.store.tables import alert_changes, metadata
from edgewright.trust.fsync import fsync_path

__all__ = ["restore_backup", "write_backup"]

_FORMAT = "edgewright.backup.1"
_ROWS = 500
_MAX_LINE = 1 << 30


class _Heading(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: str
    version: str
    at: float


class _Rows(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="rows"):
    table: str
    columns: list[str]
    rows: list[list[Any]]


class _End(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="end"):
    rows: int
    sha256: str


def write_backup(database: Database, path: Path, *, now: float) -> int:
    """Write a backup while the fleet goes on, and return its number of rows.

    Args:
        database: Of this release's version.
        path: Of the file, which must not be there yet.
        now: When.

    Raises:
        OutputError: The file cannot be written, or is there.
        VersionError: The database is of another version.
    """
    check_version(database)
    partial = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
    try:
        # A file of secrets' hashes is its owner's only.
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            count = database.read(lambda connection: _write(connection, stream, now))
            stream.flush()
            os.fsync(stream.fileno())
        os.link(partial, path)  # unlike a rename, this never replaces
        fsync_path(path.parent)
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written: {error.strerror}", remedy="Give a new file, and space for it."
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return count


def restore_backup(database: Database, path: Path) -> int:
    """Fill an empty database from a backup, all or nothing, and return the number of rows.

    Args:
        database: Migrated, without a row.
        path: Of the backup.

    Raises:
        InputError: The file is no backup, damaged, or of another version.
        WorkError: The database is not empty, or of another version.
    """
    check_version(database)
    for _ in _read(path):
        pass  # all of it, before anything is written

    def run(connection: Connection) -> int:
        for table in metadata.sorted_tables:
            if connection.execute(select(func.count()).select_from(table)).scalar_one():
                raise WorkError(
                    f"the database is not empty: {table.name} holds rows", remedy="Restore into a new one."
                )
        count = 0
        for part in _read(path):
            table = metadata.tables[part.table]
            connection.execute(insert(table), [dict(zip(part.columns, row, strict=True)) for row in part.rows])
            count += len(part.rows)
        if connection.dialect.name == "postgresql":
            # What counts up by itself goes on after the highest.
            connection.execute(
                text("SELECT setval(pg_get_serial_sequence('alert_changes', 'id'), :last, :used)"),
                _last(connection, alert_changes),
            )
        return count

    return database.write(run)


def _last(connection: Connection, table: Table) -> dict[str, Any]:
    last = connection.execute(select(func.max(table.c.id))).scalar()
    return {"last": last or 1, "used": last is not None}


def _write(connection: Connection, stream: BinaryIO, now: float) -> int:
    if connection.dialect.name == "postgresql":
        # One moment for all tables; SQLite's reader has that anyway.
        connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY"))
    stream.seek(0)
    stream.truncate()
    encoder, digest, count = msgspec.msgpack.Encoder(), hashlib.sha256(), 0
    with zstandard.ZstdCompressor(level=3).stream_writer(stream, closefd=False) as packed:
        for part in _parts(connection, _Heading(_FORMAT, latest_version(), now)):
            count += len(part.rows) if isinstance(part, _Rows) else 0
            line = encoder.encode(part)
            digest.update(line)
            packed.write(len(line).to_bytes(8, "big") + line)
        line = encoder.encode(_End(count, digest.hexdigest()))
        packed.write(len(line).to_bytes(8, "big") + line)
    return count


def _parts(connection: Connection, heading: _Heading) -> Iterator[_Heading | _Rows]:
    yield heading
    for table in metadata.sorted_tables:
        found = connection.execution_options(yield_per=_ROWS).execute(select(table).order_by(*table.primary_key))
        columns = [str(column.name) for column in table.columns]
        for rows in found.partitions():
            yield _Rows(str(table.name), columns, [list(row) for row in rows])


def _read(path: Path) -> Iterator[_Rows]:
    """Return the rows of a backup; whoever has had them all knows that they are all."""
    decoder, digest, count = msgspec.msgpack.Decoder(_Rows | _End), hashlib.sha256(), 0
    try:
        with path.open("rb") as stream, zstandard.ZstdDecompressor().stream_reader(stream) as packed:
            lines = _lines(packed)
            first = next(lines, b"")
            heading = msgspec.msgpack.decode(first, type=_Heading)
            if (heading.format, heading.version) != (_FORMAT, latest_version()):
                raise InputError(
                    f"{path} is of version {heading.version}, this release reads {latest_version()}",
                    remedy="Restore it with the release that made it, then migrate.",
                )
            digest.update(first)
            for line in lines:
                part = decoder.decode(line)
                if isinstance(part, _End):
                    if part != _End(count, digest.hexdigest()):
                        break
                    return
                if part.table not in metadata.tables:
                    break
                digest.update(line)
                count += len(part.rows)
                yield part
    except (OSError, UnicodeDecodeError, msgspec.MsgspecError, zstandard.ZstdError) as error:
        raise InputError(f"{path} is no backup: {error}", remedy="Give another file.") from error
    raise InputError(f"{path} is damaged or was cut off", remedy="Give another backup; nothing was restored.")


def _lines(stream: Any) -> Iterator[bytes]:
    while len(length := _exactly(stream, 8)) == 8:
        size = int.from_bytes(length, "big")
        if size > _MAX_LINE or len(line := _exactly(stream, size)) < size:
            return
        yield line


def _exactly(stream: Any, size: int) -> bytes:
    parts: list[bytes] = []
    while size and (part := stream.read(min(size, 1 << 20))):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
