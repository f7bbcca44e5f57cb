"""Three parts of the data that share nothing."""

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from edgewright.compress.data.dataset import Dataset, TaskKind
from edgewright.compress.data.splits import split_dataset
from edgewright.contract.errors import DataError


def dataset_of(
    x: NDArray[np.float32],
    labels: NDArray[np.int64] | None = None,
    groups: NDArray[np.int64] | None = None,
    task: TaskKind = "classification",
) -> Dataset:
    return Dataset({"x": x[:, None]}, labels, groups, task, fingerprint="")


def rows(count: int) -> NDArray[np.float32]:
    return np.arange(count * 3, dtype=np.float32).reshape(count, 3)


def test_digits_are_split_in_the_usual_shares_with_classes_spread_evenly() -> None:
    digits = load_digits()
    parts = split_dataset(dataset_of(digits.data.astype(np.float32), digits.target.astype(np.int64)), seed=0)
    assert (len(parts.calibrate), len(parts.select), len(parts.certify)) == (359, 539, 899)
    for part in (parts.calibrate, parts.select, parts.certify):
        shares = np.bincount(digits.target[part], minlength=10) / len(part)
        assert np.abs(shares - 0.1).max() < 0.02


def test_large_data_keeps_the_caps() -> None:
    parts = split_dataset(dataset_of(rows(20_000), np.arange(20_000) % 7), seed=1)
    assert (len(parts.calibrate), len(parts.select), len(parts.certify)) == (512, 2000, 17_488)


def test_sizes_can_be_asked_for() -> None:
    parts = split_dataset(dataset_of(rows(100), np.arange(100) % 2), seed=0, calibrate=7, select=11)
    assert (len(parts.calibrate), len(parts.select), len(parts.certify)) == (7, 11, 82)
    for calibrate, select in ((0, 10), (50, 50), (-1, 10), (90, 20)):
        with pytest.raises(DataError):
            split_dataset(dataset_of(rows(100), np.arange(100) % 2), seed=0, calibrate=calibrate, select=select)


def test_three_samples_are_refused_with_the_least_number() -> None:
    with pytest.raises(DataError, match="holds 3 samples, the least is 10"):
        split_dataset(dataset_of(rows(3), np.arange(3)), seed=0)


def test_copies_of_a_sample_stay_in_one_part() -> None:
    x = rows(40)[np.arange(200) % 40]
    parts = split_dataset(dataset_of(x, np.arange(200) % 40 % 4), seed=0)
    of = {int(row): name for name in ("calibrate", "select", "certify") for row in getattr(parts, name)}
    assert all(of[i] == of[i % 40] for i in range(200))
    assert len(parts.certify) >= 100


def test_copies_only_are_refused() -> None:
    with pytest.raises(DataError, match="only 2 different"):
        split_dataset(dataset_of(rows(2)[np.arange(50) % 2], np.arange(50) % 2), seed=0)


def test_groups_stay_whole_and_half_of_them_certify() -> None:
    groups = np.repeat(np.arange(9), 30)
    parts = split_dataset(dataset_of(rows(270), np.arange(270) % 3, groups), seed=4)
    inside = [set(groups[part].tolist()) for part in (parts.calibrate, parts.select, parts.certify)]
    assert sum(map(len, inside)) == len(set.union(*inside)) == 9
    assert len(inside[2]) >= 5
    assert all(inside)


def test_too_few_groups_are_refused() -> None:
    with pytest.raises(DataError, match="3 groups, the least is 4"):
        split_dataset(dataset_of(rows(90), np.arange(90) % 2, np.arange(90) % 3), seed=0)


def test_another_seed_gives_other_parts_and_the_fingerprint_follows_the_certify_part() -> None:
    data = dataset_of(rows(100), np.arange(100) % 2)
    first, again, other = split_dataset(data, seed=0), split_dataset(data, seed=0), split_dataset(data, seed=1)
    assert first.certify.tolist() == again.certify.tolist()
    assert first.fingerprint_certify == again.fingerprint_certify
    assert sorted(first.certify) != sorted(other.certify)
    assert first.fingerprint_certify != other.fingerprint_certify
