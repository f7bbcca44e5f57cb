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

from edgewright.compress.certify.ranking import SIZE_WEIGHT, budget_violation
from edgewright.compress.model.graph import Graph
from edgewright.compress.quantize.sensitivity import allocate_bits
from edgewright.compress.quantize.static_int8 import StaticInt8
from edgewright.compress.search.layer_analysis import analyse_layers
from edgewright.compress.search.recipe import CleanGraph, RecipeStep, UseTrainedNetwork
from edgewright.compress.search.space import AS_TRAINED_FORMAT, SearchSpace
from edgewright.compress.train.policy import TrainedCandidate, next_noise_level, rows_per_network
from edgewright.compress.train.qat.initial_graph import make_qat_graph
from edgewright.compress.train.training_session import PlannedJob, TrainingSession, untrained_record
from edgewright.contract.compression_report import SearchTrial
from edgewright.contract.device_class import Budget
from edgewright.contract.errors import CandidateError
from edgewright.contract.training_report import AblationResult, TrainedNetwork

__all__ = ["QatFinalist", "prepare_finalists", "train_quantized"]

_CANDIDATES_PER_NETWORK = 5
# Of what is left for integers, each go takes so much.
_SHARE = 0.5
# What breaks the limit by more than this share of it is not tried again, nor what had nearly as much time.
_HOPELESS_FACTOR, _MUCH_MORE_FACTOR = 2.0, 1.5
_MIN_SECONDS = 4.0


class QatFinalist(msgspec.Struct, frozen=True):
    """A trained network with the recipes that start from it.

    Attributes:
        candidate: Where it stands.
        search_space: Its recipes.
        best: Its best trial without training integers, None if none worked.
    """

    candidate: TrainedCandidate
    search_space: SearchSpace
    best: SearchTrial | None


def prepare_finalists(
    session: TrainingSession, candidates: Sequence[TrainedCandidate], until: float
) -> list[QatFinalist]:
    """Try the forms of each network that need no training; the fastest that keeps the drop comes first."""
    found: list[QatFinalist] = []
    for place, standing in enumerate(candidates):
        seconds = (until - time.monotonic()) / (len(candidates) - place)
        if seconds < 1 and found:
            break
        step = UseTrainedNetwork(standing.network, standing.estimate.title)
        session.report_progress(f"forms of {step.title}")
        first: tuple[RecipeStep, ...] = (step, CleanGraph(), *session.run.search_space.fold)
        try:
            space, _ = analyse_layers(
                session.run.builder,
                first,
                session.run.machine,
                seconds=0.3 * seconds,
                cache_path=session.run.folder.analysis_cache,
            )
        except CandidateError as error:
            session.notes.append(f"{step.title} cannot be compressed further: {error.message}")
            continue
        trials = [
            t
            for t in session.search.search_network(space, seconds, _CANDIDATES_PER_NETWORK)
            if t.state == "complete"
        ]
        best = min(trials, key=lambda trial: _order(session, trial), default=None)
        found.append(QatFinalist(standing, space, best))

    def rank(finalist: QatFinalist) -> tuple[float, float]:
        return (float("inf"), 9.0) if finalist.best is None else _order(session, finalist.best)

    return sorted(found, key=rank)


def train_quantized(session: TrainingSession, finalist: QatFinalist, until: float) -> list[AblationResult]:
    """Train a finalist's integers at ever tighter weights, and return what that gave against rounding alone.

    Args:
        session: What the rounds share.
        finalist: Whose integers.
        until: When this part must be over, of `time.monotonic()`.
    """
    if session.run.search_space.fold:
        session.notes.append("integers are not trained where preprocessing is folded into the graph")
        return []
    kept: list[int] = []
    failed: dict[int, _FailedAttempt] = {}
    keeps_now = _meets_drop_limit(session, finalist.best)
    gains: list[AblationResult] = []
    number = 0
    while (left := until - time.monotonic()) > _MIN_SECONDS:
        number += 1
        steps = next_noise_level(kept, list(failed), session.workers, keeps_now=keeps_now)
        starts = [(db, start) for db in steps if (start := _start(session, finalist, db)) is not None]
        last = left < 3 * _MIN_SECONDS
        if not starts:  # what came closest gets all the time, if that is much more than it had
            starts = _closest_failures(failed, min(kept, default=math.inf), left)[: session.workers]
            last = True
        if not starts:
            break
        deadline = time.monotonic() + (left if last else _SHARE * left)
        tasks = session.planned_jobs(
            f"integers-{finalist.candidate.network[:16]}-{number}",
            partial(_tasks, session, finalist, starts, number, deadline),
        )
        trained = session.train_jobs(f"integers {number}", tasks, deadline)
        for (db, start), network in zip(starts, trained, strict=False):
            failed.pop(db, None)
            trial = _tried(session, finalist, network)
            if trial is not None and _meets_drop_limit(session, trial):
                kept.append(db)
            else:
                failed[db] = _FailedAttempt(
                    math.inf if trial is None else _excess(session, trial),
                    start,
                    max(network.training_seconds, _MIN_SECONDS),
                )
            if trial is not None:
                gains += _ablate_qat(session, finalist, db, trial)
    return gains


