import time

import numpy as np
import pytest
from scipy import stats

from edgewright.stats.exact_paired_bound import clopper_pearson_bounds, exact_drop_bound, likelihood_ratio_limit

RATES = np.unique(np.concatenate([np.linspace(0, 1, 41) ** 2, np.linspace(0, 1, 21)]))


def worst_miss(samples: int, bound: np.ndarray, lost: np.ndarray, gained: np.ndarray) -> float:
    """Sum exactly, over a grid of true rates, the probability of outcomes whose bound is below the true drop."""
    worst = 0.0
    for p in RATES:
        for q in RATES[RATES + p <= 1]:
            outcomes = np.stack([lost, gained, samples - lost - gained], axis=1)
            chances = stats.multinomial.pmf(outcomes, samples, [p, q, max(1 - p - q, 0.0)])
            worst = max(worst, float(chances[bound < p - q - 1e-12].sum()))
    return worst


def outcomes(samples: int) -> tuple[np.ndarray, np.ndarray]:
    pairs = [(lost, gained) for lost in range(samples + 1) for gained in range(samples + 1 - lost)]
    lost, gained = np.array(pairs).T
    return lost, gained


@pytest.mark.parametrize(("samples", "alpha"), [(1, 0.05), (6, 0.05), (12, 0.2), (18, 0.0083)])
def test_it_never_misses_more_often_than_alpha_by_full_enumeration(samples: int, alpha: float) -> None:
    lost, gained = outcomes(samples)
    bounds = np.array(
        [exact_drop_bound(a, b, samples, alpha) for a, b in zip(lost.tolist(), gained.tolist(), strict=True)]
    )
    missed = worst_miss(samples, bounds, lost, gained)
    assert missed <= alpha
    # And it is not merely safe: some rates use nearly all of alpha.
    assert missed >= 0.9 * alpha


@pytest.mark.parametrize(("samples", "limit"), [(598, 0.005), (299, 0.01), (600, 0.005), (300, 0.01)])
def test_no_flip_certifies_what_the_rule_of_three_says(samples: int, limit: float) -> None:
    bound = exact_drop_bound(0, 0, samples, 0.05)
    assert bound == pytest.approx(1 - 0.05 ** (1 / samples), rel=1e-5)
    assert bound <= limit < exact_drop_bound(0, 0, samples - 3, 0.05)


@pytest.mark.parametrize("alpha", [0.1, 0.025, 0.004, 1e-4])
@pytest.mark.parametrize("samples", [10, 600, 60_000])
def test_no_flip_is_bounded_as_by_clopper_and_pearson_at_any_alpha(samples: int, alpha: float) -> None:
    independent = stats.binomtest(0, samples).proportion_ci(1 - 2 * alpha, method="exact").high
    assert exact_drop_bound(0, 0, samples, alpha) == pytest.approx(independent, rel=1e-5)


@pytest.mark.parametrize(("count", "samples"), [(0, 50), (7, 50), (50, 50), (300, 60_000)])
def test_clopper_pearson_agrees_with_scipys(count: int, samples: int) -> None:
    interval = stats.binomtest(count, samples).proportion_ci(0.9, method="exact")
    assert clopper_pearson_bounds(count, samples, 0.05) == pytest.approx((interval.low, interval.high), rel=1e-9)


@pytest.mark.parametrize(
    ("lost", "gained", "samples"), [(1, 0, 600), (3, 1, 600), (10, 5, 1000), (40, 30, 5000), (200, 180, 20_000)]
)
def test_it_is_tighter_than_two_clopper_pearson_bounds_that_share_alpha(
    lost: int, gained: int, samples: int
) -> None:
    split = clopper_pearson_bounds(lost, samples, 0.025)[1] - clopper_pearson_bounds(gained, samples, 0.025)[0]
    drop = (lost - gained) / samples
    assert exact_drop_bound(lost, gained, samples, 0.05) - drop < 0.87 * (split - drop)


def test_with_many_flips_it_comes_close_to_the_likelihood_ratio() -> None:
    exact, approximate = exact_drop_bound(300, 250, 60_000, 0.05), likelihood_ratio_limit(300, 250, 60_000, 0.05)
    assert exact >= approximate
    assert exact - 50 / 60_000 < 1.01 * (approximate - 50 / 60_000)


def test_wald_certifies_falsely_where_the_exact_bound_does_not() -> None:
    # The true drop is the limit of 0.5 pp itself, so every certificate is false; chances are summed exactly.
    samples, alpha, limit, gain = 600, 0.05, 0.005, 0.0005
    lost, gained = (grid.ravel() for grid in np.mgrid[0:25, 0:6])
    chances = stats.multinomial.pmf(
        np.stack([lost, gained, samples - lost - gained], axis=1),
        samples,
        [limit + gain, gain, 1 - limit - 2 * gain],
    )
    drop = (lost - gained) / samples
    wald = drop + stats.norm.isf(alpha) * np.sqrt(((lost + gained) / samples - drop**2) / samples)
    exact = np.array(
        [exact_drop_bound(a, b, samples, alpha) for a, b in zip(lost.tolist(), gained.tolist(), strict=True)]
    )
    assert 0.15 <= chances[wald <= limit].sum() <= 0.22
    assert chances[exact <= limit].sum() <= alpha


@pytest.mark.parametrize(("lost", "gained"), [(300, 250), (0, 400), (400, 0), (2, 1)])
def test_sixty_thousand_samples_take_less_than_a_second(lost: int, gained: int) -> None:
    started = time.process_time()
    exact_drop_bound(lost, gained, 60_000, 0.025)
    assert time.process_time() - started < 1


@pytest.mark.parametrize(
    ("lost", "gained", "samples", "alpha"), [(-1, 0, 5, 0.05), (3, 3, 5, 0.05), (0, 0, 5, 0.7)]
)
def test_impossible_counts_are_refused(lost: int, gained: int, samples: int, alpha: float) -> None:
    with pytest.raises(ValueError, match=r"samples|alpha"):
        exact_drop_bound(lost, gained, samples, alpha)


def test_losing_everything_is_bounded_by_one() -> None:
    assert exact_drop_bound(7, 0, 7, 0.05) == 1.0
