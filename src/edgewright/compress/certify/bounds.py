"""The bound that goes with each kind of score, for a drop and for a metric itself."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgewright.stats.exact_paired_bound import clopper_pearson_bounds, exact_drop_bound
from edgewright.stats.paired_bounds import betting_bound, bootstrap_bounds, cluster_bound, t_bound

__all__ = ["BOUND_METHODS", "MIN_SAMPLES_BY_KIND", "PairedBounds", "ScalarMetric", "ScoreKind"]

_Floats = NDArray[np.float64]

ScoreKind = Literal["binary", "unit", "unbounded", "scalar"]
"""What scores are: 0 or 1; within [0, 1]; any number; or none, for a metric of the whole set."""

ScalarMetric = Callable[[NDArray[np.intp]], tuple[float, float]]
"""From indices of samples, repeats allowed, to the original's and the candidate's metric on them."""

BOUND_METHODS: dict[ScoreKind, str] = {
    "binary": "exact",
    "unit": "betting",
    "unbounded": "t (asymptotic)",
    "scalar": "BCa bootstrap (asymptotic)",
}

# An asymptotic bound says nothing about a handful; identical scores would certify anything.
MIN_SAMPLES_BY_KIND: dict[ScoreKind, int] = {"binary": 1, "unit": 1, "unbounded": 30, "scalar": 30}


@dataclass(frozen=True, slots=True)
class PairedBounds:
    """Upper and lower bounds of the drop, and of how far the metric falls below zero, at one alpha."""

    original: _Floats
    candidate: _Floats
    kind: ScoreKind
    groups: NDArray[Any] | None
    scalar: ScalarMetric | None
    seed: int
    alpha: float

    def drop_bounds(self) -> tuple[float, float]:
        """Bound original minus candidate."""
        if self.scalar is not None:
            both = self.scalar
            return self._resampled(lambda picks: float(np.subtract(*both(picks))))
        differences = self.original - self.candidate
        if self.kind == "binary":
            lost, gained = int((differences > 0).sum()), int((differences < 0).sum())
            upper = exact_drop_bound(lost, gained, differences.size, self.alpha)
            lower = -exact_drop_bound(gained, lost, differences.size, self.alpha)
            return self._clustered(differences, upper, lower)
        return self._per_sample(differences, -1.0, 1.0)

    def shortfall_bounds(self) -> tuple[float, float]:
        """Bound minus the candidate's metric."""
        if self.scalar is not None:
            both = self.scalar
            return self._resampled(lambda picks: -both(picks)[1])
        if self.kind == "binary":
            lower, upper = clopper_pearson_bounds(int(self.candidate.sum()), self.candidate.size, self.alpha)
            return self._clustered(-self.candidate, -lower, -upper)
        return self._per_sample(-self.candidate, -1.0, 0.0)

    def _per_sample(self, values: _Floats, low: float, high: float) -> tuple[float, float]:
        if self.kind == "unit":
            upper = betting_bound(values, self.alpha, low, high)
            lower = -betting_bound(-values, self.alpha, -high, -low)
        else:
            upper, lower = t_bound(values, self.alpha), -t_bound(-values, self.alpha)
            if np.ptp(values) == 0:  # no spread seen is no proof of none: as for scores that never disagree
                unseen = float(np.ptp(self.original)) * (1 - self.alpha ** (1 / values.size))
                upper, lower = upper + unseen, lower - unseen
        return self._clustered(values, upper, lower)

    def _clustered(self, values: _Floats, upper: float, lower: float) -> tuple[float, float]:
        if self.groups is None:
            return upper, lower
        return (
            cluster_bound(values, self.groups, self.alpha, upper),
            -cluster_bound(-values, self.groups, self.alpha, -lower),
        )

    def _resampled(self, statistic: Callable[[NDArray[np.intp]], float]) -> tuple[float, float]:
        samples = self.original.size
        lower, upper = bootstrap_bounds(statistic, samples, self.alpha, seed=self.seed)
        if self.groups is not None:
            by_cluster = bootstrap_bounds(statistic, samples, self.alpha, groups=self.groups, seed=self.seed)
            lower, upper = min(lower, by_cluster[0]), max(upper, by_cluster[1])
        # Resampling knows nothing of what it never saw: no closer than two models that never disagree.
        value, unseen = statistic(np.arange(samples)), 1 - self.alpha ** (1 / samples)
        return max(upper, value + unseen), min(lower, value - unseen)
