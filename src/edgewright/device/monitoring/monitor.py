"""Watching what a model sees and answers, off the inference path: a ring in front, counts behind it.

`admit` and `release` are called by the predictor and do one look each. `flush` counts what the ring holds; a thread
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
from edgewright.contract.model.reference_profile import Profile
from edgewright.contract.query.query import Query, Template
from edgewright.contract.schema import decode_record
from edgewright.contract.timestamps import time_of
from edgewright.device.filesystem import Files
from edgewright.device.guard import Guard
from edgewright.device.monitoring.aggregates import (
    Reference,
    Watched,
    added_up,
    counts_between,
    described,
    from_bytes,
    latency_s,
    learn,
    observe,
    start,
    to_bytes,
    verdict,
)
from edgewright.stats.drift_test import Finding
from edgewright.stats.inference_features import answers
from edgewright.stats.input_stats import Ring, conclusions, open_ring

__all__ = ["FOLDER", "Monitor", "Watch", "open_monitor"]

FOLDER = "monitor"
# Between two flushes; nobody's device is woken up each second while nothing comes.
_SHORTEST_S, _LONGEST_S = 1.0, 16.0
_WRITE_S = 300.0
_NO_SCORES = np.zeros(0, np.float32)


@dataclass(slots=True)
class Monitor:
    """Watches one release.

    Attributes:
        reference: Its profile.
        guard: In front of the model; its counts are taken over.
        path: Of the file that keeps what was counted.
        files: The disk.
        wall: Unix time, seconds.
        clock: Monotonic, seconds, as the ring reads it.
        watched: What was counted so far.
    """

    reference: Reference
    guard: Guard
    path: Path
    files: Files
    wall: Callable[[], float] = time.time
    clock: Callable[[], float] = time.monotonic
    watched: Watched = field(init=False)
    changed: bool = field(init=False, default=False)
    _ring: Ring = field(init=False)
    _admits: Callable[[Any], int] = field(init=False)
    _releases: Callable[[int, Any], bool] = field(init=False)
    _whole: bool = field(init=False)
    _dropped: int = field(init=False, default=0)
    _checks: dict[str, int] = field(init=False, default_factory=dict)
    _counting: threading.Lock = field(init=False, default_factory=threading.Lock)

    def __post_init__(self) -> None:
        """Go on with what was counted before; what is damaged is counted anew."""
        profile, contract = self.reference.profile, self.guard.contract
        (spec,) = [each for each in contract.inputs if each.name == profile.input]
        rules = self.guard.rules
        self._ring = open_ring(self.reference.layout, spec.low, spec.high, rules.output_low, rules.output_high)
        self._admits, self._releases = self._ring.admit, self._ring.release
        # One float output is looked at in the same glance; others are the guard's.
        self._whole = len(contract.outputs) == 1 and contract.outputs[0].dtype == "float32"
        kept = None
        with suppress(OSError):
            kept = from_bytes(self.files.read(self.path), self.reference)
        self.watched = kept or start(self.reference, self.wall())

    def admit(self, feed: Mapping[str, NDArray[Any]]) -> int:
        """Return a slot if the feed surely keeps the contract, -1 if it takes the guard's closer look."""
        array = self.guard.only(feed)
        return -1 if array is None else self._admits(array)

    def take(self, feed: Mapping[str, NDArray[Any]]) -> int:
        """Return a slot for a feed that the guard admitted; -1 if it cannot be watched."""
        array = feed.get(self.reference.profile.input)
        if array is None or array.dtype.kind not in "fiub":
            return -1
        return self._admits(np.add(array, 0, dtype=np.float32, order="C"))  # -0.0 becomes 0.0

    def release(self, slot: int, outputs: list[NDArray[Any]]) -> bool:
        """Return whether outputs surely keep the contract; their inference is watched then.

        If they perhaps do not, the guard has to look, and then `settle` or `cancel` the slot.
        """
        return self._whole and self._releases(slot, outputs[0])

    def settle(self, slot: int, outputs: list[NDArray[Any]]) -> None:
        """Watch an inference whose outputs the guard has let pass."""
        if not self._whole:
            scores = outputs[0] if self.reference.profile.classes else _NO_SCORES
            self._releases(slot, np.ascontiguousarray(scores, np.float32))

    def cancel(self, slot: int) -> None:
        """Forget an inference that failed."""
        self._ring.cancel(slot)

    def flush(self) -> bool:
        """Count what the ring holds; return whether it held anything."""
        with self._counting:
            rows = np.frombuffer(self._ring.take()).reshape(-1, self._ring.columns)
            known = dict(self.guard.counts)
            totals: dict[str, int] = {}
            for (check, _), number in known.items():
                totals[check] = totals.get(check, 0) + number
            new = {name: n - self._checks.get(name, 0) for name, n in totals.items()}
            rejected = {name: n for name, n in new.items() if n > 0}
            if not len(rows) and not rejected:
                return False
            dropped = self._ring.dropped
            self.watched = observe(
                self.reference,
                self.watched,
                rows,
                now_s=self.wall(),
                clock_s=self.clock(),
                rejected=rejected,
                dropped=dropped - self._dropped,
            )
            self._checks, self._dropped, self.changed = totals, dropped, True
            return True

    def learn(self, name: str, value: float, outputs: Mapping[str, NDArray[Any]]) -> None:
        """Count what became of an answer; see `learn` of `watched`.

        Args:
            name: What was observed.
            value: 0 to 1, the greater the worse.
            outputs: Of the answer, empty if it is not known.
        """
        profile, confidence = self.reference.profile, None
        scores = outputs.get(self.guard.contract.outputs[0].name)
        if scores is not None and profile.scores and scores.size >= profile.classes:
            seen = conclusions(scores.reshape(-1)[None, : profile.classes])
            confidence = float(answers(seen, profile.scores)[0, 0])
        with self._counting:
            self.watched = learn(self.watched, name, value, confidence, now_s=self.wall())
            self.changed = True

    def counts(self, query: Query, template: Template) -> NDArray[np.float64]:
        """Return the counts that a histogram asks for.

        Raises:
            InputError: It asks for what is not counted here.
        """
        self.flush()
        span = (time_of(query.window_start).timestamp(), time_of(query.window_end).timestamp())
        return counts_between(self.reference, self.watched, template.signals, *span)

    def write(self) -> None:
        """Bring what was counted to the disk.

        Raises:
            OSError: The disk is full or broken.
        """
        with self._counting:
            if not self.changed:
                return
            written = self.watched
        self.path.parent.mkdir(exist_ok=True)
        self.files.write(self.path, to_bytes(written))
        with self._counting:
            self.changed = self.watched is not written

    def finding(self) -> Finding:
        """Return what the stream shows."""
        return verdict(self.reference, self.watched)

    def latency_s(self, since_s: float = -math.inf) -> float | None:
        """Return the median of the latency in the last hours, None if nothing was inferred.

        Args:
            since_s: Unix time; hours that began before are left out.
        """
        return latency_s(self.watched, since_s)

    def describe(self) -> dict[str, Any]:
        """Return what there is to see, for the device's owner; it is not sent by name."""
        finding, watched = self.finding(), self.watched
        return {
            "verdict": str(finding.verdict),
            "log_evidence": finding.evidence,
            "since_s": finding.since_s,
            "drifting": [self.reference.names[number] for number in finding.signals],
            "observations": int(watched.state.counts[0].sum()),
            "periods": watched.state.periods,
            "one_in": self.reference.thinning.step,
            "not_watched": watched.dropped,
            "signals": described(self.reference, watched),
            "tallies": added_up(*(window.tallies for window in watched.windows)),
        }


