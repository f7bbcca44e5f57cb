"""What a training makes small and what it is judged by: labels, a teacher's answers, its features."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgewright.compress.metrics.scores import target_variances
from edgewright.compress.train.config import Distillation, TrainingConfig
from edgewright.compress.train.data.batches import plain_inputs
from edgewright.compress.train.data.teacher_outputs import OutputMeaning, TeacherOutputs
from edgewright.compress.train.data.training_data import TrainingData
from edgewright.compress.train.loop.feature_losses import (
    FeatureProjection,
    feature_loss,
    flat_features,
    relation_loss,
)
from edgewright.compress.train.loop.losses import (
    OutputActivation,
    detect_activation,
    label_loss,
    metric_sum,
    output_logits,
    output_meaning,
    teacher_loss,
)
from edgewright.contract.errors import CandidateError

__all__ = ["CustomLoss", "TrainingObjective"]

CustomLoss = Callable[[Any, Tensor], Tensor]

_VALIDATION_BATCH = 256


@dataclass(slots=True)
class TrainingObjective:
    """The loss of one training.

    Attributes:
        data: Rows and labels.
        settings: Weights of the loss's parts.
        teacher_outputs: The teacher's; needed where the lessons have no labels.
        activation: How the network's answer ends; found out from its values if None.
        feature_tensor: Name of the network's tensor that is held against the teacher's features.
        custom_loss: The user's loss of (outputs, labels) instead of the task's.
        meaning: What the answer means; set by `prepare`.
        feature_projection: Maps features to the teacher's; set by `prepare` where features are learned.
    """

    data: TrainingData
    settings: TrainingConfig
    teacher_outputs: TeacherOutputs | None = None
    activation: OutputActivation | None = None
    feature_tensor: str | None = None
    custom_loss: CustomLoss | None = None
    meaning: OutputMeaning = "values"
    feature_projection: FeatureProjection | None = None
    _variances: list[Tensor] = field(default_factory=list)
    _class_weights: Tensor | None = None

    @property
    def distillation(self) -> Distillation | None:
        """What is learned from the teacher; without labels at least its answers."""
        if self.teacher_outputs is None:
            return None
        if not self._has_targets:
            return self.settings.distillation or Distillation()
        return self.settings.distillation

    @property
    def _has_targets(self) -> bool:
        return self.data.labels is not None or self.data.task == "reconstruction"

    def prepare(self, network: nn.Module) -> None:
        """Find out what the answers mean by looking at some of them.

        Raises:
            CandidateError: There is nothing to learn from, or answers and labels do not fit each other.
        """
        if not self._has_targets and self.teacher_outputs is None:
            raise CandidateError(
                "the lessons have no labels and there is no teacher", remedy="Give labels, or a teacher's answers."
            )
        network.eval()
        with torch.no_grad():
            outputs, features = self._run(
                network, plain_inputs(self.data, self.data.validation[:_VALIDATION_BATCH])
            )
        self.activation = self.activation or detect_activation(outputs[0])
        self.meaning = output_meaning(self.data.task, outputs, self.activation)
        if self.teacher_outputs is not None and not self._has_targets:
            self.meaning = self.teacher_outputs.meaning
        self._variances = self._spreads(outputs)
        classes = outputs[0][0].numel() if self.meaning == "classes" else 2
        self._class_weights = self._weights(classes)
        if features is not None and self.teacher_outputs is not None and self.teacher_outputs.features is not None:
            self.feature_projection = FeatureProjection(features.shape[1], self.teacher_outputs.features.shape[-1])

    def loss(self, network: nn.Module, inputs: Sequence[Tensor], view: int, places: NDArray[np.intp]) -> Tensor:
        """Return the mean loss of a batch.

        Args:
            network: In training mode.
            inputs: Of the batch, as augmented.
            view: Which augmented copy they are, if a teacher answered it.
            places: Of the rows in `lessons.train`.
        """
        outputs, features = self._run(network, inputs)
        scores = output_logits(outputs[0], self.meaning, self.activation or "scores")
        learned = self.distillation
        if learned is None or self.teacher_outputs is None:
            return self._of_labels(outputs, scores, inputs, self.data.train[places])
        truths = [_float(array[view, places]) for array in self.teacher_outputs.train]
        total = self._of_teacher(outputs, scores, truths, learned.temperature)
        if self._has_targets and learned.weight < 1:
            own = self._of_labels(outputs, scores, inputs, self.data.train[places])
            total = learned.weight * total + (1 - learned.weight) * own
        wanted = (
            None if self.teacher_outputs.features is None else _float(self.teacher_outputs.features[view, places])
        )
        if (
            learned.feature_weight
            and wanted is not None
            and features is not None
            and self.feature_projection is not None
        ):
            total = total + learned.feature_weight * feature_loss(self.feature_projection(features), wanted)
        if learned.relation_weight and len(places) > 1:
            pair = (scores, truths[0].flatten(1)) if features is None or wanted is None else (features, wanted)
            total = total + learned.relation_weight * relation_loss(*pair)
        return total

    def validate(self, network: nn.Module) -> tuple[float, float]:
        """Return loss and metric over the validation rows; labels count, where there are any."""
        network.eval()
        rows = self.data.validation
        losses, metrics = 0.0, 0.0
        with torch.no_grad():
            for start in range(0, len(rows), _VALIDATION_BATCH):
                part = rows[start : start + _VALIDATION_BATCH]
                inputs = plain_inputs(self.data, part)
                outputs, _ = self._run(network, inputs, inner=False)
                scores = output_logits(outputs[0], self.meaning, self.activation or "scores")
                if self._has_targets:
                    wanted = self._targets(inputs, part)
                    loss = self._of_labels(outputs, scores, inputs, part, smoothing=0.0)
                else:
                    assert self.teacher_outputs is not None  # noqa: S101 - `prepare` has checked it
                    truths = [_float(array[start : start + len(part)]) for array in self.teacher_outputs.validation]
                    wanted = truths[0].reshape(scores.shape)
                    loss = self._of_teacher(outputs, scores, truths, 1.0)
                losses += float(loss.detach()) * len(part)
                metrics += metric_sum(scores, wanted, self.meaning, self._variances[0])
        return losses / len(rows), metrics / len(rows)

    def _run(
        self, network: nn.Module, inputs: Sequence[Tensor], *, inner: bool = True
    ) -> tuple[list[Tensor], Tensor | None]:
        """Return the float outputs, and flat features where they are learned."""
        learned = self.distillation
        wanted = learned is not None and (learned.feature_weight > 0 or learned.relation_weight > 0)
        run_with = getattr(network, "run_with", None)
        if inner and wanted and self.feature_tensor is not None and run_with is not None:
            outputs, tensors = run_with(inputs, [self.feature_tensor])
            features = flat_features(tensors[self.feature_tensor])
        else:
            outputs, features = network(*inputs), None
        floats = [output for output in outputs if output.is_floating_point()]
        if not floats:
            raise CandidateError("the network has no float output", remedy="Train on one that has scores.")
        return floats, features

    def _targets(self, inputs: Sequence[Tensor], rows: NDArray[np.intp]) -> Tensor:
        if self.data.labels is None:
            return inputs[0]
        return torch.from_numpy(np.asarray(self.data.labels[rows]))

    def _of_labels(
        self,
        outputs: Sequence[Tensor],
        scores: Tensor,
        inputs: Sequence[Tensor],
        rows: NDArray[np.intp],
        smoothing: float | None = None,
    ) -> Tensor:
        targets = self._targets(inputs, rows)
        if self.custom_loss is not None:
            return self.custom_loss(outputs[0] if len(outputs) == 1 else tuple(outputs), targets)
        return label_loss(
            scores,
            targets,
            self.meaning,
            smoothing=self.settings.label_smoothing if smoothing is None else smoothing,
            class_weights=self._class_weights if smoothing is None else None,
            variances=self._variances[0],
        )

    def _of_teacher(
        self, outputs: Sequence[Tensor], scores: Tensor, truths: Sequence[Tensor], temperature: float
    ) -> Tensor:
        first = truths[0].reshape(scores.shape)
        total = teacher_loss(scores, first, self.meaning, temperature=temperature, variances=self._variances[0])
        for output, truth, variance in zip(outputs[1:], truths[1:], self._variances[1:], strict=False):
            total = total + ((output - truth.reshape(output.shape)).square() / variance).mean()
        return total

    def _spreads(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        """Return the variance of what each output shall be; the first's per value where labels give it."""
        spreads = [torch.ones(())] * len(outputs)
        if self.teacher_outputs is not None:
            spreads = [_variance(array[0]) for array in self.teacher_outputs.train]
        if self.meaning != "values":
            return [torch.ones(()), *spreads[1:]]
        if self.data.labels is not None:
            per_target = target_variances(self.data.labels[self.data.train])
            return [torch.as_tensor(per_target, dtype=torch.float32), *spreads[1:]]
        if self.data.task == "reconstruction":
            return [_variance(self.data.inputs[0][self.data.train[:4096]]), *spreads[1:]]
        return spreads

    def _weights(self, classes: int) -> Tensor | None:
        given = self.data.class_weights
        if given is None or not self.settings.balance_classes:
            return None
        weights = torch.ones(max(classes, len(given)))
        weights[: len(given)] = torch.from_numpy(np.array(given))
        return weights


def _variance(rows: NDArray[Any]) -> Tensor:
    """Return the mean variance of values over rows."""
    return torch.as_tensor(float(target_variances(rows[:4096]).mean()))


def _float(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.array(array, np.float32))
