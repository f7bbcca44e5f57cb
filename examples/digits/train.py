"""How `model.onnx` was made: a small residual network on scikit-learn's digits, exported by PyTorch.

Run with PyTorch 2.13, onnx and onnxscript installed: `python examples/digits/train.py`. The demo uses the
result as it lies here, so nobody needs PyTorch to try Edgewright.
"""

from pathlib import Path

import numpy as np
import torch
from data import TRAINING_SAMPLES, shuffled_digits  # type: ignore[import-not-found] # beside this script
from torch import nn

HERE = Path(__file__).parent


class Block(nn.Module):  # type: ignore[misc, unused-ignore] # torch is not installed where this is checked
    """Two convolutions with batch normalisation and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)])
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 or inputs != outputs else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [n, inputs, h, w] to [n, outputs, h / stride, w / stride]."""
        y = torch.relu(self.norms[0](self.first(x)))
        return torch.relu(self.norms[1](self.second(y)) + self.shortcut(x))


def network() -> nn.Module:
    """Return the network: [n, 1, 8, 8] of 0 to 1 in, ten logits out."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, 1, 1),
        nn.ReLU(),
        Block(32, 32, 1),
        Block(32, 64, 2),
        Block(64, 64, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


def main() -> None:
    """Train on the first part of the shuffled digits and export."""
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    x, y = shuffled_digits()
    train_x, train_y = torch.tensor(x[:TRAINING_SAMPLES]), torch.tensor(y[:TRAINING_SAMPLES])
    model = network()
    epochs = 120
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for part in torch.randperm(len(train_x)).split(64):
            batch = train_x[part]
            shift = tuple(int(v) for v in random.integers(-1, 2, 2))
            batch = torch.roll(batch, shift, dims=(2, 3)) + 0.05 * torch.randn_like(batch)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(batch), train_y[part], label_smoothing=0.05).backward()
            optimizer.step()
        schedule.step()
    model.eval()
    held_x, held_y = torch.tensor(x[TRAINING_SAMPLES:]), torch.tensor(y[TRAINING_SAMPLES:])
    print("accuracy on unseen digits:", float((model(held_x).argmax(1) == held_y).float().mean()))
    torch.onnx.export(
        model,
        (held_x[:2],),
        HERE / "model.onnx",
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        external_data=False,
    )


if __name__ == "__main__":
    main()
