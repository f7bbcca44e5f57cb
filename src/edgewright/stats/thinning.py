"""One observation per episode: how far apart observations must be to count as independent.

Frames of one scene are not many observations but one. How strongly a stream depends on itself shows in the counts
of whole blocks: of independent observations they scatter as a multinomial, of dependent ones by as much more as a
block holds repeats. At publish time the smallest step is taken at which no block of any length scatters too much;
if too few observations are left at that step, the answer is that the stream cannot be tested. A fixed step would
not do: a step of 5 mends frames that are shown five times, and not regimes that last 500.

On the device the same question is asked while observations come, with what fits into a kilobyte or two:
neighbouring blocks of three lengths are compared, and an e-process bets that they differ too often. One lasting
change makes one pair differ and is not taken for dependence; regimes that come and go are. Devices import this:
numpy only.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgewright.stats.drift_test import log_wealth

__all__ = [
    "LEAST_EPISODES",
    "Dependence",
    "Thinning",
    "begin_check",
    "check",
    "choose_thinning",
    "depends",
    "overdispersion",
    "pick",
]

_Places = NDArray[np.integer]

# Episodes that a calibration stream must hold for its counts to be a reference.
LEAST_EPISODES = 200
# Excess of scatter that is let pass, and standard errors on top of it.
_SLACK, _ERRORS = 0.05, 3.0
_LEAST_BLOCKS = 8
_PARTS = 4
_LENGTHS = (16, 64, 256)
# Two blocks of independent observations differ by more than this with chance .1: chi-square, 3 degrees of freedom.
_APART = 6.251
# What is granted instead of .1, for the chi-square's approximation and for slow change.
_GRANTED = 0.15
_ERROR = 0.01


@dataclass(frozen=True, slots=True)
class Thinning:
    """Which observations of a stream are taken.

    Attributes:
        step: One of so many.
        gap_s: Least time between two that are taken; 0 where the calibration stream had no times.
        testable: Whether what is taken can pass for independent.
        episodes: Observations that the calibration stream has at this step.
        scatter: Greatest scatter of blocks at this step, over that of independent observations.
    """

    step: int
    gap_s: float
    testable: bool
    episodes: int
    scatter: float


@dataclass(frozen=True, slots=True)
class Dependence:
    """A running check of the observations that were taken.

    Attributes:
        parts: Shape [signals, bins + 1], to which of four parts of the reference a bin belongs.
        current: Shape [lengths, signals, parts], of the block being filled.
        previous: The same, of the block before, where it is the first of a pair.
        seen: Observations so far.
        pairs: Shape [lengths], pairs compared.
        apart: Shape [lengths, signals], pairs that differed.
    """

    parts: NDArray[np.uint8]
    current: NDArray[np.int64]
    previous: NDArray[np.int64]
    seen: int
    pairs: NDArray[np.int64]
    apart: NDArray[np.int64]


def choose_thinning(
    streams: Sequence[_Places], *, interval_s: float = 0.0, least: int = LEAST_EPISODES
) -> Thinning:
    """Choose the smallest step at which what is left of calibration streams can pass for independent.

    Args:
        streams: Each of shape [rows, signals]: the bins of one device's observations in order (`bins.place`).
        interval_s: Time between two rows, if they come evenly.
        least: Episodes that must be left.

    Returns:
        Not testable, at the longest step that was tried, if dependence lasts longer than the streams allow.
    """
    rows = sum(len(stream) for stream in streams)
    tried = Thinning(1, 0.0, False, rows, math.inf)
    for step in _steps(max(1, rows // least)):
        thinned = [stream[::step] for stream in streams]
        left = sum(len(stream) for stream in thinned)
        if left < least:
            break
        scatter, allowed = overdispersion(thinned)
        tried = Thinning(step, step * interval_s * (1 - 0.5 / step), scatter <= allowed, left, scatter)
        if tried.testable:
            break
    return tried


def overdispersion(streams: Sequence[_Places]) -> tuple[float, float]:
    """Return by how much counts of blocks scatter more than a multinomial, and the most that passes for none.

    Looked at are single bins, quarters, halves, and the middle against both ends: level and spread wander longer
    than single bins do, and tails are what drift is looked for in.

    Args:
        streams: Each of shape [rows, signals], bins.

    Returns:
        Of the signal, the partition and the block length that exceed their limit most, or come closest to it.

    Source: Pearson's chi-square of homogeneity over its degrees of freedom; for a stationary stream it tends to the
    integrated autocorrelation time of the cells' indicators. Its quantile is Wilson and Hilferty's (1931).
    """
    worst, limit = 1.0, math.inf
    longest = max(len(stream) for stream in streams)
    for signal in range(streams[0].shape[1]):
        own = [stream[:, signal].astype(np.int64) for stream in streams]
        quarter = _parts_of(np.bincount(np.concatenate(own))[None, :])[0].astype(np.int64)
        for cells in (np.arange(len(quarter)), quarter, quarter // 2, (quarter + 1) // 2 % 2):
            labelled = [cells[places] for places in own]
            length = 2
            while length * _LEAST_BLOCKS <= longest:
                found = [_homogeneity(labels, length) for labels in labelled]
                chi, freedom = (sum(each) for each in zip(*found, strict=True))
                if freedom:
                    ninth = 2 / (9 * freedom)
                    allowed = (1 + _SLACK) * (1 - ninth + _ERRORS * math.sqrt(ninth)) ** 3
                    if chi / freedom / allowed > worst / limit:
                        worst, limit = chi / freedom, allowed
                length *= 2
    return worst, limit


def pick(
    thinning: Thinning, rows: int, since: int, times_s: ArrayLike | None = None, last_s: float = -math.inf
) -> list[int]:
    """Return which of the next rows are taken.

    Args:
        thinning: Of the stream.
        rows: How many there are.
        since: Rows since the last one that was taken; the step or more if there is none.
        times_s: Shape [rows], when they were seen; needed for a gap in time.
        last_s: When the last one that was taken was seen.

    >>> pick(Thinning(5, 0.0, True, 200, 1.0), 12, since=3)
    [1, 6, 11]
    """
    if times_s is None or thinning.gap_s <= 0:
        return list(range(max(0, thinning.step - since - 1), rows, thinning.step))
    taken = []
    for row, now in enumerate(np.asarray(times_s, np.float64).tolist()):
        since += 1
        # A clock that was set back must not stop the stream.
        if since >= thinning.step and not 0 <= now - last_s < thinning.gap_s:
            taken.append(row)
            since, last_s = 0, now
    return taken


def begin_check(reference: NDArray[np.int64]) -> Dependence:
    """Return the state of the check before the first observation.

    Args:
        reference: Shape [signals, bins + 1], counts whose quarters blocks are compared over.
    """
    blocks = np.zeros((len(_LENGTHS), len(reference), _PARTS), np.int64)
    return Dependence(
        _parts_of(reference),
        blocks,
        blocks.copy(),
        0,
        np.zeros(len(_LENGTHS), np.int64),
        np.zeros((len(_LENGTHS), len(reference)), np.int64),
    )


def check(state: Dependence, places: _Places) -> Dependence:
    """Add observations to the check.

    Args:
        state: Before them.
        places: Shape [rows, signals], bins of those that were taken, in order.
    """
    signals = np.arange(len(state.parts))
    parts = state.parts[signals, places]
    current, previous = state.current.copy(), state.previous.copy()
    pairs, apart = state.pairs.copy(), state.apart.copy()
    for level, length in enumerate(_LENGTHS):
        at = state.seen
        while at < state.seen + len(parts):
            end = min(at + length - at % length, state.seen + len(parts))
            rows = parts[at - state.seen : end - state.seen]
            for part in range(_PARTS):
                current[level, :, part] += (rows == part).sum(axis=0)
            at = end
            if at % length == 0:
                if at // length % 2:
                    previous[level] = current[level]
                else:
                    pairs[level] += 1
                    apart[level] += _distance(previous[level], current[level]) > _APART
                current[level] = 0
    return replace(
        state, current=current, previous=previous, seen=state.seen + len(parts), pairs=pairs, apart=apart
    )


def depends(state: Dependence) -> bool:
    """Whether observations that were taken still depend on each other, wrongly said with chance .01 at most."""
    wealth = log_wealth(state.apart, state.pairs[:, None], _GRANTED)
    return bool(np.logaddexp.reduce(wealth.ravel()) - math.log(wealth.size) >= -math.log(_ERROR))


def _parts_of(counts: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return the quarter of the distribution that holds each bin's middle, for counts of shape [signals, bins]."""
    before = np.cumsum(counts, axis=1) - counts / 2
    total = np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return np.asarray(np.minimum(_PARTS * before / total, _PARTS - 1), np.uint8)


def _steps(most: int) -> list[int]:
    """Return every step up to 12, then ever coarser ones."""
    steps = list(range(1, min(most, 12) + 1))
    while steps[-1] < most:
        steps.append(min(most, math.ceil(steps[-1] * 1.25)))
    return steps


def _homogeneity(places: _Places, length: int) -> tuple[float, int]:
    """Return Pearson's chi-square between blocks of this length, and its degrees of freedom."""
    blocks = len(places) // length
    if blocks < 2:
        return 0.0, 0
    used = places[: blocks * length].astype(np.int64)
    width = int(used.max()) + 1
    slots = used + width * np.repeat(np.arange(blocks), length)
    counts = np.bincount(slots, minlength=blocks * width).reshape(blocks, width)
    totals = counts.sum(axis=0)
    counts, totals = counts[:, totals > 0], totals[totals > 0]
    expected = totals / blocks
    return float(((counts - expected) ** 2 / expected).sum()), (blocks - 1) * (len(totals) - 1)


def _distance(one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the two-sample chi-square of blocks of equal length, shape [signals]."""
    return np.asarray(((one - other) ** 2 / np.maximum(one + other, 1)).sum(axis=-1))
