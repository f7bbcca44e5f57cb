"""The training loop: from a network and lessons to the weights of the best epoch.

The same network, lessons, settings and seed give the same weights, also if the training was killed in between and
goes on from its checkpoint.
"""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgewright.compress.train.config import CurvePoint, TrainingConfig
from edgewright.compress.train.custom_recipe import CustomRecipe
from edgewright.compress.train.data.batches import AugmentedViews
from edgewright.compress.train.data.teacher_outputs import TeacherOutputs
from edgewright.compress.train.data.training_data import TrainingData
from edgewright.compress.train.loop.checkpoint import (
    TrainingProgress,
    load_checkpoint,
    save_checkpoint,
    state_snapshot,
)
from edgewright.compress.train.loop.losses import OutputActivation
from edgewright.compress.train.loop.objective import TrainingObjective
from edgewright.compress.train.loop.optimizer_step import (
    OptimizerStep,
    accumulate_gradients,
    epoch_batches,
    is_out_of_memory,
    next_accumulation_steps,
)
from edgewright.contract.errors import CandidateError

__all__ = ["EpochProgressFunction", "FitResult", "fit_network"]

EpochProgressFunction = Callable[[float, CurvePoint | None], None]

_MAX_FAILURES = 3
_PROGRESS_INTERVAL_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class FitResult:
    """What came of a training; the network itself holds the weights of the best epoch.

    Attributes:
        best_epoch: The one with the best validation metric, of equal ones the least loss; 0 is the start. The last
            planned one, whose rate was the lowest, if it is worse by no more than its standard error.
        curve: The start and every epoch.
        seconds: Spent, without pauses between resumed parts.
        finished: False if the deadline ended it.
    """

    best_epoch: int
    curve: tuple[CurvePoint, ...]
    seconds: float
    finished: bool


