"""A desk of the private sum over HTTP: limits before allocation, one thread per connection, no more than this."""

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from edgewright.privacy.desk import Handle

__all__ = ["serving"]

_LARGEST = 64 << 20
_PATIENCE_S = 30.0


@contextmanager
def serving(handle: Handle, host: str, port: int) -> Iterator[str]:
    """Yield the address of a desk that answers until the end; TLS and names are the matter of a proxy in front.

    Args:
        handle: Answers a path and a body.
        host: To listen on.
        port: To listen on, 0 for any.
    """

    class Desk(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 1 << 16
        timeout = _PATIENCE_S

        def do_POST(self) -> None:
            length = self.headers.get("Content-Length", "")
            if not length.isascii() or not length.isdigit() or int(length) > _LARGEST:
                self.close_connection = True
                self._say(413 if length.isdigit() else 411, b"")
                return
            self._say(*handle(self.path, self.rfile.read(int(length))))

        def _say(self, status: int, answer: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's signature
            """Say nothing: who asked when is nobody's business."""

    server = ThreadingHTTPServer((host, port), Desk)
    server.daemon_threads = True
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://{host}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
