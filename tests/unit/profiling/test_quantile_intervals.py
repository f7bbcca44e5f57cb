import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from edgewright.contract.measurement import MeasurementOrigin
from edgewright.profiling.quantile_intervals import median_interval, median_measurement, percentile_measurement

ORIGIN = MeasurementOrigin(kind="measured", machine="-", method="test")


@pytest.mark.parametrize("count", [6, 7, 20, 44, 101, 400, 999])
def test_the_interval_of_the_median_is_the_narrowest_that_reaches_its_confidence(count: int) -> None:
    low, high, reached = median_interval(count, 0.95)
    assert low + high == count - 1
    # Independent: scipy's binomial distribution.
    assert reached == pytest.approx(1 - 2 * stats.binom.cdf(low, count, 0.5), abs=1e-9)
    assert reached >= 0.95
    assert 1 - 2 * stats.binom.cdf(low + 1, count, 0.5) < 0.95


@pytest.mark.parametrize("count", [1000, 4000])
def test_large_samples_reach_their_confidence(count: int) -> None:
    low, _, _ = median_interval(count, 0.95)
    assert 1 - 2 * stats.binom.cdf(low, count, 0.5) >= 0.95


@given(st.integers(1, 2000), st.floats(0.5, 0.999))
def test_the_interval_of_the_median_stays_inside_the_sample(count: int, confidence: float) -> None:
    low, high, reached = median_interval(count, confidence)
    assert 0 <= low <= high <= count - 1
    assert 0 <= reached < 1


def test_too_few_values_admit_their_confidence() -> None:
    assert median_measurement([1.0, 2.0, 3.0], "s", ORIGIN).confidence == pytest.approx(0.75)
    assert median_measurement([1.0], "s", ORIGIN).low is None


def test_the_interval_of_a_percentile_covers_it_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    rounds = np.repeat(np.arange(40), 25)
    truth = -np.log(0.05)  # of the exponential distribution
    hits = 0
    for seed in range(60):
        figure = percentile_measurement(random.exponential(size=1000), rounds, 95, "s", ORIGIN, seed=seed)
        assert figure.low is not None
        assert figure.high is not None
        hits += figure.low <= truth <= figure.high
    assert hits >= 50


def test_rounds_that_differ_widen_the_interval() -> None:
    random = np.random.default_rng(0)
    rounds = np.repeat(np.arange(20), 50)
    steady = random.exponential(size=1000)
    drifting = steady + 3 * (rounds % 2)
    calm = percentile_measurement(steady, rounds, 50, "s", ORIGIN)
    moved = percentile_measurement(drifting, rounds, 50, "s", ORIGIN)
    assert calm.low is not None
    assert calm.high is not None
    assert moved.low is not None
    assert moved.high is not None
    assert moved.high - moved.low > 2 * (calm.high - calm.low)
