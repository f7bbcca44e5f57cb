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
from edgewright.contract.model.guard import Check
from edgewright.contract.model.ood_detector import LogitMeasure
from edgewright.contract.model.reference_profile import Profile
from edgewright.contract.query.query import Counted
from edgewright.stats import divergences
from edgewright.stats.calibration import logs_of
from edgewright.stats.drift_test import Finding, Mark, Plan, State, begin, judge, make_plan, update
from edgewright.stats.histograms import count, place
from edgewright.stats.inference_features import of_rows, signal_names
from edgewright.stats.input_stats import Layout
from edgewright.stats.ood_scores import unusual
from edgewright.stats.thinning import Dependence, Thinning, begin_check, check, depends, pick

__all__ = [
    "CHECKS",
    "LATENCY_EDGES_S",
    "LONGEST_S",
    "TENTHS",
    "Reference",
    "Watched",
    "Window",
    "added_up",
    "counts_between",
    "described",
    "from_bytes",
    "latency_s",
    "learn",
    "observe",
    "start",
    "to_bytes",
    "verdict",
    "widths",
]

_Floats = NDArray[np.float64]
_Counts = NDArray[np.int64]

LATENCY_EDGES_S = tuple(float(10 ** (power / 4)) for power in range(-20, 5))
"""Of the latency's histogram: four bins to a factor of ten, from 10 us to 10 s."""

CHECKS: tuple[str, ...] = (*get_args(Check), "form", "output")
"""In the order in which rejections are counted."""

TENTHS = 10
"""Bins of confidence of a calibration."""

LONGEST_S = 24 * 3600.0
"""Of a query's window; as long again it is kept, for those who answer late."""

_WINDOW_S = 3600.0
_LARGEST_BYTES = 1 << 24
_WINDOWS, _TALLIES = int(2 * LONGEST_S / _WINDOW_S) + 1, 96


