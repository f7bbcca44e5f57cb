"""What it costs to watch a model: microseconds a call, the slowest calls, kilobytes kept; and other monitors' cost.

    python benchmarks/monitor.py            everything; writes benchmarks/results/monitor.json
    python benchmarks/monitor.py --quick    a smoke run of less than a minute, without the other monitors
    python benchmarks/monitor.py --only predict

The page docs/reference/benchmarks.md says what is measured.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import numpy as np
from benchmarks.environments import PEERS, environment
from benchmarks.overhead import overhead, tail
from benchmarks.parts import run_parts
from benchmarks.report import Figure, Interval

from edgewright.contract.model.reference_profile import ReferenceProfile, ReferenceSignal
from edgewright.device.monitoring.aggregates import (
    MonitoringReference,
    add_observations,
    new_monitor_state,
    state_to_bytes,
)

NAME = "monitor"
PACKAGES = ("edgewright", "numpy", "onnxruntime")
# A model of 200 us and more on the machines that this is run on.
_VALUES, _HIDDEN = 784, 1200
_SIGNALS = ("min", "max", "mean", "std", "roughness", "confidence", "margin", "energy", "class")


def _figure(name: str, value: float, limit: float | None, note: str, peer: str | None = None) -> Figure:
    return Figure(name, Interval.exact(value), limit, peer, limit is None or value <= limit, note)


def predict(*, quick: bool) -> list[Figure]:
    """What the agent, guard and monitor add to `session.run`."""
    found = []
    for values in (16, 256, 4096, 65_536, 150_528):
        one = overhead(values, pairs=500 if quick else 10_000, watched=True)
        noise = f"bare {one.bare_us:.1f} us, noise floor {one.noise_us:.2f} us"
        if values <= 4096:
            found.append(_figure(f"predict.added_us.{values}", one.added_us, 10, noise, "session.run"))
        else:
            passes = f"added {one.added_us:.1f} us, one pass {one.pass_us:.1f} us, {noise}"
            found.append(
                _figure(f"predict.passes.{values}", one.added_us / one.pass_us, 1.5, passes, "numpy.minimum.reduce")
            )
    large = overhead(_VALUES, pairs=300 if quick else 4000, hidden=_HIDDEN, watched=True)
    note = f"added {large.added_us:.1f} us to {large.bare_us:.0f} us, noise floor {large.noise_us:.2f} us"
    return [*found, _figure("predict.share", large.added_us / large.bare_us, 0.05, note, "session.run")]


def slowest(*, quick: bool) -> list[Figure]:
    """The slowest calls, with the thread that counts beside them."""
    one = tail(_VALUES, calls=1500 if quick else 50_000, hidden=_HIDDEN)
    note = f"p99.9 {one.agent_us:.0f} us, bare {one.bare_us:.0f} us, bare over bare {one.noise:.2f}"
    return [_figure("slowest.p999_ratio", one.agent_us / one.bare_us, 1.5, note, "session.run")]


def kept(*, quick: bool) -> list[Figure]:
    """What is kept, and what counting costs off the inference path."""
    del quick
    random = np.random.default_rng(0)
    signals = tuple(
        ReferenceSignal(name, tuple(np.linspace(-2, 2, 15).tolist()), (*random.integers(40, 60, 16).tolist(), 0))
        for name in _SIGNALS
    )
    reference = MonitoringReference.prepare(
        ReferenceProfile("x", _VALUES, signals, output_kind="logits", classes=8)
    )
    watched, taken = new_monitor_state(reference, 0.0), []
    for number in range(200):
        rows = random.normal(size=(200, len(reference.layout.columns)))
        rows[:, :2] = number, 1e-3
        began = time.process_time()
        watched = add_observations(reference, watched, rows, now=60.0 * number, monotonic_seconds=float(number))
        taken.append(time.process_time() - began)
    note = f"{len(_SIGNALS)} signals of 16 bins after 40,000 observations, with {len(watched.windows)} windows"
    return [
        _figure("kept.kb", len(state_to_bytes(watched)) / 1000, None, note),
        _figure("kept.cpu_us_per_inference", float(np.median(taken)) / 200 * 1e6, None, "counting, off the path"),
    ]


def peers(*, quick: bool) -> list[Figure]:
    """What other monitors take for a row of as many statistics."""
    if quick:
        return []
    script = [str(environment("watch")), str(PEERS / "rows.py"), str(len(_SIGNALS)), "4000"]
    said = subprocess.run(script, capture_output=True, text=True, check=True).stdout
    own = overhead(256, pairs=4000, watched=True).added_us
    note = f"{len(_SIGNALS)} statistics a row, which they do not compute; Edgewright {own:.1f} us with guard"
    return [
        _figure(f"peers.us.{name.replace(' ', '_')}", value, None, note, name)
        for name, value in json.loads(said.splitlines()[-1]).items()
    ]


PARTS = {part.__name__: part for part in (predict, slowest, kept, peers)}

if __name__ == "__main__":
    sys.exit(run_parts(NAME, PARTS, PACKAGES, __doc__))
