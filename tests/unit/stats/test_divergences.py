import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats
from scipy.spatial.distance import jensenshannon

from edgewright.stats import divergences

COUNTS = hnp.arrays(np.int64, 8, elements=st.integers(0, 500)).filter(lambda counts: counts.sum() > 0)


@given(COUNTS, COUNTS)
def test_measures_are_those_of_scipy(one: np.ndarray, other: np.ndarray) -> None:
    found = divergences.histogram_divergences(one[None], other[None])
    p, q = one + 0.5, other + 0.5
    assert found.psi[0] == pytest.approx(stats.entropy(p, q) + stats.entropy(q, p), abs=1e-9)
    assert found.jensen_shannon[0] == pytest.approx(jensenshannon(one, other, base=2), abs=1e-6)
    bins = np.arange(8)
    assert found.wasserstein_bins[0] == pytest.approx(stats.wasserstein_distance(bins, bins, one, other), abs=1e-9)
    samples = np.repeat(bins, one), np.repeat(bins, other)
    assert found.kolmogorov_smirnov[0] == pytest.approx(
        stats.ks_2samp(*samples, method="asymp").statistic, abs=1e-9
    )
    used = np.stack([one, other])[:, one + other > 0]
    assert found.chi_square[0] == pytest.approx(stats.chi2_contingency(used, correction=False).statistic, abs=1e-6)


def test_positions_give_the_distance_in_units() -> None:
    positions = np.array([0.0, 1.0, 10.0])
    found = divergences.wasserstein_distance([4, 0, 0], [0, 1, 3], positions)
    assert found == pytest.approx(stats.wasserstein_distance(positions, positions, [4, 0, 0], [0, 1, 3]))


@given(COUNTS)
def test_a_histogram_is_not_apart_from_itself(counts: np.ndarray) -> None:
    found = divergences.histogram_divergences(counts[None], 3 * counts[None])
    for name in ("kolmogorov_smirnov", "chi_square", "jensen_shannon", "wasserstein_bins"):
        assert getattr(found, name)[0] == pytest.approx(0, abs=1e-6)


def test_a_fixed_limit_of_psi_alarms_for_small_samples_of_the_same_distribution() -> None:
    # Why it is a description and no gate: among 60 samples over 16 bins it is above .2 more often than not.
    random = np.random.default_rng(0)
    shares = np.full(16, 1 / 16)
    small = divergences.population_stability_index(
        random.multinomial(60, shares, size=200), random.multinomial(10_000, shares, size=200)
    )
    large = divergences.population_stability_index(
        random.multinomial(6000, shares, size=200), random.multinomial(10_000, shares, size=200)
    )
    assert np.mean(small > 0.2) > 0.5
    assert np.mean(large > 0.2) == 0
