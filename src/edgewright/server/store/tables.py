"""The tables. Times are seconds since 1970, UTC; what is JSON or another record is bytes.

Whoever changes them adds a migration; a test compares the two.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
)

__all__ = [
    "alert_changes",
    "alerts",
    "audit",
    "automated_actions",
    "decisions",
    "device_labels",
    "devices",
    "enrolment_tokens",
    "jobs",
    "metadata",
    "nonces",
    "outcomes",
    "queries",
    "reader_positions",
    "rollups",
    "sessions",
    "statuses",
    "sum_messages",
    "tokens",
    "users",
]

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)
# SQLite counts up by itself only where a key is called INTEGER.
_COUNTED = BigInteger().with_variant(Integer, "sqlite")


def _time(name: str, *, nullable: bool = False) -> Column[float]:
    return Column(name, Double, nullable=nullable)


def _text(name: str, *, key: bool = False, nullable: bool = False) -> Column[str]:
    return Column(name, Text, primary_key=key, nullable=nullable)


def _bytes(name: str, *, nullable: bool = False) -> Column[bytes]:
    return Column(name, LargeBinary, nullable=nullable)


devices = Table(
    "devices",
    metadata,
    _text("id", key=True),
    _bytes("public_key"),
    _text("device_class"),
    _text("channel"),
    _bytes("labels"),
    Column("profiling", Boolean, nullable=False),
    _time("enrolled_at"),
    _time("retired_at", nullable=True),
    Index(None, "device_class", "id"),
)
# What rollouts and operators select by.
device_labels = Table(
    "device_labels",
    metadata,
    Column("device_id", Text, ForeignKey("devices.id", ondelete="CASCADE"), primary_key=True),
    _text("name", key=True),
    _text("value"),
    Index(None, "name", "value", "device_id"),
)
# The hot table: a row is made at enrolment and only ever updated. No index but its key, and free space in each
# page, let PostgreSQL update a row where it lies.
statuses = Table(
    "statuses",
    metadata,
    Column("device_id", Text, ForeignKey("devices.id", ondelete="CASCADE"), primary_key=True),
    _time("last_seen_at"),
    _text("model"),
    _text("version"),
    _text("digest"),
    _text("state"),
    _text("arm"),
    _text("refusal"),
    _bytes("body"),
    postgresql_with={"fillfactor": 70},
)
rollups = Table(
    "rollups",
    metadata,
    Column("span_seconds", Integer, primary_key=True, autoincrement=False),
    Column("started_at", BigInteger, primary_key=True, autoincrement=False),
    _text("device_class", key=True),
    _text("model", key=True),
    _text("version", key=True),
    _text("arm", key=True),
    Column("devices", BigInteger, nullable=False),
    Column("check_ins", BigInteger, nullable=False),
    Column("refused", BigInteger, nullable=False),
    Column("with_failures", BigInteger, nullable=False),
    Column("latency_count", BigInteger, nullable=False),
    Column("latency_sum_seconds", Double, nullable=False),
    Column("battery_count", BigInteger, nullable=False),
    Column("battery_sum", Double, nullable=False),
    postgresql_with={"fillfactor": 70},
)
enrolment_tokens = Table(
    "enrolment_tokens",
    metadata,
    _text("hash", key=True),
    _text("device_class"),
    _text("channel"),
    _bytes("labels"),
    Column("profiling", Boolean, nullable=False),
    _text("created_by"),
    _time("created_at"),
    _time("expires_at"),
    _text("device_id", nullable=True),
    _time("last_used_at", nullable=True),
)
nonces = Table(
    "nonces",
    metadata,
    _text("nonce", key=True),
    _time("until"),
    Index(None, "until"),
    sqlite_with_rowid=False,
)
outcomes = Table(
    "outcomes",
    metadata,
    _text("rollout", key=True),
    Column("stage", Integer, primary_key=True, autoincrement=False),
    _text("device_id", key=True),
    _text("arm"),
    _text("failed"),
    Column("latency_seconds", Double),
    _time("at"),
    Column("late", Boolean, nullable=False),
    sqlite_with_rowid=False,
)
decisions = Table(
    "decisions",
    metadata,
    _text("subject", key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    _time("at"),
    _text("verdict"),
    _text("reason"),
    _bytes("inputs"),
    Index(None, "at"),
)
audit = Table(
    "audit",
    metadata,
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    _text("id"),
    _time("at"),
    _text("actor"),
    _text("action"),
    _text("subject"),
    _bytes("detail"),
    _text("previous_digest"),
    _text("digest"),
    UniqueConstraint("id"),
)
alerts = Table(
    "alerts",
    metadata,
    _text("rule", key=True),
    _text("subject", key=True),
    _text("state"),
    _time("since"),
    _time("at"),
    _text("message"),
    _bytes("inputs"),
    _time("silenced_until", nullable=True),
)
alert_changes = Table(
    "alert_changes",
    metadata,
    Column("id", _COUNTED, primary_key=True),
    _text("rule"),
    _text("subject"),
    _text("before"),
    _text("after"),
    _time("at"),
    _text("message"),
    Index(None, "at"),
)
# What alerts set off, or would if somebody approved.
automated_actions = Table(
    "automated_actions",
    metadata,
    _text("id", key=True),
    _text("action"),
    _text("device_class"),
    _text("alert"),
    _text("reason"),
    _text("state"),
    _text("state_reason"),
    _text("decided_by"),
    _time("asked_at"),
    _time("decided_at", nullable=True),
    _time("ended_at", nullable=True),
    Index(None, "state", "asked_at"),
    Index(None, "decided_at"),
)
# How far somebody has come who takes up things in order, and when a next try is due.
reader_positions = Table(
    "reader_positions",
    metadata,
    _text("name", key=True),
    Column("number", BigInteger, nullable=False),
    Column("attempts", Integer, nullable=False),
    _time("next_attempt_at"),
)
queries = Table(
    "queries",
    metadata,
    _text("id", key=True),
    _text("model"),
    _text("device_class"),
    _text("state"),
    _bytes("body"),
    _bytes("template"),
    _time("asked_at"),
    _time("ended_at", nullable=True),
    Column("devices", Integer),
    Column("rho", Double, nullable=False),
    _bytes("result", nullable=True),
    Index(None, "state"),
)
sum_messages = Table(
    "sum_messages",
    metadata,
    _text("sum_id", key=True),
    _text("step", key=True),
    Column("sender", LargeBinary, primary_key=True),
    _bytes("body"),
    _time("at"),
    Index(None, "at"),
)
users = Table(
    "users",
    metadata,
    _text("name", key=True),
    _text("role"),
    _text("secret"),
    _time("created_at"),
    _time("retired_at", nullable=True),
)
tokens = Table(
    "tokens",
    metadata,
    _text("hash", key=True),
    _text("name"),
    _text("role"),
    _text("created_by"),
    _time("created_at"),
    _time("expires_at"),
    _time("last_used_at", nullable=True),
    _time("retired_at", nullable=True),
    UniqueConstraint("name"),
)
sessions = Table(
    "sessions",
    metadata,
    _text("hash", key=True),
    Column("user", Text, ForeignKey("users.name", ondelete="CASCADE"), nullable=False),
    _time("created_at"),
    _time("last_seen_at"),
    _time("expires_at"),
    Index(None, "expires_at"),
)
jobs = Table(
    "jobs",
    metadata,
    _text("id", key=True),
    Column("device_id", Text, ForeignKey("devices.id", ondelete="CASCADE"), nullable=False),
    _text("kind"),
    _text("state"),
    _bytes("request"),
    _bytes("result", nullable=True),
    _text("created_by"),
    _time("created_at"),
    _time("lease_until", nullable=True),
    _time("ended_at", nullable=True),
    Column("attempts", Integer, nullable=False),
    Index(None, "device_id", "state", "created_at"),
)
