from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from edgewright.compress.certify.certificate import certify, min_samples_to_certify
from edgewright.compress.certify.look_ledger import LookLedger
from edgewright.contract.certificate import Certificate
from edgewright.contract.errors import DataError


def judge(
    folder: Path, lost: int, gained: int, samples: int, *, digest: str = "c", data: str = "d", **changes: Any
) -> Certificate:
    """Certify 0/1 scores with so many flips; the original is right wherever it does not gain."""
    original, candidate = np.ones(samples), np.ones(samples)
    candidate[:lost] = 0
    original[lost : lost + gained] = 0
    return judge_scores(folder, original, candidate, digest=digest, data=data, **changes)


def judge_scores(
    folder: Path,
    original: NDArray[np.float64],
    candidate: NDArray[np.float64],
    *,
    digest: str = "c",
    data: str = "d",
    **changes: Any,
) -> Certificate:
    options = {"kind": "binary", "max_drop": 0.005, "groups": None, **changes}
    return certify(
        original,
        candidate,
        metric="accuracy",
        confidence=0.95,
        candidate_digest=digest,
        data_fingerprint=data,
        ledger=LookLedger(folder),
        **options,
    )


def test_few_losses_are_certified_many_refuted_and_what_is_between_left_open(tmp_path: Path) -> None:
    certified = judge(tmp_path, 2, 1, 4000, data="a")
    assert (certified.verdict, certified.additional_samples_needed, certified.method) == (
        "certified",
        None,
        "exact",
    )
    assert certified.upper_bound <= 0.005
    refuted = judge(tmp_path, 60, 5, 4000, data="b")
    assert (refuted.verdict, refuted.additional_samples_needed) == ("refuted", None)
    assert refuted.lower_bound > 0.005
    unsettled = judge(tmp_path, 10, 4, 1000, data="c")
    assert unsettled.verdict == "insufficient data"
    assert unsettled.additional_samples_needed is None
    assert "more likely refute" in unsettled.reason


