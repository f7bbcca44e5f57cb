"""Scores per sample, and which metric the data calls for."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, r2_score

from edgewright.compress.data.dataset import Dataset, TaskKind
from edgewright.compress.metrics.metric import Metric, choose_metric, output_sqnr_db, top1_agreement
from edgewright.contract.errors import CandidateError, DataError, ModelError
from edgewright.contract.model.signature import ModelSignature, TensorSpec

RNG = np.random.default_rng(0)


def contract(outputs: int = 1) -> ModelSignature:
    return ModelSignature(
        (TensorSpec("x", "float32", ("n", 3)),),
        tuple(TensorSpec(f"y{i}", "float32", ("n", 3)) for i in range(outputs)),
    )


def dataset(task: TaskKind, labels: NDArray[Any] | None, count: int = 50) -> Dataset:
    x = RNG.standard_normal((count, 1, 3)).astype(np.float32)
    return Dataset({"x": x}, labels, None, task, fingerprint="")


def mean(metric: Metric, data: Dataset, outputs: list[NDArray[Any]], reference: list[NDArray[Any]]) -> float:
    scores = metric.scores(outputs, reference, data.labels, data.inputs)
    assert scores.shape == (len(data),)
    return float(scores.mean())


def test_accuracy_is_that_of_scikit_learn() -> None:
    data = dataset("classification", RNG.integers(0, 3, 50))
    outputs = [RNG.standard_normal((50, 3))]
    metric = choose_metric(data, contract(), None, outputs)
    assert (metric.name, metric.kind) == ("accuracy", "binary")
    assert mean(metric, data, outputs, outputs) == pytest.approx(accuracy_score(data.labels, outputs[0].argmax(1)))


@pytest.mark.parametrize(
    ("logits", "said"), [(True, "logits: yes above 0"), (False, "probabilities: yes above 0.5")]
)
def test_one_output_is_read_as_probability_or_logit_and_said_so(logits: bool, said: str) -> None:
    data = dataset("classification", RNG.integers(0, 2, 50))
    values = RNG.standard_normal((50, 1))
    outputs = [values if logits else 1 / (1 + np.exp(-values))]
    metric = choose_metric(data, contract(), None, outputs)
    assert said in metric.note
    assert mean(metric, data, outputs, outputs) == accuracy_score(data.labels, values[:, 0] > 0)


def test_r2_is_that_of_scikit_learn() -> None:
    targets = RNG.standard_normal((50, 3)) * [1, 10, 100]
    data = dataset("regression", targets)
    outputs = [targets + RNG.standard_normal((50, 3))]
    metric = choose_metric(data, contract(), None, outputs)
    assert (metric.name, metric.kind) == ("r2", "unbounded")
    assert mean(metric, data, outputs, outputs) == pytest.approx(r2_score(targets, outputs[0]))


def test_r2_of_targets_without_an_axis_takes_an_output_with_one() -> None:
    targets = RNG.standard_normal(50)
    data = dataset("regression", targets)
    outputs = [(targets + 0.1)[:, None]]
    assert mean(choose_metric(data, contract(), "r2", outputs), data, outputs, outputs) == pytest.approx(
        r2_score(targets, outputs[0])
    )


def test_label_accuracy_is_the_mean_over_labels() -> None:
    labels = RNG.integers(0, 2, (50, 3))
    data = dataset("multilabel", labels)
    outputs = [RNG.standard_normal((50, 3))]
    metric = choose_metric(data, contract(), None, outputs)
    assert (metric.name, metric.kind) == ("label_accuracy", "unit")
    assert mean(metric, data, outputs, outputs) == pytest.approx(((outputs[0] > 0) == labels).mean())


def test_reconstruction_compares_with_the_input() -> None:
    data = dataset("reconstruction", None)
    truth = data.inputs["x"][:, 0]
    metric = choose_metric(data, contract(), None, [truth])
    assert metric.name == "reconstruction_r2"
    assert mean(metric, data, [truth], [truth]) == 1
    assert mean(metric, data, [truth + 0.5], [truth]) == pytest.approx(
        r2_score(truth, truth + 0.5, multioutput="variance_weighted"), abs=1e-5
    )


def test_unlabelled_classifiers_are_judged_by_agreement_and_others_by_fidelity() -> None:
    data = dataset("fidelity", None)
    scores = RNG.standard_normal((50, 3))
    assert choose_metric(data, contract(), None, [scores]).name == "agreement"
    assert choose_metric(data, contract(2), None, [scores, scores]).name == "fidelity"
    assert choose_metric(data, contract(), None, [scores[:, :1]]).name == "fidelity"
    flipped = scores.copy()
    flipped[:5] = -flipped[:5]
    metric = choose_metric(data, contract(), "agreement", [scores])
    assert mean(metric, data, [flipped], [scores]) == 0.9
    assert top1_agreement([scores], [flipped]) == 0.9


def test_30_db_of_noise_is_a_fidelity_of_0_999() -> None:
    data = dataset("fidelity", None, 5000)
    truth = RNG.standard_normal((5000, 64))
    noisy = truth + RNG.standard_normal(truth.shape) * 10 ** (-30 / 20)
    metric = choose_metric(data, contract(), "fidelity", [truth])
    assert mean(metric, data, [noisy], [truth]) == pytest.approx(0.999, abs=2e-5)
    assert output_sqnr_db([truth], [noisy]) == pytest.approx(30, abs=0.1)
    assert output_sqnr_db([truth, truth], [truth, noisy]) == pytest.approx(30, abs=0.1), "of the worst output"
    assert output_sqnr_db([truth], [truth]) == 200
    assert output_sqnr_db([truth], [truth * np.nan]) == -200


def test_fidelity_is_that_of_the_worst_output() -> None:
    data = dataset("fidelity", None)
    truth = RNG.standard_normal((50, 3))
    metric = choose_metric(data, contract(2), None, [truth, truth])
    assert mean(metric, data, [truth, truth * 0.9], [truth, truth]) == pytest.approx(0.99)


def test_class_ids_before_the_probabilities_are_passed_over() -> None:
    both = ModelSignature(
        (TensorSpec("x", "float32", ("n", 3)),),
        (TensorSpec("label", "int64", ("n",)), TensorSpec("probabilities", "float32", ("n", 3))),
    )
    data = dataset("classification", RNG.integers(0, 3, 50))
    probabilities = RNG.random((50, 3))
    outputs = [probabilities.argmax(axis=1), probabilities]
    metric = choose_metric(data, both, None, outputs)
    assert mean(metric, data, outputs, outputs) == accuracy_score(data.labels, outputs[0])


def test_a_candidate_that_answers_nan_is_refused() -> None:
    data = dataset("classification", RNG.integers(0, 3, 50))
    outputs = [RNG.standard_normal((50, 3))]
    metric = choose_metric(data, contract(), None, outputs)
    outputs[0][7, 1] = np.nan
    with pytest.raises(CandidateError, match="NaN"):
        metric.scores(outputs, None, data.labels, data.inputs)
    with pytest.raises(ModelError, match="original model answers NaN"):
        choose_metric(data, contract(), None, outputs)


@pytest.mark.parametrize(
    ("task", "name", "said"),
    [
        ("fidelity", "accuracy", "is for classification"),
        ("fidelity", "f1", "there is no metric 'f1'. Use accuracy"),
        ("fidelity", "no_such:metric", "cannot be imported"),
    ],
)
def test_metrics_that_the_data_does_not_allow_are_refused(task: TaskKind, name: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        choose_metric(dataset(task, None), contract(), name, [RNG.standard_normal((50, 3))])


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("return outputs[0].argmax(1) == labels", "binary"),
        ("return -abs(outputs[0].argmax(1) - labels)", "unbounded"),
        ("return float((outputs[0].argmax(1) == labels).mean())", "scalar"),
        ("return labels[:3]", None),
        ("raise KeyError('oops')", None),
    ],
)
def test_a_metric_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, kind: str | None) -> None:
    name = f"user_metric_{abs(hash(body))}"
    (tmp_path / f"{name}.py").write_text(f"def score(labels, outputs):\n    {body}\n")
    monkeypatch.chdir(tmp_path)
    data = dataset("classification", RNG.integers(0, 3, 50))
    outputs = [RNG.standard_normal((50, 3))]
    if kind is None:
        with pytest.raises(DataError):
            choose_metric(data, contract(), f"{name}:score", outputs)
        return
    metric = choose_metric(data, contract(), f"{name}:score", outputs)
    assert metric.kind == kind
    if kind != "unbounded":
        assert mean(metric, data, outputs, outputs) == pytest.approx(
            accuracy_score(data.labels, outputs[0].argmax(1))
        )


def test_metrics_travel_to_other_processes() -> None:
    data = dataset("regression", RNG.standard_normal(50))
    outputs = [RNG.standard_normal((50, 1))]
    metric = choose_metric(data, contract(), None, outputs)
    copy = pickle.loads(pickle.dumps(metric))  # noqa: S301 - made on the line itself
    assert mean(copy, data, outputs, outputs) == mean(metric, data, outputs, outputs)
