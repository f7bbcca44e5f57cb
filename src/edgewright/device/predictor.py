"""The hot path: guard, run, guard. It waits for nothing: a switch exchanges one reference between two calls."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from numpy.typing import NDArray

from edgewright.contract.errors import CandidateError
from edgewright.device.guard import Guard, Rejection
from edgewright.device.shadow import Shadow
from edgewright.device.slots import Installed
from edgewright.runtime.session import Session

__all__ = ["Engine", "Prediction", "Predictor"]


@dataclass(frozen=True, slots=True)
class Engine:
    """An opened release.

    Attributes:
        release: Which.
        session: Of its model.
        guard: For its contract.
    """

    release: Installed
    session: Session
    guard: Guard

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


@dataclass(slots=True)
class Predictor:
    """Answers with whatever is current.

    Attributes:
        engine: The current one, None before the first.
        shadow: Runs beside it and is compared, None if nothing does.
        served: Inferences since the switch.
        failures: Of them, those that the runtime failed.
        rejected: Inputs or outputs that the guard rejected since the switch.
    """

    engine: Engine | None = None
    shadow: Shadow | None = None
    served: int = 0
    failures: int = 0
    rejected: int = 0
    _counting: threading.Lock = field(default_factory=threading.Lock)

    def predict(self, feed: Mapping[str, NDArray[Any]]) -> Prediction:
        """Return the answer for one feed; it never raises for what the feed holds.

        Args:
            feed: Arrays by input name.
        """
        engine = self.engine  # one reading: a switch in between does not concern this call
        if engine is None:
            return Prediction({}, None, Rejection("no model", "", "no model is installed yet"))
        try:
            found = engine.run(feed)
        except CandidateError as error:
            self._count(engine, "failures")
            return Prediction({}, engine.release, Rejection("failed", "", error.message))
        if isinstance(found, Rejection):
            self._count(engine, "rejected")
            return Prediction({}, engine.release, found)
        with self._counting:
            self.served += self.engine is engine
        shadow = self.shadow
        if shadow is not None:
            shadow.offer(feed, found)
        return Prediction(dict(zip(engine.session.outputs, found, strict=True)), engine.release)

    def _count(self, engine: Engine, name: str) -> None:
        """Count what the current engine did; what a former one still had in flight is nobody's."""
        with self._counting:
            if self.engine is engine:
                setattr(self, name, getattr(self, name) + 1)

    def take_served(self) -> int:
        """Return how many inferences were served, and count from 0 again."""
        with self._counting:
            served, self.served = self.served, 0
        return served

    def switch(self, engine: Engine | None) -> None:
        """Answer with another engine from the next call on; calls in flight end with theirs."""
        with self._counting:
            self.engine = engine
            self.served = self.failures = self.rejected = 0
