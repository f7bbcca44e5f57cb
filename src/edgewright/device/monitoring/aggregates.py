"""What a device has counted for one release: drift's state, windows, latency, rejections. A few kilobytes.

Pure: `monitor.py` brings rows here and what comes out to the disk.
"""

import dataclasses
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgewright.contract.errors import InputError
from edgewright.contract.model.guard import GuardCheck
from edgewright.contract.model.ood_detector import LogitScore
from edgewright.contract.model.reference_profile import ReferenceProfile
from edgewright.contract.query.query import CountedSignal
from edgewright.stats import divergences
from edgewright.stats.calibration import log_probabilities
from edgewright.stats.drift_test import (
    DriftFinding,
    DriftTestDesign,
    DriftTestState,
    RestartState,
    design_drift_test,
    drift_finding,
    new_drift_state,
    update_drift_test,
)
from edgewright.stats.histograms import bin_index, count_by_bin
from edgewright.stats.inference_features import features_of_rows, signal_names
from edgewright.stats.input_stats import InputLayout
from edgewright.stats.ood_scores import is_out_of_distribution
from edgewright.stats.thinning import (
    DependenceCheck,
    TemporalThinning,
    is_dependent,
    new_dependence_check,
    pick_rows,
    update_dependence_check,
)

__all__ = [
    "CONFIDENCE_BINS",
    "LATENCY_EDGES_SECONDS",
    "MAX_WINDOW_SECONDS",
    "REJECTION_REASONS",
    "CountWindow",
    "MonitorState",
    "MonitoringReference",
    "add_observations",
    "add_outcome",
    "counter_widths",
    "counts_between",
    "describe_drift",
    "drift_verdict",
    "median_latency_seconds",
    "new_monitor_state",
    "state_from_bytes",
    "state_to_bytes",
    "sum_counters",
]

_Floats = NDArray[np.float64]
_Counts = NDArray[np.int64]

LATENCY_EDGES_SECONDS = tuple(float(10 ** (power / 4)) for power in range(-20, 5))
"""Of the latency's histogram: four bins to a factor of ten, from 10 us to 10 s."""

REJECTION_REASONS: tuple[str, ...] = (*get_args(GuardCheck), "tensor_spec", "output")
"""In the order in which rejections are counted."""

CONFIDENCE_BINS = 10
"""Bins of confidence of a calibration."""

MAX_WINDOW_SECONDS = 24 * 3600.0
"""Of a query's window; as long again it is kept, for those who answer late."""

_WINDOW_SECONDS = 3600.0
_MAX_STATE_BYTES = 1 << 24
_MAX_WINDOWS, _MAX_COUNTERS = int(2 * MAX_WINDOW_SECONDS / _WINDOW_SECONDS) + 1, 96


