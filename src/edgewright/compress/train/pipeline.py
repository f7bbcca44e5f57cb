"""Training in the search: from the training data to networks whose forms are tried like those of the original.

The latency that a network would have is known before it is trained, so only what is fast enough is trained at all;
then in rounds, the promising ones for longer; then their integers. At every moment what was found so far is among
the search's trials, and nothing is lost if the run is killed.
"""

import time
from collections.abc import Sequence

import numpy as np

from edgewright.compress.certify.ranking import budget_violation
from edgewright.compress.context import CompressionRun
from edgewright.compress.search.search import Search
from edgewright.compress.train.ablation import find_ablations
from edgewright.compress.train.artifact_store import TrainingStore
from edgewright.compress.train.config import Distillation
from edgewright.compress.train.data.teacher_outputs import TeacherOutputs
from edgewright.compress.train.data.training_data import TrainingData
from edgewright.compress.train.distill.augmentation_selection import select_augmentations
from edgewright.compress.train.distill.teacher import Teacher, compute_teacher_outputs
from edgewright.compress.train.engine.engine import open_engine
from edgewright.compress.train.loop.output_kind import output_activation
from edgewright.compress.train.nas.candidates import estimate_candidates, list_candidates
from edgewright.compress.train.nas.graph_builder import GraphActivation, TargetStatistics
from edgewright.compress.train.nas.latency_model import NetworkFeatures
from edgewright.compress.train.policy import CandidateEstimate
from edgewright.compress.train.qat_rounds import prepare_finalists, train_quantized
from edgewright.compress.train.sparse_rounds import train_sparse
from edgewright.compress.train.successive_halving import FINAL_SHARE, successive_halving
from edgewright.compress.train.threads import use_one_thread
from edgewright.compress.train.training_inputs import TrainingInputs
from edgewright.compress.train.training_session import TrainingSession
from edgewright.contract.device_class import Budget
from edgewright.contract.training_report import AblationResult, TrainingReport

__all__ = ["run_training"]

# Shares of the time for training: the teacher's answers and the survey; and of what they leave, the rounds, the
# one more for what is nearly good enough, zeros where they are asked for, the forms of the finalists, and the rest
# for integers.
_TEACHER_TIME_SHARE, _ESTIMATE_TIME_SHARE = 0.07, 0.08
_HALVING_TIME_SHARE, _OVERTIME_SHARE, _FORMATS_TIME_SHARE = 0.52, 0.15, 0.07
_SPARSITY_TIME_SHARE = 0.12
_SHORTLIST_SIZE = 20
# Augmented copies that the teacher answers, as far as time allows.
_MAX_VIEWS = 64


def run_training(inputs: TrainingInputs, run: CompressionRun, search: Search, *, seconds: float) -> TrainingReport:
    """Train networks, and try their forms in the search.

    Args:
        inputs: What `gather` read.
        run: Of `compress`, its original searched already.
        search: Takes the trials.
        seconds: For all of it.

    Raises:
        InputError: The engine is missing.
        WorkError: The target or the disk failed.
    """
    began = time.monotonic()
    request = run.request
    wanted = request.training
    assert wanted is not None  # noqa: S101 - the caller asks only if there is something to train with
    store = TrainingStore(run.folder.path)
    lessons, teacher = inputs.data, inputs.teacher
    notes = list(lessons.notes)
    with open_engine(wanted.engine, wanted.workers, store.work) as engine, use_one_thread():
        admission = select_augmentations(lessons, teacher, seed=request.seed)
        notes += admission.notes
        answers = _answers(run, teacher, lessons, admission.names, seconds=_TEACHER_TIME_SHARE * seconds)
        course = TrainingSession(
            run=run,
            search=search,
            data=lessons,
            teacher_outputs=answers,
            engine=engine,
            workers=wanted.workers,
            store=store,
            augmentations=admission.names,
            distillation=Distillation(
                wanted.temperature,
                feature_weight=wanted.feature_loss_weight,
                relation_weight=wanted.relation_loss_weight,
            ),
            recipe=wanted.recipe,
            ends_at=began + seconds,
            notes=notes + list(answers.notes),
        )
        contributions = _compute_teacher_outputs(course, seconds)
    return TrainingReport(
        engine=wanted.engine,
        workers=wanted.workers,
        total_seconds=time.monotonic() - began,
        training_rows=len(lessons.train),
        validation_rows=len(lessons.validation),
        augmentations=admission.names,
        notes=tuple(course.notes),
        networks=tuple(course.networks),
        ablations=(*find_ablations(course.networks, float(run.select_evaluator.scores.mean())), *contributions),
    )


