"""Trying one candidate: build it, predict cheaply, judge it on the select split, measure what is new about it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray

from edgewright.compress.certify.look_ledger import alpha_of_look
from edgewright.compress.data.dataset import Dataset
from edgewright.compress.data.model_outputs import model_outputs
from edgewright.compress.metrics.metric import Metric, output_sqnr_db, top1_agreement
from edgewright.compress.model.fusion_lint import lint_model
from edgewright.compress.output_folder import OutputFolder
from edgewright.compress.search.recipe import CandidateBuilder, Recipe
from edgewright.compress.search.space import AS_TRAINED_FORMAT, Params, SearchSpace
from edgewright.contract.compression_report import SearchTrial
from edgewright.contract.device_class import Budget
from edgewright.contract.errors import CandidateError, EdgewrightError
from edgewright.contract.measurement import Measurement
from edgewright.contract.model.signature import ModelSignature
from edgewright.profiling.latency import LatencyResult, Workload, measure_ratios
from edgewright.profiling.target import MeasurementTarget
from edgewright.runtime.options import RuntimeOptions
from edgewright.stats.exact_paired_bound import likelihood_ratio_limit

__all__ = ["SplitEvaluator", "TrialRunner", "predicted_bound"]

_ON_INTEGERS = ("static", "mended", AS_TRAINED_FORMAT)
# So many samples tell whether a candidate is hopeless.
_QUICK_SAMPLES = 64
_SECONDS_PER_FORMAT = 0.8
# Chance that a candidate's true drop is worse than what the choice assumes.
_WORSE_THAN_LIMIT = 0.3


@dataclass(slots=True)
class SplitEvaluator:
    """Scores candidates against the original on one part of the data.

    Attributes:
        dataset: All samples as the original takes them.
        model_dataset: The same samples as candidates take them.
        indices: The part.
        contract: Of the candidates.
        metric: The rule.
        reference: The original's outputs on the part.
        scores: The original's scores on the part.
    """

    dataset: Dataset
    model_dataset: Dataset
    indices: NDArray[np.intp]
    contract: ModelSignature
    metric: Metric
    reference: list[NDArray[Any]]
    scores: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        self.scores = self.score(self.reference, len(self.indices))

    def score(self, outputs: Sequence[NDArray[Any]], count: int) -> NDArray[np.float64]:
        """Return the scores of outputs for the first `count` samples of the part."""
        chosen = self.indices[:count]
        labels = None if self.dataset.labels is None else self.dataset.labels[chosen]
        inputs = {name: array[chosen] for name, array in self.dataset.inputs.items()}
        return self.metric.scores(outputs, [r[:count] for r in self.reference], labels, inputs)

    def outputs(self, model: bytes, count: int) -> list[NDArray[Any]]:
        """Run a candidate on the first `count` samples of the part."""
        return model_outputs(model, self.model_dataset, self.indices[:count], self.contract)


def predicted_bound(
    original: NDArray[np.float64],
    candidate: NDArray[np.float64],
    *,
    kind: str,
    confidence: float,
    certify_samples: int,
    groups: NDArray[Any] | None = None,
    certify_groups: int = 0,
) -> float:
    """Return the bound that a certify split would give if the truth is somewhat worse than the select split says.

    Among many candidates the luckiest looks best, so the drop is taken at the upper end of what the select
    split allows, and a gain is not believed. It only steers the choice; the certificate is computed from the
    certify split alone.
    """
    differences = original - candidate
    drop = float(differences.mean())
    count = len(differences)
    alpha = alpha_of_look(1 - confidence, 1)
    if kind == "binary":
        lost, gained = float((differences > 0).sum()), float((differences < 0).sum())
        scale = certify_samples / count
        margin = likelihood_ratio_limit(lost * scale, gained * scale, float(certify_samples), alpha) - drop
        bound = max(likelihood_ratio_limit(lost, gained, float(count), _WORSE_THAN_LIMIT), 0.0) + margin
    else:
        spread = float(differences.std(ddof=1)) if count > 1 else 0.0
        bound = max(drop + 0.5 * spread / np.sqrt(count), 0.0) + 2.0 * spread / np.sqrt(max(1, certify_samples))
    if groups is not None and certify_groups > 1:
        means = np.array([differences[groups == group].mean() for group in np.unique(groups)])
        spread = float(means.std(ddof=1)) if len(means) > 1 else abs(drop)
        doubt = 0.5 * spread / np.sqrt(len(means))
        bound = max(bound, max(drop + doubt, 0.0) + 2.2 * spread / np.sqrt(certify_groups))
    return float(bound)


@dataclass(slots=True)
class TrialRunner:
    """Performs trials of one search.

    Attributes:
        builder: Builds candidates.
        evaluator: The judge on the select split.
        certify_samples: Size of the certify split.
        certify_groups: Its groups, 0 for independent samples.
        budget: The limits.
        target: Where latency is measured.
        options: Runtime options while searching.
        folder: Where candidates are stored.
        original: The original's file.
        seed: Of the search.
        latency_ratios: Latency ratio by speed key, as far as measured.
        original_latencies: Latency of the original in each measurement.
    """

    builder: CandidateBuilder
    evaluator: SplitEvaluator
    certify_samples: int
    certify_groups: int
    budget: Budget
    target: MeasurementTarget
    options: RuntimeOptions
    folder: OutputFolder
    original: Path
    seed: int
    latency_ratios: dict[str, Measurement] = field(default_factory=dict)
    original_latencies: list[LatencyResult] = field(default_factory=list)

    def run(self, number: int, params: Params, space: SearchSpace) -> SearchTrial:
        """Try one candidate of a space; what goes wrong becomes part of the record."""
        began = time.monotonic()
        recipe = Recipe(())
        found: dict[str, Any] = {"state": "failed", "reason": ""}
        try:
            recipe = space.recipe(params)
            found = self._judged(self.builder.build(recipe), params, space)
        except CandidateError as error:
            found["reason"] = error.message
        except MemoryError:
            found["reason"] = "out of memory"
        except EdgewrightError:
            raise
        except Exception as error:  # a model may be odd in ways that nobody thought of; the others still count
            found["reason"] = f"{type(error).__name__}: {error}"
        return SearchTrial(
            number=number,
            title=recipe.title,
            recipe=msgspec.to_builtins(recipe)["steps"],
            duration_seconds=time.monotonic() - began,
            seed=self.seed,
            network_sha256=space.network,
            **found,
        )

    def predict_bound(self, scores: NDArray[np.float64]) -> float:
        """Return the bound that the certify split would give a candidate with these scores on the select split."""
        groups = self.evaluator.dataset.groups
        return predicted_bound(
            self.evaluator.scores,
            scores,
            kind=self.evaluator.metric.kind,
            confidence=self.budget.confidence,
            certify_samples=self.certify_samples,
            groups=None if groups is None else groups[self.evaluator.indices],
            certify_groups=self.certify_groups,
        )

    def recorded_ratios(self) -> dict[str, Any]:
        """Return the measured latency ratios in a form that a journal keeps."""
        return {key: msgspec.to_builtins(ratio) for key, ratio in self.latency_ratios.items()}

    def recover_ratio(self, key: str, ratio: Any) -> None:
        """Take a ratio from the journal of an earlier run on the same target."""
        self.latency_ratios.setdefault(key, msgspec.convert(ratio, Measurement))

    def _judged(self, model: onnx.ModelProto, params: Params, space: SearchSpace) -> dict[str, Any]:
        content = model.SerializeToString()
        max_drop = self.budget.max_drop or 0.01
        glance = min(_QUICK_SAMPLES, len(self.evaluator.indices))
        outputs = self.evaluator.outputs(content, glance)
        differences = self.evaluator.scores[:glance] - self.evaluator.score(outputs, glance)
        error = float(differences.std()) / np.sqrt(glance)
        facts: dict[str, Any] = {"size_bytes": len(content)}
        if float(differences.mean()) - 3 * error > max(max_drop, 1e-9) and self.evaluator.metric.kind != "scalar":
            reference = [r[:glance] for r in self.evaluator.reference]
            return {
                "state": "pruned",
                "reason": f"drop of {differences.mean():.3g} on the first {glance} samples",
                "drop": float(differences.mean()),
                "sqnr_db": output_sqnr_db(reference, outputs),
                **facts,
            }
        count = len(self.evaluator.indices)
        outputs = self.evaluator.outputs(content, count)
        scores = self.evaluator.score(outputs, count)
        digest, path = self.folder.store_candidate(content)
        share = top1_agreement(self.evaluator.reference, outputs)
        facts |= {
            "sha256": digest,
            "metric": float(scores.mean()),
            "drop": float(self.evaluator.scores.mean() - scores.mean()),
            "predicted_bound": self.predict_bound(scores),
            "changed_answers": float((scores != self.evaluator.scores).mean())
            if self.evaluator.metric.kind == "binary"
            else None,
            "sqnr_db": output_sqnr_db(self.evaluator.reference, outputs),
            "agreement": None if np.isnan(share) else share,
            "fused_fraction": lint_model(model).fused_fraction if params["form"] in _ON_INTEGERS else None,
        }
        ratio = self._ratio(path, space.latency_key(params))
        return {"state": "complete", "reason": "judged on the select split", "latency_ratio": ratio.value, **facts}

    def _ratio(self, path: Path, key: str) -> Measurement:
        if key not in self.latency_ratios:
            sample = int(self.evaluator.indices[0])
            original = Workload("original", self.original, self.options, self.evaluator.dataset.inputs_of(sample))
            candidate = Workload("candidate", path, self.options, self.evaluator.model_dataset.inputs_of(sample))
            reference, (ratio,) = measure_ratios(
                self.target, original, [candidate], seconds=_SECONDS_PER_FORMAT, seed=self.seed
            )
            if isinstance(ratio, CandidateError):
                raise ratio
            self.original_latencies.append(reference)
            self.latency_ratios[key] = ratio
        return self.latency_ratios[key]