def open_monitor(content: bytes, guard: Guard, path: Path, files: Files) -> Monitor:
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
        profile = decode_record(content, type=Profile)
        reference = Reference.of(profile)
        specs = [spec for spec in guard.contract.inputs if spec.name == profile.input]
        if not specs:
            raise InputError(f"it is about the input {profile.input!r}, which the model lacks", remedy="")
        return Monitor(reference, guard, path, files)
    except (msgspec.MsgspecError, InputError, ValueError) as error:
        reason = error.message if isinstance(error, InputError) else str(error)
        raise CandidateError(f"the reference profile cannot be used: {reason}", remedy="Publish again.") from error


@dataclass(slots=True)
class Watch:
    """A thread that flushes the current monitor about every second, and writes what it counted now and then.

    Attributes:
        current: Returns the monitor of what answers, None if nothing is watched.
        keeps: Returns whether this process is the one that writes.
        write_s: Seconds between two writes.
    """

    current: Callable[[], Monitor | None]
    keeps: Callable[[], bool]
    write_s: float = _WRITE_S
    _ended: threading.Event = field(init=False, default_factory=threading.Event)
    _thread: threading.Thread | None = field(init=False, default=None)

    def begin(self) -> None:
        """Start it, if there is anything to watch and it does not run."""
        if self._thread is None and self.current() is not None:
            self._thread = threading.Thread(target=self._work, name="edgewright monitor", daemon=True)
            self._thread.start()

    def end(self) -> None:
        """End it; what was counted is on the disk on return, if the disk permits."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._put_by(self.current())

    def _work(self) -> None:
        known, wait, written = self.current(), _SHORTEST_S, time.monotonic()
        while not self._ended.wait(wait):
            now = self.current()
            if now is not known:
                self._put_by(known)
                known = now
            came = known is not None and known.flush()
            wait = _SHORTEST_S if came else min(_LONGEST_S, 2 * wait)
            if time.monotonic() - written >= self.write_s:
                written = time.monotonic()
                self._put_by(known)

    def _put_by(self, monitor: Monitor | None) -> None:
        if monitor is not None:
            monitor.flush()
            if self.keeps():
                with suppress(OSError):  # it is tried again with the next write
                    monitor.write()