class _FailedAttempt(NamedTuple):
    """Integers that broke the limit: by what share of it, where they started, and the seconds that they had."""

    excess: float
    start: str
    seconds: float


def _closest_failures(failed: Mapping[int, _FailedAttempt], least: float, left: float) -> list[tuple[int, str]]:
    """Return tightness and start of those that came closest to the limit, with fewer bits than what keeps it."""
    near = [(one.excess, db) for db, one in failed.items() if db < least and left > _MUCH_MORE_FACTOR * one.seconds]
    return [(db, failed[db].start) for excess, db in sorted(near) if excess < _HOPELESS_FACTOR]


def _excess(session: TrainingSession, trial: SearchTrial) -> float:
    """Return by how much a trial breaks the limit on the drop, as a share of it; other limits do not count here."""
    return budget_violation(trial, Budget(max_drop=session.max_drop))


def _meets_drop_limit(session: TrainingSession, trial: SearchTrial | None) -> bool:
    return trial is not None and _excess(session, trial) <= 0


def _order(session: TrainingSession, trial: SearchTrial) -> tuple[float, float]:
    """Return what trials are sorted by: those that keep the drop first, the cheapest of them first."""
    return max(_excess(session, trial), 0.0), (trial.latency_ratio or 9.0) * trial.size_bytes**SIZE_WEIGHT


def _start(session: TrainingSession, finalist: QatFinalist, db: int) -> str | None:
    """Return the digest of the integer graph to start from; None if there is nothing to train in it."""
    run, space = session.run, finalist.search_space
    first: tuple[RecipeStep, ...] = (*space.trained_network, CleanGraph())
    peaks = allocate_bits(Graph(space.clean), space.weight_noise, float(db))
    step = StaticInt8(
        activations="int8" if space.signed_first else "uint8",
        max_integer=space.max_int8_weight,
        max_integer_by_layer={layer: peak for layer, peak in peaks.items() if peak < space.max_int8_weight},
    )
    try:
        return session.store.store_network(
            make_qat_graph(run.builder.model_after(first), step, run.builder.statistics_after(first))
        )
    except CandidateError as error:
        session.notes.append(
            f"the integers of {finalist.candidate.estimate.title} are not trained: {error.message}"
        )
        return None


def _tasks(
    session: TrainingSession, finalist: QatFinalist, starts: Sequence[tuple[int, str]], number: int, deadline: float
) -> list[PlannedJob]:
    network, prospect = finalist.candidate.network, finalist.candidate.estimate
    pace = session.seconds_per_row(starts[0][1])
    rows = rows_per_network(session.core_seconds(deadline), [pace] * max(len(starts), session.workers))
    return [
        PlannedJob(
            untrained_record(
                prospect, "integers", network, number, f"{prospect.title}, trained integers of {db} dB"
            ),
            start,
            session.training_config(rows, "integers"),
            keep_zeros=finalist.candidate.is_sparse,
        )
        for db, start in starts
    ]


def _tried(session: TrainingSession, finalist: QatFinalist, network: TrainedNetwork) -> SearchTrial | None:
    if not network.network_sha256:
        return None
    space = SearchSpace(
        clean=session.store.load_network(network.network_sha256),
        quantization_formats=(AS_TRAINED_FORMAT,),
        can_equalize=False,
        float_layer_sets={},
        weight_noise={},
        trained_network=(UseTrainedNetwork(network.network_sha256, network.title),),
        architecture_key=_kernels(finalist.search_space),
    )
    trials = session.search.search_network(space, _MIN_SECONDS)
    return trials[-1] if trials and trials[-1].state == "complete" else None


def _kernels(space: SearchSpace) -> str:
    """Return the speed key of trained integers: that of the same form without training."""
    return next(
        (space.latency_key(params) for params in space.initial_candidates() if params["form"] == "static"),
        f"{space.architecture_key}: integers",
    )


def _ablate_qat(
    session: TrainingSession, finalist: QatFinalist, db: int, trial: SearchTrial
) -> list[AblationResult]:
    """Compare trained integers with the same rounding without training."""
    params = next((p for p in finalist.search_space.initial_candidates() if p["form"] == "static"), None)
    if params is None or trial.metric is None:
        return []
    rounded = session.search.try_recipe(finalist.search_space, {**params, "weights": str(db)})
    if rounded is None or rounded.metric is None:
        return []
    return [
        AblationResult(
            step="training of integers",
            compared_on=f"{finalist.candidate.estimate.title}, weights of {db} dB",
            measured_on="select split",
            metric_without=rounded.metric,
            metric_with=trial.metric,
            size_ratio=trial.size_bytes / rounded.size_bytes,
        )
    ]
