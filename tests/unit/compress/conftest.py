"""Small graphs from text, their answers, and how far two sets of answers are apart."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from edgewright.compress.model.graph import session_bytes

Answers = list[NDArray[Any]]


@pytest.fixture(scope="session")
def built() -> Callable[..., onnx.ModelProto]:
    """Make a model from ONNX's text form; arrays given by name become its initializers."""

    def make(text: str, *, opset: int = 17, contrib: bool = False, **constants: Any) -> onnx.ModelProto:
        domains = f'"" : {opset}' + (', "com.microsoft" : 1' if contrib else "")
        model = onnx.parser.parse_model(f"<ir_version: 8, opset_import: [{domains}]> {text}")
        arrays = {name: np.asarray(value) for name, value in constants.items()}
        model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in arrays.items())
        return model

    return make


@pytest.fixture(scope="session")
def answers() -> Callable[..., Answers]:
    """Run a model on one set of inputs, after the runtime's own optimisation of that level."""

    def run(model: onnx.ModelProto, level: str = "all", **feed: NDArray[Any]) -> Answers:
        return [np.asarray(value) for value in session_bytes(model, level=level).run(None, feed)]

    return run


@pytest.fixture(scope="session")
def decibels() -> Callable[[Answers, Answers], float]:
    """Return the signal to noise ratio of the worst output, dB; infinite for equal answers."""

    def measure(wanted: Answers, given: Answers) -> float:
        worst = float("inf")
        for want, have in zip(wanted, given, strict=True):
            assert want.shape == have.shape
            noise = float(np.square(want.astype(np.float64) - have).sum())
            signal = float(np.square(want.astype(np.float64)).sum())
            if noise > 0:
                worst = min(worst, 10 * np.log10(max(signal, 1e-30) / noise))
        return worst

    return measure


@pytest.fixture(scope="session")
def digits_proto(digits_model: Path) -> onnx.ModelProto:
    return onnx.load(digits_model)


@pytest.fixture(scope="session")
def digits_batch(digits: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    """64 digits."""
    return digits["x"][:64]
