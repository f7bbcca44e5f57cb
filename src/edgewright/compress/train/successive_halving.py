"""The rounds of training in full precision: many networks for a short time, the promising ones for longer."""

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import onnx

from edgewright.compress.train.nas.candidates import few_batches, measure_latency_ratios, simd_width, to_int8
from edgewright.compress.train.nas.downsample import halve_resolution
from edgewright.compress.train.nas.families import multiply_accumulate_count, parameter_count
from edgewright.compress.train.policy import (
    CHEAPER_FACTOR,
    CandidateEstimate,
    TrainedCandidate,
    cheapest_candidate,
    meets_drop_limit,
    near_misses,
    parent_for_pruning,
    rows_per_network,
    select_baseline,
    select_finalists,
    select_shortlist,
    select_survivors,
    trained_candidate,
)
from edgewright.compress.train.prune.importance import LabelledBatch, PruningCriterion
from edgewright.compress.train.prune.pruner import StructuredPruning, prunable_widths, prune_network
from edgewright.compress.train.prune.ratio_allocation import prune_to_latency
from edgewright.compress.train.training_session import PlannedJob, TrainingSession, untrained_record
from edgewright.contract.errors import CandidateError
from edgewright.contract.training_report import NetworkOrigin, TrainedNetwork

__all__ = ["FINAL_SHARE", "successive_halving"]

# Share of the time for full precision that each round gets, and how many networks it trains.
_ROUNDS = ((0.24, 20), (0.22, 8), (0.24, 4), (0.3, 2))
# Of the cores' time in all rounds, what one network of the last one gets.
FINAL_SHARE = _ROUNDS[-1][0] / _ROUNDS[-1][1]
# The first round shows all rows so often at least, or so many, to no fewer networks than these.
_MIN_PASS, _MIN_ROWS, _MIN_PLACES = 2.0, 60_000, 4
# Share of the rows for what begins with the original's weights.
_WARM_ROW_SHARE = 0.5
# Of a network that stands well, so many channels go before it is trained on.
_PRUNING_RATIOS = (0.25, 0.5)
# Each layer is pruned so often alone to see what it costs; all of it may take this share of the time that is left.
_PROBES, _PROBE_TIME_SHARE = 6, 0.02


def successive_halving(
    session: TrainingSession,
    estimates: Sequence[CandidateEstimate],
    until: float,
    overtime_seconds: float,
    max_latency_ratio: float = 1.0,
) -> list[TrainedCandidate]:
    """Train the shortlist in rounds, and return how those of the last one stand, most promising first.

    Args:
        session: What the rounds share.
        estimates: The shortlist.
        until: When the rounds must be over, of `time.monotonic()`.
        overtime_seconds: When one more round must be over, for what is much cheaper and nearly good enough.
        max_latency_ratio: Latency ratio of what needs no training.
    """
    began = time.monotonic()
    whole = until - began
    standings = [TrainedCandidate(prospect, prospect.initial_sha256, np.inf) for prospect in estimates]
    kept: list[TrainedCandidate] = []
    known: dict[str, TrainedCandidate] = {}

    def banked(reached: Sequence[TrainedCandidate]) -> list[TrainedCandidate]:
        known.update({standing.estimate.initial_sha256: standing for standing in reached})
        return [standing for standing in known.values() if meets_drop_limit(standing, session.max_drop)]

    spent = 0.0
    for number, (share, count) in enumerate(_ROUNDS):
        if number > 0:
            sure = select_baseline(list(known.values()), max_latency_ratio, max_drop=session.max_drop)
            standings = _select_round(session, kept, standings, max(count, session.workers), number, sure)
        if not standings or time.monotonic() >= until:
            break
        spent += share
        deadline = min(until, began + spent * whole)
        tasks = _planned(session, standings, number, deadline)
        reached = _candidates(standings, tasks, session.train_jobs(f"round {number + 1}", tasks, deadline))
        kept = banked(reached)
        standings = reached or standings
    near = near_misses(kept, standings, max_drop=session.max_drop)[: session.workers]
    # A worker that is free makes the cheapest that keeps the drop better still: its integers begin there.
    best = cheapest_candidate(kept)
    if best is not None and 0 < len(near) < session.workers:
        near.append(best)
    if near and time.monotonic() < overtime_seconds:
        tasks = _planned(session, near, len(_ROUNDS), overtime_seconds)
        reached = _candidates(near, tasks, session.train_jobs("overtime", tasks, overtime_seconds))
        kept = banked(reached)
        again = {standing.estimate.initial_sha256 for standing in reached}
        standings = [
            *reached,
            *(standing for standing in standings if standing.estimate.initial_sha256 not in again),
        ]
    return select_finalists(kept, standings, max_drop=session.max_drop, round_number=len(_ROUNDS))


