"""Histograms over reference quantiles: what a device keeps of what it sees, as integers that add up.

Edges are fixed before anything is counted, and the reference is counted on other data than the edges were drawn
from, so that its shares are not fitted. Values that tie share one bin: an atom, say the black of an image, gets a
bin of its own. Values that are no number or infinite have the last bin. Devices import this: numpy only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "DEFAULT_BINS",
    "ReferenceHistogram",
    "bin_index",
    "build_reference_histogram",
    "class_edges",
    "count_by_bin",
    "count_difference",
    "merge_counts",
    "quantile_edges",
]

DEFAULT_BINS = 16
# Rows that are compared with all edges at once; bounds the memory of the comparison.
_ROWS_PER_CHUNK = 1024


@dataclass(frozen=True, slots=True)
class ReferenceHistogram:
    """What a stream is compared with.

    Attributes:
        edges: Shape [signals, bins - 1], in the signals' units; infinite where a signal needs fewer.
        counts: Shape [signals, bins + 1], from other data than the edges.
    """

    edges: NDArray[np.float64]
    counts: NDArray[np.int64]


def quantile_edges(values: ArrayLike, bin_count: int = DEFAULT_BINS) -> NDArray[np.float64]:
    """Return edges that give each bin the same share of the values that do not tie.

    Bin i holds what is above edge i - 1 and at most edge i. Edges are values that occurred, never between two. A
    value that takes a bin's share or more gets a bin of its own, and the remaining bins divide the other values:
    where most images reach full white, those that do not are still told apart.

    Args:
        values: Shape [rows] or [rows, signals]; what is not finite is left out.
        bin_count: At least 2.

    Returns:
        Shape [signals, bins - 1], ascending, infinite at the end where ties left fewer edges.

    Raises:
        ValueError: Fewer than two bins.

    >>> quantile_edges([1, 2, 3, 4, 5, 6, 7, 8], 4)
    array([[2., 4., 6.]])
    """
    if bin_count < 2:
        raise ValueError(f"{bin_count} bins")
    rows = _rows(values)
    edges = np.full((rows.shape[1], bin_count - 1), np.inf)
    for signal, column in enumerate(rows.T):
        finite = column[np.isfinite(column)]
        if not finite.size:
            continue
        different, repeats = np.unique(finite, return_counts=True)
        heavy = np.argsort(-repeats, kind="stable")[: (bin_count - 1) // 2]
        atoms = different[heavy[repeats[heavy] >= max(2, finite.size / bin_count)]]
        rest = finite[~np.isin(finite, atoms)]
        # An atom takes two edges, which set it apart from what is below and above; the others divide the rest.
        left = bin_count - 1 - 2 * atoms.size
        if rest.size and left:
            between = np.quantile(rest, np.arange(1, left + 1) / (left + 1), method="inverted_cdf")
        else:
            between = np.empty(0)
        kept = np.unique(np.concatenate([between, atoms, np.nextafter(atoms, -np.inf)]))
        edges[signal, : kept.size] = kept
    return edges


def class_edges(class_count: int, bin_count: int = DEFAULT_BINS) -> NDArray[np.float64]:
    """Return edges with a bin per class, or with neighbouring classes folded where there are more than bins.

    Returns:
        Shape [bins - 1].

    >>> class_edges(3, 4)
    array([ 0.,  1., inf])
    >>> class_edges(8, 4)
    array([1., 3., 5.])
    """
    used = min(class_count, bin_count)
    last = np.ceil(np.arange(1, used) * class_count / used) - 1
    return np.concatenate([last, np.full(bin_count - used, np.inf)])


def bin_index(values: ArrayLike, edges: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Return the bin of each value.

    Args:
        values: Shape [rows, signals].
        edges: Shape [signals, bins - 1].

    Returns:
        Shape [rows, signals], 0 to bins; bins for what is not finite.
    """
    rows = _rows(values)
    if rows.shape[1] != len(edges):
        raise ValueError(f"{rows.shape[1]} signals for the edges of {len(edges)}")
    places = np.empty(rows.shape, np.uint8)
    for start in range(0, len(rows), _ROWS_PER_CHUNK):
        some = rows[start : start + _ROWS_PER_CHUNK]
        inside = (some[:, :, None] > edges).sum(axis=2)
        places[start : start + _ROWS_PER_CHUNK] = np.where(np.isfinite(some), inside, edges.shape[1] + 1)
    return places


def count_by_bin(values: ArrayLike, edges: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return how many values of each signal fall into each bin.

    Args:
        values: Shape [rows, signals].
        edges: Shape [signals, bins - 1].

    Returns:
        Shape [signals, bins + 1]; the last column counts what is not finite.

    >>> count_by_bin([[1.0], [2.5], [float("nan")]], quantile_edges([1, 2, 3, 4], 2))
    array([[1, 1, 1]])
    """
    width = edges.shape[1] + 2
    slots = bin_index(values, edges) + width * np.arange(len(edges))
    return np.bincount(slots.ravel(), minlength=width * len(edges)).reshape(len(edges), width).astype(np.int64)


def merge_counts(parts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Return the counts of all parts together; they must have been counted over the same edges."""
    return np.asarray(np.sum(np.stack(parts), axis=0), np.int64)


def count_difference(later: NDArray[np.int64], earlier: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return what was counted between two states of one histogram.

    Raises:
        ValueError: The earlier state holds more, so it is not a state of the same histogram.
    """
    between = later - earlier
    if (between < 0).any():
        raise ValueError("the earlier histogram holds more than the later one")
    return between


def build_reference_histogram(
    values: ArrayLike,
    *,
    seed: int,
    bin_count: int = DEFAULT_BINS,
    edge_share: float = 0.25,
    groups: ArrayLike | None = None,
    class_counts: Sequence[int] = (),
) -> ReferenceHistogram:
    """Draw edges from some calibration rows and count the others.

    Args:
        values: Shape [rows, signals]; rows that were not used to fit the model, one per episode.
        seed: Of the split.
        bin_count: Per signal.
        edge_share: Part that the edges are drawn from.
        groups: Shape [rows], subject or episode of each row; groups are not split.
        class_counts: Per signal its number of classes, 0 for one that is not categorical; empty if none is.

    Raises:
        ValueError: Nothing is left for the edges or for the counts.
    """
    rows = _rows(values)
    units, of_row = np.unique(np.arange(len(rows)) if groups is None else groups, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(units))
    first = np.isin(of_row, order[: max(1, round(edge_share * len(units)))])
    if first.all() or not first.any():
        raise ValueError(f"{len(rows)} rows in {len(units)} groups cannot be split")
    edges = quantile_edges(rows[first], bin_count)
    for signal, number in enumerate(class_counts):
        if number:
            edges[signal] = class_edges(number, bin_count)
    return ReferenceHistogram(edges, count_by_bin(rows[~first], edges))


def _rows(values: ArrayLike) -> NDArray[np.float64]:
    """Return values as [rows, signals]."""
    rows = np.asarray(values, np.float64)
    return rows[:, None] if rows.ndim == 1 else rows
