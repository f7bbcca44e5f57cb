"""Logging in and out, files of the pages, and what is said when something is not to be had."""

from typing import Any
from urllib.parse import quote

from litestar import Response, get, post
from litestar.exceptions import HTTPException, NotFoundException, PermissionDeniedException
from litestar.params import FromPath, FromQuery

from edgewright.contract.errors import EdgewrightError
from edgewright.server.auth import authentication
from edgewright.server.auth.authentication import (
    SESSION_COOKIE,
    Principal,
    check_csrf,
    login_limiters,
    session_cookie,
)
from edgewright.server.errors import error_response
from edgewright.server.web.assets import ASSETS
from edgewright.server.web.form_fields import FormData, local_path, read_text_field
from edgewright.server.web.renderer import PageRenderer, PageRequest, redirect

__all__ = ["error_pages", "login_routes"]

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


def login_routes(pages: PageRenderer) -> list[Any]:
    """Return the handlers."""
    people, limiters = pages.services.store.accounts, login_limiters()

    @get("/static/{digest:str}/{name:str}", sync_to_thread=False)
    def asset(digest: FromPath[str], name: FromPath[str]) -> Response[bytes]:
        found = ASSETS.get(name)
        if found is None or found.digest != digest:
            raise NotFoundException(f"there is no file {name[:80]!r}")
        return Response(found.content, media_type=found.kind, headers={"Cache-Control": _FOREVER})

    @get("/login", sync_to_thread=True)
    def enter(request: PageRequest, then: FromQuery[str] = "/") -> Response[Any]:
        if isinstance(request.scope.get("user"), Principal):
            return redirect(local_path(then))
        return pages.page(request, "login", then=local_path(then), wrong="", name="")

    @post("/login", sync_to_thread=True, status_code=200)
    def log_in(request: PageRequest, data: FormData) -> Response[Any]:
        if request.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
            raise PermissionDeniedException("another site's page tried to log you in")
        name, then = read_text_field(data, "name"), local_path(read_text_field(data, "then", "/"))
        client = request.client.host if request.client else ""
        made = authentication.log_in(pages.services, limiters, name, data.get("password", ""), client)
        if made is None:
            wrong = "There is no such user, or the password is another one."
            return pages.page(request, "login", status=403, then=then, wrong=wrong, name=name[:64])
        if before := request.cookies.get(SESSION_COOKIE):
            people.log_out(before)
        return redirect(then, headers={"Set-Cookie": session_cookie(made[0], secure=pages.secure)})

    @post("/logout", status_code=200)
    async def log_out(request: PageRequest) -> Response[Any]:
        who = request.scope.get("user")
        if isinstance(who, Principal) and who.session:
            await check_csrf(request, who)
            people.log_out(who.session)
        return redirect("/login", headers={"Set-Cookie": session_cookie("", secure=pages.secure)})

    return [asset, enter, log_in, log_out]


def error_pages(pages: PageRenderer) -> dict[Any, Any]:
    """Return what turns errors into pages."""

    def said(request: PageRequest, status: int, message: str, remedy: str) -> Response[Any]:
        words = _WORDS.get(status, "That cannot be done")
        return pages.page(request, "error", status=status, title=words, message=message, remedy=remedy)

    def refused(request: PageRequest, error: HTTPException) -> Response[Any]:
        if error.status_code == 401:
            place = request.url.path if request.method == "GET" else "/"
            return redirect(f"/login?then={quote(place)}")
        return said(request, error.status_code, error.detail[:1000], "")

    def failed(request: PageRequest, error: EdgewrightError) -> Response[Any]:
        status, problem = error_response(error)
        return said(request, status, problem.message, problem.remedy)

    return {HTTPException: refused, EdgewrightError: failed}
