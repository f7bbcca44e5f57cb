import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgewright.stats.histograms import (
    bin_index,
    build_reference_histogram,
    class_edges,
    count_by_bin,
    count_difference,
    merge_counts,
    quantile_edges,
)

VALUES = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 40), st.integers(1, 4)),
    elements=st.one_of(st.sampled_from([0.0, 1.0, 255.0, np.nan, np.inf, -np.inf]), st.floats(width=32)),
)


@given(VALUES, VALUES, st.integers(2, 20))
def test_every_value_is_counted_once_wherever_it_lies(drawn: np.ndarray, seen: np.ndarray, bins: int) -> None:
    signals = min(drawn.shape[1], seen.shape[1])
    edges = quantile_edges(drawn[:, :signals], bins)
    counts = count_by_bin(seen[:, :signals], edges)
    assert counts.shape == (signals, bins + 1)
    assert (counts.sum(axis=1) == len(seen)).all()
    assert (counts[:, -1] == (~np.isfinite(seen[:, :signals])).sum(axis=0)).all()


@given(VALUES, st.integers(0, 40))
def test_counts_of_parts_add_up_and_subtract(seen: np.ndarray, cut: int) -> None:
    edges = quantile_edges(seen)
    first, rest = count_by_bin(seen[:cut], edges), count_by_bin(seen[cut:], edges)
    whole = count_by_bin(seen, edges)
    assert (merge_counts([first, rest]) == whole).all()
    assert (count_difference(whole, first) == rest).all()


def test_another_histogram_is_no_earlier_state() -> None:
    with pytest.raises(ValueError, match="holds more"):
        count_difference(np.array([[1, 0]]), np.array([[0, 1]]))


def test_bins_hold_equal_shares_of_what_does_not_tie() -> None:
    random = np.random.default_rng(0)
    edges = quantile_edges(random.exponential(size=20_000))
    shares = count_by_bin(random.exponential(size=100_000), edges)[0] / 100_000
    assert shares[-1] == 0
    assert shares[:-1] == pytest.approx(1 / 16, abs=0.006)


def test_an_atom_has_a_bin_of_its_own_and_both_its_neighbours_are_seen() -> None:
    random = np.random.default_rng(1)
    values = np.where(random.random(4000) < 0.4, 0.5, random.random(4000)).astype(np.float32)
    edges = quantile_edges(values)
    at, below, above = (
        bin_index([[value]], edges)[0, 0] for value in (0.5, np.nextafter(np.float32(0.5), 0), 0.5001)
    )
    assert below < at < above
    assert count_by_bin(values, edges)[0, at] == (values == 0.5).sum()


def test_what_does_not_tie_is_told_apart_beside_a_great_atom() -> None:
    random = np.random.default_rng(3)
    values = np.where(random.random(4000) < 0.9, 1.0, random.random(4000))
    counts = count_by_bin(values, quantile_edges(values))[0]
    assert (counts[:-1] > 0).sum() >= 14
    assert np.sort(counts)[-2] < 45


def test_a_constant_signal_shows_any_other_value() -> None:
    edges = quantile_edges(np.full(100, 3.0))
    places = bin_index([[2.999], [3.0], [3.001]], edges)[:, 0]
    assert len(set(places.tolist())) == 3


def test_classes_have_bins_and_are_folded_beyond_them() -> None:
    few = count_by_bin(np.arange(10.0)[:, None], class_edges(10)[None, :])[0]
    assert few.tolist() == [1] * 10 + [0] * 7
    many = count_by_bin(np.arange(1000.0)[:, None], class_edges(1000)[None, :])[0]
    assert many[-1] == 0
    assert many[:-1].min() >= 62
    assert many[:-1].max() <= 63


def test_the_reference_is_counted_on_other_rows_than_the_edges() -> None:
    rows = np.random.default_rng(2).normal(size=(1000, 2))
    taken = build_reference_histogram(rows, seed=7, edge_share=0.3)
    assert (taken.counts.sum(axis=1) == 700).all()
    # Counted where the edges came from, bins would be equal.
    assert taken.counts[:, :-1].std() > 2
    again = build_reference_histogram(rows, seed=7, edge_share=0.3)
    assert (again.counts == taken.counts).all()
    assert (build_reference_histogram(rows, seed=8, edge_share=0.3).edges != taken.edges).any()


def test_a_group_is_not_split_between_edges_and_counts() -> None:
    groups = np.repeat(np.arange(12), 50)
    taken = build_reference_histogram(groups[:, None] * 1.0, seed=0, groups=groups)
    # Each subject shows one value; those that edges were drawn from are not counted, the others are, whole.
    seen = count_by_bin(np.arange(12.0)[:, None], taken.edges)[0]
    assert taken.counts.sum() == 50 * 9
    assert set(taken.counts[0] % 50) == {0}
    assert (taken.counts[0] // 50 <= seen).all()
    assert (seen - taken.counts[0] // 50).sum() == 3


def test_one_row_or_one_group_is_no_reference() -> None:
    with pytest.raises(ValueError, match="cannot be split"):
        build_reference_histogram([[1.0], [2.0]], seed=0, groups=[0, 0])


def test_devices_need_numpy_alone() -> None:
    code = """
import sys
sys.modules["scipy"] = sys.modules["sklearn"] = None
from edgewright.stats import divergences, drift_test, histograms, thinning
drift_test.design_drift_test(histograms.build_reference_histogram([[float(i % 7)] for i in range(200)], seed=0).counts)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
