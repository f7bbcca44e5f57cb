import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from edgewright.stats.cohort_tests import (
    CohortVerdict,
    RateEstimate,
    cohort_calibration,
    cohort_contrasts,
    cohort_rate,
    compare_cohorts,
    contrast_power,
    noised_rate,
    null_covariance,
    pooled_p_value,
    preset_shifts,
    rate_difference,
)

Floats = NDArray[np.float64]
SHARES = np.full(16, 1 / 16)
SIGMA = 30.0


def noised(shares: Floats, cohorts: int, random: np.random.Generator, concentration: float = 30.0) -> Floats:
    """Sums of cohorts of 40 devices with 100 observations each; a lower concentration lets devices differ more."""
    devices = random.dirichlet(shares * concentration, size=(cohorts, 40))
    counts = random.multinomial(100, devices).sum(axis=1)
    return np.asarray(counts + random.normal(0, SIGMA, counts.shape))


def alarms(cohorts: int, n_ref: int, shifted: Floats, runs: int, *, assumed: float | None = None) -> float:
    found = 0
    for seed in range(runs):
        random = np.random.default_rng(seed)
        reference = random.multinomial(n_ref, SHARES) / n_ref
        sums = noised(SHARES + shifted, cohorts, random)
        p = compare_cohorts(
            sums, reference, reference_count=assumed or n_ref, noise_sd=SIGMA, shift_size=0.05
        ).p_value
        found += p <= 0.05
    return found / runs


def test_the_covariance_is_that_of_noised_sums_about_a_sampled_reference() -> None:
    random, total, n_ref, sigma = np.random.default_rng(0), 900, 600, 7.0
    shares = np.array([0.5, 0.3, 0.15, 0.05])
    seen = random.multinomial(total, shares, size=40_000) + random.normal(0, sigma, (40_000, 4))
    told = total * random.multinomial(n_ref, shares, size=40_000) / n_ref
    assert np.cov((seen - told).T) == pytest.approx(null_covariance(shares, total, n_ref, sigma), rel=0.06, abs=10)


def test_with_an_exact_reference_it_is_hotellings_test() -> None:
    sums = noised(SHARES, 20, np.random.default_rng(1))
    found = compare_cohorts(sums, SHARES, reference_count=1e15, noise_sd=SIGMA, shift_size=0.05)
    moved = (sums / sums.sum(axis=1, keepdims=True) - SHARES) @ cohort_contrasts(SHARES).T
    t_squared = 20 * moved.mean(axis=0) @ np.linalg.inv(np.cov(moved.T)) @ moved.mean(axis=0)
    expected = stats.f.sf(t_squared * (20 - 4) / (4 * 19), 4, 20 - 4)
    assert found.p_value == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("cohorts", "n_ref"), [(16, 2000), (64, 2000), (64, 20_000)])
def test_devices_that_differ_harmlessly_rarely_alarm(cohorts: int, n_ref: int) -> None:
    # 12 or more of 100 at a rate of .05 have a chance of .004.
    assert alarms(cohorts, n_ref, np.zeros(16), 100) < 0.12


def test_the_references_own_error_left_out_alarms_on_most_fleets() -> None:
    assert alarms(64, 2000, np.zeros(16), 40, assumed=1e12) > 0.5


def test_a_chi_square_of_the_total_alarms_on_devices_that_differ() -> None:
    found = [
        pooled_p_value(
            noised(SHARES, 25, np.random.default_rng(seed), 8.0).sum(axis=0),
            SHARES,
            reference_count=1e9,
            noise_sd=5 * SIGMA,
        )
        for seed in range(40)
    ]
    assert np.mean(np.array(found) <= 0.05) > 0.5


def test_a_chi_square_of_the_total_is_right_for_devices_that_are_alike() -> None:
    found = []
    for seed in range(300):
        random = np.random.default_rng(seed)
        reference = random.multinomial(5000, SHARES) / 5000
        sums = random.multinomial(20_000, SHARES) + random.normal(0, SIGMA, 16)
        found.append(pooled_p_value(sums, reference, reference_count=5000, noise_sd=SIGMA))
    assert stats.kstest(found, "uniform").pvalue > 0.001


