"""A job on its way through an engine: how often it was tried, how far it is, and when it is too late."""

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from edgewright.compress.train.config import CurvePoint
from edgewright.compress.train.engine.job import Job, Outcome

__all__ = ["TELL_S", "Turn", "is_late", "is_over", "next_turn", "not_begun"]

TELL_S = 0.5  # between two words about a job
_ATTEMPTS = 2
_GRACE_S = 60.0  # that a job may take past the deadline, before its process is ended


@dataclass(slots=True)
class Turn:
    """A job on its way.

    Attributes:
        job: The training.
        attempts: That failed with their process.
        note: What happened, for people.
        share: Of its steps that are done.
        point: Its newest epoch.
        is_ended: Whether it was ended for being late.
        told: When somebody was told last, of `time.monotonic()`.
        began: The same of its first attempt.
    """

    job: Job
    attempts: int = 0
    note: str = ""
    share: float = 0.0
    point: CurvePoint | None = None
    is_ended: bool = False
    told: float = 0.0
    began: float = field(default_factory=time.monotonic)

    def died(self, reason: str, how: str) -> Outcome | None:
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
        return Outcome(self.job.key, None, curve, time.monotonic() - self.began, reason)


def next_turn(again: deque[Turn], source: Iterator[Job]) -> Turn | None:
    """Return what is to be done next, None if nothing is left."""
    if again:
        return again.popleft()
    job = next(source, None)
    return None if job is None else Turn(job)


def not_begun(again: deque[Turn], source: Iterator[Job]) -> Iterator[Outcome]:
    """Yield an outcome for every job that the deadline left over."""
    while (turn := next_turn(again, source)) is not None:
        why = f"{turn.note}: there was no time left" if turn.note else "there was no time left to begin it"
        yield Outcome(turn.job.key, None, (), 0.0, why)


def is_over(deadline: float | None) -> bool:
    """Whether no job may begin any more."""
    return deadline is not None and time.monotonic() >= deadline


def is_late(deadline: float | None) -> bool:
    """Whether jobs that still run are to be ended."""
    return deadline is not None and time.monotonic() > deadline + _GRACE_S
