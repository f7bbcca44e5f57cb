"""The example of handwritten digits, a real trained model with samples that it never saw; disks that fail."""

import importlib.util
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray

# A shell that starts the tests in the background has them ignore Ctrl-C, and so would what they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

DIGITS = Path(__file__).parents[2] / "examples" / "digits"


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"digits_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state folder with a signed repository, a release, a rollout of it and the online key."""
    from tests.unit.server.live_server import make_ground

    path = tmp_path_factory.mktemp("ground") / "state"
    path.mkdir(mode=0o700)
    make_ground(path)
    return path


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
def digits_training() -> dict[str, NDArray[np.generic]]:
    """The 597 samples `x` and labels `y` that the network was trained on."""
    training: dict[str, NDArray[np.generic]] = _module(DIGITS / "data.py").training()
    return training


@pytest.fixture(scope="session")
def digits_npz(tmp_path_factory: pytest.TempPathFactory, digits: dict[str, NDArray[np.generic]]) -> Path:
    """The same as a file."""
    path = tmp_path_factory.mktemp("digits") / "digits.npz"
    np.savez(path, **digits)  # type: ignore[arg-type]
    return path


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KB."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def unwritable(tmp_path: Path) -> Path:
    """A folder that cannot be written, not even by root: the kernel's own."""
    if os.geteuid() == 0:
        return Path("/proc/edgewright")
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o500)
    return folder / "out"
