"""The limit on a metric's loss as a statistical contract, judged on samples that nothing was chosen by."""

import math
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewright.compress.certify.bounds import (
    BOUND_METHODS,
    MIN_SAMPLES_BY_KIND,
    PairedBounds,
    ScalarMetric,
    ScoreKind,
)
from edgewright.compress.certify.look_ledger import LookLedger, alpha_of_look
from edgewright.contract.certificate import Certificate, CertificateVerdict
from edgewright.contract.errors import DataError
from edgewright.stats.exact_paired_bound import exact_drop_bound, likelihood_ratio_limit
from edgewright.stats.paired_bounds import MIN_CLUSTERS

__all__ = ["certify", "min_samples_to_certify"]

_Floats = NDArray[np.float64]

_MAX_FLOAT = sys.float_info.max
# What a bound is when nothing can be said; JSON has no infinity.
_UNKNOWN: dict[ScoreKind, float] = {"binary": 1.0, "unit": 1.0, "unbounded": _MAX_FLOAT, "scalar": _MAX_FLOAT}


@dataclass(frozen=True, slots=True)
class _BoundedValue:
    """A figure with its one-sided bounds, and the limit that it must stay below."""

    value: float
    upper: float
    lower: float
    limit: float

    @property
    def verdict(self) -> CertificateVerdict:
        if self.upper <= self.limit:
            return "certified"
        return "refuted" if self.lower > self.limit else "insufficient data"


def min_samples_to_certify(max_drop: float, confidence: float, look: int = 1) -> int:
    """Return how many samples certify a drop of 0/1 scores if the two models never disagree; fewer never do.

    Without a correction for multiplicity that would be 598 for 0.005 at 95 %; a first look spends half of alpha.

    >>> least = min_samples_to_certify
    >>> least(0.005, 0.95), least(0.01, 0.95), least(0.01, 0.95, look=2)
    (736, 368, 477)
    """
    return _min_samples(max_drop, alpha_of_look(1 - confidence, look))


def _min_samples(max_drop: float, alpha: float) -> int:
    # The exact bound keeps a hair of alpha back.
    return math.ceil(math.log(alpha * (1 - 1e-4)) / math.log1p(-max_drop))


