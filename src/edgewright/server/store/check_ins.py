"""The hot path: many check-ins in one transaction. A device's last status is updated, its group's hour is added to.

The statements are written by hand: PostgreSQL takes a batch as one statement over arrays (`%b` sends them in
binary, for half of the CPU that text takes), SQLite as many bindings of one. Rows are touched in order of their
keys, so that two workers wait for each other instead of both failing.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Connection, select, text

from edgewright.server.store.database import Database
from edgewright.server.store.records import CheckIn, CheckInRollup
from edgewright.server.store.tables import rollups

__all__ = ["HOUR_SECONDS", "CheckInStore"]

HOUR_SECONDS = 3600
# Twice as long as a request is believed after it was signed, by `trust/keys/device_identity.py`.
_NONCE_SECONDS = 600.0
_Key = tuple[int, str, str, str, str]
_Sums = tuple[int, int, int, int, float, int, float]

# The older of two check-ins that arrive in the wrong order changes nothing.
_UPDATE_STATUS_SQLITE = """
UPDATE statuses SET last_seen_at=?2, model=?3, version=?4, digest=?5, state=?6, arm=?7, refusal=?8, body=?9
WHERE device_id=?1 AND last_seen_at<=?2
"""
_UPDATE_STATUS_POSTGRES = """
UPDATE statuses AS s SET last_seen_at=g.last_seen_at, model=g.model, version=g.version, digest=g.digest, state=g.state,
    arm=g.arm, refusal=g.refusal, body=g.body
FROM unnest(
    %b::text[], %b::float8[], %b::text[], %b::text[], %b::text[], %b::text[], %b::text[], %b::text[], %b::bytea[]
) AS g(device_id, last_seen_at, model, version, digest, state, arm, refusal, body)
WHERE s.device_id = g.device_id AND s.last_seen_at <= g.last_seen_at
"""
_LOCK_POSTGRES = "SELECT 1 FROM statuses WHERE device_id = ANY(%b::text[]) ORDER BY device_id FOR NO KEY UPDATE"
_NONCES_SQLITE = """
INSERT INTO nonces (nonce, until) SELECT value, ? FROM json_each(?) WHERE true
ON CONFLICT DO NOTHING RETURNING nonce
"""
_NONCES_POSTGRES = """
INSERT INTO nonces (until, nonce) SELECT %b::float8, n FROM unnest(%b::text[]) AS n ORDER BY n
ON CONFLICT DO NOTHING RETURNING nonce
"""
_ADDED = "check_ins refused with_failures latency_count latency_sum_seconds battery_count battery_sum".split()
_KEY = "started_at device_class model version arm".split()
_TYPES = "bigint text text text text bigint bigint bigint bigint float8 bigint float8".split()
_INTO = f"INSERT INTO rollups (span_seconds, devices, {', '.join((*_KEY, *_ADDED))}) "
_ADD = f"ON CONFLICT (span_seconds, {', '.join(_KEY)}) DO UPDATE SET " + ", ".join(
    f"{name} = rollups.{name} + excluded.{name}" for name in _ADDED
)
_ROLL_UP_SQLITE = f"{_INTO} VALUES ({HOUR_SECONDS}, 0, {', '.join('?' for _ in _TYPES)}) {_ADD}"
_ROLL_UP_POSTGRES = (
    f"{_INTO} SELECT {HOUR_SECONDS}, 0, g.* FROM unnest({', '.join(f'%b::{kind}[]' for kind in _TYPES)}) AS g "  # noqa: S608 (constants only)
    f"{_ADD}"
)


@dataclass(frozen=True, slots=True)
class CheckInStore:
    """Heartbeats.

    Attributes:
        database: That holds them.
    """

    database: Database

    def store_batch(self, batch: Sequence[CheckIn]) -> list[bool]:
        """Keep a batch; it is on the disk when this returns.

        Returns:
            For each whether it counts: not if its nonce was seen before. Of devices that were never enrolled the
            last status is not kept.

        Raises:
            GoneError: The database did not answer for too long; nothing of the batch counts.
        """
        if not batch:
            return []
        spent = [_hashed_nonce(one.device_id, one.nonce) if one.nonce else "" for one in batch]
        until = max(one.at for one in batch) + _NONCE_SECONDS
        # Of the batch itself: where the connection was lost after the commit, it must not be taken again.
        own = os.urandom(16).hex()
        counts: list[bool] = []

        def run(connection: Connection) -> list[bool]:
            left = _spend(connection, [own, *filter(None, spent)], until)
            if own not in left:
                return counts
            counts.clear()
            for nonce in spent:
                counts.append(not nonce or nonce in left)
                left.discard(nonce)
            taken = [one for one, good in zip(batch, counts, strict=True) if good]
            _keep_last(connection, taken)
            _add_up(connection, taken)
            return counts

        return self.database.write(run)

    def use_nonce(self, device_id: str, nonce: str, *, now: float) -> bool:
        """Whether a request's nonce is new; it is not any more afterwards. For requests that are no check-ins."""
        key = _hashed_nonce(device_id, nonce)
        return bool(self.database.write(lambda connection: _spend(connection, [key], now + _NONCE_SECONDS)))

    def rollups(self, started_at: float, ends_at: float) -> list[CheckInRollup]:
        """Return what groups of devices said in a stretch of time, in order of time."""
        order = (rollups.c.started_at, rollups.c.device_class, rollups.c.model, rollups.c.version, rollups.c.arm)
        query = (
            select(rollups)
            .where(rollups.c.started_at >= started_at, rollups.c.started_at < ends_at)
            .order_by(*order)
        )
        return self.database.read(
            lambda connection: [CheckInRollup(**row) for row in connection.execute(query).mappings()]
        )

    def versions(self, since: float) -> set[tuple[str, str, str]]:
        """Return device class, model and version of all that checked in since then, to the hour or day."""
        query = (
            select(rollups.c.device_class, rollups.c.model, rollups.c.version)
            .where(rollups.c.started_at + rollups.c.span_seconds > since)
            .distinct()
        )
        return self.database.read(lambda connection: {(*row,) for row in connection.execute(query)})

    def close_hour(self, started_at: int) -> int:
        """Write down how many devices each group had in an hour; the leader asks when it ends.

        A device that changed its group within the hour counts where it was last. Asking again does no harm until
        the devices have checked in anew.

        Returns:
            How many groups there were.
        """
        count = text(
            "UPDATE rollups SET devices = (SELECT count(*) FROM statuses s JOIN devices d ON d.id = s.device_id "
            "WHERE s.last_seen_at >= :start AND d.device_class = rollups.device_class AND s.model = rollups.model "
            "AND s.version = rollups.version AND s.arm = rollups.arm) "
            "WHERE span_seconds = :span AND started_at = :start"
        )
        return self.database.write(
            lambda connection: connection.execute(count, {"start": started_at, "span": HOUR_SECONDS}).rowcount
        )


