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

from edgewright.compress.train.config import Training, rate_share
from edgewright.compress.train.custom_recipe import OwnRecipe
from edgewright.contract.errors import CandidateError

__all__ = ["Stepper", "accumulate", "batches", "is_out_of_memory", "more_parts"]


@dataclass(slots=True)
class Stepper:
    """Optimiser and schedule of the parameters that are trained.

    Attributes:
        parameters: Of the network, and of what is trained beside it.
        settings: Of the training.
        steps: Planned.
        own: The user's optimiser and schedule, where given.
        optimizer: Set at the start.
        schedule: The user's; the usual one has no state.
        slowing: Factor on the rate, halved after each failure.
    """

    parameters: list[nn.Parameter]
    settings: Training
    steps: int
    own: OwnRecipe
    optimizer: Optimizer
    schedule: Any
    slowing: float = 1.0

    @staticmethod
    def of(parameters: list[nn.Parameter], settings: Training, steps: int, own: OwnRecipe) -> "Stepper":
        """Return a stepper at its start."""
        optimizer = (own.optimizer or _adamw(settings))(parameters)
        schedule = None if own.schedule is None else own.schedule(optimizer, steps)
        return Stepper(parameters, settings, steps, own, optimizer, schedule)

    @property
    def rate(self) -> float:
        """Learning rate of the first group."""
        return float(self.optimizer.param_groups[0]["lr"])

    def take(self, step: int) -> bool:
        """Clip the gradients and step; return False where they are not finite, and change nothing."""
        norm = nn.utils.clip_grad_norm_(self.parameters, self.settings.clip)
        if not bool(torch.isfinite(norm)):
            return False
        if self.schedule is None and "peak" in self.optimizer.param_groups[0]:
            share = rate_share(step, self.steps, self.settings.warmup)
            for group in self.optimizer.param_groups:
                group["lr"] = group["peak"] * share * self.slowing
        self.optimizer.step()
        if self.schedule is not None:
            self.schedule.step()
        return True

    def slow_down(self) -> None:
        """Halve the rate from here on."""
        self.slowing /= 2
        for group in self.optimizer.param_groups:
            group["lr"] /= 2
        if self.schedule is not None and hasattr(self.schedule, "base_lrs"):
            self.schedule.base_lrs = [rate / 2 for rate in self.schedule.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """Return the state of optimiser and schedule."""
        schedule = None if self.schedule is None else self.schedule.state_dict()
        return {"optimizer": self.optimizer.state_dict(), "schedule": schedule, "slowing": self.slowing}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a state, which stays untouched."""
        state = copy.deepcopy(state)
        self.optimizer.load_state_dict(state["optimizer"])
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])
        self.slowing = state["slowing"]


def batches(count: int, size: int, seed: int, epoch: int, shown: int | None = None) -> list[NDArray[np.intp]]:
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


def accumulate(loss: Callable[[NDArray[np.intp]], Tensor], places: NDArray[np.intp], parts: int) -> Iterator[float]:
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


def more_parts(parts: int, rows: int) -> int:
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


def _adamw(settings: Training) -> Callable[[list[nn.Parameter]], Optimizer]:
    """Return AdamW whose groups know their peak rate; only matrices and kernels decay."""

    def make(parameters: list[nn.Parameter]) -> Optimizer:
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for parameter in parameters:
            decays = getattr(parameter, "decays", parameter.squeeze().ndim > 1)
            peak = settings.rate * getattr(parameter, "rate_factor", 1.0)
            groups.setdefault((settings.weight_decay if decays else 0.0, peak), []).append(parameter)
        return AdamW(
            [
                {"params": members, "weight_decay": decay, "lr": peak, "peak": peak}
                for (decay, peak), members in groups.items()
            ],
            foreach=False,
        )

    return make
