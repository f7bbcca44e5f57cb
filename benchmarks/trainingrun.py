"""One task with training data from end to end: Edgewright and the peers, the runtime's floor, and the front."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.comparison import Judged, correct, latencies, ratio
from benchmarks.environments import CACHE
from benchmarks.front import Point, hypervolume, non_dominated, place, thinned
from benchmarks.report import Interval
from benchmarks.taskrun import EDGEWRIGHT, ORIGINAL, Ground, agreed, alpha_of, judge_all, outcome_of, say
from benchmarks.tasks.floor import write_floor
from benchmarks.tasks.preparation import Prepared
from benchmarks.tasks.trained import Task
from benchmarks.tools import SEED, TRAINING_PEERS, Compressed, Peer, compress_by_edgewright, compress_by_peer
from benchmarks.training_figures import Floor, TrainingRun

from edgewright.contract.errors import EdgewrightError
from edgewright.profiling.latency import LatencyResult

__all__ = ["TrainingOutcome", "run_training_task"]

_FRONT = 12
_FLOOR = ("floor", "floor-u8s8")
_Measured = dict[str, LatencyResult | EdgewrightError]


@dataclass(frozen=True, slots=True)
class TrainingOutcome:
    """What a task gave: for the figures, for people, and for the record."""

    run: TrainingRun
    table: str
    detail: dict[str, Any]


def run_training_task(
    task: Task, prepared: Prepared, state: Path, *, time_limit_seconds: float, seconds: float, fresh: bool
) -> TrainingOutcome:
    """Run Edgewright and the peers, then measure and judge all models together.

    Args:
        task: Of those with training data.
        prepared: Its files.
        state: Where Edgewright counts its looks; empty at the start of a benchmark.
        time_limit_seconds: For every tool that trains.
        seconds: For measuring all models in turns.
        fresh: Whether to run tools again whose results are in the cache.
    """
    ground = Ground.of(prepared)
    (max_drop,) = prepared.max_drops
    tools = _run_tools(
        prepared, ground, state, max_drop=max_drop, time_limit_seconds=time_limit_seconds, fresh=fresh
    )
    mine = tools[EDGEWRIGHT]
    alpha = alpha_of(mine, ground)
    models = {ORIGINAL: prepared.model} | {
        name: Path(tool.model) for name, tool in tools.items() if tool.model is not None
    }
    judged = judge_all(models, ground, max_drop, alpha)
    judged[EDGEWRIGHT] = agreed(judged.get(EDGEWRIGHT), mine)
    floors = _floors(prepared, ground, fresh=fresh)
    say(f"{prepared.name}: measuring {len(models) + len(floors)} models in turns")
    feed = ground.dataset.inputs_of(int(ground.splits.certify[0]))
    measured = latencies(models | floors, feed, seconds=seconds, seed=SEED)
    outcome = outcome_of(prepared, tools, models, judged, measured, max_drop, alpha)

    candidates = _front(mine, prepared.model.stat().st_size, max_drop)
    say(f"{prepared.name}: judging and measuring {len(candidates)} models of the front")
    both = {ORIGINAL: prepared.model} | candidates
    front_judged = judge_all(both, ground, max_drop, alpha)
    front_measured = latencies(both, feed, seconds=seconds, seed=SEED) if candidates else {}
    of_front = _points(both, front_judged, front_measured, max_drop)
    points = _points(models, judged, measured, max_drop)
    own = [*of_front.values(), *(points[name] for name in [EDGEWRIGHT] if name in points)]
    peers_volume = {peer.name: hypervolume([points[peer.name]]) for peer in TRAINING_PEERS if peer.name in points}

    everything = np.arange(len(ground.dataset))
    size = models[EDGEWRIGHT].stat().st_size if EDGEWRIGHT in models else None
    run = TrainingRun(
        task=outcome.run,
        size_to_original=None if size is None else size / prepared.model.stat().st_size,
        floor=_floor(measured, [ORIGINAL, *tools]),
        accuracy=float(correct(prepared.model, ground.dataset, everything, ground.contract).mean()),
        least_accuracy=task.least_accuracy,
        samples=len(ground.splits.certify),
        least_samples=task.least_samples,
        volume=hypervolume(own) if own else None,
        peers_volume=hypervolume([points[name] for name in peers_volume]),
        time_limit_seconds=time_limit_seconds,
    )
    detail = outcome.detail | {
        "time_limit_seconds": time_limit_seconds,
        "floor": None if run.floor is None else dataclasses.asdict(run.floor),
        "points": {name: list(point) for name, point in points.items()},
        "front": {name: list(point) for name, point in of_front.items()},
        "hypervolume": {EDGEWRIGHT: run.volume, "peers": run.peers_volume} | peers_volume,
    }
    return TrainingOutcome(run, outcome.table, detail)


def _run_tools(
    prepared: Prepared, ground: Ground, state: Path, *, max_drop: float, time_limit_seconds: float, fresh: bool
) -> dict[str, Compressed]:
    say(f"{prepared.name}: edgewright compress --train --max-drop {max_drop:g} --time-limit {time_limit_seconds:g}")
    mine = compress_by_edgewright(
        prepared.model,
        prepared.data,
        group=prepared.group,
        max_drop=max_drop,
        time_limit_seconds=time_limit_seconds,
        state=state / prepared.name,
        fresh=fresh,
        train=prepared.train,
    )
    tools = {EDGEWRIGHT: mine}
    for peer in TRAINING_PEERS:
        say(f"{prepared.name}: {peer.name}")
        tools[peer.name] = _run_peer(peer, prepared, ground, time_limit_seconds=time_limit_seconds, fresh=fresh)
    return tools


def _run_peer(
    peer: Peer, prepared: Prepared, ground: Ground, *, time_limit_seconds: float, fresh: bool
) -> Compressed:
    calibration = ground.calibration
    if not peer.trains:
        return compress_by_peer(peer, prepared.model, calibration, fresh=fresh, here=False)
    assert prepared.state is not None
    assert prepared.train is not None
    return compress_by_peer(
        dataclasses.replace(peer, form=prepared.network),
        prepared.model,
        calibration,
        fresh=fresh,
        here=False,
        more=(prepared.state, prepared.train, f"{time_limit_seconds:g}", str(SEED)),
        timeout_seconds=3 * time_limit_seconds + 120,
    )


def _floors(prepared: Prepared, ground: Ground, *, fresh: bool) -> dict[str, Path]:
    """Return the least network, as it is and quantised by onnxruntime."""
    floats, integers = _FLOOR
    floors = {floats: write_floor(prepared.model, CACHE / "floors" / f"{prepared.name}.onnx")}
    (peer,) = (peer for peer in TRAINING_PEERS if peer.name == "ort-u8s8")
    quantised = compress_by_peer(peer, floors[floats], ground.calibration, fresh=fresh, here=False)
    return floors if quantised.model is None else floors | {integers: Path(quantised.model)}


def _floor(measured: _Measured, names: Sequence[str]) -> Floor | None:
    """Return the faster of the least networks against the others."""
    found = {name: entry for name in _FLOOR if isinstance(entry := measured.get(name), LatencyResult)}
    if not found:
        return None
    name = min(found, key=lambda each: found[each].p50.value)
    to_others = {other: ratio(found[name], measured.get(other)) for other in names}
    known: dict[str, Interval] = {other: value for other, value in to_others.items() if value is not None}
    return Floor(name, found[name].p50.value, known, ratio(measured.get(EDGEWRIGHT), found[name]))


def _front(mine: Compressed, size_bytes: int, max_drop: float) -> dict[str, Path]:
    """Return models of Edgewright's front that no other beats in drop, latency and size on the select split."""
    report = mine.report or {}
    folder = Path(report.get("folder", ""), "candidates")
    found: list[tuple[Path, Point]] = []
    for trial in report.get("front", ()):
        path = folder / f"{trial['sha256'][:16]}.onnx"
        figures = (trial["drop"], trial["latency_ratio"])
        if trial["state"] == "complete" and None not in figures and path.exists():
            found.append((path, place(*figures, trial["size_bytes"] / size_bytes, max_drop=max_drop)))
    points = [point for _, point in found]
    within = [i for i in non_dominated(points) if points[i][0] <= 1]
    return {f"front-{found[i][0].stem}": found[i][0] for i in thinned(within, points, _FRONT)}


def _points(
    models: Mapping[str, Path], judged: Mapping[str, Judged | str], measured: _Measured, max_drop: float
) -> dict[str, Point]:
    """Return where models lie on the certify samples, against the original; without those that could not be run."""
    size_bytes = models[ORIGINAL].stat().st_size
    points: dict[str, Point] = {}
    for name, path in models.items():
        verdict, latency = judged.get(name), ratio(measured.get(name), measured.get(ORIGINAL))
        if name != ORIGINAL and isinstance(verdict, Judged) and latency is not None:
            size_ratio = path.stat().st_size / size_bytes
            points[name] = place(verdict.drop, latency.value, size_ratio, max_drop=max_drop)
    return points