def _compute_teacher_outputs(session: TrainingSession, seconds: float) -> list[AblationResult]:
    prospects = _prospects(session, seconds)
    left = session.seconds_left()
    wanted = session.run.request.training
    sparsity = None if wanted is None else wanted.sparsity
    rounds = (
        session.ends_at - (1 - _HALVING_TIME_SHARE + (0.0 if sparsity is None else _SPARSITY_TIME_SHARE)) * left
    )
    slowest = _max_latency_ratio(session.run, session.search)
    standings = successive_halving(session, prospects, rounds, rounds + _OVERTIME_SHARE * left, slowest)
    if sparsity is not None:
        sparse = train_sparse(session, standings, sparsity, time.monotonic() + _SPARSITY_TIME_SHARE * left)
        standings = [*sparse, *standings][: max(len(sparse), 1)]
    finalists = prepare_finalists(session, standings, time.monotonic() + _FORMATS_TIME_SHARE * left)
    # The first gets the time that it can use; what it leaves is for the others.
    return [gain for finalist in finalists for gain in train_quantized(session, finalist, session.ends_at)]


def _prospects(session: TrainingSession, seconds: float) -> list[CandidateEstimate]:
    """Return the shortlist; a resumed run goes on with the one it had, however its measurements would differ."""
    known = session.store.load_record(
        "shortlist", tuple[list[CandidateEstimate], list[str], list[tuple[NetworkFeatures, float]]]
    )
    if known is not None:
        session.notes += known[1]
        session.measured_latencies += known[2]
        return known[0]
    run = session.run
    session.report_progress("looking for networks that are fast enough")
    notes: list[str] = []
    targets = _targets(session.data)
    found = list_candidates(
        run, session.data, _network_activation(run), notes, seed=run.request.seed, targets=targets
    )
    prospects: list[CandidateEstimate] = []
    if found:
        prospects = estimate_candidates(
            run,
            session.store,
            session.data,
            found,
            count=_SHORTLIST_SIZE,
            max_latency_ratio=_max_latency_ratio(run, session.search),
            core_seconds=FINAL_SHARE * _HALVING_TIME_SHARE * session.workers * session.seconds_left(),
            deadline=time.monotonic() + _ESTIMATE_TIME_SHARE * seconds,
            seen=session.measured_latencies,
        )
    if not prospects:
        notes.append("there is nothing to train")
    session.store.save_record("shortlist", (prospects, notes, session.measured_latencies))
    session.notes += notes
    return prospects


def _answers(
    run: CompressionRun, teacher: Teacher, data: TrainingData, names: Sequence[str], *, seconds: float
) -> TeacherOutputs:
    """Have the teachers answer; they are asked again for as many views if the run is resumed."""
    request = run.request
    wanted = request.training
    assert wanted is not None  # noqa: S101 - see explore
    store = TrainingStore(run.folder.path)
    known = store.load_record("views", int)

    def tell(share: float) -> None:
        request.report_progress(
            f"asking the teacher, {share:.0%}", 1 - run.seconds_left() / request.time_limit_seconds
        )

    answers = compute_teacher_outputs(
        teacher,
        data,
        names,
        seed=request.seed,
        view_count=known or _MAX_VIEWS,
        features=wanted.feature_loss_weight > 0 or wanted.relation_loss_weight > 0,
        seconds=None if known else seconds,
        report_progress=tell,
    )
    store.save_record("views", answers.view_count)
    return answers


def _network_activation(run: CompressionRun) -> GraphActivation:
    ending = output_activation(run.loaded.proto)
    return "logits" if ending == "scores" else ending


def _targets(data: TrainingData) -> TargetStatistics | None:
    """Return where the values to be learned lie, for regression and reconstruction."""
    if data.task == "regression" and data.labels is not None:
        values = data.labels[data.train].reshape(len(data.train), -1).astype(np.float64)
    elif data.task == "reconstruction":
        values = data.inputs[0][data.train].reshape(len(data.train), -1).astype(np.float64)
    else:
        return None
    return TargetStatistics(values.mean(axis=0), values.std(axis=0))


def _max_latency_ratio(run: CompressionRun, search: Search) -> float:
    """Return the latency ratio of the fastest candidate that needs no training and keeps the drop.

    Where the budget limits the latency to less, what keeps that.
    """
    drop_only = Budget(max_drop=run.max_drop)
    kept = [
        t.latency_ratio or 9.0
        for t in search.trials
        if t.state == "complete" and budget_violation(t, drop_only) <= 0
    ]
    limits = [
        limit for limit in (run.budget.latency_p50_seconds, run.budget.latency_p95_seconds) if limit is not None
    ]
    originals = [latency.p50.value for latency in search.runner.original_latencies]
    if limits and originals:
        kept.append(min(limits) / float(np.median(originals)))
    return min([1.0, *kept])
