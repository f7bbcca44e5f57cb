"""The compiled look and the plain one say the same, and neither lets through what it should not."""

import importlib
import math
import shutil
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgewright.stats.input_stats import (
    HAS_COMPILED_RING,
    InferenceRing,
    InputLayout,
    NumpyRing,
    all_within,
    open_ring,
    summarize_inputs,
    summarize_scores,
)

LAYOUTS = [
    InputLayout(1),
    InputLayout(16, output_scores=10),
    InputLayout(784, output_scores=10),
    InputLayout(384, 6, True, 18),
    InputLayout(384, 6, False, 18),
    InputLayout(4095, 3, True, 2),
    InputLayout(8200, 1, False, 1000),
    InputLayout(150_528, 3, False, 4),
    InputLayout(150_528, 3, True, 4),
    InputLayout(48_000, 16, True, 4),
]
LARGEST = float(np.finfo(np.float32).max)
Make = Callable[[InputLayout, float, float, int], InferenceRing]


def plain(layout: InputLayout, low: float, high: float, rows: int) -> InferenceRing:
    return NumpyRing(layout, low, high, -LARGEST, LARGEST, capacity=rows)


def whichever(layout: InputLayout, low: float, high: float, rows: int) -> InferenceRing:
    return open_ring(layout, low, high, None, None, capacity=rows)


def sample(values: int, seed: int = 0, offset: float = 0.0) -> NDArray[np.float32]:
    return (np.random.default_rng(seed).normal(size=(1, values)) + offset).astype(np.float32)


def rows_of(ring: InferenceRing) -> NDArray[np.float64]:
    return np.frombuffer(ring.drain()).reshape(-1, ring.columns)


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_where_a_compiler_is_the_compiled_part_is_used() -> None:
    assert HAS_COMPILED_RING


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_compiled_and_plain_give_the_same_numbers(layout: InputLayout, offset: float) -> None:
    array = sample(layout.values_per_sample, 1, offset)
    scores = sample(max(layout.output_scores, 1), 2)
    found = []
    for make in (plain, whichever):
        ring = make(layout, -LARGEST, LARGEST, 4)
        assert ring.columns == len(layout.columns)
        assert ring.record_output(ring.record_input(array), scores)
        found.append(rows_of(ring)[0, 2:])
    # What may differ is float32's rounding, relative to the values' spread or, for extremes, nothing.
    assert found[1] == pytest.approx(found[0], rel=2e-4, abs=2e-5)


def test_statistics_are_what_numpy_says_of_the_whole() -> None:
    array = sample(784, 3)
    low, high, mean, spread, rough = summarize_inputs(array, InputLayout(784))[0]
    assert (low, high) == (array.min(), array.max())
    assert (mean, spread) == (pytest.approx(array.mean(dtype=float)), pytest.approx(array.std(dtype=float)))
    assert rough == pytest.approx(1, abs=0.1), "white noise"
    smooth = np.sin(np.linspace(0, 6, 784, dtype=np.float32))[None]
    assert summarize_inputs(smooth, InputLayout(784))[0][4] < 0.01


def test_a_dead_channel_shows_in_its_own_column() -> None:
    array = sample(384, 4).reshape(1, 64, 6)
    array[:, :, 2] = 0
    row = dict(
        zip(
            InputLayout(384, 6, True).columns[2:-4],
            summarize_inputs(array, InputLayout(384, 6, True))[0],
            strict=True,
        )
    )
    assert row["std_2"] == 0
    assert row["std_1"] > 0.5


def test_conclusions_match_the_softmax() -> None:
    scores = sample(12, 5).reshape(2, 6)
    greatest, second, total, label = summarize_scores(scores).T
    shares = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    assert np.exp(greatest - total) == pytest.approx(shares.max(axis=1))
    assert label.tolist() == scores.argmax(axis=1).tolist()
    assert (second <= greatest).all()


