"""A controller that is killed before or after any single write, and one that goes on from there."""

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.unit.server.controller.conftest import World

from edgewright.server.controller.decision_records import explain_rollout
from edgewright.server.controller.rollout_controller import RolloutController
from edgewright.server.store.database import Database
from edgewright.trust.repository.staging import staged_metadata
from edgewright.trust.repository_check import check_repository
from edgewright.trust.storage.storage import LocalStorage

SUBJECT = "m/pi/spring"


class KilledError(BaseException):
    """The process is gone; nothing that it would have done afterwards is done."""


class Death:
    """Kills at a write: before it if `when` is even, after it if it is odd."""

    def __init__(self, when: int | None) -> None:
        self.when = when
        self.writes = 0
        self.dead = False

    def around(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any, **named: Any) -> Any:
            self._die_at(2 * self.writes)
            self.writes += 1
            found = real(*given, **named)
            self._die_at(2 * self.writes - 1)
            return found

        return run

    def _die_at(self, moment: int) -> None:
        self.dead = self.dead or moment == self.when
        if self.dead:
            raise KilledError


def _deadly(monkeypatch: pytest.MonkeyPatch, death: Death) -> None:
    monkeypatch.setattr(Database, "write", death.around(Database.write))
    for name in ("create", "replace", "delete"):
        monkeypatch.setattr(LocalStorage, name, death.around(getattr(LocalStorage, name)))


def _story(world: World) -> tuple[Any, ...]:
    """Return what must be the same however often somebody was killed."""
    told = explain_rollout(world.store, SUBJECT)
    assert [one.number for one in told] == [*range(1, len(told) + 1)]
    assert all(one.replays is not False for one in told)
    assert world.store.audit.broken_at() is None
    assert world.repository().lock_holder() is None
    assert check_repository(world.repository()).faults == []
    plan = world.plan
    waits = sorted(name for part in staged_metadata(world.repository()).values() for name in part.signed.targets)
    verdicts = [one.verdict for one in told if one.verdict != "hold"]
    return plan.state, plan.stage, plan.counter, verdicts, waits


@pytest.mark.parametrize("rate", [0.0, 0.4], ids=["harmless", "harmful"])
def test_whoever_goes_on_ends_the_same(
    make: Callable[..., World], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rate: float
) -> None:
    def fails(device: Any, version: str, _stage: int) -> tuple[str, ...]:
        return ("crash",) if version == "1.1" and device.luck.random() < rate else ()

    world = make(fails, count=240, holdout_fraction=0.4)
    for device in world.devices[:5]:
        device.dead = True
    world.start(1.0)
    # Up to the look at which everything happens.
    controller = RolloutController(world.services)
    if rate:
        for _ in range(4):
            world.live()
            world.at += datetime.timedelta(seconds=150)
        world.live()
    else:
        world.run(controller, 12)
        world.live()
    now = world.at.timestamp()
    assert world.plan.counter == 1
    world.store.close()

    def played(number: int | None) -> tuple[tuple[Any, ...], int]:
        other = world.copy(tmp_path / f"copy{number}")
        death = Death(number)
        try:
            with monkeypatch.context() as patched:
                _deadly(patched, death)
                try:
                    RolloutController(other.services).check_rollouts(now)
                except KilledError:
                    assert number is not None
            other.at += datetime.timedelta(seconds=10)
            for _ in range(2):
                RolloutController(other.services).check_rollouts(other.at.timestamp())
            return _story(other), death.writes
        finally:
            other.store.close()

    expected, writes = played(None)
    assert expected[:3] == (("aborted" if rate else "done"), 0, 2)
    assert expected[3] == (["roll_back", "awaiting_signatures"] if rate else ["settle", "finish"])
    assert writes >= 8
    for number in range(2 * writes):
        assert played(number)[0] == expected, number
