"""Promises of every split, whatever the data."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewright.compress.data.dataset import Dataset
from edgewright.compress.data.splits import Splits, split_dataset
from edgewright.contract.errors import DataError


@st.composite
def datasets(draw: st.DrawFn) -> Dataset:
    count = draw(st.integers(10, 120))
    values = draw(st.lists(st.integers(0, draw(st.integers(1, 200))), min_size=count, max_size=count))
    x = np.array(values, np.float32).reshape(count, 1, 1)
    labels = np.array(draw(st.lists(st.integers(0, 4), min_size=count, max_size=count)), np.int64)
    kinds = draw(st.integers(4, 12))
    groups = np.array(draw(st.lists(st.integers(0, kinds), min_size=count, max_size=count)))
    return Dataset({"x": x}, labels, groups if draw(st.booleans()) else None, "classification", fingerprint="")


def tried(dataset: Dataset, seed: int) -> Splits | None:
    try:
        return split_dataset(dataset, seed=seed)
    except DataError:
        return None


@settings(max_examples=150, deadline=None)
@given(datasets(), st.integers(0, 2**32 - 1))
def test_parts_are_disjoint_complete_not_empty_and_the_same_again(dataset: Dataset, seed: int) -> None:
    parts = tried(dataset, seed)
    if parts is None:
        return
    together = np.concatenate([parts.calibrate, parts.select, parts.certify])
    assert sorted(together.tolist()) == list(range(len(dataset)))
    assert min(len(parts.calibrate), len(parts.select), len(parts.certify)) >= 1
    again = split_dataset(dataset, seed=seed)
    for name in ("calibrate", "select", "certify"):
        assert getattr(parts, name).tolist() == getattr(again, name).tolist()


@settings(max_examples=150, deadline=None)
@given(datasets(), st.integers(0, 2**32 - 1))
def test_no_group_and_no_copy_is_in_two_parts(dataset: Dataset, seed: int) -> None:
    parts = tried(dataset, seed)
    if parts is None:
        return
    units = dataset.inputs["x"].reshape(-1) if dataset.groups is None else dataset.groups
    seen = [set(units[part].tolist()) for part in (parts.calibrate, parts.select, parts.certify)]
    assert sum(map(len, seen)) == len(set.union(*seen))
    if dataset.groups is not None:
        assert 2 * len(seen[2]) >= len(set.union(*seen))
