import itertools
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from benchmarks.front import hypervolume, non_dominated, place, thinned


def test_the_volume_is_the_share_of_random_points_that_are_dominated() -> None:
    random = np.random.default_rng(0)
    points = random.uniform(0, 1, (7, 3))
    drawn = random.uniform(0, 1, (200_000, 3))
    share = np.mean(np.any(np.all(drawn[:, None] >= points[None], axis=2), axis=1))
    assert hypervolume([tuple(map(float, point)) for point in points]) == pytest.approx(share, abs=0.004)


def test_the_order_of_points_does_not_matter() -> None:
    points = [(0.1, 0.9, 0.5), (0.5, 0.5, 0.2), (0.5, 0.1, 0.9)]
    volumes = {round(hypervolume(order), 12) for order in itertools.permutations(points)}
    assert len(volumes) == 1


def test_what_another_dominates_adds_nothing() -> None:
    assert hypervolume([(0.2, 0.3, 0.4), (0.2, 0.5, 0.4)]) == pytest.approx(hypervolume([(0.2, 0.3, 0.4)]))


@pytest.mark.parametrize("point", [(1.0, 0.1, 0.1), (0.1, 1.2, 0.1), (0.0, 0.1, 1.0)])
def test_what_is_no_better_than_the_reference_somewhere_counts_nothing(point: tuple[float, ...]) -> None:
    assert hypervolume([point]) == 0


def test_nothing_dominates_nothing() -> None:
    assert hypervolume([]) == 0


def test_a_perfect_model_dominates_everything() -> None:
    assert hypervolume([place(-0.01, 0.0, 0.0, max_drop=0.01)]) == 1


def test_equal_models_leave_one_on_the_front() -> None:
    assert non_dominated([(0.5, 0.5), (0.5, 0.5), (0.6, 0.5)]) == [0]


def test_a_thinned_front_keeps_its_ends() -> None:
    points = [(0.0, i / 10) for i in range(11)]
    kept = thinned(range(11), points, 4)
    assert (kept[0], kept[-1], len(kept)) == (0, 10, 4)
