"""Who may ask: users, tokens and sessions. Of secrets only hashes are kept."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, delete, func, or_, select, update

from edgewright.contract.errors import InputError
from edgewright.contract.names import checked_name
from edgewright.server.access_control import (
    UserRole,
    UserSession,
    hash_password,
    new_secret,
    new_session,
    password_matches,
    role_by_name,
    secret_hash,
)
from edgewright.server.store.database import Database, insert_new
from edgewright.server.store.records import ApiToken, UserAccount
from edgewright.server.store.tables import sessions, tokens, users

__all__ = ["Accounts"]

# How exactly it is kept when something was used last: a write for each request would cost more than the request.
_SEEN_INTERVAL_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Accounts:
    """Users, tokens and sessions.

    Attributes:
        database: That holds them.
    """

    database: Database

    def add_user(self, name: str, role: UserRole, password: str, *, now: float) -> None:
        """Let somebody log in.

        Raises:
            InputError: The name is none or taken, or the password too short.
        """
        checked_name("user", name)
        row = {"name": name, "role": _name(role), "secret": hash_password(password), "created_at": now}

        def run(connection: Connection) -> None:
            if not insert_new(connection, users, [row]):
                known = connection.execute(select(users.c.secret).where(users.c.name == name)).scalar_one()
                if known != row["secret"]:
                    raise InputError(f"there is a user {name} already", remedy="Give another name.")

        self.database.write(run)

    def update_user(
        self,
        name: str,
        *,
        role: UserRole | None = None,
        password: str | None = None,
        retired_at: float | None = None,
    ) -> None:
        """Change a user; sessions end, for they were begun under what held before.

        Raises:
            InputError: There is none of that name, or the password is too short.
        """
        values: dict[str, object] = {}
        if role is not None:
            values["role"] = _name(role)
        if password is not None:
            values["secret"] = hash_password(password)
        if retired_at is not None:
            values["retired_at"] = retired_at
        if not values:
            return

        def run(connection: Connection) -> None:
            if not connection.execute(update(users).where(users.c.name == name).values(**values)).rowcount:
                raise InputError(f"there is no user {name[:80]!r}", remedy="List the users.")
            connection.execute(delete(sessions).where(sessions.c.user == name))

        self.database.write(run)

    def users(self) -> list[UserAccount]:
        """Return everybody, by name."""
        query = select(users).order_by(users.c.name)
        return self.database.read(
            lambda connection: [
                UserAccount(row.name, row.role, row.created_at, row.retired_at) for row in connection.execute(query)
            ]
        )

    def log_in(
        self, name: str, password: str, *, now: float, lifetime_seconds: float
    ) -> tuple[str, UserSession] | None:
        """Return a session and its secret, None if name and password do not fit; which of them is not told."""
        query = select(users).where(users.c.name == name, users.c.retired_at.is_(None))
        user = self.database.read(lambda connection: connection.execute(query).first())
        # Outside of a transaction, for it takes long; and for strangers too, so that nobody finds out who exists.
        if not password_matches(password, None if user is None else user.secret) or user is None:
            return None
        secret, session = new_session(name, role_by_name(user.role), now=now, lifetime_seconds=lifetime_seconds)
        row = {
            "hash": secret_hash(secret),
            "user": name,
            "created_at": now,
            "last_seen_at": now,
            "expires_at": session.expires_at,
        }
        self.database.write(lambda connection: insert_new(connection, sessions, [row]))
        return secret, session

    def find_session(self, secret: str, *, now: float, idle_seconds: float) -> UserSession | None:
        """Return the session of a secret, None if there is none that still counts."""
        key = secret_hash(secret)
        query = (
            select(sessions, users.c.role)
            .join(users, users.c.name == sessions.c.user)
            .where(sessions.c.hash == key, users.c.retired_at.is_(None))
            .where(sessions.c.expires_at > now, sessions.c.last_seen_at > now - idle_seconds)
        )
        row = self.database.read(lambda connection: connection.execute(query).first())
        if row is None:
            return None
        if now - row.last_seen_at >= _SEEN_INTERVAL_SECONDS:
            seen = (
                update(sessions)
                .where(sessions.c.hash == key, sessions.c.last_seen_at < now)
                .values(last_seen_at=now)
            )
            self.database.write(lambda connection: connection.execute(seen))
        return UserSession(
            row.user, role_by_name(row.role), row.created_at, max(row.last_seen_at, now), row.expires_at
        )

    def log_out(self, secret: str) -> None:
        """End a session."""
        gone = delete(sessions).where(sessions.c.hash == secret_hash(secret))
        self.database.write(lambda connection: connection.execute(gone))

    def add_token(self, name: str, role: UserRole, *, created_by: str, now: float, lifetime_seconds: float) -> str:
        """Return a token; it is shown this once.

        Raises:
            InputError: The name is none or taken.
        """
        checked_name("token", name)
        secret = new_secret("token")
        row = {
            "hash": secret_hash(secret),
            "name": name,
            "role": _name(role),
            "created_by": created_by,
            "created_at": now,
            "expires_at": now + lifetime_seconds,
        }

        def run(connection: Connection) -> None:
            if insert_new(connection, tokens, [row]):
                return
            known = connection.execute(select(tokens.c.hash).where(tokens.c.name == name)).scalar()
            if known != row["hash"]:
                raise InputError(f"there is a token {name} already", remedy="Give another name.")

        self.database.write(run)
        return secret

    def find_token(self, secret: str, *, now: float) -> ApiToken | None:
        """Return the token of a secret, None if there is none that still counts."""
        key = secret_hash(secret)
        query = select(tokens).where(tokens.c.hash == key, tokens.c.retired_at.is_(None), tokens.c.expires_at > now)
        row = self.database.read(lambda connection: connection.execute(query).first())
        if row is None:
            return None
        if row.last_used_at is None or now - row.last_used_at >= _SEEN_INTERVAL_SECONDS:
            used = (
                update(tokens)
                .where(tokens.c.hash == key, or_(tokens.c.last_used_at.is_(None), tokens.c.last_used_at < now))
                .values(last_used_at=now)
            )
            self.database.write(lambda connection: connection.execute(used))
        return _token(row)

    def tokens(self) -> list[ApiToken]:
        """Return all tokens, by name, without their secrets."""
        query = select(tokens).order_by(tokens.c.name)
        return self.database.read(lambda connection: [_token(row) for row in connection.execute(query)])

    def revoke_token(self, name: str, *, now: float) -> None:
        """Make a token void.

        Raises:
            InputError: There is none of that name.
        """
        gone = (
            update(tokens).where(tokens.c.name == name).values(retired_at=func.coalesce(tokens.c.retired_at, now))
        )
        if not self.database.write(lambda connection: connection.execute(gone).rowcount):
            raise InputError(f"there is no token {name[:80]!r}", remedy="List the tokens.")


def _name(role: UserRole) -> str:
    return role.name.lower().replace("_", " ")


def _token(row: Row[Any]) -> ApiToken:
    return ApiToken(
        row.name, row.role, row.created_by, row.created_at, row.expires_at, row.last_used_at, row.retired_at
    )
