"""What the rounds of a training share: the run, the material, the engine, and the time that is left."""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import msgspec
import onnx

from edgewright.compress.context import Run
from edgewright.compress.search.search import Search
from edgewright.compress.train.artifact_store import TrainingStore
from edgewright.compress.train.config import Distillation, Start, Training, usual_training
from edgewright.compress.train.data.teacher_outputs import Answers
from edgewright.compress.train.data.training_data import Lessons
from edgewright.compress.train.engine.engine import Engine
from edgewright.compress.train.engine.job import Hold, Job, Outcome
from edgewright.compress.train.nas.latency_model import Features, LatencyModel, features
from edgewright.compress.train.policy import Prospect, passes
from edgewright.compress.train.throughput import seconds_per_row
from edgewright.contract.errors import CandidateError
from edgewright.contract.training_report import CurvePoint, Origin, TrainedNetwork

__all__ = ["Course", "Task", "untrained"]

# Of the time of the cores, what is left for training beside starting, judging and waiting for one another.
_USABLE = 0.85


class Task(msgspec.Struct, frozen=True):
    """A job as the plan of a round keeps it: networks by their digests.

    Attributes:
        network: What is known of it before training; its digest and its figures are filled in after.
        start: sha256 of the ONNX file to start from.
        settings: How it is trained.
        hold: Whether zeros of the start stay.
    """

    network: TrainedNetwork
    start: str
    settings: Training
    hold: bool = False


def untrained(prospect: Prospect, origin: Origin, parent: str, number: int, title: str = "") -> TrainedNetwork:
    """Return the record of a network before it is trained.

    Args:
        prospect: The network.
        origin: Of the weights that it starts with.
        parent: sha256 of the network that they come from.
        number: Of the round.
        title: The prospect's own if empty.
    """
    return TrainedNetwork(
        network="",
        title=title or prospect.title,
        origin=origin,
        parent=parent,
        round=number,
        rows=0,
        distilled=True,
        parameters=prospect.parameters,
        latency_ratio=prospect.latency_ratio,
        validation_metric=None,
        drop=None,
        seconds=0.0,
    )


