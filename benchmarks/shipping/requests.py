"""What a check costs a device where a repository holds ten thousand targets."""

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.shipping.world import World, scaler
from tuf.api.metadata import TargetFile, Targets

from edgewright.device.agent import Agent
from edgewright.device.update.self_test import Probation
from edgewright.trust.repository.staging import draft_metadata, online_signers
from edgewright.trust.target_paths import release_path

__all__ = ["Cost", "checks", "fill"]


@dataclass(frozen=True, slots=True)
class Cost:
    """What one check cost.

    Attributes:
        requests: To the server.
        received: Bytes of metadata.
        cpu_ms: Of this process.
    """

    requests: int
    received: int
    cpu_ms: float


def fill(world: World, count: int) -> None:
    """Sign so many releases of other models, each with a digest and a size, spread over the bins."""
    repository = world.repository()
    releases = world.keys.signers(repository.root.signed.roles[Targets.type].keyids)
    changed = {}
    for number in range(count):
        path = release_path(f"model-{number % 100}", f"1.{number // 100}.0")
        name = repository.bin_of(path)
        if name not in changed:
            changed[name] = draft_metadata(repository, name)
        content = path.encode()
        target = TargetFile(2000, {"sha256": hashlib.sha256(content).hexdigest()}, path)
        changed[name].signed.targets[path] = target
    for metadata in changed.values():
        for signer in releases:
            metadata.sign(signer, append=True)
    with repository.locked():
        repository.commit(changed, online_signers(repository.root, world.keys))


def checks(world: World, state: Path, version: str, *, repeats: int = 20) -> dict[str, Cost]:
    """Return the median cost of checks: nothing new, a rollout changed, a new release rolled out, the first one.

    Args:
        world: With a rollout of a release.
        state: Of a device that has followed it.
        version: Of that release, rolled out again each time.
        repeats: Of each.
    """
    agent = Agent(state, probation=Probation(min_seconds=0.0))
    agent.check_for_update()
    agent.settle_probation()
    warm = [_cost(agent) for _ in range(repeats)]
    changed = []
    for _ in range(repeats):
        world.roll_out(version)
        changed.append(_cost(agent))
    new = []
    for number in range(max(3, repeats // 4)):
        world.publish(f"3.{number}.0", scaler(3.0 + number))
        world.roll_out(f"3.{number}.0")
        new.append(_cost(agent, before_artifact=True))
    agent.close()
    cold = []
    for number in range(max(3, repeats // 4)):
        fresh = Agent(world.enrol(f"cold-{number}"))
        cold.append(_cost(fresh, before_artifact=True))
        fresh.close()
    return {"warm": _median(warm), "changed": _median(changed), "new": _median(new), "cold": _median(cold)}


def _cost(agent: Agent, *, before_artifact: bool = False) -> Cost:
    fetcher = agent.fetcher
    requests, received, began = fetcher.requests, fetcher.received, time.process_time()
    if before_artifact:
        view, _, choice = agent._choose_update()
        if choice.release is not None:
            view.manifest(choice.release.name, choice.release.version, choice.release.manifest_digest)
    else:
        agent.check_for_update()
    cpu_ms = 1e3 * (time.process_time() - began)
    return Cost(fetcher.requests - requests, fetcher.received - received, cpu_ms)


def _median(costs: list[Cost]) -> Cost:
    def middle(values: list[float]) -> float:
        return sorted(values)[len(values) // 2]

    return Cost(
        int(middle([cost.requests for cost in costs])),
        int(middle([cost.received for cost in costs])),
        middle([cost.cpu_ms for cost in costs]),
    )
