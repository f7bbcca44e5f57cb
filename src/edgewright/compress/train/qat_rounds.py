"""Training of integers: the forms of the best networks, then ever fewer bits as long as the drop is kept.

First each finalist is tried in all forms that need no training. The fastest that keeps the drop goes on: its
weights are rounded to fewer and fewer integers, and trained behind the rounding until the answers are good again.
"""

import math
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import msgspec

from edgewright.compress.certify.ranking import SIZE_WEIGHT, closeness
from edgewright.compress.model.graph import Graph
from edgewright.compress.quantize.sensitivity import allocate_peaks
from edgewright.compress.quantize.static_int8 import StaticInt8
from edgewright.compress.search.layer_analysis import lay_out
from edgewright.compress.search.recipe import CleanUp, Step, Trained
from edgewright.compress.search.space import AS_TRAINED, Space
from edgewright.compress.train.policy import Standing, rows_each, tightness
from edgewright.compress.train.qat.initial_graph import quantized_start
from edgewright.compress.train.training_session import Course, Task, untrained
from edgewright.contract.compression_report import Trial
from edgewright.contract.device_class import Budget
from edgewright.contract.errors import CandidateError
from edgewright.contract.training_report import Contribution, TrainedNetwork

__all__ = ["Finalist", "finalists_of", "train_integers"]

_IDEAS = 5
# Of what is left for integers, each go takes so much.
_SHARE = 0.5
# What breaks the limit by more than this share of it is not tried again, nor what had nearly as much time.
_HOPELESS, _MUCH_MORE = 2.0, 1.5
_LEAST_S = 4.0


class Finalist(msgspec.Struct, frozen=True):
    """A trained network with the recipes that start from it.

    Attributes:
        standing: Where it stands.
        space: Its recipes.
        best: Its best trial without training integers, None if none worked.
    """

    standing: Standing
    space: Space
    best: Trial | None


def finalists_of(course: Course, standings: Sequence[Standing], until: float) -> list[Finalist]:
    """Try the forms of each network that need no training; the fastest that keeps the drop comes first."""
    found: list[Finalist] = []
    for place, standing in enumerate(standings):
        seconds = (until - time.monotonic()) / (len(standings) - place)
        if seconds < 1 and found:
            break
        step = Trained(standing.network, standing.prospect.title)
        course.tell(f"forms of {step.title}")
        first: tuple[Step, ...] = (step, CleanUp(), *course.run.space.fold)
        try:
            space, _ = lay_out(
                course.run.bench, first, course.run.machine, seconds=0.3 * seconds, kept=course.run.folder.layouts
            )
        except CandidateError as error:
            course.notes.append(f"{step.title} cannot be compressed further: {error.message}")
            continue
        trials = [t for t in course.search.consider(space, seconds, _IDEAS) if t.state == "complete"]
        best = min(trials, key=lambda trial: _order(course, trial), default=None)
        found.append(Finalist(standing, space, best))

    def rank(finalist: Finalist) -> tuple[float, float]:
        return (float("inf"), 9.0) if finalist.best is None else _order(course, finalist.best)

    return sorted(found, key=rank)


def train_integers(course: Course, finalist: Finalist, until: float) -> list[Contribution]:
    """Train a finalist's integers at ever tighter weights, and return what that gave against rounding alone.

    Args:
        course: What the rounds share.
        finalist: Whose integers.
        until: When this part must be over, of `time.monotonic()`.
    """
    if course.run.space.fold:
        course.notes.append("integers are not trained where preprocessing is folded into the graph")
        return []
    kept: list[int] = []
    failed: dict[int, _Failed] = {}
    keeps_now = _keeps(course, finalist.best)
    gains: list[Contribution] = []
    number = 0
    while (left := until - time.monotonic()) > _LEAST_S:
        number += 1
        steps = tightness(kept, list(failed), course.workers, keeps_now=keeps_now)
        starts = [(db, start) for db in steps if (start := _start(course, finalist, db)) is not None]
        last = left < 3 * _LEAST_S
        if not starts:  # what came closest gets all the time, if that is much more than it had
            starts = _closest(failed, min(kept, default=math.inf), left)[: course.workers]
            last = True
        if not starts:
            break
        deadline = time.monotonic() + (left if last else _SHARE * left)
        tasks = course.planned(
            f"integers-{finalist.standing.network[:16]}-{number}",
            partial(_tasks, course, finalist, starts, number, deadline),
        )
        trained = course.train(f"integers {number}", tasks, deadline)
        for (db, start), network in zip(starts, trained, strict=False):
            failed.pop(db, None)
            trial = _tried(course, finalist, network)
            if trial is not None and _keeps(course, trial):
                kept.append(db)
            else:
                failed[db] = _Failed(
                    math.inf if trial is None else _excess(course, trial), start, max(network.seconds, _LEAST_S)
                )
            if trial is not None:
                gains += _against_rounding(course, finalist, db, trial)
    return gains


