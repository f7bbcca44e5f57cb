"""Killing the agent at random instants of its updates, and looking at what is there afterwards.

One process imports everything; each life of the agent is a fork of it, so that a thousand of them take minutes. It
updates from one release to the other and back for as long as it lives. After each SIGKILL another fork boots from
what is on the disk, and must answer as the version that it says it is.
"""

import json
import os
import random
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.shipping.world import World, answer_of

from edgewright.device.agent import Agent
from edgewright.device.update.self_test import Probation

__all__ = ["Kills", "kill_often"]


@dataclass(slots=True)
class Kills:
    """What became of kills.

    Attributes:
        kills: That hit a living agent.
        bad: In words, those after which the device did not serve a verified model.
        states: Of the update, in which the agent was killed, with their number.
        updates: That were finished meanwhile.
    """

    kills: int = 0
    bad: list[str] = field(default_factory=list)
    states: Counter[str] = field(default_factory=Counter)
    updates: int = 0


def kill_often(world: World, state: Path, versions: dict[str, float], count: int, *, seed: int = 0) -> Kills:
    """Kill an agent so often.

    Args:
        world: Its repository has these releases.
        state: Of a device with a proven release.
        versions: What each version's model multiplies by; two.
        count: Of kills.
        seed: Of the instants.
    """
    chance = random.Random(seed)  # noqa: S311 - instants, nothing secret
    found = Kills()
    names = list(versions)
    target = 0
    longest = 0.3
    while found.kills < count:
        seen = _in_a_fork(state, versions)
        found.states[str(seen.get("before"))] += 1
        if seen.get("fault"):
            found.bad.append(f"kill {found.kills}: {seen['fault']}")
        if seen.get("proven") == names[target]:  # done: the other way round
            found.updates += 1
            target = 1 - target
            world.roll_out(names[target])
        child = _fork(lambda: _live(state))
        time.sleep(chance.uniform(0, longest))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            found.kills += 1
        else:  # it was through: shorter lives hit more
            longest = max(0.05, 0.9 * longest)
    return found


def _live(state: Path) -> None:
    agent = Agent(state, probation=Probation(min_inferences=3))
    while True:
        agent.check_for_update()
        for _ in range(3):
            answer_of(agent)
        agent.settle_probation()


def _boot(state: Path, versions: dict[str, float]) -> dict[str, object]:
    watcher = Agent(state, serves_model=False)
    before = str(watcher.journal_record.state)
    agent = Agent(state)
    version, answered = agent.status()["version"], answer_of(agent)
    fault = "" if versions.get(version or "") == answered else f"serves {version}, which answers {answered}"
    return {"before": before, "proven": agent.status()["proven"], "fault": fault}


def _in_a_fork(state: Path, versions: dict[str, float]) -> dict[str, object]:
    reading, writing = os.pipe()

    def tell() -> None:
        try:
            told = _boot(state, versions)
        except BaseException as error:
            told = {"fault": f"{type(error).__name__} {error}"}
        os.write(writing, json.dumps(told).encode())

    child = _fork(tell)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        content = stream.read()
    os.waitpid(child, 0)
    found: dict[str, object] = json.loads(content)
    return found


def _fork(act: object) -> int:
    child = os.fork()
    if child:
        return child
    try:
        act()  # type: ignore[operator]
    except BaseException as error:
        print(f"{type(error).__name__} {error}", file=sys.stderr)
        os._exit(1)
    os._exit(0)
