"""A control plane for each test, on a copy of one ground."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.unit.server.live_server import Plant, stand

from edgewright.server.process import free_port, run_server


@pytest.fixture
def put_up(ground: Path, tmp_path: Path) -> Iterator[Callable[..., Plant]]:
    """Puts up control planes."""
    standing: list[Plant] = []

    def run(**more: Any) -> Plant:
        standing.append(stand(tmp_path / f"state{len(standing)}", ground, **more))
        return standing[-1]

    yield run
    for plant in standing:
        plant.close()


@pytest.fixture(scope="module")
def standing(ground: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    """A control plane for a file's tests that leave nothing behind: setting one up costs more than they do."""
    plant = stand(tmp_path_factory.mktemp("standing") / "state", ground)
    yield plant
    plant.close()


@pytest.fixture
def plant(put_up: Callable[..., Plant]) -> Plant:
    """A control plane."""
    return put_up()


@pytest.fixture(scope="module")
def port(standing: Plant) -> Iterator[int]:
    """Where `standing` answers on a real socket."""
    found = free_port("127.0.0.1", 0)
    ended, ready = threading.Event(), threading.Event()
    thread = threading.Thread(
        target=run_server, args=(standing.app, "127.0.0.1", found), kwargs={"ended": ended, "ready": ready.set}
    )
    thread.start()
    try:
        assert ready.wait(20)
        yield found
    finally:
        ended.set()
        thread.join(30)
