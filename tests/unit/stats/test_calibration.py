"""Confidence is fitted as independent implementations fit it, and its error is measured as it is."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import optimize, special
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, log_loss

from edgewright.stats.calibration import (
    brier_score,
    expected_calibration_error,
    fit_temperature_scaling,
    fit_vector_scaling,
    negative_log_likelihood,
    softmax,
)

Arrays = dict[str, NDArray[Any]]


def drawn(samples: int, factor: float, seed: int) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Logits that are `factor` times too great, and labels drawn with the true probabilities."""
    random = np.random.default_rng(seed)
    true = random.normal(0, 2, (samples, 5))
    chances = special.softmax(true, axis=1)
    labels = (random.random((samples, 1)) > chances.cumsum(axis=1)).sum(axis=1).clip(0, 4)
    return factor * true, labels


def softened_targets(labels: NDArray[Any], classes: int) -> NDArray[np.float64]:
    doubt = 1 / (len(labels) + 2)
    return np.asarray(np.eye(classes)[labels] * (1 - doubt) + doubt / classes)


def test_the_temperature_is_scipys_minimum(digit_logits: Arrays) -> None:
    logits, labels = digit_logits["noisy"].astype(float), digit_logits["y"]
    targets = softened_targets(labels, 10)

    def loss(factor: float) -> float:
        return float(-(targets * special.log_softmax(factor * logits, axis=1)).sum())

    found = optimize.minimize_scalar(loss, bounds=(1e-3, 10), method="bounded", options={"xatol": 1e-10})
    assert fit_temperature_scaling(logits, labels).scale[0] == pytest.approx(found.x, rel=1e-5)


def test_the_temperature_is_close_to_scikit_learns(digits: Arrays) -> None:
    images = digits["x"].reshape(len(digits["x"]), -1)
    model = LogisticRegression(max_iter=2000, C=100).fit(images[:300], digits["y"][:300])
    held, labels = images[300:], digits["y"][300:]
    other = CalibratedClassifierCV(FrozenEstimator(model), method="temperature").fit(held, labels)
    factor = other.calibrated_classifiers_[0].calibrators[0].beta_
    # Theirs has no softened targets.
    assert fit_temperature_scaling(model.decision_function(held), labels).scale[0] == pytest.approx(
        factor, rel=0.05
    )


def test_vector_scaling_is_scipys_minimum(digit_logits: Arrays) -> None:
    logits, labels = digit_logits["noisy"].astype(float), digit_logits["y"]
    targets = softened_targets(labels, 10)
    factor = fit_temperature_scaling(logits, labels).scale[0]
    means = logits.mean(axis=0)
    spread = np.sqrt(np.square(logits - means).mean())

    def loss(at: NDArray[np.float64]) -> float:
        scale, shift = at[:10], at[10:]
        away = np.square((scale - factor) * spread).sum()
        # The prior's shifts are those at the logits' means, up to what all classes share.
        away += np.square(shift + scale * means - factor * (means - means.mean())).sum()
        return float(-(targets * special.log_softmax(scale * logits + shift, axis=1)).sum() + away / 2)

    start = np.concatenate([np.full(10, factor), np.full(10, -factor * means.mean())])
    found = optimize.minimize(loss, start, method="L-BFGS-B", options={"maxiter": 5000, "ftol": 1e-15})
    mine = fit_vector_scaling(logits, labels)
    wanted = found.x[:10] * logits + found.x[10:]
    np.testing.assert_allclose(softmax(mine.apply(logits)), special.softmax(wanted, axis=1), atol=2e-4)


@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0])
def test_a_known_temperature_is_found_again(factor: float) -> None:
    logits, labels = drawn(20_000, factor, seed=1)
    assert fit_temperature_scaling(logits, labels).scale[0] == pytest.approx(1 / factor, rel=0.03)


def test_vector_scaling_mends_classes_that_are_favoured() -> None:
    logits, labels = drawn(20_000, 2.0, seed=2)
    shifts = np.array([1.5, 0.0, -1.0, 0.5, -1.0])
    found = fit_vector_scaling(logits + shifts, labels)
    np.testing.assert_allclose(
        found.apply(logits + shifts) @ (np.eye(5) - 0.2), logits / 2 @ (np.eye(5) - 0.2), atol=0.3
    )
    assert (
        negative_log_likelihood(softmax(found.apply(logits + shifts)), labels)
        < negative_log_likelihood(softmax(logits + shifts), labels) - 0.1
    )


def test_answers_that_are_all_right_do_not_make_confidence_infinite() -> None:
    logits = np.eye(3)[[0, 1, 2] * 20] * 4
    found = fit_temperature_scaling(logits, np.array([0, 1, 2] * 20))
    assert 0.95 < softmax(found.apply(logits)).max() < 0.999


