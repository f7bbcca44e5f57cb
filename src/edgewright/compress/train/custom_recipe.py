"""The user's own way to train, as `module:function`."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import msgspec
from torch import Tensor, nn
from torch.optim import Optimizer

from edgewright.compress.data.sources.function import load_function
from edgewright.compress.train.config import TrainingConfig
from edgewright.contract.errors import InputError

__all__ = ["CustomRecipe", "load_recipe"]


@dataclass(frozen=True, slots=True)
class CustomRecipe:
    """What differs from the usual training.

    Attributes:
        optimizer: Called with the list of parameters.
        schedule: Called with the optimizer and the number of steps; its `step()` is called after each.
        loss: Called with the output (a tuple if there are several) and the labels of a batch; returns a scalar.
        augment: Called with the first input of a batch and a seeded `torch.Generator`.
        epochs: Planned.
        batch: Rows per step.
    """

    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None = None
    schedule: Callable[[Optimizer, int], Any] | None = None
    loss: Callable[[Any, Tensor], Tensor] | None = None
    augment: Callable[..., Tensor] | None = None
    epochs: int | None = None
    batch: int | None = None

    def apply_to(self, settings: TrainingConfig) -> TrainingConfig:
        """Return the settings with this recipe's epochs and batch."""
        return msgspec.structs.replace(
            settings, epochs=self.epochs or settings.epochs, batch=self.batch or settings.batch
        )


_NAMES = tuple(field.name for field in fields(CustomRecipe))


def load_recipe(reference: str) -> CustomRecipe:
    """Call `module:function` and return its recipe.

    Raises:
        InputError: It cannot be imported, raised, or returned something else.
    """
    function = load_function(reference)
    try:
        result = function()
    except Exception as error:  # the user's code may raise anything
        raise InputError(
            f"training recipe {reference} raised {type(error).__name__}: {error}",
            remedy="Call it by itself to see where.",
        ) from error
    if isinstance(result, CustomRecipe):
        return result
    if not isinstance(result, Mapping):
        raise InputError(
            f"training recipe {reference} returned {type(result).__name__}",
            remedy=f"Return a dict with any of: {', '.join(_NAMES)}.",
        )
    for name, value in result.items():
        if name not in _NAMES:
            raise InputError(
                f"training recipe {reference} returned an unknown {name!r}",
                remedy=f"Known are: {', '.join(_NAMES)}.",
            )
        is_number = name in ("epochs", "batch")
        fits = isinstance(value, int) and value > 0 if is_number else callable(value)
        if value is not None and not fits:
            raise InputError(
                f"training recipe {reference} returned {value!r} as {name}",
                remedy="It must be a whole number above zero." if is_number else "It must be a function.",
            )
    return CustomRecipe(**result)