def fit_network(
    network: nn.Module,
    data: TrainingData,
    settings: TrainingConfig,
    *,
    seed: int,
    teacher_outputs: TeacherOutputs | None = None,
    activation: OutputActivation | None = None,
    feature_tensor: str | None = None,
    custom: CustomRecipe | None = None,
    reapply_zeros: Callable[[], None] | None = None,
    checkpoint: Path | None = None,
    save_interval_seconds: float = 10.0,
    deadline: float | None = None,
    report_progress: EpochProgressFunction | None = None,
) -> FitResult:
    """Train a network in place and leave the weights of its best epoch in it.

    Args:
        network: Takes the lessons' inputs, returns a tuple of tensors.
        data: Rows and labels.
        settings: How.
        seed: Of order, augmentation and dropout.
        teacher_outputs: A teacher's; where they are learned, the rows are augmented as the teacher saw them.
        activation: How the network's answer ends; found out from its values if None.
        feature_tensor: Name of the network's tensor to hold against the teacher's features.
        custom: The user's recipe.
        reapply_zeros: Called after every step, to keep zeros zero.
        checkpoint: File to go on from and to write to.
        save_interval_seconds: Seconds between checkpoints inside an epoch; ends of epochs count ten times.
        deadline: Of `time.monotonic()`, at which training ends with the best state so far.
        report_progress: Called about twice a second with the share that is done and the last point of the curve.

    Raises:
        CandidateError: Losses stay infinite at smaller rates, memory does not suffice, or there is nothing to
            learn from.
        OutputError: A checkpoint cannot be written.
    """
    custom = custom or CustomRecipe()
    run = _TrainingLoop(
        network=network,
        data=data,
        settings=custom.apply_to(settings),
        seed=seed,
        teacher_outputs=teacher_outputs,
        custom=custom,
        reapply_zeros=reapply_zeros,
        checkpoint=checkpoint,
        save_interval_seconds=save_interval_seconds,
        deadline=deadline,
        report_progress=report_progress,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        run.objective = TrainingObjective(
            data, run.settings, teacher_outputs, activation, feature_tensor, custom.loss
        )
        return run.whole()


@dataclass(slots=True)
class _TrainingLoop:
    """One training under way."""

    network: nn.Module
    data: TrainingData
    settings: TrainingConfig
    seed: int
    teacher_outputs: TeacherOutputs | None
    custom: CustomRecipe
    reapply_zeros: Callable[[], None] | None
    checkpoint: Path | None
    save_interval_seconds: float
    deadline: float | None
    report_progress: EpochProgressFunction | None
    objective: TrainingObjective = field(init=False)
    stepper: OptimizerStep = field(init=False)
    views: AugmentedViews = field(init=False)
    progress: TrainingProgress = field(default_factory=TrainingProgress)
    best_state: dict[str, Any] = field(default_factory=dict)
    last_good_state: dict[str, Any] = field(default_factory=dict)
    _started: float = field(default_factory=time.monotonic)
    _saved: float = field(default_factory=time.monotonic)
    _progress_reported_at: float = 0.0

    def whole(self) -> FitResult:
        self._prepare()
        progress = self.progress
        finished = True
        while progress.epoch < self.settings.epochs and not self._should_stop_early():
            if not self._epoch():
                finished = False
                break
            self._validate()
            self._save(self.save_interval_seconds / 10)
        if not finished:
            self._save(0.0)
            progress.note = f"ended at the deadline, {progress.step} steps into epoch {progress.epoch + 1}"
            self._validate(whole=False)
        if not (finished and self._keeps_last_epoch()):
            self.network.load_state_dict(self.best_state)
        self.network.eval()
        return FitResult(progress.best_epoch, tuple(progress.curve), self._seconds(), finished)

    def _keeps_last_epoch(self) -> bool:
        """Whether the last epoch, at the lowest rate, is as good as the best but for chance; then it is taken."""
        progress = self.progress
        if progress.epoch < self.settings.epochs or progress.best_epoch == progress.epoch:
            return False
        last, best = progress.curve[-1].validation_metric, progress.best_metric
        if not 0 < best < 1 or last < best - np.sqrt(best * (1 - best) / len(self.data.validation)):
            return False
        progress.best_epoch = progress.epoch
        return True

    def _prepare(self) -> None:
        """Set up what is trained, at its start or where the checkpoint left it."""
        learned = self.objective.distillation
        if self.reapply_zeros is not None:
            self.reapply_zeros()
        self.objective.prepare(self.network)
        if self.teacher_outputs is not None and learned is not None:
            self.views = AugmentedViews(
                self.data,
                self.teacher_outputs.augmentations,
                self.teacher_outputs.seed,
                self.teacher_outputs.view_count,
            )
        else:
            self.views = AugmentedViews(self.data, self.settings.augmentations, self.seed)
        parts = (
            [self.network]
            if self.objective.feature_projection is None
            else [self.network, self.objective.feature_projection]
        )
        parameters = [p for part in parts for p in part.parameters() if p.requires_grad]
        if not parameters:
            raise CandidateError("the network has no weights to train", remedy="Use it as it is.")
        steps = len(self._batches(0)) * self.settings.epochs
        self.stepper = OptimizerStep.create(parameters, self.settings, steps, self.custom)
        found = load_checkpoint(self.checkpoint, self._key())
        if found is None:
            self._validate(is_start=True)
        else:
            self.progress = found.progress
            self._load(found.tensors["now"])
            self.best_state, self.last_good_state = found.tensors["best"], found.tensors["good"]

    def _epoch(self) -> bool:
        """Train to the epoch's end; return False if the deadline came before."""
        progress = self.progress
        view = self.views.view_of_epoch(progress.epoch)
        plan = self._batches(progress.epoch)
        self.network.train()
        while progress.step < len(plan):
            if self.deadline is not None and time.monotonic() > self.deadline:
                return False
            places = plan[progress.step]
            loss = self._step(view, places, progress.epoch * len(plan) + progress.step)
            if loss is None:
                self._roll_back()
                continue
            progress.loss_sum += loss * len(places)
            progress.rows += len(places)
            progress.step += 1
            self._report(len(plan))
            self._save(self.save_interval_seconds)
        return True

    def _step(self, view: int, places: NDArray[np.intp], number: int) -> float | None:
        """Take one step and return its loss; None if it or its gradient is not finite."""

        def loss(piece: NDArray[np.intp]) -> Tensor:
            inputs = self.views.inputs(view, piece)
            if self.custom.augment is not None:
                generator = torch.Generator().manual_seed(int(self.seed * 1_000_003 + number) % 2**63)
                inputs = (self.custom.augment(inputs[0], generator), *inputs[1:])
            return self.objective.loss(self.network, inputs, view, piece)

        while True:
            self.stepper.optimizer.zero_grad(set_to_none=True)
            try:
                total = sum(accumulate_gradients(loss, places, self.progress.accumulation_steps))
                break
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                self.progress.accumulation_steps = next_accumulation_steps(
                    self.progress.accumulation_steps, len(places)
                )
                self._note("memory ran out: each batch is computed in two parts")
        if not np.isfinite(total) or not self.stepper.take(number):
            return None
        if self.reapply_zeros is not None:
            self.reapply_zeros()
        return total

    def _validate(self, *, is_start: bool = False, whole: bool = True) -> None:
        """Validate, remember the weights if they are the best, and open the next epoch."""
        progress = self.progress
        loss, metric = self.objective.validate(self.network)
        if not np.isfinite(loss) or not np.isfinite(metric):
            if is_start:
                raise CandidateError("the network answers NaN or infinity", remedy="Start from other weights.")
            if whole:
                self._roll_back()
            return
        if not is_start:
            progress.epoch += whole
        if (metric, -loss) > (progress.best_metric, -progress.best_loss):
            progress.best_metric, progress.best_loss = metric, loss
            progress.best_epoch = progress.epoch if whole else progress.epoch + 1
            self.best_state = state_snapshot(self.network)
        if not is_start:
            self._count_waiting((metric, -loss))
        mean = None if is_start or not progress.rows else progress.loss_sum / progress.rows
        shown = progress.epoch * self.settings.rows_shown(len(self.data.train)) + (0 if whole else progress.rows)
        epoch = progress.epoch if whole else progress.epoch + 1
        progress.curve.append(
            CurvePoint(
                epoch=epoch,
                training_rows=shown,
                train_loss=mean,
                validation_loss=loss,
                validation_metric=metric,
                learning_rate=self.stepper.learning_rate,
                elapsed_seconds=self._seconds(),
                note=progress.note,
            )
        )
        progress.note = ""
        if whole:
            progress.step, progress.rows, progress.loss_sum = 0, 0, 0.0
            self.last_good_state = self._now()

    def _roll_back(self) -> None:
        """Go back to the epoch's start and on at half the rate."""
        progress = self.progress
        progress.failures += 1
        if progress.failures > _MAX_FAILURES:
            raise CandidateError(
                f"the loss was not finite {progress.failures} times, at last in epoch {progress.epoch + 1} "
                f"at a rate of {self.stepper.learning_rate:.2g}",
                remedy="Train at a smaller rate, or look for extreme values in the data.",
            )
        slowing = self.stepper.rate_factor
        self._load(self.last_good_state)
        while self.stepper.rate_factor > slowing / 2:
            self.stepper.halve_rate()
        progress.step, progress.rows, progress.loss_sum = 0, 0, 0.0
        self.network.train()
        self._note("the loss was not finite: back to the epoch's start, at half the rate")

    def _count_waiting(self, reached: tuple[float, float]) -> None:
        """Count epochs that are no better than earlier ones.

        A trained start is not counted, it may beat many; nor is the first half, where a high rate hides progress.
        """
        progress = self.progress
        if reached > progress.best_reached:
            progress.best_reached, progress.epochs_without_improvement = reached, 0
        elif progress.epoch > self.settings.epochs / 2:
            progress.epochs_without_improvement += 1

    def _should_stop_early(self) -> bool:
        return (
            bool(self.settings.early_stopping_patience)
            and self.progress.epochs_without_improvement >= self.settings.early_stopping_patience
        )

    def _batches(self, epoch: int) -> list[NDArray[np.intp]]:
        count = len(self.data.train)
        return epoch_batches(count, self.settings.batch, self.seed, epoch, self.settings.rows_shown(count))

    def _now(self) -> dict[str, Any]:
        reader = self.objective.feature_projection
        return {
            "network": state_snapshot(self.network),
            "reader": {} if reader is None else state_snapshot(reader),
            "stepper": state_snapshot(self.stepper),
        }

    def _load(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.stepper.load_state_dict(state["stepper"])
        if self.objective.feature_projection is not None:
            self.objective.feature_projection.load_state_dict(state["reader"])

    def _key(self) -> str:
        taught = None if self.teacher_outputs is None else self.teacher_outputs.fingerprint
        plan = msgspec.json.encode((self.settings, self.seed, self.data.fingerprint, taught))
        shapes = str([(name, tuple(tensor.shape)) for name, tensor in self.network.state_dict().items()])
        return hashlib.sha256(plan + shapes.encode()).hexdigest()

    def _save(self, interval_seconds: float) -> None:
        now = time.monotonic()
        if self.checkpoint is None or now - self._saved < interval_seconds:
            return
        state = msgspec.structs.replace(self.progress, seconds=self._seconds())
        tensors = {"now": self._now(), "best": self.best_state, "good": self.last_good_state}
        save_checkpoint(self.checkpoint, self._key(), state, tensors)
        self._saved = now

    def _seconds(self) -> float:
        return self.progress.seconds + time.monotonic() - self._started

    def _report(self, steps: int) -> None:
        now = time.monotonic()
        if self.report_progress is None or now - self._progress_reported_at < _PROGRESS_INTERVAL_SECONDS:
            return
        self._progress_reported_at = now
        share = (self.progress.epoch + self.progress.step / steps) / self.settings.epochs
        self.report_progress(share, self.progress.curve[-1] if self.progress.curve else None)

    def _note(self, text: str) -> None:
        self.progress.note = f"{self.progress.note}; {text}".strip("; ")
