"""An enrolled fleet in a store, and the check-ins that it sends; and what a bare driver does for the same rows."""

import itertools
import random
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
import psycopg
from sqlalchemy import insert, text

from edgewright.contract.api.device_status import DeviceStatus
from edgewright.contract.refusal import Refusal
from edgewright.server.store.database import checked_address, file_of
from edgewright.server.store.records import CheckIn
from edgewright.server.store.store import FleetStore
from edgewright.server.store.tables import devices, statuses

__all__ = ["bare", "batches", "enrol", "put"]

_CHUNK = 5000
_CLASSES, _VERSIONS = ("camera", "hall", "wrist"), ("1.0", "1.1", "1.2")
_NOW_SECONDS = 1_795_000_000.0


def enrol(store: FleetStore, count: int) -> list[str]:
    """Put devices that could sign nothing into a store at once, and return their names."""
    names = [f"{number:032x}" for number in range(count)]
    put(store, {name: int(name, 16).to_bytes(32, "big") for name in names})
    return names


def put(store: FleetStore, publics: Mapping[str, bytes]) -> None:
    """Put devices into a store at once, as if each had been enrolled.

    Args:
        store: That takes them.
        publics: Keys by name.
    """
    names = list(publics)
    nothing = {"model": "", "version": "", "digest": "", "arm": "", "refusal": "", "state": "empty"}
    for start in range(0, len(names), _CHUNK):
        part = names[start : start + _CHUNK]
        rows = [
            {
                "id": name,
                "public_key": publics[name],
                "device_class": _CLASSES[int(name, 16) % len(_CLASSES)],
                "channel": "",
                "labels": b"{}",
                "profiling": False,
                "enrolled_at": _NOW_SECONDS,
            }
            for name in part
        ]
        said = [{"device_id": name, "last_seen_at": 0.0, "body": b"{}", **nothing} for name in part]
        store.database.write(
            lambda connection, rows=rows, said=said: (  # type: ignore[misc]
                connection.execute(insert(devices), rows),
                connection.execute(insert(statuses), said),
            )
        )
    if not store.database.is_sqlite:
        store.database.write(lambda connection: connection.execute(text("ANALYZE")))


def batches(names: Sequence[str], size: int, *, seed: int = 0) -> Iterator[list[CheckIn]]:
    """Return batches without end: every device in turn, in random order, with a nonce of its own each time."""
    draw = random.Random(seed)  # noqa: S311 (no secret)
    order = list(names)
    draw.shuffle(order)
    said = [
        DeviceStatus(
            "digits",
            version,
            "a" * 64,
            "idle",
            proven=version,
            refusal=refusal,
            latency_seconds=0.004,
            uptime_seconds=86400.0,
            free_bytes=1 << 33,
            battery_level=0.8,
            agent_version="0.6.0",
            snapshot_digest="c" * 64,
            metadata_checked_at="2026-11-21T12:00:00+00:00",
        )
        for version in _VERSIONS
        for refusal in (None, None, None, Refusal("disk", "model.onnx", "the disk is full"))
    ]
    everybody = itertools.cycle(order)
    for number in itertools.count():
        yield [
            CheckIn(
                name,
                _CLASSES[int(name, 16) % len(_CLASSES)],
                said[(number + place) % len(said)],
                _NOW_SECONDS + number,
                f"{number}.{place}",
                _VERSIONS[place % 2],
            )
            for place, name in enumerate(itertools.islice(everybody, size))
        ]


def bare(address: str) -> tuple[Callable[[Sequence[CheckIn]], None], Callable[[], None]]:
    """Return what updates the same rows with the bare driver, one transaction a batch, and what ends it.

    It encodes the status and updates it; it knows no nonces and no roll-ups, and its rows are the same.
    """
    encode = msgspec.json.encode
    url = checked_address(address)
    if url.drivername == "sqlite":
        file = sqlite3.connect(Path(file_of(url)), isolation_level=None)
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "cache_size=-65536"):
            file.execute(f"PRAGMA {pragma}")

        def update_file(batch: Sequence[CheckIn]) -> None:
            file.execute("BEGIN IMMEDIATE")
            file.executemany(
                "UPDATE statuses SET last_seen_at=?, version=?, body=? WHERE device_id=?",
                [(one.at, one.status.version, encode(one.status), one.device_id) for one in batch],
            )
            file.execute("COMMIT")

        return update_file, file.close
    server = psycopg.connect(address)

    def update_server(batch: Sequence[CheckIn]) -> None:
        with server.cursor() as cursor:
            cursor.executemany(
                "UPDATE statuses SET last_seen_at=%s, version=%s, body=%s WHERE device_id=%s",
                [(one.at, one.status.version, encode(one.status), one.device_id) for one in batch],
            )
        server.commit()

    return update_server, server.close
