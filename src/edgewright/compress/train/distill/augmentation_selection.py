"""Which augmentations leave the meaning of these samples alone: those that the teacher still answers rightly."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from edgewright.compress.metrics.scores import target_variances
from edgewright.compress.train.data.augmentation import augmentation_names
from edgewright.compress.train.data.batches import AugmentedViews
from edgewright.compress.train.data.training_data import TrainingData
from edgewright.compress.train.distill.teacher import LoadedTeacher, Teacher
from edgewright.compress.train.loop.losses import metric_sum

__all__ = ["AugmentationSelection", "select_augmentations"]


@dataclass(frozen=True, slots=True)
class AugmentationSelection:
    """Which augmentations may be used, and why.

    Attributes:
        names: Kept, in the order of `augmentations`.
        drops: What each costs the teacher alone, as a fraction of its metric.
        notes: The same for people.
    """

    names: tuple[str, ...]
    drops: dict[str, float]
    notes: tuple[str, ...]


def select_augmentations(
    data: TrainingData, teacher: Teacher, *, seed: int, max_drop: float = 0.03, rows: int = 1000
) -> AugmentationSelection:
    """Try every augmentation on some rows that the teacher can answer.

    One is kept if it costs the teacher at most `max_drop` of its metric, or of its agreement with its own answers
    where there are no labels; all together may cost twice that, else the dearest is left out.

    Args:
        data: Their form says what can be tried.
        teacher: Who judges.
        seed: Of the rows and of the numbers drawn.
        max_drop: Allowed for each, as a fraction.
        rows: Training rows to try, at most.

    Raises:
        CandidateError: The teacher cannot be run.
    """
    tried = augmentation_names(data.format.kind)
    if not tried:
        return AugmentationSelection(
            (), {}, (f"no augmentation: none is known for samples of kind {data.format.kind}",)
        )
    chosen = np.sort(np.random.default_rng(seed).permutation(data.train)[:rows])
    trial = _AugmentationTrial(replace(data, train=chosen), teacher.load(data), seed)
    base = trial.metric(())
    drops = {name: base - trial.metric((name,)) for name in tried}
    kept = [name for name in tried if drops[name] <= max_drop]
    while len(kept) > 1 and base - trial.metric(kept) > 2 * max_drop:
        kept.remove(max(kept, key=drops.__getitem__))
    notes = [
        f"augmentation {name!r}: {'used' if name in kept else 'not used'}, the teacher's metric falls by "
        f"{100 * drops[name]:.1f} points"
        for name in tried
    ]
    return AugmentationSelection(tuple(kept), drops, tuple(notes))


@dataclass(slots=True)
class _AugmentationTrial:
    """Some rows, and the teacher that answers them."""

    data: TrainingData
    teacher: LoadedTeacher
    seed: int
    _plain: Tensor | None = None

    def metric(self, names: Sequence[str]) -> float:
        """Return the teacher's metric on the augmented rows."""
        places = np.arange(len(self.data.train))
        inputs = AugmentedViews(self.data, names, self.seed).inputs(0, places)
        scores = self.teacher.predict(inputs)[0][0].flatten(1)
        if self._plain is None:
            self._plain = scores
        wanted = self._wanted(inputs)
        reading = self.teacher.meaning
        spread = torch.ones(())
        if reading == "values":
            spread = torch.as_tensor(target_variances(wanted.numpy()).mean())
        return metric_sum(scores, wanted, reading, spread) / len(places)

    def _wanted(self, inputs: Sequence[Tensor]) -> Tensor:
        if self.data.task == "reconstruction":
            return inputs[0].flatten(1)
        if self.data.labels is not None:
            return torch.from_numpy(np.asarray(self.data.labels[self.data.train]))
        assert self._plain is not None  # noqa: S101 - the first answers are those to plain rows
        return self._plain
