"""Who asks, and whether they may: tokens for programs, sessions with CSRF protection for the page.

A request is somebody's by a bearer token or by a session's cookie, never by both. Whoever comes with a cookie must
show for anything but reading that the page was read: browsers send cookies with requests that others made.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from litestar.connection import ASGIConnection
from litestar.exceptions import (
    NotAuthorizedException,
    PermissionDeniedException,
    ServiceUnavailableException,
    TooManyRequestsException,
)
from litestar.handlers.base import BaseRouteHandler
from litestar.middleware import AbstractAuthenticationMiddleware, AuthenticationResult

from edgewright.contract.errors import EdgewrightError, InputError
from edgewright.contract.names import checked_name
from edgewright.server.access_control import (
    MIN_ROLES,
    Permission,
    UserRole,
    csrf_token,
    has_permission,
    is_csrf_token,
    password_matches,
    role_by_name,
)
from edgewright.server.auth.rate_limits import RateLimiter, limited_network
from edgewright.server.services import Services

__all__ = [
    "SESSION_COOKIE",
    "SESSION_IDLE_SECONDS",
    "SESSION_LIFETIME_SECONDS",
    "AuthenticationMiddleware",
    "Principal",
    "check_csrf",
    "log_in",
    "login_limiters",
    "permission_of",
    "require",
    "session_cookie",
]

SESSION_COOKIE = "edgewright_session"
SESSION_LIFETIME_SECONDS, SESSION_IDLE_SECONDS = 12 * 3600.0, 3600.0
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_LONGEST, _MAX_NAME = 200, 64
_BEARER = "Bearer "


@dataclass(frozen=True, slots=True)
class Principal:
    """Somebody who asks.

    Attributes:
        name: For the audit log: `user:NAME` or `token:NAME`.
        role: Theirs.
        session: Secret of the session, "" for a token.
    """

    name: str
    role: UserRole
    session: str = ""

    @property
    def csrf_token(self) -> str:
        """What this one's forms carry; "" for a token, which needs none."""
        return csrf_token(self.session) if self.session else ""

    def has_permission(self, right: Permission) -> bool:
        """Whether they have a right."""
        return has_permission(self.role, right)


class AuthenticationMiddleware(AbstractAuthenticationMiddleware):
    """Finds out who asks; whether they may is the matter of `require`."""

    __slots__ = ("_request_limiter", "services")

    def __init__(self, app: Any, services: Services, **given: Any) -> None:
        super().__init__(app, **given)
        self.services = services
        self._request_limiter = RateLimiter(per_s=50.0, burst=500, max_names=10_000)

    async def authenticate_request(self, connection: ASGIConnection[Any, Any, Any, Any]) -> AuthenticationResult:
        """Return who asks, None for nobody; a wrong token is nobody's, and no better than none."""
        client = connection.client.host if connection.client else ""
        if not self._request_limiter.allows(limited_network(client), time.monotonic()):
            raise TooManyRequestsException("too many requests from one address", headers={"Retry-After": "10"})
        given = connection.headers.get("Authorization", "")
        secret = connection.cookies.get(SESSION_COOKIE, "")
        try:
            if given:
                return AuthenticationResult(await self._by_token(given), None)
            if secret and len(secret) <= _LONGEST:
                return AuthenticationResult(await self._by_session(secret), None)
        except EdgewrightError as error:
            raise ServiceUnavailableException("the database does not answer") from error
        return AuthenticationResult(None, None)

    async def _by_token(self, given: str) -> Principal | None:
        if not given.startswith(_BEARER) or len(given) > _LONGEST:
            return None
        services = self.services
        secret = given.removeprefix(_BEARER)
        found = await asyncio.to_thread(services.store.accounts.find_token, secret, now=services.now())
        return None if found is None else Principal(f"token:{found.name}", role_by_name(found.role))

    async def _by_session(self, secret: str) -> Principal | None:
        services = self.services
        now = services.now()
        found = await asyncio.to_thread(
            services.store.accounts.find_session, secret, now=now, idle_seconds=SESSION_IDLE_SECONDS
        )
        return None if found is None else Principal(f"user:{found.user}", found.role, secret)


