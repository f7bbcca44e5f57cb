"""Watching what a model sees and answers, off the inference path: a ring in front, counts behind it.

`begin_checked` and `finish_checked` are called by the predictor and do one look each. `flush` counts what the ring
holds; a thread
calls it about every second. What was counted is written now and then, whole or not at all, so a power cut costs
minutes and never what was there before.
"""

import math
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgewright.contract.errors import CandidateError, InputError
from edgewright.contract.model.reference_profile import ReferenceProfile
from edgewright.contract.query.query import Query, QueryTemplate
from edgewright.contract.schema import decode_record
from edgewright.contract.timestamps import parse_iso8601
from edgewright.device.filesystem import FileSystem
from edgewright.device.guard import Guard
from edgewright.device.monitoring.aggregates import (
    MonitoringReference,
    MonitorState,
    add_observations,
    add_outcome,
    counts_between,
    describe_drift,
    drift_verdict,
    median_latency_seconds,
    new_monitor_state,
    state_from_bytes,
    state_to_bytes,
    sum_counters,
)
from edgewright.stats.drift_test import DriftFinding
from edgewright.stats.inference_features import answer_features
from edgewright.stats.input_stats import InferenceRing, open_ring, summarize_scores

__all__ = ["MONITOR_FOLDER", "Monitor", "MonitorThread", "open_monitor"]

MONITOR_FOLDER = "monitor"
# Between two flushes; nobody's device is woken up each second while nothing comes.
_MIN_FLUSH_SECONDS, _MAX_FLUSH_SECONDS = 1.0, 16.0
_WRITE_INTERVAL_SECONDS = 300.0
_NO_SCORES = np.zeros(0, np.float32)


@dataclass(slots=True)
class Monitor:
    """Watches one release.

    Attributes:
        reference: Its profile.
        guard: In front of the model; its counts are taken over.
        path: Of the file that keeps what was counted.
        files: The disk.
        wall_clock: Unix time, seconds.
        clock: Monotonic, seconds, as the ring reads it.
        state: What was counted so far.
    """

    reference: MonitoringReference
    guard: Guard
    path: Path
    files: FileSystem
    wall_clock: Callable[[], float] = time.time
    clock: Callable[[], float] = time.monotonic
    state: MonitorState = field(init=False)
    has_changed: bool = field(init=False, default=False)
    _ring: InferenceRing = field(init=False)
    _ring_record_input: Callable[[Any], int] = field(init=False)
    _ring_record_output: Callable[[int, Any], bool] = field(init=False)
    _whole_range: bool = field(init=False)
    _dropped: int = field(init=False, default=0)
    _checks: dict[str, int] = field(init=False, default_factory=dict)
    _count_lock: threading.Lock = field(init=False, default_factory=threading.Lock)

    def __post_init__(self) -> None:
        """Go on with what was counted before; what is damaged is counted anew."""
        profile, contract = self.reference.profile, self.guard.contract
        (spec,) = [each for each in contract.inputs if each.name == profile.input]
        rules = self.guard.rules
        self._ring = open_ring(self.reference.layout, spec.low, spec.high, rules.output_low, rules.output_high)
        self._ring_record_input, self._ring_record_output = self._ring.record_input, self._ring.record_output
        # One float output is looked at in the same glance; others are the guard's.
        self._whole_range = len(contract.outputs) == 1 and contract.outputs[0].dtype == "float32"
        kept = None
        with suppress(OSError):
            kept = state_from_bytes(self.files.read(self.path), self.reference)
        self.state = kept or new_monitor_state(self.reference, self.wall_clock())

    def begin_checked(self, inputs: Mapping[str, NDArray[Any]]) -> int:
        """Return a slot if the feed surely keeps the contract, -1 if it takes the guard's closer look."""
        array = self.guard.check_only_input(inputs)
        return -1 if array is None else self._ring_record_input(array)

    def begin(self, inputs: Mapping[str, NDArray[Any]]) -> int:
        """Return a slot for a feed that the guard admitted; -1 if it cannot be watched."""
        array = inputs.get(self.reference.profile.input)
        if array is None or array.dtype.kind not in "fiub":
            return -1
        return self._ring_record_input(np.add(array, 0, dtype=np.float32, order="C"))  # -0.0 becomes 0.0

    def finish_checked(self, slot: int, outputs: list[NDArray[Any]]) -> bool:
        """Return whether outputs surely keep the contract; their inference is watched then.

        If they perhaps do not, the guard has to look, and then `finish` or `discard` the slot.
        """
        return self._whole_range and self._ring_record_output(slot, outputs[0])

    def finish(self, slot: int, outputs: list[NDArray[Any]]) -> None:
        """Watch an inference whose outputs the guard has let pass."""
        if not self._whole_range:
            scores = outputs[0] if self.reference.profile.classes else _NO_SCORES
            self._ring_record_output(slot, np.ascontiguousarray(scores, np.float32))

    def discard(self, slot: int) -> None:
        """Forget an inference that failed."""
        self._ring.discard(slot)

    def flush(self) -> bool:
        """Count what the ring holds; return whether it held anything."""
        with self._count_lock:
            rows = np.frombuffer(self._ring.drain()).reshape(-1, self._ring.columns)
            known = dict(self.guard.counts)
            totals: dict[str, int] = {}
            for (check, _), number in known.items():
                totals[check] = totals.get(check, 0) + number
            new = {name: n - self._checks.get(name, 0) for name, n in totals.items()}
            rejected = {name: n for name, n in new.items() if n > 0}
            if not len(rows) and not rejected:
                return False
            dropped = self._ring.dropped
            self.state = add_observations(
                self.reference,
                self.state,
                rows,
                now=self.wall_clock(),
                monotonic_seconds=self.clock(),
                rejected=rejected,
                dropped_inferences=dropped - self._dropped,
            )
            self._checks, self._dropped, self.has_changed = totals, dropped, True
            return True

    def add_outcome(self, name: str, value: float, outputs: Mapping[str, NDArray[Any]]) -> None:
        """Count what became of an answer; see `add_outcome` of `state`.

        Args:
            name: What was observed.
            value: 0 to 1, the greater the worse.
            outputs: Of the answer, empty if it is not known.
        """
        profile, confidence = self.reference.profile, None
        scores = outputs.get(self.guard.contract.outputs[0].name)
        if scores is not None and profile.output_kind and scores.size >= profile.classes:
            seen = summarize_scores(scores.reshape(-1)[None, : profile.classes])
            confidence = float(answer_features(seen, profile.output_kind)[0, 0])
        with self._count_lock:
            self.state = add_outcome(self.state, name, value, confidence, now=self.wall_clock())
            self.has_changed = True

    def query_counts(self, query: Query, template: QueryTemplate) -> NDArray[np.float64]:
        """Return the counts that a histogram asks for.

        Raises:
            InputError: It asks for what is not counted here.
        """
        self.flush()
        span = (parse_iso8601(query.window_start).timestamp(), parse_iso8601(query.window_end).timestamp())
        return counts_between(self.reference, self.state, template.signals, *span)

    def write(self) -> None:
        """Bring what was counted to the disk.

        Raises:
            OSError: The disk is full or broken.
        """
        with self._count_lock:
            if not self.has_changed:
                return
            written = self.state
        self.path.parent.mkdir(exist_ok=True)
        self.files.write(self.path, state_to_bytes(written))
        with self._count_lock:
            self.has_changed = self.state is not written

    def drift_finding(self) -> DriftFinding:
        """Return what the stream shows."""
        return drift_verdict(self.reference, self.state)

    def median_latency_seconds(self, since_at: float = -math.inf) -> float | None:
        """Return the median of the latency in the last hours, None if nothing was inferred.

        Args:
            since_at: Unix time; hours that began before are left out.
        """
        return median_latency_seconds(self.state, since_at)

    def describe(self) -> dict[str, Any]:
        """Return what there is to see, for the device's owner; it is not sent by name."""
        finding, watched = self.drift_finding(), self.state
        return {
            "verdict": str(finding.verdict),
            "log_e_value": finding.log_e_value,
            "since": finding.since_at,
            "drifted_signals": [self.reference.names[number] for number in finding.drifted_signals],
            "observations": int(watched.drift_state.counts[0].sum()),
            "periods": watched.drift_state.completed_periods,
            "thinning_step": self.reference.thinning.step,
            "dropped_inferences": watched.dropped_inferences,
            "signals": describe_drift(self.reference, watched),
            "counters": sum_counters(*(window.counters for window in watched.windows)),
        }


