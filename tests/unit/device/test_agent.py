"""The agent: fetches, proves, promotes, returns, heals; and goes on from wherever it was stopped."""

from typing import Any

import numpy as np
import pytest
from tests.unit.device.conftest import World, answer, failed

from edgewright.device.filesystem import FileSystem
from edgewright.device.update.self_test import Probation
from edgewright.device.update.state_machine import UpdateLifecycleState


def test_a_release_is_fetched_proved_watched_and_promoted(running: World) -> None:
    running.publish("1.1.0", 2.0)
    running.start("1.1.0")
    agent = running.agent()
    assert answer(agent) == 1.0
    record = agent.check_for_update()
    assert (record.state, record.last_refusal) == (UpdateLifecycleState.PROBATION, None)
    assert answer(agent) == 2.0
    assert agent.status()["proven"] == "1.0.0"
    running.clock.turn(hours=1)
    assert agent.settle_probation().state is UpdateLifecycleState.IDLE
    assert agent.status()["proven"] == "1.1.0"
    assert agent.status()["previous"] == "1.0.0"


def test_enough_inferences_promote_as_well(running: World) -> None:
    running.publish("1.1.0", 2.0)
    running.start("1.1.0")
    agent = running.agent(probation=Probation(min_inferences=5, min_seconds=1e9))
    agent.check_for_update()
    for _ in range(5):
        answer(agent)
    assert agent.settle_probation().state is UpdateLifecycleState.IDLE
    assert agent.status()["proven"] == "1.1.0"


def test_a_warm_check_of_an_unchanged_repository_is_two_requests(running: World) -> None:
    agent = running.agent()
    running.requests.clear()
    agent.check_for_update()
    assert [path.rpartition("/")[2] for path in running.requests] == ["2.root.json", "timestamp.json"]


def test_a_changed_rollout_is_four_requests(running: World) -> None:
    agent = running.agent()
    running.start("1.0.0", fraction=0.5)
    running.requests.clear()
    assert agent.check_for_update().last_refusal is None
    assert len(running.requests) == 4


def test_what_changed_little_comes_as_a_delta(running: World) -> None:
    running.publish("1.1.0", 2.0)
    running.start("1.1.0")
    agent = running.agent()
    before = agent.fetcher.received
    agent.check_for_update()
    assert answer(agent) == 2.0
    assert agent.fetcher.received - before < 16_000  # the whole model has as many alone


def test_who_is_not_in_keeps_what_it_has(running: World) -> None:
    running.publish("1.1.0", 2.0)
    running.start("1.1.0", fraction=0.0)
    agent = running.agent()
    agent.check_for_update()
    assert answer(agent) == 1.0


def test_an_aborted_rollout_sends_the_trial_back(running: World) -> None:
    running.publish("1.1.0", 2.0)
    plan = running.start("1.1.0")
    agent = running.agent()
    agent.check_for_update()
    assert answer(agent) == 2.0
    running.start("1.1.0", state="aborted", rollout=plan.rollout)
    record = agent.check_for_update()
    assert (record.state, answer(agent)) == (UpdateLifecycleState.IDLE, 1.0)
    assert record.last_refusal is not None


def test_a_model_that_answers_otherwise_here_does_not_serve(running: World) -> None:
    def others(variant, contents):  # type: ignore[no-untyped-def]
        import io

        import msgspec
        from tests.unit.device.conftest import digest

        from edgewright.contract.release import StoredFile

        arrays = dict(np.load(io.BytesIO(contents["golden.npz"])))
        arrays["output:y"] = arrays["output:y"] + 1
        stream = io.BytesIO()
        np.savez(stream, **arrays)
        golden = stream.getvalue()
        files = tuple(
            StoredFile("golden.npz", digest(golden), len(golden)) if file.name == "golden.npz" else file
            for file in variant.files
        )
        return msgspec.structs.replace(variant, files=files), {**contents, "golden.npz": golden}

    running.publish("1.1.0", 2.0, change=others)
    running.start("1.1.0")
    agent = running.agent()
    record = agent.check_for_update()
    assert record.state is UpdateLifecycleState.IDLE
    assert record.last_refusal is not None
    assert record.last_refusal.code == "self-test"
    assert answer(agent) == 1.0
    running.requests.clear()
    agent.check_for_update()  # what failed here is not tried again
    assert not [path for path in running.requests if "blobs" in path]


def test_a_model_that_fails_in_its_probation_gives_way(running: World) -> None:
    running.publish("1.1.0", 2.0)
    running.start("1.1.0")
    agent = running.agent()
    agent.check_for_update()
    failed(agent, 1)
    record = agent.settle_probation()
    assert record.state is UpdateLifecycleState.IDLE
    assert answer(agent) == 1.0
    assert record.last_refusal is not None
    assert record.last_refusal.code == "probation"


def test_a_person_can_return_to_the_release_before(running: World) -> None:
    running.publish("1.1.0", 2.0)
    running.start("1.1.0")
    agent = running.agent()
    agent.check_for_update()
    running.clock.turn(hours=1)
    agent.settle_probation()
    agent.roll_back()
    assert answer(agent) == 1.0
    agent.check_for_update()
    assert answer(agent) == 1.0  # and it stays so


def test_a_flipped_bit_is_found_and_healed_from_the_repository(running: World) -> None:
    agent = running.agent()
    (path,) = (running.path / "device/releases").glob("*/model.onnx")
    content = bytearray(path.read_bytes())
    content[-40] ^= 1
    path.write_bytes(bytes(content))
    (found,) = agent.verify_slots()
    assert found.code == "tampered"
    assert agent.verify_slots() == []
    assert answer(running.agent()) == 1.0


def test_a_broken_model_found_at_the_start_gives_way_and_comes_back(running: World) -> None:
    (path,) = (running.path / "device/releases").glob("*/model.onnx")
    path.write_bytes(b"rotten")
    agent = running.agent()
    assert answer(agent) is None
    assert agent.status()["last_refusal"].code == "tampered"
    agent.check_for_update()
    assert answer(agent) == 1.0


class Full(FileSystem):
    """A disk that is full."""

    def free_bytes(self, folder: object) -> int:
        return 1000


def test_a_full_disk_waits_and_says_so(running: World) -> None:
    running.publish("1.1.0", 2.0)
    running.start("1.1.0")
    agent = running.agent(files=Full())
    record = agent.check_for_update()
    assert record.last_refusal is not None
    assert record.last_refusal.code == "disk"
    assert answer(agent) == 1.0
    again = running.agent()
    assert answer(again) == 1.0
    again.check_for_update()
    assert answer(again) == 2.0


@pytest.mark.parametrize(
    ("changes", "battery", "code"),
    [({"min_battery_level": 0.5}, 0.2, "battery"), ({"min_battery_level": 0.5}, 0.9, None)],
)
def test_an_installation_waits_for_the_battery(
    running: World, changes: dict[str, Any], battery: float, code: str | None
) -> None:
    running.publish("1.1.0", 2.0)
    running.start("1.1.0", **changes)
    agent = running.agent(read_battery=lambda: battery)
    record = agent.check_for_update()
    assert (record.last_refusal and record.last_refusal.code) == code
    assert answer(agent) == (1.0 if code else 2.0)
