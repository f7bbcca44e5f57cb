"""Logging in and out, files of the pages, and what is said when something is not to be had."""

from typing import Any
from urllib.parse import quote

from litestar import Response, get, post
from litestar.exceptions import HTTPException, NotFoundException, PermissionDeniedException
from litestar.params import FromPath, FromQuery

from edgewright.contract.errors import EdgewrightError
from edgewright.server.auth import authentication
from edgewright.server.auth.authentication import COOKIE, Who, checked_csrf, cookie, logins
from edgewright.server.errors import told
from edgewright.server.web.assets import ASSETS
from edgewright.server.web.form_fields import Form, local, text
from edgewright.server.web.renderer import ASKED, Press, moved

__all__ = ["doors", "refusals"]

_FOREVER = "public, max-age=31536000, immutable"
_WORDS = {
    400: "That cannot be done",
    403: "You may not do that",
    404: "There is no such page",
    405: "That is not done this way",
    409: "That cannot be done now",
    429: "Too many requests",
    500: "The server failed",
    503: "The database does not answer",
}


def doors(press: Press) -> list[Any]:
    """Return the handlers."""
    people, limiters = press.services.store.people, logins()

    @get("/static/{digest:str}/{name:str}", sync_to_thread=False)
    def asset(digest: FromPath[str], name: FromPath[str]) -> Response[bytes]:
        found = ASSETS.get(name)
        if found is None or found.digest != digest:
            raise NotFoundException(f"there is no file {name[:80]!r}")
        return Response(found.content, media_type=found.kind, headers={"Cache-Control": _FOREVER})

    @get("/login", sync_to_thread=True)
    def enter(request: ASKED, then: FromQuery[str] = "/") -> Response[Any]:
        if isinstance(request.scope.get("user"), Who):
            return moved(local(then))
        return press.page(request, "login", then=local(then), wrong="", name="")

    @post("/login", sync_to_thread=True, status_code=200)
    def log_in(request: ASKED, data: Form) -> Response[Any]:
        if request.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
            raise PermissionDeniedException("another site's page tried to log you in")
        name, then = text(data, "name"), local(text(data, "then", "/"))
        client = request.client.host if request.client else ""
        made = authentication.log_in(press.services, limiters, name, data.get("password", ""), client)
        if made is None:
            wrong = "There is no such user, or the password is another one."
            return press.page(request, "login", status=403, then=then, wrong=wrong, name=name[:64])
        if before := request.cookies.get(COOKIE):
            people.log_out(before)
        return moved(then, headers={"Set-Cookie": cookie(made[0], secure=press.secure)})

    @post("/logout", status_code=200)
    async def log_out(request: ASKED) -> Response[Any]:
        who = request.scope.get("user")
        if isinstance(who, Who) and who.session:
            await checked_csrf(request, who)
            people.log_out(who.session)
        return moved("/login", headers={"Set-Cookie": cookie("", secure=press.secure)})

    return [asset, enter, log_in, log_out]


def refusals(press: Press) -> dict[Any, Any]:
    """Return what turns errors into pages."""

    def said(request: ASKED, status: int, message: str, remedy: str) -> Response[Any]:
        words = _WORDS.get(status, "That cannot be done")
        return press.page(request, "error", status=status, title=words, message=message, remedy=remedy)

    def refused(request: ASKED, error: HTTPException) -> Response[Any]:
        if error.status_code == 401:
            place = request.url.path if request.method == "GET" else "/"
            return moved(f"/login?then={quote(place)}")
        return said(request, error.status_code, error.detail[:1000], "")

    def failed(request: ASKED, error: EdgewrightError) -> Response[Any]:
        status, problem = told(error)
        return said(request, status, problem.message, problem.remedy)

    return {HTTPException: refused, EdgewrightError: failed}
