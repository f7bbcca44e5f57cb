"""Train one of the benchmark's networks and export it to ONNX.

Runs in the environment of requirements-train.txt: python train.py NETWORK TRAIN.npz OUT.onnx SEED

TRAIN.npz holds x (float32, as the network takes it) and y (integers). The exported network takes any batch and
gives logits. Its weights are also kept as torch has them, in OUT.pt, for a peer that trains further. Kept out of
the type checker's way, since it runs where Edgewright does not.
"""

import sys
import time
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn
from torch.nn import functional


class Residual(nn.Module):
    """Two convolutions around a shortcut, as in ResNet (He et al. 2015, arXiv:1512.03385)."""

    def __init__(self, inside, outside, stride, convolution=nn.Conv2d, norm=nn.BatchNorm2d):
        super().__init__()
        self.first = convolution(inside, outside, 3, stride, 1, bias=False)
        self.first_norm = norm(outside)
        self.second = convolution(outside, outside, 3, 1, 1, bias=False)
        self.second_norm = norm(outside)
        self.shortcut = nn.Identity() if stride == 1 else convolution(inside, outside, 1, stride)

    def forward(self, x):
        """Give the block's answer."""
        y = functional.relu(self.first_norm(self.first(x)))
        return functional.relu(self.second_norm(self.second(y)) + self.shortcut(x))


class TimeLast(nn.Module):
    """From [batch, time, channels], as sensors write, to [batch, channels, time]."""

    def forward(self, x):
        """Give the same numbers, time last."""
        return x.transpose(1, 2)


