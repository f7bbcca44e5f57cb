"""The peer's script runs in an environment of its own; here it runs where torch and Torch-Pruning happen to be."""

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.datasets import load_digits

torch = pytest.importorskip("torch")
pytest.importorskip("torch_pruning")

PEERS = Path(__file__).resolve().parents[3] / "benchmarks" / "peers"


@pytest.fixture
def peer(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(PEERS))
    return importlib.import_module("torch_pruning_u8s8")


def windows() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Handwritten digits as windows of 64 moments and 6 channels, all alike."""
    images, labels = load_digits(return_X_y=True)
    x = np.repeat((images / 16).astype(np.float32)[:, :, None], 6, axis=2)
    return x, labels.astype(np.int64)


@pytest.mark.parametrize(
    ("network", "shape"),
    [("residual-full", (1, 28, 28)), ("residual-sound", (1, 49, 40)), ("residual-windows", (64, 6))],
)
def test_every_layer_loses_half_of_its_channels_and_the_answer_keeps_its_form(
    peer: ModuleType, network: str, shape: tuple[int, ...]
) -> None:
    teacher = peer.train.NETWORKS[network][0](10).eval()
    sample = torch.zeros(2, *shape)
    student = peer.pruned(teacher, sample[:1])
    before, after = (
        [layer.out_channels for layer in each.modules() if hasattr(layer, "out_channels")]
        for each in (teacher, student)
    )
    assert after == [channels // 2 for channels in before]
    assert student(sample).shape == (2, 10)


def test_a_student_that_answers_as_its_teacher_has_only_the_labels_to_learn_from(peer: ModuleType) -> None:
    logits = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, 1.0]])
    labels = torch.tensor([0, 1])
    loss = peer.distillation(logits, logits, labels)
    assert float(loss) == pytest.approx(0.1 * float(torch.nn.functional.cross_entropy(logits, labels)), abs=1e-6)


@pytest.mark.slow
def test_it_leaves_a_quantised_model_when_the_time_is_over(peer: ModuleType, tmp_path: Path) -> None:
    x, y = windows()
    np.savez(tmp_path / "train.npz", x=x[:1500], y=y[:1500])
    np.savez(tmp_path / "calibration.npz", x=x[1500:1532, None])
    torch.manual_seed(0)
    torch.save(peer.train.NETWORKS["residual-windows"][0](10).state_dict(), tmp_path / "teacher.pt")
    files = [tmp_path / name for name in ("none.onnx", "calibration.npz", "out.onnx", "teacher.pt", "train.npz")]
    command = [sys.executable, str(PEERS / "torch_pruning_u8s8.py"), "residual-windows", *map(str, files), "8", "0"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
    assert b"QuantizeLinear" in (tmp_path / "out.onnx").read_bytes()