@dataclass(slots=True)
class Course:
    """One training.

    Attributes:
        run: The run of `compress` that it belongs to.
        search: Tries the forms of what was trained.
        lessons: Rows.
        answers: The teachers'.
        engine: Where jobs run.
        workers: Jobs at once.
        store: Networks and records.
        augment: Names of the admissible augmentations.
        distillation: What of the loss comes from the teachers.
        recipe: The user's own training, "module:function".
        ends: When training must be over, of `time.monotonic()`.
        networks: All that were trained.
        notes: For people.
        seen: Networks of which the latency was measured, relative to the original's: what they consist of, and it.
    """

    run: Run
    search: Search
    lessons: Lessons
    answers: Answers
    engine: Engine
    workers: int
    store: TrainingStore
    augment: tuple[str, ...]
    distillation: Distillation
    recipe: str | None
    ends: float
    networks: list[TrainedNetwork] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seen: list[tuple[Features, float]] = field(default_factory=list)

    @property
    def max_drop(self) -> float:
        """The limit on the drop."""
        return self.run.max_drop

    def left(self) -> float:
        """Seconds until training must be over."""
        return self.ends - time.monotonic()

    def pace_of(self, network: str) -> float:
        """Return the seconds that one thread takes to train a network on one row.

        Raises:
            CandidateError: It cannot be trained.
        """
        batch = usual_training(len(self.lessons.train), "fresh").batch
        return seconds_per_row(self.store.network(network), self.lessons, batch)

    def core_seconds(self, deadline: float) -> float:
        """Return what all workers together can train until a time of `time.monotonic()`."""
        return _USABLE * self.workers * max(0.0, deadline - time.monotonic())

    def settings(self, rows: int, start: Start) -> Training:
        """Return how a network is trained if it is shown so many rows in all."""
        available = len(self.lessons.train)
        epochs, per_epoch = passes(rows, available)
        usual = usual_training(available, start, epochs=epochs, augment=self.augment, teacher=True)
        usual = msgspec.structs.replace(usual, distillation=self.distillation)
        return msgspec.structs.replace(usual, rows=0 if per_epoch == available else max(per_epoch, usual.batch))

    def planned(self, name: str, plan: Callable[[], list[Task]]) -> list[Task]:
        """Return the tasks of a round; those of an earlier run of the same round if it was planned already."""
        tasks = self.store.load(name, list[Task])
        if tasks is None:
            tasks = plan()
            self.store.save(name, tasks)
        return tasks

    def predicted_latency(self) -> Callable[[onnx.ModelProto], float] | None:
        """Return what predicts a float network's latency from those measured; None if none was."""
        if not self.seen:
            return None
        model = LatencyModel.fit([each for each, _ in self.seen], [ratio for _, ratio in self.seen])
        return lambda network: model.predict(features(network))[0]

    def tell(self, stage: str) -> None:
        """Say what is going on."""
        request = self.run.request
        request.tell(stage, 1 - self.run.left() / request.time_limit_s)

    def train(self, name: str, tasks: Sequence[Task], deadline: float) -> list[TrainedNetwork]:
        """Train the networks of a round; those that an earlier run finished are taken from it.

        Args:
            name: Of the round, for people.
            tasks: What to train.
            deadline: Of `time.monotonic()`; training ends there at the best state so far.

        Returns:
            What came of each, in the order of the tasks; failures too.
        """
        keys = [self._key(task) for task in tasks]
        found = {key: self.store.load(f"outcomes/{key}", TrainedNetwork) for key in keys}
        jobs = [self._job(key, task) for key, task in zip(keys, tasks, strict=True) if found[key] is None]
        titles = dict(zip(keys, tasks, strict=True))
        for outcome in self._outcomes(jobs, name, titles, deadline):
            trained = self._recorded(titles[outcome.key], outcome)
            found[outcome.key] = trained
            if trained.network:
                self.store.save(f"outcomes/{outcome.key}", trained)
        networks = [network for key in keys if (network := found[key]) is not None]
        self.networks += networks
        return networks

    def judged(self, network: bytes) -> tuple[float | None, float | None]:
        """Return the drop of a network on the select split and the bound that it predicts for the certify split.

        Both are None if it answers with anything but numbers.
        """
        select = self.run.select
        count = len(select.indices)
        try:
            scores = select.score(select.outputs(network, count), count)
        except CandidateError:
            return None, None
        return float((select.scores - scores).mean()), self.search.runner.predicted(scores)

    def _outcomes(
        self, jobs: Sequence[Job], name: str, tasks: dict[str, Task], deadline: float
    ) -> Iterator[Outcome]:
        shares = dict.fromkeys((job.key for job in jobs), 0.0)

        def tell(key: str, share: float, point: CurvePoint | None) -> None:
            shares[key] = share
            done = sum(shares.values()) / len(shares)
            metric = "" if point is None else f", {tasks[key].network.title}: {point.validation_metric:.4f}"
            self.tell(f"{name}, {len(jobs)} networks, {done:.0%}{metric}")

        if jobs:
            yield from self.engine.run(jobs, self.lessons, self.answers, deadline=deadline, tell=tell)

    def _key(self, task: Task) -> str:
        content = msgspec.json.encode((task, self.lessons.fingerprint, self.run.request.seed, self.recipe))
        return hashlib.sha256(content).hexdigest()[:16]

    def _job(self, key: str, task: Task) -> Job:
        return Job(
            key=key,
            model=self.store.content(task.start),
            settings=task.settings,
            seed=self.run.request.seed,
            hold=Hold() if task.hold else None,
            recipe=self.recipe,
        )

    def _recorded(self, task: Task, outcome: Outcome) -> TrainedNetwork:
        rows = max((point.rows for point in outcome.curve), default=0)
        learned = outcome.model is not None and rows > 0
        digest = self.store.put(outcome.model) if outcome.model is not None and learned else ""
        drop, bound = self.judged(outcome.model) if outcome.model is not None and learned else (None, None)
        metrics = [point.validation_metric for point in outcome.curve]
        curve = outcome.curve
        if curve and outcome.note:
            curve = (
                *curve[:-1],
                msgspec.structs.replace(curve[-1], note=f"{curve[-1].note} {outcome.note}".strip()),
            )
        return msgspec.structs.replace(
            task.network,
            network=digest,
            rows=rows,
            distilled=task.settings.distillation is not None,
            validation_metric=max(metrics, default=None),
            drop=drop,
            predicted_bound=bound,
            seconds=outcome.seconds,
            curve=curve,
            error=outcome.error or ("" if rows else "there was no time left to train it"),
        )