def residual(classes, stride=2):
    """ResNet8 of MLPerf Tiny, 1.5 times as wide, its first convolution strided: 175,000 weights."""
    return nn.Sequential(
        nn.Conv2d(1, 24, 3, stride, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU(),
        Residual(24, 24, 1), Residual(24, 48, 2), Residual(48, 96, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, classes),
    )  # fmt: skip


def residual_full(classes):
    """The same at full resolution, as ResNet8 is: four times the work."""
    return residual(classes, stride=1)


def residual_windows(classes):
    """Residual network over time on windows of 64 x 6: 227,000 weights."""
    one = (nn.Conv1d, nn.BatchNorm1d)
    return nn.Sequential(
        TimeLast(), nn.Conv1d(6, 64, 5, 1, 2, bias=False), nn.BatchNorm1d(64), nn.ReLU(),
        Residual(64, 64, 1, *one), Residual(64, 128, 2, *one), Residual(128, 128, 2, *one),
        nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Dropout(0.3), nn.Linear(128, classes),
    )  # fmt: skip


def separable(classes):
    """DS-CNN of MLPerf Tiny's keyword spotting (Zhang et al. 2017, arXiv:1711.07128): 24,000 weights."""
    layers = [nn.Conv2d(1, 64, (10, 4), 2, (5, 1), bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.Dropout(0.2)]
    for _ in range(4):
        layers += [nn.Conv2d(64, 64, 3, 1, 1, groups=64, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
        layers += [nn.Conv2d(64, 64, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    return nn.Sequential(*layers, nn.Dropout(0.4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))


def matrix(classes):
    """Perceptron on a flattened window of 64 x 6: 1.5 million weights, all in matrices."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(384, 1024), nn.ReLU(), nn.Dropout(0.5),
        nn.Linear(1024, 1024), nn.ReLU(), nn.Dropout(0.5),
        nn.Linear(1024, classes),
    )  # fmt: skip


def shifted_images(x, generator):
    """Mirror half of the images and move each by up to two pixels."""
    mirrored = torch.rand(len(x), generator=generator) < 0.5
    x = torch.where(mirrored[:, None, None, None], x.flip(-1), x)
    down, right = torch.randint(0, 5, (2,), generator=generator).tolist()
    return functional.pad(x, (2, 2, 2, 2), value=x.min().item())[..., down : down + 28, right : right + 28]


def shifted_sound(x, generator):
    """Move a recording in time by up to five frames, change its loudness, and hide a few bands or frames."""
    frames = int(torch.randint(-5, 6, (1,), generator=generator))
    x = x.roll(frames, 2) + 0.3 * torch.randn(len(x), 1, 1, 1, generator=generator)
    start = int(torch.randint(0, 36, (1,), generator=generator))
    x[:, :, :, start : start + int(torch.randint(0, 5, (1,), generator=generator))] = x.mean()
    start = int(torch.randint(0, 44, (1,), generator=generator))
    x[:, :, start : start + int(torch.randint(0, 6, (1,), generator=generator))] = x.mean()
    return x


def worn_otherwise(x, generator):
    """Begin a window elsewhere in its cycle, scale and jitter it."""
    x = x.roll(int(torch.randint(0, 64, (1,), generator=generator)), 1)
    scale = 1 + 0.15 * torch.randn(len(x), 1, x.shape[2], generator=generator)
    return x * scale + 0.1 * torch.randn(x.shape, generator=generator)


# Network: constructor, augmentation, epochs, batch, learning rate, weight decay.
NETWORKS = {
    "residual": (residual, shifted_images, 14, 128, 4e-3, 2e-2),
    "separable": (separable, shifted_sound, 60, 64, 4e-3, 2e-2),
    "matrix": (matrix, worn_otherwise, 40, 128, 1e-3, 5e-2),
    "residual-full": (residual_full, shifted_images, 10, 128, 4e-3, 2e-2),
    "residual-sound": (residual, shifted_sound, 60, 64, 4e-3, 2e-2),
    "residual-windows": (residual_windows, worn_otherwise, 30, 128, 4e-3, 5e-2),
}


def train(network, x, y, seed, epochs=None):
    """Fit one network with AdamW on a one-cycle schedule; returns it in evaluation mode."""
    construct, augment, default_epochs, batch, rate, decay = NETWORKS[network]
    epochs = epochs or default_epochs
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = construct(int(y.max()) + 1).to(memory_format=torch.channels_last)
    steps = epochs * (len(x) // batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.15)
    began = time.monotonic()
    for epoch in range(epochs):
        order = torch.randperm(len(x), generator=generator)
        model.train()
        total = 0.0
        for at in range(0, len(x) - batch + 1, batch):
            rows = order[at : at + batch]
            given = augment(x[rows].clone(), generator)
            if given.ndim == 4:
                given = given.contiguous(memory_format=torch.channels_last)
            loss = functional.cross_entropy(model(given), y[rows], label_smoothing=0.05)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss)
        spent = time.monotonic() - began
        print(
            f"{network} epoch {epoch + 1}/{epochs} loss {total * batch / len(x):.3f} {spent:.0f}s", file=sys.stderr
        )
    return model.eval().to(memory_format=torch.contiguous_format)


def export(model, sample, path):
    """Write the network with a free batch axis, its weights inside the file."""
    program = torch.onnx.export(
        model,
        (sample,),
        dynamo=True,
        opset_version=20,
        input_names=["x"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        verbose=False,
    )
    onnx.save(without_notes(program.model_proto), path)


def without_notes(proto):
    """Remove what the exporter notes about Python sources, so that no tool looks better for dropping it.

    Declared shapes of weights go too: onnxruntime's dynamic quantiser transposes weights and trips over them.
    """
    weights = {tensor.name for tensor in proto.graph.initializer}
    declared = [value for value in proto.graph.value_info if value.name not in weights]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(declared)
    del proto.metadata_props[:]
    del proto.graph.metadata_props[:]
    for item in (*proto.graph.node, *proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        del item.metadata_props[:]
        item.doc_string = ""
    for tensor in proto.graph.initializer:
        del tensor.metadata_props[:]
    return proto


def main():
    """Read, train, export."""
    network, source, out, seed = sys.argv[1:5]
    torch.set_num_threads(1)
    with np.load(source, allow_pickle=False) as arrays:
        x, y = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"].astype(np.int64))
    model = train(network, x, y, int(seed))
    with torch.no_grad():
        hits = torch.cat([model(part).argmax(1) for part in x.split(1000)]) == y
    print(f"{network}: {sum(p.numel() for p in model.parameters())} weights, "
          f"{float(hits.float().mean()):.4f} on its training data", file=sys.stderr)  # fmt: skip
    torch.save(model.state_dict(), Path(out).with_suffix(".pt"))
    export(model, x[:2], out)


if __name__ == "__main__":
    main()
