"""Whether a stream still comes from its reference, asked at any time, answered by a histogram.

The null hypothesis is generous: given the past, an observation's distribution over the bins is within total
variation `fit_tolerance` of the reference's true distribution, of which only counts are known. Evidence is money won by
betting that some event (a bin, its absence, a tail, the middle) is likelier than that allows. With A's probability
at most u, exp(h 1[A]) / (1 + u (exp(h) - 1)) has mean at most 1 for any h > 0, so products of it are wealth that
grows past 1 / alpha with probability at most alpha, however often one looks (Ville 1939). u is the upper
Clopper-Pearson bound of the event in the reference, at an error shared by all events and signals, plus the
tolerance. Bets are fixed before the stream begins, hence wealth depends on counts alone and averages of wealth are
wealth: over events and strengths of bets, over signals, and over restarts, each of which begins anew so that a late
change is not paid for by the quiet time before it (e-detectors: Shin, Ramdas and Rinaldo 2024, arXiv:2203.03532).

Conditional conformal test martingales (Shaer et al. 2026, arXiv:2602.13848) answer the same question: each score is
ranked in a fixed reference whose distribution function has a Dvoretzky-Kiefer-Wolfowitz band, and bets are learned
along the way. Here bins allow for atoms, a bound per event is tighter in the tails than one band for all, bets on
shape see what a shift of the ranks does not, the tolerance is part of the null, and nothing depends on the order.

Devices import this: numpy only.
"""

import math
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "BET_STRENGTHS",
    "REFERENCE_ALPHA_SHARE",
    "DriftFinding",
    "DriftTestDesign",
    "DriftTestState",
    "DriftTolerance",
    "DriftVerdict",
    "RestartState",
    "betting_events",
    "clopper_pearson_upper",
    "design_drift_test",
    "drift_finding",
    "event_bounds",
    "fit_tolerance",
    "log_wealth",
    "new_drift_state",
    "update_drift_test",
]

_Floats = NDArray[np.float64]
_Counts = NDArray[np.int64]

# Strengths of a bet: how much the log odds of an event are supposed to have grown.
BET_STRENGTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
# Part of alpha for the reference's sampling error, spent once per reference; the rest is spent in each period.
REFERENCE_ALPHA_SHARE = 0.2
_BISECTIONS = 50
_MAX_FRACTION_TERMS = 20_000


class DriftVerdict(StrEnum):
    """What can be said of a stream."""

    NO_EVIDENCE = "no evidence"
    DRIFT = "drift"
    CANNOT_TEST = "cannot test"


@dataclass(frozen=True, slots=True)
class DriftTestDesign:
    """What a device tests, fixed before its stream begins.

    Attributes:
        null_bounds: Shape [signals, events], most that an event's probability may be under the null.
        alpha: False alarms allowed per period, without the reference's share.
        block_size: Observations between restarts.
        block_count: Restarts in a period.
    """

    null_bounds: _Floats
    alpha: float
    block_size: int
    block_count: int


@dataclass(frozen=True, slots=True)
class RestartState:
    """The state of the histogram at a restart.

    Attributes:
        index: Number of the restart in its period, from 0.
        observations_before: Observations of the period before it.
        started_at: Time of it, as the caller gave it.
        counts_before: Shape [signals, bins + 1].
    """

    index: int
    observations_before: int
    started_at: float
    counts_before: NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class DriftFinding:
    """What a stream shows.

    Attributes:
        verdict: Of the whole.
        log_e_value: Natural logarithm of the e-value, all signals and restarts together; drift from log(1 / alpha).
        period_index: Number of the period that it is about, from 0.
        since_observation: Observations of that period before the restart that carries most evidence.
        since_at: Time of that restart.
        log_e_by_signal: Shape [signals], log e-value of each since that restart, its share of alpha not yet taken off.
        drifted_signals: Those that carry a finding of drift, strongest first; empty otherwise.
    """

    verdict: DriftVerdict
    log_e_value: float
    period_index: int
    since_observation: int
    since_at: float
    log_e_by_signal: tuple[float, ...]
    drifted_signals: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DriftTestState:
    """All that a device keeps of a test.

    Attributes:
        counts: Shape [signals, bins + 1], of the period so far.
        restarts: Restarts that are still followed, oldest first; their number grows with the logarithm of the period.
        completed_periods: Completed ones.
        drift_finding: The first finding of drift, until `new_drift_state`.
    """

    counts: _Counts
    restarts: tuple[RestartState, ...]
    completed_periods: int = 0
    drift_finding: DriftFinding | None = None


