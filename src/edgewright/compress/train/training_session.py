"""What the rounds of a training share: the run, the material, the engine, and the time that is left."""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import msgspec
import onnx

from edgewright.compress.context import CompressionRun
from edgewright.compress.search.search import Search
from edgewright.compress.train.artifact_store import TrainingStore
from edgewright.compress.train.config import Distillation, TrainingConfig, TrainingStart, default_training_config
from edgewright.compress.train.data.teacher_outputs import TeacherOutputs
from edgewright.compress.train.data.training_data import TrainingData
from edgewright.compress.train.engine.engine import TrainingEngine
from edgewright.compress.train.engine.job import JobResult, KeepZeros, TrainingJob
from edgewright.compress.train.nas.latency_model import LatencyModel, NetworkFeatures, network_features
from edgewright.compress.train.policy import CandidateEstimate, plan_epochs
from edgewright.compress.train.throughput import measure_seconds_per_row
from edgewright.contract.errors import CandidateError
from edgewright.contract.training_report import CurvePoint, NetworkOrigin, TrainedNetwork

__all__ = ["PlannedJob", "TrainingSession", "untrained_record"]

# Of the time of the cores, what is left for training beside starting, judging and waiting for one another.
_USABLE_CORE_SHARE = 0.85


class PlannedJob(msgspec.Struct, frozen=True):
    """A job as the plan of a round keeps it: networks by their digests.

    Attributes:
        network: What is known of it before training; its digest and its figures are filled in after.
        initial_sha256: sha256 of the ONNX file to start from.
        settings: How it is trained.
        keep_zeros: Whether zeros of the start stay.
    """

    network: TrainedNetwork
    initial_sha256: str
    settings: TrainingConfig
    keep_zeros: bool = False


def untrained_record(
    estimate: CandidateEstimate, origin: NetworkOrigin, parent: str, number: int, title: str = ""
) -> TrainedNetwork:
    """Return the record of a network before it is trained.

    Args:
        estimate: The network.
        origin: Of the weights that it starts with.
        parent: sha256 of the network that they come from.
        number: Of the round.
        title: The prospect's own if empty.
    """
    return TrainedNetwork(
        network_sha256="",
        title=title or estimate.title,
        origin=origin,
        parent_sha256=parent,
        search_round=number,
        training_rows=0,
        distilled=True,
        parameters=estimate.parameters,
        latency_ratio=estimate.latency_ratio,
        validation_metric=None,
        drop=None,
        training_seconds=0.0,
    )


