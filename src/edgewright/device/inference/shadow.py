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
from edgewright.device.slots import InstalledRelease

__all__ = ["ShadowComparison", "ShadowRunner", "compare_outputs"]

_MAX_QUEUED = 4
_CLOSE_TIMEOUT_SECONDS = 5.0


class ShadowComparison(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a model's answers compare with those of the one that serves.

    Attributes:
        compared_inputs: That both answered.
        agreeing_inputs: Of them, those with the same greatest value in each row of each output.
        failed_inputs: That the new one could not answer.
        max_difference: Greatest difference of an output.
        skipped: That came while it was busy.
    """

    compared_inputs: int = 0
    agreeing_inputs: int = 0
    failed_inputs: int = 0
    max_difference: float = 0.0
    skipped: int = 0


@dataclass(slots=True)
class ShadowRunner:
    """A model that runs beside the one that serves.

    Attributes:
        release: Of the model.
        run: Its guard and its session: outputs for a feed.
        comparison: So far.
    """

    release: InstalledRelease
    run: "Callable[[Mapping[str, NDArray[Any]]], list[NDArray[Any]] | Rejection]"
    comparison: ShadowComparison = field(default_factory=ShadowComparison)
    _queue: "queue.Queue[tuple[Mapping[str, NDArray[Any]], list[NDArray[Any]]] | None]" = field(
        default_factory=lambda: queue.Queue(_MAX_QUEUED)
    )
    _thread: threading.Thread | None = None
    _starting: threading.Lock = field(default_factory=threading.Lock)

    def enqueue(self, inputs: Mapping[str, NDArray[Any]], outputs: list[NDArray[Any]]) -> None:
        """Compare with what the serving model answered, later and if there is time."""
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="edgewright shadow", daemon=True)
                self._thread.start()
        try:
            # The caller may use its arrays again at once.
            self._queue.put_nowait(({name: array.copy() for name, array in inputs.items()}, outputs))
        except queue.Full:
            self._update_comparison(skipped=1)

    def close(self) -> ShadowComparison:
        """Finish what waits, if that is soon, and return the comparison."""
        if self._thread is not None:
            with suppress(queue.Full):
                self._queue.put(None, timeout=_CLOSE_TIMEOUT_SECONDS)
            self._thread.join(_CLOSE_TIMEOUT_SECONDS)
            self._thread = None
        return self.comparison

    def _run(self) -> None:
        while (entry := self._queue.get()) is not None:
            feed, expected = entry
            try:
                found = self.run(feed)
            except Exception:  # whatever it is, the model that serves goes on
                found = Rejection("failed", "", "")
            if isinstance(found, Rejection):
                self._update_comparison(failed_inputs=1)
                continue
            agreed, greatest = compare_outputs(found, expected)
            self._update_comparison(compared_inputs=1, agreeing_inputs=int(agreed), greatest=greatest)

    def _update_comparison(self, *, greatest: float = 0.0, **more: int) -> None:
        known = self.comparison
        counts = {name: getattr(known, name) + count for name, count in more.items()}
        self.comparison = msgspec.structs.replace(
            known, max_difference=max(known.max_difference, greatest), **counts
        )


def compare_outputs(actual: list[NDArray[Any]], expected: list[NDArray[Any]]) -> tuple[bool, float]:
    """Return whether two answers agree, and their greatest difference.

    >>> compare_outputs([np.array([[0.1, 0.9]])], [np.array([[0.2, 0.8]])])[0]
    True
    """
    if len(actual) != len(expected):
        return False, float("inf")
    agreed, greatest = True, 0.0
    for one, other in zip(actual, expected, strict=True):
        if one.shape != other.shape or one.dtype.kind not in "fiu":
            agreed = agreed and one.shape == other.shape and bool((one == other).all())
            continue
        if not one.size:
            continue
        greatest = max(greatest, float(np.abs(one.astype(np.float64) - other.astype(np.float64)).max()))
        if one.ndim and one.shape[-1] > 1:
            agreed = agreed and bool((one.argmax(-1) == other.argmax(-1)).all())
    return agreed, greatest