@dataclass(frozen=True, slots=True)
class Reference:
    """A release's profile, ready to count and to test with.

    Attributes:
        profile: As signed.
        layout: Of a sample and its output.
        columns: Which of the statistics are counted, in the profile's order.
        edges: Shape [signals, bins - 1], infinite where a signal has fewer.
        counts: Shape [signals, bins + 1], of the reference.
        plan: Of the test.
        thinning: Which observations are taken.
    """

    profile: Profile
    layout: Layout
    columns: tuple[int, ...]
    edges: _Floats
    counts: _Counts
    plan: Plan
    thinning: Thinning

    @classmethod
    def of(cls, profile: Profile) -> "Reference":
        """Prepare a profile.

        Raises:
            InputError: It names a statistic that this version does not know.
        """
        layout = Layout(profile.values, profile.channels, profile.interleaved, profile.classes)
        known = signal_names(layout, profile.scores)
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
        plan = make_plan(
            counts,
            tolerance=[signal.tolerance for signal in profile.signals],
            alpha=profile.alpha,
            period=profile.period,
            blocks=min(256, profile.period),
        )
        thinning = Thinning(profile.step, profile.gap_s, profile.testable, 0, 0.0)
        columns = tuple(known.index(signal.name) for signal in profile.signals)
        return cls(profile, layout, columns, edges, counts, plan, thinning)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the signals."""
        return tuple(signal.name for signal in self.profile.signals)


@dataclass(frozen=True, slots=True)
class Window:
    """What was counted in some stretch of time.

    Attributes:
        began_s: Unix time of its first observation; all of it lies in the same hour, UTC.
        ended_s: Of its last.
        counts: Shape [signals, bins + 1].
        tallies: What else is counted, by name: `latency`, `rejected` by check, `unusual` (no, yes), `outcome.NAME`
            (below and from 0.5 on), `calibration.NAME` (the same for each tenth of confidence).
    """

    began_s: float
    ended_s: float
    counts: _Counts
    tallies: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Watched:
    """All that a device keeps of what one release saw.

    Attributes:
        state: Of the drift test.
        dependence: Check that observations are independent.
        skipped: Observations since the last one that was taken.
        last_s: Unix time of that one.
        windows: Closed ones, oldest first, and the current one.
        dropped: Inferences that were not looked at for want of room.
    """

    state: State
    dependence: Dependence
    skipped: int
    last_s: float
    windows: tuple[Window, ...]
    dropped: int = 0

    @property
    def observations(self) -> int:
        """Of the windows that are kept."""
        return sum(int(window.counts[0].sum()) for window in self.windows)


def start(reference: Reference, now_s: float) -> Watched:
    """Return what is known before the first observation."""
    signals, bins = len(reference.counts), reference.counts.shape[1] - 1
    return Watched(
        begin(signals, bins, now_s),
        begin_check(reference.counts),
        reference.thinning.step,
        -math.inf,
        (Window(now_s, now_s, np.zeros_like(reference.counts)),),
    )


def observe(
    reference: Reference,
    watched: Watched,
    rows: _Floats,
    *,
    now_s: float,
    clock_s: float,
    rejected: Mapping[str, int] | None = None,
    dropped: int = 0,
) -> Watched:
    """Count what a ring held.

    Args:
        reference: Of the release.
        watched: Before.
        rows: Shape [inferences, columns of the layout], oldest first.
        now_s: Unix time.
        clock_s: The monotonic clock that the rows' first column was read from, now.
        rejected: How often each check of the guard was broken meanwhile.
        dropped: Inferences that found no room meanwhile.
    """
    values = of_rows(rows, reference.profile.scores)[:, list(reference.columns)]
    times = now_s - np.maximum(0.0, clock_s - rows[:, 0])
    taken = pick(reference.thinning, len(rows), watched.skipped, times, watched.last_s)
    state, dependence = watched.state, watched.dependence
    added = np.zeros_like(reference.counts)
    skipped, last_s = watched.skipped + len(rows), watched.last_s
    if taken:
        some = values[taken]
        added = count(some, reference.edges)
        state = update(reference.plan, state, added, now_s)
        dependence = check(dependence, place(some, reference.edges))
        skipped, last_s = len(rows) - 1 - taken[-1], float(times[taken[-1]])
    tallies = {"rejected": tuple((rejected or {}).get(check, 0) for check in CHECKS)}
    if len(rows) and reference.profile.unusual:
        strange = _unusual(reference.profile, rows)
        tallies["unusual"] = (len(rows) - strange, strange)
    if len(rows):
        places = np.searchsorted(LATENCY_EDGES_S, rows[:, 1])
        tallies["latency"] = tuple(np.bincount(places, minlength=len(LATENCY_EDGES_S) + 1).tolist())
    windows = _grown(watched.windows, added, tallies, now_s)
    return Watched(state, dependence, skipped, last_s, windows, watched.dropped + dropped)


def _unusual(profile: Profile, rows: _Floats) -> int:
    """Return how many of the rows are unusual by the rules that need only what a row holds."""
    greatest, second, total, _ = rows[:, -4:].T
    held = np.zeros(len(rows), bool)
    for rule in profile.unusual:
        if isinstance(rule.measure, LogitMeasure):
            confidence = np.exp(greatest - total) if profile.scores == "logits" else greatest
            # Probabilities' margin is that of their logarithms.
            apart = greatest - second if profile.scores == "logits" else logs_of(greatest) - logs_of(second)
            scores = {"energy": -total, "confidence": 1 - confidence, "margin": -apart}
            held |= unusual(scores[rule.measure.score].astype(np.float32), rule)
    return int(held.sum())


def learn(watched: Watched, name: str, value: float, confidence: float | None, *, now_s: float) -> Watched:
    """Count what became of an answer.

    Args:
        watched: Before.
        name: What was observed.
        value: 0 to 1, the greater the worse.
        confidence: Of the answer, None if it is not known.
        now_s: Unix time.
    """
    bad = int(value >= 0.5)
    tallies: dict[str, tuple[int, ...]] = {f"outcome.{name}": (1 - bad, bad)}
    if confidence is not None:
        tenths = [0] * (2 * TENTHS)
        tenths[2 * min(TENTHS - 1, max(0, int(confidence * TENTHS))) + bad] = 1
        tallies[f"calibration.{name}"] = tuple(tenths)
    known = {name for window in watched.windows for name in window.tallies}
    if len(known | set(tallies)) > _TALLIES:
        return watched
    windows = _grown(watched.windows, np.zeros_like(watched.state.counts), tallies, now_s)
    return replace(watched, windows=windows)


def counts_between(
    reference: Reference, watched: Watched, signals: Sequence[Counted], start_s: float, end_s: float
) -> _Floats:
    """Return what was counted in whole hours between two times, as a histogram asks for it.

    Args:
        reference: Of the release.
        watched: Of the release.
        signals: What is asked for, in order.
        start_s: Unix time, included.
        end_s: Unix time, excluded.

    Raises:
        InputError: A signal is none of the release's, or has another number of bins; or the window is longer than
            what is kept.
    """
    if end_s - start_s > LONGEST_S:
        raise InputError(
            f"a window of {(end_s - start_s) / 3600:g} hours",
            remedy=f"Ask for {LONGEST_S / 3600:g} at most: devices keep twice as many.",
        )
    hours = [
        window
        for window in watched.windows
        if start_s <= _hour(window.began_s) * _WINDOW_S and (_hour(window.began_s) + 1) * _WINDOW_S <= end_s
    ]
    found = []
    for signal in signals:
        if signal.name in reference.names:
            row = reference.names.index(signal.name)
            used = len(reference.profile.signals[row].edges) + 1
            kept = [*range(used), reference.counts.shape[1] - 1]
            found.append(sum((window.counts[row, kept] for window in hours), np.zeros(used + 1, np.int64)))
        else:
            width = _width(signal.name)
            nothing = (0,) * width
            each = [np.array(window.tallies.get(signal.name, nothing), np.int64) for window in hours]
            found.append(sum(each, np.zeros(width, np.int64)))
        if len(found[-1]) != signal.bins:
            raise InputError(
                f"{signal.name} has {len(found[-1])} bins here, the template asks for {signal.bins}",
                remedy="Have the template signed anew, from the release's profile.",
            )
    return np.concatenate(found).astype(np.float64)


def latency_s(watched: Watched, since_s: float = -math.inf) -> float | None:
    """Return the median of the inferences' latency, to within a bin's width of a factor of 1.8; None without any.

    Args:
        watched: Of the release.
        since_s: Unix time; hours that began before are left out.
    """
    hours = [window for window in watched.windows if window.began_s >= since_s]
    counts = np.array(added_up(*(hour.tallies for hour in hours)).get("latency", ()), np.int64)
    half = counts.sum() / 2
    if not half:
        return None
    place = int(np.searchsorted(np.cumsum(counts), half))
    low, high = (LATENCY_EDGES_S[min(max(at, 0), len(LATENCY_EDGES_S) - 1)] for at in (place - 1, place))
    part = (half - counts[:place].sum()) / counts[place]
    return float(low * (high / low) ** part)


def widths() -> dict[str, int]:
    """Return the bins of what is counted beside a release's signals."""
    return {"latency": len(LATENCY_EDGES_S) + 1, "rejected": len(CHECKS), "unusual": 2}


