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

from edgewright.compress.train.data.teacher_outputs import Answers, write_answers
from edgewright.compress.train.data.training_data import Lessons, write_lessons
from edgewright.compress.train.engine.job import Job, Outcome, Tell, checkpoint_name
from edgewright.compress.train.engine.job_queue import TELL_S, Turn, is_late, is_over, next_turn, not_begun
from edgewright.compress.train.engine.worker import Order, Progress, receive, send
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

    def begin(self, order: Order) -> None:
        """Hand it an order; a worker that is dead already is noticed by its silence."""
        assert self.process.stdin is not None  # noqa: S101 # it was opened as a pipe
        try:
            send(self.process.stdin, order)
        except OSError:
            self.kill()

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.wait()
        if self.process.stdin is not None:
            with suppress(OSError):  # what it did not read
                self.process.stdin.close()

    def epitaph(self) -> str:
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
            while content := receive(stream):
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
        self._handed: list[tuple[Lessons | Answers, str]] = []

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
        jobs: Iterable[Job],
        lessons: Lessons,
        answers: Answers | None = None,
        *,
        deadline: float | None = None,
        tell: Tell | None = None,
    ) -> Iterator[Outcome]:
        """Yield outcomes as they end; see `Engine.run`.

        Raises:
            OutputError: The folder cannot be written.
        """
        places = self._hand_over(lessons), self._hand_over(answers) if answers is not None else ""
        checkpoints = self._folder / "checkpoints"
        source = iter(jobs)
        again: deque[Turn] = deque()
        running: dict[_Worker, Turn] = {}
        try:
            while True:
                while len(running) < self._count and not is_over(deadline):
                    turn = next_turn(again, source)
                    if turn is None:
                        break
                    worker = self._idle_worker(running)
                    running[worker] = turn
                    seconds = None if deadline is None else deadline - time.monotonic()
                    worker.begin(Order(turn.job, *places, str(checkpoints), seconds))
                if not running:
                    break
                ended = self._wait(running, again, tell)
                if ended is not None:
                    job, outcome = ended
                    yield outcome
                    if outcome.model is not None:
                        (checkpoints / checkpoint_name(job, lessons, answers)).unlink(missing_ok=True)
                if is_late(deadline):
                    for worker, turn in running.items():
                        turn.is_ended = True
                        worker.kill()
            yield from not_begun(again, source)
        finally:
            for worker in running:  # only after an interruption: an exception, or the caller stopped asking
                self._end(worker)

    def _end(self, worker: _Worker) -> None:
        worker.kill()
        if worker in self._workers:
            self._workers.remove(worker)

    def _wait(
        self, running: dict[_Worker, Turn], again: deque[Turn], tell: Tell | None
    ) -> tuple[Job, Outcome] | None:
        """Take one message in, tell how far everyone is, and return what ended."""
        ended = None
        try:
            worker, content = self._inbox.get(timeout=TELL_S)
        except Empty:
            pass
        else:
            if worker in running:
                ended = self._take(worker, content, running, again)
        now = time.monotonic()
        for turn in running.values():
            if tell is not None and now - turn.told >= TELL_S:
                turn.told = now
                tell(turn.job.key, turn.share, turn.point)
        return ended

    def _take(
        self, worker: _Worker, content: bytes, running: dict[_Worker, Turn], again: deque[Turn]
    ) -> tuple[Job, Outcome] | None:
        turn = running[worker]
        if not content:
            del running[worker]
            self._end(worker)
            failure = turn.died(worker.epitaph(), "done again from its checkpoint")
            if failure is None:
                again.append(turn)
                return None
            return turn.job, failure
        message: Outcome | Progress = msgspec.msgpack.decode(content, type=Outcome | Progress)
        if isinstance(message, Progress):
            turn.share, turn.point = message.share, message.point
            return None
        del running[worker]
        return turn.job, msgspec.structs.replace(message, note=turn.note)

    def _idle_worker(self, running: dict[_Worker, Turn]) -> _Worker:
        for worker in [worker for worker in self._workers if worker not in running]:
            if worker.process.poll() is None:
                return worker
            self._end(worker)
        worker = _Worker(self._folder, self._inbox)
        self._workers.append(worker)
        return worker

    def _hand_over(self, material: Lessons | Answers) -> str:
        """Write lessons or answers once, and return their folder."""
        for known, place in self._handed:
            if known is material:
                return place
        folder = self._folder / "material" / str(len(self._handed))
        shutil.rmtree(folder, ignore_errors=True)  # an earlier run's
        if isinstance(material, Lessons):
            write_lessons(material, folder)
        else:
            write_answers(material, folder)
        self._handed.append((material, str(folder)))
        return str(folder)