@dataclass(frozen=True, slots=True)
class MonitoringReference:
    """A release's profile, ready to count and to test with.

    Attributes:
        profile: As signed.
        layout: Of a sample and its output.
        columns: Which of the statistics are counted, in the profile's order.
        edges: Shape [signals, bins - 1], infinite where a signal has fewer.
        counts: Shape [signals, bins + 1], of the reference.
        design: Of the test.
        thinning: Which observations are taken.
    """

    profile: ReferenceProfile
    layout: InputLayout
    columns: tuple[int, ...]
    edges: _Floats
    counts: _Counts
    design: DriftTestDesign
    thinning: TemporalThinning

    @classmethod
    def prepare(cls, profile: ReferenceProfile) -> "MonitoringReference":
        """Prepare a profile.

        Raises:
            InputError: It names a statistic that this version does not know.
        """
        layout = InputLayout(profile.values_per_sample, profile.channels, profile.interleaved, profile.classes)
        known = signal_names(layout, profile.output_kind)
        unknown = [signal.name for signal in profile.signals if signal.name not in known]
        if unknown:
            raise InputError(
                f"the profile names the statistic {unknown[0]!r}, which this version does not take",
                remedy="Update the agent, or publish again.",
            )
        bins = 1 + max(max(len(signal.edges) for signal in profile.signals), 1)
        edges = np.full((len(profile.signals), bins - 1), np.inf)
        counts = np.zeros((len(profile.signals), bins + 1), np.int64)
        for row, signal in enumerate(profile.signals):
            edges[row, : len(signal.edges)] = signal.edges
            counts[row, : len(signal.counts) - 1] = signal.counts[:-1]
            counts[row, -1] = signal.counts[-1]
        plan = design_drift_test(
            counts,
            tolerance=[signal.tolerance for signal in profile.signals],
            alpha=profile.alpha,
            period_size=profile.period,
            block_count=min(256, profile.period),
        )
        thinning = TemporalThinning(profile.thinning_step, profile.min_gap_seconds, profile.is_testable, 0, 0.0)
        columns = tuple(known.index(signal.name) for signal in profile.signals)
        return cls(profile, layout, columns, edges, counts, plan, thinning)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the signals."""
        return tuple(signal.name for signal in self.profile.signals)


@dataclass(frozen=True, slots=True)
class CountWindow:
    """What was counted in some stretch of time.

    Attributes:
        started_at: Unix time of its first observation; all of it lies in the same hour, UTC.
        ended_at: Of its last.
        counts: Shape [signals, bins + 1].
        counters: What else is counted, by name: `latency`, `rejected` by check, `unusual` (no, yes), `outcome.NAME`
            (below and from 0.5 on), `calibration.NAME` (the same for each tenth of confidence).
    """

    started_at: float
    ended_at: float
    counts: _Counts
    counters: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MonitorState:
    """All that a device keeps of what one release saw.

    Attributes:
        drift_state: Of the drift test.
        dependence: Check that observations are independent.
        rows_since_taken: Observations since the last one that was taken.
        last_taken_at: Unix time of that one.
        windows: Closed ones, oldest first, and the current one.
        dropped_inferences: Inferences that were not looked at for want of room.
    """

    drift_state: DriftTestState
    dependence: DependenceCheck
    rows_since_taken: int
    last_taken_at: float
    windows: tuple[CountWindow, ...]
    dropped_inferences: int = 0

    @property
    def observations(self) -> int:
        """Of the windows that are kept."""
        return sum(int(window.counts[0].sum()) for window in self.windows)


def new_monitor_state(reference: MonitoringReference, now: float) -> MonitorState:
    """Return what is known before the first observation."""
    signals, bins = len(reference.counts), reference.counts.shape[1] - 1
    return MonitorState(
        new_drift_state(signals, bins, now),
        new_dependence_check(reference.counts),
        reference.thinning.step,
        -math.inf,
        (CountWindow(now, now, np.zeros_like(reference.counts)),),
    )


def add_observations(
    reference: MonitoringReference,
    state: MonitorState,
    rows: _Floats,
    *,
    now: float,
    monotonic_seconds: float,
    rejected: Mapping[str, int] | None = None,
    dropped_inferences: int = 0,
) -> MonitorState:
    """Count what a ring held.

    Args:
        reference: Of the release.
        state: Before.
        rows: Shape [inferences, columns of the layout], oldest first.
        now: Unix time.
        monotonic_seconds: The monotonic clock that the rows' first column was read from, now.
        rejected: How often each check of the guard was broken meanwhile.
        dropped_inferences: Inferences that found no room meanwhile.
    """
    values = features_of_rows(rows, reference.profile.output_kind)[:, list(reference.columns)]
    times = now - np.maximum(0.0, monotonic_seconds - rows[:, 0])
    taken = pick_rows(reference.thinning, len(rows), state.rows_since_taken, times, state.last_taken_at)
    drift, dependence = state.drift_state, state.dependence
    added = np.zeros_like(reference.counts)
    skipped, last_at = state.rows_since_taken + len(rows), state.last_taken_at
    if taken:
        some = values[taken]
        added = count_by_bin(some, reference.edges)
        drift = update_drift_test(reference.design, drift, added, now)
        dependence = update_dependence_check(dependence, bin_index(some, reference.edges))
        skipped, last_at = len(rows) - 1 - taken[-1], float(times[taken[-1]])
    tallies = {"rejected": tuple((rejected or {}).get(check, 0) for check in REJECTION_REASONS)}
    if len(rows) and reference.profile.ood_rules:
        strange = _count_out_of_distribution(reference.profile, rows)
        tallies["out_of_distribution"] = (len(rows) - strange, strange)
    if len(rows):
        places = np.searchsorted(LATENCY_EDGES_SECONDS, rows[:, 1])
        tallies["latency"] = tuple(np.bincount(places, minlength=len(LATENCY_EDGES_SECONDS) + 1).tolist())
    windows = _with_counts(state.windows, added, tallies, now)
    return MonitorState(drift, dependence, skipped, last_at, windows, state.dropped_inferences + dropped_inferences)


def _count_out_of_distribution(profile: ReferenceProfile, rows: _Floats) -> int:
    """Return how many of the rows are unusual by the rules that need only what a row holds."""
    greatest, second, total, _ = rows[:, -4:].T
    held = np.zeros(len(rows), bool)
    for rule in profile.ood_rules:
        if isinstance(rule.score, LogitScore):
            confidence = np.exp(greatest - total) if profile.output_kind == "logits" else greatest
            # Probabilities' margin is that of their logarithms.
            apart = (
                greatest - second
                if profile.output_kind == "logits"
                else log_probabilities(greatest) - log_probabilities(second)
            )
            scores = {"energy": -total, "confidence": 1 - confidence, "margin": -apart}
            held |= is_out_of_distribution(scores[rule.score.score].astype(np.float32), rule)
    return int(held.sum())


def add_outcome(
    state: MonitorState, name: str, value: float, confidence: float | None, *, now: float
) -> MonitorState:
    """Count what became of an answer.

    Args:
        state: Before.
        name: What was observed.
        value: 0 to 1, the greater the worse.
        confidence: Of the answer, None if it is not known.
        now: Unix time.
    """
    bad = int(value >= 0.5)
    tallies: dict[str, tuple[int, ...]] = {f"outcome.{name}": (1 - bad, bad)}
    if confidence is not None:
        tenths = [0] * (2 * CONFIDENCE_BINS)
        tenths[2 * min(CONFIDENCE_BINS - 1, max(0, int(confidence * CONFIDENCE_BINS))) + bad] = 1
        tallies[f"calibration.{name}"] = tuple(tenths)
    known = {name for window in state.windows for name in window.counters}
    if len(known | set(tallies)) > _MAX_COUNTERS:
        return state
    windows = _with_counts(state.windows, np.zeros_like(state.drift_state.counts), tallies, now)
    return replace(state, windows=windows)


def counts_between(
    reference: MonitoringReference,
    state: MonitorState,
    signals: Sequence[CountedSignal],
    start_at: float,
    end_at: float,
) -> _Floats:
    """Return what was counted in whole hours between two times, as a histogram asks for it.

    Args:
        reference: Of the release.
        state: Of the release.
        signals: What is asked for, in order.
        start_at: Unix time, included.
        end_at: Unix time, excluded.

    Raises:
        InputError: A signal is none of the release's, or has another number of bins; or the window is longer than
            what is kept.
    """
    if end_at - start_at > MAX_WINDOW_SECONDS:
        raise InputError(
            f"a window of {(end_at - start_at) / 3600:g} hours",
            remedy=f"Ask for {MAX_WINDOW_SECONDS / 3600:g} at most: devices keep twice as many.",
        )
    hours = [
        window
        for window in state.windows
        if start_at <= _hour_of(window.started_at) * _WINDOW_SECONDS
        and (_hour_of(window.started_at) + 1) * _WINDOW_SECONDS <= end_at
    ]
    found = []
    for signal in signals:
        if signal.name in reference.names:
            row = reference.names.index(signal.name)
            used = len(reference.profile.signals[row].edges) + 1
            kept = [*range(used), reference.counts.shape[1] - 1]
            found.append(sum((window.counts[row, kept] for window in hours), np.zeros(used + 1, np.int64)))
        else:
            width = _counter_width(signal.name)
            nothing = (0,) * width
            each = [np.array(window.counters.get(signal.name, nothing), np.int64) for window in hours]
            found.append(sum(each, np.zeros(width, np.int64)))
        if len(found[-1]) != signal.bins:
            raise InputError(
                f"{signal.name} has {len(found[-1])} bins here, the template asks for {signal.bins}",
                remedy="Have the template signed anew, from the release's profile.",
            )
    return np.concatenate(found).astype(np.float64)


def median_latency_seconds(watched: MonitorState, since_at: float = -math.inf) -> float | None:
    """Return the median of the inferences' latency, to within a bin's width of a factor of 1.8; None without any.

    Args:
        watched: Of the release.
        since_at: Unix time; hours that began before are left out.
    """
    hours = [window for window in watched.windows if window.started_at >= since_at]
    counts = np.array(sum_counters(*(hour.counters for hour in hours)).get("latency", ()), np.int64)
    half = counts.sum() / 2
    if not half:
        return None
    place = int(np.searchsorted(np.cumsum(counts), half))
    low, high = (
        LATENCY_EDGES_SECONDS[min(max(at, 0), len(LATENCY_EDGES_SECONDS) - 1)] for at in (place - 1, place)
    )
    part = (half - counts[:place].sum()) / counts[place]
    return float(low * (high / low) ** part)


def counter_widths() -> dict[str, int]:
    """Return the bins of what is counted beside a release's signals."""
    return {"latency": len(LATENCY_EDGES_SECONDS) + 1, "rejected": len(REJECTION_REASONS), "out_of_distribution": 2}


