"""The hot path: guard, run, guard. It waits for nothing: a switch exchanges one reference between two calls."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from numpy.typing import NDArray

from edgewright.contract.errors import CandidateError
from edgewright.device.guard import Guard, Rejection
from edgewright.device.inference.shadow import Shadow
from edgewright.device.monitoring.monitor import Monitor
from edgewright.device.slots import Installed
from edgewright.runtime.session import Session

__all__ = ["Engine", "Prediction", "Predictor", "Tally"]


class Tally:
    """A number that many threads raise at once, without a lock.

    Attributes:
        tick: Raises it by one.
    """

    __slots__ = ("_count", "_taken", "tick")

    def __init__(self) -> None:
        self._count = itertools.count()
        self._taken = 0
        self.tick: Callable[[], int] = self._count.__next__

    @property
    def total(self) -> int:
        """How often it was raised."""
        return int(self._count.__reduce__()[1][0])

    @property
    def value(self) -> int:
        """How often it was raised since it was taken."""
        return self.total - self._taken

    def take(self) -> int:
        """Return the number, and begin anew."""
        value = self.value
        self._taken += value
        return value


@dataclass(frozen=True, slots=True)
class Engine:
    """An opened release.

    Attributes:
        release: Which.
        session: Of its model.
        guard: For its contract.
        monitor: Watches it; None if it came without a reference profile.
        served: Its inferences.
        failures: Of them, those that the runtime failed.
        rejected: Inputs or outputs that the guard rejected.
    """

    release: Installed
    session: Session
    guard: Guard
    monitor: Monitor | None = None
    served: Tally = field(default_factory=Tally)
    failures: Tally = field(default_factory=Tally)
    rejected: Tally = field(default_factory=Tally)

    def run(self, feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]] | Rejection:
        """Return the outputs in order, or why there are none.

        Raises:
            CandidateError: The runtime failed.
        """
        admitted = self.guard.admit(feed)
        if isinstance(admitted, Rejection):
            return admitted
        outputs = self.session.run(admitted)
        return self.guard.release(outputs) or outputs


class Prediction(msgspec.Struct, frozen=True, gc=False):
    """An answer, or why there is none.

    Attributes:
        outputs: By name; empty if there is no answer.
        release: That answered; None if there is no model.
        rejection: Why there is no answer, None if there is one.
    """

    outputs: Mapping[str, NDArray[Any]]
    release: Installed | None
    rejection: Rejection | None = None


@dataclass(slots=True, weakref_slot=True)
class Predictor:
    """Answers with whatever is current.

    Attributes:
        engine: The current one, None before the first. Exchanging it is the switch: calls in flight end with
            theirs.
        shadow: Runs beside it and is compared, None if nothing does.
    """

    engine: Engine | None = None
    shadow: Shadow | None = None

    def predict(self, feed: Mapping[str, NDArray[Any]]) -> Prediction:
        """Return the answer for one feed; it never raises for what the feed holds.

        Args:
            feed: Arrays by input name.
        """
        engine = self.engine  # one reading: a switch in between does not concern this call
        if engine is None:
            return Prediction({}, None, Rejection("no model", "", "no model is installed yet"))
        guard, session, monitor = engine.guard, engine.session, engine.monitor
        slot = -1 if monitor is None else monitor.admit(feed)
        if slot < 0:
            admitted = guard.admit(feed)
            if isinstance(admitted, Rejection):
                engine.rejected.tick()
                return Prediction({}, engine.release, admitted)
            feed = admitted
            slot = -1 if monitor is None else monitor.take(feed)
        try:
            outputs = session.run(feed)
        except BaseException as error:
            if monitor is not None and slot >= 0:
                monitor.cancel(slot)
            if not isinstance(error, CandidateError):
                raise
            engine.failures.tick()
            return Prediction({}, engine.release, Rejection("failed", "", error.message))
        if monitor is None or slot < 0 or not monitor.release(slot, outputs):
            held = guard.release(outputs)
            if held is not None:
                if monitor is not None and slot >= 0:
                    monitor.cancel(slot)
                engine.rejected.tick()
                return Prediction({}, engine.release, held)
            if monitor is not None and slot >= 0:
                monitor.settle(slot, outputs)
        engine.served.tick()
        if self.shadow is not None:
            self._offer(feed, outputs)
        if len(outputs) == 1:
            return Prediction({session.outputs[0]: outputs[0]}, engine.release)
        return Prediction(dict(zip(session.outputs, outputs, strict=True)), engine.release)

    @property
    def served(self) -> int:
        """Inferences of the current engine that nobody has taken note of."""
        return 0 if self.engine is None else self.engine.served.value

    @property
    def failures(self) -> int:
        """Inferences that the runtime failed since the switch."""
        return 0 if self.engine is None else self.engine.failures.value

    @property
    def rejected(self) -> int:
        """Inputs or outputs that the guard rejected since the switch."""
        return 0 if self.engine is None else self.engine.rejected.value

    def take_served(self) -> int:
        """Return how many inferences were served, and count from 0 again."""
        return 0 if self.engine is None else self.engine.served.take()

    def _offer(self, feed: Mapping[str, NDArray[Any]], outputs: list[NDArray[Any]]) -> None:
        shadow = self.shadow
        if shadow is not None:
            shadow.offer(feed, outputs)
