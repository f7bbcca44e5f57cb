"""The hot path: guard, run, guard. It waits for nothing: a switch exchanges one reference between two calls."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from edgewright.contract.errors import CandidateError
from edgewright.device.guard import Guard, Rejection
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


@dataclass(frozen=True, slots=True)
class Prediction:
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
        served: Inferences since the switch.
        failures: Of them, those that the runtime failed.
        rejected: Inputs or outputs that the guard rejected since the switch.
    """

    engine: Engine | None = None
    served: int = 0
    failures: int = 0
    rejected: int = 0
    _switching: threading.Lock = field(default_factory=threading.Lock)

    def predict(self, feed: Mapping[str, NDArray[Any]]) -> Prediction:
        """Return the answer for one feed; it never raises for what the feed holds.

        Args:
            feed: Arrays by input name.
        """
        engine = self.engine  # one reading: a switch in between does not concern this call
        if engine is None:
            return Prediction({}, None, Rejection("no model", "", "no model is installed yet"))
        admitted = engine.guard.admit(feed)
        if isinstance(admitted, Rejection):
            self.rejected += 1
            return Prediction({}, engine.release, admitted)
        try:
            outputs = engine.session.run(admitted)
        except CandidateError as error:
            self.failures += 1
            return Prediction({}, engine.release, Rejection("failed", "", error.message))
        held = engine.guard.release(outputs)
        self.served += 1
        if held is not None:
            self.rejected += 1
            return Prediction({}, engine.release, held)
        return Prediction(dict(zip(engine.session.outputs, outputs, strict=True)), engine.release)

    def switch(self, engine: Engine | None) -> None:
        """Answer with another engine from the next call on; calls in flight end with theirs."""
        with self._switching:
            self.engine = engine
            self.served = self.failures = self.rejected = 0