def _counter_width(name: str) -> int:
    """Return how many bins a tally has, 0 if there is none of that name."""
    kinds = {"outcome": 2, "calibration": 2 * CONFIDENCE_BINS}
    return counter_widths().get(name) or kinds.get(name.partition(".")[0], 0)


def _hour_of(unix_seconds: float) -> int:
    return math.floor(unix_seconds / _WINDOW_SECONDS)


def drift_verdict(reference: MonitoringReference, state: MonitorState) -> DriftFinding:
    """Say what the stream shows."""
    testable = reference.thinning.is_testable and not is_dependent(state.dependence)
    return drift_finding(reference.design, state.drift_state, is_testable=testable)


def describe_drift(reference: MonitoringReference, state: MonitorState) -> list[dict[str, Any]]:
    """Return, by signal, how its counts since the last period differ from the reference: descriptions, no test."""
    finding = drift_verdict(reference, state)
    seen = state.drift_state.counts
    distances = (
        dataclasses.asdict(divergences.histogram_divergences(seen, reference.counts)) if seen[0].sum() else {}
    )
    return [
        {
            "name": name,
            "observations": int(seen[row].sum()),
            "log_e_value": finding.log_e_by_signal[row],
            "tolerance": reference.profile.signals[row].tolerance,
            **{kind: float(values[row]) for kind, values in distances.items()},
        }
        for row, name in enumerate(reference.names)
    ]