@pytest.mark.parametrize("shape", [0, 1])
def test_shifts_are_found_about_as_often_as_the_stated_power_says(shape: int) -> None:
    stated, hits = [], 0
    for seed in range(80):
        random = np.random.default_rng(seed)
        reference = random.multinomial(2000, SHARES) / 2000
        sums = noised(SHARES + preset_shifts(SHARES, 0.035)[shape], 20, random)
        found = compare_cohorts(sums, reference, reference_count=2000, noise_sd=SIGMA, shift_size=0.035)
        stated.append(found.power)
        hits += found.p_value <= 0.05
    assert 0.3 < np.mean(stated) < 0.7
    assert hits / 80 == pytest.approx(np.mean(stated), abs=0.17)


def test_few_cohorts_or_much_noise_are_too_few_devices_and_never_fine() -> None:
    random = np.random.default_rng(2)
    few = compare_cohorts(noised(SHARES, 11, random), SHARES, reference_count=1e5, noise_sd=SIGMA, shift_size=0.05)
    assert few.verdict is CohortVerdict.TOO_FEW_DEVICES
    assert few.describe.startswith("too few devices to detect a shift of 0.05")
    drowned = compare_cohorts(
        noised(SHARES, 40, random) + random.normal(0, 900, (40, 16)),
        SHARES,
        reference_count=1e5,
        noise_sd=900,
        shift_size=0.05,
    )
    assert (drowned.verdict, drowned.testable_cohorts) == (CohortVerdict.TOO_FEW_DEVICES, 0) or drowned.power < 0.5
    small = compare_cohorts(
        noised(SHARES, 40, random), SHARES, reference_count=1e5, noise_sd=SIGMA, shift_size=0.005
    )
    assert small.verdict is CohortVerdict.TOO_FEW_DEVICES
    assert small.detectable_shift is not None
    assert small.detectable_shift > 0.005


def test_enough_cohorts_say_which_size_is_excluded() -> None:
    found = compare_cohorts(
        noised(SHARES, 64, np.random.default_rng(3)), SHARES, reference_count=1e5, noise_sd=SIGMA, shift_size=0.05
    )
    assert found.verdict is CohortVerdict.NO_SHIFT
    assert found.detectable_shift is not None
    assert found.detectable_shift < 0.05
    assert "no shift of 0.05 or more" in found.describe
    drifted = noised(SHARES + preset_shifts(SHARES, 0.1)[0], 64, np.random.default_rng(3))
    assert (
        compare_cohorts(drifted, SHARES, reference_count=1e5, noise_sd=SIGMA, shift_size=0.05).verdict
        is CohortVerdict.DRIFT
    )


def test_a_bin_that_nobody_fills_does_no_harm() -> None:
    shares = np.append(np.full(15, 1 / 15), 0.0)
    random = np.random.default_rng(4)
    sums = random.multinomial(4000, shares, size=20).astype(np.float64)
    found = compare_cohorts(sums, shares, reference_count=1e5, noise_sd=0.0, shift_size=0.05)
    assert found.p_value > 0.001
    sums[:, -1] += 300
    assert (
        compare_cohorts(sums, shares, reference_count=1e5, noise_sd=0.0, shift_size=0.05).verdict
        is CohortVerdict.DRIFT
    )


@pytest.mark.parametrize("size", [0.01, 0.2])
def test_preset_shifts_are_of_the_stated_total_variation(size: float) -> None:
    for change in preset_shifts(SHARES, size):
        assert change.sum() == pytest.approx(0, abs=1e-12)
        assert np.abs(change).sum() / 2 == pytest.approx(size)
        assert (SHARES + change >= -1e-12).all()


def test_power_grows_with_devices_and_shift() -> None:
    covariance = np.eye(4) * 1e-4
    grid = [contrast_power(covariance, 30, np.array([step, 0, 0, 0]), 0.05) for step in (0.0, 0.01, 0.03, 0.06)]
    assert grid[0] == pytest.approx(0.05, abs=1e-3)
    assert grid == sorted(grid)
    assert contrast_power(covariance, 8, np.array([0.03, 0, 0, 0]), 0.05) < grid[2]
    assert contrast_power(covariance, 4, np.array([0.03, 0, 0, 0]), 0.05) == 0


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="shares"):
        compare_cohorts(np.ones((20, 15)), SHARES, reference_count=10, noise_sd=1, shift_size=0.1)


