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
from edgewright.compress.data.model_outputs import Runnable, outputs_of
from edgewright.compress.uncertainty.ood_fit import least_samples, outlier_rule
from edgewright.contract.errors import DataError
from edgewright.contract.model.ood_detector import LogitMeasure
from edgewright.contract.model.reference_profile import Profile, Scores, Signal
from edgewright.contract.model.signature import InputContract
from edgewright.stats.calibration import are_probabilities, logs_of, softmax
from edgewright.stats.conformal import fit_sets
from edgewright.stats.drift_test import tolerance
from edgewright.stats.histograms import count, place, take_reference
from edgewright.stats.inference_features import of_samples, signal_names
from edgewright.stats.input_stats import MOST_CHANNELS, Layout
from edgewright.stats.ood_scores import scorer
from edgewright.stats.selective_prediction import fit_acceptance
from edgewright.stats.thinning import Thinning, choose_thinning

__all__ = ["LEAST_SAMPLES", "layout_of", "reference_profile"]

LEAST_SAMPLES = 100
"""Of fewer no profile is made."""

_MOST_SAMPLES = 20_000
_LEAST_GROUPS = 5
# Shares of usual inputs that may be called unusual: the lowest that the samples can show.
_RATES = (0.02, 0.1)
# Share of prediction sets that may miss the class, and of accepted answers that may be wrong.
_MISSED, _WRONG = 0.1, 0.05


def reference_profile(
    model: Runnable,
    dataset: Dataset,
    contract: InputContract,
    *,
    seed: int = 0,
    in_order: bool = False,
    interval_s: float = 0.0,
    alpha: float = 0.05,
    answers: Sequence[NDArray[Any]] | None = None,
) -> Profile | None:
    """Return the profile of a model, None if there is nothing to watch or too few samples.

    Args:
        model: Whose answers are watched.
        dataset: Samples that the model was not fitted to, in its own form.
        contract: Of the model.
        seed: Of the split into those that edges are drawn from and those that are counted.
        in_order: Whether the samples of each group (all, without groups) are one device's, in order.
        interval_s: Time between two of them, if they came evenly; 0 if unknown.
        alpha: False alarms of drift that are allowed in a period.
        answers: The model's outputs to all samples, in their order, if they are known; else it is run.

    Raises:
        DataError: Too few samples are left that can pass for independent.
        CandidateError: The model cannot be run.
    """
    watched = [spec for spec in contract.inputs if np.dtype(spec.dtype).kind in "fiub"]
    if not watched or len(dataset) < LEAST_SAMPLES:
        return None
    spec = watched[0]
    chosen = np.arange(len(dataset), dtype=np.intp)
    if len(chosen) > _MOST_SAMPLES and not in_order:
        chosen = np.sort(np.random.default_rng(seed).choice(chosen, _MOST_SAMPLES, replace=False))
    samples = dataset.inputs[spec.name][chosen]
    if answers is None:
        answers = outputs_of(model, dataset, chosen, contract)
    else:
        answers = [output[chosen] for output in answers]
    scores, classes = _scores(answers, dataset.task)
    layout = layout_of(samples, classes)
    values = of_samples(samples, answers[0] if scores else None, layout, scores)
    names = list(signal_names(layout, scores))
    kept = [number for number, name in enumerate(names) if not _says_nothing(name, layout)]
    values, names = values[:, kept], [names[number] for number in kept]
    groups = None if dataset.groups is None else dataset.groups[chosen]
    numbers = [classes if name == "class" else 0 for name in names]
    reference = take_reference(values, seed=seed, groups=groups, classes=numbers)
    thinning, left = Thinning(1, 0.0, True, len(values), 1.0), np.arange(len(values), dtype=np.intp)
    if in_order:
        thinning, left = _thinned(values, reference.edges, groups, interval_s)
        values, groups = values[left], None if groups is None else groups[left]
        reference = take_reference(values, seed=seed, groups=groups, classes=numbers)
    # Promises are about independent samples: of each group one, of a stream those that are taken.
    alone = left if groups is None else left[np.unique(groups, return_index=True)[1]]
    harmless = _harmless(values, groups, reference.edges)
    return Profile(
        input=spec.name,
        values=layout.values,
        signals=tuple(
            _signal(name, edges, counts, delta)
            for name, edges, counts, delta in zip(names, reference.edges, reference.counts, harmless, strict=True)
        ),
        channels=layout.channels,
        interleaved=layout.interleaved,
        scores=scores,
        classes=classes,
        step=thinning.step,
        gap_s=thinning.gap_s,
        testable=thinning.testable,
        alpha=alpha,
        data=dataset.fingerprint,
        **_doubt(answers[0], scores, dataset.labels, chosen, alone),
    )


