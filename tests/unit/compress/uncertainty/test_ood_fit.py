"""Thresholds reject usual inputs as seldom as promised; measures are those of independent implementations."""

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from scipy import stats
from sklearn.covariance import EmpiricalCovariance
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from edgewright.compress.model.embedding_output import EMBEDDING_OUTPUT, expose_embedding
from edgewright.compress.uncertainty.ood_fit import fit_mahalanobis, fit_neighbours, fit_ood_rule, min_ood_samples
from edgewright.contract.errors import DataError
from edgewright.contract.model.ood_detector import LogitScore, OodRule, OodScore
from edgewright.stats.ood_scores import is_out_of_distribution, ood_scorer

Arrays = dict[str, NDArray[Any]]
MEASURES = ["energy", "confidence", "margin", "mahalanobis", "relative", "neighbours"]


@pytest.fixture(scope="module")
def embedded(
    digits_proto: onnx.ModelProto, digits: Arrays, digits_training: Arrays, answers: Callable[..., Any]
) -> dict[str, tuple[NDArray[Any], NDArray[Any]]]:
    """Logits and embeddings of training digits, usual digits, and negatives of digits, which are none."""
    model = expose_embedding(digits_proto)
    given = {"training": digits_training["x"], "usual": digits["x"], "negative": 1 - digits["x"]}
    return {name: tuple(answers(model, image=x)) for name, x in given.items()}


def measure_of(name: str, embedded: Any, digits_training: Arrays) -> OodScore:
    training = embedded["training"][1]
    if name == "neighbours":
        return fit_neighbours(EMBEDDING_OUTPUT, training)
    if name in ("mahalanobis", "relative"):
        return fit_mahalanobis(EMBEDDING_OUTPUT, training, digits_training["y"], relative=name == "relative")
    return LogitScore(name)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", MEASURES)
def test_usual_digits_are_rejected_as_seldom_as_promised(name: str, embedded: Any, digits_training: Arrays) -> None:
    measure = measure_of(name, embedded, digits_training)
    scored = ood_scorer(measure)
    place = 0 if isinstance(measure, LogitScore) else 1
    usual, negative = scored(embedded["usual"][place]), scored(embedded["negative"][place])
    rejected, detected = [], []
    for seed in range(40):
        order = np.random.default_rng(seed).permutation(1200)
        rule = fit_ood_rule(measure, usual[order[:600]], 0.05)
        rejected.append(is_out_of_distribution(usual[order[600:]], rule).mean())
        detected.append(is_out_of_distribution(negative, rule).mean())
    assert np.mean(rejected) < 0.05
    assert np.mean(rejected) > 0.01
    assert roc_auc_score(np.repeat([0, 1], 1200), np.concatenate([usual, negative])) > 0.9
    assert np.mean(detected) > 0.3


@pytest.mark.parametrize(
    ("samples", "rate", "confidence"), [(299, 0.01, 0.95), (600, 0.05, 0.9), (2000, 0.01, 0.99)]
)
def test_the_threshold_is_the_lowest_that_keeps_the_promise(samples: int, rate: float, confidence: float) -> None:
    rule = fit_ood_rule(
        LogitScore("energy"), np.random.default_rng(0).permutation(samples), rate, confidence=confidence
    )
    rank = int(rule.threshold) + 1
    # A new score exceeds the rank-th smallest with a probability of this Beta distribution, whatever the scores'.
    kept = stats.beta.cdf(rate, samples - rank + 1, rank)
    assert kept >= confidence
    assert stats.beta.cdf(rate, samples - rank + 2, rank - 1) < confidence


def test_the_promise_holds_over_calibration_sets() -> None:
    random = np.random.default_rng(4)
    broken = 0
    for _ in range(1000):
        rule = fit_ood_rule(LogitScore("energy"), random.exponential(size=500), 0.02, confidence=0.9)
        broken += np.exp(-rule.threshold) > 0.02
    assert broken <= stats.binom.isf(1e-3, 1000, 0.1)
    assert broken > 20


def test_too_few_samples_are_refused_with_the_number_needed() -> None:
    needed = min_ood_samples(0.01)
    fit_ood_rule(LogitScore("energy"), np.arange(needed), 0.01)
    with pytest.raises(DataError, match=f"Give {needed} or more"):
        fit_ood_rule(LogitScore("energy"), np.arange(needed - 1), 0.01)
    with pytest.raises(DataError, match="no number"):
        fit_ood_rule(LogitScore("energy"), np.array([np.nan] * 500), 0.01)


