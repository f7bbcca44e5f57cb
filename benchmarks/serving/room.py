"""What rows take on the disk with their indexes: of a device, of a nonce, of an outcome."""

import tempfile

from benchmarks.report import Figure
from benchmarks.serving.fleet import batches, enrol
from benchmarks.serving.postgres import Postgres
from benchmarks.serving.stated import count
from sqlalchemy import text

from edgewright.contract.api.device_status import StageOutcome
from edgewright.server.store.store import FleetStore, create_store

__all__ = ["room"]

_BATCH = 500
_SQLITE = "SELECT SUM(pgsize) FROM dbstat WHERE name IN (SELECT name FROM sqlite_master WHERE tbl_name = :table)"
_POSTGRES = "SELECT pg_total_relation_size(CAST(:table AS regclass))"


def room(*, quick: bool) -> list[Figure]:
    """Count bytes after every device has checked in twice and told one outcome."""
    devices = 2000 if quick else 50_000
    with tempfile.TemporaryDirectory() as folder:
        figures = _of("SQLite", f"sqlite:///{folder}/fleet.db", devices)
    server = Postgres(durable=False)
    try:
        return figures + _of("PostgreSQL", server.make("fleet"), devices)
    finally:
        server.close()


def _of(kind: str, address: str, devices: int) -> list[Figure]:
    store = create_store(address)
    names = enrol(store, devices)
    given = batches(names, _BATCH)
    for _ in range(2 * devices // _BATCH):
        store.check_ins.store_batch(next(given))
    for start in range(0, devices, _BATCH):
        said = [(name, StageOutcome("digits-1.1-1", 0, "1.1")) for name in names[start : start + _BATCH]]
        store.outcomes.put("digits/camera/digits-1.1-1", said, at=1.0, deadline_at=2.0)
    of = f"bytes on the disk with indexes, {kind}"
    figures = [
        count(f"room.{kind.lower()}.{name}", sum(_bytes(store, table) for table in tables) / rows, f"{of}: {what}")
        for name, tables, rows, what in (
            ("device", ("devices", "statuses"), devices, "a device and its last status, updated twice"),
            (
                "nonce",
                ("nonces",),
                2 * devices,
                "a check-in's nonce, kept for ten minutes, and ten more until it is swept",
            ),
            ("outcome", ("outcomes",), devices, "how a device fared in a stage, kept for two years"),
        )
    ]
    store.close()
    return figures


def _bytes(store: FleetStore, table: str) -> int:
    query = text(_SQLITE if store.database.is_sqlite else _POSTGRES)
    return int(store.database.read(lambda connection: connection.execute(query, {"table": table}).scalar_one()))
