"""A job's training itself: ONNX in, ONNX out."""

from collections.abc import Callable, Collection
from pathlib import Path

import onnx
import torch

from edgewright.compress.train.config import CurvePoint, TrainingConfig
from edgewright.compress.train.custom_recipe import load_recipe
from edgewright.compress.train.data.teacher_outputs import TeacherOutputs
from edgewright.compress.train.data.training_data import TrainingData
from edgewright.compress.train.loop.output_kind import feature_tensor_of, output_activation
from edgewright.compress.train.loop.trainer import fit_network
from edgewright.compress.train.loop.zero_masks import make_zero_holder, zero_masks
from edgewright.compress.train.torch_graph.onnx_module import TrainableGraph

__all__ = ["train_network"]


def train_network(
    content: bytes,
    data: TrainingData,
    teacher_outputs: TeacherOutputs | None,
    settings: TrainingConfig,
    *,
    seed: int,
    held: Collection[str] | None,
    recipe: str | None,
    checkpoint: Path | None,
    deadline: float | None,
    report_progress: Callable[[float, CurvePoint | None], None] | None,
) -> tuple[bytes, tuple[CurvePoint, ...]]:
    """Train, and return the trained graph and the learning curve.

    Args:
        content: The ONNX graph to start from.
        data: Rows to train on.
        teacher_outputs: A teacher's answers to the same rows.
        settings: How.
        seed: Of the order of rows, augmentation and dropout.
        held: Layers whose zeros stay; every sparse one if empty, none if None.
        recipe: The user's own, "module:function".
        checkpoint: File to go on from, and to keep while it lasts.
        deadline: Of `time.monotonic()`.
        report_progress: Told the share of steps done and each epoch.

    Raises:
        CandidateError: The graph cannot be trained, or training failed.
        InputError: The user's recipe cannot be used.
    """
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(mode=True)
    model = onnx.load_from_string(content)
    network = TrainableGraph(model)
    done = fit_network(
        network,
        data,
        settings,
        seed=seed,
        teacher_outputs=teacher_outputs,
        activation=output_activation(model),
        feature_tensor=feature_tensor_of(model),
        custom=None if recipe is None else load_recipe(recipe),
        reapply_zeros=None if held is None else make_zero_holder(network, zero_masks(network, held)),
        checkpoint=checkpoint,
        deadline=deadline,
        report_progress=report_progress,
    )
    return bytes(network.to_onnx().SerializeToString(deterministic=True)), done.curve