def test_the_distance_is_scikit_learns(embedded: Any, digits_training: Arrays) -> None:
    training, labels = embedded["training"][1].astype(float), digits_training["y"]
    means = np.stack([training[labels == c].mean(axis=0) for c in range(10)])
    centred = training - means[labels]
    covariance = centred.T @ centred / len(centred)
    # The same floor of variances, so that the two invert the same matrix.
    values, vectors = np.linalg.eigh(covariance)
    values = np.maximum(values, 1e-3 * values.mean())
    peer = EmpiricalCovariance(assume_centered=True).fit(centred)
    peer.precision_ = vectors / values @ vectors.T
    rows = embedded["negative"][1][:50].astype(float)
    wanted = np.min([peer.mahalanobis(rows - mean) for mean in means], axis=0)
    measure = fit_mahalanobis(EMBEDDING_OUTPUT, training, labels)
    np.testing.assert_allclose(ood_scorer(measure)(rows), wanted, rtol=1e-3)
    relative = fit_mahalanobis(EMBEDDING_OUTPUT, training, labels, relative=True)
    overall = np.cov(training.T, bias=True)
    values, vectors = np.linalg.eigh(overall)
    values = np.maximum(values, 1e-3 * values.mean())
    background = np.square((rows - training.mean(axis=0)) @ vectors / np.sqrt(values)).sum(axis=1)
    np.testing.assert_allclose(ood_scorer(relative)(rows), wanted - background, rtol=1e-3, atol=1e-2 * wanted.max())


def test_few_directions_share_the_rest_of_the_variance(embedded: Any, digits_training: Arrays) -> None:
    training, labels = embedded["training"][1].astype(float), digits_training["y"]
    measure = fit_mahalanobis(EMBEDDING_OUTPUT, training, labels, max_directions=8)
    shape = measure.within_class
    directions, variances = shape.directions.array(), shape.variances.array()
    assert directions.shape == (64, 8)
    covariance = directions * (
        variances - shape.residual_variance
    ) @ directions.T + shape.residual_variance * np.eye(64)
    rows = embedded["usual"][1][:30].astype(float)
    apart = rows[:, None] - measure.means.array()
    wanted = np.einsum("ncd,de,nce->nc", apart, np.linalg.inv(covariance), apart).min(axis=1)
    np.testing.assert_allclose(ood_scorer(measure)(rows), wanted, rtol=1e-4)
    whole = fit_mahalanobis(EMBEDDING_OUTPUT, training, labels)
    assert np.trace(covariance) == pytest.approx(float(whole.within_class.variances.array().sum()), rel=1e-3)


def test_the_neighbour_is_scikit_learns(embedded: Any) -> None:
    training, rows = embedded["training"][1], embedded["negative"][1][:50]
    unit = training / np.linalg.norm(training, axis=1, keepdims=True)
    peer = NearestNeighbors(n_neighbors=5).fit(unit)
    wanted = peer.kneighbors(rows / np.linalg.norm(rows, axis=1, keepdims=True))[0][:, -1]
    measure = fit_neighbours(EMBEDDING_OUTPUT, training, nearest=5, max_points=1000)
    np.testing.assert_allclose(ood_scorer(measure)(rows), wanted, atol=2e-3)
    assert fit_neighbours(EMBEDDING_OUTPUT, training, max_points=100).points.shape == (100, 64)


@pytest.mark.parametrize("name", MEASURES)
def test_a_rule_travels_as_json_and_decides_the_same(name: str, embedded: Any, digits_training: Arrays) -> None:
    measure = measure_of(name, embedded, digits_training)
    place = 0 if isinstance(measure, LogitScore) else 1
    usual = embedded["usual"][place]
    rule = fit_ood_rule(measure, ood_scorer(measure)(usual[:600]), 0.05)
    content = msgspec.json.encode(rule)
    again = msgspec.json.decode(content, type=OodRule)
    assert again == rule
    assert len(content) < 100_000
    np.testing.assert_array_equal(
        is_out_of_distribution(ood_scorer(again.score)(usual), again),
        is_out_of_distribution(ood_scorer(measure)(usual), rule),
    )


@pytest.mark.parametrize("name", ["mahalanobis", "relative", "neighbours"])
def test_an_embedding_of_nan_is_unusual(name: str, embedded: Any, digits_training: Arrays) -> None:
    measure = measure_of(name, embedded, digits_training)
    rule = fit_ood_rule(measure, ood_scorer(measure)(embedded["usual"][1]), 0.05)
    assert is_out_of_distribution(ood_scorer(measure)(np.full((2, 64), np.nan)), rule).all()


def test_data_without_spread_is_refused() -> None:
    with pytest.raises(DataError, match="does not vary"):
        fit_mahalanobis("e", np.ones((20, 3)), np.zeros(20))
    with pytest.raises(DataError, match="no spread"):
        fit_mahalanobis("e", np.ones((2, 3)), np.array([0, 1]))
    with pytest.raises(DataError, match="not finite"):
        fit_neighbours("e", np.full((20, 3), np.nan))
    with pytest.raises(DataError, match="neighbour number 5"):
        fit_neighbours("e", np.ones((2, 3)))
