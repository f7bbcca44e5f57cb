"""Who did what, as a chain of hashes: nothing in it can be changed, left out or put in later without being seen.

What is cut off at the end is seen only by who kept a later digest: write `head` down elsewhere now and then.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, Select, insert, select, text

from edgewright.server.store.database import Database
from edgewright.server.store.records import AuditEntry
from edgewright.server.store.tables import audit

__all__ = ["AuditLog", "with_digest"]

_FIRST = "0" * 64
_PAGE = 1000
# One writer at a time, in PostgreSQL; SQLite has never more.
_LOCK = 0x6564_6765_6175_64


@dataclass(frozen=True, slots=True)
class AuditLog:
    """The audit log.

    Attributes:
        database: That holds it.
    """

    database: Database

    def write(
        self, actor: str, action: str, subject: str, *, at: float, detail: dict[str, Any] | None = None
    ) -> AuditEntry:
        """Add an entry; no secret may be in it.

        Args:
            actor: Who: `user:NAME`, `token:NAME`, `server`.
            action: What.
            subject: To what.
            at: When.
            detail: More, that JSON can hold.
        """
        name = os.urandom(16).hex()
        content = msgspec.Raw(msgspec.json.encode(detail or {}, order="sorted"))

        def run(connection: Connection) -> AuditEntry:
            if connection.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
            if known := connection.execute(select(audit).where(audit.c.id == name)).first():
                return _entry(known)
            last = connection.execute(_last()).first()
            number, before = (last.number, last.digest) if last else (0, _FIRST)
            entry = with_digest(
                AuditEntry(
                    number=number + 1,
                    id=name,
                    at=at,
                    actor=actor,
                    action=action,
                    subject=subject,
                    detail=content,
                    previous_digest=before,
                    digest="",
                )
            )
            connection.execute(
                insert(audit).values(**msgspec.structs.asdict(entry) | {"detail": bytes(entry.detail)})
            )
            return entry

        return self.database.write(run)

    def entries(self, *, before: int = 1 << 62, limit: int = 100) -> list[AuditEntry]:
        """Return entries, the newest first: at most 1,000, with numbers below `before`."""
        query = (
            select(audit).where(audit.c.number < before).order_by(audit.c.number.desc()).limit(min(limit, _PAGE))
        )
        return self._some(query)

    def head(self) -> tuple[int, str]:
        """Return the last entry's number and digest, to be kept elsewhere; 0 and zeros if there is none."""
        row = self.database.read(lambda connection: connection.execute(_last()).first())
        return (row.number, row.digest) if row else (0, _FIRST)

    def broken_at(self, *, known: tuple[int, str] = (0, _FIRST)) -> int | None:
        """Return the number of the first entry that is not as it was written, None if all are.

        Args:
            known: A `head` that was kept; if the log does not hold it any more, its number is returned.
        """
        expected, digest, seen = 1, _FIRST, known == (0, _FIRST)
        for entry in self._each():
            if (
                entry.number != expected
                or entry.previous_digest != digest
                or with_digest(entry).digest != entry.digest
            ):
                return expected
            expected, digest = entry.number + 1, entry.digest
            seen = seen or (entry.number, entry.digest) == known
        return None if seen else known[0]

    def _each(self) -> Iterator[AuditEntry]:
        after = 0
        while True:
            query = select(audit).where(audit.c.number > after).order_by(audit.c.number).limit(_PAGE)
            found = self._some(query)
            if not found:
                return
            yield from found
            after = found[-1].number

    def _some(self, query: Select[Any]) -> list[AuditEntry]:
        return self.database.read(lambda connection: [_entry(row) for row in connection.execute(query)])


def with_digest(entry: AuditEntry) -> AuditEntry:
    """Return an entry with the digest of what it says."""
    said = (
        entry.number,
        entry.id,
        entry.at.hex(),
        entry.actor,
        entry.action,
        entry.subject,
        bytes(entry.detail).decode(),
        entry.previous_digest,
    )
    digest = hashlib.sha256(b"edgewright.audit.1\n" + msgspec.json.encode(said)).hexdigest()
    return msgspec.structs.replace(entry, digest=digest)


def _last() -> Any:
    return select(audit.c.number, audit.c.digest).order_by(audit.c.number.desc()).limit(1)


def _entry(row: Row[Any]) -> AuditEntry:
    return AuditEntry(
        number=row.number,
        id=row.id,
        at=row.at,
        actor=row.actor,
        action=row.action,
        subject=row.subject,
        detail=msgspec.Raw(row.detail),
        previous_digest=row.previous_digest,
        digest=row.digest,
    )
