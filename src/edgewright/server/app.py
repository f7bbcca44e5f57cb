"""The control plane put together: devices on plain ASGI, operators and the page on Litestar, limits around both."""

import json
import logging
import time
from collections.abc import Sequence
from typing import Any

from litestar import Litestar, Response, get
from litestar.connection import Request
from litestar.exceptions import HTTPException
from litestar.middleware import DefineMiddleware
from litestar.openapi import OpenAPIConfig

import edgewright
from edgewright.contract.door import Problem
from edgewright.contract.errors import EdgewrightError, InputError, WorkError
from edgewright.server.document import Records, openapi_document
from edgewright.server.fleets import MissingError, gauge
from edgewright.server.intake import Intake, Receive, Scope, Send
from edgewright.server.measures import CONTENT_TYPE, REQUESTS, exposition
from edgewright.server.operate import Acting, operator_router
from edgewright.server.security import Gate, guard
from edgewright.server.services import Services
from edgewright.server.store.database import GoneError
from edgewright.trust.identity import UnknownError

__all__ = ["LOG", "App", "make_app"]

LOG = logging.getLogger("edgewright.server")
_DEVICES = ("/device/", "/sums/", "/repo/")
_LARGEST = 1 << 20
_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        b"form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    ),
]
_HSTS = (b"strict-transport-security", b"max-age=31536000")


class App:
    """An ASGI application.

    Attributes:
        services: What it works with.
        pages: Litestar's.
        intake: The device side.
    """

    def __init__(self, services: Services, pages: Litestar, *, secure: bool) -> None:
        self.services = services
        self.pages = pages
        self.intake = Intake(services)
        self._headers = [*_HEADERS, _HSTS] if secure else _HEADERS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or take part in the beginning and the end."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.pages(scope, receive, send)  # type: ignore[arg-type]
            return
        begun = time.perf_counter()
        status = 500
        path: str = scope["path"]
        devices = path.startswith(_DEVICES)

        async def say(message: dict[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], *self._headers]}
            await send(message)

        try:
            if devices:
                await self.intake(scope, receive, say)
            else:
                await self.pages(scope, receive, say)  # type: ignore[arg-type]
        finally:
            took = time.perf_counter() - begun
            route = _route(scope, path, devices=devices)
            REQUESTS.labels(route, str(status)).observe(took)
            if LOG.isEnabledFor(logging.INFO) and (not devices or (status >= 400 and route != "/repo")):
                LOG.info(
                    json.dumps(
                        {
                            "event": "request",
                            "method": scope["method"],
                            "route": route,
                            "status": status,
                            "ms": round(1e3 * took, 2),
                        }
                    )
                )


def make_app(services: Services, acting: Acting, *, pages: Sequence[Any] = (), secure: bool = False) -> App:
    """Return the application.

    Args:
        services: What it works with.
        acting: What changes the fleet.
        pages: More route handlers: the page's.
        secure: Whether people reach it over TLS alone.
    """

    @get("/healthz", sync_to_thread=True, summary="Whether this server is well", tags=["server"])
    def healthz() -> dict[str, str]:
        services.store.audit.head()
        return {"status": "ok", "version": edgewright.__version__}

    @get("/openapi.json", sync_to_thread=True, include_in_schema=False, media_type="application/json")
    def openapi(request: Request[Any, Any, Any]) -> Response[bytes]:
        return Response(openapi_document(request.app), media_type="application/json")

    @get("/metrics", guards=[guard("look")], sync_to_thread=True, include_in_schema=False)
    def metrics() -> Response[bytes]:
        gauge(services)
        return Response(exposition(), media_type=CONTENT_TYPE)

    litestar = Litestar(
        route_handlers=[healthz, openapi, metrics, operator_router(services, acting), *pages],
        middleware=[DefineMiddleware(Gate, services=services)],
        exception_handlers={EdgewrightError: _failed, HTTPException: _refused, Exception: _broken},
        openapi_config=OpenAPIConfig(
            title="Edgewright", version=edgewright.__version__, path="/-", render_plugins=()
        ),
        plugins=[Records()],
        request_max_body_size=_LARGEST,
        debug=False,
        logging_config=None,
    )
    return App(services, litestar, secure=secure)


def _route(scope: Scope, path: str, *, devices: bool) -> str:
    """Return the form of a path, without names: whoever reads metrics learns of no device."""
    if devices:
        parts = path.split("/")
        return "/".join(parts[:3]) if path.startswith("/device/") else f"/{parts[1]}"
    return str(scope.get("path_template") or "other")


def _failed(_: Request[Any, Any, Any], error: EdgewrightError) -> Response[Problem]:
    status = 500
    if isinstance(error, MissingError):
        status = 404
    elif isinstance(error, InputError):
        status = 400
    elif isinstance(error, UnknownError):
        status = 404
    elif isinstance(error, GoneError):
        status = 503
    elif isinstance(error, WorkError):
        status = 409
    headers = {"Retry-After": "5"} if status == 503 else {}
    problem = Problem(type(error).__name__, error.message, error.remedy)
    return Response(problem, status_code=status, headers=headers)


def _refused(_: Request[Any, Any, Any], error: HTTPException) -> Response[Problem]:
    words = error.detail
    if error.extra and isinstance(error.extra, list):
        words = "; ".join(f"{each.get('key', '')}: {each.get('message', '')}" for each in error.extra)
    kind = {401: "NotAuthorized", 403: "PermissionDenied", 404: "Missing", 429: "TooManyRequests"}
    problem = Problem(kind.get(error.status_code, "InputError"), words[:1000], "See /openapi.json.")
    return Response(problem, status_code=error.status_code, headers=error.headers or {})


def _broken(_: Request[Any, Any, Any], error: Exception) -> Response[Problem]:
    LOG.error(json.dumps({"event": "failure", "error": type(error).__name__}), exc_info=error)
    return Response(Problem("Failure", "the server failed; its log says why", "Try again."), status_code=500)
