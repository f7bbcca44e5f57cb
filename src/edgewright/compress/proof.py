"""Who of the finalists is chosen, and the certificate for it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgewright.compress.certify import certify
from edgewright.compress.figures import Measured, judge_budget
from edgewright.compress.ledger import LookLedger
from edgewright.compress.run import Run
from edgewright.contract.candidate import BudgetOutcome, Figures
from edgewright.contract.device import Budget
from edgewright.contract.evidence import Certificate

__all__ = ["choose"]

_LIMIT_NAMES = {
    "latency_p50_ms": "median latency",
    "latency_p95_ms": "95th percentile of latency",
    "size_bytes": "size",
    "peak_memory_bytes": "memory",
    "energy_mj": "energy",
    "max_drop": "the drop",
    "min_metric": "the metric",
}


def choose(
    run: Run, original: Measured, candidates: Sequence[Measured | None]
) -> tuple[Measured, Certificate, BudgetOutcome, str]:
    """Certify candidates in order until one keeps everything; otherwise return the original or the closest."""
    same = _identity_certificate(run)
    original_outcome = judge_budget(original.figures, same, run.budget)
    tried: list[tuple[Measured, Certificate, BudgetOutcome]] = []
    worthy = [c for c in candidates if c is not None and _is_worth_it(c.figures, original.figures, run.budget)]
    # What is measured is judged first: a look at the certify split is not spent on what fails anyway.
    fitting = [c for c in worthy if judge_budget(c.figures, same, run.budget).met]
    for candidate in fitting or worthy[:1]:
        certificate = _certificate(run, candidate.figures)
        outcome = judge_budget(candidate.figures, certificate, run.budget)
        tried.append((candidate, certificate, outcome))
        if outcome.met:
            return candidate, certificate, outcome, _good_news(candidate.figures, original.figures, certificate)
    if original_outcome.met and not tried:
        return (
            original,
            same,
            original_outcome,
            "Nothing helps: no candidate is smaller or faster. Ship the original.",
        )
    if not tried:
        return (
            original,
            same,
            original_outcome,
            (
                f"The budget cannot be met: the original breaks the limit on "
                f"{_LIMIT_NAMES[original_outcome.binding or '']}, and no candidate is closer."
            ),
        )
    certified = [entry for entry in tried if entry[1].verdict == "certified"]
    if certified:
        closest = min(certified, key=lambda entry: max(float(e["share"]) for e in entry[2].limits.values()))
        candidate, certificate, outcome = closest
        return (
            candidate,
            certificate,
            outcome,
            (
                f"The budget cannot be met: the limit on {_LIMIT_NAMES[outcome.binding or '']} binds. "
                "This is the closest certified candidate."
            ),
        )
    _, certificate, outcome = tried[0]
    outcome = BudgetOutcome(met=False, binding="max_drop", limits=outcome.limits)
    return original, certificate, outcome, f"The original is returned: {certificate.reason}"


def _is_worth_it(candidate: Figures, original: Figures, budget: Budget) -> bool:
    """Whether a candidate is smaller, or clearly faster, or keeps a limit that the original breaks."""
    smaller = candidate.size_bytes.value < original.size_bytes.value
    faster = candidate.latency_ratio.high is not None and candidate.latency_ratio.high < 1
    limited = budget.latency_p50_s or budget.latency_p95_s or budget.size_bytes or budget.peak_memory_bytes
    return smaller or faster or bool(limited)


def _certificate(run: Run, figures: Figures) -> Certificate:
    content = Path(figures.path).read_bytes()
    outputs = run.proof.outputs(content, len(run.proof.indices))
    groups = run.dataset.groups
    scalar = None
    if run.metric.kind == "scalar":
        labels = None if run.dataset.labels is None else run.dataset.labels[run.proof.indices]

        def scalar(picked: NDArray[np.intp]) -> tuple[float, float]:
            some = None if labels is None else labels[picked]
            both = [
                run.metric.scores([o[picked] for o in each], None, some, {})[0]
                for each in (run.proof.reference, outputs)
            ]
            return float(both[0]), float(both[1])

    return certify(
        run.proof.scores,
        run.proof.score(outputs, len(run.proof.indices)),
        kind=run.metric.kind,
        metric=run.metric.name,
        max_drop=run.max_drop,
        confidence=run.budget.confidence,
        groups=None if groups is None else groups[run.proof.indices],
        candidate_digest=figures.sha256,
        data_fingerprint=run.fingerprint,
        ledger=LookLedger(run.request.state),
        min_metric=run.budget.min_metric,
        scalar=scalar,
        seed=run.request.seed,
    )


def _identity_certificate(run: Run) -> Certificate:
    """Return the certificate of the original against itself, which loses nothing by definition."""
    value = float(run.proof.scores.mean())
    return Certificate(
        verdict="certified",
        metric=run.metric.name,
        original=value,
        chosen=value,
        drop=0.0,
        upper_bound=0.0,
        lower_bound=0.0,
        confidence=run.budget.confidence,
        samples=len(run.proof.indices),
        max_drop=run.max_drop,
        method="the same model",
        look=0,
        look_confidence=1.0,
        clusters=None,
        more_samples=None,
        reason="The original against itself loses nothing.",
        data=run.fingerprint,
        candidate=run.loaded.sha256,
    )


def _good_news(chosen: Figures, original: Figures, certificate: Certificate) -> str:
    size = original.size_bytes.value / chosen.size_bytes.value
    return (
        f"{size:.1f} times smaller, {chosen.latency_ratio.value:.2f} times the latency, "
        f"{certificate.metric} drops at most {certificate.upper_bound:.2%} "
        f"(certified at {certificate.confidence:.0%} on {certificate.samples} unseen samples)."
    )
