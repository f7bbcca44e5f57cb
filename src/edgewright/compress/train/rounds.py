"""The rounds of training in full precision: many networks for a short time, the promising ones for longer."""

import math
import time
from collections.abc import Sequence

import msgspec
import numpy as np

from edgewright.compress.train.capacity import capacity
from edgewright.compress.train.course import Course, Task
from edgewright.compress.train.families import parameters
from edgewright.compress.train.plan import Prospect, Standing, passes, rows_each, shortlist, survivors
from edgewright.compress.train.prune import Prune, prune
from edgewright.compress.train.settings import Start, Training, usual_training
from edgewright.compress.train.survey import eight_bit, few_batches, measured_ratios
from edgewright.contract.errors import CandidateError
from edgewright.contract.training import Origin, TrainedNetwork

__all__ = ["FINAL_SHARE", "settings_for", "train_in_rounds"]

# Share of the time for full precision that each round gets, and how many networks it trains.
_ROUNDS = ((0.25, 8), (0.3, 3), (0.45, 2))
# Of the cores' time in all rounds, what one network of the last one gets.
FINAL_SHARE = _ROUNDS[-1][0] / _ROUNDS[-1][1]
# Of the time of the cores, what is left for training beside starting, judging and waiting for one another.
_USABLE = 0.85
# The first round shows this share of all rows at least, to no fewer networks than these.
_LEAST_PASS, _LEAST_PLACES = 0.5, 4
# Share of the rows for what begins with the original's weights.
_WARM = 0.5
# Of a network that stands well, so much goes before it is trained on.
_FURTHER = 0.25


def train_in_rounds(course: Course, prospects: Sequence[Prospect], until: float) -> list[Standing]:
    """Train the shortlist in rounds, and return how those of the last one stand, most promising first.

    Args:
        course: What the rounds share.
        prospects: The shortlist.
        until: When this part must be over, of `time.monotonic()`.
    """
    began = time.monotonic()
    whole = until - began
    standings = [Standing(prospect, prospect.start, np.inf) for prospect in prospects]
    spent = 0.0
    for number, (share, _) in enumerate(_ROUNDS):
        if number > 0:
            wanted = max(_ROUNDS[number][1], course.workers)
            standings = _chosen(course, standings, wanted, number)
            if number == 1:
                standings += _narrower(course, standings)
        spent += share
        deadline = min(until, began + spent * whole)
        tasks = _planned(course, standings, number, deadline)
        trained = course.train(f"round {number + 1}", tasks, deadline)
        reached = _standings(standings, tasks, trained)
        standings = reached or standings
        if time.monotonic() >= until:
            break
    return _chosen(course, [s for s in standings if np.isfinite(s.drop)], len(standings), len(_ROUNDS))


def settings_for(course: Course, rows: int, start: Start) -> Training:
    """Return how a network is trained if it is shown so many rows in all."""
    available = len(course.lessons.train)
    epochs, per_epoch = passes(rows, available)
    usual = usual_training(available, start, epochs=epochs, augment=course.augment, teacher=True)
    usual = msgspec.structs.replace(usual, distillation=course.distillation)
    return msgspec.structs.replace(usual, rows=0 if per_epoch == available else max(per_epoch, usual.batch))


def _chosen(course: Course, standings: Sequence[Standing], count: int, number: int) -> list[Standing]:
    return survivors(
        standings,
        count,
        max_drop=course.max_drop,
        round_number=number - 1,
    )


def _planned(course: Course, standings: Sequence[Standing], number: int, deadline: float) -> list[Task]:
    """Return the tasks of a round; those of an earlier run of the same round if it was planned already."""
    name = f"round-{number + 1}"
    planned = course.store.load(name, list[Task])
    if planned is not None:
        return planned
    able: list[tuple[Standing, float]] = []
    for standing in standings:
        try:
            able.append((standing, course.pace_of(standing.network)))
        except (CandidateError, RuntimeError) as error:
            course.notes.append(f"{standing.prospect.title} cannot be trained: {error}")
    core_seconds = _USABLE * course.workers * max(0.0, deadline - time.monotonic())
    if number == 0:
        able = _affordable(able, core_seconds, len(course.lessons.train))
    rows = rows_each(core_seconds, [pace * _share_of(standing) for standing, pace in able])
    # The longest first: then no worker waits long for another.
    able.sort(key=lambda entry: -entry[1] * _share_of(entry[0]))
    tasks = [_task(course, standing, int(rows * _share_of(standing)), number) for standing, _ in able]
    if number == 0 and tasks:
        tasks += _untaught(tasks, [pace for _, pace in able])
    course.store.save(name, tasks)
    return tasks


