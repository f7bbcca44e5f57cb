"""A job's training itself: ONNX in, ONNX out."""

from collections.abc import Callable, Collection
from pathlib import Path

import onnx
import torch

from edgewright.compress.train.config import CurvePoint, Training
from edgewright.compress.train.custom_recipe import load_recipe
from edgewright.compress.train.data.teacher_outputs import Answers
from edgewright.compress.train.data.training_data import Lessons
from edgewright.compress.train.loop.output_kind import ending_of, feature_of
from edgewright.compress.train.loop.trainer import fit
from edgewright.compress.train.loop.zero_masks import hold, zero_masks
from edgewright.compress.train.torch_graph.onnx_module import Network

__all__ = ["practise"]


def practise(
    content: bytes,
    lessons: Lessons,
    answers: Answers | None,
    settings: Training,
    *,
    seed: int,
    held: Collection[str] | None,
    recipe: str | None,
    checkpoint: Path | None,
    deadline: float | None,
    tell: Callable[[float, CurvePoint | None], None] | None,
) -> tuple[bytes, tuple[CurvePoint, ...]]:
    """Train, and return the trained graph and the learning curve.

    Args:
        content: The ONNX graph to start from.
        lessons: Rows to train on.
        answers: A teacher's answers to the same rows.
        settings: How.
        seed: Of the order of rows, augmentation and dropout.
        held: Layers whose zeros stay; every sparse one if empty, none if None.
        recipe: The user's own, "module:function".
        checkpoint: File to go on from, and to keep while it lasts.
        deadline: Of `time.monotonic()`.
        tell: Told the share of steps done and each epoch.

    Raises:
        CandidateError: The graph cannot be trained, or training failed.
        InputError: The user's recipe cannot be used.
    """
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(mode=True)
    model = onnx.load_from_string(content)
    network = Network(model)
    done = fit(
        network,
        lessons,
        settings,
        seed=seed,
        answers=answers,
        ending=ending_of(model),
        feature=feature_of(model),
        own=None if recipe is None else load_recipe(recipe),
        hold=None if held is None else hold(network, zero_masks(network, held)),
        checkpoint=checkpoint,
        deadline=deadline,
        tell=tell,
    )
    return bytes(network.to_onnx().SerializeToString(deterministic=True)), done.curve
