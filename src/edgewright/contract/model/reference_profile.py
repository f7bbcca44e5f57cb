"""The reference profile: what a model's inputs and answers looked like where it was proved, as counts over bins.

It is made when a model is compressed or published, travels with the release under its signature, and is all that a
device compares its own counts with.
"""

import math
from typing import Literal

import msgspec

from edgewright.contract.errors import InputError
from edgewright.contract.model.guarantee import AcceptanceRule, PredictionSetRule
from edgewright.contract.model.ood_detector import OodRule
from edgewright.contract.schema import SCHEMA_VERSION, SchemaVersion

__all__ = ["MAX_SIGNALS", "OutputKind", "ReferenceProfile", "ReferenceSignal"]

OutputKind = Literal["logits", "probabilities", ""]

MAX_SIGNALS = 48
"""A device refuses more."""
_MAX_BINS = 64
_MAX_COUNT = 1 << 40


class ReferenceSignal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
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
        counted = all(0 <= count <= _MAX_COUNT for count in self.counts)
        if not finite or not ascending or not counted or not sum(self.counts):
            raise InputError(
                f"the reference of {self.name[:80]!r} holds no ascending finite edges, or no counts",
                remedy="Make the profile again.",
            )
        if not self.name or len(self.edges) >= _MAX_BINS or len(self.counts) != len(self.edges) + 2:
            raise InputError(
                f"the reference of {self.name[:80]!r} has {len(self.edges)} edges and {len(self.counts)} counts",
                remedy=f"It has less than {_MAX_BINS} edges and two counts more than edges.",
            )
        if not 0 <= self.tolerance <= 1:
            raise InputError(
                f"the tolerance of {self.name[:80]!r} is {self.tolerance}", remedy="It lies between 0 and 1."
            )


class ReferenceProfile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a device watches, and what it compares with.

    Attributes:
        input: Name of the input whose statistics are taken.
        values_per_sample: Of one sample of it.
        channels: Of it that are looked at one by one, 1 for none.
        interleaved: Whether channels lie side by side at each position.
        output_kind: What the first output holds for each class; "" if it holds no such thing.
        classes: Number of them, 0 for none.
        signals: What is counted.
        thinning_step: One of so many observations is taken, so that those taken are independent.
        min_gap_seconds: Least time between two that are taken.
        is_testable: Whether the calibration stream could be made independent so.
        alpha: False alarms of drift that are allowed in a period.
        period: Observations.
        data_fingerprint: Fingerprint of the data that the reference was counted on.
        ood_rules: By what an input is recognised that the model was not made for.
        prediction_sets: How a set of possible classes is made; None if nothing is promised.
        acceptance: Which answers are good enough to act on; None if nothing is promised.
        schema: Of this record.
    """

    input: str
    values_per_sample: int
    signals: tuple[ReferenceSignal, ...]
    channels: int = 1
    interleaved: bool = False
    output_kind: OutputKind = ""
    classes: int = 0
    thinning_step: int = 1
    min_gap_seconds: float = 0.0
    is_testable: bool = True
    alpha: float = 0.05
    period: int = 20_000
    data_fingerprint: str = ""
    ood_rules: tuple[OodRule, ...] = ()
    prediction_sets: PredictionSetRule | None = None
    acceptance: AcceptanceRule | None = None
    schema: SchemaVersion = SCHEMA_VERSION

    def __post_init__(self) -> None:
        """Refuse what no device could follow."""
        names = [signal.name for signal in self.signals]
        if not 1 <= len(names) <= MAX_SIGNALS or len(set(names)) < len(names):
            raise InputError(
                f"a profile has {len(names)} signals, {len(set(names))} of them different",
                remedy=f"It has 1 to {MAX_SIGNALS}, each once.",
            )
        sizes = (self.values_per_sample, self.channels, self.thinning_step, self.period)
        if (
            min(sizes) < 1
            or self.values_per_sample % self.channels
            or self.classes < 0
            or bool(self.classes) != bool(self.output_kind)
        ):
            raise InputError(
                f"a profile of {self.values_per_sample} values, {self.channels} channels, step {self.thinning_step},"
                f" period {self.period}, {self.classes} classes of {self.output_kind or 'nothing'}",
                remedy="Make the profile again.",
            )
        if not 0 < self.alpha < 0.5 or not 0 <= self.min_gap_seconds < math.inf:
            raise InputError(
                f"a profile with alpha {self.alpha} and a gap of {self.min_gap_seconds} s",
                remedy="Alpha lies between 0 and 0.5, a gap is 0 or more.",
            )
