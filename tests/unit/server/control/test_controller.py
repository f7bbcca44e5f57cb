"""The controller against simulated fleets: what it does, and that nobody need trust it for why."""

from collections.abc import Callable
from typing import Any

from edgewright.server.controller import Controller
from edgewright.server.ground import why

World = Any
Make = Callable[..., World]
STAGES = (0.2, 0.5, 1.0)


def _crashes(rate: float) -> Callable[..., tuple[str, ...]]:
    """Return what makes the new release crash on a share of the devices."""

    def fails(device: Any, version: str, _stage: int) -> tuple[str, ...]:
        return ("crash",) if version == "1.1" and device.luck.random() < rate else ()

    return fails


def test_a_harmless_rollout_advances_to_its_end(make: Make) -> None:
    world = make()
    world.start(*STAGES)
    assert world.run(Controller(world.services), 60) == "done"
    assert [each for each in world.verdicts() if each != "hold"] == [
        "settle",
        "advance",
        "settle",
        "advance",
        "settle",
        "finish",
    ]
    assert world.plan.counter == 4
    assert all(one.replayed is not False for one in why(world.store, "spring"))


def test_a_release_that_crashes_is_taken_back_with_the_reason(make: Make) -> None:
    world = make(_crashes(0.2), count=600)
    world.start(*STAGES)
    assert world.run(Controller(world.services), 60) == "aborted"
    last = world.store.decisions.last("m/pi/spring", "roll_back")
    assert "crash of arm 0" in last.reason
