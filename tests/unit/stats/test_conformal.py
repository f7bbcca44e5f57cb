"""Sets cover, risks are kept and accepted answers are right as often as promised; after a shift they are not."""

import math
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from edgewright.contract.model.guarantee import PredictionSetRule
from edgewright.stats.calibration import softmax
from edgewright.stats.conformal import (
    conformal_quantile,
    control_risk,
    fit_prediction_sets,
    nonconformity,
    prediction_sets,
    set_coverage,
)

Arrays = dict[str, NDArray[Any]]


def exact_band(samples: int, draws: int) -> float:
    """Four standard errors of the mean coverage over draws of a calibration and a test set of this size."""
    return 4 * math.sqrt(0.1 * 0.9 * 2 / samples / draws) + 1 / samples


@pytest.mark.parametrize("method", ["lac", "aps"])
def test_sets_of_real_answers_cover_as_promised(digit_logits: Arrays, method: Literal["lac", "aps"]) -> None:
    chances, labels = softmax(digit_logits["noisy"]), digit_logits["y"]
    shares = []
    for seed in range(100):
        order = np.random.default_rng(seed).permutation(1200)
        rule = fit_prediction_sets(chances[order[:600]], labels[order[:600]], 0.1, method=method)
        shares.append(set_coverage(prediction_sets(chances[order[600:]], rule), labels[order[600:]]).fraction)
    assert np.mean(shares) >= 0.9 - exact_band(600, 100) / 4
    assert np.mean(shares) <= 0.9 + exact_band(600, 100)


def test_a_shift_breaks_coverage_and_the_words_say_so(digit_logits: Arrays) -> None:
    labels = digit_logits["y"]
    rule = fit_prediction_sets(softmax(digit_logits["clean"][:600]), labels[:600], 0.1)
    clean = set_coverage(prediction_sets(softmax(digit_logits["clean"][600:]), rule), labels[600:])
    noisy = set_coverage(prediction_sets(softmax(digit_logits["noisy"][600:]), rule), labels[600:])
    assert clean.fraction > 0.87
    assert noisy.fraction < 0.85
    assert "After a shift nothing is promised" in rule.guarantee.describe


def test_each_class_is_covered_where_that_is_promised(digit_logits: Arrays) -> None:
    chances, labels = softmax(digit_logits["noisy"]), digit_logits["y"]
    shares: dict[str, NDArray[np.float64]] = {}
    for by in ("all", "class"):
        covered, seen = np.zeros(10), np.zeros(10)
        for seed in range(60):
            order = np.random.default_rng(seed).permutation(1200)
            rule = fit_prediction_sets(chances[order[:800]], labels[order[:800]], 0.1, stratified_by=by)
            held = order[800:]
            sets = prediction_sets(chances[held], rule)
            covered += np.bincount(labels[held], sets[np.arange(len(held)), labels[held]], minlength=10)
            seen += np.bincount(labels[held], minlength=10)
        shares[by] = covered / seen
    assert shares["class"].min() > 0.885
    assert shares["all"].min() < 0.85


def test_each_group_is_covered_and_an_unknown_one_gets_every_class(digit_logits: Arrays) -> None:
    chances = softmax(np.concatenate([digit_logits["clean"], digit_logits["noisy"]]))
    labels = np.tile(digit_logits["y"], 2)
    groups = np.repeat(["kitchen", "street"], 1200)
    order = np.random.default_rng(0).permutation(2400)
    fit, held = order[:1200], order[1200:]
    rule = fit_prediction_sets(chances[fit], labels[fit], 0.1, groups=groups[fit])
    for name in ("kitchen", "street"):
        member = held[groups[held] == name]
        assert set_coverage(prediction_sets(chances[member], rule, name), labels[member]).fraction > 0.86
    assert prediction_sets(chances[:5], rule, "ship").all()
    assert prediction_sets(chances[:5], rule).all()


@pytest.mark.parametrize("samples", [9, 19, 37, 100])
@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.3])
def test_the_quantile_is_the_smallest_that_covers(samples: int, alpha: float) -> None:
    found = conformal_quantile(np.arange(1, samples + 1), alpha)
    if math.isinf(found):
        assert samples / (samples + 1) < 1 - alpha
    else:
        # Exactly: the rank of a new score among n + 1 is uniform.
        assert found / (samples + 1) >= 1 - alpha - 1e-12
        assert (found - 1) / (samples + 1) < 1 - alpha


def test_too_few_samples_give_full_sets_not_false_ones() -> None:
    chances = softmax(np.random.default_rng(0).normal(size=(8, 4)))
    rule = fit_prediction_sets(chances, np.array([0, 1, 2, 3] * 2), 0.1)
    assert rule.thresholds == (None,)
    assert prediction_sets(chances, rule).all()


def test_the_likeliest_classes_are_in_before_others() -> None:
    chances = np.array([[0.5, 0.3, 0.15, 0.05]])
    np.testing.assert_allclose(nonconformity(chances, "aps"), [[0.0, 0.5, 0.8, 0.95]])
    np.testing.assert_allclose(nonconformity(chances, "lac"), [[0.5, 0.7, 0.85, 0.95]])


def test_no_set_is_empty_and_nan_leaves_nothing_out(digit_logits: Arrays) -> None:
    chances = softmax(digit_logits["clean"])
    rule = fit_prediction_sets(chances[:600], digit_logits["y"][:600], 0.3)
    assert isinstance(rule, PredictionSetRule)
    assert prediction_sets(chances[600:], rule).any(axis=1).all()
    assert prediction_sets(np.full((2, 10), np.nan), rule).all()


def test_a_controlled_risk_is_kept_on_average_and_not_wasted() -> None:
    risks = []
    thresholds = np.linspace(1, 0, 101)
    for seed in range(300):
        random = np.random.default_rng(seed)
        # Share of true labels that a threshold on scores misses: it falls as the threshold falls.
        scores = stats.beta.rvs(4, 2, size=(400, 5), random_state=random)
        losses = (scores[:, :, None] < thresholds).mean(axis=1)
        found = control_risk(losses[:200], 0.1)
        assert found.level_index is not None
        risks.append(losses[200:, found.level_index].mean())
    assert np.mean(risks) <= 0.1 + 4 * np.std(risks) / math.sqrt(300)
    assert np.mean(risks) > 0.08


def test_a_risk_that_nothing_keeps_is_said_to_be_unkept() -> None:
    found = control_risk(np.full((50, 3), 0.5), 0.1)
    assert found.level_index is None
    assert found.risk == 0.5
    # Few samples: even no loss at all does not show a risk of 1 %.
    assert control_risk(np.zeros((50, 3)), 0.01).level_index is None
    assert control_risk(np.zeros((99, 3)), 0.01).level_index == 0


def test_losses_that_rise_with_caution_are_refused() -> None:
    with pytest.raises(ValueError, match="rises with caution"):
        control_risk(np.array([[0.1, 0.2]]), 0.1)
    with pytest.raises(ValueError, match="within"):
        control_risk(np.array([[np.nan, 0.2]]), 0.1)
