"""The example of handwritten digits: a real trained model and the samples that it never saw."""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray

DIGITS = Path(__file__).parents[2] / "examples" / "digits"


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"digits_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def digits_model() -> Path:
    """The trained network: ten convolutions with residual sums and one dense layer."""
    return DIGITS / "model.onnx"


@pytest.fixture(scope="session")
def digits() -> dict[str, NDArray[np.generic]]:
    """The 1,200 samples `x` and labels `y`."""
    held_out: dict[str, NDArray[np.generic]] = _module(DIGITS / "data.py").held_out()
    return held_out


@pytest.fixture(scope="session")
def digits_npz(tmp_path_factory: pytest.TempPathFactory, digits: dict[str, NDArray[np.generic]]) -> Path:
    """The same as a file."""
    path = tmp_path_factory.mktemp("digits") / "digits.npz"
    np.savez(path, **digits)  # type: ignore[arg-type]
    return path
