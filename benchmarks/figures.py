"""From what was measured to the figures and their limits; pure, so that the rules can be read and tested."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.report import Figure, Interval

__all__ = ["Entry", "ModelRun", "TaskRun", "better_than", "figures_of_models", "figures_of_tasks"]

GAIN = 0.9
"""At most this share of a peer's latency or size counts as better."""
NO_SLOWER = 1.05
"""The upper end of a paired latency ratio that counts as no slower."""
DEFAULT_GAIN = 0.5
"""Limit against onnxruntime's default where that is slower than the original."""
ORT_DEFAULT = "ort-default"
TASKS_NEEDED = 2
SECONDS_ALLOWED = 180.0
SNR_DB = 30.0
AGREEMENT = 0.99


@dataclass(frozen=True, slots=True)
class Entry:
    """One peer's model on one task, and Edgewright's choice against it.

    Attributes:
        certified: Whether it keeps the limit on the drop, by the same bound as Edgewright's.
        latency: Edgewright's latency in units of the peer's.
        size: Edgewright's bytes in units of the peer's.
        to_original: The peer's latency in units of the original's.
        p50_seconds: The peer's latency.
    """

    certified: bool
    latency: Interval | None
    size: float
    to_original: Interval | None
    p50_seconds: float


@dataclass(frozen=True, slots=True)
class TaskRun:
    """One task.

    Attributes:
        name: Of the task.
        max_drop: Limit on the drop; the least that could be certified where several were tried.
        upper_bound: Of Edgewright's choice; None if it gave none.
        certified: Whether Edgewright's choice keeps the limit.
        to_original: Edgewright's latency in units of the original's.
        peers: By name; None where the peer failed.
        tool_seconds: How long Edgewright took.
    """

    name: str
    max_drop: float
    upper_bound: float | None
    certified: bool
    to_original: Interval | None
    peers: Mapping[str, Entry | None]
    tool_seconds: float


@dataclass(frozen=True, slots=True)
class ModelRun:
    """Edgewright on one of the unlabelled models; None for what is missing."""

    name: str
    seconds: float | None
    to_original: Interval | None
    snr_db: float | None
    agreement: float | None


def better_than(entry: Entry) -> Interval | None:
    """Return by how much Edgewright's choice is better than a peer's: the smaller of what counts.

    Its latency ratio counts if it is no larger; its size ratio counts if it is no slower. Where neither does, the
    larger of the two is returned, which is no gain.
    """
    if entry.latency is None:
        return None
    counting = []
    if entry.size <= 1:
        counting.append(entry.latency)
    if entry.latency.high <= NO_SLOWER:
        counting.append(Interval.exact(entry.size))
    if not counting:
        return max(entry.latency, Interval.exact(entry.size), key=lambda ratio: ratio.value)
    return min(counting, key=lambda ratio: ratio.value)


def figures_of_tasks(runs: Sequence[TaskRun]) -> list[Figure]:
    """Return the figures of the labelled tasks; those that need a peer do not hold while one is missing."""
    figures: list[Figure] = []
    wins = 0
    for run in runs:
        complete = all(entry is not None for entry in run.peers.values())
        certified = {name: entry for name, entry in run.peers.items() if entry is not None and entry.certified}
        figures += _own_figures(run)
        fastest = min(certified, key=lambda name: certified[name].p50_seconds, default=None)
        best = None if fastest is None else certified[fastest]
        slower = None if best is None else best.latency
        figures.append(
            Figure(
                f"{run.name}.latency_to_best_peer",
                slower,
                NO_SLOWER,
                fastest,
                complete and slower is not None and slower.high <= NO_SLOWER,
                "upper end of the interval, to the fastest peer that keeps the drop",
            )
        )
        gains = {name: better_than(entry) for name, entry in certified.items()}
        known = {name: gain for name, gain in gains.items() if gain is not None}
        least = max(known, key=lambda name: known[name].value, default=None)
        gain = None if least is None or len(known) < len(gains) else known[least]
        won = run.certified and complete and gain is not None and gain.value <= GAIN
        wins += won
        figures.append(
            Figure(
                f"{run.name}.gain_over_peers",
                gain,
                None,
                least,
                complete and gain is not None,
                f"latency or size, whichever is less and with the other no worse, to the nearest peer; "
                f"{'counts' if won else 'does not count'} as better",
            )
        )
        figures.append(_to_default(run))
    figures.append(
        Figure(
            "tasks_better_than_every_peer",
            Interval.exact(float(wins)),
            float(min(TASKS_NEEDED, len(runs))),
            "every peer that keeps the drop",
            wins >= min(TASKS_NEEDED, len(runs)),
            f"at least so many tasks with a gain of at most {GAIN}",
        )
    )
    return figures


def _own_figures(run: TaskRun) -> list[Figure]:
    bound = None if run.upper_bound is None else Interval.exact(run.upper_bound)
    ratio = run.to_original
    return [
        Figure(f"{run.name}.drop_bound", bound, run.max_drop, "original", run.certified, "upper bound of the drop"),
        Figure(
            f"{run.name}.latency_to_original",
            ratio,
            NO_SLOWER,
            "original",
            ratio is not None and ratio.high <= NO_SLOWER,
            "upper end of the interval",
        ),
        Figure(f"{run.name}.tool_seconds", Interval.exact(run.tool_seconds), None, None, True),
    ]


def _to_default(run: TaskRun) -> Figure:
    """Compare with onnxruntime's default; the limit applies where that is slower than the original."""
    entry = run.peers.get(ORT_DEFAULT)
    name = f"{run.name}.latency_to_ort_default"
    if entry is None or entry.latency is None or entry.to_original is None:
        return Figure(name, None, DEFAULT_GAIN, ORT_DEFAULT, False)
    if entry.to_original.low <= 1:
        return Figure(name, entry.latency, None, ORT_DEFAULT, True, "it is not slower than the original: no limit")
    holds = entry.latency.value <= DEFAULT_GAIN
    return Figure(name, entry.latency, DEFAULT_GAIN, ORT_DEFAULT, holds, "it is slower than the original")


def figures_of_models(runs: Sequence[ModelRun]) -> list[Figure]:
    """Return the figures of the unlabelled models."""
    figures = []
    for run in runs:
        seconds = None if run.seconds is None else Interval.exact(run.seconds)
        in_time = run.seconds is not None and run.seconds <= SECONDS_ALLOWED
        figures.append(Figure(f"{run.name}.seconds", seconds, SECONDS_ALLOWED, None, in_time))
        ratio = run.to_original
        no_slower = ratio is not None and ratio.high <= NO_SLOWER
        figures.append(Figure(f"{run.name}.latency_to_original", ratio, NO_SLOWER, "original", no_slower))
        near = run.snr_db is not None and run.snr_db >= SNR_DB
        if not near and run.agreement is not None:
            figures.append(
                Figure(
                    f"{run.name}.fidelity",
                    Interval.exact(run.agreement),
                    AGREEMENT,
                    "original",
                    run.agreement >= AGREEMENT,
                    "share of samples with the same class",
                )
            )
        else:
            value = None if run.snr_db is None else Interval.exact(run.snr_db)
            figures.append(Figure(f"{run.name}.fidelity", value, SNR_DB, "original", near, "dB, the worst output"))
    return figures