def _share_of(standing: Standing) -> float:
    """Return the share of rows that a network is shown: one that begins with the original's weights needs less."""
    return _WARM if standing.prospect.origin == "pruned" else 1.0


def _affordable(
    able: list[tuple[Standing, float]], core_seconds: float, available: int
) -> list[tuple[Standing, float]]:
    """Return fewer networks where the first round would be too short to tell them apart."""
    paces = {standing.prospect.start: pace for standing, pace in able}
    kept = [standing.prospect for standing, _ in able]
    while len(kept) > _LEAST_PLACES:
        rows = rows_each(core_seconds, [paces[prospect.start] for prospect in kept])
        if rows >= _LEAST_PASS * available:
            break
        kept = shortlist(kept, len(kept) - 1, math.inf)
    return [entry for entry in able if entry[0].prospect in kept]


def _task(course: Course, standing: Standing, rows: int, number: int) -> Task:
    prospect = standing.prospect
    start: Start = "trained" if prospect.origin == "pruned" else "fresh"
    origin: Origin = prospect.origin if number == 0 or standing.network == prospect.start else "continued"
    network = TrainedNetwork(
        network="",
        title=prospect.title,
        origin=origin,
        parent=standing.network,
        round=number + 1,
        rows=0,
        distilled=True,
        parameters=prospect.parameters,
        latency_ratio=prospect.latency_ratio,
        validation_metric=None,
        drop=None,
        seconds=0.0,
    )
    return Task(network, standing.network, settings_for(course, rows, start))


def _untaught(tasks: Sequence[Task], paces: Sequence[float]) -> list[Task]:
    """Return the quickest task once more without a teacher, to tell what distillation gives."""
    quickest = min(range(len(tasks)), key=lambda i: paces[i])
    task = tasks[quickest]
    alone = msgspec.structs.replace(task.settings, distillation=None)
    return [msgspec.structs.replace(task, settings=alone)]


def _standings(
    before: Sequence[Standing], tasks: Sequence[Task], trained: Sequence[TrainedNetwork]
) -> list[Standing]:
    prospects = {standing.network: standing.prospect for standing in before}
    return [
        Standing(prospects[task.start], network.network, network.drop)
        for task, network in zip(tasks, trained, strict=True)
        if network.network and network.drop is not None and network.distilled and task.start in prospects
    ]


def _narrower(course: Course, standings: Sequence[Standing]) -> list[Standing]:
    """Return the best network once more with fewer channels: step by step smaller while it stands well."""
    for standing in standings:
        model = course.store.network(standing.network)
        try:
            step = Prune(
                ratio=_FURTHER,
                heads=_FURTHER,
                criterion="taylor" if course.lessons.labels is not None else "magnitude",
            )
            narrow = prune(model, step, few_batches(course.lessons))
            if parameters(narrow) >= 0.97 * parameters(model):
                continue
            path = course.run.folder.candidate(eight_bit(course.run, narrow))[1]
            ratio = measured_ratios(course.run, [path])[0]
        except CandidateError as error:
            course.notes.append(f"{standing.prospect.title} is not pruned further: {error.message}")
            continue
        if ratio is None or ratio >= 0.97 * standing.prospect.latency_ratio:
            continue
        title = f"{standing.prospect.title}, pruned by {_FURTHER:.0%}"
        digest = course.store.put(narrow)
        prospect = Prospect(
            title, standing.prospect.family, digest, "pruned", ratio, capacity(narrow), parameters(narrow)
        )
        return [Standing(prospect, digest, standing.drop)]
    return []
