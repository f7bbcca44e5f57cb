"""Lessons keep what is certified and what validates apart from what is trained on."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgewright.compress.data.dataset import Dataset
from edgewright.compress.train.data.modality import SampleFormat, detect_sample_format
from edgewright.compress.train.data.training_data import make_training_data, read_training_data, write_training_data
from edgewright.contract.errors import CandidateError, DataError


def dataset_of(x: NDArray[Any], y: NDArray[Any] | None, groups: NDArray[Any] | None = None) -> Dataset:
    return Dataset({"image": x[:, None]}, y, groups, "fidelity" if y is None else "classification", "")


@pytest.fixture
def some(digits: dict[str, NDArray[Any]]) -> Dataset:
    return dataset_of(digits["x"][:600], digits["y"][:600].astype(np.int64))


def test_the_axis_of_single_inferences_is_gone_and_a_tenth_validates(some: Dataset) -> None:
    lessons = make_training_data(some, seed=0)
    assert lessons.inputs[0].shape == (600, 1, 8, 8)
    assert len(lessons.validation) == 60
    assert not set(lessons.train) & set(lessons.validation)
    assert len(lessons.train) + len(lessons.validation) == 600


def test_every_class_validates_in_proportion(some: Dataset) -> None:
    lessons = make_training_data(some, seed=3)
    assert lessons.labels is not None
    share = np.bincount(lessons.labels[lessons.validation]) / np.bincount(lessons.labels)
    assert share.min() > 0.07
    assert share.max() < 0.14


def test_another_seed_validates_with_other_rows_and_the_same_with_the_same(some: Dataset) -> None:
    first, again, other = (
        make_training_data(some, seed=0),
        make_training_data(some, seed=0),
        make_training_data(some, seed=1),
    )
    np.testing.assert_array_equal(first.validation, again.validation)
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert set(first.validation) != set(other.validation)


def test_nothing_is_trained_on_that_is_held_out(some: Dataset) -> None:
    lessons = make_training_data(some, seed=0, held_out=some.subset(range(100, 200)))
    assert len(lessons) == 500
    kept = {row.tobytes() for row in lessons.inputs[0]}
    assert not any(some.inputs["image"][i].tobytes() in kept for i in range(100, 200))
    assert lessons.notes[0] == "100 training rows also occur in the held-out data: left out"


def test_data_that_is_all_held_out_is_refused(some: Dataset) -> None:
    with pytest.raises(DataError, match="0 rows are left"):
        make_training_data(some, seed=0, held_out=some)


def test_groups_stay_whole(digits: dict[str, NDArray[Any]]) -> None:
    groups = np.arange(600) % 12
    lessons = make_training_data(dataset_of(digits["x"][:600], digits["y"][:600].astype(np.int64), groups), seed=0)
    assert len(lessons.validation) == 100
    assert not set(groups[lessons.train]) & set(groups[lessons.validation])


def test_rare_classes_weigh_more_only_where_sizes_differ_much(some: Dataset) -> None:
    assert make_training_data(some, seed=0).class_weights is None
    assert some.labels is not None
    rare = np.flatnonzero((some.labels != 3) | (np.arange(600) % 6 == 0))
    weights = make_training_data(some.subset(rare), seed=0).class_weights
    assert weights is not None
    assert weights.argmax() == 3


def test_a_model_without_a_batch_axis_is_refused() -> None:
    x = np.zeros((30, 4), np.float32)
    with pytest.raises(CandidateError, match="no batch of one"):
        make_training_data(Dataset({"x": x}, None, None, "fidelity", ""), seed=0)


def test_lessons_come_back_from_a_folder(some: Dataset, tmp_path: Path) -> None:
    lessons = make_training_data(some, seed=0)
    write_training_data(lessons, tmp_path)
    back = read_training_data(tmp_path)
    assert isinstance(back.inputs[0], np.memmap)
    np.testing.assert_array_equal(back.inputs[0], lessons.inputs[0])
    np.testing.assert_array_equal(np.asarray(back.labels), np.asarray(lessons.labels))
    np.testing.assert_array_equal(back.validation, lessons.validation)
    assert (back.format, back.task, back.fingerprint) == (lessons.format, lessons.task, lessons.fingerprint)


@pytest.mark.parametrize(
    ("shape", "kind", "axes"),
    [
        ((3, 32, 48), "image", (2, 3)),
        ((28, 28, 1), "image", (1, 2)),
        ((28, 28), "image", (1, 2)),
        ((49, 10, 1), "spectrogram", (1, 2)),
        ((1, 40, 49), "spectrogram", (3, 2)),
        ((98, 40), "spectrogram", (1, 2)),
        ((64, 6), "series", (1,)),
        ((6, 64), "series", (2,)),
        ((16000,), "series", (1,)),
        ((30,), "table", ()),
        ((7, 20, 30), "other", ()),
    ],
)
def test_the_form_is_found_from_the_shape(shape: tuple[int, ...], kind: str, axes: tuple[int, ...]) -> None:
    form = detect_sample_format(np.zeros((4, *shape), np.float32))
    assert (form.kind, form.axes) == (kind, axes)


def test_square_logarithms_of_power_are_a_spectrogram() -> None:
    assert detect_sample_format(np.full((4, 1, 40, 40), -7.0, np.float32)).kind == "spectrogram"


def test_a_stated_kind_wins() -> None:
    assert detect_sample_format(np.zeros((4, 1, 40, 49), np.float32), "image") == SampleFormat("image", (2, 3))
    assert detect_sample_format(np.zeros((4, 98, 40), np.float32), "series") == SampleFormat("series", (1,))
    assert detect_sample_format(np.zeros((4, 30), np.float32), "series") == SampleFormat("series", (1,))
