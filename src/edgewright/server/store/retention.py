"""What is forgotten, and when. Decisions and the audit log are kept for good.

Rows go in small transactions, so that check-ins never wait long. Hours are folded into days before they go.
"""

from dataclasses import dataclass

from sqlalchemy import Connection, Table, delete, select, text, tuple_
from sqlalchemy.sql.elements import ColumnElement

from edgewright.server.store.check_ins import HOUR_SECONDS
from edgewright.server.store.database import Database
from edgewright.server.store.tables import (
    alert_changes,
    automated_actions,
    enrolment_tokens,
    jobs,
    nonces,
    outcomes,
    rollups,
    sessions,
    sum_messages,
)

__all__ = ["DAY_SECONDS", "RetentionPeriods", "delete_expired", "delete_old_nonces"]

DAY_SECONDS = 86400
_CHUNK = 5000
_SUMS = "check_ins refused with_failures latency_count latency_sum_seconds battery_count battery_sum".split()
_KEY = "device_class, model, version, arm"
_FOLD = (
    f"INSERT INTO rollups (span_seconds, started_at, {_KEY}, devices, {', '.join(_SUMS)}) "  # noqa: S608 (constants only)
    f"SELECT {DAY_SECONDS}, :day, {_KEY}, MAX(devices), {', '.join(f'SUM({name})' for name in _SUMS)} FROM rollups "
    f"WHERE span_seconds = {HOUR_SECONDS} AND started_at >= :day AND started_at < :day + {DAY_SECONDS} GROUP BY {_KEY} "
    f"ON CONFLICT (span_seconds, started_at, {_KEY}) DO UPDATE SET "
    "devices = CASE WHEN excluded.devices > rollups.devices THEN excluded.devices ELSE rollups.devices END, "
    + ", ".join(f"{name} = rollups.{name} + excluded.{name}" for name in _SUMS)
)
_FOLDED = (
    f"DELETE FROM rollups WHERE span_seconds = {HOUR_SECONDS} "  # noqa: S608
    f"AND started_at >= :day AND started_at < :day + {DAY_SECONDS}"
)


@dataclass(frozen=True, slots=True)
class RetentionPeriods:
    """How long things are kept, in seconds.

    Attributes:
        hourly_rollups_seconds: Roll-ups by the hour; whole days of them are folded.
        daily_rollups_seconds: Roll-ups by the day.
        outcomes_seconds: Of devices in stages.
        sum_messages_seconds: Of private sums that nobody ended.
        jobs_seconds: That are done or have failed.
        alert_changes_seconds: When alerts went from a state to another.
        actions_seconds: What alerts set off, once it ended.
        enrolment_tokens_seconds: That are used or void.
    """

    hourly_rollups_seconds: float = 90.0 * DAY_SECONDS
    daily_rollups_seconds: float = 5 * 366.0 * DAY_SECONDS
    outcomes_seconds: float = 2 * 366.0 * DAY_SECONDS
    sum_messages_seconds: float = 14.0 * DAY_SECONDS
    jobs_seconds: float = 30.0 * DAY_SECONDS
    alert_changes_seconds: float = 366.0 * DAY_SECONDS
    actions_seconds: float = 366.0 * DAY_SECONDS
    enrolment_tokens_seconds: float = 30.0 * DAY_SECONDS


def delete_expired(database: Database, retention: RetentionPeriods, *, now: float) -> dict[str, int]:
    """Fold and forget what is due, and return how many rows went, by table.

    It may be interrupted anywhere and asked again.
    """
    return {
        "rollups": _fold(database, now - retention.hourly_rollups_seconds)
        + _forget(
            database,
            rollups,
            (rollups.c.span_seconds == DAY_SECONDS)
            & (rollups.c.started_at < now - retention.daily_rollups_seconds),
        ),
        "nonces": delete_old_nonces(database, now=now),
        "sessions": _forget(database, sessions, sessions.c.expires_at < now),
        "outcomes": _forget(database, outcomes, outcomes.c.at < now - retention.outcomes_seconds),
        "sum_messages": _forget(database, sum_messages, sum_messages.c.at < now - retention.sum_messages_seconds),
        "jobs": _forget(database, jobs, jobs.c.ended_at < now - retention.jobs_seconds),
        "alert_changes": _forget(
            database, alert_changes, alert_changes.c.at < now - retention.alert_changes_seconds
        ),
        "automated_actions": _forget(
            database, automated_actions, automated_actions.c.ended_at < now - retention.actions_seconds
        ),
        "enrolment_tokens": _forget(
            database, enrolment_tokens, enrolment_tokens.c.expires_at < now - retention.enrolment_tokens_seconds
        ),
    }


def delete_old_nonces(database: Database, *, now: float) -> int:
    """Forget nonces of requests that are too old to be believed anyway, and return how many went."""
    return _forget(database, nonces, nonces.c.until < now)


def _fold(database: Database, before_seconds: float) -> int:
    """Make days of hours, a day at a time, and return how many hours went."""
    gone = 0
    last = int(before_seconds // DAY_SECONDS) * DAY_SECONDS
    while True:
        oldest = database.read(
            lambda connection: connection.execute(
                text("SELECT MIN(started_at) FROM rollups WHERE span_seconds = :span AND started_at < :last"),
                {"span": HOUR_SECONDS, "last": last},
            ).scalar()
        )
        if oldest is None:
            return gone
        day = {"day": int(oldest // DAY_SECONDS) * DAY_SECONDS}

        def run(connection: Connection, day: dict[str, int] = day) -> int:
            # One writer at a time, or two leaders would each add the same hours to the day.
            if connection.dialect.name == "postgresql":
                connection.execute(text("LOCK TABLE rollups IN SHARE ROW EXCLUSIVE MODE"))
            connection.execute(text(_FOLD), day)
            return connection.execute(text(_FOLDED), day).rowcount

        gone += database.write(run)


def _forget(database: Database, table: Table, due: ColumnElement[bool]) -> int:
    keys = tuple_(*table.primary_key)
    some = select(*table.primary_key).where(due).limit(_CHUNK)
    gone = 0
    while True:
        count = database.write(lambda connection: connection.execute(delete(table).where(keys.in_(some))).rowcount)
        gone += count
        if count < _CHUNK:
            return gone
