"""Encoding keeps every norm, exactly, and no sum of honest devices wraps around."""

import hashlib
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import linalg

from edgewright.contract.errors import DataError, InputError
from edgewright.contract.query.query import NoiseKind
from edgewright.privacy.accountant import rounded_l2_squared_bound
from edgewright.privacy.encoding import (
    ValueRange,
    center_modular,
    clip_counts,
    clip_norm,
    conditional_stochastic_round,
    count_sum_range,
    project,
    rotate,
    unproject,
    unrotate,
    vector_sum_range,
    weighted_mean,
    weighted_vector,
)
from edgewright.privacy.noise import draw_noise

SEED = hashlib.sha256(b"a seed").digest()
_Floats = NDArray[np.float64]


def vectors(size: int, number: int, shape: str) -> _Floats:
    """Directions that are even, random, one spike, few spikes, or a row of a Hadamard matrix."""
    random = np.random.default_rng(number)
    if shape == "spike":
        return np.asarray(np.eye(1, size, number % size)[0])
    if shape == "even":
        return np.ones(size) / math.sqrt(size)
    if shape == "row":
        largest = 1 << (size.bit_length() - 1)
        signs = linalg.hadamard(min(largest, 1024))[number % min(largest, 1024)].astype(float)
        return np.concatenate([signs, np.zeros(size - signs.size)])
    values = random.standard_normal(size) * (random.random(size) < (0.02 if shape == "few" else 1))
    return values if values.any() else np.asarray(np.eye(1, size)[0])


SHAPES = ["spike", "even", "row", "random", "few"]


@given(st.integers(1, 700), st.integers(0, 1000), st.sampled_from(SHAPES))
def test_a_rotation_keeps_norms_and_is_turned_back(size: int, number: int, shape: str) -> None:
    values = vectors(size, number, shape)
    turned = rotate(values, SEED)
    assert turned.shape == values.shape
    assert np.linalg.norm(turned) == pytest.approx(np.linalg.norm(values), rel=1e-12)
    np.testing.assert_allclose(unrotate(turned, SEED), values, atol=1e-12 * float(np.linalg.norm(values)))


def test_the_fast_transform_is_scipy_s_hadamard_matrix() -> None:
    for size in (2, 8, 64, 128, 512):
        matrix = np.stack([rotate(row, SEED) for row in np.eye(size)])
        signs = np.sign(matrix[:, :1])
        np.testing.assert_allclose(matrix * signs, linalg.hadamard(size) / math.sqrt(size), atol=1e-12)
        assert size < 64 or 0.25 < (signs < 0).mean() < 0.75


@pytest.mark.parametrize("size", [100, 1000, 5000, 65_537])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_rotation_spreads_what_is_uneven_over_half_of_the_coordinates_at_least(size: int, shape: str) -> None:
    turned = rotate(clip_norm(1e9 * vectors(size, 3, shape), 1.0), SEED)
    largest = 1 << (size.bit_length() - 1)
    assert np.abs(turned).max() <= math.sqrt(2 * math.log(4 * size / 1e-6) / largest)


def test_other_seeds_turn_otherwise() -> None:
    values = vectors(300, 1, "random")
    other = hashlib.sha256(b"another seed").digest()
    assert not np.allclose(rotate(values, SEED), rotate(values, other))
    assert not np.allclose(project(values, 10, SEED), project(values, 10, other))


def test_a_projection_is_turned_back_without_bias() -> None:
    values = vectors(60, 5, "random")
    seeds = [hashlib.sha256(f"{number}".encode()).digest() for number in range(2000)]
    estimates = np.stack([unrotate(unproject(project(rotate(values, s), 12, s), 60, s), s) for s in seeds])
    error = (estimates.mean(axis=0) - values) / (estimates.std(axis=0) / math.sqrt(len(seeds)))
    # 60 standard normal errors.
    assert 30 < (error**2).sum() < 105


@given(st.integers(1, 300), st.integers(1, 300))
def test_a_projection_of_a_projection_restored_is_a_multiple(length: int, size: int) -> None:
    size = min(size, length)
    values = np.arange(1.0, size + 1)
    again = project(unproject(values, length, SEED), size, SEED)
    buckets = np.bincount(np.arange(length) % size, minlength=size)
    np.testing.assert_allclose(again, values * buckets)