@dataclass(slots=True)
class TrainingSession:
    """One training.

    Attributes:
        run: The run of `compress` that it belongs to.
        search: Tries the forms of what was trained.
        data: Rows.
        teacher_outputs: The teachers'.
        engine: Where jobs run.
        workers: Jobs at once.
        store: Networks and records.
        augmentations: Names of the admissible augmentations.
        distillation: What of the loss comes from the teachers.
        recipe: The user's own training, "module:function".
        ends_at: When training must be over, of `time.monotonic()`.
        networks: All that were trained.
        notes: For people.
        measured_latencies: Networks of which the latency was measured, relative to the original's: what they consist
            of, and it.
    """

    run: CompressionRun
    search: Search
    data: TrainingData
    teacher_outputs: TeacherOutputs
    engine: TrainingEngine
    workers: int
    store: TrainingStore
    augmentations: tuple[str, ...]
    distillation: Distillation
    recipe: str | None
    ends_at: float
    networks: list[TrainedNetwork] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    measured_latencies: list[tuple[NetworkFeatures, float]] = field(default_factory=list)

    @property
    def max_drop(self) -> float:
        """The limit on the drop."""
        return self.run.max_drop

    def seconds_left(self) -> float:
        """Seconds until training must be over."""
        return self.ends_at - time.monotonic()

    def seconds_per_row(self, network: str) -> float:
        """Return the seconds that one thread takes to train a network on one row.

        Raises:
            CandidateError: It cannot be trained.
        """
        batch = default_training_config(len(self.data.train), "fresh").batch
        return measure_seconds_per_row(self.store.load_network(network), self.data, batch)

    def core_seconds(self, deadline: float) -> float:
        """Return what all workers together can train until a time of `time.monotonic()`."""
        return _USABLE_CORE_SHARE * self.workers * max(0.0, deadline - time.monotonic())

    def training_config(self, rows: int, start: TrainingStart) -> TrainingConfig:
        """Return how a network is trained if it is shown so many rows in all."""
        available = len(self.data.train)
        epochs, per_epoch = plan_epochs(rows, available)
        usual = default_training_config(available, start, epochs=epochs, augment=self.augmentations, teacher=True)
        usual = msgspec.structs.replace(usual, distillation=self.distillation)
        return msgspec.structs.replace(
            usual, rows_per_epoch=0 if per_epoch == available else max(per_epoch, usual.batch)
        )

    def planned_jobs(self, name: str, plan: Callable[[], list[PlannedJob]]) -> list[PlannedJob]:
        """Return the tasks of a round; those of an earlier run of the same round if it was planned already."""
        tasks = self.store.load_record(name, list[PlannedJob])
        if tasks is None:
            tasks = plan()
            self.store.save_record(name, tasks)
        return tasks

    def latency_model(self) -> Callable[[onnx.ModelProto], float] | None:
        """Return what predicts a float network's latency from those measured; None if none was."""
        if not self.measured_latencies:
            return None
        model = LatencyModel.fit(
            [each for each, _ in self.measured_latencies], [ratio for _, ratio in self.measured_latencies]
        )
        return lambda network: model.predict(network_features(network))[0]

    def report_progress(self, stage: str) -> None:
        """Say what is going on."""
        request = self.run.request
        request.report_progress(stage, 1 - self.run.seconds_left() / request.time_limit_seconds)

    def train_jobs(self, name: str, tasks: Sequence[PlannedJob], deadline: float) -> list[TrainedNetwork]:
        """Train the networks of a round; those that an earlier run finished are taken from it.

        Args:
            name: Of the round, for people.
            tasks: What to train.
            deadline: Of `time.monotonic()`; training ends there at the best state so far.

        Returns:
            What came of each, in the order of the tasks; failures too.
        """
        keys = [self._key(task) for task in tasks]
        found = {key: self.store.load_record(f"outcomes/{key}", TrainedNetwork) for key in keys}
        jobs = [self._job(key, task) for key, task in zip(keys, tasks, strict=True) if found[key] is None]
        titles = dict(zip(keys, tasks, strict=True))
        for outcome in self._results(jobs, name, titles, deadline):
            trained = self._recorded(titles[outcome.key], outcome)
            found[outcome.key] = trained
            if trained.network_sha256:
                self.store.save_record(f"outcomes/{outcome.key}", trained)
        networks = [network for key in keys if (network := found[key]) is not None]
        self.networks += networks
        return networks

    def evaluate(self, network: bytes) -> tuple[float | None, float | None]:
        """Return the drop of a network on the select split and the bound that it predicts for the certify split.

        Both are None if it answers with anything but numbers.
        """
        select = self.run.select_evaluator
        count = len(select.indices)
        try:
            scores = select.score(select.outputs(network, count), count)
        except CandidateError:
            return None, None
        return float((select.scores - scores).mean()), self.search.runner.predict_bound(scores)

    def _results(
        self, jobs: Sequence[TrainingJob], name: str, tasks: dict[str, PlannedJob], deadline: float
    ) -> Iterator[JobResult]:
        shares = dict.fromkeys((job.key for job in jobs), 0.0)

        def tell(key: str, share: float, point: CurvePoint | None) -> None:
            shares[key] = share
            done = sum(shares.values()) / len(shares)
            metric = "" if point is None else f", {tasks[key].network.title}: {point.validation_metric:.4f}"
            self.report_progress(f"{name}, {len(jobs)} networks, {done:.0%}{metric}")

        if jobs:
            yield from self.engine.run(
                jobs, self.data, self.teacher_outputs, deadline=deadline, report_progress=tell
            )

    def _key(self, task: PlannedJob) -> str:
        content = msgspec.json.encode((task, self.data.fingerprint, self.run.request.seed, self.recipe))
        return hashlib.sha256(content).hexdigest()[:16]

    def _job(self, key: str, task: PlannedJob) -> TrainingJob:
        return TrainingJob(
            key=key,
            model=self.store.network_bytes(task.initial_sha256),
            settings=task.settings,
            seed=self.run.request.seed,
            keep_zeros=KeepZeros() if task.keep_zeros else None,
            recipe=self.recipe,
        )

    def _recorded(self, task: PlannedJob, outcome: JobResult) -> TrainedNetwork:
        rows = max((point.training_rows for point in outcome.curve), default=0)
        learned = outcome.model is not None and rows > 0
        digest = self.store.store_network(outcome.model) if outcome.model is not None and learned else ""
        drop, bound = self.evaluate(outcome.model) if outcome.model is not None and learned else (None, None)
        metrics = [point.validation_metric for point in outcome.curve]
        curve = outcome.curve
        if curve and outcome.note:
            curve = (
                *curve[:-1],
                msgspec.structs.replace(curve[-1], note=f"{curve[-1].note} {outcome.note}".strip()),
            )
        return msgspec.structs.replace(
            task.network,
            network_sha256=digest,
            training_rows=rows,
            distilled=task.settings.distillation is not None,
            validation_metric=max(metrics, default=None),
            drop=drop,
            predicted_bound=bound,
            training_seconds=outcome.seconds,
            learning_curve=curve,
            error=outcome.error or ("" if rows else "there was no time left to train it"),
        )