class _Failed(NamedTuple):
    """Integers that broke the limit: by what share of it, where they started, and the seconds that they had."""

    excess: float
    start: str
    seconds: float


def _closest(failed: Mapping[int, _Failed], least: float, left: float) -> list[tuple[int, str]]:
    """Return tightness and start of those that came closest to the limit, with fewer bits than what keeps it."""
    near = [(one.excess, db) for db, one in failed.items() if db < least and left > _MUCH_MORE * one.seconds]
    return [(db, failed[db].start) for excess, db in sorted(near) if excess < _HOPELESS]


def _excess(course: Course, trial: Trial) -> float:
    """Return by how much a trial breaks the limit on the drop, as a share of it; other limits do not count here."""
    return closeness(trial, Budget(max_drop=course.max_drop))


def _keeps(course: Course, trial: Trial | None) -> bool:
    return trial is not None and _excess(course, trial) <= 0


def _order(course: Course, trial: Trial) -> tuple[float, float]:
    """Return what trials are sorted by: those that keep the drop first, the cheapest of them first."""
    return max(_excess(course, trial), 0.0), (trial.latency_ratio or 9.0) * trial.size_bytes**SIZE_WEIGHT


def _start(course: Course, finalist: Finalist, db: int) -> str | None:
    """Return the digest of the integer graph to start from; None if there is nothing to train in it."""
    run, space = course.run, finalist.space
    first: tuple[Step, ...] = (*space.start, CleanUp())
    peaks = allocate_peaks(Graph(space.clean), space.weight_noise, float(db))
    step = StaticInt8(
        activations="int8" if space.signed_first else "uint8",
        peak=space.int8_peak,
        peaks={layer: peak for layer, peak in peaks.items() if peak < space.int8_peak},
    )
    try:
        return course.store.put(quantized_start(run.bench.after(first), step, run.bench.seen_after(first)))
    except CandidateError as error:
        course.notes.append(f"the integers of {finalist.standing.prospect.title} are not trained: {error.message}")
        return None


def _tasks(
    course: Course, finalist: Finalist, starts: Sequence[tuple[int, str]], number: int, deadline: float
) -> list[Task]:
    network, prospect = finalist.standing.network, finalist.standing.prospect
    pace = course.pace_of(starts[0][1])
    rows = rows_each(course.core_seconds(deadline), [pace] * max(len(starts), course.workers))
    return [
        Task(
            untrained(prospect, "integers", network, number, f"{prospect.title}, trained integers of {db} dB"),
            start,
            course.settings(rows, "integers"),
            hold=finalist.standing.sparse,
        )
        for db, start in starts
    ]


def _tried(course: Course, finalist: Finalist, network: TrainedNetwork) -> Trial | None:
    if not network.network:
        return None
    space = Space(
        clean=course.store.network(network.network),
        forms=(AS_TRAINED,),
        neighbours=False,
        float_sets={},
        weight_noise={},
        start=(Trained(network.network, network.title),),
        kernels=_kernels(finalist.space),
    )
    trials = course.search.consider(space, _LEAST_S)
    return trials[-1] if trials and trials[-1].state == "complete" else None


def _kernels(space: Space) -> str:
    """Return the speed key of trained integers: that of the same form without training."""
    return next(
        (space.speed_key(params) for params in space.first_ideas() if params["form"] == "static"),
        f"{space.kernels}: integers",
    )


def _against_rounding(course: Course, finalist: Finalist, db: int, trial: Trial) -> list[Contribution]:
    """Compare trained integers with the same rounding without training."""
    params = next((p for p in finalist.space.first_ideas() if p["form"] == "static"), None)
    if params is None or trial.metric is None:
        return []
    rounded = course.search.attempt(finalist.space, {**params, "weights": str(db)})
    if rounded is None or rounded.metric is None:
        return []
    return [
        Contribution(
            step="training of integers",
            of=f"{finalist.standing.prospect.title}, weights of {db} dB",
            measured_on="select split",
            metric_without=rounded.metric,
            metric_with=trial.metric,
            size_ratio=trial.size_bytes / rounded.size_bytes,
        )
    ]