def test_samples_asked_for_would_settle_it(tmp_path: Path) -> None:
    short = judge(tmp_path, 2, 0, 1000, data="a")
    assert short.verdict == "insufficient data"
    assert short.additional_samples_needed is not None
    assert str(short.additional_samples_needed) in short.reason
    samples = 1000 + short.additional_samples_needed
    enough = judge(tmp_path, -(-2 * samples // 1000), 0, samples, data="b")
    assert enough.verdict == "certified"
    fewer = 1000 + int(0.8 * short.additional_samples_needed)
    assert judge(tmp_path, -(-2 * fewer // 1000), 0, fewer, data="c").verdict == "insufficient data"


def test_the_least_samples_certify_without_a_flip(tmp_path: Path) -> None:
    least = min_samples_to_certify(0.005, 0.95)
    assert judge(tmp_path, 0, 0, least, data="a").verdict == "certified"
    short = judge(tmp_path, 0, 0, least - 30, data="b")
    assert (short.verdict, short.additional_samples_needed) == ("insufficient data", 30)


def test_each_further_candidate_on_the_same_data_is_held_to_more(tmp_path: Path) -> None:
    looks = [judge(tmp_path, 1, 0, 3000, digest=name) for name in ("a", "b", "c", "b")]
    assert [look.look for look in looks] == [1, 2, 3, 2]
    assert [round(1 - look.look_confidence, 6) for look in looks[:3]] == [0.025, 0.008333, 0.004167]
    assert looks[0].upper_bound < looks[1].upper_bound < looks[2].upper_bound
    assert looks[3] == looks[1]


def test_a_floor_must_be_kept_with_a_bound_too(tmp_path: Path) -> None:
    original = np.ones(4000)
    original[:400] = 0
    kept = judge_scores(tmp_path, original, original, data="a", min_metric=0.88)
    assert kept.verdict == "certified"
    assert "at least 0.8903" in kept.reason
    near = judge_scores(tmp_path, original, original, data="b", min_metric=0.895)
    assert near.verdict == "insufficient data"
    assert near.additional_samples_needed is not None
    broken = judge_scores(tmp_path, original, original, data="c", min_metric=0.95)
    assert broken.verdict == "refuted"
    assert "below the limit of 0.95" in broken.reason


def test_groups_widen_the_bound_and_few_of_them_say_nothing(tmp_path: Path) -> None:
    original, candidate = np.ones(3000), np.ones(3000)
    candidate[:12] = 0
    groups = np.repeat([f"speaker {i}" for i in range(15)], 200)
    grouped = judge_scores(tmp_path, original, candidate, data="a", groups=groups, max_drop=0.02)
    alone = judge_scores(tmp_path, original, candidate, data="b", max_drop=0.02)
    assert grouped.cluster_count == 15
    assert grouped.method == "cluster t (asymptotic in clusters)"
    assert grouped.upper_bound > alone.upper_bound
    few = judge_scores(tmp_path, original, candidate, data="c", groups=np.arange(3000) % 4)
    assert few.verdict == "insufficient data"
    assert (few.cluster_count, few.additional_samples_needed) == (4, None)
    assert "at least 5 groups" in few.reason
    assert msgspec.json.decode(msgspec.json.encode(few), type=Certificate) == few


@pytest.mark.parametrize(("kind", "method"), [("unit", "betting"), ("unbounded", "t (asymptotic)")])
def test_other_scores_get_their_own_bound(tmp_path: Path, kind: str, method: str) -> None:
    random = np.random.default_rng(0)
    original = random.uniform(0.5, 1, 2000)
    candidate = original - random.uniform(0, 0.01, 2000)
    certificate = judge_scores(tmp_path, original, candidate, kind=kind, max_drop=0.02, min_metric=0.6)
    assert (certificate.verdict, certificate.method) == ("certified", method)
    assert certificate.lower_bound < certificate.drop < certificate.upper_bound


def test_a_metric_of_the_whole_set_is_bootstrapped_and_never_surer_than_no_flip_allows(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    truth = random.random(800) < 0.3
    guess = truth ^ (random.random(800) < 0.05)

    def f1(predicted: NDArray[np.bool_], picks: NDArray[np.intp]) -> float:
        hits = (predicted[picks] & truth[picks]).sum()
        return float(2 * hits / (predicted[picks].sum() + truth[picks].sum()))

    nothing = np.zeros(800)
    same = judge_scores(
        tmp_path,
        nothing,
        nothing,
        kind="scalar",
        max_drop=0.01,
        scalar=lambda picks: (f1(guess, picks), f1(guess, picks)),
    )
    assert same.upper_bound == pytest.approx(1 - 0.025 ** (1 / 800))
    worse = guess ^ (random.random(800) < 0.1)
    other = judge_scores(
        tmp_path,
        nothing,
        nothing,
        kind="scalar",
        data="e",
        max_drop=0.01,
        scalar=lambda picks: (f1(guess, picks), f1(worse, picks)),
        groups=np.arange(800) % 20,
    )
    assert (other.verdict, other.method) == ("refuted", "BCa bootstrap (asymptotic)")


def test_a_handful_of_unbounded_scores_certifies_nothing(tmp_path: Path) -> None:
    few = judge_scores(tmp_path, np.ones(20), np.ones(20), kind="unbounded")
    assert (few.verdict, few.additional_samples_needed) == ("insufficient data", 10)
    assert "at least 30 samples" in few.reason


@pytest.mark.parametrize("samples", [30, 300])
def test_unbounded_scores_that_never_differ_prove_no_more_than_answers_that_never_differ(
    tmp_path: Path, samples: int
) -> None:
    scores = np.array([float(i % 2) for i in range(samples)])
    same = judge_scores(tmp_path, scores, scores, kind="unbounded", max_drop=0.01)
    assert same.upper_bound == pytest.approx(1 - 0.025 ** (1 / samples), rel=1e-3)
    assert same.verdict == "insufficient data"


def test_looks_are_counted_over_all_splits_of_the_same_data(tmp_path: Path) -> None:
    scores = np.ones(600)
    for look, split in enumerate(("seed 1", "seed 2"), start=1):
        judged = judge_scores(tmp_path, scores, scores, data=split, digest=split, ledger_key="the whole data")
        assert judged.look == look


@pytest.mark.parametrize(
    ("original", "candidate", "changes", "message"),
    [
        ([1.0, 1.0], [1.0], {}, "shapes"),
        ([], [], {}, "shapes"),
        ([1.0, np.nan], [1.0, 1.0], {}, "1 scores are NaN"),
        ([1.0, 2.0], [1.0, 1.0], {"kind": "unit"}, "range from 1 to 2"),
        ([1.0, 0.5], [1.0, 1.0], {}, "not all 0 or 1"),
        ([1.0, 1.0], [1.0, 1.0], {"groups": np.zeros(3)}, "3 groups for 2 samples"),
    ],
)
def test_scores_that_make_no_pairs_are_refused_before_a_look_is_spent(
    tmp_path: Path, original: list[float], candidate: list[float], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        judge_scores(tmp_path, np.array(original), np.array(candidate), **changes)
    assert not list(tmp_path.iterdir())