def _select_round(
    session: TrainingSession,
    kept: Sequence[TrainedCandidate],
    candidates: Sequence[TrainedCandidate],
    count: int,
    number: int,
    sure: TrainedCandidate | None,
) -> list[TrainedCandidate]:
    """Return who is trained in a round: only what costs less than the cheapest that keeps the drop already.

    With them come smaller versions of that one; as long as none keeps it, of one that nearly does. And one that is
    to become sure.
    """
    limit = CHEAPER_FACTOR * min((standing.estimate.cost for standing in kept), default=math.inf)
    rest = [s for s in candidates if s.estimate.cost < limit and s is not sure]
    count -= sure is not None
    choose = partial(select_survivors, rest, max_drop=session.max_drop, round_number=number - 1)
    # The last round's children would not have the time to become as good as their parent.
    able = choose(len(rest)) if number < len(_ROUNDS) - 1 else ()
    base = parent_for_pruning(kept, able, max_drop=session.max_drop, round_number=number - 1)
    children = (
        [] if base is None else _smaller_versions(session, base, min(limit, CHEAPER_FACTOR * base.estimate.cost))
    )
    if kept:  # what is banked can be risked
        children.sort(key=lambda child: child.estimate.cost)
    children = children[: max(1, count // 2)]
    chosen = [*choose(count - len(children)), *children]
    return chosen if sure is None else [sure, *chosen]


def _planned(
    session: TrainingSession, candidates: Sequence[TrainedCandidate], number: int, deadline: float
) -> list[PlannedJob]:
    return session.planned_jobs(f"round-{number + 1}", partial(_tasks, session, candidates, number, deadline))


def _tasks(
    session: TrainingSession, candidates: Sequence[TrainedCandidate], number: int, deadline: float
) -> list[PlannedJob]:
    able: list[tuple[TrainedCandidate, float]] = []
    for standing in candidates:
        try:
            able.append((standing, session.seconds_per_row(standing.network)))
        except (CandidateError, RuntimeError) as error:
            session.notes.append(f"{standing.estimate.title} cannot be trained: {error}")
    core_seconds = session.core_seconds(deadline)
    if number == 0:
        able = _affordable(able, core_seconds, len(session.data.train))
        core_seconds *= len(able) / (len(able) + 1)  # one of them is trained without a teacher as well
    paces = [pace for _, pace in able]
    if number >= len(_ROUNDS) - 1:  # nobody is compared by the last round, so no worker need wait for another
        rows = [int(core_seconds / max(len(able), session.workers) / pace) for pace in paces]
    else:
        each = rows_per_network(core_seconds, [pace * _share_of(standing) for standing, pace in able])
        rows = [int(each * _share_of(standing)) for standing, _ in able]
    tasks = [_task(session, standing, count, number) for (standing, _), count in zip(able, rows, strict=True)]
    # The shortest first: if time runs out after all, it is for the slowest.
    order = sorted(range(len(tasks)), key=lambda i: paces[i] * rows[i])
    if number == 0 and tasks:
        tasks += _without_teacher(tasks, paces)
        order.append(len(tasks) - 1)
    return [tasks[i] for i in order]


def _share_of(candidate: TrainedCandidate) -> float:
    """Return the share of rows that a network is shown: one that begins with the original's weights needs less."""
    return _WARM_ROW_SHARE if candidate.estimate.origin == "pruned" else 1.0


def _affordable(
    able: list[tuple[TrainedCandidate, float]], core_seconds: float, available: int
) -> list[tuple[TrainedCandidate, float]]:
    """Return fewer networks where the first round would be too short to tell them apart."""
    paces = {standing.estimate.initial_sha256: pace for standing, pace in able}
    kept = [standing.estimate for standing, _ in able]
    while len(kept) > _MIN_PLACES:
        rows = rows_per_network(core_seconds, [paces[prospect.initial_sha256] for prospect in kept])
        if rows >= min(_MIN_PASS * available, _MIN_ROWS):
            break
        kept = select_shortlist(kept, len(kept) - 1, math.inf)
    return [entry for entry in able if entry[0].estimate in kept]


def _task(session: TrainingSession, candidate: TrainedCandidate, rows: int, number: int) -> PlannedJob:
    prospect = candidate.estimate
    origin: NetworkOrigin = (
        prospect.origin if number == 0 or candidate.network == prospect.initial_sha256 else "continued"
    )
    network = untrained_record(prospect, origin, candidate.network, number + 1)
    return PlannedJob(network, candidate.network, session.training_config(rows, "fresh"))


def _without_teacher(tasks: Sequence[PlannedJob], paces: Sequence[float]) -> list[PlannedJob]:
    """Return the quickest task once more without a teacher, to tell what distillation gives."""
    quickest = min(range(len(tasks)), key=lambda i: paces[i])
    task = tasks[quickest]
    alone = msgspec.structs.replace(task.settings, distillation=None)
    return [msgspec.structs.replace(task, settings=alone)]


def _candidates(
    before: Sequence[TrainedCandidate], tasks: Sequence[PlannedJob], trained: Sequence[TrainedNetwork]
) -> list[TrainedCandidate]:
    started = {standing.network: standing for standing in before}
    found: list[TrainedCandidate | None] = []
    for task, network in zip(tasks, trained, strict=True):
        if not network.distilled:
            continue
        known = started.get(task.initial_sha256)
        if known is None:
            found.append(trained_candidate(_estimate_of(task), network))
        else:
            found.append(trained_candidate(known.estimate, network, before=known.drop))
    return [standing for standing in found if standing is not None]


def _estimate_of(task: PlannedJob) -> CandidateEstimate:
    """Return what an earlier run planned and this one, by other measurements, would not have."""
    known = task.network
    return CandidateEstimate(
        known.title, "", task.initial_sha256, known.origin, known.latency_ratio or math.inf, known.parameters
    )


def _by_layer(
    session: TrainingSession,
    model: onnx.ModelProto,
    batches: Sequence[LabelledBatch],
    title: str,
    narrow: onnx.ModelProto,
    seconds: float,
) -> tuple[str, onnx.ModelProto]:
    """Return the model pruned to the same speed with less of the layers that matter, if there is time to find them.

    Args:
        session: What the rounds share.
        model: Trained.
        batches: Labelled.
        title: Of the model pruned evenly.
        narrow: That one.
        seconds: What one pruning takes.
    """
    latency = session.latency_model()
    if (
        latency is None
        or _PROBES * len(prunable_widths(model)) * seconds > _PROBE_TIME_SHARE * session.seconds_left()
    ):
        return title, narrow
    share = latency(narrow) / latency(model)
    try:
        made = prune_to_latency(
            model,
            batches,
            latency,
            share,
            step=StructuredPruning(criterion="taylor", round_to=simd_width(session.run)),
        )
    except CandidateError:
        return title, narrow
    return f"pruned layer by layer to {share:.0%} of the latency", made


def _smaller_versions(
    session: TrainingSession, candidate: TrainedCandidate, limit: float
) -> list[TrainedCandidate]:
    """Return a trained network with fewer channels, and at half its resolution, as far as that makes it cheaper.

    So the model gets smaller step by step, each step trained before the next.
    """
    model = session.store.load_network(candidate.network)
    batches = few_batches(session.data)
    criterion: PruningCriterion = "taylor" if batches else "magnitude"
    width = simd_width(session.run)
    ways: dict[str, Callable[[], onnx.ModelProto]] = {
        f"pruned by {ratio:.0%}": partial(
            prune_network,
            model,
            StructuredPruning(ratio=ratio, head_ratio=ratio, criterion=criterion, round_to=width),
            batches,
        )
        for ratio in _PRUNING_RATIOS
    }
    ways["half resolution"] = partial(halve_resolution, model, session.run.dataset.inputs_of(0))
    found: dict[str, onnx.ModelProto] = {}
    paths: list[Path] = []
    for title, make in ways.items():
        began = time.monotonic()
        try:
            made = make()
            if title == f"pruned by {_PRUNING_RATIOS[-1]:.0%}" and batches:
                title, made = _by_layer(session, model, batches, title, made, time.monotonic() - began)
            paths.append(session.run.folder.store_candidate(to_int8(session.run, made))[1])
            found[title] = made
        except CandidateError:  # not every way is open to every network
            continue
    children: list[TrainedCandidate] = []
    for (title, made), ratio in zip(
        found.items(), measure_latency_ratios(session.run, paths) if paths else [], strict=True
    ):
        if ratio is None:
            continue
        prospect = CandidateEstimate(
            f"{candidate.estimate.title}, {title}",
            candidate.estimate.family,
            session.store.store_network(made),
            "pruned",
            ratio,
            parameter_count(made),
            multiply_accumulate_count(made),
        )
        if prospect.cost < limit:
            children.append(TrainedCandidate(prospect, prospect.initial_sha256, np.inf))
    return children
