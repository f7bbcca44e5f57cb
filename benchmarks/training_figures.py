"""Figures of the tasks with training and their limits; pure, so that the rules can be read and tested."""

from dataclasses import dataclass

from benchmarks.figures import NO_SLOWER, Entry, TaskRun
from benchmarks.report import Figure, Interval

__all__ = ["Floor", "TrainingRun", "figures_of_training"]

LATENCY = 0.6
"""At most this share of the latency of the fastest peer that keeps the drop."""
SIZE = 0.4
"""At most this share of the size of the smallest peer that keeps the drop."""
NEAR_FLOOR = 1.05
"""What is asked for must lie this far above the runtime's floor to be possible."""
OVERTIME = 1.1
"""Edgewright may take so many times what every tool that trains was given."""
ORIGINAL = "original"


@dataclass(frozen=True, slots=True)
class Floor:
    """The fastest network of the same input and output, which averages and does one small product.

    Attributes:
        name: Which one it is.
        p50_seconds: Its latency.
        to_peers: Its latency in units of each peer's and the original's, by name.
        of_edgewright: Edgewright's latency in units of the floor's.
    """

    name: str
    p50_seconds: float
    to_peers: dict[str, Interval]
    of_edgewright: Interval | None


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """One task with training data.

    Attributes:
        task: As without training; `peers` are those of the tasks with training.
        size_to_original: Edgewright's bytes in units of the original's.
        floor: None if it could not be measured.
        accuracy: Of the trained network on everything that was held back.
        least_accuracy: That it must reach, None without such a demand.
        samples: On which is certified.
        least_samples: That there must be, None without such a demand.
        volume: Hypervolume of Edgewright's front on the certify samples.
        peers_volume: Of the peers' models together.
        time_limit_seconds: Given to every tool that trains.
    """

    task: TaskRun
    size_to_original: float | None
    floor: Floor | None
    accuracy: float
    least_accuracy: float | None
    samples: int
    least_samples: int | None
    volume: float | None
    peers_volume: float
    time_limit_seconds: float


def figures_of_training(run: TrainingRun) -> list[Figure]:
    """Return one task's figures; those that need a peer do not hold while one is missing."""
    task = run.task
    bound = None if task.upper_bound is None else Interval.exact(task.upper_bound)
    return [
        _at_least(f"{task.name}.teacher_accuracy", run.accuracy, run.least_accuracy, "on everything held back"),
        _at_least(f"{task.name}.certify_samples", float(run.samples), run.least_samples, "unseen, for the bound"),
        Figure(
            f"{task.name}.drop_bound", bound, task.max_drop, ORIGINAL, task.certified, "upper bound of the drop"
        ),
        *_against_best(run),
        _volume(f"{task.name}.hypervolume", run.volume, "Edgewright's front"),
        _volume(f"{task.name}.hypervolume_of_peers", run.peers_volume, "the peers together"),
        Figure(
            f"{task.name}.tool_seconds",
            Interval.exact(task.tool_seconds),
            OVERTIME * run.time_limit_seconds,
            None,
            task.tool_seconds <= OVERTIME * run.time_limit_seconds,
            f"{run.time_limit_seconds:g} s were given to every tool that trains",
        ),
    ]


def _at_least(name: str, value: float, least: float | None, note: str) -> Figure:
    told = note if least is None else f"{note}; at least the limit"
    return Figure(name, Interval.exact(value), least, None, least is None or value >= least, told)


def _volume(name: str, value: float | None, whose: str) -> Figure:
    note = f"share of the box of drop, latency and size between the limit, the original and zero: {whose}"
    return Figure(name, None if value is None else Interval.exact(value), None, None, True, note)


def _against_best(run: TrainingRun) -> list[Figure]:
    """Compare with the fastest and with the smallest peer that keep the drop; with the original if none does."""
    task = run.task
    rivals = {name: entry for name, entry in task.peers.items() if entry is not None and entry.certified}
    complete = all(entry is not None for entry in task.peers.values()) and task.certified
    if not rivals and run.size_to_original is not None:
        rivals = {ORIGINAL: Entry(True, task.to_original, run.size_to_original, Interval.exact(1.0), 0.0)}
    fastest = min(rivals, key=lambda name: rivals[name].p50_seconds, default=None)
    smallest = max(rivals, key=lambda name: rivals[name].size, default=None)
    size = None if smallest is None else rivals[smallest].size
    return [
        *_latency(run, fastest, None if fastest is None else rivals[fastest].latency, complete=complete),
        Figure(
            f"{task.name}.size_to_best_peer",
            None if size is None else Interval.exact(size),
            SIZE,
            smallest,
            complete and size is not None and size <= SIZE,
            "bytes, to the smallest peer that keeps the drop",
        ),
    ]


def _latency(run: TrainingRun, fastest: str | None, ratio: Interval | None, *, complete: bool) -> list[Figure]:
    """Compare with the fastest peer; where the limit lies under the floor, being no slower than it is enough."""
    name = run.task.name
    lowest = None if run.floor is None or fastest is None else run.floor.to_peers.get(fastest)
    possible = lowest is None or lowest.value * NEAR_FLOOR < LATENCY
    note = "to the fastest peer that keeps the drop"
    if possible:
        holds = ratio is not None and ratio.value <= LATENCY
    else:
        holds = ratio is not None and ratio.high <= NO_SLOWER
        note += f"; {LATENCY} of it lies under {NEAR_FLOOR} times the floor, so no slower is enough"
    told = "the runtime's floor in units of that peer: a network that averages its input and does one small product"
    if run.floor is not None:
        own = run.floor.of_edgewright
        times = "" if own is None else f"; Edgewright takes {own.value:.2f} times as long"
        told += f" ({run.floor.name}, {run.floor.p50_seconds * 1e6:.1f} us{times})"
    return [
        Figure(f"{name}.latency_to_best_peer", ratio, LATENCY, fastest, complete and holds, note),
        Figure(f"{name}.latency_floor", lowest, None, fastest, True, told),
    ]
