"""Training in the search: from the training data to networks whose forms are tried like those of the original.

The latency that a network would have is known before it is trained, so only what is fast enough is trained at all;
then in rounds, the promising ones for longer; then their integers. At every moment what was found so far is among
the search's trials, and nothing is lost if the run is killed.
"""

import time
from collections.abc import Sequence

import numpy as np

from edgewright.compress.certify.ranking import closeness
from edgewright.compress.context import Run
from edgewright.compress.search.search import Search
from edgewright.compress.train.ablation import contributions_of
from edgewright.compress.train.artifact_store import TrainingStore
from edgewright.compress.train.config import Distillation
from edgewright.compress.train.data.teacher_outputs import Answers
from edgewright.compress.train.data.training_data import Lessons
from edgewright.compress.train.distill.augmentation_selection import admissible
from edgewright.compress.train.distill.teacher import Teacher, ask
from edgewright.compress.train.engine.engine import open_engine
from edgewright.compress.train.loop.output_kind import ending_of
from edgewright.compress.train.nas.candidates import ideas, survey
from edgewright.compress.train.nas.graph_builder import Ending, Targets
from edgewright.compress.train.nas.latency_model import Features
from edgewright.compress.train.policy import Prospect
from edgewright.compress.train.qat_rounds import finalists_of, train_integers
from edgewright.compress.train.sparse_rounds import train_sparse
from edgewright.compress.train.successive_halving import FINAL_SHARE, train_in_rounds
from edgewright.compress.train.threads import one_thread
from edgewright.compress.train.training_inputs import Material
from edgewright.compress.train.training_session import Course
from edgewright.contract.device_class import Budget
from edgewright.contract.training_report import Contribution, TrainingReport

__all__ = ["explore"]

# Shares of the time for training: the teacher's answers and the survey; and of what they leave, the rounds, the
# one more for what is nearly good enough, zeros where they are asked for, the forms of the finalists, and the rest
# for integers.
_TAUGHT, _SURVEYED = 0.07, 0.08
_ROUNDS, _OVERTIME, _FORMS = 0.52, 0.15, 0.07
_ZEROS = 0.12
_PLACES = 20
# Augmented copies that the teacher answers, as far as time allows.
_VIEWS = 64