def certify(
    original_scores: _Floats,
    candidate_scores: _Floats,
    *,
    kind: ScoreKind,
    metric: str,
    max_drop: float,
    confidence: float,
    groups: NDArray[Any] | None,
    candidate_digest: str,
    data_fingerprint: str,
    ledger: LookLedger,
    ledger_key: str | None = None,
    min_metric: float | None = None,
    scalar: ScalarMetric | None = None,
    seed: int = 0,
) -> Certificate:
    """Judge whether a candidate's drop stays within its limit, and write the look down first.

    Both conditions, the drop's and the floor's, must hold for a certificate, so neither costs the other confidence.
    For kind "scalar" the metric's scale is 0 to 1.

    Args:
        original_scores: Shape [samples], larger is better. For kind "scalar" only the length counts.
        candidate_scores: Shape [samples], of the same samples in the same order.
        kind: What the scores are.
        metric: The metric's name.
        max_drop: The limit, in the metric's unit.
        confidence: One-sided, over all looks at this split together.
        groups: Shape [samples], the subject or speaker of each, None for independent samples.
        candidate_digest: Of the candidate's artifact; the same one again is no new look.
        data_fingerprint: Of the certify split.
        ledger: Where looks are counted.
        ledger_key: What looks are counted at; a fingerprint of all the data counts looks at every split of it
            together, so that a new seed gives no new confidence. The certify split's own without it.
        min_metric: Least value of the metric, None for no floor.
        scalar: The metric of the whole set, for kind "scalar".
        seed: Of the bootstrap, for kind "scalar".

    Raises:
        DataError: Scores do not pair up, are not finite, or are not of the kind.
        InputError: The ledger is damaged.
        OutputError: The ledger cannot be written.
    """
    _check(original_scores, candidate_scores, groups, kind, scalar)
    samples = len(original_scores)
    clusters = None if groups is None else len(np.unique(groups))
    look = ledger.look(ledger_key or data_fingerprint, metric, candidate_digest)
    alpha = alpha_of_look(1 - confidence, look)
    if scalar is not None:
        original, chosen = scalar(np.arange(samples))
    else:
        original, chosen = float(original_scores.mean()), float(candidate_scores.mean())
    too_few = samples < MIN_SAMPLES_BY_KIND[kind] or (clusters is not None and clusters < MIN_CLUSTERS)
    figures: list[_BoundedValue] = []
    if not too_few:
        bounds = PairedBounds(original_scores, candidate_scores, kind, groups, scalar, seed, alpha)
        figures.append(_BoundedValue(original - chosen, *bounds.drop_bounds(), max_drop))
        if min_metric is not None:
            # A floor under the metric is a ceiling over its negative.
            figures.append(_BoundedValue(-chosen, *bounds.shortfall_bounds(), -min_metric))
    verdict = _verdict(figures)
    more = _more_samples(figures, kind, original_scores, candidate_scores, groups, alpha, verdict)
    return Certificate(
        verdict=verdict,
        metric=metric,
        original_metric=original,
        chosen_metric=chosen,
        drop=original - chosen,
        upper_bound=figures[0].upper if figures else _UNKNOWN[kind],
        lower_bound=figures[0].lower if figures else -_UNKNOWN[kind],
        confidence=confidence,
        sample_count=samples,
        max_drop=max_drop,
        method=BOUND_METHODS[kind]
        if clusters is None or kind == "scalar"
        else "cluster t (asymptotic in clusters)",
        look=look,
        look_confidence=1 - alpha,
        cluster_count=clusters,
        additional_samples_needed=more,
        reason=_describe_verdict(figures, verdict, metric, kind, samples, clusters, more),
        data_fingerprint=data_fingerprint,
        candidate_sha256=candidate_digest,
    )


def _check(
    original: _Floats, candidate: _Floats, groups: NDArray[Any] | None, kind: ScoreKind, scalar: ScalarMetric | None
) -> None:
    if original.ndim != 1 or original.shape != candidate.shape or not original.size:
        raise DataError(
            f"scores have shapes {list(original.shape)} and {list(candidate.shape)}",
            remedy="Score both models on the same samples, one score each.",
        )
    if groups is not None and groups.shape != original.shape:
        raise DataError(
            f"{groups.shape[0] if groups.ndim else 0} groups for {original.size} samples",
            remedy="Give each sample of the certify split its group.",
        )
    if (kind == "scalar") != (scalar is not None):
        raise ValueError(f"kind {kind!r} with scalar {scalar}")
    if kind == "scalar":
        return
    both = np.concatenate([original, candidate])
    if not np.isfinite(both).all():
        raise DataError(
            f"{int((~np.isfinite(both)).sum())} scores are NaN or infinite",
            remedy="Find the samples on which a model's output or the metric is not a number.",
        )
    if kind in ("binary", "unit") and (both.min() < 0 or both.max() > 1):
        raise DataError(
            f"scores range from {both.min():g} to {both.max():g}, they must lie in [0, 1]",
            remedy="Scale the metric to [0, 1], or declare its scores as unbounded.",
        )
    if kind == "binary" and not np.isin(both, (0.0, 1.0)).all():
        raise DataError("scores are not all 0 or 1", remedy="Declare them as within [0, 1].")


def _verdict(figures: list[_BoundedValue]) -> CertificateVerdict:
    verdicts = {figure.verdict for figure in figures}
    if "refuted" in verdicts:
        return "refuted"
    return "certified" if verdicts == {"certified"} else "insufficient data"


