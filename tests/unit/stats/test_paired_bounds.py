import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from edgewright.stats.exact_paired_bound import exact_drop_bound
from edgewright.stats.paired_bounds import betting_bound, bootstrap_bounds, cluster_bound, t_bound


def test_betting_covers_in_small_samples_of_every_shape() -> None:
    random = np.random.default_rng(3)
    cases: list[tuple[Callable[[int], NDArray[np.float64]], float]] = [
        (lambda n: random.choice([1.0, 0.0, -1.0], n, p=[0.03, 0.95, 0.02]), 0.01),
        (lambda n: random.beta(0.3, 3, n), 0.3 / 3.3),
        (lambda n: random.uniform(-1, 1, n), 0.0),
        (lambda n: random.choice([1.0, 0.0], n, p=[0.01, 0.99]), 0.01),
    ]
    for draw, mean in cases:
        missed = np.mean([betting_bound(draw(100), 0.05, -1, 1) < mean for _ in range(400)])
        assert missed <= 0.05


def test_betting_depends_on_no_order_and_on_the_scale_only_as_units_do() -> None:
    differences = np.random.default_rng(0).uniform(-0.2, 0.3, 500)
    bound = betting_bound(differences, 0.05, -1, 1)
    assert betting_bound(differences[::-1], 0.05, -1, 1) == pytest.approx(bound, abs=1e-12)
    assert betting_bound(10 * differences, 0.05, -10, 10) == pytest.approx(10 * bound, abs=1e-8)


def test_betting_is_at_most_a_third_of_hoeffding_for_rare_differences() -> None:
    differences = np.zeros(2000)
    differences[:6] = 1
    bound = betting_bound(differences, 0.05, -1, 1)
    assert exact_drop_bound(6, 0, 2000, 0.05) < bound < 0.003 + 2 * math.sqrt(math.log(20) / 4000) / 3


def test_betting_refuses_differences_out_of_range() -> None:
    with pytest.raises(ValueError, match="not within"):
        betting_bound(np.array([0.5, 1.5]), 0.05, -1, 1)


def test_for_symmetric_differences_the_t_bound_is_scipys() -> None:
    half = np.random.default_rng(0).normal(size=100)
    differences = np.concatenate([half, -half]) + 0.1
    interval = stats.ttest_1samp(differences, 0).confidence_interval(0.9)
    assert t_bound(differences, 0.05) == pytest.approx(interval.high, rel=1e-6)


def test_heavy_right_tails_are_covered_better_than_by_student() -> None:
    random = np.random.default_rng(1)
    draws = random.lognormal(0, 1, (1500, 300))
    mean = math.exp(0.5)
    student = draws.mean(axis=1) + stats.t.isf(0.05, 299) * draws.std(axis=1, ddof=1) / math.sqrt(300)
    missed = np.mean([t_bound(draw, 0.05) < mean for draw in draws])
    assert np.mean(student < mean) > 0.07
    assert missed < 0.07


def overdispersed(
    random: np.random.Generator, clusters: int, correlation: float, p: float, q: float
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Draw beta-binomial losses and gains over clusters of 40 to 160 samples."""
    groups = np.repeat(np.arange(clusters), random.integers(40, 160, clusters))
    size = 1 / correlation - 1
    lost = random.beta(p * size, (1 - p) * size, clusters)
    gained = np.minimum(random.beta(q * size, (1 - q) * size, clusters), 1 - lost)
    chance = random.random(groups.size)
    return (chance < lost[groups]).astype(float) - (chance > 1 - gained[groups]), groups


@pytest.mark.parametrize("clusters", [9, 15, 23])
def test_clusters_are_covered_nearly_and_far_better_than_independent_samples(clusters: int) -> None:
    random = np.random.default_rng(2)
    missed, naive = 0, 0
    for _ in range(1000):
        differences, groups = overdispersed(random, clusters, 0.02, 0.02, 0.01)
        independent = t_bound(differences, 0.05)
        missed += cluster_bound(differences, groups, 0.05, independent) < 0.01
        naive += independent < 0.01
    assert missed / 1000 <= 0.085
    assert naive / 1000 >= 0.12


def test_equal_clusters_give_students_bound_over_their_means() -> None:
    random = np.random.default_rng(4)
    differences = random.normal(size=(12, 50))
    expected = stats.ttest_1samp(differences.mean(axis=1), 0).confidence_interval(0.9).high
    groups = np.repeat([f"subject {i}" for i in range(12)], 50)
    assert cluster_bound(differences.ravel(), groups, 0.05, -math.inf) == pytest.approx(expected, rel=1e-9)


def test_clusters_never_undercut_the_independent_bound() -> None:
    differences, groups = np.zeros(900), np.arange(900) % 9
    assert cluster_bound(differences, groups, 0.05, exact_drop_bound(0, 0, 900, 0.05)) > 0.003


def test_fewer_than_five_clusters_are_refused() -> None:
    with pytest.raises(ValueError, match="4 clusters, at least 5"):
        cluster_bound(np.zeros(40), np.arange(40) % 4, 0.05, 0.0)
    with pytest.raises(ValueError, match="4 clusters, at least 5"):
        bootstrap_bounds(lambda picks: float(picks.mean()), 40, 0.05, groups=np.arange(40) % 4)


def test_the_bootstrap_agrees_with_scipys_bca() -> None:
    values = np.random.default_rng(5).lognormal(0, 0.5, 120)
    reference = stats.bootstrap(
        (values,), np.mean, confidence_level=0.9, n_resamples=4000, rng=1
    ).confidence_interval
    low, high = bootstrap_bounds(lambda picks: float(values[picks].mean()), 120, 0.05)
    width = reference.high - reference.low
    assert low == pytest.approx(reference.low, abs=0.08 * width)
    assert high == pytest.approx(reference.high, abs=0.08 * width)


def test_the_bootstrap_repeats_itself_with_its_seed_and_draws_whole_clusters() -> None:
    values = np.repeat(np.random.default_rng(6).normal(size=20), 30)
    groups = np.repeat(np.arange(20), 30)

    def mean(picks: NDArray[np.intp]) -> float:
        return float(values[picks].mean())

    first = bootstrap_bounds(mean, 600, 0.05, groups=groups, seed=7)
    assert bootstrap_bounds(mean, 600, 0.05, groups=groups, seed=7) == first
    alone = bootstrap_bounds(mean, 600, 0.05)
    assert first[1] - first[0] > 3 * (alone[1] - alone[0])
