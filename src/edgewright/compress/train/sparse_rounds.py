"""Networks with zeros for hardware that gains by them: placed step by step, held while the rest is trained.

The smallest weights go, a few at first and fewer with every step, and what is left learns to do without them
(Zhu and Gupta 2017, arXiv:1710.01878). onnxruntime computes zeros like any number, so nobody is given them who
does not ask.
"""

import time
from collections.abc import Sequence
from functools import partial

import numpy as np

from edgewright.compress.quantize.sparsity import MagnitudePruning, prune_by_magnitude
from edgewright.compress.train.loop.zero_masks import gradual_fractions
from edgewright.compress.train.policy import TrainedCandidate, meets_drop_limit, rows_per_network, trained_candidate
from edgewright.compress.train.training_session import PlannedJob, TrainingSession, untrained_record
from edgewright.contract.errors import CandidateError

__all__ = ["sparsity_schedule", "train_sparse"]

_STEPS = 3


def sparsity_schedule(sparsity: float | str) -> list[MagnitudePruning]:
    """Return the prunings that lead to a sparsity: a share of the weights, or `N:M`, N kept of every M.

    >>> [round(step.fraction, 2) for step in sparsity_schedule(0.8)], sparsity_schedule("2:4")[0].pattern
    ([0.56, 0.77, 0.8], (2, 4))
    """
    if isinstance(sparsity, str):
        keep, _, of = sparsity.partition(":")
        return [MagnitudePruning(pattern=(int(keep), int(of)))]
    return [MagnitudePruning(fraction=fraction) for fraction in gradual_fractions(sparsity, _STEPS)]


def train_sparse(
    session: TrainingSession, candidates: Sequence[TrainedCandidate], sparsity: float | str, until: float
) -> list[TrainedCandidate]:
    """Give the first of the networks zeros and train them on.

    Args:
        session: What the rounds share.
        candidates: How the networks stand, most promising first.
        sparsity: As `sparsity_schedule` takes it.
        until: When this must be over, of `time.monotonic()`.

    Returns:
        How the sparse networks stand; none if time ran out or nothing could be made sparse.
    """
    began = time.monotonic()
    steps = sparsity_schedule(sparsity)
    shown = sparsity if isinstance(sparsity, str) else f"{sparsity:.0%}"
    sparse = [standing for standing in candidates if np.isfinite(standing.drop)][: session.workers]
    for number, step in enumerate(steps, 1):
        if not sparse:
            break
        deadline = began + number / len(steps) * (until - began)
        tasks = session.planned_jobs(
            f"sparse-{number}", partial(_tasks, session, sparse, step, shown, number, deadline)
        )
        by_parent = {standing.network: standing for standing in sparse}
        trained = session.train_jobs(f"zeros {number}", tasks, deadline)
        found = [
            trained_candidate(by_parent[network.parent_sha256].estimate, network, sparse=True)
            for network in trained
            if network.parent_sha256 in by_parent
        ]
        sparse = [standing for standing in found if standing is not None]
    if not sparse:
        session.notes.append(f"no network became {shown} sparse: there was no time, or no layer that fits")
    return sorted(
        sparse, key=lambda standing: (not meets_drop_limit(standing, session.max_drop), standing.estimate.cost)
    )


def _tasks(
    session: TrainingSession,
    candidates: Sequence[TrainedCandidate],
    step: MagnitudePruning,
    shown: str,
    number: int,
    deadline: float,
) -> list[PlannedJob]:
    paces = []
    able: list[TrainedCandidate] = []
    for standing in candidates:
        try:
            paces.append(session.seconds_per_row(standing.network))
        except (CandidateError, RuntimeError) as error:
            session.notes.append(f"{standing.estimate.title} cannot be made sparse: {error}")
        else:
            able.append(standing)
    rows = rows_per_network(
        session.core_seconds(deadline), [max(paces, default=1.0)] * max(len(able), session.workers)
    )
    return [
        PlannedJob(
            untrained_record(
                standing.estimate, "sparse", standing.network, number, f"{standing.estimate.title}, {shown} sparse"
            ),
            session.store.store_network(prune_by_magnitude(session.store.load_network(standing.network), step)),
            session.training_config(rows, "trained"),
            keep_zeros=True,
        )
        for standing in able
    ]
