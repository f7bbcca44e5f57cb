"""How well unusual and attacked inputs are found; what calibration and prediction sets hold, also after shifts.

    python benchmarks/outliers.py            everything; writes benchmarks/results/outliers.json
    python benchmarks/outliers.py --quick    a smoke run of half a minute on scikit-learn's digits
    python benchmarks/outliers.py --only fashion

For each data set a small network is trained without some classes, softened by a temperature, and its embedding
exposed, all as ONNX. Then every measure gets its threshold for a stated rate of false rejections, and is tried on
usual samples (the rate must hold), near, far and attacked ones. scikit-learn's outlier detectors on the same
embedding stand beside it. Nothing is promised after a shift; the figures say what happens there.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import numpy as np
import onnx
import torch
from benchmarks.parts import run_parts
from benchmarks.report import ROOT, Figure, Interval
from benchmarks.unusual.attack import ATTACKS
from benchmarks.unusual.judge import auroc, kept_coverage, share
from benchmarks.unusual.material import MATERIALS, Labelled, Material
from benchmarks.unusual.network import trained
from numpy.typing import NDArray
from sklearn.ensemble import IsolationForest
from sklearn.neighbors import LocalOutlierFactor

from edgewright.compress.model.embedding_output import EMBEDDING_OUTPUT, expose_embedding
from edgewright.compress.model.graph import session_bytes
from edgewright.compress.train.torch_graph.onnx_module import TrainableGraph
from edgewright.compress.uncertainty.ood_fit import fit_mahalanobis, fit_neighbours, fit_ood_rule
from edgewright.compress.uncertainty.temperature_scaling import scale_logits
from edgewright.contract.model.ood_detector import FeatureSqueezing, LogitScore, OodScore
from edgewright.stats.calibration import (
    expected_calibration_error,
    fit_temperature_scaling,
    fit_vector_scaling,
    negative_log_likelihood,
    softmax,
)
from edgewright.stats.conformal import fit_prediction_sets, is_accepted, prediction_sets, set_coverage
from edgewright.stats.ood_scores import (
    is_out_of_distribution,
    logit_scores,
    ood_scorer,
    prediction_l1_distance,
    squeeze_features,
)
from edgewright.stats.selective_prediction import fit_acceptance

NAME = "outliers"
PACKAGES = ("edgewright", "numpy", "onnxruntime", "scikit-learn", "torch")
SHARED = ROOT.parent / "shared" / "data"
RATE = 0.05
COVERED = 0.9
ACCEPTED_ERROR = 0.05
_ATTACKED = 300
# Fewer successful attacks tell nothing.
_LEAST_ATTACKED = 20
_PEER_SAMPLES = 3000

Floats = NDArray[np.float32]
Answers = list[NDArray[Any]]
# From samples and what the network answers to them.
Scoring = Callable[[Floats, Answers], NDArray[np.floating]]


@dataclass(frozen=True, slots=True)
class Subject:
    """A softened network with its embedding, run by onnxruntime."""

    model: onnx.ModelProto
    run: Callable[[Floats], Answers]
    plain: Callable[[Floats], NDArray[Any]]


def _subject(material: Material) -> Subject:
    model = trained(material)
    bare = session_bytes(model)
    x, y = material.calibrate[0][::2], material.calibrate[1][::2]

    def plain(samples: Floats) -> NDArray[Any]:
        return np.concatenate([bare.run(None, {"x": part})[0] for part in _batches(samples)])

    softened = expose_embedding(scale_logits(model, fit_temperature_scaling(plain(x), y)))
    session = session_bytes(softened)

    def run(samples: Floats) -> Answers:
        parts = [session.run(["logits", EMBEDDING_OUTPUT], {"x": part}) for part in _batches(samples)]
        return [np.concatenate(pieces) for pieces in zip(*parts, strict=True)]

    return Subject(softened, run, plain)


def _batches(samples: Floats) -> list[Floats]:
    return [samples[start : start + 256] for start in range(0, len(samples), 256)]


def _measures(subject: Subject, material: Material) -> dict[str, tuple[OodScore | None, Scoring]]:
    """Return each measure, and the function from samples to its scores; None for a peer's."""
    x, y = material.train[0][:20_000], material.train[1][:20_000]
    embedding = subject.run(x)[1]
    spread = material.high - material.low
    squeezes = {
        "bits": FeatureSqueezing("x", bits=3 if spread == 1 else 5, low=material.low, high=material.high),
        "median": FeatureSqueezing("x", window=3, axes=material.axes),
    }
    of_logits: list[OodScore] = [LogitScore("energy"), LogitScore("confidence"), LogitScore("margin")]
    of_embedding: dict[str, OodScore] = {
        "mahalanobis": fit_mahalanobis(EMBEDDING_OUTPUT, embedding, y),
        "relative mahalanobis": fit_mahalanobis(EMBEDDING_OUTPUT, embedding, y, relative=True),
        "neighbours": fit_neighbours(EMBEDDING_OUTPUT, embedding),
    }
    found: dict[str, tuple[OodScore | None, Scoring]] = {}
    for measure in of_logits:
        assert isinstance(measure, LogitScore)
        found[measure.score] = measure, _scoring(measure, 0)
    for name, measure in of_embedding.items():
        found[name] = measure, _scoring(measure, 1)
    for name, squeezing in squeezes.items():
        found[f"squeezing {name}"] = squeezing, _squeezing(subject, squeezing)
    few = embedding[np.random.default_rng(0).permutation(len(embedding))[:_PEER_SAMPLES]]
    peers = {
        "sklearn LocalOutlierFactor": LocalOutlierFactor(novelty=True).fit(few),
        "sklearn IsolationForest": IsolationForest(random_state=0).fit(few),
    }
    for name, peer in peers.items():
        found[name] = None, _peer(peer)
    return found


