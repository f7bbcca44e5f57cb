"""What is promised about a model's doubt, in numbers and in words, and the rules that devices apply for it."""

import math
from typing import Literal

import msgspec

from edgewright.contract.errors import InputError

__all__ = ["AcceptanceRule", "Guarantee", "GuaranteeKind", "PredictionSetRule"]

GuaranteeKind = Literal["coverage", "coverage by class", "coverage by group", "risk", "accepted error", "rejection"]

_EXCHANGEABLE = "The sample comes from where the calibration samples came from. After a shift nothing is promised."
_PROMISES: dict[GuaranteeKind, str] = {
    "coverage": "the set holds the right class with probability at least {level:g}, over all classes together",
    "coverage by class": "the set holds the right class with probability at least {level:g}, whichever that is",
    "coverage by group": "the set holds the right class with probability at least {level:g}, in each group",
    "risk": "the expected loss is at most {level:g}",
    "accepted error": "of the accepted answers at most the share {level:g} is wrong",
    "rejection": "at most the share {level:g} of usual inputs is rejected",
}


class Guarantee(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A finite-sample promise.

    Attributes:
        kind: What is promised.
        level: Of coverage (at least) or of risk, error, rejection (at most).
        calibration_samples: That it was calibrated on.
        confidence: Probability, over calibration sets, that the promise holds from then on; None if it holds on
            average over calibration sets.
    """

    kind: GuaranteeKind
    level: float
    calibration_samples: int
    confidence: float | None = None

    def __post_init__(self) -> None:
        """Refuse a promise that says nothing."""
        # A risk is in the units of its loss; everything else is a share.
        most = math.inf if self.kind == "risk" else 1.0
        if not 0 < self.level < most or self.calibration_samples < 1:
            raise InputError(
                f"a promise of {self.kind} {self.level:g} from {self.calibration_samples} samples",
                remedy="The level lies between 0 and 1, and there is at least one sample.",
            )
        if self.confidence is not None and not 0 < self.confidence < 1:
            raise InputError(f"a promise's confidence is {self.confidence:g}", remedy="It lies between 0 and 1.")

    @property
    def describe(self) -> str:
        """The promise as sentences.

        >>> Guarantee("rejection", 0.01, 600, 0.95).describe.split(". ")[0]
        'With confidence 0.95 in the 600 calibration samples, at most the share 0.01 of usual inputs is rejected'
        """
        promise = _PROMISES[self.kind].format(level=self.level)
        if self.confidence is None:
            scope = f"Averaged over calibration sets of {self.calibration_samples} samples"
        else:
            scope = f"With confidence {self.confidence:g} in the {self.calibration_samples} calibration samples"
        return f"{scope}, {promise}. {_EXCHANGEABLE}"


class PredictionSetRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a device makes a set of classes out of probabilities.

    Attributes:
        method: `lac`: every class that is probable enough; `aps`: the likeliest classes until they weigh enough.
        stratified_by: Whether one threshold serves all, or each class or each group of samples has its own.
        thresholds: Greatest nonconformity that is in the set; None where too few samples allow only the full set.
        groups: Names of the groups, as many as thresholds; empty unless by group.
        guarantee: What the sets promise.
    """

    method: Literal["lac", "aps"]
    stratified_by: Literal["all", "class", "group"]
    thresholds: tuple[float | None, ...]
    guarantee: Guarantee
    groups: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse thresholds that do not fit."""
        fits = len(self.thresholds) >= 1 and (self.stratified_by != "all" or len(self.thresholds) == 1)
        named = len(self.groups) == (len(self.thresholds) if self.stratified_by == "group" else 0)
        if not fits or not named or len(set(self.groups)) != len(self.groups):
            raise InputError(
                f"a rule of sets by {self.stratified_by} has {len(self.thresholds)} thresholds "
                f"and {len(self.groups)} groups",
                remedy="Give one threshold for all, one per class, or one per named group.",
            )
        if not all(one is None or math.isfinite(one) for one in self.thresholds):
            raise InputError("a rule of sets has a threshold that is not finite", remedy="Use null for full sets.")


class AcceptanceRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which answers are good enough to act on.

    Attributes:
        threshold: Least confidence that is accepted.
        accepted_fraction: Share of the calibration samples that were.
        guarantee: What holds for accepted answers.
    """

    threshold: float
    accepted_fraction: float
    guarantee: Guarantee

    def __post_init__(self) -> None:
        """Refuse what is no number."""
        if not math.isfinite(self.threshold) or not 0 <= self.accepted_fraction <= 1:
            raise InputError(
                f"acceptance from confidence {self.threshold}, share {self.accepted_fraction}",
                remedy="The threshold is finite, the share lies between 0 and 1.",
            )
