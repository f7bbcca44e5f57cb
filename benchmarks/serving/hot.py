"""The hot path over HTTP: signed check-ins of enrolled devices, beside a bare route and beside gooseBit's poll."""

import itertools
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import urllib3
from benchmarks.environments import PEERS, environment
from benchmarks.report import Figure
from benchmarks.serving.fleet import put
from benchmarks.serving.host import Host, made_repository
from benchmarks.serving.postgres import Postgres
from benchmarks.serving.process import cpu_seconds
from benchmarks.serving.stated import held, quartiles, stated
from benchmarks.serving.wire import Load, device_keys, signed

from edgewright.server.process import free_port
from edgewright.server.store.store import create_store
from edgewright.trust.keys.device_identity import DeviceKey

__all__ = ["Ready", "goosebit", "http", "ready"]

DEVICES, CONNECTIONS = 100_000, 64
_ROUNDS, _REQUESTS = 10, 5000
_LIMIT = 1.5
_POLLS = 400


@dataclass(slots=True)
class Ready:
    """A fleet whose devices are enrolled, and what they sign for.

    Attributes:
        state: Folder of the control plane.
        address: Of the database.
        audience: Whom requests are for.
        keys: Of the devices, in an order without end: each in turn.
        devices: How many there are.
    """

    state: Path
    address: str
    audience: str
    keys: Iterator[DeviceKey]
    devices: int

    def requests(self, number: int) -> list[bytes]:
        """Return check-ins of the next devices, signed now."""
        return list(signed(list(itertools.islice(self.keys, number)), self.audience))


@contextmanager
def ready(address: str, devices: int) -> Iterator[Ready]:
    """Enrol devices with keys of their own.

    Args:
        address: Of a database, "" for SQLite.
        devices: How many.
    """
    with tempfile.TemporaryDirectory(prefix="ew-") as folder:
        state = Path(folder)
        audience = made_repository(state)
        address = address or f"sqlite:///{state}/fleet.db"
        keys = device_keys(devices)
        store = create_store(address)
        put(store, {name: key.public for name, key in keys.items()})
        store.close()
        yield Ready(state, address, audience, itertools.cycle(keys.values()), devices)


def http(part: str, server: Postgres | None, *, quick: bool) -> list[Figure]:
    """Check in over HTTP at our server and at the bare route in turns, on the same database."""
    figures = []
    with ExitStack() as stack:
        address = server.make("fleet") if server else ""
        fleet = stack.enter_context(ready(address, 2000 if quick else DEVICES))
        hosts = {
            kind: stack.enter_context(
                closing(Host(["-m", "benchmarks.serving.host", kind, fleet.state, fleet.address]))
            )
            for kind in ("edgewright", "bare")
        }
        for connections in (CONNECTIONS, 8):
            rounds, requests = (3, 500) if quick else (_ROUNDS, _REQUESTS if connections == CONNECTIONS else 2000)
            figures += _in_turns(part, hosts, fleet, server, connections, rounds, requests)
    return figures


def _in_turns(
    part: str,
    hosts: dict[str, Host],
    fleet: Ready,
    server: Postgres | None,
    connections: int,
    rounds: int,
    requests: int,
) -> list[Figure]:
    costs: dict[str, list[float]] = {kind: [] for kind in hosts}
    worker: list[float] = []
    with ExitStack() as stack:
        loads = {kind: stack.enter_context(closing(Load(host.port, connections))) for kind, host in hosts.items()}
        for number in range(rounds + 1):
            for kind, host in hosts.items():
                sent = fleet.requests(requests)
                database_seconds, server_seconds = server.cpu_seconds() if server else 0.0, host.cpu_seconds()
                _all_good(kind, loads[kind].send(iter(sent)), requests)
                server_seconds, database_seconds = (
                    host.cpu_seconds() - server_seconds,
                    (server.cpu_seconds() if server else 0.0) - database_seconds,
                )
                if number:  # the first opens connections and compiles statements
                    costs[kind].append(1e6 * (server_seconds + database_seconds) / requests)
                    if kind == "edgewright":
                        worker.append(1e6 * server_seconds / requests)
    ours, bare = costs["edgewright"], costs["bare"]
    of = f"{connections} connections, {fleet.devices} enrolled devices, each another one than before"
    ratio = quartiles([one / other for one, other in zip(ours, bare, strict=True)])
    note = (
        f"CPU of all; the peer is Starlette on granian: one row read, one signature verified, nothing kept: "
        f"{statistics.median(bare):.0f} us; {of}"
    )
    peer = "bare Starlette route"
    name = "" if connections == CONNECTIONS else f"_{connections}"
    figures = [
        stated(
            f"{part}.per_core_s{name}",
            quartiles([1e6 / us for us in ours]),
            f"check-ins per second of CPU, the database's included; {of}",
        ),
        stated(f"{part}.us{name}", quartiles(ours), "CPU per check-in, the database's included"),
        held(f"{part}.to_bare", ratio, _LIMIT, note, peer)
        if connections == CONNECTIONS
        else stated(f"{part}.to_bare{name}", ratio, f"{note}; batches are as small as connections are few", peer),
    ]
    if server:
        figures.append(stated(f"{part}.worker_us{name}", quartiles(worker), "without PostgreSQL's"))
    return figures


