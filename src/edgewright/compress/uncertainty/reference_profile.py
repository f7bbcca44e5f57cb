"""The reference profile of a model: what its inputs and its answers look like on samples that were held back.

Devices compare what they see with it. Its false alarms are bounded if its samples are as independent as those that
devices take: samples of one group (subject, speaker, machine) show how far devices stray without harm, and samples
that came in order, as one device sees them, show how far apart observations must be.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewright.compress.data.dataset import Dataset
from edgewright.compress.data.model_outputs import Runnable, model_outputs
from edgewright.compress.uncertainty.ood_fit import fit_ood_rule, min_ood_samples
from edgewright.contract.errors import DataError
from edgewright.contract.model.ood_detector import LogitScore
from edgewright.contract.model.reference_profile import OutputKind, ReferenceProfile, ReferenceSignal
from edgewright.contract.model.signature import ModelSignature
from edgewright.stats.calibration import are_probabilities, log_probabilities, softmax
from edgewright.stats.conformal import fit_prediction_sets
from edgewright.stats.drift_test import fit_tolerance
from edgewright.stats.histograms import bin_index, build_reference_histogram, count_by_bin
from edgewright.stats.inference_features import features_of_samples, signal_names
from edgewright.stats.input_stats import MAX_CHANNELS, InputLayout
from edgewright.stats.ood_scores import ood_scorer
from edgewright.stats.selective_prediction import fit_acceptance
from edgewright.stats.thinning import TemporalThinning, choose_thinning

__all__ = ["MIN_PROFILE_SAMPLES", "build_reference_profile", "infer_layout"]

MIN_PROFILE_SAMPLES = 100
"""Of fewer no profile is made."""

_MAX_SAMPLES = 20_000
_MIN_GROUPS = 5
# Shares of usual inputs that may be called unusual: the lowest that the samples can show.
_FALSE_REJECTION_RATES = (0.02, 0.1)
# Share of prediction sets that may miss the class, and of accepted answers that may be wrong.
_MISCOVERAGE, _SELECTIVE_RISK = 0.1, 0.05


def build_reference_profile(
    model: Runnable,
    dataset: Dataset,
    contract: ModelSignature,
    *,
    seed: int = 0,
    in_order: bool = False,
    interval_seconds: float = 0.0,
    alpha: float = 0.05,
    answers: Sequence[NDArray[Any]] | None = None,
) -> ReferenceProfile | None:
    """Return the profile of a model, None if there is nothing to watch or too few samples.

    Args:
        model: Whose answers are watched.
        dataset: Samples that the model was not fitted to, in its own form.
        contract: Of the model.
        seed: Of the split into those that edges are drawn from and those that are counted.
        in_order: Whether the samples of each group (all, without groups) are one device's, in order.
        interval_seconds: Time between two of them, if they came evenly; 0 if unknown.
        alpha: False alarms of drift that are allowed in a period.
        answers: The model's outputs to all samples, in their order, if they are known; else it is run.

    Raises:
        DataError: Too few samples are left that can pass for independent.
        CandidateError: The model cannot be run.
    """
    watched = [spec for spec in contract.inputs if np.dtype(spec.dtype).kind in "fiub"]
    if not watched or len(dataset) < MIN_PROFILE_SAMPLES:
        return None
    spec = watched[0]
    chosen = np.arange(len(dataset), dtype=np.intp)
    if len(chosen) > _MAX_SAMPLES and not in_order:
        chosen = np.sort(np.random.default_rng(seed).choice(chosen, _MAX_SAMPLES, replace=False))
    samples = dataset.inputs[spec.name][chosen]
    if answers is None:
        answers = model_outputs(model, dataset, chosen, contract)
    else:
        answers = [output[chosen] for output in answers]
    scores, classes = _scores(answers, dataset.task)
    layout = infer_layout(samples, classes)
    values = features_of_samples(samples, answers[0] if scores else None, layout, scores)
    names = list(signal_names(layout, scores))
    kept = [number for number, name in enumerate(names) if not _is_uninformative(name, layout)]
    values, names = values[:, kept], [names[number] for number in kept]
    groups = None if dataset.groups is None else dataset.groups[chosen]
    numbers = [classes if name == "class" else 0 for name in names]
    reference = build_reference_histogram(values, seed=seed, groups=groups, class_counts=numbers)
    thinning, left = TemporalThinning(1, 0.0, True, len(values), 1.0), np.arange(len(values), dtype=np.intp)
    if in_order:
        thinning, left = _thin_stream(values, reference.edges, groups, interval_seconds)
        values, groups = values[left], None if groups is None else groups[left]
        reference = build_reference_histogram(values, seed=seed, groups=groups, class_counts=numbers)
    # Promises are about independent samples: of each group one, of a stream those that are taken.
    alone = left if groups is None else left[np.unique(groups, return_index=True)[1]]
    harmless = _harmless_shift(values, groups, reference.edges)
    return ReferenceProfile(
        input=spec.name,
        values_per_sample=layout.values_per_sample,
        signals=tuple(
            _signal(name, edges, counts, delta)
            for name, edges, counts, delta in zip(names, reference.edges, reference.counts, harmless, strict=True)
        ),
        channels=layout.channels,
        interleaved=layout.channels_last,
        output_kind=scores,
        classes=classes,
        thinning_step=thinning.step,
        min_gap_seconds=thinning.min_gap_seconds,
        is_testable=thinning.is_testable,
        alpha=alpha,
        data_fingerprint=dataset.fingerprint,
        **_uncertainty_rules(answers[0], scores, dataset.labels, chosen, alone),
    )


def _uncertainty_rules(
    answers: NDArray[np.generic],
    scores: OutputKind,
    labels: NDArray[np.generic] | None,
    chosen: NDArray[np.intp],
    alone: NDArray[np.intp],
) -> dict[str, Any]:
    """Return the rules by which a device doubts an answer, as far as samples and labels allow."""
    if not scores:
        return {}
    values = np.asarray(answers, np.float64)[alone]
    logits = values if scores == "logits" else log_probabilities(values)
    measures = [LogitScore("energy"), LogitScore("margin")] if scores == "logits" else [LogitScore("margin")]
    rules: dict[str, Any] = {}
    # Together they reject at most the sum of their rates.
    each = next(
        (
            rate / len(measures)
            for rate in _FALSE_REJECTION_RATES
            if len(values) >= min_ood_samples(rate / len(measures))
        ),
        None,
    )
    if each is not None:
        rules["ood_rules"] = tuple(fit_ood_rule(one, ood_scorer(one)(logits), each) for one in measures)
    if labels is not None and labels.ndim == 1 and len(values) >= MIN_PROFILE_SAMPLES:
        known = np.asarray(labels[chosen], np.intp)[alone]
        probabilities = softmax(logits)
        rules["prediction_sets"] = fit_prediction_sets(probabilities, known, _MISCOVERAGE)
        hits = probabilities.argmax(axis=1) == known
        rules["acceptance"] = fit_acceptance(probabilities.max(axis=1), hits, _SELECTIVE_RISK)
    return rules


def infer_layout(samples: NDArray[np.generic], classes: int) -> InputLayout:
    """Return what a sample looks like: the first or the last axis holds channels if it is short.

    Args:
        samples: Shape [samples, ...], each as one inference takes it.
        classes: Of the output, 0 for none.
    """
    shape = samples.shape[1:]
    inner = shape[1:] if len(shape) > 1 else shape  # without the axis of the batch
    values = int(np.prod(shape))
    first, last = (inner[0], inner[-1]) if inner else (1, 1)
    if len(inner) <= 1:  # features of a table
        return (
            InputLayout(values, values, True, classes)
            if 1 < values <= MAX_CHANNELS
            else InputLayout(values, output_scores=classes)
        )
    planes = len(inner) > 2
    if first <= MAX_CHANNELS and (planes or last > MAX_CHANNELS):
        return InputLayout(values, first, False, classes)
    if last <= MAX_CHANNELS:
        return InputLayout(values, last, True, classes)
    return InputLayout(values, output_scores=classes)


def _scores(answers: Sequence[NDArray[np.generic]], task: str) -> tuple[OutputKind, int]:
    """Return what the first output holds, and for how many classes."""
    first = answers[0]
    if first.dtype.kind != "f" or first.ndim != 2 or first.shape[1] < 2:
        return "", 0
    values = np.asarray(first, np.float64)
    if are_probabilities(values):
        return "probabilities", values.shape[1]
    return ("logits", values.shape[1]) if task == "classification" else ("", 0)


def _is_uninformative(name: str, layout: InputLayout) -> bool:
    """Whether a statistic is known without looking: a single value has no spread, and features no neighbours."""
    single = layout.values_per_sample == layout.channels
    return single and (name.startswith("std_") or name == "roughness")


def _thin_stream(
    values: NDArray[np.float64],
    edges: NDArray[np.float64],
    groups: NDArray[np.generic] | None,
    interval_seconds: float,
) -> tuple[TemporalThinning, NDArray[np.intp]]:
    """Return how a stream is thinned, and which of its rows are left."""
    whole = np.zeros(len(values), np.intp)
    owners = whole if groups is None else groups
    rows = [np.flatnonzero(owners == owner) for owner in np.unique(owners)]
    places = bin_index(values, edges)
    thinning = choose_thinning([places[each] for each in rows], interval_seconds=interval_seconds)
    kept = np.concatenate([each[:: thinning.step] for each in rows])
    if len(kept) < MIN_PROFILE_SAMPLES:
        raise DataError(
            f"{len(values)} samples in order hold {len(kept)} that can pass for independent",
            remedy=f"Give a longer stream: at least {MIN_PROFILE_SAMPLES} must be left.",
        )
    return thinning, kept


def _harmless_shift(
    values: NDArray[np.float64], groups: NDArray[np.generic] | None, edges: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return how far, by signal, nine of ten groups stray from the others; 0 without enough groups."""
    names = [] if groups is None else list(np.unique(groups))
    if groups is None or len(names) < _MIN_GROUPS:
        return np.zeros(len(edges))
    counted = np.stack([count_by_bin(values[groups == name], edges) for name in names])
    return fit_tolerance(counted, quantile=0.9).delta


def _signal(name: str, edges: NDArray[np.float64], counts: NDArray[np.int64], delta: float) -> ReferenceSignal:
    finite = edges[np.isfinite(edges)]
    used = [*counts[: len(finite) + 1].tolist(), int(counts[-1])]
    return ReferenceSignal(name, tuple(finite.tolist()), tuple(used), float(delta))