def _more_samples(
    figures: list[_BoundedValue],
    kind: ScoreKind,
    original: _Floats,
    candidate: _Floats,
    groups: NDArray[Any] | None,
    alpha: float,
    verdict: CertificateVerdict,
) -> int | None:
    """Estimate how many further samples certify, if what was observed stays as it is."""
    if verdict != "insufficient data":
        return None
    if not figures:
        return max(MIN_SAMPLES_BY_KIND[kind] - original.size, 0) or None
    if any(figure.value >= figure.limit for figure in figures):
        return None
    samples = original.size
    needed = samples + 1.0
    for figure in figures:
        if figure.verdict != "certified":
            # The bound's distance from the figure shrinks with the square root of the samples.
            needed = max(needed, samples * ((figure.upper - figure.value) / (figure.limit - figure.value)) ** 2)
    if kind == "binary" and groups is None and len(figures) == 1:
        differences = original - candidate
        needed = _samples_needed(
            float((differences > 0).mean()), float((differences < 0).mean()), samples, alpha, figures[0].limit
        )
    return math.ceil(needed) - samples


def _samples_needed(lost: float, gained: float, samples: int, alpha: float, limit: float) -> float:
    """Find about how many samples certify at these rates: by the likelihood first, then by the exact bound."""
    low, high = float(samples), 2.0 * samples
    while likelihood_ratio_limit(lost * high, gained * high, high, alpha) > limit:
        low, high = high, 2 * high
    while high - low > 1e-2 * low:
        middle = (low + high) / 2
        if likelihood_ratio_limit(lost * middle, gained * middle, middle, alpha) > limit:
            low = middle
        else:
            high = middle
    high = max(high, _min_samples(limit, alpha), samples + 1)
    # Beyond a few thousand flips the two agree, and the exact one takes long.
    while (lost + gained) * high < 2000:
        counts = math.ceil(lost * high - 1e-6), math.floor(gained * high + 1e-6)
        if exact_drop_bound(*counts, math.ceil(high), alpha) <= limit:
            break
        high *= 1.05
    return high


def _describe_verdict(
    figures: list[_BoundedValue],
    verdict: CertificateVerdict,
    metric: str,
    kind: ScoreKind,
    samples: int,
    clusters: int | None,
    more: int | None,
) -> str:
    """Say in one sentence why the verdict is what it is."""
    over = f"{samples} samples" + ("" if clusters is None else f" of {clusters} groups")
    if not figures:
        few = clusters is not None and clusters < MIN_CLUSTERS
        least = f"{MIN_CLUSTERS} groups" if few else f"{MIN_SAMPLES_BY_KIND[kind]} samples"
        return f"Nothing can be said about {metric} from {over}: at least {least} are needed."
    worst = next((figure for figure in figures if figure.verdict == verdict), figures[0])
    if worst is figures[0]:
        name, value, limit, upper, lower = f"drop of {metric}", worst.value, worst.limit, worst.upper, worst.lower
    else:
        # Signs turn back, and with them the bounds' roles.
        name, value, limit, upper, lower = metric, -worst.value, -worst.limit, -worst.upper, -worst.lower
    beyond, kept = ("above", "at most") if worst is figures[0] else ("below", "at least")
    if verdict == "certified":
        floor = "" if len(figures) == 1 else f", and {metric} is at least {-figures[1].upper:.4g}"
        return f"On {over} the {name} is {kept} {upper:.4g}, within the limit of {limit:.4g}{floor}."
    if verdict == "refuted":
        bound = "at least" if worst is figures[0] else "at most"
        return f"On {over} the {name} is {bound} {lower:.4g}, {beyond} the limit of {limit:.4g}."
    seen = f"On {over} the {name} is {value:.4g}, but it can only be said to be {kept} {upper:.4g}"
    if more is None:
        hopeless = next(figure for figure in figures if figure.value >= figure.limit)
        what = "drop" if hopeless is figures[0] else metric
        return (
            f"{seen}; since the observed {what} does not keep its limit, more samples would more likely refute it."
        )
    return f"{seen}, not {limit:.4g}; about {more} more labelled samples would settle it."
