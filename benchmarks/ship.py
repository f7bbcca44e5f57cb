"""What updates and the agent cost and survive: requests, bytes, memory, microseconds, kills and faults.

    python benchmarks/ship.py            everything; writes benchmarks/results/ship.json
    python benchmarks/ship.py --quick    a smoke run of less than a minute
    python benchmarks/ship.py --only kills

The page docs/reference/benchmarks.md says what is measured.
"""

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from benchmarks.overhead import overhead
from benchmarks.parts import run_parts
from benchmarks.report import Figure, Interval
from benchmarks.shipping.deltas import pairs
from benchmarks.shipping.faults import try_all
from benchmarks.shipping.kills import kill_often
from benchmarks.shipping.memory import BARE, CHECKED, CORE, resident_mb
from benchmarks.shipping.requests import checks, fill
from benchmarks.shipping.switching import ask_while_switching
from benchmarks.shipping.world import World, scaler, serving

from edgewright.device.agent import Agent
from edgewright.device.update.self_test import Probation

NAME = "ship"
PACKAGES = ("edgewright", "cryptography", "numpy", "onnxruntime", "tuf", "zstandard")
VERSIONS = {"1.0.0": 1.0, "2.0.0": 2.0}


@contextmanager
def _world(*, bits: int = 8) -> Iterator[tuple[World, Path]]:
    """Yield a world with two releases, and a device on which the first is proven."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        (path / "repo").mkdir()
        with serving(path / "repo") as url:
            world = World(path, url)
            world.begin(bits=bits)
            for version, factor in VERSIONS.items():
                world.publish(version, scaler(factor))
            world.roll_out("1.0.0")
            state = world.enrol("device")
            agent = Agent(state, probation=Probation(min_seconds=0.0))
            agent.check_for_update()
            agent.settle_probation()
            agent.close()
            yield world, state


def _figure(name: str, value: float, limit: float | None, note: str, peer: str | None = None) -> Figure:
    return Figure(name, Interval.exact(value), limit, peer, limit is None or value <= limit, note)


def check(*, quick: bool) -> list[Figure]:
    """Cost of checks at ten thousand targets."""
    with _world() as (world, state):
        fill(world, 500 if quick else 10_000)
        found = checks(world, state, "1.0.0", repeats=3 if quick else 20)
    return [
        _figure("check.warm.requests", found["warm"].requests, 2, "nothing changed"),
        _figure("check.warm.cpu_ms", found["warm"].cpu_ms, 10, "nothing changed, CPU time in process"),
        _figure("check.changed.requests", found["changed"].requests, 4, "a rollout changed"),
        _figure("check.changed.kb", found["changed"].received / 1000, 15, "a rollout changed, before the artifact"),
        _figure("check.changed.cpu_ms", found["changed"].cpu_ms, None, "a rollout changed, CPU time in process"),
        _figure("check.new.requests", found["new"].requests, None, "a new release, with its manifest"),
        _figure("check.new.kb", found["new"].received / 1000, None, "a new release, before the artifact"),
        _figure("check.cold.requests", found["cold"].requests, None, "a device's first check"),
        _figure("check.cold.kb", found["cold"].received / 1000, 40, "a device's first check, before the artifact"),
    ]


def delta(*, quick: bool) -> list[Figure]:
    """Size of deltas over the full file."""
    limits = {"int8, head fine-tuned": 0.06, "int8, all weights moved by 1 %": 0.2}
    found = []
    for pair in pairs(epochs=1 if quick else 20):
        each = ", ".join(f"{codec} {size / pair.full:.3f}" for codec, size in pair.each.items())
        ratio = pair.delta / pair.full
        found.append(
            _figure(f"delta.{pair.name}", ratio, limits.get(pair.name), f"{pair.full} bytes; {each}", pair.codec)
        )
    return found


def predict(*, quick: bool) -> list[Figure]:
    """What the agent adds to `session.run`."""
    found = []
    for values in (16, 256, 4096, 65_536, 150_528):
        one = overhead(values, pairs=500 if quick else 10_000)
        noise = f"bare {one.bare_us:.1f} us, noise floor {one.noise_us:.2f} us"
        if values <= 4096:
            found.append(_figure(f"predict.added_us.{values}", one.added_us, 5, noise, "session.run"))
        else:
            ratio = one.added_us / one.pass_us
            passes = f"added {one.added_us:.1f} us, one pass {one.pass_us:.1f} us, {noise}"
            found.append(_figure(f"predict.passes.{values}", ratio, 1.5, passes, "numpy.minimum.reduce"))
    return found


def memory(*, quick: bool) -> list[Figure]:
    """Resident memory of an agent."""
    del quick
    with _world() as (_, state):
        bare = resident_mb(BARE)
        return [
            _figure("memory.core_mb", resident_mb(CORE, state), 60, "agent without onnxruntime"),
            _figure("memory.running_mb", resident_mb(CHECKED, state), 110, "after a check and 100 inferences"),
            _figure("memory.bare_mb", bare, None, "import numpy, onnxruntime; nothing else"),
        ]


def switch(*, quick: bool) -> list[Figure]:
    """Requests during switches."""
    with _world() as (world, state):
        found = ask_while_switching(world, state, VERSIONS, 2000 if quick else 100_000)
    note = f"{found.requests} requests, {found.switches} switches"
    return [
        _figure("switch.lost", found.lost, 0, note),
        _figure("switch.wrong", found.wrong, 0, note),
        _figure("switch.p99_ratio", found.p99_ratio(), None if quick else 3, "p99 during updates over p99 between"),
    ]


def kills(*, quick: bool) -> list[Figure]:
    """SIGKILL at random instants."""
    with _world() as (world, state):
        world.roll_out("2.0.0")
        found = kill_often(world, state, VERSIONS, 25 if quick else 1000)
    states = ", ".join(f"{state} {count}" for state, count in found.states.most_common())
    note = f"{found.kills} kills, {found.updates} updates finished; found in: {states}"
    return [_figure("kills.unverified", len(found.bad), 0, "; ".join([note, *found.bad[:3]]))]


def faults(*, quick: bool) -> list[Figure]:
    """Write faults and power cuts at every event of an update."""
    with _world() as (world, state):
        world.roll_out("2.0.0")
        found = try_all(world, state, VERSIONS, step=17 if quick else 1)
    states = ", ".join(f"{state} {count}" for state, count in found.states.items())
    note = "; ".join([f"{found.faults} faults; in: {states}", *found.bad[:3]])
    return [_figure("faults.unverified", len(found.bad), 0, note)]


PARTS: dict[str, Callable[..., list[Figure]]] = {
    part.__name__: part for part in (check, delta, predict, memory, switch, faults, kills)
}


if __name__ == "__main__":
    sys.exit(run_parts(NAME, PARTS, PACKAGES, __doc__))
