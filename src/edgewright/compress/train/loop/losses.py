"""How far a network's answers are from labels or from a teacher's answers."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from edgewright.compress.data.dataset import TaskKind
from edgewright.compress.train.data.teacher_outputs import OutputMeaning

__all__ = [
    "OutputActivation",
    "detect_activation",
    "label_loss",
    "metric_sum",
    "output_logits",
    "output_meaning",
    "teacher_loss",
]

OutputActivation = Literal["scores", "softmax", "sigmoid"]

_SOFTMAX_FLOOR = 1e-7
_SIGMOID_FLOOR = 1e-4


def detect_activation(outputs: Tensor) -> OutputActivation:
    """Tell probabilities from scores by their values.

    >>> detect_activation(torch.tensor([[0.25, 0.75], [0.9, 0.1]])), detect_activation(torch.tensor([[1.5, -2.0]]))
    ('softmax', 'scores')
    """
    rows = outputs.detach().flatten(1).double()
    if not bool(((rows >= -1e-6) & (rows <= 1 + 1e-6)).all()):
        return "scores"
    if rows.shape[1] > 1 and bool(((rows.sum(dim=1) - 1).abs() < 0.02).all()):
        return "softmax"
    return "sigmoid"


def output_meaning(task: TaskKind, outputs: Sequence[Tensor], activation: OutputActivation) -> OutputMeaning:
    """Return what the first of the float outputs means.

    Without labels a softmax tells that it is of classes, and so does being the only output, with a vector per row:
    such models are judged by agreement (see `metric.py`).
    """
    first = outputs[0]
    if task == "classification":
        return "classes" if first[0].numel() > 1 else "flags"
    if task == "multilabel":
        return "flags"
    is_vector = len(outputs) == 1 and first.ndim == 2 and first.shape[1] >= 2
    return "classes" if task == "fidelity" and (activation == "softmax" or is_vector) else "values"


def output_logits(outputs: Tensor, meaning: OutputMeaning, activation: OutputActivation) -> Tensor:
    """Bring an output into the form that losses take: [n, k], unbounded.

    Returns:
        Logits of classes, log-odds of flags, values as they are.
    """
    rows = outputs.flatten(1) if outputs.ndim > 1 else outputs.reshape(-1, 1)
    if meaning == "classes" and activation != "scores":
        return torch.log(rows.clamp_min(0) + _SOFTMAX_FLOOR)
    if meaning == "flags" and activation != "scores":
        clipped = rows.clamp(0, 1)
        return torch.log((clipped + _SIGMOID_FLOOR) / (1 - clipped + _SIGMOID_FLOOR))
    return rows


def label_loss(
    scores: Tensor,
    labels: Tensor,
    meaning: OutputMeaning,
    *,
    smoothing: float,
    class_weights: Tensor | None,
    variances: Tensor,
) -> Tensor:
    """Return the mean loss over rows.

    Args:
        scores: [n, k] of `output_logits`.
        labels: [n] class ids, [n] or [n, k] flags, or [n, ...] values.
        meaning: Cross-entropy for classes, binary cross-entropy for flags, squared error for values.
        smoothing: Share of a label that goes to all classes.
        class_weights: [classes] or None.
        variances: [k] of the values, by which squared errors are divided.
    """
    if meaning == "classes":
        losses = functional.cross_entropy(scores, labels.long(), reduction="none", label_smoothing=smoothing)
    elif meaning == "flags":
        wanted = labels.reshape(scores.shape).to(scores.dtype)
        soft = wanted * (1 - smoothing) + smoothing / 2
        losses = functional.binary_cross_entropy_with_logits(scores, soft, reduction="none").mean(dim=1)
    else:
        losses = ((scores - labels.reshape(scores.shape).to(scores.dtype)).square() / variances).mean(dim=1)
    if class_weights is not None and meaning != "values":
        losses = losses * class_weights[labels.long().reshape(-1)]
    return losses.mean()


def teacher_loss(
    scores: Tensor, answers: Tensor, meaning: OutputMeaning, *, temperature: float, variances: Tensor
) -> Tensor:
    """Return the mean distance to a teacher's answers (Hinton 2015, arXiv:1503.02531).

    Args:
        scores: [n, k] of `output_logits`.
        answers: [n, k], likewise the teacher's.
        meaning: Kullback-Leibler divergence at the temperature for classes and for each flag, times its square;
            squared error for values.
        temperature: Divides both sides.
        variances: [k] of the values.
    """
    if meaning == "classes":
        student = functional.log_softmax(scores / temperature, dim=1)
        teacher = functional.log_softmax(answers / temperature, dim=1)
        return functional.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2
    if meaning == "flags":
        chances = torch.sigmoid(answers / temperature)
        cross = functional.binary_cross_entropy_with_logits(scores / temperature, chances)
        entropy = functional.binary_cross_entropy_with_logits(answers / temperature, chances)
        return (cross - entropy) * temperature**2
    return ((scores - answers).square() / variances).mean()


def metric_sum(scores: Tensor, targets: Tensor, meaning: OutputMeaning, variances: Tensor) -> float:
    """Return the sum over rows of right answers, shares of right flags, or 1 - error² / variance.

    Args:
        scores: [n, k] of `output_logits`.
        targets: Labels, or a teacher's answers in the same form as `scores`.
        meaning: What they mean.
        variances: [k] of the values.
    """
    if meaning == "classes":
        classes = targets.argmax(dim=1) if targets.is_floating_point() else targets
        return float((scores.argmax(dim=1) == classes).sum())
    if meaning == "flags":
        flags = targets > 0
        return float(((scores > 0) == flags.reshape(scores.shape)).double().mean(dim=1).sum())
    errors = (scores.double() - targets.reshape(scores.shape).double()).square() / variances.double()
    return float((1 - errors.mean(dim=1)).sum())