@pytest.mark.parametrize("make", [plain, whichever])
@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (-1.0, 1.0), (-0.5, 2.0), (0.25, 0.75), (-LARGEST, LARGEST), (-2.0, -1.0)]
)
@pytest.mark.parametrize("size", [1, 63, 64, 65, 5000])
@pytest.mark.parametrize("bad", [None, math.nan, -math.nan, math.inf, -math.inf, "low", "high"])
def test_what_is_outside_is_never_admitted(make: Make, low: float, high: float, size: int, bad: Any) -> None:
    middle = 0.0 if high == LARGEST else (low + high) / 2
    array = np.full((1, size), middle, np.float32)
    with np.errstate(over="ignore"):
        below, above = np.nextafter(np.array([low, high], np.float32), np.array([-np.inf, np.inf], np.float32))
    if bad is not None:
        array[0, size // 3] = {"low": below, "high": above}.get(bad, bad)
    ring = make(InputLayout(size), low, high, 4)
    assert (ring.record_input(array) >= 0) is (bad is None)
    assert bool(all_within(array, low, high)) is (bad is None)
    edges = np.array([[low, high]], np.float32)
    assert all_within(edges, low, high)


@pytest.mark.parametrize("make", [plain, whichever])
@pytest.mark.parametrize(
    "array",
    [
        sample(9),
        sample(20)[:, ::2],
        sample(10).astype(np.float64),
        sample(10).astype(np.int32),
        sample(10).astype(">f4"),
        [0.0] * 10,
        None,
    ],
    ids=["short", "strided", "float64", "int32", "big-endian", "list", "none"],
)
def test_what_cannot_be_read_is_left_to_the_closer_look(make: Make, array: Any) -> None:
    assert make(InputLayout(10), -LARGEST, LARGEST, 4).record_input(array) == -1


@pytest.mark.parametrize("make", [plain, whichever])
def test_a_full_ring_still_admits_and_counts_what_it_dropped(make: Make) -> None:
    ring = make(InputLayout(4, output_scores=3), -LARGEST, LARGEST, 2)
    slots = [ring.record_input(sample(4)) for _ in range(3)]
    assert min(slots) >= 0
    assert ring.dropped == 1
    assert all(ring.record_output(slot, sample(3)) for slot in slots)
    assert len(rows_of(ring)) == 2
    assert ring.drain() == b""


@pytest.mark.parametrize("make", [plain, whichever])
def test_a_failed_inference_leaves_no_row(make: Make) -> None:
    ring = make(InputLayout(4, output_scores=3), -LARGEST, LARGEST, 1)
    ring.discard(ring.record_input(sample(4)))
    assert ring.drain() == b""
    held = ring.record_input(sample(4))
    assert not ring.record_output(held, np.array([[0, math.nan, 1]], np.float32))
    assert not ring.record_output(ring.record_input(sample(4)), sample(2)), "fewer scores than classes"
    assert ring.drain() == b""
    assert ring.dropped == 0
    with pytest.raises(ValueError, match="no input waits"):
        ring.record_output(held, sample(3))


@pytest.mark.parametrize("make", [plain, whichever])
def test_rows_come_oldest_first_with_their_latency(make: Make) -> None:
    ring = make(InputLayout(4, output_scores=3), -LARGEST, LARGEST, 3)
    for _ in range(2):  # the second time round the ring's end
        for number in range(2):
            slot = ring.record_input(np.full((1, 4), number, np.float32))
            time.sleep(0.01)
            ring.record_output(slot, sample(3))
        rows = rows_of(ring)
        assert rows[:, 2].tolist() == [0, 1]
        assert (rows[:, 1] >= 0.01).all()
        assert rows[0, 0] < rows[1, 0] <= time.monotonic()


@pytest.mark.parametrize("make", [plain, whichever])
def test_threads_never_mix_rows(make: Make) -> None:
    ring = make(InputLayout(64, output_scores=5), -LARGEST, LARGEST, 64)
    kept: list[NDArray[np.float64]] = []

    def infer(number: int) -> None:
        array = np.full((1, 64), number, np.float32)
        scores = np.zeros((1, 5), np.float32)
        scores[0, number] = 1
        for _ in range(300):
            ring.record_output(ring.record_input(array), scores)

    threads = [threading.Thread(target=infer, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        kept.append(rows_of(ring))
    rows = np.concatenate([*kept, rows_of(ring)])
    assert len(rows) + ring.dropped == 1500
    assert (rows[:, 4] == rows[:, -1]).all(), "an input's mean is its class"


@pytest.mark.parametrize(("values", "channels"), [(0, 1), (10, 3), (10, 17), (10, 0)])
def test_a_layout_that_cannot_be_is_refused(values: int, channels: int) -> None:
    with pytest.raises(ValueError, match="channels of"):
        InputLayout(values, channels)


@pytest.mark.parametrize("make", [plain, whichever])
def test_a_slot_that_is_never_released_stops_nothing(make: Make) -> None:
    ring = make(InputLayout(4, output_scores=3), -LARGEST, LARGEST, 8)
    held = ring.record_input(sample(4))
    for _ in range(100):
        assert ring.record_output(ring.record_input(sample(4)), sample(3))
        assert len(rows_of(ring)) == 1
    assert ring.dropped == 0
    assert ring.record_output(held, sample(3))


@pytest.mark.skipif(not HAS_COMPILED_RING, reason="there is no compiled part")
def test_a_ring_that_was_not_made_is_of_no_use_and_does_no_harm() -> None:
    compiled = importlib.import_module("edgewright.stats._input_stats").Ring
    ring = compiled.__new__(compiled)
    with pytest.raises(ValueError, match="was not made"):
        ring.record_input(sample(4))
    with pytest.raises(ValueError, match="no input waits"):
        ring.record_output(0, sample(4))
    ring.discard(0)
    assert ring.drain() == b""
