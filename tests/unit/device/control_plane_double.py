"""A control plane of a few lines, on a real socket, that believes what the real one believes."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
from tests.unit.device.conftest import World

from edgewright.contract.api.device_api import (
    PROOF,
    CheckInRequest,
    CheckInResponse,
    EnrolRequest,
    EnrolResponse,
    ErrorResponse,
)
from edgewright.device.enrolment import DeviceSettings, enrol_at_server
from edgewright.trust.keys.device_identity import AuthenticationError, RequestVerifier, device_id_of

Reply = Callable[[BaseHTTPRequestHandler], None]


@dataclass
class Plane:
    """What a control plane knows.

    Attributes:
        now: Its clock.
        audience: Whom requests must be for.
        url: Of its server.
        offers: What tokens enrol into.
        taken: Who has used a token, by token.
        known: Keys by device.
        told: Check-ins that were believed, by device.
        replies: Answers in place of its own, by path.
        job: Whether one waits.
    """

    now: Callable[[], datetime]
    audience: str = "fleet-1"
    url: str = ""
    offers: dict[str, dict[str, Any]] = field(default_factory=dict)
    taken: dict[str, str] = field(default_factory=dict)
    known: dict[str, bytes] = field(default_factory=dict)
    told: list[tuple[str, CheckInRequest]] = field(default_factory=list)
    replies: dict[str, Reply] = field(default_factory=dict)
    job: bool = False
    requests: int = 0

    def __post_init__(self) -> None:
        self._believed = RequestVerifier(self.audience, self.known.get, self.now)

    @property
    def last(self) -> CheckInRequest:
        return self.told[-1][1]

    def enrol(self, body: bytes) -> tuple[int, msgspec.Struct]:
        asked = msgspec.json.decode(body, type=EnrolRequest)
        public = bytes.fromhex(asked.public_key)
        name = device_id_of(public)
        if asked.token not in self.offers or self.taken.setdefault(asked.token, name) != name:
            return 403, ErrorResponse("unauthenticated", "the token is none of this fleet", "Ask for a new one.")
        self.known[name] = public
        return 200, EnrolResponse(**{"device_id": name, "audience": self.audience} | self.offers[asked.token])

    def check_in(self, proof: str, path: str, body: bytes) -> tuple[int, msgspec.Struct]:
        try:
            name = self._believed.verify_once(proof, "POST", path, body)
        except AuthenticationError as error:
            return 401, ErrorResponse("unauthenticated", error.message, error.remedy)
        self.told.append((name, msgspec.json.decode(body, type=CheckInRequest)))
        return 200, CheckInResponse(self.now().timestamp(), self.job)


@contextmanager
def planes(now: Callable[[], datetime], **more: Any) -> Iterator[Plane]:
    """Yield one on a port of its own."""
    plane = Plane(now, **more)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            plane.requests += 1
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path in plane.replies:
                self.close_connection = True
                plane.replies[self.path](self)
                return
            if self.path == "/device/enrol":
                status, said = plane.enrol(body)
            elif self.path == "/device/check-in":
                status, said = plane.check_in(self.headers.get(PROOF, ""), self.path, body)
            else:
                status, said = 404, ErrorResponse("invalid_input", "there is nothing")
            reply(status, msgspec.json.encode(said))(self)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """A device may hang up."""

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    plane.url = f"http://127.0.0.1:{server.server_address[1]}/"
    yield plane
    server.shutdown()
    server.server_close()
    thread.join()


def reply(status: int, body: bytes, **headers: str) -> Reply:
    """Return what answers so."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def joined(world: World, plane: Plane, name: str = "device", **offer: Any) -> DeviceSettings:
    """Enrol a device of a world with a control plane."""
    plane.offers[f"token-{name}"] = {"device_class": "default", "repository": world.url} | offer
    return enrol_at_server(world.path / name, server_url=plane.url, token=f"token-{name}", root=root_of(world))


def root_of(world: World) -> bytes:
    return (world.repo / "metadata/1.root.json").read_bytes()


def held(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}
