"""Where jobs run: worker processes on this machine, or Ray."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from edgewright.compress.train.data.teacher_outputs import TeacherOutputs
from edgewright.compress.train.data.training_data import TrainingData
from edgewright.compress.train.engine.job import JobProgressFunction, JobResult, TrainingJob
from edgewright.compress.train.engine.local import LocalEngine
from edgewright.contract.errors import InputError

__all__ = ["TrainingEngine", "check_engine", "open_engine"]


class TrainingEngine(Protocol):
    """Runs jobs; a context manager that leaves nothing running."""

    def run(
        self,
        jobs: Iterable[TrainingJob],
        data: TrainingData,
        teacher_outputs: TeacherOutputs | None = None,
        *,
        deadline: float | None = None,
        report_progress: JobProgressFunction | None = None,
    ) -> Iterator[JobResult]:
        """Yield outcomes as they end; a job that fails is an outcome too.

        Args:
            jobs: Taken one by one as workers become free, so that a generator can look at earlier outcomes.
            data: Given to all of them.
            teacher_outputs: A teacher's, given to all of them.
            deadline: Of `time.monotonic()`; running jobs end there with their best state, others do not begin.
            report_progress: Called in this thread, for every running job at least once a second.
        """
        ...

    def close(self) -> None:
        """End all workers."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def check_engine(name: str) -> None:
    """Refuse a name that is none of an engine.

    Raises:
        InputError: There is no such engine.
    """
    if name not in ("local", "ray") and not name.startswith("ray://"):
        raise InputError(f"there is no engine {name!r}", remedy='Choose "local", "ray" or "ray://host:port".')


def open_engine(name: str, workers: int, folder: Path) -> TrainingEngine:
    """Return the engine of this name.

    Args:
        name: "local", "ray" for Ray on this machine, or "ray://host:port".
        workers: Jobs at once; on a cluster its processors decide.
        folder: For lessons, checkpoints and logs.

    Raises:
        InputError: There is no such engine, or Ray is missing.
        TargetError: The cluster cannot be reached.
    """
    check_engine(name)
    if name == "local":
        return LocalEngine(workers, folder)
    from edgewright.compress.train.engine.ray_engine import RayEngine

    return RayEngine(workers, None if name == "ray" else name)
