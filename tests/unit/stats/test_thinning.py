from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from edgewright.stats.histograms import bin_index, count_by_bin, quantile_edges
from edgewright.stats.thinning import (
    DependenceCheck,
    TemporalThinning,
    choose_thinning,
    is_dependent,
    new_dependence_check,
    overdispersion,
    pick_rows,
    update_dependence_check,
)

DATA = Path(__file__).parents[4] / "shared" / "data" / "fashion_mnist.npz"
ROWS = 20_000

Floats = NDArray[np.float64]


def independent(random: np.random.Generator) -> Floats:
    return random.normal(size=(ROWS, 3))


def repeated(random: np.random.Generator) -> Floats:
    return np.repeat(random.normal(size=(ROWS // 5, 3)), 5, axis=0)


def regimes(random: np.random.Generator) -> Floats:
    return np.repeat(random.normal(size=(ROWS // 500, 3)), 500, axis=0) + 0.5 * random.normal(size=(ROWS, 3))


def wandering(random: np.random.Generator) -> Floats:
    noise = random.normal(size=(ROWS, 3))
    stream = noise.copy()
    for row in range(1, ROWS):
        stream[row] = 0.9 * stream[row - 1] + np.sqrt(1 - 0.9**2) * noise[row]
    return stream


def chosen(stream: Floats) -> TemporalThinning:
    return choose_thinning([bin_index(stream, quantile_edges(stream))])


def checked(calibration: Floats, stream: Floats, batch: int = 64) -> DependenceCheck:
    edges = quantile_edges(calibration)
    state = new_dependence_check(count_by_bin(calibration, edges))
    places = bin_index(stream, edges)
    for start in range(0, len(places), batch):
        state = update_dependence_check(state, places[start : start + batch])
    return state


def test_independent_observations_are_all_taken() -> None:
    steps = [chosen(independent(np.random.default_rng(seed))).step for seed in range(10)]
    assert steps.count(1) >= 9


def test_frames_repeated_five_times_are_taken_once() -> None:
    for seed in range(10):
        found = chosen(repeated(np.random.default_rng(seed)))
        assert (found.step, found.is_testable, found.episodes) == (5, True, ROWS // 5)


def test_regimes_of_five_hundred_frames_cannot_be_tested() -> None:
    for seed in range(10):
        found = chosen(regimes(np.random.default_rng(seed)))
        assert not found.is_testable
        assert found.overdispersion > 2


def test_regimes_can_be_tested_once_a_regime_where_there_are_enough_of_them() -> None:
    random = np.random.default_rng(0)
    stream = np.repeat(random.normal(size=(1200, 1)), 20, axis=0) + 0.1 * random.normal(size=(24_000, 1))
    found = chosen(stream)
    assert found.is_testable
    assert 15 <= found.step <= 40


def test_a_stream_that_wanders_is_thinned_until_little_of_it_is_left() -> None:
    found = chosen(wandering(np.random.default_rng(1)))
    assert found.is_testable
    # The correlation of what is taken.
    assert 0.9**found.step < 0.25


def test_streams_of_several_devices_are_not_taken_for_one_with_regimes() -> None:
    random = np.random.default_rng(2)
    streams = [random.normal(size=(2000, 2)) + random.normal(size=2) for _ in range(8)]
    edges = quantile_edges(np.concatenate(streams))
    assert choose_thinning([bin_index(stream, edges) for stream in streams]).step == 1
    assert not choose_thinning([bin_index(np.concatenate(streams), edges)]).is_testable


def test_scatter_is_the_number_of_repeats() -> None:
    places = np.repeat(np.random.default_rng(3).integers(0, 16, size=(4000, 1)), 6, axis=0)
    assert overdispersion([places])[0] == pytest.approx(6, rel=0.25)


def test_the_device_finds_dependence_that_the_calibration_stream_hid() -> None:
    random = np.random.default_rng(4)
    calibration = independent(random)
    for stream in (repeated(random), regimes(random), wandering(random)):
        assert is_dependent(checked(calibration, stream))


@pytest.mark.parametrize("change", ["none", "sudden", "gradual"])
def test_neither_independence_nor_a_lasting_change_is_taken_for_dependence(change: str) -> None:
    wrong = 0
    for seed in range(10):
        random = np.random.default_rng(seed)
        stream = independent(random)
        if change == "sudden":
            stream[ROWS // 3 :] += 1
        if change == "gradual":
            stream += np.linspace(0, 1.5, ROWS)[:, None]
        wrong += is_dependent(checked(independent(random), stream))
    assert wrong <= 1


def test_the_check_does_not_depend_on_how_batches_fall() -> None:
    random = np.random.default_rng(5)
    calibration, stream = independent(random), regimes(random)[:3000]
    one, other = checked(calibration, stream, batch=7), checked(calibration, stream, batch=3000)
    assert one.observations == other.observations
    assert one.compared_pairs.tolist() == [3000 // (2 * length) for length in (16, 64, 256)]
    assert (one.compared_pairs == other.compared_pairs).all()
    assert (one.differing_pairs == other.differing_pairs).all()
    assert (one.current_block == other.current_block).all()


def test_the_check_keeps_little() -> None:
    state = checked(independent(np.random.default_rng(6))[:, [0, 1, 2, 0, 1, 2, 0, 1]], np.zeros((10, 8)))
    assert (
        sum(
            each.nbytes
            for each in (state.quarter_of_bin, state.current_block, state.previous_block, state.differing_pairs)
        )
        < 2000
    )


def test_blocks_of_independent_observations_are_seldom_called_apart() -> None:
    # The limit is the chi-square's with 3 degrees of freedom; what is granted leaves room for its approximation.
    assert stats.chi2.sf(6.251, 3) == pytest.approx(0.1, abs=1e-4)
    state = checked(independent(np.random.default_rng(7)), independent(np.random.default_rng(8)))
    assert (state.differing_pairs.sum(axis=1) / (3 * state.compared_pairs) < 0.15).all()


@pytest.mark.parametrize("times", [False, True])
def test_rows_are_taken_a_step_apart_over_batches_of_any_size(times: bool) -> None:
    thinning = TemporalThinning(5, 0.4 if times else 0.0, True, 200, 1.0)
    taken, since, last, random = [], 5, -np.inf, np.random.default_rng(9)
    at = 0
    while at < 300:
        rows = int(random.integers(0, 12))
        clock = np.arange(at, at + rows) * 0.1 if times else None
        found = pick_rows(thinning, rows, since, clock, last)
        taken += [at + row for row in found]
        since = rows - 1 - found[-1] if found else since + rows
        last = taken[-1] * 0.1 if taken else last
        at += rows
    assert taken == list(range(0, at, 5))


def test_a_gap_in_time_is_kept_and_a_clock_set_back_does_not_stop_the_stream() -> None:
    thinning = TemporalThinning(1, 10.0, True, 200, 1.0)
    assert pick_rows(thinning, 5, 1, [0.0, 4.0, 10.0, 11.0, 25.0]) == [0, 2, 4]
    assert pick_rows(thinning, 3, 1, [2.0, 3.0, 13.0], last_taken_at=1000.0) == [0, 2]


@pytest.mark.shared
@pytest.mark.skipif(not DATA.is_file(), reason="../shared/data is absent")
@pytest.mark.parametrize(
    ("order", "step", "testable"), [("shuffled", 1, True), ("repeated", 5, True), ("regimes", None, False)]
)
def test_real_images_in_three_orders(order: str, step: int | None, testable: bool) -> None:
    with np.load(DATA) as file:
        pixels, labels = file["X_test"].reshape(10_000, -1) / 255, file["y_test"]
    signals = np.column_stack([pixels.mean(axis=1), pixels.std(axis=1), pixels.max(axis=1)])
    orders: dict[str, Callable[[np.random.Generator], NDArray[np.int64]]] = {
        "shuffled": lambda random: random.permutation(10_000),
        "repeated": lambda random: np.repeat(random.permutation(10_000)[:2000], 5),
        "regimes": lambda random: np.concatenate(
            [random.choice(np.flatnonzero(labels == random.integers(10)), 500) for _ in range(20)]
        ),
    }
    found = chosen(signals[orders[order](np.random.default_rng(10))])
    assert found.is_testable == testable
    assert step is None or found.step == step
