"""The rounds of training in full precision: many networks for a short time, the promising ones for longer."""

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import onnx

from edgewright.compress.train.nas.candidates import eight_bit, few_batches, measured_ratios, simd_width
from edgewright.compress.train.nas.downsample import coarser
from edgewright.compress.train.nas.families import parameters, work
from edgewright.compress.train.policy import (
    CHEAPER,
    Prospect,
    Standing,
    anchor,
    cheapest,
    finalists,
    keeps,
    nearly,
    parent,
    rows_each,
    shortlist,
    standing_of,
    survivors,
)
from edgewright.compress.train.prune.importance import Batch, Criterion
from edgewright.compress.train.prune.pruner import Prune, prunable, prune
from edgewright.compress.train.prune.ratio_allocation import prune_to_latency
from edgewright.compress.train.training_session import Course, Task, untrained
from edgewright.contract.errors import CandidateError
from edgewright.contract.training_report import Origin, TrainedNetwork

__all__ = ["FINAL_SHARE", "train_in_rounds"]

# Share of the time for full precision that each round gets, and how many networks it trains.
_ROUNDS = ((0.24, 20), (0.22, 8), (0.24, 4), (0.3, 2))
# Of the cores' time in all rounds, what one network of the last one gets.
FINAL_SHARE = _ROUNDS[-1][0] / _ROUNDS[-1][1]
# The first round shows all rows so often at least, or so many, to no fewer networks than these.
_LEAST_PASS, _LEAST_ROWS, _LEAST_PLACES = 2.0, 60_000, 4
# Share of the rows for what begins with the original's weights.
_WARM = 0.5
# Of a network that stands well, so many channels go before it is trained on.
_FURTHER = (0.25, 0.5)
# Each layer is pruned so often alone to see what it costs; all of it may take this share of the time that is left.
_PROBES, _PROBING = 6, 0.02


def train_in_rounds(
    course: Course, prospects: Sequence[Prospect], until: float, overtime: float, slowest: float = 1.0
) -> list[Standing]:
    """Train the shortlist in rounds, and return how those of the last one stand, most promising first.

    Args:
        course: What the rounds share.
        prospects: The shortlist.
        until: When the rounds must be over, of `time.monotonic()`.
        overtime: When one more round must be over, for what is much cheaper and nearly good enough.
        slowest: Latency ratio of what needs no training.
    """
    began = time.monotonic()
    whole = until - began
    standings = [Standing(prospect, prospect.start, np.inf) for prospect in prospects]
    kept: list[Standing] = []
    known: dict[str, Standing] = {}

    def banked(reached: Sequence[Standing]) -> list[Standing]:
        known.update({standing.prospect.start: standing for standing in reached})
        return [standing for standing in known.values() if keeps(standing, course.max_drop)]

    spent = 0.0
    for number, (share, count) in enumerate(_ROUNDS):
        if number > 0:
            sure = anchor(list(known.values()), slowest, max_drop=course.max_drop)
            standings = _contestants(course, kept, standings, max(count, course.workers), number, sure)
        if not standings or time.monotonic() >= until:
            break
        spent += share
        deadline = min(until, began + spent * whole)
        tasks = _planned(course, standings, number, deadline)
        reached = _standings(standings, tasks, course.train(f"round {number + 1}", tasks, deadline))
        kept = banked(reached)
        standings = reached or standings
    near = nearly(kept, standings, max_drop=course.max_drop)[: course.workers]
    # A worker that is free makes the cheapest that keeps the drop better still: its integers begin there.
    best = cheapest(kept)
    if best is not None and 0 < len(near) < course.workers:
        near.append(best)
    if near and time.monotonic() < overtime:
        tasks = _planned(course, near, len(_ROUNDS), overtime)
        reached = _standings(near, tasks, course.train("overtime", tasks, overtime))
        kept = banked(reached)
        again = {standing.prospect.start for standing in reached}
        standings = [*reached, *(standing for standing in standings if standing.prospect.start not in again)]
    return finalists(kept, standings, max_drop=course.max_drop, round_number=len(_ROUNDS))