def _doubt(
    answers: NDArray[np.generic],
    scores: Scores,
    labels: NDArray[np.generic] | None,
    chosen: NDArray[np.intp],
    alone: NDArray[np.intp],
) -> dict[str, Any]:
    """Return the rules by which a device doubts an answer, as far as samples and labels allow."""
    if not scores:
        return {}
    values = np.asarray(answers, np.float64)[alone]
    logits = values if scores == "logits" else logs_of(values)
    measures = [LogitMeasure("energy"), LogitMeasure("margin")] if scores == "logits" else [LogitMeasure("margin")]
    rules: dict[str, Any] = {}
    # Together they reject at most the sum of their rates.
    each = next(
        (rate / len(measures) for rate in _RATES if len(values) >= least_samples(rate / len(measures))), None
    )
    if each is not None:
        rules["unusual"] = tuple(outlier_rule(one, scorer(one)(logits), each) for one in measures)
    if labels is not None and labels.ndim == 1 and len(values) >= LEAST_SAMPLES:
        known = np.asarray(labels[chosen], np.intp)[alone]
        probabilities = softmax(logits)
        rules["sets"] = fit_sets(probabilities, known, _MISSED)
        hits = probabilities.argmax(axis=1) == known
        rules["accept"] = fit_acceptance(probabilities.max(axis=1), hits, _WRONG)
    return rules


def layout_of(samples: NDArray[np.generic], classes: int) -> Layout:
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
            Layout(values, values, True, classes)
            if 1 < values <= MOST_CHANNELS
            else Layout(values, outputs=classes)
        )
    planes = len(inner) > 2
    if first <= MOST_CHANNELS and (planes or last > MOST_CHANNELS):
        return Layout(values, first, False, classes)
    if last <= MOST_CHANNELS:
        return Layout(values, last, True, classes)
    return Layout(values, outputs=classes)


def _scores(answers: Sequence[NDArray[np.generic]], task: str) -> tuple[Scores, int]:
    """Return what the first output holds, and for how many classes."""
    first = answers[0]
    if first.dtype.kind != "f" or first.ndim != 2 or first.shape[1] < 2:
        return "", 0
    values = np.asarray(first, np.float64)
    if are_probabilities(values):
        return "probabilities", values.shape[1]
    return ("logits", values.shape[1]) if task == "classification" else ("", 0)


def _says_nothing(name: str, layout: Layout) -> bool:
    """Whether a statistic is known without looking: a single value has no spread, and features no neighbours."""
    single = layout.values == layout.channels
    return single and (name.startswith("spread_") or name == "roughness")


def _thinned(
    values: NDArray[np.float64], edges: NDArray[np.float64], groups: NDArray[np.generic] | None, interval_s: float
) -> tuple[Thinning, NDArray[np.intp]]:
    """Return how a stream is thinned, and which of its rows are left."""
    whole = np.zeros(len(values), np.intp)
    owners = whole if groups is None else groups
    rows = [np.flatnonzero(owners == owner) for owner in np.unique(owners)]
    places = place(values, edges)
    thinning = choose_thinning([places[each] for each in rows], interval_s=interval_s)
    kept = np.concatenate([each[:: thinning.step] for each in rows])
    if len(kept) < LEAST_SAMPLES:
        raise DataError(
            f"{len(values)} samples in order hold {len(kept)} that can pass for independent",
            remedy=f"Give a longer stream: at least {LEAST_SAMPLES} must be left.",
        )
    return thinning, kept


def _harmless(
    values: NDArray[np.float64], groups: NDArray[np.generic] | None, edges: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return how far, by signal, nine of ten groups stray from the others; 0 without enough groups."""
    names = [] if groups is None else list(np.unique(groups))
    if groups is None or len(names) < _LEAST_GROUPS:
        return np.zeros(len(edges))
    counted = np.stack([count(values[groups == name], edges) for name in names])
    return tolerance(counted, quantile=0.9).delta


def _signal(name: str, edges: NDArray[np.float64], counts: NDArray[np.int64], delta: float) -> Signal:
    finite = edges[np.isfinite(edges)]
    used = [*counts[: len(finite) + 1].tolist(), int(counts[-1])]
    return Signal(name, tuple(finite.tolist()), tuple(used), float(delta))
