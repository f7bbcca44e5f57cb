"""Students learn from teachers: from answers, features and relations, with labels and without."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import helper
from torch import Tensor, nn

from edgewright.compress.data.dataset import Dataset
from edgewright.compress.train.config import Distillation, TrainingConfig
from edgewright.compress.train.data.teacher_outputs import read_teacher_outputs, write_teacher_outputs
from edgewright.compress.train.data.training_data import TrainingData, make_training_data
from edgewright.compress.train.distill.teacher import Teacher, compute_teacher_outputs
from edgewright.compress.train.loop.feature_losses import feature_loss, relation_loss
from edgewright.compress.train.loop.losses import output_logits, teacher_loss
from edgewright.compress.train.loop.output_kind import feature_tensor_of, output_activation
from edgewright.compress.train.loop.trainer import fit_network
from edgewright.contract.errors import CandidateError

SETTINGS = TrainingConfig(epochs=25, batch=64, learning_rate=1e-2, distillation=Distillation(weight=0.8))


class Student(nn.Module):
    """One hidden layer, whose values can be had as "hidden"."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.head = nn.Linear(64, 24), nn.Linear(24, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.run_with([x], [])[0]

    def run_with(self, inputs: Any, wanted: Any) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        hidden = torch.relu(self.hidden(inputs[0].flatten(1)))
        return (self.head(hidden),), dict.fromkeys(wanted, hidden)


@pytest.fixture(scope="module")
def rows(digits: dict[str, NDArray[Any]]) -> Dataset:
    torch.set_num_threads(1)
    return Dataset(
        {"image": digits["x"][:600, None]}, digits["y"][:600].astype(np.int64), None, "classification", ""
    )


@pytest.fixture(scope="module")
def lessons(rows: Dataset) -> TrainingData:
    return make_training_data(rows, seed=0)


@pytest.fixture(scope="module")
def unlabelled(rows: Dataset) -> TrainingData:
    return make_training_data(Dataset(rows.inputs, None, None, "fidelity", ""), seed=0)


def softmaxed(model: onnx.ModelProto) -> onnx.ModelProto:
    made = onnx.ModelProto()
    made.CopyFrom(model)
    name = made.graph.output[0].name
    made.graph.node.append(helper.make_node("Softmax", [name], ["chances"], axis=-1))
    made.graph.output[0].name = "chances"
    return made


def agreement(network: nn.Module, model: onnx.ModelProto, digits: dict[str, NDArray[Any]]) -> float:
    from edgewright.compress.model.graph import session_bytes

    rows = digits["x"][600:]
    (scores,) = session_bytes(model).run(None, {model.graph.input[0].name: rows})
    return float((network(torch.from_numpy(rows))[0].argmax(1).numpy() == scores.argmax(1)).mean())


@pytest.mark.parametrize("with_softmax", [False, True])
def test_a_student_without_labels_comes_to_agree_with_its_teacher(
    unlabelled: TrainingData, digits_proto: onnx.ModelProto, digits: dict[str, NDArray[Any]], with_softmax: bool
) -> None:
    teacher = softmaxed(digits_proto) if with_softmax else digits_proto
    answers = compute_teacher_outputs(Teacher((teacher,)), unlabelled, ("shift",), seed=0, view_count=3)
    assert answers.meaning == "classes"
    student = Student()
    result = fit_network(student, unlabelled, SETTINGS, seed=0, teacher_outputs=answers, activation="scores")
    assert result.curve[result.best_epoch].validation_metric > 0.8
    assert agreement(student, digits_proto, digits) > 0.8


def test_a_teacher_with_softmax_gives_the_same_answers_as_one_with_scores(
    lessons: TrainingData, digits_proto: onnx.ModelProto
) -> None:
    assert (output_activation(digits_proto), output_activation(softmaxed(digits_proto))) == ("scores", "softmax")
    both = [
        compute_teacher_outputs(Teacher((model,)), lessons, ("shift",), seed=3, view_count=2)
        for model in (digits_proto, softmaxed(digits_proto))
    ]
    np.testing.assert_allclose(both[0].train[0], both[1].train[0], atol=0.05)
    assert both[0].fingerprint != both[1].fingerprint


def test_teachers_see_the_rows_that_students_see(lessons: TrainingData, digits_proto: onnx.ModelProto) -> None:
    from edgewright.compress.model.graph import session_bytes
    from edgewright.compress.train.data.batches import AugmentedViews

    answers = compute_teacher_outputs(Teacher((digits_proto,)), lessons, ("shift", "light"), seed=4, view_count=2)
    places = np.array([5, 3, 200])
    (seen,) = AugmentedViews(lessons, answers.augmentations, answers.seed, answers.view_count).inputs(1, places)
    (scores,) = session_bytes(digits_proto).run(None, {digits_proto.graph.input[0].name: seen.numpy()})
    wanted = torch.log_softmax(torch.from_numpy(scores), dim=1).numpy()
    np.testing.assert_allclose(answers.train[0][1, places], wanted, rtol=5e-3, atol=5e-3)


