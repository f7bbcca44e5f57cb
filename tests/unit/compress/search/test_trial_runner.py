"""The bound that a select split predicts: it only steers, but it must steer the right way."""

import numpy as np
import pytest
from numpy.typing import NDArray

from edgewright.compress.search.trial_runner import predicted_bound


def bound(lost: int, gained: int = 0, samples: int = 300, certify: int = 600, kind: str = "binary") -> float:
    original, candidate = np.ones(samples), np.ones(samples)
    candidate[:lost] = 0
    original[lost : lost + gained] = 0
    return predicted_bound(original, candidate, kind=kind, confidence=0.95, certify_samples=certify)


@pytest.mark.parametrize("kind", ["binary", "unbounded"])
def test_more_losses_never_promise_a_better_bound(kind: str) -> None:
    bounds = [bound(lost, kind=kind) for lost in range(0, 60, 5)]
    assert bounds == sorted(bounds)
    assert all(promised >= lost / 300 for promised, lost in zip(bounds, range(0, 60, 5), strict=True))


def test_more_samples_to_certify_promise_a_tighter_bound() -> None:
    assert bound(5, certify=3000) < bound(5, certify=600) < bound(5, certify=100)


def test_gains_are_counted() -> None:
    assert bound(10, gained=10) < bound(10)


def test_losses_in_one_group_promise_less_than_losses_everywhere() -> None:
    groups: NDArray[np.intp] = np.repeat(np.arange(10), 30)
    original = np.ones(300)
    spread, together = original.copy(), original.copy()
    spread[::10] = 0
    together[:30] = 0

    def grouped(candidate: NDArray[np.float64]) -> float:
        return predicted_bound(
            original,
            candidate,
            kind="binary",
            confidence=0.95,
            certify_samples=600,
            groups=groups,
            certify_groups=20,
        )

    assert grouped(together) > grouped(spread)
