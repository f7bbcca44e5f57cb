"""What there is to train with, read and checked before anything else is done: lessons, teachers, a recipe."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgewright.compress.context import CompressionRequest
from edgewright.compress.data.loader import Dataset, TaskKind, load_data
from edgewright.compress.model.loading import LoadedModel, read_model
from edgewright.compress.train.custom_recipe import load_recipe
from edgewright.compress.train.data.batches import plain_inputs
from edgewright.compress.train.data.training_data import TrainingData, make_training_data
from edgewright.compress.train.distill.teacher import Teacher
from edgewright.compress.train.engine.engine import check_engine
from edgewright.contract.errors import CandidateError, ModelError

__all__ = ["TrainingInputs", "load_training_inputs"]


@dataclass(frozen=True, slots=True)
class TrainingInputs:
    """What there is to train with.

    Attributes:
        data: Rows.
        teacher: The original, with further teachers if there are any.
    """

    data: TrainingData
    teacher: Teacher


def load_training_inputs(request: CompressionRequest, loaded: LoadedModel, dataset: Dataset) -> TrainingInputs:
    """Read what a request gives for training.

    Args:
        request: With training.
        loaded: The original.
        dataset: What is certified; nothing of it becomes a lesson.

    Raises:
        InputError: The training data, a teacher, the engine or the user's own training cannot be used.
    """
    wanted = request.training
    assert wanted is not None  # noqa: S101 - the caller asks only if there is something to train with
    check_engine(wanted.engine)
    if wanted.recipe is not None:
        load_recipe(wanted.recipe)  # a mistake in it is told now, not by every worker
    teacher = _teacher(loaded, wanted.teachers)
    rows = _training_data(request, loaded, dataset, None)
    if rows.labels is not None and rows.task != dataset.task and dataset.labels is not None:
        rows = _training_data(request, loaded, dataset, dataset.task)
    try:
        lessons = make_training_data(rows, seed=request.seed, held_out=dataset)
        opened = teacher.load(lessons, features=wanted.feature_loss_weight > 0 or wanted.relation_loss_weight > 0)
        shown = plain_inputs(lessons, lessons.validation[:2])
        shapes = [
            [tuple(output.shape) for output in opened.predict_one(i, shown)[0]] for i in range(len(teacher.models))
        ]
    except CandidateError as error:
        raise ModelError(error.message, remedy=error.remedy) from error
    for path, given in zip(wanted.teachers, shapes[1:], strict=True):
        if given != shapes[0]:
            raise ModelError(
                f"the teacher {path} answers two samples with {given}, the model with {shapes[0]}",
                remedy="Give teachers with the model's outputs.",
            )
    return TrainingInputs(lessons, teacher)


def _training_data(
    request: CompressionRequest, loaded: LoadedModel, dataset: Dataset, task: TaskKind | None
) -> Dataset:
    assert request.training is not None  # noqa: S101 - see gather
    return load_data(
        request.training.data,
        loaded.contract,
        label=request.label,
        features=request.features,
        group=request.group,
        task=task,
        preprocess=dataset.preprocess,
        model=request.model,
        seed=request.seed,
    )


def _teacher(loaded: LoadedModel, paths: Sequence[str]) -> Teacher:
    models = [loaded.proto]
    names = [spec.name for spec in loaded.contract.inputs]
    for path in paths:
        further = read_model(Path(path))
        if [spec.name for spec in further.contract.inputs] != names:
            raise ModelError(
                f"the teacher {path} takes {[spec.name for spec in further.contract.inputs]}, the model {names}",
                remedy="Give teachers with the model's inputs.",
            )
        models.append(further.proto)
    return Teacher(tuple(models), threads=os.cpu_count() or 1)
