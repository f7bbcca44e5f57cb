"""The control plane put together: devices on plain ASGI, operators and the page on Litestar, limits around both."""

import json
import logging
import re
import time
from collections.abc import Sequence
from typing import Any

import msgspec
from litestar import Litestar, Response, get
from litestar.connection import Request
from litestar.exceptions import HTTPException
from litestar.middleware import DefineMiddleware

import edgewright
from edgewright.contract.api.device_api import ErrorResponse
from edgewright.contract.errors import EdgewrightError
from edgewright.server.api.operator_routes import operator_router
from edgewright.server.auth.authentication import AuthenticationMiddleware, require
from edgewright.server.auth.rate_limits import client_address
from edgewright.server.commands.acts import FleetCommands
from edgewright.server.device_api.asgi import AsgiReceive, AsgiScope, AsgiSend, bad_request
from edgewright.server.device_api.asgi import send_response as answer
from edgewright.server.device_api.endpoint import DeviceEndpoint
from edgewright.server.errors import error_response
from edgewright.server.metrics import CONTENT_TYPE, exposition, request_timer
from edgewright.server.openapi import RecordSchemaPlugin, openapi_document
from edgewright.server.read_models import update_gauges
from edgewright.server.services import Services

__all__ = ["SERVER_LOG", "ControlPlaneApp", "create_app"]

SERVER_LOG = logging.getLogger("edgewright.server")
_DEVICES = ("/device/", "/sums/", "/repo/")
_DEVICE_FORMS = ("/device/enrol", "/device/check-in", "/device/job")
_LARGEST = 1 << 20
_FAILURE = ErrorResponse("internal_error", "the server failed; its log says why", "Try again.")
_KINDS = {
    401: "unauthenticated",
    403: "forbidden",
    404: "not_found",
    429: "too_many_requests",
    500: "internal_error",
    503: "unavailable",
}
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
# What is told here is somebody's; whatever may be kept says so itself.
_UNCACHED = (b"cache-control", b"no-store")
_UNCACHED_PREFIX_LENGTH = len(_UNCACHED[0])
_HSTS = (b"strict-transport-security", b"max-age=31536000")


