"""How far a network's answers are from labels or from a teacher's answers."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from edgewright.compress.data.dataset import Task
from edgewright.compress.train.data.teacher_outputs import Reading

__all__ = ["Ending", "ending_seen", "label_loss", "metric_sum", "reading_of", "scores_of", "teacher_loss"]

Ending = Literal["scores", "softmax", "sigmoid"]

_SOFTMAX_FLOOR = 1e-7
_SIGMOID_FLOOR = 1e-4


def ending_seen(outputs: Tensor) -> Ending:
    """Tell probabilities from scores by their values.

    >>> ending_seen(torch.tensor([[0.25, 0.75], [0.9, 0.1]])), ending_seen(torch.tensor([[1.5, -2.0]]))
    ('softmax', 'scores')
    """
    rows = outputs.detach().flatten(1).double()
    if not bool(((rows >= -1e-6) & (rows <= 1 + 1e-6)).all()):
        return "scores"
    if rows.shape[1] > 1 and bool(((rows.sum(dim=1) - 1).abs() < 0.02).all()):
        return "softmax"
    return "sigmoid"


def reading_of(task: Task, outputs: Sequence[Tensor], ending: Ending) -> Reading:
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
    return "classes" if task == "fidelity" and (ending == "softmax" or is_vector) else "values"


def scores_of(outputs: Tensor, reading: Reading, ending: Ending) -> Tensor:
    """Bring an output into the form that losses take: [n, k], unbounded.

    Returns:
        Logits of classes, log-odds of flags, values as they are.
    """
    rows = outputs.flatten(1) if outputs.ndim > 1 else outputs.reshape(-1, 1)
    if reading == "classes" and ending != "scores":
        return torch.log(rows.clamp_min(0) + _SOFTMAX_FLOOR)
    if reading == "flags" and ending != "scores":
        clipped = rows.clamp(0, 1)
        return torch.log((clipped + _SIGMOID_FLOOR) / (1 - clipped + _SIGMOID_FLOOR))
    return rows


def label_loss(
    scores: Tensor,
    labels: Tensor,
    reading: Reading,
    *,
    smoothing: float,
    class_weights: Tensor | None,
    variances: Tensor,
) -> Tensor:
    """Return the mean loss over rows.

    Args:
        scores: [n, k] of `scores_of`.
        labels: [n] class ids, [n] or [n, k] flags, or [n, ...] values.
        reading: Cross-entropy for classes, binary cross-entropy for flags, squared error for values.
        smoothing: Share of a label that goes to all classes.
        class_weights: [classes] or None.
        variances: [k] of the values, by which squared errors are divided.
    """
    if reading == "classes":
        losses = functional.cross_entropy(scores, labels.long(), reduction="none", label_smoothing=smoothing)
    elif reading == "flags":
        wanted = labels.reshape(scores.shape).to(scores.dtype)
        soft = wanted * (1 - smoothing) + smoothing / 2
        losses = functional.binary_cross_entropy_with_logits(scores, soft, reduction="none").mean(dim=1)
    else:
        losses = ((scores - labels.reshape(scores.shape).to(scores.dtype)).square() / variances).mean(dim=1)
    if class_weights is not None and reading != "values":
        losses = losses * class_weights[labels.long().reshape(-1)]
    return losses.mean()


def teacher_loss(
    scores: Tensor, answers: Tensor, reading: Reading, *, temperature: float, variances: Tensor
) -> Tensor:
    """Return the mean distance to a teacher's answers (Hinton 2015, arXiv:1503.02531).

    Args:
        scores: [n, k] of `scores_of`.
        answers: [n, k], likewise the teacher's.
        reading: Kullback-Leibler divergence at the temperature for classes and for each flag, times its square;
            squared error for values.
        temperature: Divides both sides.
        variances: [k] of the values.
    """
    if reading == "classes":
        student = functional.log_softmax(scores / temperature, dim=1)
        teacher = functional.log_softmax(answers / temperature, dim=1)
        return functional.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2
    if reading == "flags":
        chances = torch.sigmoid(answers / temperature)
        cross = functional.binary_cross_entropy_with_logits(scores / temperature, chances)
        entropy = functional.binary_cross_entropy_with_logits(answers / temperature, chances)
        return (cross - entropy) * temperature**2
    return ((scores - answers).square() / variances).mean()


def metric_sum(scores: Tensor, wanted: Tensor, reading: Reading, variances: Tensor) -> float:
    """Return the sum over rows of right answers, shares of right flags, or 1 - error² / variance.

    Args:
        scores: [n, k] of `scores_of`.
        wanted: Labels, or a teacher's answers in the same form as `scores`.
        reading: What they mean.
        variances: [k] of the values.
    """
    if reading == "classes":
        classes = wanted.argmax(dim=1) if wanted.is_floating_point() else wanted
        return float((scores.argmax(dim=1) == classes).sum())
    if reading == "flags":
        flags = wanted > 0
        return float(((scores > 0) == flags.reshape(scores.shape)).double().mean(dim=1).sum())
    errors = (scores.double() - wanted.reshape(scores.shape).double()).square() / variances.double()
    return float((1 - errors.mean(dim=1)).sum())
