"""Running a new model beside the old one on the same inputs, and comparing their answers, off the inference path.

The old one answers. What comes while the new one is busy is not compared, so nobody waits and memory is bounded.
"""

import queue
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgewright.device.guard import Rejection
from edgewright.device.slots import Installed

__all__ = ["Comparison", "Shadow", "compare"]

_WAITING = 4
_PATIENCE_S = 5.0


class Comparison(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a model's answers compare with those of the one that serves.

    Attributes:
        inputs: That both answered.
        agreed: Of them, those with the same greatest value in each row of each output.
        failed: That the new one could not answer.
        greatest: Greatest difference of an output.
        left_out: That came while it was busy.
    """

    inputs: int = 0
    agreed: int = 0
    failed: int = 0
    greatest: float = 0.0
    left_out: int = 0


@dataclass(slots=True)
class Shadow:
    """A model that runs beside the one that serves.

    Attributes:
        release: Of the model.
        run: Its guard and its session: outputs for a feed.
        comparison: So far.
    """

    release: Installed
    run: "Callable[[Mapping[str, NDArray[Any]]], list[NDArray[Any]] | Rejection]"
    comparison: Comparison = field(default_factory=Comparison)
    _queue: "queue.Queue[tuple[Mapping[str, NDArray[Any]], list[NDArray[Any]]] | None]" = field(
        default_factory=lambda: queue.Queue(_WAITING)
    )
    _thread: threading.Thread | None = None
    _starting: threading.Lock = field(default_factory=threading.Lock)

    def offer(self, feed: Mapping[str, NDArray[Any]], outputs: list[NDArray[Any]]) -> None:
        """Compare with what the serving model answered, later and if there is time."""
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="edgewright shadow", daemon=True)
                self._thread.start()
        try:
            # The caller may use its arrays again at once.
            self._queue.put_nowait(({name: array.copy() for name, array in feed.items()}, outputs))
        except queue.Full:
            self._count(left_out=1)

    def close(self) -> Comparison:
        """Finish what waits, if that is soon, and return the comparison."""
        if self._thread is not None:
            with suppress(queue.Full):
                self._queue.put(None, timeout=_PATIENCE_S)
            self._thread.join(_PATIENCE_S)
            self._thread = None
        return self.comparison

    def _work(self) -> None:
        while (entry := self._queue.get()) is not None:
            feed, expected = entry
            try:
                found = self.run(feed)
            except Exception:  # whatever it is, the model that serves goes on
                found = Rejection("failed", "", "")
            if isinstance(found, Rejection):
                self._count(failed=1)
                continue
            agreed, greatest = compare(found, expected)
            self._count(inputs=1, agreed=int(agreed), greatest=greatest)

    def _count(self, *, greatest: float = 0.0, **more: int) -> None:
        known = self.comparison
        counts = {name: getattr(known, name) + count for name, count in more.items()}
        self.comparison = msgspec.structs.replace(known, greatest=max(known.greatest, greatest), **counts)


def compare(found: list[NDArray[Any]], expected: list[NDArray[Any]]) -> tuple[bool, float]:
    """Return whether two answers agree, and their greatest difference.

    >>> compare([np.array([[0.1, 0.9]])], [np.array([[0.2, 0.8]])])[0]
    True
    """
    if len(found) != len(expected):
        return False, float("inf")
    agreed, greatest = True, 0.0
    for one, other in zip(found, expected, strict=True):
        if one.shape != other.shape or one.dtype.kind not in "fiu":
            agreed = agreed and one.shape == other.shape and bool((one == other).all())
            continue
        if not one.size:
            continue
        greatest = max(greatest, float(np.abs(one.astype(np.float64) - other.astype(np.float64)).max()))
        if one.ndim and one.shape[-1] > 1:
            agreed = agreed and bool((one.argmax(-1) == other.argmax(-1)).all())
    return agreed, greatest