def require(right: Permission) -> Callable[[ASGIConnection[Any, Any, Any, Any], BaseRouteHandler], Awaitable[None]]:
    """Return what lets only those pass who have a right, and with a cookie only those who have read the page."""
    if right not in MIN_ROLES:
        raise ValueError(f"there is no right {right!r}")

    async def check(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
        who = connection.user
        if not isinstance(who, Principal):
            raise NotAuthorizedException("a token or a login is needed", headers={"WWW-Authenticate": "Bearer"})
        if not who.has_permission(right):
            role = MIN_ROLES[right].name.lower().replace("_", " ")
            raise PermissionDeniedException(f"{who.name} may not {right}: it takes the role {role}")
        await check_csrf(connection, who)

    check.right = right  # type: ignore[attr-defined]
    return check


def permission_of(handler: Any) -> Permission | None:
    """Return the right that a route asks for, None if it asks for none."""
    for each in handler.guards or ():
        if hasattr(each, "right"):
            found: Permission = each.right
            return found
    return None


async def check_csrf(connection: ASGIConnection[Any, Any, Any, Any], principal: Principal) -> None:
    """See to it that a request that changes something was made by the page.

    Raises:
        PermissionDeniedException: It was not.
    """
    if not principal.session or connection.scope["method"] in _SAFE_METHODS:  # type: ignore[typeddict-item]
        return
    told = connection.headers.get("X-CSRF", "")
    kind = connection.headers.get("Content-Type", "")
    if not told and kind.startswith("application/x-www-form-urlencoded"):
        form = await connection.form()  # type: ignore[attr-defined]
        told = str(form.get("csrf", ""))
    if not is_csrf_token(principal.session, told):
        raise PermissionDeniedException("the request does not come from the page: load it again")


def session_cookie(secret: str, *, secure: bool, lifetime_seconds: float = SESSION_LIFETIME_SECONDS) -> str:
    """Return the header that gives a session's secret to a browser; with "" it takes it away.

    Args:
        secret: Of the session.
        secure: Whether the browser sends it over TLS alone.
        lifetime_seconds: After which the browser forgets it.
    """
    age = int(lifetime_seconds) if secret else 0
    rest = "; Secure" if secure else ""
    return f"{SESSION_COOKIE}={secret}; Path=/; HttpOnly; SameSite=Strict; Max-Age={age}{rest}"


def login_limiters() -> tuple[RateLimiter, RateLimiter]:
    """Return how often one address, and one name, may try to log in: guessing goes slowly, mistakes do not hurt."""
    return RateLimiter(per_s=0.2, burst=10, max_names=100_000), RateLimiter(per_s=0.1, burst=10, max_names=100_000)


def log_in(
    services: Services, limiters: tuple[RateLimiter, RateLimiter], name: str, password: str, client: str
) -> tuple[str, Principal] | None:
    """Return a session's secret for a cookie, and whose it is; None if name and password do not fit.

    The session is always a new one, whatever cookie came with the request, and which of the two did not fit is told
    nobody. What failed is in the audit log, without the password; a name that nobody has may be one that slipped.

    Args:
        services: What the server works with.
        limiters: From `login_limiters`, kept as long as the server runs.
        name: As it was typed.
        password: As it was typed.
        client: Address that it came from.

    Raises:
        TooManyRequestsException: Somebody guesses.
    """
    now, clock = services.now(), time.monotonic()
    # Both are asked, so that who is stopped by the one does not guess more often by the other.
    typed = name[:_MAX_NAME].casefold()
    allowed = [limiters[0].allows(limited_network(client), clock), limiters[1].allows(typed, clock)]
    if not all(allowed):
        raise TooManyRequestsException("too many tries to log in: wait a minute", headers={"Retry-After": "60"})
    people, audit = services.store.accounts, services.store.audit
    try:
        found = people.log_in(
            checked_name("user", name), password, now=now, lifetime_seconds=SESSION_LIFETIME_SECONDS
        )
    except InputError:
        password_matches(password, None)  # takes as long
        found = None
    from_where = {"client": client[:64]}
    if found is None:
        known = name if name in {user.name for user in people.users()} else ""
        audit.write("server", "login refused", known, at=now, detail=from_where)
        return None
    secret, session = found
    who = Principal(f"user:{session.user}", session.role, secret)
    audit.write(who.name, "log in", session.user, at=now, detail=from_where)
    return secret, who