def test_several_teachers_give_the_mean_of_their_probabilities(
    lessons: TrainingData, digits_proto: onnx.ModelProto
) -> None:
    alone = compute_teacher_outputs(Teacher((digits_proto,)), lessons, (), seed=0).validation[0]
    twice = compute_teacher_outputs(
        Teacher((digits_proto, softmaxed(digits_proto)), (3.0, 1.0)), lessons, (), seed=0
    ).validation[0]
    np.testing.assert_allclose(alone, twice, atol=1e-3)
    with pytest.raises(CandidateError, match="1 teachers have the weights"):
        compute_teacher_outputs(Teacher((digits_proto,), (1.0, 2.0)), lessons, (), seed=0)


def test_answers_come_back_from_a_folder_and_train_to_the_same_bytes(
    lessons: TrainingData, digits_proto: onnx.ModelProto, tmp_path: Path
) -> None:
    answers = compute_teacher_outputs(
        Teacher((digits_proto,)), lessons, ("shift",), seed=0, view_count=2, features=True
    )
    write_teacher_outputs(answers, tmp_path)
    back = read_teacher_outputs(tmp_path)
    assert isinstance(back.train[0], np.memmap)
    students = [Student(), Student()]
    for student, given in zip(students, (answers, back), strict=True):
        fit_network(student, lessons, SETTINGS, seed=0, teacher_outputs=given)
    assert torch.equal(students[0].head.weight, students[1].head.weight)


@pytest.mark.parametrize(
    "part", [{"feature_weight": 1.0}, {"relation_weight": 10.0}, {"feature_weight": 1.0, "relation_weight": 10.0}]
)
def test_features_and_relations_are_learned(
    lessons: TrainingData, digits_proto: onnx.ModelProto, part: dict[str, float]
) -> None:
    assert feature_tensor_of(digits_proto) is not None
    answers = compute_teacher_outputs(Teacher((digits_proto,)), lessons, (), seed=0, features=True)
    assert answers.features is not None
    plain, taught = Student(), Student()
    fit_network(plain, lessons, SETTINGS, seed=0, teacher_outputs=answers, feature_tensor="hidden")
    settings = TrainingConfig(
        epochs=25, batch=64, learning_rate=1e-2, distillation=Distillation(weight=0.8, **part)
    )
    result = fit_network(taught, lessons, settings, seed=0, teacher_outputs=answers, feature_tensor="hidden")
    assert result.curve[-1].validation_metric > 0.8
    inputs = torch.from_numpy(lessons.inputs[0][lessons.train[:100]])
    wanted = torch.from_numpy(answers.features[0, :100].astype(np.float32))
    if "relations" in part:
        with torch.no_grad():
            inner = [student.run_with([inputs], ["hidden"])[1]["hidden"] for student in (plain, taught)]
        far = [float(relation_loss(values, wanted)) for values in inner]
        assert far[1] < far[0]


def test_a_student_of_values_comes_near_its_teacher_without_labels(
    rows: Dataset, digits_proto: onnx.ModelProto
) -> None:
    middle = onnx.ModelProto()
    middle.CopyFrom(digits_proto)
    middle.graph.node.append(helper.make_node("Unsqueeze", [middle.graph.output[0].name, "last"], ["map"]))
    middle.graph.initializer.append(onnx.numpy_helper.from_array(np.array([2]), "last"))
    middle.graph.output[0].name = "map"
    middle.graph.output[0].type.tensor_type.shape.dim.add().dim_value = 1
    lessons = make_training_data(Dataset(rows.inputs, None, None, "fidelity", ""), seed=0)
    answers = compute_teacher_outputs(Teacher((middle,)), lessons, (), seed=0)
    assert answers.meaning == "values"
    result = fit_network(Student(), lessons, SETTINGS, seed=0, teacher_outputs=answers)
    assert result.curve[-1].validation_metric > 0.4 > result.curve[0].validation_metric


def test_without_labels_and_teacher_there_is_nothing_to_learn(unlabelled: TrainingData) -> None:
    with pytest.raises(CandidateError, match="no labels and there is no teacher"):
        fit_network(Student(), unlabelled, SETTINGS, seed=0)


def test_equal_answers_have_no_distance_and_relations_no_scale() -> None:
    rows = torch.randn(20, 6, generator=torch.Generator().manual_seed(0), requires_grad=True)
    ones = torch.ones(())
    for reading in ("classes", "flags", "values"):
        loss = teacher_loss(rows, rows.detach(), reading, temperature=4.0, variances=ones)
        assert float(loss.detach()) == pytest.approx(0, abs=1e-5)
    assert float(relation_loss(3 * rows, rows.detach()).detach()) == pytest.approx(0, abs=1e-5)
    relation_loss(torch.cat([rows, rows]), torch.randn(40, 3)).backward()  # equal rows: no distance between them
    assert rows.grad is not None
    assert bool(torch.isfinite(rows.grad).all())
    assert float(feature_loss(rows.detach(), rows.detach())) == 0


def test_probabilities_become_scores_again() -> None:
    scores = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    back = output_logits(torch.softmax(scores, 1), "classes", "softmax")
    torch.testing.assert_close(torch.softmax(back, 1), torch.softmax(scores, 1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        output_logits(torch.sigmoid(scores), "flags", "sigmoid"), scores, atol=5e-2, rtol=1e-2
    )
