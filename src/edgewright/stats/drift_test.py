"""Whether a stream still comes from its reference, asked at any time, answered by a histogram.

The null hypothesis is generous: given the past, an observation's distribution over the bins is within total
variation `tolerance` of the reference's true distribution, of which only counts are known. Evidence is money won by
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
    "REFERENCE_SHARE",
    "STRENGTHS",
    "Finding",
    "Mark",
    "Plan",
    "State",
    "Tolerance",
    "Verdict",
    "begin",
    "clopper_pearson_upper",
    "event_bounds",
    "events",
    "judge",
    "log_wealth",
    "make_plan",
    "tolerance",
    "update",
]

_Floats = NDArray[np.float64]
_Counts = NDArray[np.int64]

# Strengths of a bet: how much the log odds of an event are supposed to have grown.
STRENGTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
# Part of alpha for the reference's sampling error, spent once per reference; the rest is spent in each period.
REFERENCE_SHARE = 0.2
_BISECTIONS = 50
_FRACTIONS = 20_000


class Verdict(StrEnum):
    """What can be said of a stream."""

    NO_EVIDENCE = "no evidence"
    DRIFT = "drift"
    CANNOT_TEST = "cannot test"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a device tests, fixed before its stream begins.

    Attributes:
        bounds: Shape [signals, events], most that an event's probability may be under the null.
        alpha: False alarms allowed per period, without the reference's share.
        block: Observations between restarts.
        blocks: Restarts in a period.
    """

    bounds: _Floats
    alpha: float
    block: int
    blocks: int


@dataclass(frozen=True, slots=True)
class Mark:
    """The state of the histogram at a restart.

    Attributes:
        block: Number of the restart in its period, from 0.
        seen: Observations of the period before it.
        at_s: Time of it, as the caller gave it.
        counts: Shape [signals, bins + 1].
    """

    block: int
    seen: int
    at_s: float
    counts: NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Finding:
    """What a stream shows.

    Attributes:
        verdict: Of the whole.
        evidence: Natural logarithm of the e-value, all signals and restarts together; drift from log(1 / alpha).
        period: Number of the period that it is about, from 0.
        since: Observations of that period before the restart that carries most evidence.
        since_s: Time of that restart.
        by_signal: Shape [signals], log e-value of each since that restart, its share of alpha not yet taken off.
        signals: Those that carry a finding of drift, strongest first; empty otherwise.
    """

    verdict: Verdict
    evidence: float
    period: int
    since: int
    since_s: float
    by_signal: tuple[float, ...]
    signals: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class State:
    """All that a device keeps of a test.

    Attributes:
        counts: Shape [signals, bins + 1], of the period so far.
        marks: Restarts that are still followed, oldest first; their number grows with the logarithm of the period.
        periods: Completed ones.
        found: The first finding of drift, until `begin`.
    """

    counts: _Counts
    marks: tuple[Mark, ...]
    periods: int = 0
    found: Finding | None = None


