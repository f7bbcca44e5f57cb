"""The reference profile: what a model's inputs and answers looked like where it was proved, as counts over bins.

It is made when a model is compressed or published, travels with the release under its signature, and is all that a
device compares its own counts with.
"""

import math
from typing import Literal

import msgspec

from edgewright.contract.errors import InputError
from edgewright.contract.model.guarantee import AcceptRule, SetRule
from edgewright.contract.model.ood_detector import OutlierRule
from edgewright.contract.schema import SCHEMA_VERSION, SchemaVersion

__all__ = ["MOST_SIGNALS", "Profile", "Scores", "Signal"]

Scores = Literal["logits", "probabilities", ""]

MOST_SIGNALS = 48
"""A device refuses more."""
_MOST_BINS = 64
_MOST_COUNT = 1 << 40


class Signal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One statistic and its reference.

    Attributes:
        name: Of the statistic, as in `signals.observed`.
        edges: Ascending; bin k holds what is above edge k - 1 and at most edge k.
        counts: Of the reference, by bin; the last one counts what is not finite.
        tolerance: Total variation from the reference that is harmless.
    """

    name: str
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what no device could count over."""
        finite = all(math.isfinite(edge) for edge in self.edges)
        ascending = all(one < other for one, other in zip(self.edges, self.edges[1:], strict=False))
        counted = all(0 <= count <= _MOST_COUNT for count in self.counts)
        if not finite or not ascending or not counted or not sum(self.counts):
            raise InputError(
                f"the reference of {self.name[:80]!r} holds no ascending finite edges, or no counts",
                remedy="Make the profile again.",
            )
        if not self.name or len(self.edges) >= _MOST_BINS or len(self.counts) != len(self.edges) + 2:
            raise InputError(
                f"the reference of {self.name[:80]!r} has {len(self.edges)} edges and {len(self.counts)} counts",
                remedy=f"It has less than {_MOST_BINS} edges and two counts more than edges.",
            )
        if not 0 <= self.tolerance <= 1:
            raise InputError(
                f"the tolerance of {self.name[:80]!r} is {self.tolerance}", remedy="It lies between 0 and 1."
            )


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a device watches, and what it compares with.

    Attributes:
        input: Name of the input whose statistics are taken.
        values: Of one sample of it.
        channels: Of it that are looked at one by one, 1 for none.
        interleaved: Whether channels lie side by side at each position.
        scores: What the first output holds for each class; "" if it holds no such thing.
        classes: Number of them, 0 for none.
        signals: What is counted.
        step: One of so many observations is taken, so that those taken are independent.
        gap_s: Least time between two that are taken.
        testable: Whether the calibration stream could be made independent so.
        alpha: False alarms of drift that are allowed in a period.
        period: Observations.
        data: Fingerprint of the data that the reference was counted on.
        unusual: By what an input is recognised that the model was not made for.
        sets: How a set of possible classes is made; None if nothing is promised.
        accept: Which answers are good enough to act on; None if nothing is promised.
        schema: Of this record.
    """

    input: str
    values: int
    signals: tuple[Signal, ...]
    channels: int = 1
    interleaved: bool = False
    scores: Scores = ""
    classes: int = 0
    step: int = 1
    gap_s: float = 0.0
    testable: bool = True
    alpha: float = 0.05
    period: int = 20_000
    data: str = ""
    unusual: tuple[OutlierRule, ...] = ()
    sets: SetRule | None = None
    accept: AcceptRule | None = None
    schema: SchemaVersion = SCHEMA_VERSION

    def __post_init__(self) -> None:
        """Refuse what no device could follow."""
        names = [signal.name for signal in self.signals]
        if not 1 <= len(names) <= MOST_SIGNALS or len(set(names)) < len(names):
            raise InputError(
                f"a profile has {len(names)} signals, {len(set(names))} of them different",
                remedy=f"It has 1 to {MOST_SIGNALS}, each once.",
            )
        sizes = (self.values, self.channels, self.step, self.period)
        if (
            min(sizes) < 1
            or self.values % self.channels
            or self.classes < 0
            or bool(self.classes) != bool(self.scores)
        ):
            raise InputError(
                f"a profile of {self.values} values, {self.channels} channels, step {self.step},"
                f" period {self.period}, {self.classes} classes of {self.scores or 'nothing'}",
                remedy="Make the profile again.",
            )
        if not 0 < self.alpha < 0.5 or not 0 <= self.gap_s < math.inf:
            raise InputError(
                f"a profile with alpha {self.alpha} and a gap of {self.gap_s} s",
                remedy="Alpha lies between 0 and 0.5, a gap is 0 or more.",
            )
