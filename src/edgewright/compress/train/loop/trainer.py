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

from edgewright.compress.train.config import CurvePoint, Training
from edgewright.compress.train.custom_recipe import OwnRecipe
from edgewright.compress.train.data.batches import Views
from edgewright.compress.train.data.teacher_outputs import Answers
from edgewright.compress.train.data.training_data import Lessons
from edgewright.compress.train.loop.checkpoint import Progress, load_checkpoint, save_checkpoint, snapshot
from edgewright.compress.train.loop.losses import Ending
from edgewright.compress.train.loop.objective import Objective
from edgewright.compress.train.loop.optimizer_step import Stepper, accumulate, batches, is_out_of_memory, more_parts
from edgewright.contract.errors import CandidateError

__all__ = ["Fit", "Tell", "fit"]

Tell = Callable[[float, CurvePoint | None], None]

_MOST_FAILURES = 3
_TELL_EVERY_S = 0.5


@dataclass(frozen=True, slots=True)
class Fit:
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


def fit(
    network: nn.Module,
    lessons: Lessons,
    settings: Training,
    *,
    seed: int,
    answers: Answers | None = None,
    ending: Ending | None = None,
    feature: str | None = None,
    own: OwnRecipe | None = None,
    hold: Callable[[], None] | None = None,
    checkpoint: Path | None = None,
    save_every_s: float = 10.0,
    deadline: float | None = None,
    tell: Tell | None = None,
) -> Fit:
    """Train a network in place and leave the weights of its best epoch in it.

    Args:
        network: Takes the lessons' inputs, returns a tuple of tensors.
        lessons: Rows and labels.
        settings: How.
        seed: Of order, augmentation and dropout.
        answers: A teacher's; where they are learned, the rows are augmented as the teacher saw them.
        ending: How the network's answer ends; found out from its values if None.
        feature: Name of the network's tensor to hold against the teacher's features.
        own: The user's recipe.
        hold: Called after every step, to keep zeros zero.
        checkpoint: File to go on from and to write to.
        save_every_s: Seconds between checkpoints inside an epoch; ends of epochs count ten times.
        deadline: Of `time.monotonic()`, at which training ends with the best state so far.
        tell: Called about twice a second with the share that is done and the last point of the curve.

    Raises:
        CandidateError: Losses stay infinite at smaller rates, memory does not suffice, or there is nothing to
            learn from.
        OutputError: A checkpoint cannot be written.
    """
    own = own or OwnRecipe()
    run = _Run(
        network=network,
        lessons=lessons,
        settings=own.settle(settings),
        seed=seed,
        answers=answers,
        own=own,
        hold=hold,
        checkpoint=checkpoint,
        save_every_s=save_every_s,
        deadline=deadline,
        tell=tell,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        run.objective = Objective(lessons, run.settings, answers, ending, feature, own.loss)
        return run.whole()


@dataclass(slots=True)
class _Run:
    """One training under way."""

    network: nn.Module
    lessons: Lessons
    settings: Training
    seed: int
    answers: Answers | None
    own: OwnRecipe
    hold: Callable[[], None] | None
    checkpoint: Path | None
    save_every_s: float
    deadline: float | None
    tell: Tell | None
    objective: Objective = field(init=False)
    stepper: Stepper = field(init=False)
    views: Views = field(init=False)
    progress: Progress = field(default_factory=Progress)
    best: dict[str, Any] = field(default_factory=dict)
    good: dict[str, Any] = field(default_factory=dict)
    _started: float = field(default_factory=time.monotonic)
    _saved: float = field(default_factory=time.monotonic)
    _told: float = 0.0

    def whole(self) -> Fit:
        self._prepare()
        progress = self.progress
        finished = True
        while progress.epoch < self.settings.epochs and not self._is_tired():
            if not self._epoch():
                finished = False
                break
            self._judge()
            self._save(self.save_every_s / 10)
        if not finished:
            self._save(0.0)
            progress.note = f"ended at the deadline, {progress.step} steps into epoch {progress.epoch + 1}"
            self._judge(whole=False)
        if not (finished and self._ends_well()):
            self.network.load_state_dict(self.best)
        self.network.eval()
        return Fit(progress.best_epoch, tuple(progress.curve), self._seconds(), finished)

    def _ends_well(self) -> bool:
        """Whether the last epoch, at the lowest rate, is as good as the best but for chance; then it is taken."""
        progress = self.progress
        if progress.epoch < self.settings.epochs or progress.best_epoch == progress.epoch:
            return False
        last, best = progress.curve[-1].validation_metric, progress.best_metric
        if not 0 < best < 1 or last < best - np.sqrt(best * (1 - best) / len(self.lessons.validation)):
            return False
        progress.best_epoch = progress.epoch
        return True

    def _prepare(self) -> None:
        """Set up what is trained, at its start or where the checkpoint left it."""
        learned = self.objective.distillation
        if self.hold is not None:
            self.hold()
        self.objective.prepare(self.network)
        if self.answers is not None and learned is not None:
            self.views = Views(self.lessons, self.answers.augment, self.answers.seed, self.answers.views)
        else:
            self.views = Views(self.lessons, self.settings.augment, self.seed)
        parts = [self.network] if self.objective.reader is None else [self.network, self.objective.reader]
        parameters = [p for part in parts for p in part.parameters() if p.requires_grad]
        if not parameters:
            raise CandidateError("the network has no weights to train", remedy="Use it as it is.")
        steps = len(self._batches(0)) * self.settings.epochs
        self.stepper = Stepper.of(parameters, self.settings, steps, self.own)
        found = load_checkpoint(self.checkpoint, self._key())
        if found is None:
            self._judge(is_start=True)
        else:
            self.progress = found.progress
            self._load(found.tensors["now"])
            self.best, self.good = found.tensors["best"], found.tensors["good"]

    def _epoch(self) -> bool:
        """Train to the epoch's end; return False if the deadline came before."""
        progress = self.progress
        view = self.views.number(progress.epoch)
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
            self._save(self.save_every_s)
        return True

    def _step(self, view: int, places: NDArray[np.intp], number: int) -> float | None:
        """Take one step and return its loss; None if it or its gradient is not finite."""

        def loss(piece: NDArray[np.intp]) -> Tensor:
            inputs = self.views.inputs(view, piece)
            if self.own.augment is not None:
                generator = torch.Generator().manual_seed(int(self.seed * 1_000_003 + number) % 2**63)
                inputs = (self.own.augment(inputs[0], generator), *inputs[1:])
            return self.objective.loss(self.network, inputs, view, piece)

        while True:
            self.stepper.optimizer.zero_grad(set_to_none=True)
            try:
                total = sum(accumulate(loss, places, self.progress.parts))
                break
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                self.progress.parts = more_parts(self.progress.parts, len(places))
                self._note("memory ran out: each batch is computed in two parts")
        if not np.isfinite(total) or not self.stepper.take(number):
            return None
        if self.hold is not None:
            self.hold()
        return total

    def _judge(self, *, is_start: bool = False, whole: bool = True) -> None:
        """Validate, remember the weights if they are the best, and open the next epoch."""
        progress = self.progress
        loss, metric = self.objective.judge(self.network)
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
            self.best = snapshot(self.network)
        if not is_start:
            self._count_waiting((metric, -loss))
        mean = None if is_start or not progress.rows else progress.loss_sum / progress.rows
        shown = progress.epoch * self.settings.shown(len(self.lessons.train)) + (0 if whole else progress.rows)
        epoch = progress.epoch if whole else progress.epoch + 1
        progress.curve.append(
            CurvePoint(
                epoch=epoch,
                rows=shown,
                train_loss=mean,
                validation_loss=loss,
                validation_metric=metric,
                rate=self.stepper.rate,
                seconds=self._seconds(),
                note=progress.note,
            )
        )
        progress.note = ""
        if whole:
            progress.step, progress.rows, progress.loss_sum = 0, 0, 0.0
            self.good = self._now()

    def _roll_back(self) -> None:
        """Go back to the epoch's start and on at half the rate."""
        progress = self.progress
        progress.failures += 1
        if progress.failures > _MOST_FAILURES:
            raise CandidateError(
                f"the loss was not finite {progress.failures} times, at last in epoch {progress.epoch + 1} "
                f"at a rate of {self.stepper.rate:.2g}",
                remedy="Train at a smaller rate, or look for extreme values in the data.",
            )
        slowing = self.stepper.slowing
        self._load(self.good)
        while self.stepper.slowing > slowing / 2:
            self.stepper.slow_down()
        progress.step, progress.rows, progress.loss_sum = 0, 0, 0.0
        self.network.train()
        self._note("the loss was not finite: back to the epoch's start, at half the rate")

    def _count_waiting(self, reached: tuple[float, float]) -> None:
        """Count epochs that are no better than earlier ones.

        A trained start is not counted, it may beat many; nor is the first half, where a high rate hides progress.
        """
        progress = self.progress
        if reached > progress.reached:
            progress.reached, progress.waited = reached, 0
        elif progress.epoch > self.settings.epochs / 2:
            progress.waited += 1

    def _is_tired(self) -> bool:
        return bool(self.settings.patience) and self.progress.waited >= self.settings.patience

    def _batches(self, epoch: int) -> list[NDArray[np.intp]]:
        count = len(self.lessons.train)
        return batches(count, self.settings.batch, self.seed, epoch, self.settings.shown(count))

    def _now(self) -> dict[str, Any]:
        reader = self.objective.reader
        return {
            "network": snapshot(self.network),
            "reader": {} if reader is None else snapshot(reader),
            "stepper": snapshot(self.stepper),
        }

    def _load(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.stepper.load_state_dict(state["stepper"])
        if self.objective.reader is not None:
            self.objective.reader.load_state_dict(state["reader"])

    def _key(self) -> str:
        taught = None if self.answers is None else self.answers.fingerprint
        plan = msgspec.json.encode((self.settings, self.seed, self.lessons.fingerprint, taught))
        shapes = str([(name, tuple(tensor.shape)) for name, tensor in self.network.state_dict().items()])
        return hashlib.sha256(plan + shapes.encode()).hexdigest()

    def _save(self, every_s: float) -> None:
        now = time.monotonic()
        if self.checkpoint is None or now - self._saved < every_s:
            return
        state = msgspec.structs.replace(self.progress, seconds=self._seconds())
        tensors = {"now": self._now(), "best": self.best, "good": self.good}
        save_checkpoint(self.checkpoint, self._key(), state, tensors)
        self._saved = now

    def _seconds(self) -> float:
        return self.progress.seconds + time.monotonic() - self._started

    def _report(self, steps: int) -> None:
        now = time.monotonic()
        if self.tell is None or now - self._told < _TELL_EVERY_S:
            return
        self._told = now
        share = (self.progress.epoch + self.progress.step / steps) / self.settings.epochs
        self.tell(share, self.progress.curve[-1] if self.progress.curve else None)

    def _note(self, text: str) -> None:
        self.progress.note = f"{self.progress.note}; {text}".strip("; ")
