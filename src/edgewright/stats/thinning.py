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
    "MIN_EPISODES",
    "DependenceCheck",
    "TemporalThinning",
    "choose_thinning",
    "is_dependent",
    "new_dependence_check",
    "overdispersion",
    "pick_rows",
    "update_dependence_check",
]

_BinIndices = NDArray[np.integer]

# Episodes that a calibration stream must hold for its counts to be a reference.
MIN_EPISODES = 200
# Excess of scatter that is let pass, and standard errors on top of it.
_MAX_EXCESS_OVERDISPERSION, _STANDARD_ERRORS = 0.05, 3.0
_MIN_BLOCKS = 8
_QUARTERS = 4
_BLOCK_LENGTHS = (16, 64, 256)
# Two blocks of independent observations differ by more than this with chance .1: chi-square, 3 degrees of freedom.
_CHI_SQUARE_LIMIT = 6.251
# What is granted instead of .1, for the chi-square's approximation and for slow change.
_NULL_PROBABILITY = 0.15
_ALPHA = 0.01


@dataclass(frozen=True, slots=True)
class TemporalThinning:
    """Which observations of a stream are taken.

    Attributes:
        step: One of so many.
        min_gap_seconds: Least time between two that are taken; 0 where the calibration stream had no times.
        is_testable: Whether what is taken can pass for independent.
        episodes: Observations that the calibration stream has at this step.
        overdispersion: Greatest scatter of blocks at this step, over that of independent observations.
    """

    step: int
    min_gap_seconds: float
    is_testable: bool
    episodes: int
    overdispersion: float


@dataclass(frozen=True, slots=True)
class DependenceCheck:
    """A running check of the observations that were taken.

    Attributes:
        quarter_of_bin: Shape [signals, bins + 1], to which of four parts of the reference a bin belongs.
        current_block: Shape [lengths, signals, parts], of the block being filled.
        previous_block: The same, of the block before, where it is the first of a pair.
        observations: Observations so far.
        compared_pairs: Shape [lengths], pairs compared.
        differing_pairs: Shape [lengths, signals], pairs that differed.
    """

    quarter_of_bin: NDArray[np.uint8]
    current_block: NDArray[np.int64]
    previous_block: NDArray[np.int64]
    observations: int
    compared_pairs: NDArray[np.int64]
    differing_pairs: NDArray[np.int64]


