"""`edgewright rollout why`: the decision log of a server's state, replayed."""

import json
from collections.abc import Callable

import msgspec
import pytest
from tests.unit.server.controller.conftest import World

from edgewright.cli.main import main
from edgewright.server.controller.decision_records import basis_of, encode_basis
from edgewright.server.controller.rollout_controller import RolloutController
from edgewright.server.store.records import StoredDecision


def test_the_command_tells_every_decision_and_that_it_follows(
    make: Callable[..., World], capsys: pytest.CaptureFixture[str]
) -> None:
    world = make()
    world.start(0.2, 1.0)
    world.run(RolloutController(world.services), 40)
    assert main(["rollout", "why", "spring", "--state", str(world.path)]) == 0
    told = capsys.readouterr().out
    assert "advance" in told
    assert "decided again, the same" in told
    assert main(["rollout", "why", "m/pi/spring", "--state", str(world.path), "--json"]) == 0
    decisions = json.loads(capsys.readouterr().out)["decisions"]
    assert [one["verdict"] for one in decisions] == world.verdicts()


def test_a_decision_that_does_not_follow_is_an_error(
    make: Callable[..., World], capsys: pytest.CaptureFixture[str]
) -> None:
    world = make()
    world.start(0.2, 1.0)
    world.run(RolloutController(world.services), 3)
    last = world.last_decision("m/pi/spring")
    ground = basis_of(last)
    assert ground.decision is not None
    forged = msgspec.structs.replace(ground, decision=msgspec.structs.replace(ground.decision, action="advance"))
    world.store.decisions.put(
        StoredDecision("m/pi/spring", last.number + 1, 0.0, "advance", "", encode_basis(forged))
    )
    assert main(["rollout", "why", "spring", "--state", str(world.path)]) == 1
    assert "NOT the same" in capsys.readouterr().out


def test_what_is_none_is_said(make: Callable[..., World], capsys: pytest.CaptureFixture[str]) -> None:
    world = make(count=0)
    assert main(["rollout", "why", "winter", "--state", str(world.path)]) == 2
    assert main(["rollout", "why", "winter", "--state", str(world.path / "nowhere")]) == 2
    assert "no state of a server" in capsys.readouterr().err
