"""Weights as integers: never zero steps, errors of half a step, better steps where integers are few."""

import numpy as np
import pytest

from edgewright.compress.quantize.weight_quantizer import channel_scales, quantize_weights

RANDOM = np.random.default_rng(1)


def test_the_largest_weight_of_every_channel_is_exact() -> None:
    weights = RANDOM.standard_normal((5, 4, 3)).astype(np.float32)
    codes = quantize_weights(weights, (0,), 127)
    assert codes.scales.shape == (5, 1, 1)
    assert codes.integers.dtype == np.int8
    assert np.abs(codes.integers).reshape(5, -1).max(axis=1).tolist() == [127] * 5
    largest = np.abs(weights).reshape(5, -1).max(axis=1)
    np.testing.assert_allclose(np.abs(codes.dequantize()).reshape(5, -1).max(axis=1), largest, rtol=1e-6)


def test_one_step_for_all_without_axes() -> None:
    weights = RANDOM.standard_normal((5, 4)).astype(np.float32)
    assert quantize_weights(weights, (), 127).scales.shape == (1, 1)


def test_peaks_beyond_a_byte_are_stored_in_two() -> None:
    assert quantize_weights(np.array([1, -1, 0.5], np.float32), (), 644).integers.dtype == np.int16
    assert quantize_weights(np.array([1, -1, 0.5], np.float32), (), 644).integers.tolist() == [644, -644, 322]


def test_a_dead_channel_stays_exactly_zero() -> None:
    weights = np.array([[0, 0, 0], [1, 2, 3]], np.float32)
    codes = quantize_weights(weights, (0,), 127)
    assert codes.scales[0, 0] == 1
    assert codes.dequantize()[0].tolist() == [0, 0, 0]


@pytest.mark.parametrize("peak", [1, 7, 127, 23169])
def test_weights_near_the_smallest_float_have_steps_above_zero(peak: int) -> None:
    weights = np.array([1e-45, -3e-45, 0], np.float32)
    codes = quantize_weights(weights, (), peak)
    assert (codes.scales > 0).all()
    assert np.abs(codes.integers.astype(int)).max() <= peak
    assert np.isfinite(codes.dequantize()).all()


def test_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        channel_scales(np.array([1, np.nan], np.float32), (), 127)


@pytest.mark.parametrize("peak", [1, 2, 4, 10, 17])
def test_few_integers_have_less_squared_error_than_the_step_of_the_largest_weight(peak: int) -> None:
    weights = RANDOM.standard_normal((6, 400)).astype(np.float32)
    steps = channel_scales(weights, (0,), peak)
    naive = np.clip(np.round(weights / steps), -peak, peak) * steps
    chosen = quantize_weights(weights, (0,), peak).dequantize()
    assert np.square(chosen - weights).sum() < np.square(naive - weights).sum()


def test_important_weights_are_kept_more_exactly() -> None:
    weights = RANDOM.standard_normal((1, 500)).astype(np.float32)
    weights[0, 0] = 8
    importance = np.ones((1, 500))
    importance[0, 0] = 1e4
    plain, weighted = quantize_weights(weights, (0,), 3), quantize_weights(weights, (0,), 3, importance=importance)
    assert abs(weighted.dequantize()[0, 0] - 8) < abs(plain.dequantize()[0, 0] - 8)
