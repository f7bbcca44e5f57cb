"""A value, its spread, and where it comes from."""

from typing import Literal

import msgspec

__all__ = ["Measurement", "MeasurementOrigin"]


class MeasurementOrigin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a figure came about.

    Attributes:
        kind: `measured` on the machine named; `estimated` by a model; `computed` exactly from bytes or records.
        machine: The machine that the figure is about, e.g. "AMD EPYC, 2 cores, x86_64".
        method: How, in a few words; for an estimate, the model with its coefficients.
    """

    kind: Literal["measured", "estimated", "computed"]
    machine: str
    method: str


class Measurement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One figure with its confidence interval and its origin.

    Attributes:
        value: In `unit`.
        unit: One of s, ms, bytes, J, mJ, 1/s, ratio, C, Hz.
        origin: Where the figure comes from.
        low: Lower end of the interval, None where the figure has no spread.
        high: Upper end of the interval.
        confidence: Of the two-sided interval.
        observation_count: How many observations the figure rests on.
    """

    value: float
    unit: str
    origin: MeasurementOrigin
    low: float | None = None
    high: float | None = None
    confidence: float = 0.95
    observation_count: int = 1

    def scaled(self, factor: float, unit: str) -> "Measurement":
        """Return the same figure in another unit.

        >>> exact = MeasurementOrigin(kind="computed", machine="-", method="file size")
        >>> Measurement(0.002, "s", exact, low=0.001).scaled(1e3, "ms").low
        1.0
        """
        return Measurement(
            value=self.value * factor,
            unit=unit,
            origin=self.origin,
            low=None if self.low is None else self.low * factor,
            high=None if self.high is None else self.high * factor,
            confidence=self.confidence,
            observation_count=self.observation_count,
        )
