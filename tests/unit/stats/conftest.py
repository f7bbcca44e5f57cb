"""Answers of the real network for digits to digits that it never saw, and to shifted ones."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray


@pytest.fixture(scope="session")
def digit_logits(digits_model: Path, digits: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Logits of 1,200 digits `clean` and, with noise on the pixels, `noisy` and `noisier`; labels `y`."""
    session = ort.InferenceSession(str(digits_model), providers=["CPUExecutionProvider"])
    noise = np.random.default_rng(0).normal(0, 1, digits["x"].shape).astype(np.float32)
    spreads = {"clean": 0.0, "noisy": 0.25, "noisier": 0.35}
    found = {
        name: session.run(None, {"image": digits["x"] + spread * noise})[0] for name, spread in spreads.items()
    }
    return found | {"y": digits["y"]}