@settings(max_examples=300)
@given(
    st.integers(1, 400),
    st.floats(1.0, 5000.0),
    st.sampled_from(SHAPES),
    st.integers(0, 10**6),
    st.floats(0.5, 3.0),
)
def test_no_encoded_vector_is_longer_than_the_accountant_is_told(
    size: int, clip: float, shape: str, number: int, length: float
) -> None:
    bound = rounded_l2_squared_bound(clip, size)
    values = vectors(size, number, shape)
    encoded = conditional_stochastic_round(
        clip_norm(values * (length * clip / np.linalg.norm(values)), clip), bound
    )
    # In Python's integers: nothing overflows or is rounded.
    assert sum(int(value) ** 2 for value in encoded) <= bound
    assert bound <= (clip + math.sqrt(size)) ** 2


def test_rounding_after_the_clip_alone_would_break_the_norm() -> None:
    # What the repetition is for: at 10,000 values a norm of 10 becomes one of several times as much.
    random = np.random.default_rng(0)
    values = clip_norm(random.standard_normal(10_000), 10.0)
    rounded = np.floor(values) + (random.random(values.size) < values - np.floor(values))
    assert np.linalg.norm(rounded) > 25
    assert rounded_l2_squared_bound(10.0, 10_000) > np.linalg.norm(rounded) ** 2


def test_a_vector_whose_rounding_chance_denies_is_rounded_towards_zero() -> None:
    values = np.full(100, 0.9)
    # Always up: never within the bound.
    encoded = conditional_stochastic_round(values, 99, lambda count: b"\0" * count)
    assert not encoded.any()
    with pytest.raises(ValueError, match="no rounding"):
        conditional_stochastic_round(np.full(100, 1.5), 99, lambda count: b"\0" * count)


def test_rounding_is_without_bias() -> None:
    values = np.linspace(-3, 3, 25)
    mean = np.mean([conditional_stochastic_round(values, 10_000) for _ in range(20_000)], axis=0)
    assert np.abs(mean - values).max() < 5 * 0.5 / math.sqrt(20_000)


def test_whole_numbers_are_not_rounded() -> None:
    values = np.array([3.0, -4.0, 0.0])
    assert list(conditional_stochastic_round(values, 25, lambda count: b"")) == [3, -4, 0]


def test_counts_above_the_clip_keep_their_shape_and_add_up_to_it() -> None:
    assert list(clip_counts(np.array([-5.0, 0.0, 2.5, 7.5]), 1.0, 4.0)) == [0, 0, 1, 3]
    assert list(clip_counts(np.array([5000.0, 2500.0, 2500.0]), 2.0, 100.0)) == [50, 25, 25]
    assert list(clip_counts(np.array([1.0, 0.0, 2.0]), 2.0, 100.0)) == [2, 0, 4]
    assert list(clip_counts(np.zeros(2), 2.0, 100.0)) == [0, 0]


@given(st.lists(st.floats(-1e308, 1e308), min_size=1, max_size=20), st.floats(1e-6, 1e6), st.integers(1, 1 << 30))
def test_whatever_the_counts_they_never_add_up_to_more_than_the_clip(
    counts: list[float], scale: float, most: int
) -> None:
    found = clip_counts(np.array(counts), scale, float(most))
    assert (found >= 0).all()
    assert found.max() <= most
    assert found.sum() <= most * (1 + 1e-12)


def test_a_weighted_sum_that_is_clipped_jointly_is_still_a_mean() -> None:
    vector = np.array([3.0, -1.0])
    clipped = clip_norm(weighted_vector(vector, 5.0, 8.0), 1.0)
    assert np.linalg.norm(clipped) == pytest.approx(1.0)
    np.testing.assert_allclose(weighted_mean(clipped, 0.01), vector)
    assert weighted_vector(vector, 50.0, 8.0)[-1] == 8


@pytest.mark.parametrize("weight", [3.99, -3.99, 0.0, -400.0, float("nan")])
def test_nothing_is_divided_by_a_weight_that_may_be_noise(weight: float) -> None:
    with pytest.raises(DataError, match="summed weight"):
        weighted_mean(np.array([1.0, weight]), 1.0)
    assert weighted_mean(np.array([8.0, 4.0]), 1.0) == 2


@pytest.mark.parametrize("weight", [-1.0, float("nan")])
def test_a_weight_is_no_less_than_zero(weight: float) -> None:
    with pytest.raises(DataError, match="weight"):
        weighted_vector(np.ones(2), weight, 1.0)