def _scoring(measure: OodScore, place: int) -> Scoring:
    scored = ood_scorer(measure)
    return lambda _, answers: scored(answers[place])


def _squeezing(subject: Subject, measure: FeatureSqueezing) -> Scoring:
    def scored(samples: Floats, answers: Answers) -> NDArray[np.floating]:
        again = subject.run(squeeze_features(samples, measure))
        return prediction_l1_distance(softmax(answers[0]), softmax(again[0]))

    return scored


def _peer(peer: Any) -> Scoring:
    return lambda _, answers: np.asarray(-peer.score_samples(answers[1]))


def _attacked(subject: Subject, material: Material, *, quick: bool) -> tuple[dict[str, Floats], list[Figure]]:
    """Return the attacks that succeed, and how often each does."""
    network = TrainableGraph(subject.model)
    network.eval()
    many = 150 if quick else _ATTACKED
    x, y = material.usual[0][:many], material.usual[1][:many]
    right = subject.run(x)[0].argmax(axis=1) == y
    x, y = x[right], y[right]
    found, figures = {}, []
    for strength in material.strengths:
        for name, attack in ATTACKS.items():
            made = attack(
                network, torch.from_numpy(x), torch.from_numpy(y), strength, (material.low, material.high)
            ).numpy()
            assert np.abs(made - x).max() <= strength * (1 + 1e-3) + 1e-6
            fooled = subject.run(made)[0].argmax(axis=1) != y
            title = f"attacked: {name} {strength:.3g}"
            figures.append(
                _stated(f"{title}.success", share(fooled), f"share of {len(y)} right answers that became wrong")
            )
            if fooled.sum() >= _LEAST_ATTACKED:
                found[title] = made[fooled]
    return found, figures


def _stated(name: str, value: Interval, note: str, peer: str | None = None) -> Figure:
    return Figure(name, value, None, peer, True, note)


def _found(subject: Subject, material: Material, *, quick: bool) -> list[Figure]:
    attacked, figures = _attacked(subject, material, quick=quick)
    strange = {**material.strange, **{f"shift: {name}": x for name, (x, _) in material.shifted.items()}, **attacked}
    sets = {"calibrate": material.calibrate[0][1::2], "usual": material.usual[0], **strange}
    answers = {title: subject.run(samples) for title, samples in sets.items()}
    for name, (measure, scored) in _measures(subject, material).items():
        # A peer's threshold is set in the same way.
        rule = fit_ood_rule(measure or LogitScore("energy"), scored(sets["calibrate"], answers["calibrate"]), RATE)
        usual = scored(sets["usual"], answers["usual"])
        peer = None if measure else name
        rejected = share(is_out_of_distribution(usual, rule))
        note = rule.guarantee.describe if measure else "threshold set as for the others"
        figures.append(Figure(f"{name}.false rejections", rejected, RATE, peer, rejected.low <= RATE, note))
        for title, samples in strange.items():
            scores = scored(samples, answers[title])
            told = auroc(usual, scores)
            note = f"AUROC {told.value:.4f} ({told.low:.4f} to {told.high:.4f}), {len(scores)} samples"
            figures.append(
                _stated(f"{title}.{name}.rejected", share(is_out_of_distribution(scores, rule)), note, peer)
            )
    return figures