def test_one_logit_is_softened_as_two() -> None:
    logits, labels = drawn(500, 3.0, seed=3)
    two = logits[:, :2]
    answers = (labels == 1).astype(int)
    one = fit_temperature_scaling(two[:, 1:] - two[:, :1], answers)
    assert one.scale[0] == pytest.approx(fit_temperature_scaling(two, answers).scale[0], rel=1e-6)
    assert softmax(two[:, 1:] - two[:, :1]).shape == (500, 2)


@given(
    st.integers(1, 60).flatmap(
        lambda n: st.tuples(
            st.lists(st.lists(st.floats(-1e4, 1e4), min_size=4, max_size=4), min_size=n, max_size=n),
            st.lists(st.integers(0, 3), min_size=n, max_size=n),
        )
    )
)
def test_a_temperature_changes_no_answer_and_never_costs_likelihood(
    given_: tuple[list[list[float]], list[int]],
) -> None:
    logits, labels = np.array(given_[0]), np.array(given_[1])
    if np.ptp(logits, axis=1).max() < 1e-6:
        return
    found = fit_temperature_scaling(logits, labels)
    assert 0 < found.scale[0] < np.inf
    best = found.apply(logits)
    chosen = best[np.arange(len(best)), logits.argmax(axis=1)]
    assert (chosen == best.max(axis=1)).all()
    targets = softened_targets(labels, 4)
    before = -(targets * special.log_softmax(logits, axis=1)).sum()
    after = -(targets * special.log_softmax(best, axis=1)).sum()
    assert after <= before + 1e-6 * (1 + abs(before))


def test_logits_that_are_nearly_equal_are_left_rather_than_made_likelier_for_the_wrong() -> None:
    logits, labels = np.array([[1e-4, 0.0, 0.0, 0.0]]), np.array([1])
    assert fit_temperature_scaling(logits, labels).scale[0] <= 1


def test_scores_are_scikit_learns(digit_logits: Arrays) -> None:
    chances, labels = softmax(digit_logits["noisy"]), digit_logits["y"]
    assert negative_log_likelihood(chances, labels) == pytest.approx(log_loss(labels, chances), rel=1e-6)
    assert brier_score(chances, labels) == pytest.approx(
        brier_score_loss(labels, chances, scale_by_half=False), rel=1e-6
    )


def test_a_calibrated_model_has_less_error_when_chance_is_taken_off() -> None:
    found = []
    for seed in range(60):
        random = np.random.default_rng(seed)
        sure = random.uniform(0.5, 1, 400)
        found.append(expected_calibration_error(sure, random.random(400) < sure))
    plain = np.mean([one.plugin for one in found])
    assert plain > 0.05
    assert np.mean([one.debiased for one in found]) < 0.7 * plain
    assert np.mean([one.rms**2 for one in found]) < 0.3 * plain**2


def test_a_known_calibration_error_is_found() -> None:
    random = np.random.default_rng(5)
    sure = random.uniform(0.6, 1, 50_000)
    found = expected_calibration_error(sure, random.random(50_000) < sure - 0.1)
    assert found.debiased == pytest.approx(0.1, abs=0.01)
    assert found.rms == pytest.approx(0.1, abs=0.01)


def test_softening_on_one_half_helps_the_other(digit_logits: Arrays) -> None:
    logits, labels = digit_logits["noisier"], digit_logits["y"]
    found = fit_temperature_scaling(logits[:600], labels[:600])
    held, truth = logits[600:], labels[600:]
    before, after = softmax(held), softmax(found.apply(held))
    assert negative_log_likelihood(after, truth) < negative_log_likelihood(before, truth)
    hits = held.argmax(axis=1) == truth
    errors = [expected_calibration_error(chances.max(axis=1), hits).debiased for chances in (before, after)]
    assert errors[1] < 0.6 * errors[0], errors


@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        (np.zeros((0, 3)), np.zeros(0, int)),
        (np.array([[1.0, np.nan]]), np.array([0])),
        (np.ones((2, 2)), np.array([0, 2])),
        (np.ones((2, 2)), np.array([0, 1])),
        (np.array([[1.0, 2.0]]), np.array([0, 1])),
    ],
    ids=["none", "nan", "no such class", "all equal", "too many labels"],
)
def test_what_cannot_be_fitted_is_refused(logits: NDArray[Any], labels: NDArray[Any]) -> None:
    with pytest.raises(ValueError, match=r"logits|labels"):
        fit_temperature_scaling(logits, labels)
