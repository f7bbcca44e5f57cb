"""A million check-ins in one run, over HTTP, one process with SQLite: what it remembers must not grow."""

import itertools
import time
from contextlib import closing

from benchmarks.report import Figure
from benchmarks.serving.host import Host
from benchmarks.serving.hot import CONNECTIONS, DEVICES, ready
from benchmarks.serving.process import rss_mb
from benchmarks.serving.stated import count
from benchmarks.serving.wire import Load, signed

from edgewright.server.store.store import open_fleet_store

__all__ = ["million"]

_CHECK_INS = 1_000_000
_GROWTH = 1.1


def million(*, quick: bool) -> list[Figure]:
    """Check in a million times over HTTP; every device ten times, and all of them in the first tenth."""
    total, devices = (6000, 600) if quick else (_CHECK_INS, DEVICES)
    memory: list[float] = []
    answers: dict[int, int] = {}
    with (
        ready("", devices) as fleet,
        closing(Host(["-m", "benchmarks.serving.host", "edgewright", fleet.state, fleet.address])) as host,
        closing(Load(host.port, CONNECTIONS)) as load,
    ):
        started_at, last_used_at = time.perf_counter(), host.cpu_seconds()
        for _ in range(10):
            tenth = list(itertools.islice(fleet.keys, total // 10))
            # Signed one by one as they are sent: a proof is believed for five minutes.
            for status, number in load.send(signed(tenth, fleet.audience)).items():
                answers[status] = answers.get(status, 0) + number
            memory.append(rss_mb(host.process.pid))
        took_seconds, last_used_at = time.perf_counter() - started_at, host.cpu_seconds() - last_used_at
        store = open_fleet_store(fleet.address)
        kept = sum(hour.check_ins for hour in store.check_ins.rollups(0.0, 2e10))
        store.close()
    of = f"resident memory of the server, MB of 2**20 bytes; {devices} devices, SQLite, all over HTTP"
    return [
        count(
            "million.check_ins", kept, f"that the database counts, of {total} sent; answers by status: {answers}"
        ),
        count("million.lost", answers.get(200, 0) - kept, "accepted, and not in the database", limit=0),
        count("million.refused", total - answers.get(200, 0), "not accepted", limit=0),
        *(count(f"million.rss_{at}_mb", memory[at // 10 - 1], f"after {at} %: {of}") for at in (10, 50, 100)),
        count(
            "million.rss_most_mb",
            max(memory),
            f"the most of ten readings: {', '.join(f'{each:.0f}' for each in memory)}",
        ),
        count("million.growth", memory[-1] / memory[0], "after 100 % over after 10 %", limit=_GROWTH),
        count("million.per_s", total / took_seconds, "in time, the load beside it on the same machine"),
        count("million.us", 1e6 * last_used_at / total, "CPU of the server, per check-in"),
    ]
