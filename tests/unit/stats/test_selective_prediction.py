"""Of accepted answers no more are wrong than promised, with the stated confidence."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from edgewright.stats.conformal import is_accepted
from edgewright.stats.ood_scores import logit_scores
from edgewright.stats.selective_prediction import fit_acceptance, min_accepted

Arrays = dict[str, NDArray[Any]]


def drawn(samples: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Confidences from 0.5 to 1 of an overconfident model: its error rate is 0.7 (1 - confidence) + 0.02."""
    random = np.random.default_rng(seed)
    sure = random.uniform(0.5, 1, samples)
    return sure, random.random(samples) >= 0.7 * (1 - sure) + 0.02


def true_error(threshold: float) -> float:
    return 0.7 * (1 - (threshold + 1) / 2) + 0.02


def test_the_promise_is_broken_at_most_as_often_as_stated() -> None:
    broken = accepted = 0
    trials = 400
    for seed in range(trials):
        rule = fit_acceptance(*drawn(1500, seed), 0.1, delta=0.1, seed=seed)
        if rule is not None:
            broken += true_error(rule.threshold) > 0.1
            accepted += rule.accepted_fraction > 0.15
    # Refuted if so many broken promises had a probability under 1 in 1,000 at a rate of 0.1.
    assert broken <= stats.binom.isf(1e-3, trials, 0.1)
    # It isn't bought by accepting nothing: 46 % could be accepted if all were known.
    assert accepted > 0.8 * trials


def test_broken_promises_do_happen_so_the_test_above_can_fail() -> None:
    # The naive rule: the lowest threshold whose observed error is within the risk.
    broken = 0
    for seed in range(100):
        sure, hits = drawn(1500, seed)
        order = np.argsort(-sure)
        errors = np.cumsum(~hits[order]) / np.arange(1, 1501)
        broken += true_error(float(sure[order][np.flatnonzero(errors <= 0.1)[-1]])) > 0.08
    assert broken > 30


def test_accepted_digits_are_right(digit_logits: Arrays) -> None:
    sure = logit_scores(digit_logits["noisy"]).confidence
    hits = digit_logits["noisy"].argmax(axis=1) == digit_logits["y"]
    rule = fit_acceptance(sure[:700], hits[:700], 0.1)
    assert rule is not None
    taken = is_accepted(sure[700:], rule)
    assert hits[700:].mean() < 0.8
    assert hits[700:][taken].mean() > 0.88
    assert taken.mean() > 0.4
    assert "at most the share 0.1 is wrong" in rule.guarantee.describe


def test_what_cannot_be_promised_is_not() -> None:
    random = np.random.default_rng(0)
    assert fit_acceptance(random.random(500), random.random(500) < 0.5, 0.05) is None
    few = min_accepted(0.05, 0.05) - 1
    assert fit_acceptance(np.full(few, 0.9), np.full(few, True), 0.05) is None


def test_nan_is_not_accepted(digit_logits: Arrays) -> None:
    rule = fit_acceptance(np.full(400, 0.5), np.full(400, True), 0.1)
    assert rule is not None
    assert is_accepted(np.array([0.5, 0.4, np.nan]), rule).tolist() == [True, False, False]
