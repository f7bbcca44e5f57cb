"""Fetching from servers that break off, trickle, never end, or lie; each server is a real socket."""

import hashlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgewright.contract.errors import InputError
from edgewright.contract.refusal import RefusedError
from edgewright.trust.client.fetcher import Fetcher, checked_url

CONTENT = bytes(range(256)) * 400
DIGEST = hashlib.sha256(CONTENT).hexdigest()
Answer = Callable[[socket.socket, str], None]


class Server:
    """Answers each connection with the next of some behaviours, the last one again and again."""

    def __init__(self, *answers: Answer) -> None:
        self.answers, self.asked = list(answers), []  # type: ignore[var-annotated]
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}/blob"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            head = b""
            while b"\r\n\r\n" not in head:
                part = connection.recv(4096)
                if not part:
                    return
                head += part
            self.asked.append(head.decode())
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            try:
                answer(connection, head.decode())
            except OSError:
                return


def head(status: str, length: int, **more: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {length}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in more.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def whole(connection: socket.socket, _: str) -> None:
    connection.sendall(head("200 OK", len(CONTENT)) + CONTENT)


def ranged(connection: socket.socket, request: str) -> None:
    """Answer as a server does that knows ranges."""
    start = next((line for line in request.splitlines() if line.lower().startswith("range:")), "")
    at = int(start.partition("=")[2].rstrip("-")) if start else 0
    status = "206 Partial Content" if start else "200 OK"
    rest = CONTENT[at:]
    connection.sendall(
        head(status, len(rest), Content_Range=f"bytes {at}-{len(CONTENT) - 1}/{len(CONTENT)}") + rest
    )


def breaks_off(connection: socket.socket, _: str) -> None:
    connection.sendall(head("200 OK", len(CONTENT)) + CONTENT[:40_000])


def never_ends(connection: socket.socket, _: str) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
    while True:
        connection.sendall(CONTENT)


def lies(connection: socket.socket, _: str) -> None:
    connection.sendall(head("200 OK", len(CONTENT)) + bytes(len(CONTENT)))


def silent(connection: socket.socket, _: str) -> None:
    time.sleep(5)


def trickles(connection: socket.socket, _: str) -> None:
    """Give a byte now and then: never silent for long, and never done."""
    connection.sendall(head("200 OK", len(CONTENT)))
    for byte in CONTENT:
        connection.sendall(bytes([byte]))
        time.sleep(0.05)


def trickles_its_head(connection: socket.socket, _: str) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    while True:
        connection.sendall(b"X: y\r\n")
        time.sleep(0.05)


def redirects(connection: socket.socket, _: str) -> None:
    connection.sendall(head("302 Found", 0, Location="http://127.0.0.1:1/elsewhere"))


def compresses(connection: socket.socket, _: str) -> None:
    """Say that the bytes are compressed; a bomb would begin so."""
    connection.sendall(head("200 OK", len(CONTENT), Content_Encoding="gzip") + CONTENT)


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    made: list[Server] = []

    def begin(*answers: Answer) -> Server:
        made.append(Server(*answers))
        return made[-1]

    yield begin
    for server in made:
        server.socket.close()


def fetched(server: Server, path: Path) -> bytes:
    fetcher = Fetcher(timeout_seconds=1.0, deadline_seconds=0.3, min_rate=1000.0)
    fetcher.download(server.url, path, sha256=DIGEST, size=len(CONTENT))
    return path.read_bytes()


@pytest.mark.parametrize("second", [ranged, whole])
def test_a_broken_download_is_gone_on_with(serve: Callable[..., Server], tmp_path: Path, second: Answer) -> None:
    server = serve(breaks_off, second)
    with pytest.raises(RefusedError) as caught:
        fetched(server, tmp_path / "blob")
    assert caught.value.refusal.code == "unreachable"
    assert (tmp_path / "blob.part").stat().st_size == 40_000
    assert fetched(server, tmp_path / "blob") == CONTENT
    assert "Range: bytes=40000-" in server.asked[1]
    assert not (tmp_path / "blob.part").exists()


def test_what_a_power_cut_tore_is_fetched_anew(serve: Callable[..., Server], tmp_path: Path) -> None:
    (tmp_path / "blob.part").write_bytes(bytes(50_000))
    server = serve(ranged)
    assert fetched(server, tmp_path / "blob") == CONTENT
    assert len(server.asked) == 2


HOSTILE: dict[str, tuple[Answer, str]] = {
    "endless": (never_ends, "oversized"),
    "other bytes": (lies, "tampered"),
    "silent": (silent, "slow"),
    "trickling": (trickles, "slow"),
    "elsewhere": (redirects, "missing"),
    "compressed": (compresses, "unreachable"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_server_is_refused_in_time(serve: Callable[..., Server], tmp_path: Path, kind: str) -> None:
    answer, code = HOSTILE[kind]
    began = time.monotonic()
    with pytest.raises(RefusedError) as caught:
        fetched(serve(answer), tmp_path / "blob")
    assert time.monotonic() - began < 4
    assert caught.value.refusal.code == code
    assert not (tmp_path / "blob").exists()


def test_a_head_that_never_ends_is_cut(
    serve: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgewright.trust.client.fetcher._DeadlineConnection.head_seconds", 0.5)
    began = time.monotonic()
    with pytest.raises(RefusedError):
        fetched(serve(trickles_its_head), tmp_path / "blob")
    assert time.monotonic() - began < 4


@pytest.mark.parametrize("url", ["ftp://x/", "file:///etc", "http://", "http://x/?a", "http://x/#a", "x"])
def test_what_is_no_place_for_a_repository_is_refused(url: str) -> None:
    with pytest.raises(InputError):
        checked_url(url)
