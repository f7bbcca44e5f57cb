"""Servers in processes of their own: the control plane's devices' side, and a bare route beside it.

    python -m benchmarks.serving.host edgewright STATE DATABASE     STATE holds a repository
    python -m benchmarks.serving.host bare STATE DATABASE

The bare route is what one would write without this project: Starlette, one row read by the driver, one signature
verified, a few words answered. It keeps nothing, decodes no status, and would believe a request twice.
"""

import asyncio
import base64
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import psycopg
from benchmarks.report import ROOT
from benchmarks.serving.process import cpu_seconds
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from edgewright.contract.api.device_api import PROOF
from edgewright.contract.config.fleet import FleetConfig
from edgewright.server.app import create_app
from edgewright.server.commands.service import CommandService
from edgewright.server.process import free_port, run_server
from edgewright.server.state_folder import ServerLocation, fleet_audience, open_services
from edgewright.server.store.database import checked_address, file_of
from edgewright.trust.keys.signing_keys import KeyFolder
from edgewright.trust.repository.bootstrap import create_repository, move_online_keys
from edgewright.trust.repository.repository import Repository
from edgewright.trust.storage.storage import LocalStorage

__all__ = ["Host", "made_repository"]

_ROW = "SELECT public_key, device_class, profiling FROM devices WHERE id = {} AND retired_at IS NULL"
_POOL = 5
_STARTS_SECONDS = 60.0
_PASSPHRASE = "no secret"  # noqa: S105 (of keys that protect nothing)
Read = Callable[[str], Awaitable[tuple[bytes, str, bool] | None]]


def made_repository(state: Path, publish: Callable[[Repository, KeyFolder], None] = lambda *_: None) -> str:
    """Make a repository with its keys, and return the fleet's name.

    Args:
        state: Folder of the control plane.
        publish: Puts releases into it while all keys are together.
    """
    keys = KeyFolder(state / "KEYS", lambda _: _PASSPHRASE)
    publish(create_repository(LocalStorage(state / "repo"), keys, passphrase=_PASSPHRASE, bits=2), keys)
    move_online_keys(keys, state / "keys")
    return fleet_audience((state / "repo" / "metadata" / "1.root.json").read_bytes())


class Host:
    """A server in a process of its own.

    Args:
        command: What starts it, without the interpreter.
        begins: Word that a line of its output begins with once it answers; the port follows.
    """

    def __init__(self, command: Sequence[str | Path], *, begins: str = "port ") -> None:
        self.process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"},
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.startswith(begins):
            raise RuntimeError(f"{command} did not start: {line!r}")
        self.port = int(line.removeprefix(begins))

    def cpu_seconds(self) -> float:
        """Return the CPU time that it has used, in seconds."""
        return cpu_seconds(self.process.pid)

    def close(self) -> None:
        """Stop it."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def _bare(address: str) -> Any:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    read = _reading(address)
    decode = msgspec.json.decode
    name = PROOF.lower()

    async def check_in(request: Request) -> JSONResponse:
        await request.body()
        content, signature = (base64.b64decode(part, altchars=b"-_") for part in request.headers[name].split("."))
        row = await read(decode(content)["device_id"])
        if row is None:
            return JSONResponse({"error": "unknown"}, 401)
        try:
            Ed25519PublicKey.from_public_bytes(row[0]).verify(signature, content)
        except InvalidSignature:
            return JSONResponse({"error": "signature"}, 401)
        return JSONResponse({"at": time.time(), "job": bool(row[2])})

    return Starlette(routes=[Route("/device/check-in", check_in, methods=["POST"])])


def _reading(address: str) -> Read:
    """Return what reads a device's row, by the driver alone."""
    url = checked_address(address)
    if url.drivername == "sqlite":
        file = sqlite3.connect(file_of(url), isolation_level=None, check_same_thread=False)
        file.execute("PRAGMA cache_size=-65536")
        one = _ROW.format("?")

        async def read_file(device_id: str) -> Any:
            return file.execute(one, (device_id,)).fetchone()

        return read_file
    free: asyncio.LifoQueue[psycopg.AsyncConnection[Any]] = asyncio.LifoQueue()
    made = 0
    many = _ROW.format("%s")

    async def read_server(device_id: str) -> Any:
        nonlocal made
        if free.empty() and made < _POOL:
            made += 1
            connection = await psycopg.AsyncConnection.connect(address, autocommit=True)
        else:
            connection = await free.get()
        try:
            return await (await connection.execute(many, (device_id,))).fetchone()
        finally:
            free.put_nowait(connection)

    return read_server


def main(kind: str, state: str, database: str) -> None:
    """Serve until a signal comes."""
    port = free_port("127.0.0.1", 0)
    app: Any
    if kind == "bare":
        app = _bare(database)
    else:
        services = open_services(ServerLocation(Path(state), database), FleetConfig(), signs=False)
        app = create_app(services, CommandService(services))
    run_server(app, "127.0.0.1", port, ended=threading.Event(), ready=lambda: print(f"port {port}", flush=True))


if __name__ == "__main__":
    main(*sys.argv[1:])
