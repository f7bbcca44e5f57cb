"""Augmentations change each row by itself, alike in every layout; the teacher says which may be used."""

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from edgewright.compress.data.dataset import Dataset
from edgewright.compress.train.data.augmentation import DRAWS_PER_ROW, augment, augmentation_names, value_deviations
from edgewright.compress.train.data.batches import AugmentedViews
from edgewright.compress.train.data.modality import SampleFormat
from edgewright.compress.train.data.training_data import make_training_data
from edgewright.compress.train.distill.augmentation_selection import select_augmentations
from edgewright.compress.train.distill.teacher import Teacher
from edgewright.contract.errors import CandidateError

FORMS = [
    (SampleFormat("image", (2, 3)), (3, 24, 24)),
    (SampleFormat("image", (1, 2)), (24, 24, 3)),
    (SampleFormat("spectrogram", (2, 3)), (1, 49, 20)),
    (SampleFormat("spectrogram", (1, 2)), (49, 20)),
    (SampleFormat("series", (1,)), (64, 6)),
    (SampleFormat("series", (2,)), (6, 64)),
    (SampleFormat("table"), (12,)),
]


def batch_of(shape: tuple[int, ...], rows: int = 16) -> torch.Tensor:
    return torch.randn((rows, *shape), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("form", "shape"), FORMS)
def test_each_changes_rows_but_not_their_shape_and_each_row_by_itself(
    form: SampleFormat, shape: tuple[int, ...]
) -> None:
    batch, spread = batch_of(shape), torch.ones(shape)
    for name in augmentation_names(form.kind):
        draws = torch.rand(16, DRAWS_PER_ROW, generator=torch.Generator().manual_seed(2))
        together = augment(batch, draws, [name], form, spread)
        assert together.shape == batch.shape
        assert together.dtype == batch.dtype
        assert not torch.equal(together, batch)
        alone = torch.cat([augment(batch[[i]], draws[[i]], [name], form, spread) for i in range(16)])
        torch.testing.assert_close(together, alone)


def test_channels_first_and_last_are_changed_alike() -> None:
    batch = batch_of((3, 24, 24))
    names = augmentation_names("image")
    draws = torch.rand(16, DRAWS_PER_ROW * len(names), generator=torch.Generator().manual_seed(3))
    first = augment(batch, draws, names, SampleFormat("image", (2, 3)), torch.ones(3, 24, 24))
    last = augment(batch.movedim(1, 3), draws, names, SampleFormat("image", (1, 2)), torch.ones(24, 24, 3))
    torch.testing.assert_close(last.movedim(3, 1), first)


def test_a_rolled_series_keeps_its_values() -> None:
    batch = batch_of((64, 6))
    rolled = augment(
        batch, torch.rand(16, DRAWS_PER_ROW), ["roll"], SampleFormat("series", (1,)), torch.ones(64, 6)
    )
    torch.testing.assert_close(rolled.sort(dim=1).values, batch.sort(dim=1).values)


def test_an_image_moves_by_at_most_a_twelfth() -> None:
    image = torch.zeros(1, 1, 24, 24)
    image[0, 0, 12, 12] = 1
    places = set()
    for seed in range(200):
        draws = torch.rand(1, DRAWS_PER_ROW, generator=torch.Generator().manual_seed(seed))
        moved = augment(image, draws, ["shift"], SampleFormat("image", (2, 3)), torch.ones(1, 24, 24))
        places.add(tuple(int(i) for i in moved[0, 0].nonzero()[0]))
    assert places == {(y, x) for y in range(10, 15) for x in range(10, 15)}


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(CandidateError, match=r"'mirror' does not exist for a table.*noise"):
        augment(torch.zeros(2, 3), torch.rand(2, DRAWS_PER_ROW), ["mirror"], SampleFormat("table"), torch.ones(3))


def test_noise_follows_the_spread_of_each_value() -> None:
    rows = np.random.default_rng(0).standard_normal((500, 2)).astype(np.float32) * np.array([1, 100], np.float32)
    changed = augment(
        torch.from_numpy(rows),
        torch.rand(500, DRAWS_PER_ROW),
        ["noise"],
        SampleFormat("table"),
        value_deviations(rows),
    )
    noise = (changed.numpy() - rows).std(axis=0)
    np.testing.assert_allclose(noise, [0.05, 5], rtol=0.3)


@pytest.fixture(scope="module")
def lessons_of_digits(digits: dict[str, NDArray[Any]]) -> Any:
    labels = digits["y"][:500].astype(np.int64)
    return make_training_data(
        Dataset({"image": digits["x"][:500, None]}, labels, None, "classification", ""), seed=0
    )


def test_a_view_of_a_row_depends_on_seed_view_and_row_alone(lessons_of_digits: Any) -> None:
    names = ("shift", "light")
    order = np.random.default_rng(0).permutation(len(lessons_of_digits.train))
    (whole,) = AugmentedViews(lessons_of_digits, names, seed=7, count=4).inputs(2, np.arange(len(order)))
    (shuffled,) = AugmentedViews(lessons_of_digits, names, seed=7, count=4).inputs(2, order)
    assert torch.equal(whole[torch.from_numpy(order)], shuffled)
    assert not torch.equal(
        whole, AugmentedViews(lessons_of_digits, names, 7, 4).inputs(3, np.arange(len(order)))[0]
    )
    assert not torch.equal(
        whole, AugmentedViews(lessons_of_digits, names, 8, 4).inputs(2, np.arange(len(order)))[0]
    )


@pytest.mark.parametrize("labelled", [True, False])
def test_digits_are_not_mirrored_but_lit_differently(
    digits: dict[str, NDArray[Any]], digits_proto: onnx.ModelProto, labelled: bool
) -> None:
    x, y = digits["x"][:600, None], digits["y"][:600].astype(np.int64)
    dataset = Dataset({"image": x}, y if labelled else None, None, "classification" if labelled else "fidelity", "")
    lessons = make_training_data(dataset, seed=0)
    found = select_augmentations(lessons, Teacher((digits_proto,)), seed=0)
    assert "mirror" not in found.names
    assert found.drops["mirror"] > 0.2
    assert any("'mirror': not used" in note for note in found.notes)
    if labelled:
        assert "light" in found.names
