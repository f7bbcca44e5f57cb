"""Rounding that gradients pass: learned steps for weights and activations.

Source: learned step size quantization, Esser 2020, arXiv:1902.08153. Steps are learned by their logarithm (Jain
2020, arXiv:1903.08066), so that one learning rate suits steps of every size and none becomes negative.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["BiasGrid", "FakeQuantizer"]


class _Rounded(torch.autograd.Function):
    """Round to whole steps within limits; the gradient passes inside the limits and reaches the step.

    Four passes over the values forward, all but the first in place, and three backward, two of which only read:
    what is kept is the value and the result, which the layers on either side keep anyway.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, step: Tensor, low: int, high: int, factor: float) -> Tensor:
        result = (value * step.reciprocal()).round_().clamp_(low, high).mul_(step)
        ctx.save_for_backward(value, step, result)
        ctx.limits = low - 0.5, high + 0.5, factor  # all that is rounded to an integer within the limits
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        value, step, result = ctx.saved_tensors
        low, high, factor = ctx.limits
        gradient = gradients[0].contiguous()
        if step.numel() > 1:
            passed = gradient * ((value > low * step) & (value < high * step))
            change = (gradient * result - passed * value).sum_to_size(step.shape)
        else:
            one = step.item()
            passed = torch.ops.aten.hardtanh_backward(gradient, value, low * one, high * one)
            # (result - value) / step inside, result / step outside; the difference of the sums is exact enough.
            total = torch.dot(gradient.view(-1), result.reshape(-1)) - torch.dot(
                passed.reshape(-1), value.reshape(-1)
            )
            change = total.reshape(step.shape)
        return passed, change.div_(step).mul_(factor), None, None, None


class FakeQuantizer(nn.Module):
    """Rounds to integers times a learned step; zero stays exact.

    Attributes:
        low: Least integer, counted from the zero point.
        high: Greatest integer, counted from the zero point.
    """

    start: Tensor

    def __init__(self, step: Tensor, low: int, high: int, batched: bool) -> None:
        """Make a quantiser that begins with this step.

        Args:
            step: Positive; one for all values, or one per channel of their first axis, [channels, 1, ...].
            low: Least integer.
            high: Greatest integer.
            batched: Whether the first axis of the values is a batch.
        """
        super().__init__()
        self.register_buffer("start", step.clone())
        self.growth = nn.Parameter(torch.zeros_like(step))
        self.low, self.high, self._batched = low, high, batched

    def step(self) -> Tensor:
        """Return the step now."""
        return self.start * self.growth.exp()

    def forward(self, value: Tensor) -> Tensor:
        """Return the rounded values."""
        count = value.numel() / max(value.shape[0], 1) if self._batched else value.numel() / self.start.numel()
        factor = 1 / math.sqrt(max(count, 1) * max(-self.low, self.high, 1))
        return _Rounded.apply(value, self.step(), self.low, self.high, factor)  # type: ignore[no-any-return, no-untyped-call]

    def quantize(self, value: Tensor) -> Tensor:
        """Return the integers that stand for the values, counted from the zero point."""
        return (value * self.step().reciprocal()).round().clamp(self.low, self.high)


class BiasGrid(nn.Module):
    """Rounds a bias to whole products of the weight's step and the input's step, as integer kernels add it."""

    def __init__(self, weight: FakeQuantizer, source: FakeQuantizer) -> None:
        super().__init__()
        self.weight, self.source = weight, source

    def grid(self) -> Tensor:
        """Return the spacing, one for all or one per output."""
        steps = self.weight.step().detach()
        return (steps.reshape(-1) if steps.ndim else steps) * self.source.step().detach()

    def forward(self, bias: Tensor) -> Tensor:
        """Return the rounded bias."""
        grid = self.grid()
        return bias + ((bias / grid).round() * grid - bias).detach()
