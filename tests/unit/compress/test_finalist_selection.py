"""Who is chosen: never a model that is slower, breaks a limit that the original keeps, or was not proved."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from edgewright.compress.certify.final_measurement import MeasuredFinalist
from edgewright.compress.context import CompressionRun
from edgewright.compress.finalist_selection import choose_finalist
from edgewright.contract.compression_report import ModelFigures
from edgewright.contract.device_class import Budget
from edgewright.contract.errors import CandidateError
from edgewright.contract.measurement import Measurement, MeasurementOrigin

EXACT = MeasurementOrigin(kind="computed", machine="any", method="given")


def measured(
    name: str, folder: Path, *, size: float = 1000, ratio: float = 1.0, memory: float = 1e6
) -> MeasuredFinalist:
    path = folder / name
    path.write_bytes(name.encode())
    figures = ModelFigures(
        path=str(path),
        sha256=name.ljust(64, "0"),
        size_bytes=Measurement(size, "bytes", EXACT),
        compressed_bytes=Measurement(size, "bytes", EXACT),
        latency_p50_ms=Measurement(ratio, "ms", EXACT, low=ratio * 0.99, high=ratio * 1.01),
        latency_p95_ms=Measurement(ratio, "ms", EXACT, low=ratio * 0.99, high=ratio * 1.01),
        latency_ratio=Measurement(ratio, "ratio", EXACT, low=ratio * 0.99, high=ratio * 1.01),
        peak_memory_bytes=Measurement(memory, "bytes", EXACT),
        energy_mj=Measurement(ratio, "mJ", EXACT),
        recipe=None if name == "original" else [],
        title=name,
        runtime={},
    )
    return MeasuredFinalist(figures, cast(Any, None))


def run_of(
    tmp_path: Path, budget: Budget, answers: dict[str, NDArray[np.float64]], samples: int = 600
) -> CompressionRun:
    """A run whose candidates score what `answers` says; by default all answers are right."""

    def outputs(content: bytes, _count: int) -> list[NDArray[np.float64]]:
        scores = answers.get(content.decode(), np.ones(samples))
        if np.isnan(scores).any():
            raise CandidateError("an output holds NaN", remedy="Leave this candidate out.")
        return [scores]

    judge = SimpleNamespace(
        indices=np.arange(samples),
        scores=answers.get("original", np.ones(samples)),
        reference=[answers.get("original", np.ones(samples))],
        outputs=outputs,
        score=lambda given, _count: given[0],
    )
    parts = SimpleNamespace(
        budget=budget,
        max_drop=budget.max_drop,
        certify_evaluator=judge,
        metric=SimpleNamespace(kind="binary", name="accuracy"),
        dataset=SimpleNamespace(groups=None, labels=None, fingerprint="data"),
        request=SimpleNamespace(state_folder=tmp_path / "state", seed=0),
        fingerprint="certify",
        loaded=SimpleNamespace(sha256="original".ljust(64, "0")),
    )
    return cast(CompressionRun, parts)


def flips(count: int, samples: int = 600) -> NDArray[np.float64]:
    scores = np.ones(samples)
    scores[:count] = 0
    return scores


BUDGET = Budget(max_drop=0.01)


def test_the_first_that_is_proved_is_chosen(tmp_path: Path) -> None:
    original, small = measured("original", tmp_path), measured("small", tmp_path, size=100, ratio=0.5)
    chosen, certificate, outcome, verdict = choose_finalist(run_of(tmp_path, BUDGET, {}), original, [small])
    assert chosen is small
    assert certificate.verdict == "certified"
    assert certificate.candidate_sha256 == small.model.sha256
    assert outcome.met
    assert verdict.startswith("10.0 times smaller, 0.50 times the latency")


def test_when_the_first_fails_its_look_the_safer_one_is_tried_at_a_higher_price(tmp_path: Path) -> None:
    original = measured("original", tmp_path)
    bold, safe = measured("bold", tmp_path, size=100), measured("safe", tmp_path, size=200)
    run = run_of(tmp_path, BUDGET, {"bold": flips(30)})
    chosen, certificate, _, _ = choose_finalist(run, original, [bold, safe])
    assert chosen is safe
    assert certificate.look == 2
    assert certificate.look_confidence > 0.975


def test_without_proof_the_original_is_returned_with_its_own_figures(tmp_path: Path) -> None:
    original, small = measured("original", tmp_path), measured("small", tmp_path, size=100)
    budget = Budget(max_drop=0.01, size_bytes=5000)
    chosen, certificate, outcome, verdict = choose_finalist(
        run_of(tmp_path, budget, {"small": flips(5)}), original, [small]
    )
    assert chosen is original
    assert certificate.verdict == "insufficient data"
    assert (outcome.met, outcome.binding_limit) == (False, "max_drop")
    assert outcome.limits["size_bytes"]["value"] == 1000
    assert "original is returned" in verdict


@pytest.mark.parametrize("ratio", [1.06, 1.5])
def test_a_smaller_but_slower_model_is_not_chosen_where_the_original_fits(tmp_path: Path, ratio: float) -> None:
    original, slow = measured("original", tmp_path), measured("slow", tmp_path, size=10, ratio=ratio)
    chosen, _, outcome, verdict = choose_finalist(run_of(tmp_path, BUDGET, {}), original, [slow])
    assert chosen is original
    assert outcome.met
    assert "Nothing helps" in verdict
    assert not (tmp_path / "state").exists()  # and no look was spent


def test_the_original_is_kept_where_it_fits_and_every_candidate_breaks_a_limit(tmp_path: Path) -> None:
    original = measured("original", tmp_path, memory=1e6)
    hungry = measured("hungry", tmp_path, size=100, memory=9e6)
    budget = Budget(max_drop=0.01, peak_memory_bytes=2e6)
    chosen, _, outcome, _ = choose_finalist(run_of(tmp_path, budget, {}), original, [hungry])
    assert chosen is original
    assert outcome.met


def test_the_closest_is_returned_with_the_limit_that_binds(tmp_path: Path) -> None:
    original, small = measured("original", tmp_path), measured("small", tmp_path, size=100)
    budget = Budget(max_drop=0.01, size_bytes=50)
    chosen, certificate, outcome, verdict = choose_finalist(run_of(tmp_path, budget, {}), original, [small])
    assert chosen is small
    assert certificate.verdict == "certified"
    assert (outcome.met, outcome.binding_limit) == (False, "size_bytes")
    assert "limit on size" in verdict


def test_a_candidate_that_cannot_be_judged_is_passed_over(tmp_path: Path) -> None:
    original = measured("original", tmp_path)
    broken, sound = measured("broken", tmp_path, size=10), measured("sound", tmp_path, size=100)
    run = run_of(tmp_path, BUDGET, {"broken": np.full(600, np.nan)})
    assert choose_finalist(run, original, [None, broken, sound])[0] is sound
    chosen, _, _, verdict = choose_finalist(run, original, [broken])
    assert chosen is original
    assert "NaN" in verdict


def test_a_floor_under_the_metric_is_proved_for_the_original_too(tmp_path: Path) -> None:
    few = {"original": flips(1, 12)}
    budget = Budget(max_drop=0.01, min_metric=0.9)
    chosen, certificate, outcome, _ = choose_finalist(
        run_of(tmp_path, budget, few, 12), measured("original", tmp_path), []
    )
    assert chosen.model.title == "original"
    assert certificate.verdict != "certified"  # 11 of 12 right is no proof of 0.9
    assert not outcome.met


def test_a_limit_is_kept_only_by_the_upper_end_of_the_interval(tmp_path: Path) -> None:
    original, fast = measured("original", tmp_path), measured("fast", tmp_path, ratio=0.5)
    met = Budget(max_drop=0.01, latency_p50_seconds=0.506e-3)
    narrow = Budget(max_drop=0.01, latency_p50_seconds=0.502e-3)
    assert choose_finalist(run_of(tmp_path, met, {}), original, [fast])[2].met
    assert not choose_finalist(run_of(tmp_path, narrow, {}), original, [fast])[2].met