class ControlPlaneApp:
    """An ASGI application.

    Attributes:
        services: What it works with.
        pages: Litestar's.
        intake: The device side.
    """

    def __init__(self, services: Services, pages: Litestar, *, secure: bool, proxies: int = 0) -> None:
        self.services = services
        self.pages = pages
        self.intake = DeviceEndpoint(services)
        self._headers = [*_HEADERS, _HSTS] if secure else _HEADERS
        self._proxies = proxies
        self._forms = [
            (re.compile(re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(route.path_format))), route.path_format)
            for route in pages.routes
        ]

    async def __call__(self, scope: AsgiScope, receive: AsgiReceive, send: AsgiSend) -> None:
        """Answer one request, or take part in the beginning and the end."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.pages(scope, receive, send)  # type: ignore[arg-type]
            return
        begun = time.perf_counter()
        status = 0
        path: str = scope["path"]
        devices = path.startswith(_DEVICES)
        if self._proxies:
            peer = (scope.get("client") or ("", 0))[0]
            scope = {**scope, "client": (client_address(peer, scope["headers"], proxies=self._proxies), 0)}

        async def say(message: dict[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = message["headers"]
                kept = [_UNCACHED]
                for name, _ in headers:
                    if len(name) == _UNCACHED_PREFIX_LENGTH and name.lower() == _UNCACHED[0]:
                        kept = []
                message = {**message, "headers": [*headers, *self._headers, *kept]}
            await send(message)

        try:
            if devices:
                await self.intake(scope, receive, say)
            else:
                await self.pages(scope, receive, say)  # type: ignore[arg-type]
        except Exception as error:
            SERVER_LOG.error(json.dumps({"event": "failure", "error": type(error).__name__}), exc_info=error)
            if status:  # the answer has begun, and ends here
                raise
            await answer(say, 500, msgspec.json.encode(_FAILURE))
        finally:
            took = time.perf_counter() - begun
            route = str(scope.get("path_template") or "other") if not devices else self.route_of(path)
            request_timer(route, str(status)).observe(took)
            if SERVER_LOG.isEnabledFor(logging.INFO) and (not devices or (status >= 400 and route != "/repo")):
                SERVER_LOG.info(
                    json.dumps(
                        {
                            "event": "request",
                            "method": scope["method"][:20],
                            "route": route,
                            "status": status,
                            "ms": round(1e3 * took, 2),
                        }
                    )
                )

    def route_of(self, path: str) -> str:
        """Return the form of a path, without names: whoever reads metrics or traces learns of no device."""
        if path.startswith("/device/"):
            form = "/".join(path.split("/")[:3])
            return form if form in _DEVICE_FORMS else "/device"
        if path.startswith(_DEVICES):
            return f"/{path.split('/')[1]}"
        return next((form for pattern, form in self._forms if pattern.fullmatch(path)), "other")


def create_app(
    services: Services,
    commands: FleetCommands,
    *,
    pages: Sequence[Any] = (),
    secure: bool = False,
    proxies: int = 0,
) -> ControlPlaneApp:
    """Return the application.

    Args:
        services: What it works with.
        commands: What changes the fleet.
        pages: More route handlers: the page's.
        secure: Whether people reach it over TLS alone.
        proxies: Of ours that every request comes through; each tells in X-Forwarded-For whom it was asked by. With
            0 that header is not believed, and all that comes through a proxy shares one address and its limits.
    """

    @get("/healthz", sync_to_thread=True, summary="Whether this server is well", tags=["server"])
    def healthz() -> dict[str, str]:
        services.store.audit.head()
        return {"status": "ok", "version": edgewright.__version__}

    @get("/openapi.json", sync_to_thread=True, include_in_schema=False, media_type="application/json")
    def openapi(request: Request[Any, Any, Any]) -> Response[bytes]:
        return Response(openapi_document(request.app), media_type="application/json")

    @get("/metrics", guards=[require("look")], sync_to_thread=True, include_in_schema=False)
    def metrics() -> Response[bytes]:
        update_gauges(services)
        return Response(exposition(), media_type=CONTENT_TYPE)

    litestar = Litestar(
        route_handlers=[healthz, openapi, metrics, operator_router(services, commands), *pages],
        middleware=[DefineMiddleware(AuthenticationMiddleware, services=services)],
        exception_handlers={
            EdgewrightError: _work_error,
            HTTPException: _input_error,
            RecursionError: _too_deep,
            Exception: _server_error,
        },
        openapi_config=None,  # its routes would be open to everybody, with pages of theirs
        plugins=[RecordSchemaPlugin()],
        request_max_body_size=_LARGEST,
        debug=False,
        logging_config=None,
    )
    return ControlPlaneApp(services, litestar, secure=secure, proxies=proxies)


def _work_error(_: Request[Any, Any, Any], error: EdgewrightError) -> Response[ErrorResponse]:
    return _problem(*error_response(error))


def _problem(status: int, problem: ErrorResponse, headers: dict[str, str] | None = None) -> Response[ErrorResponse]:
    later = {"Retry-After": "5"} if status == 503 else {}
    kind = "application/json"
    return Response(problem, status_code=status, headers=later | (headers or {}), media_type=kind)


def _input_error(_: Request[Any, Any, Any], error: HTTPException) -> Response[ErrorResponse]:
    words = error.detail
    if error.extra and isinstance(error.extra, list):
        words = "; ".join(f"{each.get('key', '')}: {each.get('message', '')}" for each in error.extra)
    problem = ErrorResponse(_KINDS.get(error.status_code, "invalid_input"), words[:1000], "See /openapi.json.")
    return _problem(error.status_code, problem, dict(error.headers or {}))


def _too_deep(_: Request[Any, Any, Any], error: RecursionError) -> Response[ErrorResponse]:
    # A body that ends in the interpreter's limit while it is decoded; nothing else here calls itself.
    return _problem(400, bad_request(error).problem)


def _server_error(_: Request[Any, Any, Any], error: Exception) -> Response[ErrorResponse]:
    SERVER_LOG.error(json.dumps({"event": "failure", "error": type(error).__name__}), exc_info=error)
    return _problem(500, _FAILURE)
