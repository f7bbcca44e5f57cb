"""Detectors of drift, ours and others', in one form: from reference and stream to the row of the first alarm."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from river import drift as river
from scipy import stats

from edgewright.stats import divergences, drift_test, histograms

__all__ = ["DETECTORS", "Detector", "watch"]

Floats = NDArray[np.float64]
Detector = Callable[[Floats, Floats, int], int | None]

ALPHA = 0.05
# Rows between looks of ours, and rows per window of the windowed ones.
_BATCH, _WINDOW = 32, 500


def watch(
    taken: histograms.ReferenceHistogram,
    stream: Floats,
    *,
    tolerance: Any = 0.0,
    batch: int = _BATCH,
) -> int | None:
    """Run the e-process over a stream; return the row after which it alarms."""
    plan = drift_test.design_drift_test(
        taken.counts, tolerance=tolerance, alpha=ALPHA, period_size=max(len(stream), 20_000)
    )
    state = drift_test.new_drift_state(
        *(length - offset for length, offset in zip(taken.counts.shape, (0, 1), strict=True))
    )
    places = histograms.bin_index(stream, taken.edges)
    width = taken.counts.shape[1]
    signals = np.arange(places.shape[1]) * width
    for start in range(0, len(stream), batch):
        slots = places[start : start + batch] + signals
        counts = np.bincount(slots.ravel(), minlength=taken.counts.size).reshape(taken.counts.shape)
        state = drift_test.update_drift_test(plan, state, counts)
        if state.drift_finding is not None:
            return min(start + batch, len(stream))
    return None


def e_process(reference: Floats, stream: Floats, seed: int) -> int | None:
    """Ours."""
    return watch(histograms.build_reference_histogram(reference, seed=seed), stream)


def conditional_ctm(reference: Floats, stream: Floats, seed: int) -> int | None:
    """Conditional conformal test martingale (arXiv:2602.13848), our reading, one per signal, averaged.

    Ranks are middle ranks, for signals have atoms. Bets are learned by online Newton steps with D = .5.
    """
    del seed
    ordered, signals = np.sort(reference, axis=0), reference.shape[1]
    band = math.sqrt(math.log(2 * signals / (ALPHA * drift_test.REFERENCE_ALPHA_SHARE)) / (2 * len(reference)))
    ranks = np.column_stack(
        [
            (
                np.searchsorted(ordered[:, s], stream[:, s], "left")
                + np.searchsorted(ordered[:, s], stream[:, s], "right")
            )
            / (2 * len(reference))
            for s in range(signals)
        ]
    )
    bet, curvature, log_wealth = np.zeros(signals), np.ones(signals), np.zeros(signals)
    limit = -math.log(ALPHA * (1 - drift_test.REFERENCE_ALPHA_SHARE)) + math.log(signals)
    for row, rank in enumerate(ranks):
        paid = (rank - 0.5 - np.sign(bet) * band) / (0.5 + band)
        factor = 1 + bet * paid
        log_wealth += np.log(factor)
        if log_wealth.max() >= limit - math.log(signals) and np.logaddexp.reduce(log_wealth) >= limit:
            return row + 1
        slope = paid / factor
        curvature += slope**2
        bet = np.clip(bet + 2 / (2 - math.log(3)) * slope / curvature, -0.5, 0.5)
    return None


def _river(make: Callable[[int], Any]) -> Detector:
    def find(reference: Floats, stream: Floats, seed: int) -> int | None:
        # Their settings are meant for values between 0 and 1.
        low, high = reference.min(axis=0), reference.max(axis=0)
        stream = np.clip((stream - low) / np.where(high > low, high - low, 1), 0, 1)
        first: int | None = None
        for signal in range(stream.shape[1]):
            one = make(seed)
            for row, value in enumerate(stream[:first, signal].tolist()):
                one.update(value)
                if one.drift_detected:
                    first = row + 1
                    break
        return first

    return find


def _windowed(alarms: Callable[[NDArray[np.int64], NDArray[np.int64], int], bool]) -> Detector:
    def find(reference: Floats, stream: Floats, seed: int) -> int | None:
        taken = histograms.build_reference_histogram(reference, seed=seed)
        windows = len(stream) // _WINDOW
        for start in range(0, windows * _WINDOW, _WINDOW):
            counts = histograms.count_by_bin(stream[start : start + _WINDOW], taken.edges)
            if alarms(counts, taken.counts, windows):
                return start + _WINDOW
        return None

    return find


def _psi_alarms(counts: NDArray[np.int64], reference: NDArray[np.int64], windows: int) -> bool:
    del windows
    return bool((divergences.population_stability_index(counts, reference) > 0.2).any())


def _chi_square_p(counts: NDArray[np.int64], reference: NDArray[np.int64]) -> Floats:
    freedom = ((counts + reference) > 0).sum(axis=1) - 1
    return np.asarray(stats.chi2.sf(divergences.chi_square_statistic(counts, reference), freedom))


def _chi_square_alarms(counts: NDArray[np.int64], reference: NDArray[np.int64], windows: int) -> bool:
    del windows
    return bool((_chi_square_p(counts, reference) < ALPHA / len(counts)).any())


def _spent_chi_square_alarms(counts: NDArray[np.int64], reference: NDArray[np.int64], windows: int) -> bool:
    return bool((_chi_square_p(counts, reference) < ALPHA / len(counts) / windows).any())


def _adwin(seed: int) -> Any:
    del seed
    return river.ADWIN()  # type: ignore[no-untyped-call]


DETECTORS: dict[str, Detector] = {
    "e-process": e_process,
    "conditional CTM": conditional_ctm,
    "ADWIN": _river(_adwin),
    "KSWIN": _river(lambda seed: river.KSWIN(seed=seed)),
    "Page-Hinkley": _river(lambda _: river.PageHinkley()),
    "PSI": _windowed(_psi_alarms),
    "chi-square": _windowed(_chi_square_alarms),
    "chi-square, split": _windowed(_spent_chi_square_alarms),
}
