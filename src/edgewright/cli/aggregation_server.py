"""A desk of the private sum over HTTP: limits before allocation, one thread per connection, no more than this."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import BoundedSemaphore, Thread
from typing import Any

from edgewright.privacy.aggregation_handler import AggregationHandler

__all__ = ["serve_aggregation"]

_LARGEST = 64 << 20
_DIGITS = 9
_TIMEOUT_SECONDS = 30.0
_MAX_CONNECTIONS = 256


class _Server(ThreadingHTTPServer):
    """Takes so many connections at once; who comes then is not answered, and comes again."""

    daemon_threads = True

    def __init__(self, *given: Any) -> None:
        self._free = BoundedSemaphore(_MAX_CONNECTIONS)
        super().__init__(*given)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # there was no thread to be had
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - the library's signature
        """Name the error and nobody: who asked when is nobody's business."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):  # connections break all the time
            print(f"a request failed: {type(error).__name__}", file=sys.stderr)


@contextmanager
def serve_aggregation(
    handle: AggregationHandler, host: str, port: int, *, knows: Callable[[str], bool] = lambda _: True
) -> Iterator[str]:
    """Yield the address of a desk that answers until the end; TLS and names are the matter of a proxy in front.

    Args:
        handle: Answers a path and a body.
        host: To listen on.
        port: To listen on, 0 for any.
        knows: Whether there is anything at a path; else its body is not read.
    """

    class Desk(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 1 << 16
        timeout = _TIMEOUT_SECONDS

        def do_POST(self) -> None:
            length = self.headers.get("Content-Length", "")
            counted = length.isascii() and length.isdigit()
            if not counted:
                self._refuse(411)
            elif len(length) > _DIGITS or int(length) > _LARGEST:
                self._refuse(413)
            elif not knows(self.path):
                self._refuse(404)
            else:
                self._say(*handle(self.path, self.rfile.read(int(length))))

        def _refuse(self, status: int) -> None:
            # The body was not read, so nothing else can come on this connection.
            self.close_connection = True
            self._say(status, b"")

        def _say(self, status: int, answer: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            if self.close_connection:
                self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's signature
            """Say nothing: who asked when is nobody's business."""

    server = _Server((host, port), Desk)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://{host}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