@dataclass(frozen=True, slots=True)
class Tolerance:
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
def events(bins: int) -> NDArray[np.bool_]:
    """Return the events that are bet on: bins and their absence, tails, both tails together, and the middle.

    Returns:
        Shape [events, bins + 1]; the last column is the bin of what is not finite.
    """
    places = np.arange(bins + 1)
    found = [places == bin_ for bin_ in places]
    found += [(places <= last) for last in range(bins - 1)]
    found += [
        (places < width) | ((places >= bins - width) & (places < bins)) for width in range(1, (bins + 1) // 2)
    ]
    both = np.concatenate([np.stack(found), ~np.stack(found)])
    unique = np.unique(both, axis=0)
    unique.setflags(write=False)
    return unique


def clopper_pearson_upper(counts: ArrayLike, totals: ArrayLike, error: float) -> _Floats:
    """Return upper bounds of rates that each fail with probability `error` at most, rounded up.

    Source: Clopper and Pearson 1934; the binomial tail is an incomplete beta function, by its continued fraction
    (DLMF 8.17.22) with the modified algorithm of Lentz.

    Args:
        counts: Of successes.
        totals: Of trials, broadcast with counts.
        error: Between 0 and 0.5.

    Raises:
        ValueError: Impossible counts or error.

    >>> bool(abs(clopper_pearson_upper(0, 600, 0.05) - 0.00498) < 1e-6)
    True
    """
    hits, trials = np.broadcast_arrays(np.asarray(counts, np.int64), np.asarray(totals, np.int64))
    if not 0 < error <= 0.5:
        raise ValueError(f"error is {error}")
    if (hits < 0).any() or (hits > trials).any():
        raise ValueError("more successes than trials")
    pairs, back = np.unique(np.stack([hits.ravel(), trials.ravel()]), axis=1, return_inverse=True)
    bounds = np.ones(pairs.shape[1])
    open_ = pairs[0] < pairs[1]
    bounds[open_] = _invert(pairs[0, open_].astype(np.float64), pairs[1, open_].astype(np.float64), math.log(error))
    return bounds[back].reshape(hits.shape)


def event_bounds(counts: _Counts, error: float) -> _Floats:
    """Return upper bounds of all events' probabilities that hold together with probability 1 - error.

    Args:
        counts: Shape [signals, bins + 1], of a reference of independent observations.
        error: Shared by all signals and events (Bonferroni).

    Returns:
        Shape [signals, events].
    """
    members = events(counts.shape[1] - 1)
    hits = counts @ members.T.astype(np.int64)
    return clopper_pearson_upper(hits, counts.sum(axis=1, keepdims=True), error / hits.size)


def make_plan(
    counts: _Counts,
    *,
    tolerance: ArrayLike = 0.0,
    alpha: float = 0.05,
    period: int = 20_000,
    blocks: int = 256,
    bounds: _Floats | None = None,
) -> Plan:
    """Plan a test against a reference.

    Args:
        counts: Shape [signals, bins + 1], of the reference, or a device's own first observations.
        tolerance: Total variation from the reference that is harmless, one or per signal.
        alpha: False alarms allowed: a fifth for the reference, once, the rest in each period.
        period: Observations.
        blocks: Restarts in a period.
        bounds: From `event_bounds(counts, alpha * REFERENCE_SHARE)`, where they were computed beforehand.

    Raises:
        ValueError: A number is out of range.
    """
    if not 0 < alpha < 0.5 or blocks < 1 or period < blocks:
        raise ValueError(f"alpha {alpha}, {blocks} restarts in {period} observations")
    if bounds is None:
        bounds = event_bounds(counts, alpha * REFERENCE_SHARE)
    delta = np.broadcast_to(np.asarray(tolerance, np.float64), (len(counts),))
    if not ((delta >= 0) & (delta <= 1)).all():
        raise ValueError(f"a tolerance is not between 0 and 1: {delta}")
    widened = np.minimum(bounds + delta[:, None], 1.0)
    return Plan(widened, alpha * (1 - REFERENCE_SHARE), math.ceil(period / blocks), blocks)


def begin(signals: int, bins: int, at_s: float = 0.0) -> State:
    """Return the state before the first observation, or after a finding was dealt with."""
    empty = np.zeros((signals, bins + 1), np.int64)
    return State(empty, (Mark(0, 0, at_s, empty.astype(np.uint32)),))


def update(plan: Plan, state: State, counts: _Counts, at_s: float = 0.0) -> State:
    """Add a batch of counts, look, and keep a finding of drift if there is one.

    Args:
        plan: Of the test.
        state: Before the batch.
        counts: Shape [signals, bins + 1], of the batch; every signal has as many observations.
        at_s: Time of the batch.
    """
    grown = replace(state, counts=state.counts + counts)
    if grown.found is None:
        finding = judge(plan, grown)
        if finding.verdict is Verdict.DRIFT:
            grown = replace(grown, found=finding)
    seen = int(grown.counts[0].sum())
    if seen >= plan.block * plan.blocks:
        fresh = begin(len(counts), counts.shape[1] - 1, at_s)
        return replace(fresh, periods=grown.periods + 1, found=grown.found)
    block = seen // plan.block
    if block > grown.marks[-1].block:
        marks = (*grown.marks, Mark(block, seen, at_s, grown.counts.astype(np.uint32)))
        grown = replace(grown, marks=tuple(mark for mark in marks if _follows(mark.block, block)))
    return grown


def judge(plan: Plan, state: State, *, testable: bool = True) -> Finding:
    """Say what the stream shows.

    Args:
        plan: Of the test.
        state: At present.
        testable: Whether observations can be taken as independent; see `episodes`.
    """
    if state.found is not None:
        return state.found if testable else replace(state.found, verdict=Verdict.CANNOT_TEST, signals=())
    since = state.counts - np.stack([mark.counts for mark in state.marks])
    wealth = _signal_wealth(plan, since)
    # Every signal and every restart of the period has the same share of the money, used or not.
    shared = wealth - math.log(wealth.shape[1] * plan.blocks)
    evidence = float(np.logaddexp.reduce(shared.ravel()))
    # Restarts to come are worth their stake; those no longer followed count as lost.
    to_come = plan.blocks - 1 - state.marks[-1].block
    if to_come:
        evidence = float(np.logaddexp(evidence, math.log(to_come / plan.blocks)))
    best = int(np.logaddexp.reduce(shared, axis=1).argmax())
    mark, own = state.marks[best], wealth[best]
    drift = evidence >= -math.log(plan.alpha)
    carrying: tuple[int, ...] = ()
    if drift:
        order = np.argsort(-own)
        # Those that would be found alone; at least the strongest.
        alone = shared[best, order] >= -math.log(plan.alpha)
        carrying = tuple(int(signal) for signal in order[: max(1, int(alone.sum()))])
    verdict = Verdict.CANNOT_TEST if not testable else Verdict.DRIFT if drift else Verdict.NO_EVIDENCE
    return Finding(
        verdict,
        evidence,
        state.periods,
        mark.seen,
        mark.at_s,
        tuple(own.tolist()),
        carrying if testable else (),
    )


def log_wealth(hits: ArrayLike, totals: ArrayLike, bounds: ArrayLike) -> _Floats:
    """Return the log wealth of bets that an event is likelier than its bound, averaged over their strengths.

    Args:
        hits: How often it happened.
        totals: Out of how many.
        bounds: Most that its probability may be.
    """
    happened, of, most = (np.asarray(each, np.float64) for each in (hits, totals, bounds))
    return _log_mean_exp(np.stack([happened * h - of * np.log1p(most * math.expm1(h)) for h in STRENGTHS]))


def tolerance(groups: _Counts, *, quantile: float = 0.9, reference: _Counts | None = None) -> Tolerance:
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
    distances = np.abs(_shares(groups) - _shares(others)).sum(axis=2) / 2
    unit = np.maximum(distances.mean(axis=0), 1e-12)
    rank = math.ceil((len(groups) + 1) * quantile - 1e-9)
    taken = min(rank, len(groups))
    factor = np.sort((distances / unit).max(axis=1))[taken - 1]
    coverage = min(quantile, taken / (len(groups) + 1)) if rank > len(groups) else quantile
    return Tolerance(np.minimum(unit * factor, 1.0), quantile, coverage, len(groups))


def _shares(counts: _Counts) -> _Floats:
    return np.asarray(counts / counts.sum(axis=-1, keepdims=True))


def _follows(block: int, latest: int) -> bool:
    """Whether a restart is one of the last two at a multiple of some power of two: ages then grow geometrically."""
    steps = (1 << power for power in range(latest.bit_length() + 1))
    return any(block % step == 0 and latest // step - block // step <= 1 for step in steps)


def _signal_wealth(plan: Plan, counts: _Counts) -> _Floats:
    """Return log wealth, shape [restarts, signals], of counts of shape [restarts, signals, bins + 1]."""
    members = events(counts.shape[2] - 1).astype(np.float64)
    hits = np.moveaxis(counts @ members.T, 2, 0)
    return _log_mean_exp(log_wealth(hits, counts.sum(axis=2), plan.bounds.T[:, None, :]))


def _log_mean_exp(values: _Floats) -> _Floats:
    """Return the logarithm of the mean of exponentials over the first axis."""
    top = values.max(axis=0)
    return np.asarray(np.log(np.exp(values - top).mean(axis=0)) + top)


def _invert(hits: _Floats, trials: _Floats, log_error: float) -> _Floats:
    """Bisect for the rates at which at most `hits` of `trials` have a chance of exp(log_error)."""
    a, b = trials - hits, hits + 1
    scale = np.array(
        [math.lgamma(n + 1) - math.lgamma(x) - math.lgamma(y) for n, x, y in zip(trials, a, b, strict=True)]
    )
    low, high = hits / trials, np.ones_like(hits)
    for _ in range(_BISECTIONS):
        rate = (low + high) / 2
        with np.errstate(divide="ignore"):
            log_tail = (
                scale + a * np.log1p(-rate) + b * np.log(rate) - np.log(a) + np.log(_fraction(a, b, 1 - rate))
            )
        above = log_tail > log_error
        low, high = np.where(above, rate, low), np.where(above, high, rate)
    return high


def _fraction(a: _Floats, b: _Floats, x: _Floats) -> _Floats:
    """Return the continued fraction of the incomplete beta function; it converges fast where x < a / (a + b)."""
    tiny = 1e-300
    c = np.ones_like(x)
    d = 1 / np.where(np.abs(1 - (a + b) * x / (a + 1)) < tiny, tiny, 1 - (a + b) * x / (a + 1))
    value = d.copy()
    for m in range(1, _FRACTIONS):
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
