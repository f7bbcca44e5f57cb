"""The leader's loop: one leads, what fails is tried again, hours are closed and what is old goes."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import text
from tests.unit.server.controller.conftest import World

from edgewright.contract.api.device_status import DeviceStatus
from edgewright.contract.config.fleet import FleetConfig, FleetMonitoring
from edgewright.server.controller.leader_loop import lead_until
from edgewright.server.services import Services
from edgewright.server.store.database import DatabaseUnavailableError
from edgewright.server.store.decisions import DecisionExistsError
from edgewright.server.store.records import CheckIn

Make = Callable[..., World]


def _services(world: World) -> Services:
    services: Services = world.services
    return replace(services, fleet_config=FleetConfig(FleetMonitoring(evaluation_interval_seconds=0.01)))


def _led(services: Services, steps: list[Any], until: Callable[[], bool]) -> None:
    ended = threading.Event()
    leader = threading.Thread(target=lead_until, args=(services, ended, steps))
    leader.start()
    deadline = time.monotonic() + 20
    while not until() and time.monotonic() < deadline:
        time.sleep(0.005)
    ended.set()
    leader.join(10)
    assert not leader.is_alive()
    assert until()


def test_steps_are_done_again_and_again_and_the_lock_is_given_back(make: Make) -> None:
    world = make(count=0)
    looks: list[float] = []

    def step(now: float) -> list[str]:
        assert not world.store.leadership().try_acquire()
        looks.append(now)
        return ["looked"]

    _led(_services(world), [step], lambda: len(looks) >= 3)
    assert world.store.leadership().try_acquire()


@pytest.mark.parametrize(
    "error", [DatabaseUnavailableError("away", remedy="Wait."), OSError("disk"), ValueError("a bug")]
)
def test_a_step_that_fails_is_tried_again_and_keeps_no_other_from_it(
    make: Make, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    world = make(count=0)
    tries, others = [], []

    def broken(_: float) -> list[str]:
        tries.append(1)
        if len(tries) < 5:
            raise error
        return []

    def other(_: float) -> list[str]:
        others.append(1)
        return []

    with caplog.at_level(logging.INFO, "edgewright.server.controller.leader_loop"):
        _led(_services(world), [broken, other], lambda: len(others) >= 6)
    assert sum("a look failed" in line for line in caplog.messages) == 1
    assert "what failed works again" in caplog.messages


def test_whoever_finds_another_one_deciding_lets_go(make: Make) -> None:
    world = make(count=0)
    seen: list[bool] = []

    def taken(_: float) -> list[str]:
        if len(seen) == 1:
            return []
        raise DecisionExistsError("somebody else decides", remedy="Read.")

    def never(_: float) -> list[str]:
        seen.append(True)
        return []

    services = _services(world)
    ended = threading.Event()
    leader = threading.Thread(target=lead_until, args=(services, ended, [taken, never]))
    leader.start()
    other = world.store.leadership()
    deadline = time.monotonic() + 20
    while not (took := other.try_acquire()) and time.monotonic() < deadline:
        time.sleep(0.001)
    ended.set()
    leader.join(10)
    assert took
    assert seen == []


def test_who_does_not_lead_does_nothing(make: Make) -> None:
    world = make(count=0)
    holder = world.store.leadership()
    assert holder.try_acquire()
    looks: list[float] = []
    ended = threading.Event()

    def step(now: float) -> list[str]:
        looks.append(now)
        return []

    leader = threading.Thread(target=lead_until, args=(_services(world), ended, [step]))
    leader.start()
    time.sleep(0.1)
    assert looks == []
    holder.release()
    deadline = time.monotonic() + 20
    while not looks and time.monotonic() < deadline:
        time.sleep(0.005)
    ended.set()
    leader.join(10)
    assert looks


def test_an_hour_is_closed_once_when_it_is_over(make: Make) -> None:
    world = make(count=3)
    hour_at = world.at.timestamp() // 3600 * 3600
    status = DeviceStatus("m", "1.0")
    world.store.check_ins.store_batch([CheckIn(each.id, "pi", status, hour_at + 5) for each in world.devices])
    now = [hour_at + 3599.0]
    services = replace(_services(world), now=lambda: now[0])
    _led(services, [], lambda: world.store.check_ins.rollups(hour_at, hour_at + 1)[0].devices == 0)

    def closed() -> bool:
        now[0] = hour_at + 3601.0
        return bool(world.store.check_ins.rollups(hour_at, hour_at + 1)[0].devices == 3)

    _led(services, [], closed)


def test_spent_nonces_do_not_wait_for_the_daily_sweep(make: Make) -> None:
    world = make(count=1)
    started_at = world.at.timestamp()
    world.store.check_ins.store_batch(
        [CheckIn(world.devices[0].id, "pi", DeviceStatus("m", "1.0"), started_at, "n")]
    )
    now = [started_at]
    services = replace(_services(world), now=lambda: now[0])

    def gone() -> bool:
        now[0] += 100.0
        rows = text("SELECT count(*) FROM nonces")
        return not world.store.database.read(lambda connection: connection.execute(rows).scalar())

    _led(services, [], gone)
    assert now[0] - started_at < 86400 / 2