def sum_counters(*parts: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Return tallies together."""
    total: dict[str, tuple[int, ...]] = {}
    for part in parts:
        for name, tally in part.items():
            before = total.get(name, (0,) * len(tally))
            total[name] = tuple(one + other for one, other in zip(before, tally, strict=True))
    return total


def _with_counts(
    windows: tuple[CountWindow, ...], counts: _Counts, counters: Mapping[str, tuple[int, ...]], now: float
) -> tuple[CountWindow, ...]:
    *closed, last = windows
    if _hour_of(now) != _hour_of(last.started_at):
        closed.append(last)
        last = CountWindow(now, now, np.zeros_like(counts))
    merged = sum_counters(last.counters, counters)
    return (
        *closed[-(_MAX_WINDOWS - 1) :],
        CountWindow(last.started_at, max(now, last.started_at), last.counts + counts, merged),
    )


class _StoredMonitorState(msgspec.Struct, frozen=True):
    """What lies on the disk, compressed."""

    shape: tuple[int, int]
    counts: list[int]
    marks: list[tuple[int, int, float, list[int]]]
    periods: int
    drift_finding: DriftFinding | None
    dependence: tuple[int, list[int], list[int], list[int], list[int]]
    skipped: int
    last_taken_at: float | None
    windows: list[tuple[float, float, list[int], dict[str, tuple[int, ...]]]]
    dropped: int


def state_to_bytes(state: MonitorState) -> bytes:
    """Return what is kept, for the disk."""
    drift, dependence = state.drift_state, state.dependence
    rows, width = drift.counts.shape
    arrays = (
        dependence.current_block,
        dependence.previous_block,
        dependence.compared_pairs,
        dependence.differing_pairs,
    )
    current, previous, pairs, apart = ([int(value) for value in array.ravel()] for array in arrays)
    stored = msgspec.json.encode(
        _StoredMonitorState(
            shape=(rows, width),
            counts=drift.counts.ravel().tolist(),
            marks=[
                (mark.index, mark.observations_before, mark.started_at, mark.counts_before.ravel().tolist())
                for mark in drift.restarts
            ],
            periods=drift.completed_periods,
            drift_finding=drift.drift_finding,
            dependence=(dependence.observations, current, previous, pairs, apart),
            skipped=state.rows_since_taken,
            last_taken_at=state.last_taken_at if math.isfinite(state.last_taken_at) else None,
            windows=[
                (each.started_at, each.ended_at, each.counts.ravel().tolist(), dict(each.counters))
                for each in state.windows
            ],
            dropped=state.dropped_inferences,
        )
    )
    return zlib.compress(stored)


def state_from_bytes(content: bytes, reference: MonitoringReference) -> MonitorState | None:
    """Return what was kept; None if it is damaged, or was counted over other bins."""
    try:
        unpacked = zlib.decompressobj().decompress(content, _MAX_STATE_BYTES)
        stored = msgspec.json.decode(unpacked, type=_StoredMonitorState)
        if stored.shape != reference.counts.shape or not stored.windows or not stored.marks:
            return None

        def counts(flat: list[int]) -> _Counts:
            found = np.array(flat, np.int64).reshape(stored.shape)
            if (found < 0).any():
                raise ValueError("negative counts")
            return found

        fresh = new_dependence_check(reference.counts)
        seen, current, previous, pairs, apart = stored.dependence
        return MonitorState(
            DriftTestState(
                counts(stored.counts),
                tuple(
                    RestartState(block, before, at, counts(flat).astype(np.uint32))
                    for block, before, at, flat in stored.marks
                ),
                stored.periods,
                stored.drift_finding,
            ),
            replace(
                fresh,
                current_block=np.array(current, np.int64).reshape(fresh.current_block.shape),
                previous_block=np.array(previous, np.int64).reshape(fresh.previous_block.shape),
                observations=seen,
                compared_pairs=np.array(pairs, np.int64).reshape(fresh.compared_pairs.shape),
                differing_pairs=np.array(apart, np.int64).reshape(fresh.differing_pairs.shape),
            ),
            stored.skipped,
            -math.inf if stored.last_taken_at is None else stored.last_taken_at,
            tuple(
                CountWindow(began, ended, counts(flat), _valid_counters(tallies))
                for began, ended, flat, tallies in stored.windows
            ),
            stored.dropped,
        )
    except (msgspec.MsgspecError, ValueError, zlib.error):
        return None


def _valid_counters(counters: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    for name, tally in counters.items():
        if len(tally) != _counter_width(name) or min(tally, default=-1) < 0:
            raise ValueError(f"tally {name}")
    return dict(counters)
