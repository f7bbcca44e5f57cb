"""What the control plane costs: check-ins in a store of 100,000 enrolled devices, on both databases.

    python benchmarks/server.py            everything; writes benchmarks/results/server.json
    python benchmarks/server.py --quick    a smoke run of less than a minute
    python benchmarks/server.py --only sqlite

Rates are per second of CPU of one core: what the worker used, and for PostgreSQL what its server used beside it.
Figures are medians over rounds, their intervals quartiles; the bare driver takes turns with the store.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from benchmarks.parts import run_parts
from benchmarks.report import Figure
from benchmarks.serving import hot
from benchmarks.serving.fleet import bare, batches, enrol
from benchmarks.serving.kills import kills
from benchmarks.serving.million import million
from benchmarks.serving.postgres import Postgres
from benchmarks.serving.room import room
from benchmarks.serving.stated import quartiles, stated

from edgewright.server.store.records import CheckIn
from edgewright.server.store.store import create_store

NAME = "server"
PACKAGES = ("edgewright", "sqlalchemy", "psycopg", "msgspec")
DEVICES, ROUNDS = 100_000, 30
SIZES = (1, 50, 500)


@dataclass(slots=True)
class Cost:
    """What rounds of one way cost, per check-in.

    Attributes:
        worker_us: CPU of this process.
        database_us: CPU of the database's own processes.
        wall_us: Time.
    """

    worker_us: list[float] = field(default_factory=list)
    database_us: list[float] = field(default_factory=list)
    wall_us: list[float] = field(default_factory=list)


def _measured(
    take: Callable[[Sequence[CheckIn]], object], given: list[list[CheckIn]], server: Postgres | None
) -> Cost:
    """Return the cost of a round of batches."""
    rows = sum(map(len, given))
    database_seconds = server.cpu_seconds() if server else 0.0
    cpu_seconds, started_at = time.process_time(), time.perf_counter()
    for batch in given:
        take(batch)
    cpu_seconds, wall_seconds = time.process_time() - cpu_seconds, time.perf_counter() - started_at
    database_seconds = (server.cpu_seconds() - database_seconds) if server else 0.0
    return Cost([1e6 * cpu_seconds / rows], [1e6 * database_seconds / rows], [1e6 * wall_seconds / rows])


def _compared(part: str, address: str, server: Postgres | None, *, quick: bool) -> list[Figure]:
    """Take check-ins by the store and by the bare driver in turns, for batches of several sizes."""
    store = create_store(address)
    names = enrol(store, 5000 if quick else DEVICES)
    update, close = bare(address)
    figures = []
    peer = "bare psycopg" if server else "bare sqlite3"
    for size in SIZES:
        given, turns = batches(names, size), max(1, (1000 if quick else 5000) // size // (10 if size == 1 else 1))
        costs = {"store": Cost(), "bare": Cost()}
        for _ in range(4 if quick else ROUNDS):
            for way, take in (("store", store.check_ins.store_batch), ("bare", update)):
                cost = _measured(take, [next(given) for _ in range(turns)], server)
                for name in ("worker_us", "database_us", "wall_us"):
                    getattr(costs[way], name).extend(getattr(cost, name))
        ours, theirs = costs["store"], costs["bare"]
        both = [one + other for one, other in zip(ours.worker_us, ours.database_us, strict=True)]
        bare_both = [one + other for one, other in zip(theirs.worker_us, theirs.database_us, strict=True)]
        of = f"batches of {size}, {len(names)} devices"
        figures += [
            stated(
                f"{part}.per_core_s_{size}",
                quartiles([1e6 / us for us in both]),
                f"check-ins per second of CPU, the database's included; {of}; with nonces and roll-ups",
            ),
            stated(f"{part}.worker_us_{size}", quartiles(ours.worker_us), "CPU of the worker, per check-in"),
            stated(f"{part}.wall_us_{size}", quartiles(ours.wall_us), "until the batch is on the disk"),
            stated(
                f"{part}.to_bare_{size}",
                quartiles([one / other for one, other in zip(both, bare_both, strict=True)]),
                f"CPU of all; the peer updates three columns of the rows, {statistics.median(bare_both):.1f} us",
                peer,
            ),
        ]
        if server:
            figures.append(
                stated(f"{part}.database_us_{size}", quartiles(ours.database_us), "CPU of the server, per check-in")
            )
    close()
    store.close()
    return figures


@contextmanager
def _server() -> Iterator[Postgres]:
    server = Postgres()
    try:
        yield server
    finally:
        server.close()


def sqlite(*, quick: bool) -> list[Figure]:
    """Check-ins into a file."""
    with tempfile.TemporaryDirectory() as folder:
        return _compared("sqlite", f"sqlite:///{folder}/fleet.db", None, quick=quick)


def postgresql(*, quick: bool) -> list[Figure]:
    """Check-ins into a PostgreSQL on this machine, with its settings as they come."""
    with _server() as server:
        return _compared("postgresql", server.make("fleet"), server, quick=quick)


def http_sqlite(*, quick: bool) -> list[Figure]:
    """Signed check-ins over HTTP, into a file."""
    return hot.http("http_sqlite", None, quick=quick)


def http_postgresql(*, quick: bool) -> list[Figure]:
    """Signed check-ins over HTTP, into a PostgreSQL on this machine."""
    with _server() as server:
        return hot.http("http_postgresql", server, quick=quick)


PARTS: dict[str, Callable[..., list[Figure]]] = {
    part.__name__: part
    for part in (sqlite, postgresql, http_sqlite, http_postgresql, hot.goosebit, million, kills, room)
}


if __name__ == "__main__":
    sys.exit(run_parts(NAME, PARTS, PACKAGES, __doc__))