def _trusted(subject: Subject, material: Material) -> list[Figure]:
    """What calibrated confidence, sets and acceptance hold on usual and on shifted samples."""
    samples, labels = material.calibrate
    vector = fit_vector_scaling(subject.plain(samples[::2]), labels[::2])
    x, y = samples[1::2], labels[1::2]
    logits = subject.run(x)[0]
    chances = softmax(logits)
    sets = {
        "sets lac": fit_prediction_sets(chances, y, 1 - COVERED),
        "sets aps": fit_prediction_sets(chances, y, 1 - COVERED, method="aps"),
        "sets lac by class": fit_prediction_sets(chances, y, 1 - COVERED, stratified_by="class"),
    }
    acceptance = fit_acceptance(logit_scores(logits).confidence, logits.argmax(axis=1) == y, ACCEPTED_ERROR)
    figures = []
    cases: dict[str, Labelled] = {"usual": material.usual, **material.shifted}
    for case, (samples, labels) in cases.items():
        usual = case == "usual"
        raw, scaled = subject.plain(samples), subject.run(samples)[0]
        hits = scaled.argmax(axis=1) == labels
        figures.append(_stated(f"{case}.accuracy", share(hits), f"{len(labels)} samples"))
        for title, outputs in (("plain", raw), ("temperature", scaled), ("vector", vector.apply(raw))):
            sure = softmax(outputs)
            right = sure.argmax(axis=1) == labels
            error = expected_calibration_error(sure.max(axis=1), right)
            loss = f"plain {error.plugin:.4f}, rms {error.rms:.4f}, nll {negative_log_likelihood(sure, labels):.4f}"
            figures.append(_stated(f"{case}.ece {title}", Interval.exact(error.debiased), f"debiased; {loss}"))
        for title, rule in sets.items():
            seen = set_coverage(prediction_sets(softmax(scaled), rule), labels)
            covered = share(np.arange(seen.sample_count) < seen.covered_count)
            note = f"mean size {seen.mean_set_size:.2f}, single {seen.singleton_fraction:.2f}; "
            note += rule.guarantee.describe if usual else "a shift: nothing is promised"
            limit = COVERED if usual else None
            holds = not usual or kept_coverage(seen.covered_count, seen.sample_count, len(y), COVERED)
            figures.append(Figure(f"{case}.{title}.coverage", covered, limit, None, holds, note))
        if acceptance is None:
            continue
        taken = is_accepted(logit_scores(scaled).confidence, acceptance)
        wrong = share(~hits[taken]) if taken.any() else Interval.exact(0.0)
        note = f"accepted {taken.mean():.3f}; "
        note += acceptance.guarantee.describe if usual else "a shift: nothing is promised"
        limit = ACCEPTED_ERROR if usual else None
        holds = not usual or wrong.low <= ACCEPTED_ERROR
        figures.append(Figure(f"{case}.accepted.error", wrong, limit, None, holds, note))
    share_accepted = 0.0 if acceptance is None else acceptance.accepted_fraction
    told = f"for an error of {ACCEPTED_ERROR:g} at most; 0 if no threshold can promise that"
    return [*figures, _stated("accepted.share", Interval.exact(share_accepted), told)]


def _part(name: str, *, quick: bool) -> list[Figure]:
    material = MATERIALS[name](SHARED, quick=quick)
    subject = _subject(material)
    figures = [*_trusted(subject, material), *_found(subject, material, quick=quick)]
    return [Figure(f"{name}.{f.name}", f.value, f.limit, f.peer, f.holds, f.note) for f in figures]


PARTS = {name: partial(_part, name) for name in MATERIALS}

if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(run_parts(NAME, PARTS, PACKAGES, __doc__, quick=("digits",)))
