"""Training learns, repeats itself bit by bit, survives being killed, and gives up with a reason."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from edgewright.compress.data.dataset import Dataset
from edgewright.compress.train.config import TrainingConfig, default_training_config
from edgewright.compress.train.custom_recipe import CustomRecipe, load_recipe
from edgewright.compress.train.data.training_data import TrainingData, make_training_data
from edgewright.compress.train.loop.trainer import FitResult, fit_network
from edgewright.contract.errors import CandidateError, InputError

SETTINGS = TrainingConfig(epochs=5, batch=64, augmentations=("shift", "light"), early_stopping_patience=0)


class Small(nn.Module):
    """A small convolutional network with dropout; `fail_at` counts its training batches."""

    def __init__(self, fail_at: int = 0, error: Exception | None = None, poison: tuple[int, ...] = ()) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.1)
        )
        self.head = nn.Linear(128, 10)
        self.fail_at, self.error, self.poison, self.seen = fail_at, error, poison, 0

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        self.seen += self.training
        if self.error is not None and self.training and self.seen == self.fail_at:
            raise self.error
        scores = self.head(self.body(x))
        return (scores * float("nan") if self.training and self.seen in self.poison else scores,)


def make_lessons(rows: int = 700) -> TrainingData:
    data = load_digits()
    x = (data.images[:rows] / 16).astype(np.float32)[:, None, None]
    dataset = Dataset({"x": x}, data.target[:rows].astype(np.int64), None, "classification", "")
    return make_training_data(dataset, seed=0)


@pytest.fixture(scope="module")
def lessons() -> TrainingData:
    torch.set_num_threads(1)
    return make_lessons()


def weights_of(network: nn.Module) -> bytes:
    return b"".join(tensor.numpy().tobytes() for tensor in network.state_dict().values())


@pytest.fixture(scope="module")
def uninterrupted(lessons: TrainingData) -> tuple[bytes, FitResult]:
    network = Small()
    result = fit_network(network, lessons, SETTINGS, seed=1)
    return weights_of(network), result


def test_digits_are_learned_and_the_best_epoch_is_kept(
    lessons: TrainingData, uninterrupted: tuple[bytes, FitResult]
) -> None:
    _, result = uninterrupted
    assert [point.epoch for point in result.curve] == [0, 1, 2, 3, 4, 5]
    best = max(point.validation_metric for point in result.curve)
    chance = np.sqrt(best * (1 - best) / len(lessons.validation))
    assert result.curve[result.best_epoch].validation_metric >= best - chance > 0.8
    assert result.best_epoch == 5  # at the lowest rate, and as good as the best but for chance
    assert result.curve[0].train_loss is None
    assert result.finished


def test_the_weights_left_are_those_of_the_best_epoch(lessons: TrainingData) -> None:
    network = Small()
    result = fit_network(
        network, lessons, TrainingConfig(epochs=4, batch=64, learning_rate=0.5, max_gradient_norm=1e9), seed=1
    )
    rows = torch.from_numpy(lessons.inputs[0][lessons.validation])
    assert lessons.labels is not None
    right = (network(rows)[0].argmax(1).numpy() == lessons.labels[lessons.validation]).mean()
    assert right == pytest.approx(result.curve[result.best_epoch].validation_metric)
    assert not network.training


def test_the_same_seed_gives_the_same_bytes_and_another_others(
    lessons: TrainingData, uninterrupted: tuple[bytes, FitResult]
) -> None:
    again, other = Small(), Small()
    fit_network(again, lessons, SETTINGS, seed=1)
    fit_network(other, lessons, SETTINGS, seed=2)
    assert weights_of(again) == uninterrupted[0] != weights_of(other)


def test_torchs_own_generator_is_left_alone(lessons: TrainingData) -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    network = Small()
    torch.manual_seed(5)
    fit_network(network, lessons, TrainingConfig(epochs=1), seed=1)
    assert torch.equal(torch.rand(3), wanted)


@pytest.mark.parametrize("fail_at", [3, 10, 23, 41])
def test_a_training_broken_by_an_error_goes_on_to_the_same_bytes(
    lessons: TrainingData, uninterrupted: tuple[bytes, FitResult], tmp_path: Path, fail_at: int
) -> None:
    checkpoint = tmp_path / "state.pt"
    broken = Small(fail_at, RuntimeError("boom"))
    with pytest.raises(RuntimeError, match="boom"):
        fit_network(broken, lessons, SETTINGS, seed=1, checkpoint=checkpoint, save_interval_seconds=0)
    assert checkpoint.exists()
    network = Small()
    result = fit_network(network, lessons, SETTINGS, seed=1, checkpoint=checkpoint, save_interval_seconds=0)
    assert network.seen < 50 - fail_at + 2
    assert weights_of(network) == uninterrupted[0]
    same = [(p.epoch, p.train_loss, p.validation_loss, p.learning_rate) for p in result.curve]
    assert same == [(p.epoch, p.train_loss, p.validation_loss, p.learning_rate) for p in uninterrupted[1].curve]


_KILLED = """
import sys, time, torch
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from test_trainer import SETTINGS, Small, fit_network, make_lessons
torch.set_num_threads(1)
def tell(share, point):
    if share > 0.3:
        print("far", flush=True)
        time.sleep(60)
