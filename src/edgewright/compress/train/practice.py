"""A job's training itself: ONNX in, ONNX out."""

from collections.abc import Callable
from pathlib import Path

import onnx
import torch

from edgewright.compress.train.answers import Answers
from edgewright.compress.train.ends import ending_of, feature_of
from edgewright.compress.train.job import Job
from edgewright.compress.train.lessons import Lessons
from edgewright.compress.train.loop import fit
from edgewright.compress.train.network import Network
from edgewright.compress.train.recipe import load_recipe
from edgewright.compress.train.settings import CurvePoint
from edgewright.compress.train.sparse import hold, zero_masks

__all__ = ["practise"]


def practise(
    job: Job,
    lessons: Lessons,
    answers: Answers | None,
    checkpoint: Path | None,
    deadline: float | None,
    tell: Callable[[float, CurvePoint | None], None] | None,
) -> tuple[bytes, tuple[CurvePoint, ...]]:
    """Train, and return the trained graph and the learning curve; for the arguments see `job.perform`.

    Raises:
        CandidateError: The graph cannot be trained, or training failed.
        InputError: The user's recipe cannot be used.
    """
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(mode=True)
    model = onnx.load_from_string(job.model)
    network = Network(model)
    done = fit(
        network,
        lessons,
        job.settings,
        seed=job.seed,
        answers=answers,
        ending=ending_of(model),
        feature=feature_of(model),
        own=None if job.recipe is None else load_recipe(job.recipe),
        hold=None if job.hold is None else hold(network, zero_masks(network, job.hold.layers)),
        checkpoint=checkpoint,
        deadline=deadline,
        tell=tell,
    )
    return bytes(network.to_onnx().SerializeToString(deterministic=True)), done.curve