def open_monitor(content: bytes, guard: Guard, path: Path, files: FileSystem) -> Monitor:
    """Return the monitor of a release.

    Args:
        content: Of the profile's file.
        guard: In front of the model.
        path: Of the file that keeps what is counted.
        files: The disk.

    Raises:
        CandidateError: The profile does not fit the model, or this version.
    """
    try:
        profile = decode_record(content, type=ReferenceProfile)
        reference = MonitoringReference.prepare(profile)
        specs = [spec for spec in guard.contract.inputs if spec.name == profile.input]
        if not specs:
            raise InputError(f"it is about the input {profile.input!r}, which the model lacks", remedy="")
        return Monitor(reference, guard, path, files)
    except (msgspec.MsgspecError, InputError, ValueError) as error:
        reason = error.message if isinstance(error, InputError) else str(error)
        raise CandidateError(f"the reference profile cannot be used: {reason}", remedy="Publish again.") from error


@dataclass(slots=True)
class MonitorThread:
    """A thread that flushes the current monitor about every second, and writes what it counted now and then.

    Attributes:
        current: Returns the monitor of what answers, None if nothing is watched.
        is_writer: Returns whether this process is the one that writes.
        write_interval_seconds: Seconds between two writes.
    """

    current: Callable[[], Monitor | None]
    is_writer: Callable[[], bool]
    write_interval_seconds: float = _WRITE_INTERVAL_SECONDS
    _ended: threading.Event = field(init=False, default_factory=threading.Event)
    _thread: threading.Thread | None = field(init=False, default=None)

    def start(self) -> None:
        """Start it, if there is anything to watch and it does not run."""
        if self._thread is None and self.current() is not None:
            self._thread = threading.Thread(target=self._run, name="edgewright monitor", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End it; what was counted is on the disk on return, if the disk permits."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._write(self.current())

    def _run(self) -> None:
        known, wait, written = self.current(), _MIN_FLUSH_SECONDS, time.monotonic()
        while not self._ended.wait(wait):
            now = self.current()
            if now is not known:
                self._write(known)
                known = now
            came = known is not None and known.flush()
            wait = _MIN_FLUSH_SECONDS if came else min(_MAX_FLUSH_SECONDS, 2 * wait)
            if time.monotonic() - written >= self.write_interval_seconds:
                written = time.monotonic()
                self._write(known)

    def _write(self, monitor: Monitor | None) -> None:
        if monitor is not None:
            monitor.flush()
            if self.is_writer():
                with suppress(OSError):  # it is tried again with the next write
                    monitor.write()
