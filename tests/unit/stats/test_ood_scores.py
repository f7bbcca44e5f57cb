"""Scores are those of independent implementations, and nothing that is no number passes as usual."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy import ndimage, special

from edgewright.contract.model.guarantee import Guarantee
from edgewright.contract.model.ood_detector import FeatureSqueezing, LogitScore, OodRule
from edgewright.stats.calibration import softmax
from edgewright.stats.ood_scores import (
    is_out_of_distribution,
    logit_scores,
    ood_scorer,
    prediction_l1_distance,
    squeeze_features,
)

Arrays = dict[str, NDArray[Any]]
LOGITS = hnp.arrays(
    np.float32, st.tuples(st.integers(1, 6), st.integers(2, 12)), elements=st.floats(-1e4, 1e4, width=32)
)


@given(LOGITS)
def test_scores_of_any_logits_are_those_of_double_precision(logits: NDArray[np.float32]) -> None:
    energy, confidence, margin = logit_scores(logits)
    wide = logits.astype(np.float64)
    np.testing.assert_allclose(energy, -special.logsumexp(wide, axis=1), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(confidence, special.softmax(wide, axis=1).max(axis=1), rtol=1e-5)
    ordered = np.sort(wide, axis=1)
    np.testing.assert_allclose(margin, ordered[:, -1] - ordered[:, -2], rtol=1e-3, atol=1e-2)
    assert {energy.dtype, confidence.dtype, margin.dtype} == {np.dtype(np.float32)}


def test_rows_do_not_touch_each_other(digit_logits: Arrays) -> None:
    together = logit_scores(digit_logits["clean"])
    for row in range(20):
        for one, many in zip(logit_scores(digit_logits["clean"][row : row + 1]), together, strict=True):
            assert one[0] == pytest.approx(many[row], rel=1e-6)


def test_logarithms_of_probabilities_have_the_confidence_and_margin_of_logits(digit_logits: Arrays) -> None:
    logits = digit_logits["noisy"]
    given_ = logit_scores(np.log(softmax(logits)))
    np.testing.assert_allclose(given_.confidence, logit_scores(logits).confidence, rtol=1e-5)
    np.testing.assert_allclose(given_.margin, logit_scores(logits).margin, atol=1e-4)


def test_a_single_logit_is_yes_against_no() -> None:
    energy, confidence, margin = logit_scores(np.array([[2.0], [-2.0]], np.float32))
    np.testing.assert_allclose(confidence, special.expit([2.0, 2.0]), rtol=1e-6)
    np.testing.assert_allclose(margin, [2, 2])
    np.testing.assert_allclose(energy, -np.logaddexp(0, [2.0, -2.0]), rtol=1e-6)


@pytest.mark.parametrize("kind", ["energy", "confidence", "margin"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_number_is_unusual(kind: Any, bad: float) -> None:
    measure = LogitScore(kind)
    rule = OodRule(measure, 1e9, Guarantee("rejection", 0.01, 300, 0.95))
    logits = np.array([[1.0, 2.0, bad], [1.0, 2.0, 3.0]], np.float32)
    assert is_out_of_distribution(ood_scorer(measure)(logits), rule).tolist() == [True, False]


@pytest.mark.parametrize("kind", ["energy", "confidence", "margin"])
def test_noise_scores_higher_than_digits(digit_logits: Arrays, kind: Any) -> None:
    found = ood_scorer(LogitScore(kind))
    assert np.median(found(digit_logits["noisy"])) > np.median(found(digit_logits["clean"]))


@pytest.mark.parametrize("axes", [(-1,), (-2, -1)])
@pytest.mark.parametrize("window", [3, 5])
def test_the_median_is_scipys(digits: Arrays, axes: tuple[int, ...], window: int) -> None:
    size = [1, 1, 1, 1]
    for axis in axes:
        size[axis] = window
    wanted = ndimage.median_filter(digits["x"][:20], size=size, mode="nearest")
    given_ = squeeze_features(digits["x"][:20], FeatureSqueezing("image", window=window, axes=axes))
    np.testing.assert_array_equal(given_, wanted)
    assert given_.dtype == np.float32


def test_few_bits_are_few_levels(digits: Arrays) -> None:
    given_ = squeeze_features(digits["x"][:20], FeatureSqueezing("image", bits=2))
    np.testing.assert_allclose(np.unique(given_), [0, 1 / 3, 2 / 3, 1], atol=1e-6)
    assert np.abs(given_ - digits["x"][:20]).max() <= 1 / 6 + 1e-6
    np.testing.assert_array_equal(squeeze_features(given_, FeatureSqueezing("image", bits=2)), given_)


def test_bytes_stay_bytes() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 1, 6, 6)).astype(np.uint8)
    given_ = squeeze_features(images, FeatureSqueezing("image", bits=1, low=0, high=255, window=3))
    assert given_.dtype == np.uint8
    assert set(np.unique(given_)) <= {0, 255}


def test_disagreement_is_total_over_classes() -> None:
    found = prediction_l1_distance(np.array([[1.0, 0.0], [0.5, 0.5]]), np.array([[0.0, 1.0], [0.5, 0.5]]))
    assert found.tolist() == [2.0, 0.0]


def test_squeezing_is_not_scored_from_one_answer() -> None:
    with pytest.raises(ValueError, match="second inference"):
        ood_scorer(FeatureSqueezing("image", bits=3))
