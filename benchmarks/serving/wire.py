"""Devices with real keys, their signed check-ins as bytes on the wire, and what sends them, many at a time."""

import asyncio
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgewright.contract.api.device_api import PROOF, CheckInRequest
from edgewright.contract.api.device_status import DeviceStatus
from edgewright.trust.keys.device_identity import DeviceKey, device_id_of

__all__ = ["CHECK_IN", "Load", "device_keys", "post", "said", "signed"]

CHECK_IN = "/device/check-in"


def device_keys(count: int) -> dict[str, DeviceKey]:
    """Return keys of devices by their names; the same each time, for they protect nothing."""
    made = (
        DeviceKey(Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"%d" % number).digest()))
        for number in range(count)
    )
    return {device_id_of(key.public): key for key in made}


def said(number: int) -> DeviceStatus:
    """Return what a device says, as large as usual; `number` is told as its time since it was started."""
    return DeviceStatus(
        "digits",
        f"1.{number % 3}",
        "a" * 64,
        "idle",
        proven=f"1.{number % 3}",
        latency_seconds=0.004,
        uptime_seconds=float(number),
        free_bytes=1 << 33,
        battery_level=0.8,
        agent_version="0.6.0",
        snapshot_digest="c" * 64,
        metadata_checked_at="2026-11-21T12:00:00+00:00",
    )


def post(path: str, body: bytes, headers: str = "") -> bytes:
    """Return a request as bytes."""
    head = f"POST {path} HTTP/1.1\r\nHost: fleet\r\nContent-Type: application/json\r\n{headers}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def signed(keys: Sequence[DeviceKey], audience: str, *, first: int = 0) -> Iterator[bytes]:
    """Return a check-in of each device, signed now: it is believed for five minutes."""
    for number, key in enumerate(keys, first):
        body = msgspec.json.encode(CheckInRequest(said(number)))
        proof = key.sign(audience, "POST", CHECK_IN, body, now=datetime.now(UTC))
        yield post(CHECK_IN, body, f"{PROOF}: {proof}\r\n")


@dataclass(slots=True)
class Load:
    """Sends requests over connections that are kept, one at a time over each.

    Attributes:
        port: Of a server on this machine.
        connections: How many there are.
    """

    port: int
    connections: int
    _loop: asyncio.AbstractEventLoop = field(init=False, default_factory=asyncio.new_event_loop)
    _open: list["_Connection"] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        """Connect."""
        self._loop.run_until_complete(self._connect())

    def send(self, requests: Iterator[bytes]) -> dict[int, int]:
        """Send all, and return how many were answered with which status."""
        return self._loop.run_until_complete(self._send(requests))

    def close(self) -> None:
        """Close the connections."""
        for each in self._open:
            if each.transport is not None:
                each.transport.close()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(self.connections):
            _, connection = await loop.create_connection(_Connection, "127.0.0.1", self.port)
            self._open.append(connection)

    async def _send(self, requests: Iterator[bytes]) -> dict[int, int]:
        counts: dict[int, int] = {}
        ended = [each.begin(requests, counts) for each in self._open]
        await asyncio.gather(*ended)
        return counts


class _Connection(asyncio.Protocol):
    """One connection; the next request is sent when the last one was answered."""

    def __init__(self) -> None:
        self.transport: Any = None
        self._requests: Iterator[bytes] = iter(())
        self._counts: dict[int, int] = {}
        self._got = b""
        self._ended: asyncio.Future[None] | None = None

    def begin(self, requests: Iterator[bytes], counts: dict[int, int]) -> "asyncio.Future[None]":
        """Send the first of the requests; the future is done when there are no more."""
        self._requests, self._counts = requests, counts
        self._ended = asyncio.get_running_loop().create_future()
        self._next()
        return self._ended

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._got += data
        head, found, rest = self._got.partition(b"\r\n\r\n")
        if not found:
            return
        lower = head.lower()
        at = lower.find(b"content-length:")
        length = int(lower[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(rest) < length:
            return
        status = int(head[9:12])
        self._counts[status] = self._counts.get(status, 0) + 1
        self._got = b""
        self._next()

    def connection_lost(self, error: Exception | None) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_exception(error or ConnectionError("the server closed a connection"))

    def _next(self) -> None:
        request = next(self._requests, None)
        if request is None:
            assert self._ended is not None
            self._ended.set_result(None)
        else:
            self.transport.write(request)
