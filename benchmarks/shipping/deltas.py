"""How large the difference between two versions of a model is: of its head, of all weights a little, fine-tuned.

A convolutional network of 150,000 weights, trained on scikit-learn's digits, in float and in 8 bit with the scales
of its first version. Fine-tuned pairs saw other digits.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from sklearn.datasets import load_digits

from edgewright.trust.delta import CODECS, smallest_delta

__all__ = ["Pair", "pairs"]


@dataclass(frozen=True, slots=True)
class Pair:
    """One pair of versions.

    Attributes:
        name: What changed.
        full: Bytes of the new file.
        delta: Bytes of the smallest delta.
        codec: Its codec.
        each: Bytes by codec, of those that can say it.
    """

    name: str
    full: int
    delta: int
    codec: str
    each: dict[str, int]


def pairs(*, epochs: int = 20) -> list[Pair]:
    """Return the pairs, smallest change first."""
    torch.manual_seed(0)
    digits = load_digits()
    samples = torch.tensor(digits.images[:, None] / 16.0, dtype=torch.float32)
    labels = torch.tensor(digits.target)
    network = _network()
    _fit(network, samples[:1000], labels[:1000], epochs, 1e-3, list(network.parameters()))
    with tempfile.TemporaryDirectory() as folder:
        base = _exported(network, samples, Path(folder))
        eight = _eight_bit(base, samples[:200].numpy(), Path(folder))
        head = {name: value.clone() for name, value in network.state_dict().items()}
        _fit(network, samples[1000:], labels[1000:], 3, 1e-3, list(network[-1].parameters()))
        of_head = _exported(network, samples, Path(folder))
        network.load_state_dict(head)
        _fit(network, samples[1000:], labels[1000:], 3, 1e-4, list(network.parameters()))
        of_all = _exported(network, samples, Path(folder))
    moved = _moved(eight, 0.01)
    changes = {
        "int8, head fine-tuned": (eight, _requantized(eight, of_head)),
        "int8, all weights moved by 1 %": (eight, moved),
        "int8, all fine-tuned": (eight, _requantized(eight, of_all)),
        "float, head fine-tuned": (base, of_head),
        "float, all fine-tuned": (base, of_all),
    }
    return [_pair(name, old.SerializeToString(), new.SerializeToString()) for name, (old, new) in changes.items()]


def _pair(name: str, old: bytes, new: bytes) -> Pair:
    made = smallest_delta(old, new, below=len(new))
    each = {codec: encode(old, new) for codec, (encode, _) in CODECS.items()}
    sizes: dict[str, int] = {codec: len(delta) for codec, delta in each.items() if delta is not None}
    codec, size = ("whole", len(new)) if made is None else (made[0], len(made[1]))
    return Pair(name, len(new), size, codec, sizes)


def _network() -> torch.nn.Sequential:
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 32, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(32, 64, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(1024, 128),
        torch.nn.ReLU(),
        torch.nn.Linear(128, 10),
    )


def _fit(
    network: torch.nn.Sequential,
    samples: torch.Tensor,
    labels: torch.Tensor,
    epochs: int,
    rate: float,
    parameters: list[torch.nn.Parameter],
) -> None:
    optimiser = torch.optim.AdamW(parameters, lr=rate)
    for _ in range(epochs):
        for rows in torch.randperm(len(samples)).split(64):
            optimiser.zero_grad()
            loss = torch.nn.functional.cross_entropy(network(samples[rows]), labels[rows])
            loss.backward()
            optimiser.step()


def _exported(network: torch.nn.Sequential, samples: torch.Tensor, folder: Path) -> onnx.ModelProto:
    path = folder / "network.onnx"
    torch.onnx.export(network, (samples[:1],), str(path), dynamo=False, input_names=["x"], output_names=["y"])
    return onnx.load(path)


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, samples: NDArray[Any]) -> None:
        self._feeds = iter({"x": samples[number : number + 1]} for number in range(len(samples)))

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """Return the next feed, None at the end."""
        return next(self._feeds, None)


def _eight_bit(model: onnx.ModelProto, samples: NDArray[Any], folder: Path) -> onnx.ModelProto:
    source, target = folder / "float.onnx", folder / "int8.onnx"
    onnx.save(model, source)
    quantize_static(
        source,
        target,
        _Reader(samples),
        quant_format=QuantFormat.QDQ,
        weight_type=QuantType.QInt8,
        activation_type=QuantType.QUInt8,
        per_channel=True,
    )
    return onnx.load(target)


def _requantized(eight: onnx.ModelProto, model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the 8-bit model with other float weights, at the scales that it has."""
    made = onnx.ModelProto()
    made.CopyFrom(eight)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    held = {tensor.name: tensor for tensor in made.graph.initializer}
    for name, tensor in held.items():
        source = name.removesuffix("_quantized")
        if source == name or source not in weights:
            continue
        scale = numpy_helper.to_array(held[f"{source}_scale" if f"{source}_scale" in held else f"{name}_scale"])
        values, old = weights[source], numpy_helper.to_array(tensor)
        if scale.size > 1:
            axis = next(a for a, size in enumerate(values.shape) if size == scale.size)
            scale = scale.reshape([-1 if a == axis else 1 for a in range(values.ndim)])
        limits = np.iinfo(old.dtype)
        rounded = np.clip(np.rint(values / scale), limits.min, limits.max).astype(old.dtype)
        tensor.CopyFrom(numpy_helper.from_array(rounded, name))
    return made


def _moved(eight: onnx.ModelProto, share: float) -> onnx.ModelProto:
    """Return the 8-bit model with each weight moved by a share of its layer's spread, rounded at random.

    So the change of a weight is of that size on the average, as after a step of training, and not lost in rounding.
    """
    random = np.random.default_rng(0)
    made = onnx.ModelProto()
    made.CopyFrom(eight)
    for tensor in made.graph.initializer:
        old = numpy_helper.to_array(tensor)
        if old.dtype == np.int8 and old.size > 100:
            moved = old + random.normal(size=old.shape) * share * old.astype(np.float64).std()
            rounded = np.floor(moved + random.random(old.shape))
            tensor.CopyFrom(numpy_helper.from_array(np.clip(rounded, -128, 127).astype(np.int8), tensor.name))
    return made