def choose_thinning(
    streams: Sequence[_BinIndices], *, interval_seconds: float = 0.0, min_episodes: int = MIN_EPISODES
) -> TemporalThinning:
    """Choose the smallest step at which what is left of calibration streams can pass for independent.

    Args:
        streams: Each of shape [rows, signals]: the bins of one device's observations in order (`bins.place`).
        interval_seconds: Time between two rows, if they come evenly.
        min_episodes: Episodes that must be left.

    Returns:
        Not testable, at the longest step that was tried, if dependence lasts longer than the streams allow.
    """
    rows = sum(len(stream) for stream in streams)
    tried = TemporalThinning(1, 0.0, False, rows, math.inf)
    for step in _candidate_steps(max(1, rows // min_episodes)):
        thinned = [stream[::step] for stream in streams]
        left = sum(len(stream) for stream in thinned)
        if left < min_episodes:
            break
        scatter, allowed = overdispersion(thinned)
        tried = TemporalThinning(
            step, step * interval_seconds * (1 - 0.5 / step), scatter <= allowed, left, scatter
        )
        if tried.is_testable:
            break
    return tried


def overdispersion(streams: Sequence[_BinIndices]) -> tuple[float, float]:
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
        quarter = _quarters_of_bins(np.bincount(np.concatenate(own))[None, :])[0].astype(np.int64)
        for cells in (np.arange(len(quarter)), quarter, quarter // 2, (quarter + 1) // 2 % 2):
            labelled = [cells[places] for places in own]
            length = 2
            while length * _MIN_BLOCKS <= longest:
                found = [_homogeneity_chi_square(labels, length) for labels in labelled]
                chi, freedom = (sum(each) for each in zip(*found, strict=True))
                if freedom:
                    ninth = 2 / (9 * freedom)
                    allowed = (1 + _MAX_EXCESS_OVERDISPERSION) * (
                        1 - ninth + _STANDARD_ERRORS * math.sqrt(ninth)
                    ) ** 3
                    if chi / freedom / allowed > worst / limit:
                        worst, limit = chi / freedom, allowed
                length *= 2
    return worst, limit


def pick_rows(
    thinning: TemporalThinning,
    row_count: int,
    rows_since_taken: int,
    observed_at: ArrayLike | None = None,
    last_taken_at: float = -math.inf,
) -> list[int]:
    """Return which of the next rows are taken.

    Args:
        thinning: Of the stream.
        row_count: How many there are.
        rows_since_taken: Rows since the last one that was taken; the step or more if there is none.
        observed_at: Shape [rows], when they were seen; needed for a gap in time.
        last_taken_at: When the last one that was taken was seen.

    >>> pick_rows(TemporalThinning(5, 0.0, True, 200, 1.0), 12, rows_since_taken=3)
    [1, 6, 11]
    """
    if observed_at is None or thinning.min_gap_seconds <= 0:
        return list(range(max(0, thinning.step - rows_since_taken - 1), row_count, thinning.step))
    taken = []
    for row, now in enumerate(np.asarray(observed_at, np.float64).tolist()):
        rows_since_taken += 1
        # A clock that was set back must not stop the stream.
        if rows_since_taken >= thinning.step and not 0 <= now - last_taken_at < thinning.min_gap_seconds:
            taken.append(row)
            rows_since_taken, last_taken_at = 0, now
    return taken


def new_dependence_check(reference: NDArray[np.int64]) -> DependenceCheck:
    """Return the state of the check before the first observation.

    Args:
        reference: Shape [signals, bins + 1], counts whose quarters blocks are compared over.
    """
    blocks = np.zeros((len(_BLOCK_LENGTHS), len(reference), _QUARTERS), np.int64)
    return DependenceCheck(
        _quarters_of_bins(reference),
        blocks,
        blocks.copy(),
        0,
        np.zeros(len(_BLOCK_LENGTHS), np.int64),
        np.zeros((len(_BLOCK_LENGTHS), len(reference)), np.int64),
    )


def update_dependence_check(state: DependenceCheck, bin_indices: _BinIndices) -> DependenceCheck:
    """Add observations to the check.

    Args:
        state: Before them.
        bin_indices: Shape [rows, signals], bins of those that were taken, in order.
    """
    signals = np.arange(len(state.quarter_of_bin))
    parts = state.quarter_of_bin[signals, bin_indices]
    current, previous = state.current_block.copy(), state.previous_block.copy()
    pairs, apart = state.compared_pairs.copy(), state.differing_pairs.copy()
    for level, length in enumerate(_BLOCK_LENGTHS):
        at = state.observations
        while at < state.observations + len(parts):
            end = min(at + length - at % length, state.observations + len(parts))
            rows = parts[at - state.observations : end - state.observations]
            for part in range(_QUARTERS):
                current[level, :, part] += (rows == part).sum(axis=0)
            at = end
            if at % length == 0:
                if at // length % 2:
                    previous[level] = current[level]
                else:
                    pairs[level] += 1
                    apart[level] += _two_sample_chi_square(previous[level], current[level]) > _CHI_SQUARE_LIMIT
                current[level] = 0
    return replace(
        state,
        current_block=current,
        previous_block=previous,
        observations=state.observations + len(parts),
        compared_pairs=pairs,
        differing_pairs=apart,
    )


def is_dependent(state: DependenceCheck) -> bool:
    """Whether observations that were taken still depend on each other, wrongly said with chance .01 at most."""
    wealth = log_wealth(state.differing_pairs, state.compared_pairs[:, None], _NULL_PROBABILITY)
    return bool(np.logaddexp.reduce(wealth.ravel()) - math.log(wealth.size) >= -math.log(_ALPHA))


def _quarters_of_bins(counts: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return the quarter of the distribution that holds each bin's middle, for counts of shape [signals, bins]."""
    before = np.cumsum(counts, axis=1) - counts / 2
    total = np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return np.asarray(np.minimum(_QUARTERS * before / total, _QUARTERS - 1), np.uint8)


def _candidate_steps(max_step: int) -> list[int]:
    """Return every step up to 12, then ever coarser ones."""
    steps = list(range(1, min(max_step, 12) + 1))
    while steps[-1] < max_step:
        steps.append(min(max_step, math.ceil(steps[-1] * 1.25)))
    return steps


def _homogeneity_chi_square(bin_indices: _BinIndices, length: int) -> tuple[float, int]:
    """Return Pearson's chi-square between blocks of this length, and its degrees of freedom."""
    blocks = len(bin_indices) // length
    if blocks < 2:
        return 0.0, 0
    used = bin_indices[: blocks * length].astype(np.int64)
    width = int(used.max()) + 1
    slots = used + width * np.repeat(np.arange(blocks), length)
    counts = np.bincount(slots, minlength=blocks * width).reshape(blocks, width)
    totals = counts.sum(axis=0)
    counts, totals = counts[:, totals > 0], totals[totals > 0]
    expected = totals / blocks
    return float(((counts - expected) ** 2 / expected).sum()), (blocks - 1) * (len(totals) - 1)


def _two_sample_chi_square(one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the two-sample chi-square of blocks of equal length, shape [signals]."""
    return np.asarray(((one - other) ** 2 / np.maximum(one + other, 1)).sum(axis=-1))
