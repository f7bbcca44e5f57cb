"""The hot path: guard, run, guard. It waits for nothing: a switch exchanges one reference between two calls."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from numpy.typing import NDArray

from edgewright.contract.errors import CandidateError
from edgewright.device.guard import Guard, Rejection
from edgewright.device.inference.shadow import ShadowRunner
from edgewright.device.monitoring.monitor import Monitor
from edgewright.device.slots import InstalledRelease
from edgewright.runtime.session import InferenceSession

__all__ = ["AtomicCounter", "LoadedRelease", "Prediction", "Predictor"]


class AtomicCounter:
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
    def since_last_drain(self) -> int:
        """How often it was raised since it was taken."""
        return self.total - self._taken

    def drain(self) -> int:
        """Return the number, and begin anew."""
        value = self.since_last_drain
        self._taken += value
        return value


@dataclass(frozen=True, slots=True)
class LoadedRelease:
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

    release: InstalledRelease
    session: InferenceSession
    guard: Guard
    monitor: Monitor | None = None
    served: AtomicCounter = field(default_factory=AtomicCounter)
    failures: AtomicCounter = field(default_factory=AtomicCounter)
    rejected: AtomicCounter = field(default_factory=AtomicCounter)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]] | Rejection:
        """Return the outputs in order, or why there are none.

        Raises:
            CandidateError: The runtime failed.
        """
        admitted = self.guard.check_inputs(inputs)
        if isinstance(admitted, Rejection):
            return admitted
        outputs = self.session.run(admitted)
        return self.guard.check_outputs(outputs) or outputs


class Prediction(msgspec.Struct, frozen=True, gc=False):
    """An answer, or why there is none.

    Attributes:
        outputs: By name; empty if there is no answer.
        release: That answered; None if there is no model.
        rejection: Why there is no answer, None if there is one.
    """

    outputs: Mapping[str, NDArray[Any]]
    release: InstalledRelease | None
    rejection: Rejection | None = None


@dataclass(slots=True, weakref_slot=True)
class Predictor:
    """Answers with whatever is current.

    Attributes:
        current: The current one, None before the first. Exchanging it is the switch: calls in flight end with
            theirs.
        shadow: Runs beside it and is compared, None if nothing does.
    """

    current: LoadedRelease | None = None
    shadow: ShadowRunner | None = None

    def predict(self, inputs: Mapping[str, NDArray[Any]]) -> Prediction:
        """Return the answer for one feed; it never raises for what the feed holds.

        Args:
            inputs: Arrays by input name.
        """
        engine = self.current  # one reading: a switch in between does not concern this call
        if engine is None:
            return Prediction({}, None, Rejection("no model", "", "no model is installed yet"))
        guard, session, monitor = engine.guard, engine.session, engine.monitor
        slot = -1 if monitor is None else monitor.begin_checked(inputs)
        if slot < 0:
            admitted = guard.check_inputs(inputs)
            if isinstance(admitted, Rejection):
                engine.rejected.tick()
                return Prediction({}, engine.release, admitted)
            inputs = admitted
            slot = -1 if monitor is None else monitor.begin(inputs)
        try:
            outputs = session.run(inputs)
        except BaseException as error:
            if monitor is not None and slot >= 0:
                monitor.discard(slot)
            if not isinstance(error, CandidateError):
                raise
            engine.failures.tick()
            return Prediction({}, engine.release, Rejection("failed", "", error.message))
        if monitor is None or slot < 0 or not monitor.finish_checked(slot, outputs):
            held = guard.check_outputs(outputs)
            if held is not None:
                if monitor is not None and slot >= 0:
                    monitor.discard(slot)
                engine.rejected.tick()
                return Prediction({}, engine.release, held)
            if monitor is not None and slot >= 0:
                monitor.finish(slot, outputs)
        engine.served.tick()
        if self.shadow is not None:
            self._offer_to_shadow(inputs, outputs)
        if len(outputs) == 1:
            return Prediction({session.outputs[0]: outputs[0]}, engine.release)
        return Prediction(dict(zip(session.outputs, outputs, strict=True)), engine.release)

    @property
    def served(self) -> int:
        """Inferences of the current engine that nobody has taken note of."""
        return 0 if self.current is None else self.current.served.since_last_drain

    @property
    def failures(self) -> int:
        """Inferences that the runtime failed since the switch."""
        return 0 if self.current is None else self.current.failures.since_last_drain

    @property
    def rejected(self) -> int:
        """Inputs or outputs that the guard rejected since the switch."""
        return 0 if self.current is None else self.current.rejected.since_last_drain

    def drain_served(self) -> int:
        """Return how many inferences were served, and count from 0 again."""
        return 0 if self.current is None else self.current.served.drain()

    def _offer_to_shadow(self, inputs: Mapping[str, NDArray[Any]], outputs: list[NDArray[Any]]) -> None:
        shadow = self.shadow
        if shadow is not None:
            shadow.enqueue(inputs, outputs)
