"""Jobs as tasks of Ray, on this machine or on a cluster.

Edgewright has to be installed on the cluster's machines, and so has the module of a user's own training recipe.
"""

import os
import socket
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from edgewright.compress.train.config import CurvePoint
from edgewright.compress.train.data.teacher_outputs import TeacherOutputs
from edgewright.compress.train.data.training_data import TrainingData
from edgewright.compress.train.engine.job import (
    JobProgressFunction,
    JobResult,
    TrainingJob,
    checkpoint_name,
    run_training_job,
)
from edgewright.compress.train.engine.job_queue import (
    PROGRESS_INTERVAL_SECONDS,
    QueuedJob,
    is_late,
    is_over,
    next_queued_job,
    not_started,
)
from edgewright.contract.errors import InputError, TargetError

__all__ = ["RayEngine"]

_CONNECT_TIMEOUT_SECONDS = 10.0
_INSTALL = "pip install 'edgewright[cluster]'"


class RayEngine:
    """Tasks of one processor each.

    Lessons and answers are put into Ray's store once. A task whose worker dies is done once more. Checkpoints are
    in the temporary folder of the machine that a task runs on: they help where it runs there again.
    """

    def __init__(self, workers: int, address: str | None = None) -> None:
        """Start Ray on this machine, or connect to a cluster.

        Args:
            workers: Jobs at once on this machine; on a cluster as many as it has processors.
            address: "ray://host:port"; None starts Ray here.

        Raises:
            InputError: Ray or its client is missing, or the address is none.
            TargetError: The cluster cannot be reached.
        """
        if workers < 1:
            raise InputError(f"{workers} workers cannot train", remedy="Give 1 or more.")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ImportError as error:
            raise InputError("Ray is not installed", remedy=f"Run {_INSTALL}.") from error
        self._ray: Any = ray
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if address is None:
            ray.init("local", num_cpus=workers, include_dashboard=False, **quiet)
            self._slots = workers
        else:
            if find_spec("grpc") is None:
                raise InputError("Ray's client is not installed", remedy=f"Run {_INSTALL}.")
            _check_reachable(address)
            try:
                ray.init(address, **quiet)
                self._slots = max(1, int(self._ray.cluster_resources().get("CPU", 1)))
            except Exception as error:  # Ray raises what it likes where it cannot connect
                ray.shutdown()
                raise TargetError(
                    f"{address} does not answer as a Ray cluster: {type(error).__name__}: {error}",
                    remedy="Check the address, that the cluster runs the same versions of Ray and Python, and that "
                    "RAY_AUTH_MODE is set as there.",
                ) from error
        self._perform = ray.remote(num_cpus=1, max_retries=0)(_perform)
        self._board: Any = self._ray.remote(num_cpus=0)(_ProgressBoard).remote()
        self._put: list[tuple[TrainingData | TeacherOutputs, Any]] = []

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it."""
        self.close()

    def close(self) -> None:
        """End what was started here, or leave the cluster."""
        self._put.clear()
        self._ray.shutdown()

    def run(
        self,
        jobs: Iterable[TrainingJob],
        data: TrainingData,
        teacher_outputs: TeacherOutputs | None = None,
        *,
        deadline: float | None = None,
        report_progress: JobProgressFunction | None = None,
    ) -> Iterator[JobResult]:
        """Yield outcomes as they end; see `Engine.run`."""
        material = (
            self._put_shared_arrays(data),
            None if teacher_outputs is None else self._put_shared_arrays(teacher_outputs),
        )
        source = iter(jobs)
        again: deque[QueuedJob] = deque()
        running: dict[Any, QueuedJob] = {}
        try:
            while True:
                while len(running) < self._slots and not is_over(deadline):
                    turn = next_queued_job(again, source)
                    if turn is None:
                        break
                    seconds = None if deadline is None else deadline - time.monotonic()
                    running[self._perform.remote(turn.job, *material, self._board, seconds)] = turn
                if not running:
                    break
                ended, _ = self._ray.wait(list(running), timeout=PROGRESS_INTERVAL_SECONDS)
                for place in ended:
                    outcome = self._outcome(place, running.pop(place), again)
                    if outcome is not None:
                        yield outcome
                if report_progress is not None and running:
                    self._report_progress(running.values(), report_progress)
                if is_late(deadline):
                    self._cancel(running)
            yield from not_started(again, source)
        finally:
            self._cancel(running)  # only after an interruption: an exception, or the caller stopped asking

    def _outcome(self, place: Any, turn: QueuedJob, again: deque[QueuedJob]) -> JobResult | None:
        """Return what a task gave; None if it is done once more."""
        try:
            outcome: JobResult = self._ray.get(place)
        except self._ray.exceptions.RayError as error:
            failure = turn.record_crash(f"its worker process died ({type(error).__name__})", "done again")
            if failure is None:
                again.append(turn)
            return failure
        return msgspec.structs.replace(outcome, note=turn.note)

    def _report_progress(self, turns: Iterable[QueuedJob], report_progress: JobProgressFunction) -> None:
        now = time.monotonic()
        waiting = [turn for turn in turns if now - turn.progress_reported_at >= PROGRESS_INTERVAL_SECONDS]
        if not waiting:
            return
        with suppress(self._ray.exceptions.RayError):  # progress is a convenience
            known = self._ray.get(self._board.read.remote(), timeout=1.0)
            for turn in waiting:
                turn.share, turn.point = known.get(turn.job.key, (turn.share, turn.point))
        for turn in waiting:
            turn.progress_reported_at = now
            report_progress(turn.job.key, turn.share, turn.point)

    def _cancel(self, running: dict[Any, QueuedJob]) -> None:
        for place, turn in running.items():
            if not turn.is_ended:
                turn.is_ended = True
                self._ray.cancel(place, force=True)

    def _put_shared_arrays(self, arrays: TrainingData | TeacherOutputs) -> Any:
        """Put lessons or answers into Ray's store once, and return the reference."""
        for known, place in self._put:
            if known is arrays:
                return place
        place = self._ray.put(arrays)
        self._put.append((arrays, place))
        return place


class _ProgressBoard:
    """An actor on which tasks write how far they are."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[float, CurvePoint | None]] = {}

    def write(self, key: str, share: float, point: CurvePoint | None) -> None:
        """Note it."""
        self._known[key] = share, point

    def read(self) -> dict[str, tuple[float, CurvePoint | None]]:
        """Return all notes."""
        return self._known


def _perform(
    job: TrainingJob, data: TrainingData, answers: TeacherOutputs | None, board: Any, seconds: float | None
) -> JobResult:
    """Run in a worker of the cluster."""
    folder = Path(tempfile.gettempdir()) / f"edgewright-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    is_ours = folder.stat().st_uid == os.getuid()  # anybody could have made it before
    checkpoint = folder / checkpoint_name(job, data, answers) if is_ours else None
    outcome = run_training_job(
        job,
        data,
        answers,
        checkpoint=checkpoint,
        deadline=None if seconds is None else time.monotonic() + seconds,
        report_progress=lambda share, point: board.write.remote(job.key, share, point),
    )
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return outcome


def _check_reachable(address: str) -> None:
    """Find out quickly that nobody listens.

    Raises:
        InputError: It is no address.
        TargetError: Nobody listens.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise InputError(f"{address!r} is no address of a Ray cluster", remedy="Write ray://host:port.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_SECONDS).close()
    except OSError as error:
        raise TargetError(
            f"{address} cannot be reached: {error}",
            remedy="Check the address, and that the cluster's client server listens there (by default on 10001).",
        ) from error
