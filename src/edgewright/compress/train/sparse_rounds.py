"""Networks with zeros for hardware that gains by them: placed step by step, held while the rest is trained.

The smallest weights go, a few at first and fewer with every step, and what is left learns to do without them
(Zhu and Gupta 2017, arXiv:1710.01878). onnxruntime computes zeros like any number, so nobody is given them who
does not ask.
"""

import time
from collections.abc import Sequence
from functools import partial

import numpy as np

from edgewright.compress.quantize.sparsity import Sparsify, sparsify
from edgewright.compress.train.loop.zero_masks import gradual_fractions
from edgewright.compress.train.policy import Standing, keeps, rows_each, standing_of
from edgewright.compress.train.training_session import Course, Task, untrained
from edgewright.contract.errors import CandidateError

__all__ = ["steps_of", "train_sparse"]

_STEPS = 3


def steps_of(sparsity: float | str) -> list[Sparsify]:
    """Return the prunings that lead to a sparsity: a share of the weights, or `N:M`, N kept of every M.

    >>> [round(step.fraction, 2) for step in steps_of(0.8)], steps_of("2:4")[0].pattern
    ([0.56, 0.77, 0.8], (2, 4))
    """
    if isinstance(sparsity, str):
        keep, _, of = sparsity.partition(":")
        return [Sparsify(pattern=(int(keep), int(of)))]
    return [Sparsify(fraction=fraction) for fraction in gradual_fractions(sparsity, _STEPS)]


def train_sparse(
    course: Course, standings: Sequence[Standing], sparsity: float | str, until: float
) -> list[Standing]:
    """Give the first of the networks zeros and train them on.

    Args:
        course: What the rounds share.
        standings: How the networks stand, most promising first.
        sparsity: As `steps_of` takes it.
        until: When this must be over, of `time.monotonic()`.

    Returns:
        How the sparse networks stand; none if time ran out or nothing could be made sparse.
    """
    began = time.monotonic()
    steps = steps_of(sparsity)
    shown = sparsity if isinstance(sparsity, str) else f"{sparsity:.0%}"
    sparse = [standing for standing in standings if np.isfinite(standing.drop)][: course.workers]
    for number, step in enumerate(steps, 1):
        if not sparse:
            break
        deadline = began + number / len(steps) * (until - began)
        tasks = course.planned(f"sparse-{number}", partial(_tasks, course, sparse, step, shown, number, deadline))
        by_parent = {standing.network: standing for standing in sparse}
        trained = course.train(f"zeros {number}", tasks, deadline)
        found = [
            standing_of(by_parent[network.parent].prospect, network, sparse=True)
            for network in trained
            if network.parent in by_parent
        ]
        sparse = [standing for standing in found if standing is not None]
    if not sparse:
        course.notes.append(f"no network became {shown} sparse: there was no time, or no layer that fits")
    return sorted(sparse, key=lambda standing: (not keeps(standing, course.max_drop), standing.prospect.cost))


def _tasks(
    course: Course, standings: Sequence[Standing], step: Sparsify, shown: str, number: int, deadline: float
) -> list[Task]:
    paces = []
    able: list[Standing] = []
    for standing in standings:
        try:
            paces.append(course.pace_of(standing.network))
        except (CandidateError, RuntimeError) as error:
            course.notes.append(f"{standing.prospect.title} cannot be made sparse: {error}")
        else:
            able.append(standing)
    rows = rows_each(course.core_seconds(deadline), [max(paces, default=1.0)] * max(len(able), course.workers))
    return [
        Task(
            untrained(
                standing.prospect, "sparse", standing.network, number, f"{standing.prospect.title}, {shown} sparse"
            ),
            course.store.put(sparsify(course.store.network(standing.network), step)),
            course.settings(rows, "trained"),
            hold=True,
        )
        for standing in able
    ]