def _hashed_nonce(device_id: str, nonce: str) -> str:
    # Bound to the device, so that nobody can use up another's.
    return hashlib.sha256(f"{device_id}.{nonce}".encode()).hexdigest()[:32]


def _spend(connection: Connection, nonces: list[str], until: float) -> set[str]:
    """Return those of the nonces that are new."""
    if not nonces:
        return set()
    if connection.dialect.name == "sqlite":
        found = connection.exec_driver_sql(_NONCES_SQLITE, (until, msgspec.json.encode(nonces).decode()))
    else:
        found = connection.exec_driver_sql(_NONCES_POSTGRES, (until, nonces))
    return set(found.scalars())


def _keep_last(connection: Connection, batch: Sequence[CheckIn]) -> None:
    newest: dict[str, CheckIn] = {}
    for one in batch:
        if (known := newest.get(one.device_id)) is None or known.at <= one.at:
            newest[one.device_id] = one
    if not newest:
        return
    encode = msgspec.json.Encoder().encode
    rows = [
        (
            name,
            one.at,
            one.status.model,
            one.status.version,
            one.status.digest,
            one.status.state,
            one.arm,
            one.status.refusal.code if one.status.refusal else "",
            encode(one.status),
        )
        for name, one in sorted(newest.items())
    ]
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(_LOCK_POSTGRES, ([row[0] for row in rows],))
    _each(connection, _UPDATE_STATUS_SQLITE, _UPDATE_STATUS_POSTGRES, rows)


def _add_up(connection: Connection, batch: Sequence[CheckIn]) -> None:
    sums: dict[_Key, _Sums] = {}
    for one in batch:
        status = one.status
        key = (int(one.at // HOUR_SECONDS) * HOUR_SECONDS, one.device_class, status.model, status.version, one.arm)
        n, refused, troubled, latencies, latency_seconds, batteries, battery = sums.get(
            key, (0, 0, 0, 0, 0.0, 0, 0.0)
        )
        sums[key] = (
            n + 1,
            refused + (status.refusal is not None),
            troubled + (status.failed_inferences > 0),
            latencies + (status.latency_seconds is not None),
            latency_seconds + (status.latency_seconds or 0.0),
            batteries + (status.battery_level is not None),
            battery + (status.battery_level or 0.0),
        )
    rows = [(*key, *values) for key, values in sorted(sums.items())]
    # Last, for these rows are everybody's: the shorter they are held, the better.
    if rows:
        _each(connection, _ROLL_UP_SQLITE, _ROLL_UP_POSTGRES, rows)


def _each(connection: Connection, sqlite: str, postgres: str, rows: list[tuple[Any, ...]]) -> None:
    """Run a statement for all rows: over arrays of their columns where the database can."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql(sqlite, rows)
    else:
        connection.exec_driver_sql(postgres, tuple(list(column) for column in zip(*rows, strict=True)))