into = Path(sys.argv[2])
fit_network(Small(), make_lessons(), SETTINGS, seed=1, checkpoint=into, save_interval_seconds=0, report_progress=tell)
"""


def test_a_killed_training_goes_on_to_the_same_bytes(
    lessons: TrainingData, uninterrupted: tuple[bytes, FitResult], tmp_path: Path
) -> None:
    checkpoint = tmp_path / "state.pt"
    command = [sys.executable, "-c", _KILLED, str(Path(__file__).parent), str(checkpoint)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"}) as process:
        assert process.stdout is not None
        while not checkpoint.exists() or checkpoint.stat().st_size == 0:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    network = Small()
    fit_network(network, lessons, SETTINGS, seed=1, checkpoint=checkpoint)
    assert network.seen < 50
    assert weights_of(network) == uninterrupted[0]


def test_the_checkpoint_of_another_training_or_a_torn_one_is_not_used(
    lessons: TrainingData, uninterrupted: tuple[bytes, FitResult], tmp_path: Path
) -> None:
    checkpoint = tmp_path / "state.pt"
    fit_network(Small(), lessons, SETTINGS, seed=2, checkpoint=checkpoint, save_interval_seconds=0)
    for content in (checkpoint.read_bytes(), checkpoint.read_bytes()[:1000], b""):
        checkpoint.write_bytes(content)
        network = Small()
        fit_network(network, lessons, SETTINGS, seed=1, checkpoint=checkpoint, save_interval_seconds=100)
        assert weights_of(network) == uninterrupted[0]


def test_infinite_losses_take_the_training_back_at_half_the_rate(lessons: TrainingData) -> None:
    network = Small(poison=(14, 31))
    result = fit_network(network, lessons, SETTINGS, seed=1)
    noted = [point for point in result.curve if "not finite" in point.note]
    assert len(noted) == 2
    assert np.isfinite(weights_floats(network)).all()
    assert result.curve[3].learning_rate < 0.3 * SETTINGS.learning_rate
    assert result.curve[-1].validation_metric > 0.5


def weights_floats(network: nn.Module) -> Any:
    return np.concatenate([p.detach().numpy().reshape(-1) for p in network.parameters()])


def test_losses_that_stay_infinite_are_given_up_with_a_reason(lessons: TrainingData) -> None:
    with pytest.raises(CandidateError, match=r"not finite 4 times, at last in epoch 1.*smaller rate"):
        fit_network(Small(poison=tuple(range(1, 1000))), lessons, SETTINGS, seed=1)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: x")])
def test_a_batch_that_does_not_fit_in_memory_is_halved_once(lessons: TrainingData, error: Exception) -> None:
    network = Small(5, error)
    result = fit_network(network, lessons, SETTINGS, seed=1)
    assert "two parts" in result.curve[1].note
    assert result.curve[-1].validation_metric > 0.8


def test_halves_that_do_not_fit_in_memory_fail_with_a_reason(lessons: TrainingData) -> None:
    class Full(Small):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            if self.training:
                raise MemoryError
            return super().forward(x)

    with pytest.raises(CandidateError, match="half a batch, 32 rows"):
        fit_network(Full(), lessons, SETTINGS, seed=1)


def test_both_halves_together_give_the_gradient_of_the_whole(lessons: TrainingData) -> None:
    from edgewright.compress.train.loop.optimizer_step import accumulate_gradients

    layer = nn.Linear(64, 10)
    rows = torch.from_numpy(lessons.inputs[0]).flatten(1)
    labels = torch.from_numpy(np.asarray(lessons.labels))
    gradients = []
    for parts in (1, 2):
        layer.zero_grad()
        loss = sum(
            accumulate_gradients(
                lambda at: nn.functional.cross_entropy(layer(rows[at]), labels[at]), np.arange(33), parts
            )
        )
        assert layer.weight.grad is not None
        gradients.append((loss, layer.weight.grad.clone()))
    assert gradients[0][0] == pytest.approx(gradients[1][0], rel=1e-5)
    torch.testing.assert_close(gradients[0][1], gradients[1][1])


def test_a_deadline_ends_with_the_best_state_so_far(lessons: TrainingData) -> None:
    network = Small()
    result = fit_network(
        network,
        lessons,
        TrainingConfig(epochs=100_000, early_stopping_patience=0),
        seed=1,
        deadline=time.monotonic() + 1,
    )
    assert not result.finished
    assert result.seconds < 10
    assert "deadline" in result.curve[-1].note


def test_training_ends_early_when_validation_gets_no_better(lessons: TrainingData) -> None:
    result = fit_network(
        Small(),
        lessons,
        TrainingConfig(epochs=100, learning_rate=1e-2, early_stopping_patience=5, warmup_fraction=0.0),
        seed=1,
    )
    assert 50 < len(result.curve) < 90


def test_patience_does_not_begin_before_the_rate_has_fallen(lessons: TrainingData) -> None:
    settings = TrainingConfig(epochs=10, learning_rate=1e-9, early_stopping_patience=1)
    assert 7 <= len(fit_network(Small(), lessons, settings, seed=1).curve) <= 8


def test_what_is_held_is_held_after_every_step(lessons: TrainingData) -> None:
    network = Small()
    mask = torch.rand(network.head.weight.shape) < 0.5

    def hold() -> None:
        with torch.no_grad():
            network.head.weight[mask] = 0

    fit_network(network, lessons, TrainingConfig(epochs=2), seed=1, reapply_zeros=hold)
    assert bool((network.head.weight[mask] == 0).all())


def test_progress_is_told(lessons: TrainingData) -> None:
    told: list[float] = []
    fit_network(
        Small(), lessons, TrainingConfig(epochs=2), seed=1, report_progress=lambda share, _point: told.append(share)
    )
    assert told
    assert all(0 < share <= 1 for share in told)


def test_labels_of_one_input_train_regression_flags_and_reconstruction() -> None:
    data = load_digits()
    x = (data.images[:400] / 16).astype(np.float32).reshape(400, 1, 64)
    sums = x.reshape(400, 64)[:, :3] * 100 + x.reshape(400, 64).mean(1, keepdims=True) * 1000
    flags = (x.reshape(400, 64)[:, [10, 20, 30]] > 0.5).astype(np.int64)
    for task, labels, size in (("regression", sums, 3), ("multilabel", flags, 3), ("reconstruction", None, 64)):
        torch.manual_seed(0)
        network = Tupled(nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, size)))
        result = fit_network(
            network,
            make_training_data(Dataset({"x": x}, labels, None, task, ""), seed=0),  # type: ignore[arg-type]
            TABLE,
            seed=0,
        )
        assert result.curve[result.best_epoch].validation_metric > max(0.5, result.curve[0].validation_metric)


TABLE = TrainingConfig(epochs=30, batch=32, learning_rate=1e-2)


class Tupled(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.body(x),)


def test_a_network_that_ends_in_probabilities_learns_like_one_that_ends_in_scores(lessons: TrainingData) -> None:
    curves = []
    for ending in (nn.Identity(), nn.Softmax(dim=1)):
        torch.manual_seed(0)
        network = Tupled(nn.Sequential(nn.Flatten(), nn.Linear(64, 10), ending))
        curves.append(fit_network(network, lessons, SETTINGS, seed=1).curve)
    for scores, chances in zip(*curves, strict=True):
        assert scores.validation_loss == pytest.approx(chances.validation_loss, rel=1e-3)


def test_the_users_recipe_is_used(lessons: TrainingData) -> None:
    used: list[str] = []

    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        used.append("loss")
        return nn.functional.cross_entropy(outputs, labels)

    def augment(batch: Tensor, generator: torch.Generator) -> Tensor:
        return batch + 0.01 * torch.randn(batch.shape, generator=generator)

    def schedule(optimizer: torch.optim.Optimizer, steps: int) -> Any:
        used.append(f"{steps} steps")
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=steps)

    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)

    own = CustomRecipe(optimizer, schedule, loss, augment, epochs=4, batch=32)
    result = fit_network(Small(), lessons, SETTINGS, seed=1, custom=own)
    assert len(result.curve) == 5
    assert {"loss", f"{4 * 20} steps"} <= set(used)
    assert result.curve[-1].validation_metric > 0.8


def test_recipes_that_cannot_be_used_say_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ew_recipes.py").write_text(
        "def good(): return {'epochs': 3}\n"
        "def fails(): raise ValueError('no such file')\n"
        "def number(): return 5\n"
        "def unknown(): return {'epoch': 3}\n"
        "def wrong(): return {'loss': 3}\n"
    )
    monkeypatch.chdir(tmp_path)
    assert load_recipe("ew_recipes:good").apply_to(SETTINGS).epochs == 3
    reasons = {"fails": "ValueError: no such file", "number": "returned int", "unknown": "'epoch'", "wrong": "loss"}
    for name, reason in reasons.items():
        with pytest.raises(InputError, match=reason):
            load_recipe(f"ew_recipes:{name}")
    with pytest.raises(InputError, match="no function 'missing'"):
        load_recipe("ew_recipes:missing")
    with pytest.raises(InputError, match="cannot be imported"):
        load_recipe("ew_no_such_module:good")


def test_usual_settings_follow_rows_and_start() -> None:
    make: Callable[..., TrainingConfig] = default_training_config
    assert [make(rows, "fresh").batch for rows in (200, 6_400, 1_000_000)] == [32, 64, 128]
    rates = [make(1000, start).learning_rate for start in ("fresh", "trained", "integers")]
    assert rates == sorted(rates, reverse=True)
    with pytest.raises(InputError, match="epochs is 0"):
        TrainingConfig(epochs=0)
