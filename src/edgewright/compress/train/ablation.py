"""What each step of training gave, from networks of the same search that differ in that step alone."""

from collections.abc import Sequence

from edgewright.contract.training_report import AblationResult, TrainedNetwork

__all__ = ["find_ablations"]

_SELECT_SPLIT = "select split"


def find_ablations(networks: Sequence[TrainedNetwork], original: float) -> list[AblationResult]:
    """Return what distillation gave, and what pruning a trained network further, or giving it zeros, cost.

    Args:
        networks: Of one search.
        original: The original's metric on the select split.
    """
    return [
        *_ablate_distillation(networks, original),
        *_ablate_pruning(networks, original),
        *_ablate_sparsity(networks, original),
    ]


def _ablate_distillation(networks: Sequence[TrainedNetwork], original: float) -> list[AblationResult]:
    """Compare networks with the same start and the same rows, one with a teacher, one without."""
    alone = [n for n in networks if not n.distilled and n.drop is not None and n.origin != "integers"]
    found = []
    for without in alone:
        twin = next(
            (
                n
                for n in networks
                if n.distilled
                and n.drop is not None
                and (n.parent_sha256, n.search_round) == (without.parent_sha256, without.search_round)
            ),
            None,
        )
        if twin is not None:
            found.append(
                AblationResult(
                    "distillation",
                    twin.title,
                    _SELECT_SPLIT,
                    original - (without.drop or 0.0),
                    original - (twin.drop or 0.0),
                )
            )
    return found


def _ablate_pruning(networks: Sequence[TrainedNetwork], original: float) -> list[AblationResult]:
    """Compare networks pruned in this search, fine-tuned, with what they were pruned from."""
    found = []
    for pruned in networks:
        if pruned.origin != "pruned" or pruned.drop is None or pruned.search_round < 2:
            continue
        title, comma, _ = pruned.title.rpartition(", pruned ")
        if not comma:
            continue
        twin = next(
            (
                n
                for n in networks
                if n.title == title
                and n.search_round == pruned.search_round
                and n.drop is not None
                and n.training_rows >= pruned.training_rows / 2
            ),
            None,
        )
        if twin is not None:
            found.append(
                AblationResult(
                    "pruning",
                    pruned.title,
                    _SELECT_SPLIT,
                    original - (twin.drop or 0.0),
                    original - pruned.drop,
                    size_ratio=pruned.parameters / twin.parameters,
                    latency_ratio=_ratio(pruned.latency_ratio, twin.latency_ratio),
                )
            )
    return found


def _ablate_sparsity(networks: Sequence[TrainedNetwork], original: float) -> list[AblationResult]:
    """Compare networks with zeros, fine-tuned, with what they were before they had any."""
    by_digest = {network.network_sha256: network for network in networks if network.network_sha256}
    found = []
    for sparse in networks:
        parent = by_digest.get(sparse.parent_sha256)
        while parent is not None and parent.origin == "sparse":
            parent = by_digest.get(parent.parent_sha256)
        known = parent is not None and parent.drop is not None
        if sparse.origin == "sparse" and sparse.drop is not None and known:
            assert parent is not None  # noqa: S101 - known
            found.append(
                AblationResult(
                    "sparsity", sparse.title, _SELECT_SPLIT, original - (parent.drop or 0.0), original - sparse.drop
                )
            )
    return found


def _ratio(mine: float | None, other: float | None) -> float | None:
    return None if mine is None or other is None else mine / other
