"""The state of a training on disk, so that one that was killed goes on where it was."""

import copy
import pickle
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn

from edgewright.compress.output_folder import write_file
from edgewright.compress.train.config import CurvePoint

__all__ = ["TrainingProgress", "load_checkpoint", "save_checkpoint", "state_snapshot"]


class TrainingProgress(msgspec.Struct):
    """Where a training is.

    Attributes:
        epoch: Complete epochs.
        step: Steps taken in the epoch that is under way.
        rows: Rows seen in it.
        loss_sum: Over those rows.
        curve: Points so far.
        best_metric: Of the best epoch.
        best_loss: Of the best epoch.
        best_epoch: Whose weights are kept.
        best_reached: Metric and negative loss of the best trained epoch; the start does not count.
        epochs_without_improvement: Epochs since then, after the warm-up.
        failures: How often the loss was not finite.
        accumulation_steps: Parts of a batch whose gradients are summed.
        seconds: Spent so far.
        note: For the next point of the curve.
    """

    epoch: int = 0
    step: int = 0
    rows: int = 0
    loss_sum: float = 0.0
    curve: list[CurvePoint] = []
    best_metric: float = float("-inf")
    best_loss: float = float("inf")
    best_epoch: int = 0
    best_reached: tuple[float, float] = (float("-inf"), float("-inf"))
    epochs_without_improvement: int = 0
    failures: int = 0
    accumulation_steps: int = 1
    seconds: float = 0.0
    note: str = ""


@dataclass(slots=True)
class Checkpoint:
    """What is written: numbers, tensors by part, and the generator's state."""

    progress: TrainingProgress
    tensors: dict[str, Any]


def state_snapshot(part: nn.Module | Any) -> dict[str, Any]:
    """Return a copy of the state of a module, an optimiser or a schedule."""
    copied: dict[str, Any] = copy.deepcopy(part.state_dict())
    return copied


def save_checkpoint(path: Path, key: str, progress: TrainingProgress, tensors: dict[str, Any]) -> None:
    """Write a state whole or not at all.

    Args:
        path: The file.
        key: Of the training; another training will not go on from it.
        progress: Numbers.
        tensors: State dictionaries by name.

    Raises:
        OutputError: It cannot be written.
    """
    stream = BytesIO()
    content = {"key": key, "progress": msgspec.msgpack.encode(progress), "tensors": tensors}
    torch.save(content | {"random": torch.get_rng_state()}, stream)
    write_file(path, stream.getvalue())


def load_checkpoint(path: Path | None, key: str) -> Checkpoint | None:
    """Return the state of this training and set torch's generator; None if there is none, or it is another's."""
    if path is None or not path.exists():
        return None
    try:
        content = torch.load(path, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError):
        return None
    if content.get("key") != key:
        return None
    torch.set_rng_state(content["random"])
    return Checkpoint(msgspec.msgpack.decode(content["progress"], type=TrainingProgress), content["tensors"])
