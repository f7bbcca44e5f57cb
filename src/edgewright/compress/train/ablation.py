"""What each step of training gave, from networks of the same search that differ in that step alone."""

from collections.abc import Sequence

from edgewright.contract.training_report import Contribution, TrainedNetwork

__all__ = ["contributions_of"]

_ON = "select split"


def contributions_of(networks: Sequence[TrainedNetwork], original: float) -> list[Contribution]:
    """Return what distillation gave, and what pruning a trained network further, or giving it zeros, cost.

    Args:
        networks: Of one search.
        original: The original's metric on the select split.
    """
    return [*_distillation(networks, original), *_pruning(networks, original), *_sparsity(networks, original)]


def _distillation(networks: Sequence[TrainedNetwork], original: float) -> list[Contribution]:
    """Compare networks with the same start and the same rows, one with a teacher, one without."""
    alone = [n for n in networks if not n.distilled and n.drop is not None and n.origin != "integers"]
    found = []
    for without in alone:
        twin = next(
            (
                n
                for n in networks
                if n.distilled and n.drop is not None and (n.parent, n.round) == (without.parent, without.round)
            ),
            None,
        )
        if twin is not None:
            found.append(
                Contribution(
                    "distillation", twin.title, _ON, original - (without.drop or 0.0), original - (twin.drop or 0.0)
                )
            )
    return found


def _pruning(networks: Sequence[TrainedNetwork], original: float) -> list[Contribution]:
    """Compare networks pruned in this search, fine-tuned, with what they were pruned from."""
    found = []
    for pruned in networks:
        if pruned.origin != "pruned" or pruned.drop is None or pruned.round < 2:
            continue
        title, comma, _ = pruned.title.rpartition(", pruned ")
        if not comma:
            continue
        twin = next(
            (
                n
                for n in networks
                if n.title == title and n.round == pruned.round and n.drop is not None and n.rows >= pruned.rows / 2
            ),
            None,
        )
        if twin is not None:
            found.append(
                Contribution(
                    "pruning",
                    pruned.title,
                    _ON,
                    original - (twin.drop or 0.0),
                    original - pruned.drop,
                    size_ratio=pruned.parameters / twin.parameters,
                    latency_ratio=_ratio(pruned.latency_ratio, twin.latency_ratio),
                )
            )
    return found


def _sparsity(networks: Sequence[TrainedNetwork], original: float) -> list[Contribution]:
    """Compare networks with zeros, fine-tuned, with what they were before they had any."""
    by_digest = {network.network: network for network in networks if network.network}
    found = []
    for sparse in networks:
        parent = by_digest.get(sparse.parent)
        while parent is not None and parent.origin == "sparse":
            parent = by_digest.get(parent.parent)
        known = parent is not None and parent.drop is not None
        if sparse.origin == "sparse" and sparse.drop is not None and known:
            assert parent is not None  # noqa: S101 - known
            found.append(
                Contribution("sparsity", sparse.title, _ON, original - (parent.drop or 0.0), original - sparse.drop)
            )
    return found


def _ratio(mine: float | None, other: float | None) -> float | None:
    return None if mine is None or other is None else mine / other
