"""Jobs in worker processes on this machine."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Self

import msgspec

from edgewright.compress.train.data.teacher_outputs import TeacherOutputs, write_teacher_outputs
from edgewright.compress.train.data.training_data import TrainingData, write_training_data
from edgewright.compress.train.engine.job import JobProgressFunction, JobResult, TrainingJob, checkpoint_name
from edgewright.compress.train.engine.job_queue import (
    PROGRESS_INTERVAL_SECONDS,
    QueuedJob,
    is_late,
    is_over,
    next_queued_job,
    not_started,
)
from edgewright.compress.train.engine.worker import WorkerOrder, WorkerProgress, receive_message, send_message
from edgewright.contract.errors import InputError

__all__ = ["LocalEngine"]


class _Worker:
    """One process, and a thread that reads from it."""

    _serial = 0

    def __init__(self, folder: Path, inbox: "SimpleQueue[tuple[_Worker, bytes]]") -> None:
        _Worker._serial += 1
        logs = folder / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        self._log = logs / f"{os.getpid()}-{_Worker._serial}.txt"
        with self._log.open("wb") as errors:
            # A session of its own: Ctrl-C in the terminal reaches the parent alone, which ends its workers.
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "edgewright.compress.train.engine.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
                env=os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
            )
        threading.Thread(target=self._listen, args=(inbox,), daemon=True).start()

    def start(self, order: WorkerOrder) -> None:
        """Hand it an order; a worker that is dead already is noticed by its silence."""
        assert self.process.stdin is not None  # noqa: S101 # it was opened as a pipe
        try:
            send_message(self.process.stdin, order)
        except OSError:
            self.kill()

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.wait()
        if self.process.stdin is not None:
            with suppress(OSError):  # what it did not read
                self.process.stdin.close()

    def exit_reason(self) -> str:
        """Return what is known of its end."""
        code = self.process.wait()
        lines = self._log.read_text(errors="replace").strip().splitlines()
        if code == -signal.SIGKILL:
            return "its worker process was killed (SIGKILL), perhaps for lack of memory"
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        return f"its worker process ended {how}" + (f": {lines[-1][:300]}" if lines else "")

    def _listen(self, inbox: "SimpleQueue[tuple[_Worker, bytes]]") -> None:
        assert self.process.stdout is not None  # noqa: S101 # it was opened as a pipe
        with self.process.stdout as stream:
            while content := receive_message(stream):
                inbox.put((self, content))
        inbox.put((self, b""))


class LocalEngine:
    """Worker processes of one thread each, started when first needed and used again.

    Lessons and answers reach them through files that they map. A worker that dies has its job done once more,
    from its checkpoint. Checkpoints are in `folder/checkpoints`, so that a later run of the same job goes on; one
    is removed when the next outcome is asked for after its own.
    """

    def __init__(self, workers: int, folder: Path) -> None:
        if workers < 1:
            raise InputError(f"{workers} workers cannot train", remedy="Give 1 or more.")
        self._count = workers
        self._folder = folder
        self._workers: list[_Worker] = []
        self._inbox: SimpleQueue[tuple[_Worker, bytes]] = SimpleQueue()
        self._handed: list[tuple[TrainingData | TeacherOutputs, str]] = []

    def __enter__(self) -> Self:
        """Start the workers, which take a moment to load PyTorch, and return itself."""
        while len(self._workers) < self._count:
            self._workers.append(_Worker(self._folder, self._inbox))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End all workers."""
        self.close()

    def close(self) -> None:
        """End all workers at once; their checkpoints stay."""
        for worker in self._workers:
            worker.kill()
        self._workers.clear()

    def run(
        self,
        jobs: Iterable[TrainingJob],
        data: TrainingData,
        teacher_outputs: TeacherOutputs | None = None,
        *,
        deadline: float | None = None,
        report_progress: JobProgressFunction | None = None,
    ) -> Iterator[JobResult]:
        """Yield outcomes as they end; see `Engine.run`.

        Raises:
            OutputError: The folder cannot be written.
        """
        places = (
            self._write_shared_arrays(data),
            self._write_shared_arrays(teacher_outputs) if teacher_outputs is not None else "",
        )
        checkpoints = self._folder / "checkpoints"
        source = iter(jobs)
        again: deque[QueuedJob] = deque()
        running: dict[_Worker, QueuedJob] = {}
        try:
            while True:
                while len(running) < self._count and not is_over(deadline):
                    turn = next_queued_job(again, source)
                    if turn is None:
                        break
                    worker = self._idle_worker(running)
                    running[worker] = turn
                    seconds = None if deadline is None else deadline - time.monotonic()
                    worker.start(WorkerOrder(turn.job, *places, str(checkpoints), seconds))
                if not running:
                    break
                ended = self._wait(running, again, report_progress)
                if ended is not None:
                    job, outcome = ended
                    yield outcome
                    if outcome.model is not None:
                        (checkpoints / checkpoint_name(job, data, teacher_outputs)).unlink(missing_ok=True)
                if is_late(deadline):
                    for worker, turn in running.items():
                        turn.is_ended = True
                        worker.kill()
            yield from not_started(again, source)
        finally:
            for worker in running:  # only after an interruption: an exception, or the caller stopped asking
                self._end(worker)

    def _end(self, worker: _Worker) -> None:
        worker.kill()
        if worker in self._workers:
            self._workers.remove(worker)

    def _wait(
        self,
        running: dict[_Worker, QueuedJob],
        again: deque[QueuedJob],
        report_progress: JobProgressFunction | None,
    ) -> tuple[TrainingJob, JobResult] | None:
        """Take one message in, tell how far everyone is, and return what ended."""
        ended = None
        try:
            worker, content = self._inbox.get(timeout=PROGRESS_INTERVAL_SECONDS)
        except Empty:
            pass
        else:
            if worker in running:
                ended = self._handle_message(worker, content, running, again)
        now = time.monotonic()
        for turn in running.values():
            if report_progress is not None and now - turn.progress_reported_at >= PROGRESS_INTERVAL_SECONDS:
                turn.progress_reported_at = now
                report_progress(turn.job.key, turn.share, turn.point)
        return ended

    def _handle_message(
        self, worker: _Worker, content: bytes, running: dict[_Worker, QueuedJob], again: deque[QueuedJob]
    ) -> tuple[TrainingJob, JobResult] | None:
        turn = running[worker]
        if not content:
            del running[worker]
            self._end(worker)
            failure = turn.record_crash(worker.exit_reason(), "done again from its checkpoint")
            if failure is None:
                again.append(turn)
                return None
            return turn.job, failure
        message: JobResult | WorkerProgress = msgspec.msgpack.decode(content, type=JobResult | WorkerProgress)
        if isinstance(message, WorkerProgress):
            turn.share, turn.point = message.share, message.point
            return None
        del running[worker]
        return turn.job, msgspec.structs.replace(message, note=turn.note)

    def _idle_worker(self, running: dict[_Worker, QueuedJob]) -> _Worker:
        for worker in [worker for worker in self._workers if worker not in running]:
            if worker.process.poll() is None:
                return worker
            self._end(worker)
        worker = _Worker(self._folder, self._inbox)
        self._workers.append(worker)
        return worker

    def _write_shared_arrays(self, arrays: TrainingData | TeacherOutputs) -> str:
        """Write lessons or answers once, and return their folder."""
        for known, place in self._handed:
            if known is arrays:
                return place
        folder = self._folder / "material" / str(len(self._handed))
        shutil.rmtree(folder, ignore_errors=True)  # an earlier run's
        if isinstance(arrays, TrainingData):
            write_training_data(arrays, folder)
        else:
            write_teacher_outputs(arrays, folder)
        self._handed.append((arrays, str(folder)))
        return str(folder)
