"""Lessons as batches of tensors, augmented in a way that is the same for everybody who knows the seed."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgewright.compress.train.data.augmentation import DRAWS_PER_ROW, augment, value_deviations
from edgewright.compress.train.data.training_data import TrainingData

__all__ = ["AugmentedViews", "plain_inputs"]


def plain_inputs(data: TrainingData, rows: NDArray[np.intp]) -> tuple[Tensor, ...]:
    """Return the inputs of rows as they are."""
    return tuple(_tensor(array[rows]) for array in data.inputs)


class AugmentedViews:
    """Augmented copies of the training rows, made anew whenever they are read.

    A row's view depends on the seed, the number of the view and the row alone.
    """

    def __init__(self, data: TrainingData, names: Sequence[str], seed: int, count: int | None = None) -> None:
        """Remember what the views are made of.

        Args:
            data: Whose `train` rows are seen.
            names: Augmentations of the first input.
            seed: Of the numbers drawn.
            count: How many views there are, after which the first comes again; None has a new one every epoch.
        """
        self._lessons = data
        self._names = tuple(names)
        self._seed = seed
        self._count = count if names else 1
        self._spread = value_deviations(data.inputs[0][data.train[:4096]])
        self._drawn: tuple[int, Tensor] | None = None

    def view_of_epoch(self, epoch: int) -> int:
        """Return which view an epoch sees."""
        return epoch if self._count is None else epoch % self._count

    def inputs(self, view: int, places: NDArray[np.intp]) -> tuple[Tensor, ...]:
        """Return rows of a view.

        Args:
            view: Its number.
            places: Into `lessons.train`.

        Returns:
            Per input [len(places), ...].
        """
        tensors = plain_inputs(self._lessons, self._lessons.train[places])
        if not self._names:
            return tensors
        draws = self._draws(view)[torch.from_numpy(places)]
        first = augment(tensors[0], draws, self._names, self._lessons.format, self._spread)
        return (first, *tensors[1:])

    def _draws(self, view: int) -> Tensor:
        if self._drawn is None or self._drawn[0] != view:
            mixed = np.random.SeedSequence([self._seed, view]).generate_state(1, np.uint64)[0]
            generator = torch.Generator().manual_seed(int(mixed >> np.uint64(1)))
            shape = (len(self._lessons.train), DRAWS_PER_ROW * len(self._names))
            self._drawn = view, torch.rand(shape, generator=generator)
        return self._drawn[1]


def _tensor(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.array(array, order="C"))
