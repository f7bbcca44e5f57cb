"""Models of one task side by side: latency in one interleaved measurement, bytes, and the same bound for each."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from benchmarks.report import Interval
from numpy.typing import NDArray

from edgewright.compress.data.dataset import Dataset
from edgewright.compress.data.model_outputs import model_outputs
from edgewright.contract.errors import EdgewrightError
from edgewright.contract.model.signature import ModelSignature
from edgewright.profiling.latency import LatencyResult, Workload, measure_latency, paired_ratio
from edgewright.profiling.target import open_target
from edgewright.runtime.options import RuntimeOptions
from edgewright.stats.exact_paired_bound import exact_drop_bound
from edgewright.stats.paired_bounds import cluster_bound

__all__ = ["Judged", "correct", "judge", "latencies", "ratio", "snr_db", "top_agreement"]


class Judged(msgspec.Struct, frozen=True):
    """A model on samples that nothing was chosen by.

    Attributes:
        accuracy: Share of samples that it has right.
        drop: The original's accuracy less its own.
        upper_bound: One-sided upper bound of the drop.
        certified: Whether the bound keeps the limit.
    """

    accuracy: float
    drop: float
    upper_bound: float
    certified: bool


def correct(
    model: Path, dataset: Dataset, indices: NDArray[np.intp], contract: ModelSignature
) -> NDArray[np.bool_]:
    """Return which samples a model classifies correctly.

    Raises:
        CandidateError: It cannot be loaded or run.
    """
    assert dataset.labels is not None
    (logits,) = model_outputs(str(model), dataset, indices, contract)
    return np.asarray(logits.argmax(axis=-1) == dataset.labels[indices])


def judge(
    original: NDArray[np.bool_],
    candidate: NDArray[np.bool_],
    *,
    max_drop: float,
    alpha: float,
    groups: NDArray[Any] | None,
) -> Judged:
    """Bound the drop of a candidate exactly as Edgewright bounds its own choice.

    Args:
        original: Shape [samples], what the original has right.
        candidate: Shape [samples].
        max_drop: Limit.
        alpha: One-sided error, the one that Edgewright's certificate was made with.
        groups: Shape [samples], None for independent samples.

    >>> right = np.ones(600, bool)
    >>> judge(right, right, max_drop=0.005, alpha=0.05, groups=None).certified
    True
    """
    lost, gained = int((original & ~candidate).sum()), int((candidate & ~original).sum())
    bound = exact_drop_bound(lost, gained, len(original), alpha)
    if groups is not None:
        bound = cluster_bound(original.astype(np.float64) - candidate, groups, alpha, bound)
    accuracy = float(candidate.mean())
    return Judged(accuracy, float(original.mean()) - accuracy, bound, bound <= max_drop)


def latencies(
    models: Mapping[str, Path], feed: Mapping[str, NDArray[Any]], *, seconds: float, seed: int
) -> dict[str, LatencyResult | EdgewrightError]:
    """Measure models in turns in one process: batch 1, one thread, the same options for all."""
    options = RuntimeOptions()
    subjects = [Workload(name, path, options, feed) for name, path in models.items()]
    measured = measure_latency(open_target("local"), subjects, seconds=seconds, seed=seed)
    return dict(zip(models, measured, strict=True))


def ratio(mine: object, other: object, *, same_bytes: bool = False) -> Interval | None:
    """Return how long one takes in units of another; None where one could not be measured.

    The same bytes take the same time: their ratio is one exactly.
    """
    if not isinstance(mine, LatencyResult) or not isinstance(other, LatencyResult):
        return None
    if same_bytes:
        return Interval.exact(1.0)
    figure = paired_ratio(mine, other)
    if figure.low is None or figure.high is None:
        return None
    return Interval(figure.value, figure.low, figure.high)


def snr_db(reference: Sequence[NDArray[Any]], outputs: Sequence[NDArray[Any]]) -> float:
    """Return the signal-to-noise ratio of the worst output, at most 200 dB.

    >>> round(snr_db([np.ones(10)], [np.full(10, 1.01)]), 6)
    40.0
    """
    worst = 200.0
    for expected, given in zip(reference, outputs, strict=True):
        signal = np.square(expected.astype(np.float64)).sum()
        noise = np.square(expected.astype(np.float64) - given.astype(np.float64)).sum()
        if noise > 0:
            worst = min(worst, float(10 * np.log10(max(signal, 1e-300) / noise)))
    return worst


def top_agreement(reference: Sequence[NDArray[Any]], outputs: Sequence[NDArray[Any]]) -> float | None:
    """Return the share of samples with the same highest class; None unless there is one output [n, 2 or more]."""
    if len(reference) != 1 or reference[0].ndim != 2 or reference[0].shape[1] < 2:
        return None
    return float((reference[0].argmax(1) == outputs[0].argmax(1)).mean())
