"""One process: granian embedded in an event loop, and what is done beside it in threads."""

import asyncio
import contextlib
import json
import logging
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.server.embed import Server

from edgewright.contract.errors import InputError
from edgewright.server.tracing import tracing_from_environment

__all__ = ["free_port", "run_server"]

# Connections at a time, and those that wait to be taken; each costs a file.
_CONNECTIONS, _BACKLOG, _FILES = 8192, 1024, 16_384


def free_port(host: str, port: int) -> int:
    """Return a port that can be listened on: the one that is wanted, or any for 0.

    Raises:
        InputError: It is taken, or the host is none of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            raise InputError(
                f"{host}:{port} cannot be listened on: {error}", remedy="Choose another --port, or --host."
            ) from error
        return int(probe.getsockname()[1])


def run_server(
    app: Any,
    host: str,
    port: int,
    *,
    ended: threading.Event,
    ready: Callable[[], None] = lambda: None,
    works: Sequence[Callable[[], None]] = (),
    tls: tuple[Path, Path] | None = None,
) -> None:
    """Answer until a signal or somebody else sets an end.

    Args:
        app: ASGI application; None if this process only leads.
        host: To listen on.
        port: To listen on.
        ended: Set at the end; whoever sets it ends this.
        ready: Called once connections are taken.
        works: What threads beside it do until `ended` is set.
        tls: Certificate and private key, PEM; None for plain HTTP behind a proxy, or on this machine.

    Raises:
        InputError: The port cannot be served, or the environment asks for traces that nothing here can make.
    """
    threads = [threading.Thread(target=work, daemon=True) for work in works]
    for thread in threads:
        thread.start()
    try:
        with tracing_from_environment(app) as served:
            asyncio.run(_run_granian(served, host, port, ended=ended, ready=ready, tls=tls))
    finally:
        ended.set()
        for thread in threads:
            thread.join(30)


async def _run_granian(
    app: Any,
    host: str,
    port: int,
    *,
    ended: threading.Event,
    ready: Callable[[], None],
    tls: tuple[Path, Path] | None,
) -> None:
    loop = asyncio.get_running_loop()
    if threading.current_thread() is threading.main_thread():
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, ended.set)
    if app is None:
        ready()
        await asyncio.to_thread(ended.wait)
        return
    _allow_connections()
    server = Server(
        app,
        address=host,
        port=port,
        interface=Interfaces.ASGI,
        http=HTTPModes.auto if tls else HTTPModes.http1,
        http1_settings=HTTP1Settings(header_read_timeout=10_000, max_buffer_size=1 << 16),
        backlog=_BACKLOG,
        backpressure=_CONNECTIONS,
        websockets=False,
        log_enabled=False,
        ssl_cert=None if tls is None else tls[0],
        ssl_key=None if tls is None else tls[1],
    )
    serving = asyncio.create_task(server.serve())
    waiting = asyncio.create_task(asyncio.to_thread(ended.wait))
    reached = asyncio.create_task(asyncio.to_thread(_wait_until_listening, host, port))
    await asyncio.wait((serving, waiting, reached), return_when=asyncio.FIRST_COMPLETED)
    if reached.done() and reached.result() and not serving.done():
        ready()
    done, _ = await asyncio.wait((serving, waiting), return_when=asyncio.FIRST_COMPLETED)
    ended.set()
    if serving not in done:
        server.stop()  # type: ignore[no-untyped-call]
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait_for(serving, 15)
    elif serving.exception() is not None:
        error = serving.exception()
        logging.getLogger("edgewright.server").error(json.dumps({"event": "ended", "error": str(error)}))
        raise InputError(f"{host}:{port} cannot be served: {error}", remedy="Choose another --port.") from error
    await waiting


def _wait_until_listening(host: str, port: int) -> bool:
    """Wait until connections are taken, for ten seconds at most, and return whether they are."""
    ends = time.monotonic() + 10
    while time.monotonic() < ends:
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
            return True
        time.sleep(0.02)
    return False


def _allow_connections() -> None:
    """Have as many files as connections need, if the system permits."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
