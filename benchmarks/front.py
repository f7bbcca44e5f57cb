"""Fronts of models in drop, latency and size, and how much of the possible they dominate; pure."""

from collections.abc import Sequence

__all__ = ["Point", "hypervolume", "non_dominated", "place", "thinned"]

Point = tuple[float, ...]


def place(drop: float, latency_ratio: float, size_ratio: float, *, max_drop: float) -> Point:
    """Return a model's point: 1 in each direction is the limit on the drop, and the original's latency and size.

    A model that is better than the original loses nothing.

    >>> place(-0.002, 0.5, 0.25, max_drop=0.01)
    (0.0, 0.5, 0.25)
    """
    return max(drop, 0.0) / max_drop, latency_ratio, size_ratio


def non_dominated(points: Sequence[Point]) -> list[int]:
    """Return the indices of the points that no other is at least as good as in everything; of equal ones the first.

    >>> non_dominated([(1, 1), (0, 1), (1, 0), (0, 1)])
    [1, 2]
    """

    def beaten(i: int) -> bool:
        return any(
            all(a <= b for a, b in zip(other, points[i], strict=True)) and (other != points[i] or j < i)
            for j, other in enumerate(points)
            if j != i
        )

    return [i for i in range(len(points)) if not beaten(i)]


def thinned(indices: Sequence[int], points: Sequence[Point], most: int) -> list[int]:
    """Return at most so many of the points, evenly along the second direction, its ends included."""
    ordered = sorted(indices, key=lambda i: points[i][1])
    if len(ordered) <= most:
        return ordered
    steps = (len(ordered) - 1) / (most - 1)
    return [ordered[round(i * steps)] for i in range(most)]


def hypervolume(points: Sequence[Point]) -> float:
    """Return the share of the unit cube that is worse than at least one of the points in every direction.

    The reference is 1 in every direction, the ideal 0; points beyond the reference in any direction count nothing.
    Source: Zitzler and Thiele 1998, doi:10.1007/BFb0056872; computed by slicing along the last direction.

    >>> hypervolume([(0.5, 0.5), (0.25, 0.75)])
    0.3125
    """
    inside = [point for point in points if all(value < 1 for value in point)]
    if not inside:
        return 0.0
    if len(inside[0]) == 1:
        return 1 - min(max(point[0], 0.0) for point in inside)
    ordered = sorted(inside, key=lambda point: point[-1])
    edges = [*(max(point[-1], 0.0) for point in ordered), 1.0]
    return sum(
        (edges[i + 1] - edges[i]) * hypervolume([point[:-1] for point in ordered[: i + 1]])
        for i in range(len(ordered))
        if edges[i + 1] > edges[i]
    )