@dataclass(frozen=True, slots=True)
class DriftTolerance:
    """How far devices stray from their common reference without harm.

    Attributes:
        delta: Shape [signals], total variation.
        quantile: Share of devices that was asked for.
        coverage: Least share of new devices within delta, on average over the groups drawn; less than the quantile
            if there were too few groups.
        groups: How many there were.
    """

    delta: _Floats
    quantile: float
    coverage: float
    groups: int


@cache
def betting_events(bin_count: int) -> NDArray[np.bool_]:
    """Return the events that are bet on: bins and their absence, tails, both tails together, and the middle.

    Returns:
        Shape [events, bins + 1]; the last column is the bin of what is not finite.
    """
    places = np.arange(bin_count + 1)
    found = [places == bin_ for bin_ in places]
    found += [(places <= last) for last in range(bin_count - 1)]
    found += [
        (places < width) | ((places >= bin_count - width) & (places < bin_count))
        for width in range(1, (bin_count + 1) // 2)
    ]
    both = np.concatenate([np.stack(found), ~np.stack(found)])
    unique = np.unique(both, axis=0)
    unique.setflags(write=False)
    return unique


def clopper_pearson_upper(counts: ArrayLike, totals: ArrayLike, alpha: float) -> _Floats:
    """Return upper bounds of rates that each fail with probability `alpha` at most, rounded up.

    Source: Clopper and Pearson 1934; the binomial tail is an incomplete beta function, by its continued fraction
    (DLMF 8.17.22) with the modified algorithm of Lentz.

    Args:
        counts: Of successes.
        totals: Of trials, broadcast with counts.
        alpha: Between 0 and 0.5.

    Raises:
        ValueError: Impossible counts or error.

    >>> bool(abs(clopper_pearson_upper(0, 600, 0.05) - 0.00498) < 1e-6)
    True
    """
    hits, trials = np.broadcast_arrays(np.asarray(counts, np.int64), np.asarray(totals, np.int64))
    if not 0 < alpha <= 0.5:
        raise ValueError(f"error is {alpha}")
    if (hits < 0).any() or (hits > trials).any():
        raise ValueError("more successes than trials")
    pairs, back = np.unique(np.stack([hits.ravel(), trials.ravel()]), axis=1, return_inverse=True)
    bounds = np.ones(pairs.shape[1])
    open_ = pairs[0] < pairs[1]
    bounds[open_] = _invert_binomial_tail(
        pairs[0, open_].astype(np.float64), pairs[1, open_].astype(np.float64), math.log(alpha)
    )
    return bounds[back].reshape(hits.shape)


def event_bounds(counts: _Counts, alpha: float) -> _Floats:
    """Return upper bounds of all events' probabilities that hold together with probability 1 - error.

    Args:
        counts: Shape [signals, bins + 1], of a reference of independent observations.
        alpha: Shared by all signals and events (Bonferroni).

    Returns:
        Shape [signals, events].
    """
    members = betting_events(counts.shape[1] - 1)
    hits = counts @ members.T.astype(np.int64)
    return clopper_pearson_upper(hits, counts.sum(axis=1, keepdims=True), alpha / hits.size)


def design_drift_test(
    reference_counts: _Counts,
    *,
    tolerance: ArrayLike = 0.0,
    alpha: float = 0.05,
    period_size: int = 20_000,
    block_count: int = 256,
    null_bounds: _Floats | None = None,
) -> DriftTestDesign:
    """Plan a test against a reference.

    Args:
        reference_counts: Shape [signals, bins + 1], of the reference, or a device's own first observations.
        tolerance: Total variation from the reference that is harmless, one or per signal.
        alpha: False alarms allowed: a fifth for the reference, once, the rest in each period.
        period_size: Observations.
        block_count: Restarts in a period.
        null_bounds: From `event_bounds(counts, alpha * REFERENCE_SHARE)`, where they were computed beforehand.

    Raises:
        ValueError: A number is out of range.
    """
    if not 0 < alpha < 0.5 or block_count < 1 or period_size < block_count:
        raise ValueError(f"alpha {alpha}, {block_count} restarts in {period_size} observations")
    if null_bounds is None:
        null_bounds = event_bounds(reference_counts, alpha * REFERENCE_ALPHA_SHARE)
    delta = np.broadcast_to(np.asarray(tolerance, np.float64), (len(reference_counts),))
    if not ((delta >= 0) & (delta <= 1)).all():
        raise ValueError(f"a tolerance is not between 0 and 1: {delta}")
    widened = np.minimum(null_bounds + delta[:, None], 1.0)
    return DriftTestDesign(
        widened, alpha * (1 - REFERENCE_ALPHA_SHARE), math.ceil(period_size / block_count), block_count
    )


def new_drift_state(signal_count: int, bin_count: int, started_at: float = 0.0) -> DriftTestState:
    """Return the state before the first observation, or after a finding was dealt with."""
    empty = np.zeros((signal_count, bin_count + 1), np.int64)
    return DriftTestState(empty, (RestartState(0, 0, started_at, empty.astype(np.uint32)),))


def update_drift_test(
    design: DriftTestDesign, state: DriftTestState, counts: _Counts, observed_at: float = 0.0
) -> DriftTestState:
    """Add a batch of counts, look, and keep a finding of drift if there is one.

    Args:
        design: Of the test.
        state: Before the batch.
        counts: Shape [signals, bins + 1], of the batch; every signal has as many observations.
        observed_at: Time of the batch.
    """
    grown = replace(state, counts=state.counts + counts)
    if grown.drift_finding is None:
        finding = drift_finding(design, grown)
        if finding.verdict is DriftVerdict.DRIFT:
            grown = replace(grown, drift_finding=finding)
    seen = int(grown.counts[0].sum())
    if seen >= design.block_size * design.block_count:
        fresh = new_drift_state(len(counts), counts.shape[1] - 1, observed_at)
        return replace(fresh, completed_periods=grown.completed_periods + 1, drift_finding=grown.drift_finding)
    block = seen // design.block_size
    if block > grown.restarts[-1].index:
        marks = (*grown.restarts, RestartState(block, seen, observed_at, grown.counts.astype(np.uint32)))
        grown = replace(grown, restarts=tuple(mark for mark in marks if _is_followed(mark.index, block)))
    return grown


def drift_finding(design: DriftTestDesign, state: DriftTestState, *, is_testable: bool = True) -> DriftFinding:
    """Say what the stream shows.

    Args:
        design: Of the test.
        state: At present.
        is_testable: Whether observations can be taken as independent; see `episodes`.
    """
    if state.drift_finding is not None:
        return (
            state.drift_finding
            if is_testable
            else replace(state.drift_finding, verdict=DriftVerdict.CANNOT_TEST, drifted_signals=())
        )
    since = state.counts - np.stack([mark.counts_before for mark in state.restarts])
    wealth = _signal_wealth(design, since)
    # Every signal and every restart of the period has the same share of the money, used or not.
    shared = wealth - math.log(wealth.shape[1] * design.block_count)
    evidence = float(np.logaddexp.reduce(shared.ravel()))
    # Restarts to come are worth their stake; those no longer followed count as lost.
    to_come = design.block_count - 1 - state.restarts[-1].index
    if to_come:
        evidence = float(np.logaddexp(evidence, math.log(to_come / design.block_count)))
    best = int(np.logaddexp.reduce(shared, axis=1).argmax())
    mark, own = state.restarts[best], wealth[best]
    drift = evidence >= -math.log(design.alpha)
    carrying: tuple[int, ...] = ()
    if drift:
        order = np.argsort(-own)
        # Those that would be found alone; at least the strongest.
        alone = shared[best, order] >= -math.log(design.alpha)
        carrying = tuple(int(signal) for signal in order[: max(1, int(alone.sum()))])
    verdict = (
        DriftVerdict.CANNOT_TEST if not is_testable else DriftVerdict.DRIFT if drift else DriftVerdict.NO_EVIDENCE
    )
    return DriftFinding(
        verdict,
        evidence,
        state.completed_periods,
        mark.observations_before,
        mark.started_at,
        tuple(own.tolist()),
        carrying if is_testable else (),
    )


def log_wealth(event_counts: ArrayLike, totals: ArrayLike, null_bounds: ArrayLike) -> _Floats:
    """Return the log wealth of bets that an event is likelier than its bound, averaged over their strengths.

    Args:
        event_counts: How often it happened.
        totals: Out of how many.
        null_bounds: Most that its probability may be.
    """
    happened, of, most = (np.asarray(each, np.float64) for each in (event_counts, totals, null_bounds))
    return _log_mean_exp(np.stack([happened * h - of * np.log1p(most * math.expm1(h)) for h in BET_STRENGTHS]))


def fit_tolerance(groups: _Counts, *, quantile: float = 0.9, reference: _Counts | None = None) -> DriftTolerance:
    """Return the distance from the reference that the stated share of devices keep.

    Distances are those of counts, which sampling makes greater than those of distributions: the error is to the
    safe side. The rank is that of split conformal prediction, ceil((groups + 1) quantile), of the greatest
    distance over signals, in units of each signal's mean distance.

    Args:
        groups: Shape [groups, signals, bins + 1], one device, subject or episode each.
        quantile: Share of devices.
        reference: Shape [signals, bins + 1], counted without these groups; otherwise each group is compared with
            all others.

    Raises:
        ValueError: Fewer than two groups, or one without observations.

    Source: Vovk, Gammerman and Shafer 2005 (rank); total variation is half the sum of absolute differences.
    """
    if len(groups) < 2 or (groups.sum(axis=2) == 0).any():
        raise ValueError(f"{len(groups)} groups, of {groups.sum(axis=2).min(initial=0)} observations and more")
    others = groups.sum(axis=0) - groups if reference is None else np.broadcast_to(reference, groups.shape)
    distances = np.abs(_bin_shares(groups) - _bin_shares(others)).sum(axis=2) / 2
    unit = np.maximum(distances.mean(axis=0), 1e-12)
    rank = math.ceil((len(groups) + 1) * quantile - 1e-9)
    taken = min(rank, len(groups))
    factor = np.sort((distances / unit).max(axis=1))[taken - 1]
    coverage = min(quantile, taken / (len(groups) + 1)) if rank > len(groups) else quantile
    return DriftTolerance(np.minimum(unit * factor, 1.0), quantile, coverage, len(groups))


def _bin_shares(counts: _Counts) -> _Floats:
    return np.asarray(counts / counts.sum(axis=-1, keepdims=True))


def _is_followed(block: int, latest_block: int) -> bool:
    """Whether a restart is one of the last two at a multiple of some power of two: ages then grow geometrically."""
    steps = (1 << power for power in range(latest_block.bit_length() + 1))
    return any(block % step == 0 and latest_block // step - block // step <= 1 for step in steps)


def _signal_wealth(design: DriftTestDesign, counts: _Counts) -> _Floats:
    """Return log wealth, shape [restarts, signals], of counts of shape [restarts, signals, bins + 1]."""
    members = betting_events(counts.shape[2] - 1).astype(np.float64)
    hits = np.moveaxis(counts @ members.T, 2, 0)
    return _log_mean_exp(log_wealth(hits, counts.sum(axis=2), design.null_bounds.T[:, None, :]))


def _log_mean_exp(values: _Floats) -> _Floats:
    """Return the logarithm of the mean of exponentials over the first axis."""
    top = values.max(axis=0)
    return np.asarray(np.log(np.exp(values - top).mean(axis=0)) + top)


def _invert_binomial_tail(successes: _Floats, trials: _Floats, log_alpha: float) -> _Floats:
    """Bisect for the rates at which at most `successes` of `trials` have a chance of exp(log_error)."""
    a, b = trials - successes, successes + 1
    scale = np.array(
        [math.lgamma(n + 1) - math.lgamma(x) - math.lgamma(y) for n, x, y in zip(trials, a, b, strict=True)]
    )
    low, high = successes / trials, np.ones_like(successes)
    for _ in range(_BISECTIONS):
        rate = (low + high) / 2
        with np.errstate(divide="ignore"):
            log_tail = (
                scale
                + a * np.log1p(-rate)
                + b * np.log(rate)
                - np.log(a)
                + np.log(_incomplete_beta_fraction(a, b, 1 - rate))
            )
        above = log_tail > log_alpha
        low, high = np.where(above, rate, low), np.where(above, high, rate)
    return high


def _incomplete_beta_fraction(a: _Floats, b: _Floats, x: _Floats) -> _Floats:
    """Return the continued fraction of the incomplete beta function; it converges fast where x < a / (a + b)."""
    tiny = 1e-300
    c = np.ones_like(x)
    d = 1 / np.where(np.abs(1 - (a + b) * x / (a + 1)) < tiny, tiny, 1 - (a + b) * x / (a + 1))
    value = d.copy()
    for m in range(1, _MAX_FRACTION_TERMS):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 + term * d
            c = 1 + term / c
            d = 1 / np.where(np.abs(d) < tiny, tiny, d)
            c = np.where(np.abs(c) < tiny, tiny, c)
            value = value * d * c
        if (np.abs(d * c - 1) < 1e-13).all():
            break
    return value
