"""One step of an optimiser, its rate, and what is done where memory runs out or numbers overflow."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from edgewright.compress.train.config import TrainingConfig, learning_rate_factor
from edgewright.compress.train.custom_recipe import CustomRecipe
from edgewright.contract.errors import CandidateError

__all__ = ["OptimizerStep", "accumulate_gradients", "epoch_batches", "is_out_of_memory", "next_accumulation_steps"]


@dataclass(slots=True)
class OptimizerStep:
    """Optimiser and schedule of the parameters that are trained.

    Attributes:
        parameters: Of the network, and of what is trained beside it.
        settings: Of the training.
        steps: Planned.
        custom: The user's optimiser and schedule, where given.
        optimizer: Set at the start.
        schedule: The user's; the usual one has no state.
        rate_factor: Factor on the rate, halved after each failure.
    """

    parameters: list[nn.Parameter]
    settings: TrainingConfig
    steps: int
    custom: CustomRecipe
    optimizer: Optimizer
    schedule: Any
    rate_factor: float = 1.0

    @staticmethod
    def create(
        parameters: list[nn.Parameter], settings: TrainingConfig, steps: int, own: CustomRecipe
    ) -> "OptimizerStep":
        """Return a stepper at its start."""
        optimizer = (own.optimizer or _adamw(settings))(parameters)
        schedule = None if own.schedule is None else own.schedule(optimizer, steps)
        return OptimizerStep(parameters, settings, steps, own, optimizer, schedule)

    @property
    def learning_rate(self) -> float:
        """Learning rate of the first group."""
        return float(self.optimizer.param_groups[0]["lr"])

    def take(self, step: int) -> bool:
        """Clip the gradients and step; return False where they are not finite, and change nothing."""
        norm = nn.utils.clip_grad_norm_(self.parameters, self.settings.max_gradient_norm)
        if not bool(torch.isfinite(norm)):
            return False
        if self.schedule is None and "peak" in self.optimizer.param_groups[0]:
            share = learning_rate_factor(step, self.steps, self.settings.warmup_fraction)
            for group in self.optimizer.param_groups:
                group["lr"] = group["peak"] * share * self.rate_factor
        self.optimizer.step()
        if self.schedule is not None:
            self.schedule.step()
        return True

    def halve_rate(self) -> None:
        """Halve the rate from here on."""
        self.rate_factor /= 2
        for group in self.optimizer.param_groups:
            group["lr"] /= 2
        if self.schedule is not None and hasattr(self.schedule, "base_lrs"):
            self.schedule.base_lrs = [rate / 2 for rate in self.schedule.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """Return the state of optimiser and schedule."""
        schedule = None if self.schedule is None else self.schedule.state_dict()
        return {"optimizer": self.optimizer.state_dict(), "schedule": schedule, "slowing": self.rate_factor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a state, which stays untouched."""
        state = copy.deepcopy(state)
        self.optimizer.load_state_dict(state["optimizer"])
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])
        self.rate_factor = state["slowing"]


def epoch_batches(count: int, size: int, seed: int, epoch: int, shown: int | None = None) -> list[NDArray[np.intp]]:
    """Return the rows of each step of an epoch; a last batch below half the size joins the one before.

    Args:
        count: Rows that there are.
        size: Of a batch.
        seed: Of the order.
        epoch: Each has an order of its own.
        shown: Rows of an epoch, where it shows only some.
    """
    order = np.random.default_rng([seed, epoch]).permutation(count)[:shown]
    parts = [order[start : start + size] for start in range(0, len(order), size)]
    if len(parts) > 1 and len(parts[-1]) * 2 < size:
        parts[-2:] = [np.concatenate(parts[-2:])]
    return parts


def accumulate_gradients(
    loss: Callable[[NDArray[np.intp]], Tensor], places: NDArray[np.intp], parts: int
) -> Iterator[float]:
    """Compute gradients of a batch in parts; yield each part's share of the mean loss."""
    for piece in np.array_split(places, min(parts, max(1, len(places) // 2))):
        share = loss(piece) * (len(piece) / len(places))
        value = float(share.detach())
        if np.isfinite(value):
            share.backward()
        yield value


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory could not be had; torch has no class of its own for that on CPUs."""
    text = str(error)
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and ("can't allocate memory" in text or "not enough memory" in text)
    )


def next_accumulation_steps(parts: int, rows: int) -> int:
    """Return 2 after 1.

    Raises:
        CandidateError: It was 2.
    """
    if parts > 1:
        raise CandidateError(
            f"memory ran out with half a batch, {rows // 2} rows, at once",
            remedy="Train with a smaller batch, or fewer workers.",
        )
    return 2


def _adamw(settings: TrainingConfig) -> Callable[[list[nn.Parameter]], Optimizer]:
    """Return AdamW whose groups know their peak rate; only matrices and kernels decay."""

    def make(parameters: list[nn.Parameter]) -> Optimizer:
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for parameter in parameters:
            decays = getattr(parameter, "decays", parameter.squeeze().ndim > 1)
            peak = settings.learning_rate * getattr(parameter, "rate_factor", 1.0)
            groups.setdefault((settings.weight_decay if decays else 0.0, peak), []).append(parameter)
        return AdamW(
            [
                {"params": members, "weight_decay": decay, "lr": peak, "peak": peak}
                for (decay, peak), members in groups.items()
            ],
            foreach=False,
        )

    return make
