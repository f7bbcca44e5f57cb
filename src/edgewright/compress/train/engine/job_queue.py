"""A job on its way through an engine: how often it was tried, how far it is, and when it is too late."""

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from edgewright.compress.train.config import CurvePoint
from edgewright.compress.train.engine.job import JobResult, TrainingJob

__all__ = ["PROGRESS_INTERVAL_SECONDS", "QueuedJob", "is_late", "is_over", "next_queued_job", "not_started"]

PROGRESS_INTERVAL_SECONDS = 0.5  # between two words about a job
_ATTEMPTS = 2
_GRACE_SECONDS = 60.0  # that a job may take past the deadline, before its process is ended


@dataclass(slots=True)
class QueuedJob:
    """A job on its way.

    Attributes:
        job: The training.
        attempts: That failed with their process.
        note: What happened, for people.
        share: Of its steps that are done.
        point: Its newest epoch.
        is_ended: Whether it was ended for being late.
        progress_reported_at: When somebody was told last, of `time.monotonic()`.
        started_at: The same of its first attempt.
    """

    job: TrainingJob
    attempts: int = 0
    note: str = ""
    share: float = 0.0
    point: CurvePoint | None = None
    is_ended: bool = False
    progress_reported_at: float = 0.0
    started_at: float = field(default_factory=time.monotonic)

    def record_crash(self, reason: str, how: str) -> JobResult | None:
        """Count an attempt whose process died.

        Args:
            reason: What is known of its end.
            how: The job is done once more.

        Returns:
            The failure; None if the job has another attempt.
        """
        self.attempts += 1
        if self.is_ended:
            reason = "it did not stop at its deadline and was ended"
        elif self.attempts < _ATTEMPTS:
            self.note = f"{reason}; {how}"
            return None
        elif self.attempts > 1:
            reason = f"{reason}, twice"
        curve = () if self.point is None else (self.point,)
        return JobResult(self.job.key, None, curve, time.monotonic() - self.started_at, reason)


def next_queued_job(again: deque[QueuedJob], source: Iterator[TrainingJob]) -> QueuedJob | None:
    """Return what is to be done next, None if nothing is left."""
    if again:
        return again.popleft()
    job = next(source, None)
    return None if job is None else QueuedJob(job)


def not_started(again: deque[QueuedJob], source: Iterator[TrainingJob]) -> Iterator[JobResult]:
    """Yield an outcome for every job that the deadline left over."""
    while (turn := next_queued_job(again, source)) is not None:
        why = f"{turn.note}: there was no time left" if turn.note else "there was no time left to begin it"
        yield JobResult(turn.job.key, None, (), 0.0, why)


def is_over(deadline: float | None) -> bool:
    """Whether no job may begin any more."""
    return deadline is not None and time.monotonic() >= deadline


def is_late(deadline: float | None) -> bool:
    """Whether jobs that still run are to be ended."""
    return deadline is not None and time.monotonic() > deadline + _GRACE_SECONDS
