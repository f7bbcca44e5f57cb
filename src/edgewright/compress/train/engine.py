"""Where jobs run: worker processes on this machine, or Ray."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Protocol, Self

import msgspec

from edgewright.compress.train.answers import Answers, write_answers
from edgewright.compress.train.job import Job, Outcome, Tell
from edgewright.compress.train.lessons import Lessons, write_lessons
from edgewright.compress.train.settings import CurvePoint
from edgewright.compress.train.worker import Order, Progress, receive, send
from edgewright.contract.errors import InputError

__all__ = ["Engine", "LocalEngine", "open_engine"]

_ATTEMPTS = 2
_TELL_S = 0.5
_GRACE_S = 60.0  # that a worker may take past the deadline, before it is ended


class Engine(Protocol):
    """Runs jobs; a context manager that leaves nothing running."""

    def run(
        self,
        jobs: Iterable[Job],
        lessons: Lessons,
        answers: Answers | None = None,
        *,
        deadline: float | None = None,
        tell: Tell | None = None,
    ) -> Iterator[Outcome]:
        """Yield outcomes as they end; a job that fails is an outcome too.

        Args:
            jobs: Taken one by one as workers become free, so that a generator can look at earlier outcomes.
            lessons: Given to all of them.
            answers: A teacher's, given to all of them.
            deadline: Of `time.monotonic()`; running jobs end there with their best state, others do not begin.
            tell: Called in this thread, for every running job at least once a second.
        """
        ...

    def close(self) -> None:
        """End all workers."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_engine(name: str, workers: int, folder: Path) -> Engine:
    """Return the engine of this name.

    Args:
        name: "local", "ray" for Ray on this machine, or "ray://host:port".
        workers: Jobs at once; on a cluster its processors decide.
        folder: For lessons, checkpoints and logs.

    Raises:
        InputError: There is no such engine, or Ray is missing.
        TargetError: The cluster cannot be reached.
    """
    if name == "local":
        return LocalEngine(workers, folder)
    if name == "ray" or name.startswith("ray://"):
        from edgewright.compress.train.cluster import RayEngine

        return RayEngine(workers, None if name == "ray" else name)
    raise InputError(f"there is no engine {name!r}", remedy='Choose "local", "ray" or "ray://host:port".')


class LocalEngine:
    """Worker processes of one thread each, started when first needed and used again.

    Lessons and answers reach them through files that they map. A worker that dies has its job done once more,
    from its checkpoint. Checkpoints stay in `folder/checkpoints`, so that a later run of the same job goes on.
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
        """Return itself."""
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
        source = iter(jobs)
        again: deque[_Task] = deque()
        running: dict[_Worker, _Task] = {}
        try:
            while True:
                while len(running) < self._count and not _is_over(deadline):
                    task = again.popleft() if again else _next_task(source)
                    if task is None:
                        break
                    worker = self._idle_worker(running)
                    running[worker] = task
                    seconds = None if deadline is None else deadline - time.monotonic()
                    worker.begin(Order(task.job, *places, str(self._folder / "checkpoints"), seconds))
                if not running:
                    break
                outcome = self._wait(running, again, tell)
                if outcome is not None:
                    yield outcome
                _end_the_late(running, deadline)
            yield from (_not_begun(task) for task in _rest(again, source))
        finally:
            for worker in running:  # only after an interruption: an exception, or the caller stopped asking
                worker.kill()
                self._workers.remove(worker)

    def _wait(self, running: "dict[_Worker, _Task]", again: "deque[_Task]", tell: Tell | None) -> Outcome | None:
        """Take one message in, and tell how far everyone is."""
        try:
            worker, content = self._inbox.get(timeout=_TELL_S)
        except Empty:
            worker, content = None, b""
        outcome = None
        if worker is not None and worker in running:
            task = running[worker]
            if not content:
                outcome = self._after_death(worker, running, again)
            else:
                message = msgspec.msgpack.decode(content, type=Outcome | Progress)
                if isinstance(message, Outcome):
                    del running[worker]
                    outcome = msgspec.structs.replace(message, note=task.note)
                else:
                    task.share, task.point = message.share, message.point
        now = time.monotonic()
        for task in running.values() if tell is not None else ():
            if now - task.told >= _TELL_S:
                task.told = now
                tell(task.job.key, task.share, task.point)
        return outcome

    def _after_death(
        self, worker: "_Worker", running: "dict[_Worker, _Task]", again: "deque[_Task]"
    ) -> Outcome | None:
        task = running.pop(worker)
        self._workers.remove(worker)
        reason = worker.epitaph()
        task.attempts += 1
        if task.attempts < _ATTEMPTS and not task.is_late:
            task.note = f"{reason}; done again from its checkpoint"
            again.append(task)
            return None
        times = "" if task.attempts == 1 else " again"
        return Outcome(
            task.job.key,
            None,
            () if task.point is None else (task.point,),
            time.monotonic() - task.began,
            "it did not stop at its deadline and was ended" if task.is_late else f"{reason}{times}",
        )

    def _idle_worker(self, running: "dict[_Worker, _Task]") -> "_Worker":
        for worker in self._workers:
            if worker not in running and worker.process.poll() is None:
                return worker
        self._workers = [worker for worker in self._workers if worker.process.poll() is None]
        worker = _Worker(self._folder, self._inbox)
        self._workers.append(worker)
        return worker

    def _hand_over(self, material: Lessons | Answers) -> str:
        """Write lessons or answers once, and return their folder."""
        for known, place in self._handed:
            if known is material:
                return place
        place = self._folder / "material" / str(len(self._handed))
        if isinstance(material, Lessons):
            write_lessons(material, place)
        else:
            write_answers(material, place)
        self._handed.append((material, str(place)))
        return str(place)


@dataclass(slots=True)
class _Task:
    """A job on its way."""

    job: Job
    attempts: int = 0
    note: str = ""
    share: float = 0.0
    point: CurvePoint | None = None
    is_late: bool = False
    told: float = 0.0
    began: float = field(default_factory=time.monotonic)


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
                [sys.executable, "-P", "-m", "edgewright.compress.train.worker"],
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
            while content := receive(stream):  # type: ignore[arg-type] # Popen calls it IO[bytes]
                inbox.put((self, content))
        inbox.put((self, b""))


def _next_task(source: Iterator[Job]) -> _Task | None:
    job = next(source, None)
    return None if job is None else _Task(job)


def _rest(again: Iterable[_Task], source: Iterator[Job]) -> Iterator[_Task]:
    yield from again
    yield from map(_Task, source)


def _is_over(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() >= deadline


def _end_the_late(running: dict[_Worker, _Task], deadline: float | None) -> None:
    if deadline is not None and time.monotonic() > deadline + _GRACE_S:
        for worker, task in running.items():
            task.is_late = True
            worker.kill()


def _not_begun(task: _Task) -> Outcome:
    return Outcome(task.job.key, None, (), 0.0, "there was no time left to begin it")