def _contestants(
    course: Course,
    kept: Sequence[Standing],
    standings: Sequence[Standing],
    count: int,
    number: int,
    sure: Standing | None,
) -> list[Standing]:
    """Return who is trained in a round: only what costs less than the cheapest that keeps the drop already.

    With them come smaller versions of that one; as long as none keeps it, of one that nearly does. And one that is
    to become sure.
    """
    limit = CHEAPER * min((standing.prospect.cost for standing in kept), default=math.inf)
    rest = [s for s in standings if s.prospect.cost < limit and s is not sure]
    count -= sure is not None
    choose = partial(survivors, rest, max_drop=course.max_drop, round_number=number - 1)
    # The last round's children would not have the time to become as good as their parent.
    able = choose(len(rest)) if number < len(_ROUNDS) - 1 else ()
    base = parent(kept, able, max_drop=course.max_drop, round_number=number - 1)
    children = [] if base is None else _smaller(course, base, min(limit, CHEAPER * base.prospect.cost))
    if kept:  # what is banked can be risked
        children.sort(key=lambda child: child.prospect.cost)
    children = children[: max(1, count // 2)]
    chosen = [*choose(count - len(children)), *children]
    return chosen if sure is None else [sure, *chosen]


def _planned(course: Course, standings: Sequence[Standing], number: int, deadline: float) -> list[Task]:
    return course.planned(f"round-{number + 1}", partial(_tasks, course, standings, number, deadline))


def _tasks(course: Course, standings: Sequence[Standing], number: int, deadline: float) -> list[Task]:
    able: list[tuple[Standing, float]] = []
    for standing in standings:
        try:
            able.append((standing, course.pace_of(standing.network)))
        except (CandidateError, RuntimeError) as error:
            course.notes.append(f"{standing.prospect.title} cannot be trained: {error}")
    core_seconds = course.core_seconds(deadline)
    if number == 0:
        able = _affordable(able, core_seconds, len(course.lessons.train))
        core_seconds *= len(able) / (len(able) + 1)  # one of them is trained without a teacher as well
    paces = [pace for _, pace in able]
    if number >= len(_ROUNDS) - 1:  # nobody is compared by the last round, so no worker need wait for another
        rows = [int(core_seconds / max(len(able), course.workers) / pace) for pace in paces]
    else:
        each = rows_each(core_seconds, [pace * _share_of(standing) for standing, pace in able])
        rows = [int(each * _share_of(standing)) for standing, _ in able]
    tasks = [_task(course, standing, count, number) for (standing, _), count in zip(able, rows, strict=True)]
    # The shortest first: if time runs out after all, it is for the slowest.
    order = sorted(range(len(tasks)), key=lambda i: paces[i] * rows[i])
    if number == 0 and tasks:
        tasks += _untaught(tasks, paces)
        order.append(len(tasks) - 1)
    return [tasks[i] for i in order]


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
        if rows >= min(_LEAST_PASS * available, _LEAST_ROWS):
            break
        kept = shortlist(kept, len(kept) - 1, math.inf)
    return [entry for entry in able if entry[0].prospect in kept]


def _task(course: Course, standing: Standing, rows: int, number: int) -> Task:
    prospect = standing.prospect
    origin: Origin = prospect.origin if number == 0 or standing.network == prospect.start else "continued"
    network = untrained(prospect, origin, standing.network, number + 1)
    return Task(network, standing.network, course.settings(rows, "fresh"))


def _untaught(tasks: Sequence[Task], paces: Sequence[float]) -> list[Task]:
    """Return the quickest task once more without a teacher, to tell what distillation gives."""
    quickest = min(range(len(tasks)), key=lambda i: paces[i])
    task = tasks[quickest]
    alone = msgspec.structs.replace(task.settings, distillation=None)
    return [msgspec.structs.replace(task, settings=alone)]


def _standings(
    before: Sequence[Standing], tasks: Sequence[Task], trained: Sequence[TrainedNetwork]
) -> list[Standing]:
    started = {standing.network: standing for standing in before}
    found: list[Standing | None] = []
    for task, network in zip(tasks, trained, strict=True):
        if not network.distilled:
            continue
        known = started.get(task.start)
        if known is None:
            found.append(standing_of(_prospect_of(task), network))
        else:
            found.append(standing_of(known.prospect, network, before=known.drop))
    return [standing for standing in found if standing is not None]


def _prospect_of(task: Task) -> Prospect:
    """Return what an earlier run planned and this one, by other measurements, would not have."""
    known = task.network
    return Prospect(known.title, "", task.start, known.origin, known.latency_ratio or math.inf, known.parameters)


def _by_layer(
    course: Course,
    model: onnx.ModelProto,
    batches: Sequence[Batch],
    title: str,
    narrow: onnx.ModelProto,
    seconds: float,
) -> tuple[str, onnx.ModelProto]:
    """Return the model pruned to the same speed with less of the layers that matter, if there is time to find them.

    Args:
        course: What the rounds share.
        model: Trained.
        batches: Labelled.
        title: Of the model pruned evenly.
        narrow: That one.
        seconds: What one pruning takes.
    """
    latency = course.predicted_latency()
    if latency is None or _PROBES * len(prunable(model)) * seconds > _PROBING * course.left():
        return title, narrow
    share = latency(narrow) / latency(model)
    try:
        made = prune_to_latency(
            model, batches, latency, share, step=Prune(criterion="taylor", round_to=simd_width(course.run))
        )
    except CandidateError:
        return title, narrow
    return f"pruned layer by layer to {share:.0%} of the latency", made


def _smaller(course: Course, standing: Standing, limit: float) -> list[Standing]:
    """Return a trained network with fewer channels, and at half its resolution, as far as that makes it cheaper.

    So the model gets smaller step by step, each step trained before the next.
    """
    model = course.store.network(standing.network)
    batches = few_batches(course.lessons)
    criterion: Criterion = "taylor" if batches else "magnitude"
    width = simd_width(course.run)
    ways: dict[str, Callable[[], onnx.ModelProto]] = {
        f"pruned by {ratio:.0%}": partial(
            prune, model, Prune(ratio=ratio, heads=ratio, criterion=criterion, round_to=width), batches
        )
        for ratio in _FURTHER
    }
    ways["half resolution"] = partial(coarser, model, course.run.dataset.feed(0))
    found: dict[str, onnx.ModelProto] = {}
    paths: list[Path] = []
    for title, make in ways.items():
        began = time.monotonic()
        try:
            made = make()
            if title == f"pruned by {_FURTHER[-1]:.0%}" and batches:
                title, made = _by_layer(course, model, batches, title, made, time.monotonic() - began)
            paths.append(course.run.folder.candidate(eight_bit(course.run, made))[1])
            found[title] = made
        except CandidateError:  # not every way is open to every network
            continue
    children: list[Standing] = []
    for (title, made), ratio in zip(
        found.items(), measured_ratios(course.run, paths) if paths else [], strict=True
    ):
        if ratio is None:
            continue
        prospect = Prospect(
            f"{standing.prospect.title}, {title}",
            standing.prospect.family,
            course.store.put(made),
            "pruned",
            ratio,
            parameters(made),
            work(made),
        )
        if prospect.cost < limit:
            children.append(Standing(prospect, prospect.start, np.inf))
    return children
