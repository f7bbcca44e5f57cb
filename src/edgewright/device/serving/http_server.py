"""The agent for other processes of the device: the Open Inference Protocol on a Unix socket or on loopback.

Whoever may open the socket may ask the model. TCP is only for those who name it, answers only to the host names
that it was given, and can ask for a token; nothing here loads models, shares memory or lets a browser's page in.
"""

import hmac
import json
import os
import socket
import socketserver
import threading
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, ClassVar

from edgewright.contract.errors import DataError, InputError
from edgewright.device.agent import Agent
from edgewright.device.serving.metrics import prometheus_metrics
from edgewright.device.serving.open_inference import decode_request, encode_response, model_metadata

__all__ = ["LOOPBACK_HOSTS", "InferenceServer", "create_tcp_server", "create_unix_server"]

_MAX_BODY_BYTES = 16 << 20
# So many requests are read and answered at the same time; more wait, and are turned away after so long.
_MAX_CONNECTIONS, _TIMEOUT_SECONDS = 8, 5.0
LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")
_OK, _BAD_REQUEST, _UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND, _TOO_LARGE, _UNAVAILABLE = (
    200,
    400,
    401,
    403,
    404,
    413,
    503,
)
_JSON_TYPE = "application/json"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # an answer leaves in one piece: head and body apart would wait 40 ms for each other
    server_version = "edgewright"
    sys_version = ""
    agent: ClassVar[Agent]
    allowed_hosts: ClassVar[Sequence[str]]
    token: ClassVar[str]
    connection_slots: ClassVar[threading.BoundedSemaphore]
    timeout = 60

    def do_GET(self) -> None:
        if self._is_allowed():
            self._handle_get(self.path.partition("?")[0])

    def do_POST(self) -> None:
        if not self._is_allowed():
            return
        if not self.connection_slots.acquire(timeout=_TIMEOUT_SECONDS):
            self.close_connection = True
            self._send_error(_UNAVAILABLE, "too many requests at the same time")
            return
        try:
            body = self._body()
            if body is not None:
                self._handle_inference(self.path.partition("?")[0], body)
        finally:
            self.connection_slots.release()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's signature
        """Say nothing: what is asked is nobody's business."""

    def address_string(self) -> str:
        """Return no address: a Unix socket has none."""
        return ""

    def _is_allowed(self) -> bool:
        if self.allowed_hosts:
            host = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
            if host not in self.allowed_hosts:
                self._send_error(_FORBIDDEN, f"this server does not answer as {host!r}")
                return False
        if self.headers.get("Origin"):
            self._send_error(_FORBIDDEN, "this server does not answer to web pages")
            return False
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.token and not hmac.compare_digest(given.encode(), self.token.encode()):
            self._send_error(_UNAUTHORIZED, "the token is missing or wrong")
            return False
        return True

    def _body(self) -> bytes | None:
        if self.headers.get("Content-Encoding", "identity") != "identity":
            self._send_error(_BAD_REQUEST, "compressed requests are not read")
            return None
        text = self.headers.get("Content-Length", "")
        if not text.isdigit():
            self._send_error(_BAD_REQUEST, "the request has no Content-Length")
            return None
        if int(text) > _MAX_BODY_BYTES:
            self._send_error(_TOO_LARGE, f"the request has {text} bytes, at most {_MAX_BODY_BYTES} are read")
            return None
        body = self.rfile.read(int(text))
        if len(body) < int(text):
            self.close_connection = True
            return None
        return body

    def _handle_get(self, path: str) -> None:
        engine = self.agent.predictor.current
        if path == "/v2/health/live":
            self._send(_OK, b"")
        elif path == "/v2/health/ready":
            self._send(_OK if engine is not None else _UNAVAILABLE, b"")
        elif path == "/v2":
            extensions = ["binary_tensor_data"]
            self._send_json({"name": "edgewright", "version": "2", "extensions": extensions})
        elif path == "/metrics":
            self._send(_OK, prometheus_metrics(self.agent.status()).encode(), "text/plain; version=0.0.4")
        else:
            self._get_model(path)

    def _get_model(self, path: str) -> None:
        engine = self.agent.predictor.current
        act = self._current_release(path)
        if engine is None or act is None:
            self._send_error(_NOT_FOUND, f"there is nothing at {path[:80]}")
        elif act == "ready":
            self._send(_OK, b"")
        elif act == "":
            self._send_json(model_metadata(engine.release.name, engine.release.version, engine.guard.contract))
        else:
            self._send_error(_NOT_FOUND, f"there is nothing at {path[:80]}")

    def _handle_inference(self, path: str, body: bytes) -> None:
        if self._current_release(path) != "infer":
            self._send_error(_NOT_FOUND, f"there is nothing at {path[:80]}")
            return
        head = self.headers.get("Inference-Header-Content-Length")
        try:
            if head is not None and not head.isdigit():
                raise DataError(
                    "Inference-Header-Content-Length is no number", remedy="Leave it out without binary data."
                )
            request, feed = decode_request(body, None if head is None else int(head))
            prediction = self.agent.predict(feed)
            if prediction.rejection is not None or prediction.release is None:
                reason = "no model is installed" if prediction.rejection is None else prediction.rejection.reason
                self._send_error(_UNAVAILABLE if prediction.release is None else _BAD_REQUEST, reason)
                return
            release = prediction.release
            content, length = encode_response(request, release.name, release.version, prediction.outputs)
        except DataError as error:
            self._send_error(_BAD_REQUEST, error.message)
            return
        extra = {} if length is None else {"Inference-Header-Content-Length": str(length)}
        self._send(_OK, content, _JSON_TYPE if length is None else "application/octet-stream", extra)

    def _current_release(self, path: str) -> str | None:
        """Return what is asked of the current model, None if it is of another one."""
        parts = path.strip("/").split("/")
        engine = self.agent.predictor.current
        if engine is None or parts[:2] != ["v2", "models"] or len(parts) < 3 or parts[2] != engine.release.name:
            return None
        rest = parts[3:]
        if rest[:1] == ["versions"]:
            if rest[1:2] != [engine.release.version]:
                return None
            rest = rest[2:]
        return "/".join(rest)

    def _send_json(self, document: object) -> None:
        self._send(_OK, json.dumps(document).encode(), _JSON_TYPE)

    def _send_error(self, status: int, reason: str) -> None:
        if status in (_TOO_LARGE, _FORBIDDEN, _UNAUTHORIZED):
            self.close_connection = True
        self._send(status, json.dumps({"error": reason}).encode(), _JSON_TYPE)

    def _send(
        self,
        status: int,
        content: bytes,
        content_type: str = _JSON_TYPE,
        extra_headers: dict[str, str] | None = None,
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(content)))
        for name, value in (extra_headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


class InferenceServer(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """A server that answers each connection in a thread of its own."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64


class _UnixServer(InferenceServer):
    address_family = socket.AF_UNIX

    def get_request(self) -> tuple[Any, Any]:
        """Accept; a Unix socket's client has no address."""
        request, _ = super().get_request()
        return request, ("", 0)


def create_unix_server(agent: Agent, path: Path, *, mode: int = 0o660, token: str = "") -> InferenceServer:
    """Return a server on a Unix socket; `serve_forever` starts it.

    Args:
        agent: Answers.
        path: Of the socket; one that is left over is replaced.
        mode: Of the socket: its owner and group may ask.
        token: That requests must bear; "" for none.

    Raises:
        InputError: The path cannot be used.
    """
    try:
        if path.is_socket():
            path.unlink()
        before = os.umask(0o777 & ~mode)
        try:
            return _UnixServer(str(path), _handler_class(agent, (), token))  # type: ignore[arg-type]
        finally:
            os.umask(before)
    except OSError as error:
        raise InputError(
            f"the socket {path} cannot be made: {error.strerror}", remedy="Name another path."
        ) from error


def create_tcp_server(
    agent: Agent,
    port: int,
    *,
    host: str = "127.0.0.1",
    allowed_hosts: Sequence[str] = LOOPBACK_HOSTS,
    token: str = "",
) -> InferenceServer:
    """Return a server on a TCP port; `serve_forever` starts it.

    Args:
        agent: Answers.
        port: 0 for any that is free.
        host: Address to listen on.
        allowed_hosts: Host names that requests may name: a page that was made to resolve to this address names another.
        token: That requests must bear; "" for none.

    Raises:
        InputError: The port is taken, or the server would answer everybody without a token.
    """
    if host not in ("127.0.0.1", "::1", "localhost") and not token:
        raise InputError(
            f"{host} can be reached from outside and no token is asked for", remedy="Set a token, or use 127.0.0.1."
        )
    try:
        return InferenceServer((host, port), _handler_class(agent, allowed_hosts, token))
    except OSError as error:
        raise InputError(f"port {port} cannot be used: {error.strerror}", remedy="Choose another one.") from error


def _handler_class(agent: Agent, allowed_hosts: Sequence[str], token: str) -> Callable[..., BaseHTTPRequestHandler]:
    places = threading.BoundedSemaphore(_MAX_CONNECTIONS)
    return type(
        "Handler",
        (_Handler,),
        {"agent": agent, "allowed_hosts": tuple(allowed_hosts), "token": token, "connection_slots": places},
    )