def _all_good(kind: str, answers: dict[int, int], requests: int) -> None:
    if answers != {200: requests}:
        raise RuntimeError(f"{kind} answered {answers}")


def goosebit(*, quick: bool) -> list[Figure]:
    """Poll gooseBit as it is shipped, and check in at our server, in turns; both on SQLite."""
    try:
        python = environment("goosebit")
    except RuntimeError as error:
        return [Figure("goosebit.poll_us", None, None, "gooseBit", True, f"it cannot be installed: {error}")]
    figures = []
    for devices in (200,) if quick else (1000, DEVICES):
        with ExitStack() as stack:
            fleet = stack.enter_context(ready("", devices))
            ours = stack.enter_context(
                closing(Host(["-m", "benchmarks.serving.host", "edgewright", fleet.state, fleet.address]))
            )
            port = free_port("127.0.0.1", 0)
            process = stack.enter_context(_goosebit(python, fleet.state / "goosebit.db", devices, port))
            loads = {
                "ours": stack.enter_context(closing(Load(ours.port, 8))),
                "theirs": stack.enter_context(closing(Load(port, 8))),
            }
            costs: dict[str, list[float]] = {"ours": [], "theirs": []}
            names = itertools.cycle(range(devices))
            polls = 50 if quick else _POLLS
            for number in range(4 if quick else 9):
                for kind, pid in (("ours", ours.process.pid), ("theirs", process.pid)):
                    sent = fleet.requests(polls) if kind == "ours" else _polls(itertools.islice(names, polls))
                    last_used_at = cpu_seconds(pid)
                    _all_good(kind, loads[kind].send(iter(sent)), polls)
                    if number:
                        costs[kind].append(1e6 * (cpu_seconds(pid) - last_used_at) / polls)
            of = f"{devices} devices, 8 connections, SQLite"
            figures += [
                stated(
                    f"goosebit.poll_us_{devices}",
                    quartiles(costs["theirs"]),
                    f"CPU of a poll of gooseBit 0.2.12 by DDI, as `python -m goosebit` runs it; {of}. It writes "
                    "when and from where the device was seen and looks for an update. Its default, as here, asks "
                    "for no token and verifies no signature; a poll says nothing of the device's state",
                    "gooseBit",
                ),
                stated(
                    f"goosebit.ours_us_{devices}",
                    quartiles(costs["ours"]),
                    f"CPU of a signed check-in with status, nonce and roll-up on the disk; {of}",
                ),
                stated(
                    f"goosebit.to_ours_{devices}",
                    quartiles([one / other for one, other in zip(costs["theirs"], costs["ours"], strict=True)]),
                    "its poll over our check-in; they do different things",
                    "gooseBit",
                ),
            ]
    return figures


@contextmanager
def _goosebit(python: Path, file: Path, devices: int, port: int) -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen(
        [python, PEERS / "goosebit_server.py", file, str(devices), str(port)],
        cwd=file.parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _await_answer(process, port)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await_answer(process: "subprocess.Popen[bytes]", port: int) -> None:
    ends = time.monotonic() + 120
    while time.monotonic() < ends and process.poll() is None:
        try:
            urllib3.request("GET", f"http://127.0.0.1:{port}/docs", retries=False, timeout=2)
            return
        except urllib3.exceptions.HTTPError:
            time.sleep(0.2)
    raise RuntimeError("gooseBit did not start")


def _polls(numbers: Iterator[int]) -> Sequence[bytes]:
    path = "/DEFAULT/controller/v1/"
    return [f"GET {path}{number:032x} HTTP/1.1\r\nHost: fleet\r\n\r\n".encode() for number in numbers]