def _width(name: str) -> int:
    """Return how many bins a tally has, 0 if there is none of that name."""
    kinds = {"outcome": 2, "calibration": 2 * TENTHS}
    return widths().get(name) or kinds.get(name.partition(".")[0], 0)


def _hour(moment_s: float) -> int:
    return math.floor(moment_s / _WINDOW_S)


def verdict(reference: Reference, watched: Watched) -> Finding:
    """Say what the stream shows."""
    testable = reference.thinning.testable and not depends(watched.dependence)
    return judge(reference.plan, watched.state, testable=testable)


def described(reference: Reference, watched: Watched) -> list[dict[str, Any]]:
    """Return, by signal, how its counts since the last period differ from the reference: descriptions, no test."""
    finding = verdict(reference, watched)
    seen = watched.state.counts
    distances = dataclasses.asdict(divergences.describe(seen, reference.counts)) if seen[0].sum() else {}
    return [
        {
            "name": name,
            "observations": int(seen[row].sum()),
            "log_evidence": finding.by_signal[row],
            "tolerance": reference.profile.signals[row].tolerance,
            **{kind: float(values[row]) for kind, values in distances.items()},
        }
        for row, name in enumerate(reference.names)
    ]


def added_up(*parts: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Return tallies together."""
    total: dict[str, tuple[int, ...]] = {}
    for part in parts:
        for name, tally in part.items():
            before = total.get(name, (0,) * len(tally))
            total[name] = tuple(one + other for one, other in zip(before, tally, strict=True))
    return total


def _grown(
    windows: tuple[Window, ...], counts: _Counts, tallies: Mapping[str, tuple[int, ...]], now_s: float
) -> tuple[Window, ...]:
    *closed, last = windows
    if _hour(now_s) != _hour(last.began_s):
        closed.append(last)
        last = Window(now_s, now_s, np.zeros_like(counts))
    merged = added_up(last.tallies, tallies)
    return (
        *closed[-(_WINDOWS - 1) :],
        Window(last.began_s, max(now_s, last.began_s), last.counts + counts, merged),
    )


class _Stored(msgspec.Struct, frozen=True):
    """What lies on the disk, compressed."""

    shape: tuple[int, int]
    counts: list[int]
    marks: list[tuple[int, int, float, list[int]]]
    periods: int
    found: Finding | None
    check: tuple[int, list[int], list[int], list[int], list[int]]
    skipped: int
    last_s: float | None
    windows: list[tuple[float, float, list[int], dict[str, tuple[int, ...]]]]
    dropped: int


def to_bytes(watched: Watched) -> bytes:
    """Return what is kept, for the disk."""
    state, dependence = watched.state, watched.dependence
    rows, width = state.counts.shape
    arrays = (dependence.current, dependence.previous, dependence.pairs, dependence.apart)
    current, previous, pairs, apart = ([int(value) for value in array.ravel()] for array in arrays)
    stored = msgspec.json.encode(
        _Stored(
            shape=(rows, width),
            counts=state.counts.ravel().tolist(),
            marks=[(mark.block, mark.seen, mark.at_s, mark.counts.ravel().tolist()) for mark in state.marks],
            periods=state.periods,
            found=state.found,
            check=(dependence.seen, current, previous, pairs, apart),
            skipped=watched.skipped,
            last_s=watched.last_s if math.isfinite(watched.last_s) else None,
            windows=[
                (each.began_s, each.ended_s, each.counts.ravel().tolist(), dict(each.tallies))
                for each in watched.windows
            ],
            dropped=watched.dropped,
        )
    )
    return zlib.compress(stored)


def from_bytes(content: bytes, reference: Reference) -> Watched | None:
    """Return what was kept; None if it is damaged, or was counted over other bins."""
    try:
        unpacked = zlib.decompressobj().decompress(content, _LARGEST_BYTES)
        stored = msgspec.json.decode(unpacked, type=_Stored)
        if stored.shape != reference.counts.shape or not stored.windows or not stored.marks:
            return None

        def counts(flat: list[int]) -> _Counts:
            found = np.array(flat, np.int64).reshape(stored.shape)
            if (found < 0).any():
                raise ValueError("negative counts")
            return found

        fresh = begin_check(reference.counts)
        seen, current, previous, pairs, apart = stored.check
        return Watched(
            State(
                counts(stored.counts),
                tuple(
                    Mark(block, before, at_s, counts(flat).astype(np.uint32))
                    for block, before, at_s, flat in stored.marks
                ),
                stored.periods,
                stored.found,
            ),
            replace(
                fresh,
                current=np.array(current, np.int64).reshape(fresh.current.shape),
                previous=np.array(previous, np.int64).reshape(fresh.previous.shape),
                seen=seen,
                pairs=np.array(pairs, np.int64).reshape(fresh.pairs.shape),
                apart=np.array(apart, np.int64).reshape(fresh.apart.shape),
            ),
            stored.skipped,
            -math.inf if stored.last_s is None else stored.last_s,
            tuple(
                Window(began, ended, counts(flat), _fitting(tallies))
                for began, ended, flat, tallies in stored.windows
            ),
            stored.dropped,
        )
    except (msgspec.MsgspecError, ValueError, zlib.error):
        return None


def _fitting(tallies: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    for name, tally in tallies.items():
        if len(tally) != _width(name) or min(tally, default=-1) < 0:
            raise ValueError(f"tally {name}")
    return dict(tallies)