def explore(material: Material, run: Run, search: Search, *, seconds: float) -> TrainingReport:
    """Train networks, and try their forms in the search.

    Args:
        material: What `gather` read.
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
    lessons, teacher = material.lessons, material.teacher
    notes = list(lessons.notes)
    with open_engine(wanted.engine, wanted.workers, store.work) as engine, one_thread():
        admission = admissible(lessons, teacher, seed=request.seed)
        notes += admission.notes
        answers = _answers(run, teacher, lessons, admission.names, seconds=_TAUGHT * seconds)
        course = Course(
            run=run,
            search=search,
            lessons=lessons,
            answers=answers,
            engine=engine,
            workers=wanted.workers,
            store=store,
            augment=admission.names,
            distillation=Distillation(wanted.temperature, features=wanted.features, relations=wanted.relations),
            recipe=wanted.recipe,
            ends=began + seconds,
            notes=notes + list(answers.notes),
        )
        contributions = _taught(course, seconds)
    return TrainingReport(
        engine=wanted.engine,
        workers=wanted.workers,
        seconds=time.monotonic() - began,
        rows=len(lessons.train),
        validation_rows=len(lessons.validation),
        augmentations=admission.names,
        notes=tuple(course.notes),
        networks=tuple(course.networks),
        contributions=(*contributions_of(course.networks, float(run.select.scores.mean())), *contributions),
    )


def _taught(course: Course, seconds: float) -> list[Contribution]:
    prospects = _prospects(course, seconds)
    left = course.left()
    wanted = course.run.request.training
    sparsity = None if wanted is None else wanted.sparsity
    rounds = course.ends - (1 - _ROUNDS + (0.0 if sparsity is None else _ZEROS)) * left
    slowest = _slowest(course.run, course.search)
    standings = train_in_rounds(course, prospects, rounds, rounds + _OVERTIME * left, slowest)
    if sparsity is not None:
        sparse = train_sparse(course, standings, sparsity, time.monotonic() + _ZEROS * left)
        standings = [*sparse, *standings][: max(len(sparse), 1)]
    finalists = finalists_of(course, standings, time.monotonic() + _FORMS * left)
    # The first gets the time that it can use; what it leaves is for the others.
    return [gain for finalist in finalists for gain in train_integers(course, finalist, course.ends)]


def _prospects(course: Course, seconds: float) -> list[Prospect]:
    """Return the shortlist; a resumed run goes on with the one it had, however its measurements would differ."""
    known = course.store.load("shortlist", tuple[list[Prospect], list[str], list[tuple[Features, float]]])
    if known is not None:
        course.notes += known[1]
        course.seen += known[2]
        return known[0]
    run = course.run
    course.tell("looking for networks that are fast enough")
    notes: list[str] = []
    targets = _targets(course.lessons)
    found = ideas(run, course.lessons, _drafted_ending(run), notes, seed=run.request.seed, targets=targets)
    prospects: list[Prospect] = []
    if found:
        prospects = survey(
            run,
            course.store,
            course.lessons,
            found,
            places=_PLACES,
            slowest=_slowest(run, course.search),
            core_seconds=FINAL_SHARE * _ROUNDS * course.workers * course.left(),
            until=time.monotonic() + _SURVEYED * seconds,
            seen=course.seen,
        )
    if not prospects:
        notes.append("there is nothing to train")
    course.store.save("shortlist", (prospects, notes, course.seen))
    course.notes += notes
    return prospects


def _answers(run: Run, teacher: Teacher, lessons: Lessons, names: Sequence[str], *, seconds: float) -> Answers:
    """Have the teachers answer; they are asked again for as many views if the run is resumed."""
    request = run.request
    wanted = request.training
    assert wanted is not None  # noqa: S101 - see explore
    store = TrainingStore(run.folder.path)
    known = store.load("views", int)

    def tell(share: float) -> None:
        request.tell(f"asking the teacher, {share:.0%}", 1 - run.left() / request.time_limit_s)

    answers = ask(
        teacher,
        lessons,
        names,
        seed=request.seed,
        views=known or _VIEWS,
        features=wanted.features > 0 or wanted.relations > 0,
        seconds=None if known else seconds,
        tell=tell,
    )
    store.save("views", answers.views)
    return answers


def _drafted_ending(run: Run) -> Ending:
    ending = ending_of(run.loaded.proto)
    return "logits" if ending == "scores" else ending


def _targets(lessons: Lessons) -> Targets | None:
    """Return where the values to be learned lie, for regression and reconstruction."""
    if lessons.task == "regression" and lessons.labels is not None:
        values = lessons.labels[lessons.train].reshape(len(lessons.train), -1).astype(np.float64)
    elif lessons.task == "reconstruction":
        values = lessons.inputs[0][lessons.train].reshape(len(lessons.train), -1).astype(np.float64)
    else:
        return None
    return Targets(values.mean(axis=0), values.std(axis=0))


def _slowest(run: Run, search: Search) -> float:
    """Return the latency ratio of the fastest candidate that needs no training and keeps the drop.

    Where the budget limits the latency to less, what keeps that.
    """
    drop_only = Budget(max_drop=run.max_drop)
    kept = [t.latency_ratio or 9.0 for t in search.trials if t.state == "complete" and closeness(t, drop_only) <= 0]
    limits = [limit for limit in (run.budget.latency_p50_s, run.budget.latency_p95_s) if limit is not None]
    originals = [latency.p50.value for latency in search.runner.originals]
    if limits and originals:
        kept.append(min(limits) / float(np.median(originals)))
    return min([1.0, *kept])