@given(st.integers(2, 32), st.data())
def test_what_lies_in_the_span_comes_back(bits: int, data: st.DataObject) -> None:
    low = data.draw(st.integers(-(1 << 31), 0))
    values = np.array(data.draw(st.lists(st.integers(low, low + (1 << bits) - 1), min_size=1, max_size=20)))
    wrapped = (values % (1 << bits)).astype(np.uint32)
    assert (center_modular(wrapped, bits, low) == values).all()


@given(st.integers(0, 1 << 30), st.integers(1, 1 << 30))
def test_the_width_is_the_least_that_tells_all_sums_apart(down: int, up: int) -> None:
    span = ValueRange(-down, up)
    assert 1 << span.bits >= up + down + 1
    assert span.bits == 2 or 1 << (span.bits - 1) < up + down + 1


def test_a_sum_that_32_bits_do_not_hold_is_refused() -> None:
    with pytest.raises(InputError, match="33 bits"):
        ValueRange(-(1 << 31), 1 << 31)


@settings(max_examples=150)
@given(
    most=st.integers(1, 500),
    size=st.integers(1, 64),
    devices=st.integers(2, 30),
    sigma=st.floats(1.5, 40.0),
    noise=st.sampled_from(["gaussian", "skellam"]),
)
def test_no_sum_of_counts_wraps(most: int, size: int, devices: int, sigma: float, noise: NoiseKind) -> None:
    span = count_sum_range(most, size=size, devices=devices, noise=noise, sigma=sigma, failure_probability=1e-9)
    # All at the clip, or all at zero: the two ends.
    for counts in (0, most):
        total = devices * counts + draw_noise(noise, sigma, devices * size).reshape(devices, size).sum(axis=0)
        assert span.low <= total.min()
        assert total.max() <= span.high
        assert (center_modular((total % (1 << span.bits)).astype(np.uint32), span.bits, span.low) == total).all()


@settings(max_examples=150)
@given(
    clip=st.floats(1.0, 3000.0),
    length=st.integers(1, 300),
    share=st.floats(0, 1),
    devices=st.integers(2, 20),
    sigma=st.floats(1.5, 40.0),
    noise=st.sampled_from(["gaussian", "skellam"]),
    shape=st.sampled_from(SHAPES),
    number=st.integers(0, 10**6),
)
def test_no_sum_of_vectors_wraps_even_if_all_are_the_same_and_of_the_greatest_norm(
    clip: float, length: int, share: float, devices: int, sigma: float, noise: NoiseKind, shape: str, number: int
) -> None:
    projected = int(share * (length - 1))
    size = projected or length
    squared = rounded_l2_squared_bound(clip, size)
    span = vector_sum_range(
        clip,
        squared,
        length=length,
        projected_size=projected,
        devices=devices,
        noise=noise,
        sigma=sigma,
        failure_probability=1e-9,
    )
    seed = hashlib.sha256(f"{number}".encode()).digest()
    turned = rotate(clip_norm(1e9 * vectors(length, number, shape), clip), seed)
    encoded = clip_norm(project(turned, projected, seed) if projected else turned, clip)
    total = np.sum(
        [conditional_stochastic_round(encoded, squared) + draw_noise(noise, sigma, size) for _ in range(devices)],
        axis=0,
    )
    assert span.low <= total.min()
    assert total.max() <= span.high


def test_a_seed_that_is_known_beforehand_gives_at_most_the_norm() -> None:
    # The other bound of the solver: whatever the direction, no coordinate of a rounded vector is above its norm.
    span = vector_sum_range(
        50.0,
        rounded_l2_squared_bound(50.0, 2),
        length=2,
        projected_size=0,
        devices=10,
        noise="gaussian",
        sigma=1.5,
        failure_probability=1e-9,
    )
    along = unrotate(np.array([50.0, 0.0]), SEED)
    total = 10 * conditional_stochastic_round(rotate(along, SEED), rounded_l2_squared_bound(50.0, 2))
    assert np.abs(total).max() >= 490
    assert span.high >= total.max()


def test_a_rotation_saves_bits() -> None:
    keys: dict[str, Any] = {
        "projected_size": 0,
        "devices": 100,
        "noise": "gaussian",
        "sigma": 2.0,
        "failure_probability": 1e-9,
    }
    long = vector_sum_range(1000.0, rounded_l2_squared_bound(1000.0, 10**6), length=10**6, **keys)
    short = vector_sum_range(1000.0, rounded_l2_squared_bound(1000.0, 4), length=4, **keys)
    assert long.bits <= 13 < short.bits
