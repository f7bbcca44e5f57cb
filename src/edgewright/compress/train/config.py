"""How a network is trained, as data, and the learning curve that comes of it."""

import math
from typing import Literal

import msgspec

from edgewright.contract.errors import InputError
from edgewright.contract.training_report import CurvePoint

__all__ = [
    "CurvePoint",
    "Distillation",
    "TrainingConfig",
    "TrainingStart",
    "default_training_config",
    "learning_rate_factor",
]

TrainingStart = Literal["fresh", "trained", "integers"]

_RATES: dict[TrainingStart, float] = {"fresh": 4e-3, "trained": 1e-3, "integers": 3e-4}


class Distillation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What of the loss comes from a teacher.

    Attributes:
        temperature: Divides both sides' scores before they are compared (Hinton 2015, arXiv:1503.02531).
        weight: Share of the teacher's answers in the loss, the labels have the rest; without labels it is 1.
        feature_weight: Weight of the distance to the teacher's features (FitNets, arXiv:1412.6550), added.
        relation_weight: Weight of the distances and angles among samples (RKD, arXiv:1904.05068), added.
    """

    temperature: float = 4.0
    weight: float = 0.8
    feature_weight: float = 0.0
    relation_weight: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what is no loss."""
        _check_range("temperature", self.temperature, 0.1, 100.0)
        _check_range("distillation's weight", self.weight, 0.0, 1.0)
        _check_range("features' weight", self.feature_weight, 0.0, 1e6)
        _check_range("relations' weight", self.relation_weight, 0.0, 1e6)


class TrainingConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Settings of one training: AdamW, a warm-up, then a cosine to zero.

    Attributes:
        epochs: Planned passes over the training rows; the rate falls to zero over them.
        batch: Rows per step.
        learning_rate: Largest learning rate.
        weight_decay: Of weights; biases, normalisation and steps of integers have none.
        label_smoothing: Share of a label that is spread over all classes.
        warmup_fraction: Share of all steps in which the rate rises.
        early_stopping_patience: Epochs without a better validation before training ends early; 0 never ends early.
        max_gradient_norm: Largest norm of the gradient.
        balance_classes: Weight classes by the root of their rarity where the largest is over 3 times the smallest.
        augmentations: Names of augmentations (see `augment.py`), applied in this order.
        distillation: None learns from labels alone.
        rows_per_epoch: Rows that an epoch shows, other ones in each epoch; 0 shows all.
    """

    epochs: int = 30
    batch: int = 128
    learning_rate: float = 4e-3
    weight_decay: float = 0.02
    label_smoothing: float = 0.05
    warmup_fraction: float = 0.1
    early_stopping_patience: int = 10
    max_gradient_norm: float = 1.0
    balance_classes: bool = True
    augmentations: tuple[str, ...] = ()
    distillation: Distillation | None = None
    rows_per_epoch: int = 0

    def __post_init__(self) -> None:
        """Refuse trainings that could not run."""
        _check_range("epochs", self.epochs, 1, 1_000_000)
        _check_range("batch", self.batch, 2, 1_000_000)
        _check_range("learning_rate", self.learning_rate, 1e-9, 100.0)
        _check_range("weight_decay", self.weight_decay, 0.0, 100.0)
        _check_range("label_smoothing", self.label_smoothing, 0.0, 0.9)
        _check_range("warmup_fraction", self.warmup_fraction, 0.0, 0.9)
        _check_range("early_stopping_patience", self.early_stopping_patience, 0, 1_000_000)
        _check_range("max_gradient_norm", self.max_gradient_norm, 1e-9, 1e9)
        _check_range("rows_per_epoch", self.rows_per_epoch, 0, 1e12)

    def rows_shown(self, available: int) -> int:
        """Return the rows that one epoch shows of those that there are."""
        return min(self.rows_per_epoch, available) if self.rows_per_epoch else available


def default_training_config(
    rows: int, start: TrainingStart, *, epochs: int = 30, augment: tuple[str, ...] = (), teacher: bool = False
) -> TrainingConfig:
    """Return settings that are a good first choice.

    Args:
        rows: Training rows; a batch is a hundredth of them, 32 to 128.
        start: Fresh weights, trained ones, or the integers of a quantised graph.
        epochs: Planned.
        augment: Admissible augmentations.
        teacher: Whether a teacher's answers are there.
    """
    batch = 32 * min(4, max(1, round(rows / 100 / 32)))
    return TrainingConfig(
        epochs=epochs,
        batch=batch,
        learning_rate=_RATES[start],
        weight_decay=0.02 if start == "fresh" else 1e-3,
        early_stopping_patience=max(8, epochs // 3),
        augmentations=augment,
        distillation=Distillation() if teacher else None,
    )


def learning_rate_factor(step: int, steps: int, warmup: float) -> float:
    """Return the share of the largest rate at a step: a straight rise, then half a cosine to zero.

    >>> [round(learning_rate_factor(step, 10, 0.2), 2) for step in range(10)]
    [0.5, 1.0, 1.0, 0.96, 0.85, 0.69, 0.5, 0.31, 0.15, 0.04]
    """
    rising = round(steps * warmup)
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def _check_range(what: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise InputError(f"{what} is {value:g}, it must be {least:g} to {most:g}", remedy="Choose one in between.")
