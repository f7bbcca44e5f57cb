"""Who of the finalists is chosen, and the certificate for it."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgewright.compress.certify.certificate import certify
from edgewright.compress.certify.final_measurement import MeasuredFinalist, evaluate_budget
from edgewright.compress.certify.look_ledger import LookLedger
from edgewright.compress.context import CompressionRun
from edgewright.contract.certificate import Certificate
from edgewright.contract.compression_report import BudgetOutcome, ModelFigures
from edgewright.contract.device_class import Budget
from edgewright.contract.errors import CandidateError

__all__ = ["MAX_SLOWDOWN", "choose_finalist"]

# A choice may not be slower than the original by more than this, at the upper end of the paired interval.
MAX_SLOWDOWN = 1.05
_ABOUT_THE_SAME = 1.02

_LIMIT_NAMES = {
    "latency_p50_ms": "median latency",
    "latency_p95_ms": "95th percentile of latency",
    "size_bytes": "size",
    "peak_memory_bytes": "memory",
    "energy_mj": "energy",
    "max_drop": "the drop",
    "min_metric": "the metric",
}


def choose_finalist(
    run: CompressionRun, original: MeasuredFinalist, candidates: Sequence[MeasuredFinalist | None]
) -> tuple[MeasuredFinalist, Certificate, BudgetOutcome, str]:
    """Certify candidates in order until one keeps everything; otherwise return the original or the closest."""
    same = _identity_certificate(run)
    measured = msgspec.structs.replace(run.budget, min_metric=None)
    original_outcome = evaluate_budget(original.model, same, measured)
    worthy = [
        candidate
        for candidate in candidates
        if candidate is not None and _is_improvement(candidate.model, original.model, same, measured)
    ]
    # What is measured is judged first: a look at the certify split is not spent on what fails anyway.
    fitting = [c for c in worthy if evaluate_budget(c.model, same, measured).met]
    tried: list[tuple[MeasuredFinalist, Certificate, BudgetOutcome]] = []
    problem = ""
    for candidate in fitting or ([] if original_outcome.met else worthy[:1]):
        try:
            certificate = _certificate(run, candidate.model, candidate.model.path)
        except CandidateError as error:  # it answers NaN, or the metric is not defined on its answers
            problem = error.message
            continue
        outcome = evaluate_budget(candidate.model, certificate, run.budget)
        tried.append((candidate, certificate, outcome))
        if outcome.met:
            return candidate, certificate, outcome, _success_sentence(candidate.model, original.model, certificate)
    certified = [entry for entry in tried if entry[1].verdict == "certified"]
    if certified:
        closest = min(certified, key=lambda entry: max(float(e["share"]) for e in entry[2].limits.values()))
        limit = _LIMIT_NAMES[closest[2].binding_limit or ""]
        return (
            *closest,
            f"The budget cannot be met: the limit on {limit} binds. This is the closest certified candidate.",
        )
    if tried:
        certificate = tried[0][1]
        outcome = evaluate_budget(original.model, certificate, run.budget)
        binding = "min_metric" if certificate.upper_bound <= certificate.max_drop else "max_drop"
        outcome = BudgetOutcome(met=False, binding_limit=binding, limits=outcome.limits)
        return original, certificate, outcome, f"The original is returned: {certificate.reason}"
    return _without_candidates(run, original, same, problem)


def _without_candidates(
    run: CompressionRun, original: MeasuredFinalist, same: Certificate, problem: str
) -> tuple[MeasuredFinalist, Certificate, BudgetOutcome, str]:
    """Return the original, with its own certificate of the floor if there is one to keep."""
    if run.budget.min_metric is not None:
        same = _certificate(run, original.model, None)
    outcome = evaluate_budget(original.model, same, run.budget)
    if problem:
        return original, same, outcome, f"The original is returned: no candidate could be judged ({problem})."
    if outcome.met:
        return original, same, outcome, "Nothing helps: no candidate is smaller or faster. Ship the original."
    limit = _LIMIT_NAMES[outcome.binding_limit or ""]
    return (
        original,
        same,
        outcome,
        f"The budget cannot be met: the original breaks the limit on {limit}, and no candidate helps.",
    )


def _is_improvement(candidate: ModelFigures, original: ModelFigures, same: Certificate, measured: Budget) -> bool:
    """Whether a candidate is smaller or clearly faster, and not slower.

    Where the original breaks a limit, whether the candidate comes closer to it.
    """
    before, outcome = (evaluate_budget(figures, same, measured) for figures in (original, candidate))
    if not before.met:
        broken = [name for name, entry in before.limits.items() if not entry["kept"]]
        return any(_value(outcome, name) < _value(before, name) for name in broken)
    smaller = candidate.size_bytes.value < original.size_bytes.value
    ratio = candidate.latency_ratio
    highest = ratio.value if ratio.high is None else ratio.high
    # A short measurement has a wide interval; then the middle must not be slower either.
    return highest < 1 or (smaller and (highest <= MAX_SLOWDOWN or ratio.value <= _ABOUT_THE_SAME))


def _value(outcome: BudgetOutcome, name: str) -> float:
    value = outcome.limits[name]["value"]
    return float("inf") if value is None else float(value)


def _certificate(run: CompressionRun, figures: ModelFigures, path: str | None) -> Certificate:
    """Judge the model at a path on the certify split; without a path the original itself."""
    outputs = run.certify_evaluator.reference
    if path is not None:
        outputs = run.certify_evaluator.outputs(Path(path).read_bytes(), len(run.certify_evaluator.indices))
    groups = run.dataset.groups
    scalar = None
    if run.metric.kind == "scalar":
        labels = None if run.dataset.labels is None else run.dataset.labels[run.certify_evaluator.indices]

        def scalar(picked: NDArray[np.intp]) -> tuple[float, float]:
            some = None if labels is None else labels[picked]
            both = [
                run.metric.scores([o[picked] for o in each], None, some, {})[0]
                for each in (run.certify_evaluator.reference, outputs)
            ]
            return float(both[0]), float(both[1])

    return certify(
        run.certify_evaluator.scores,
        run.certify_evaluator.score(outputs, len(run.certify_evaluator.indices)),
        kind=run.metric.kind,
        metric=run.metric.name,
        max_drop=run.max_drop,
        confidence=run.budget.confidence,
        groups=None if groups is None else groups[run.certify_evaluator.indices],
        candidate_digest=figures.sha256,
        data_fingerprint=run.fingerprint,
        ledger=LookLedger(run.request.state_folder),
        ledger_key=run.dataset.fingerprint,
        min_metric=run.budget.min_metric,
        scalar=scalar,
        seed=run.request.seed,
    )


def _identity_certificate(run: CompressionRun) -> Certificate:
    """Return the certificate of the original against itself, which loses nothing by definition."""
    value = float(run.certify_evaluator.scores.mean())
    return Certificate(
        verdict="certified",
        metric=run.metric.name,
        original_metric=value,
        chosen_metric=value,
        drop=0.0,
        upper_bound=0.0,
        lower_bound=0.0,
        confidence=run.budget.confidence,
        sample_count=len(run.certify_evaluator.indices),
        max_drop=run.max_drop,
        method="the same model",
        look=0,
        look_confidence=1.0,
        cluster_count=None,
        additional_samples_needed=None,
        reason="The original against itself loses nothing.",
        data_fingerprint=run.fingerprint,
        candidate_sha256=run.loaded.sha256,
    )


def _success_sentence(chosen: ModelFigures, original: ModelFigures, certificate: Certificate) -> str:
    ratio = original.size_bytes.value / chosen.size_bytes.value
    size = f"{ratio:.1f} times smaller" if ratio >= 1.05 else f"{1 / ratio:.2f} times the size"
    groups = "" if certificate.cluster_count is None else f" from {certificate.cluster_count} groups"
    asymptotic = ", asymptotic bound" if "asymptotic" in certificate.method else ""
    return (
        f"{size}, {chosen.latency_ratio.value:.2f} times the latency, "
        f"{certificate.metric} drops at most {certificate.upper_bound:.2%} "
        f"(certified at {certificate.confidence:.0%} on {certificate.sample_count} unseen samples{groups}{asymptotic})."
    )