@pytest.mark.parametrize("true", [0.02, 0.5, 0.97])
@pytest.mark.parametrize("count", [100, 2000])
def test_intervals_of_rates_include_the_noise(true: float, count: int) -> None:
    random, held, ignored, runs = np.random.default_rng(5), 0, 0, 1000
    for _ in range(runs):
        hits, total = random.binomial(count, true) + random.normal(0, 10), count + random.normal(0, 10)
        found = noised_rate(hits, total, noise_sd=10)
        held += found.low <= true <= found.high
        bare = noised_rate(hits, total, noise_sd=0)
        ignored += bare.low <= true <= bare.high
    assert held / runs >= 0.93
    assert ignored < held


def test_without_noise_it_is_wilsons_interval() -> None:
    expected = stats.binomtest(7, 40).proportion_ci(method="wilson")
    assert (noised_rate(7, 40, noise_sd=0).low, noised_rate(7, 40, noise_sd=0).high) == pytest.approx(
        (expected.low, expected.high)
    )


@pytest.mark.parametrize("count", [-5.0, 0.0, 39.0])
def test_counts_within_their_noise_are_not_divided_by(count: float) -> None:
    refused = noised_rate(3, count, noise_sd=10)
    assert refused.value is None
    assert "noise" in refused.reason
    assert rate_difference(RateEstimate(0.5, 0.4, 0.6), refused) == RateEstimate(None, -1.0, 1.0, refused.reason)


def test_a_difference_of_subgroups_is_covered_and_seen() -> None:
    random, held, seen = np.random.default_rng(6), 0, 0
    for _ in range(600):
        one, other = (
            noised_rate(random.binomial(800, p) + random.normal(0, 8), 800 + random.normal(0, 8), noise_sd=8)
            for p in (0.6, 0.4)
        )
        gap = rate_difference(one, other)
        held += gap.low <= 0.2 <= gap.high
        seen += gap.low > 0
    assert held / 600 >= 0.93
    assert seen / 600 > 0.95


def test_devices_that_differ_widen_the_interval_of_cohorts() -> None:
    random, held, alone = np.random.default_rng(7), 0, 0
    for _ in range(400):
        # Every device is right as often as its owner's data allow: 40 observations each hang together.
        own = random.beta(3, 2, size=(24, 20))
        hits = random.binomial(40, own).sum(axis=1) + random.normal(0, 5, 24)
        counts = np.full(24, 800.0) + random.normal(0, 5, 24)
        found = cohort_rate(hits, counts, noise_sd=5)
        held += found.low <= 0.6 <= found.high
        pooled = noised_rate(hits.sum(), counts.sum(), noise_sd=5 * 24**0.5)
        alone += pooled.low <= 0.6 <= pooled.high
    assert held / 400 >= 0.92
    assert alone / 400 < 0.6
    assert cohort_rate([1.0, 2.0], [3.0, 4.0], noise_sd=50).value is None


def test_calibration_error_is_found_where_confidence_lies_and_only_there() -> None:
    random, n = np.random.default_rng(8), np.full(10, 2000)
    said = np.linspace(0.1, 0.95, 10)
    bounds = {}
    for name, true in {"honest": said, "boastful": said - 0.1 * (said > 0.5)}.items():
        right = random.binomial(n, true) + random.normal(0, 20, 10)
        found = cohort_calibration(
            n + random.normal(0, 20, 10),
            n * said + random.normal(0, 20, 10),
            right,
            noise_sd=20,
            confidence_noise_sd=20,
        )
        assert found is not None
        actual = float(np.abs(said - true).mean())
        assert found.ece_low <= actual <= found.ece_high
        bounds[name] = found
    assert bounds["honest"].ece_low == 0
    assert bounds["honest"].ece < 0.01
    assert bounds["boastful"].ece_low > 0.02
    assert (
        cohort_calibration(np.full(10, 5.0), np.ones(10), np.ones(10), noise_sd=20, confidence_noise_sd=20) is None
    )
