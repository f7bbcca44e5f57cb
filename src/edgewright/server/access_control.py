"""Who may do what: roles, secrets that are kept as hashes, sessions as data. Pure but for the system's randomness.

Tokens and sessions are 256 random bits, so one SHA-256 hides them as well as a slow hash would; they are looked up
by that hash, which tells nobody's clock anything about the secret. Passwords are people's, so they cost scrypt.
"""

import base64
import hashlib
import hmac
import os
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

from edgewright.contract.errors import InputError

__all__ = [
    "MIN_ROLES",
    "Permission",
    "UserRole",
    "UserSession",
    "csrf_token",
    "has_permission",
    "hash_password",
    "is_csrf_token",
    "is_session_alive",
    "new_secret",
    "new_session",
    "password_matches",
    "role_by_name",
    "secret_hash",
]

Permission = Literal[
    "look",  # at the fleet, rollouts, alerts, decisions, the audit log
    "silence alerts",
    "run jobs",  # on bench devices
    "ask queries",
    "invite devices",
    "retire devices",
    "pause rollouts",
    "roll back",  # towards what devices had before: never wait for a release manager
    "start rollouts",
    "advance rollouts",
    "approve actions",
    "manage access",
]
Purpose = Literal["token", "session", "invitation"]


class UserRole(IntEnum):
    """Who somebody is; each may what the ones before may."""

    VIEWER = 1
    OPERATOR = 2
    RELEASE_MANAGER = 3


# The least role for each right.
MIN_ROLES: dict[Permission, UserRole] = {
    "look": UserRole.VIEWER,
    "silence alerts": UserRole.OPERATOR,
    "run jobs": UserRole.OPERATOR,
    "ask queries": UserRole.OPERATOR,
    "invite devices": UserRole.OPERATOR,
    "retire devices": UserRole.OPERATOR,
    "pause rollouts": UserRole.OPERATOR,
    "roll back": UserRole.OPERATOR,
    "start rollouts": UserRole.RELEASE_MANAGER,
    "advance rollouts": UserRole.RELEASE_MANAGER,
    "approve actions": UserRole.RELEASE_MANAGER,
    "manage access": UserRole.RELEASE_MANAGER,
}
# Interactive logins, RFC 7914: 32 MB and a twentieth of a second.
_N, _R, _P = 1 << 15, 8, 1
_MEMORY = 128 * _R * (_N + _P + 2)
_SALT_BYTES, _KEY_BYTES = 16, 32
_MIN_CHARACTERS, _MAX_CHARACTERS = 12, 1024


@dataclass(frozen=True, slots=True)
class UserSession:
    """Somebody who has logged in.

    Attributes:
        user: Who.
        role: Of the user, as it is now.
        created_at: When it began, seconds since 1970, UTC.
        last_seen_at: When it was used last.
        expires_at: When it ends, however much it is used.
    """

    user: str
    role: UserRole
    created_at: float
    last_seen_at: float
    expires_at: float


def role_by_name(name: str) -> UserRole:
    """Return a role by its name.

    Raises:
        InputError: There is none of that name.

    >>> role_by_name("release manager").name
    'RELEASE_MANAGER'
    """
    try:
        return UserRole[name.upper().replace(" ", "_")]
    except KeyError:
        known = ", ".join(role.name.lower().replace("_", " ") for role in UserRole)
        raise InputError(f"there is no role {name[:80]!r}", remedy=f"Use one of {known}.") from None


def has_permission(role: UserRole, permission: Permission) -> bool:
    """Whether a role has a right; an unknown right is nobody's.

    >>> has_permission(UserRole.OPERATOR, "roll back"), has_permission(UserRole.OPERATOR, "start rollouts")
    (True, False)
    """
    least = MIN_ROLES.get(permission)
    return least is not None and role >= least


def new_secret(purpose: Purpose) -> str:
    """Return a token, a session's secret or an invitation: 256 random bits, with what they are for in front."""
    return f"ew_{purpose}_{base64.urlsafe_b64encode(os.urandom(32)).rstrip(b'=').decode()}"


def secret_hash(secret: str) -> str:
    """Return what is kept of a secret of `new_secret`, hexadecimal."""
    return hashlib.sha256(b"edgewright.secret.1" + secret.encode("utf-8", "surrogatepass")).hexdigest()


def hash_password(password: str, *, salt: bytes | None = None) -> str:
    """Return what is kept of a password.

    Args:
        password: 12 letters at least.
        salt: 16 bytes; fresh ones if not given, as always outside of tests.

    Raises:
        InputError: The password is too short or too long.
    """
    if not _MIN_CHARACTERS <= len(password) <= _MAX_CHARACTERS:
        raise InputError(
            f"a password of {len(password)} letters", remedy=f"Take {_MIN_CHARACTERS} to {_MAX_CHARACTERS}."
        )
    salt = os.urandom(_SALT_BYTES) if salt is None else salt
    return f"scrypt${_N}${_R}${_P}${salt.hex()}${_derived(password, salt).hex()}"


# Compared with where there is no such user, so that the answer takes as long as for a wrong password.
_DUMMY_HASH = f"scrypt${_N}${_R}${_P}${bytes(_SALT_BYTES).hex()}${bytes(_KEY_BYTES).hex()}"


def password_matches(password: str, stored_hash: str | None) -> bool:
    """Whether a password is the one of which something was kept; it takes as long where nothing was.

    Args:
        password: As it was typed.
        stored_hash: From `hash_password`; None if there is no such user.
    """
    known = (stored_hash or _DUMMY_HASH).split("$")
    if known[:4] != ["scrypt", str(_N), str(_R), str(_P)] or len(known) != 6:
        return False
    found = _derived(password[: _MAX_CHARACTERS + 1], bytes.fromhex(known[4]))
    return hmac.compare_digest(found, bytes.fromhex(known[5])) and stored_hash is not None


def new_session(user: str, role: UserRole, *, now: float, lifetime_seconds: float) -> tuple[str, UserSession]:
    """Return a session and the secret that its cookie carries; never one that was sent by whoever logs in."""
    return new_secret("session"), UserSession(user, role, now, now, now + lifetime_seconds)


def is_session_alive(session: UserSession, *, now: float, idle_seconds: float) -> bool:
    """Whether a session still counts: neither over nor unused for too long."""
    return now < session.expires_at and now - session.last_seen_at < idle_seconds


def csrf_token(secret: str) -> str:
    """Return what a page's forms carry, bound to the session: who cannot read the page cannot know it."""
    return hmac.new(b"edgewright.csrf.1", secret.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()


def is_csrf_token(secret: str, token: str) -> bool:
    """Whether a form's token is the session's, in constant time."""
    return hmac.compare_digest(csrf_token(secret).encode(), token.encode("utf-8", "surrogatepass"))


def _derived(password: str, salt: bytes) -> bytes:
    return hashlib.scrypt(
        password.encode("utf-8", "surrogatepass"), salt=salt, n=_N, r=_R, p=_P, maxmem=_MEMORY, dklen=_KEY_BYTES
    )
