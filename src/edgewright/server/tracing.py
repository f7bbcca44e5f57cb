"""Requests as OpenTelemetry's spans, for whoever has a place for them: named by route, and without names in them.

What the instrumentation sees is a request's verb, the form of its path and whose trace it belongs to; paths,
queries, addresses and headers stay here. The environment asks for it, or a provider is given.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from edgewright.contract.errors import InputError
from edgewright.server.app import ControlPlaneApp
from edgewright.server.device_api.asgi import AsgiReceive, AsgiScope, AsgiSend

__all__ = ["trace_requests", "tracing_from_environment"]

_ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_VERBS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_TRACE = (b"traceparent", b"tracestate")
_HERE = "edgewright.scope"


@contextmanager
def tracing_from_environment(app: Any) -> Iterator[Any]:
    """Have requests traced if the environment says where to; what is left is sent at the end.

    Args:
        app: Any ASGI application; only an `App` knows its routes and is traced.

    Yields:
        The application to serve.

    Raises:
        InputError: The libraries for it are not installed.
    """
    if not isinstance(app, ControlPlaneApp) or not any(os.environ.get(name) for name in _ENDPOINT_VARIABLES):
        yield app
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        raise InputError(
            f"{_ENDPOINT_VARIABLES[0]} is set, and the library {error.name} is not installed",
            remedy="Install it: pip install 'edgewright[telemetry]'. Or unset the variable.",
        ) from error
    name = os.environ.get("OTEL_SERVICE_NAME") or "edgewright"
    provider = TracerProvider(resource=Resource.create({"service.name": name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    try:
        yield trace_requests(app, provider)
    finally:
        provider.shutdown()


def trace_requests(app: ControlPlaneApp, provider: Any) -> Any:
    """Return an application whose requests become spans.

    Args:
        app: Of the control plane.
        provider: OpenTelemetry's `TracerProvider`.
    """
    from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware

    async def inner(scope: AsgiScope, receive: AsgiReceive, send: AsgiSend) -> None:
        await app(scope[_HERE], receive, send)

    def details(scope: AsgiScope) -> tuple[str, dict[str, str]]:
        return f"{scope['method']} {scope['path']}", {"http.route": scope["path"]}

    spans = OpenTelemetryMiddleware(
        inner, default_span_details=details, tracer_provider=provider, exclude_spans=["receive", "send"]
    )

    async def outer(scope: AsgiScope, receive: AsgiReceive, send: Any) -> None:
        if scope["type"] == "http":
            await spans(_bare(app, scope), receive, send)
        else:
            await app(scope, receive, send)

    return outer


def _bare(app: ControlPlaneApp, scope: AsgiScope) -> AsgiScope:
    """Return what may be told of a request, which itself is in there for the application alone."""
    form = app.route_of(scope["path"])
    return {
        "type": "http",
        "asgi": scope["asgi"],
        "http_version": scope["http_version"],
        "method": scope["method"] if scope["method"] in _VERBS else "_OTHER",
        "scheme": scope["scheme"],
        "path": form,
        "raw_path": form.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(name, value) for name, value in scope["headers"] if name in _TRACE],
        "client": None,
        "server": None,
        _HERE: scope,
    }
