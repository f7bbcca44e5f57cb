"""Reference profiles: what is watched, how far apart observations must be, and what may be promised."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgewright.compress.data.loader import load_data
from edgewright.compress.model.loading import read_model
from edgewright.compress.uncertainty.reference_profile import (
    MIN_PROFILE_SAMPLES,
    build_reference_profile,
    infer_layout,
)
from edgewright.contract.model.reference_profile import ReferenceProfile

Arrays = dict[str, NDArray[Any]]


def profile_of(model: Path, path: Path, arrays: Arrays, **more: Any) -> ReferenceProfile | None:
    np.savez(path / "data.npz", **arrays)  # type: ignore[arg-type]
    loaded = read_model(model)
    dataset = load_data(str(path / "data.npz"), loaded.contract, group=more.pop("group", None))
    return build_reference_profile(loaded.proto, dataset, loaded.contract, **more)


def some(digits: Arrays, count: int, seed: int = 0) -> Arrays:
    chosen = np.random.default_rng(seed).permutation(len(digits["x"]))[:count]
    return {"x": digits["x"][chosen], "y": digits["y"][chosen]}


@pytest.mark.parametrize(
    ("shape", "channels", "interleaved"),
    [
        ((9, 1, 3, 32, 32), 3, False),
        ((9, 1, 32, 32, 3), 3, True),
        ((9, 1, 64, 6), 6, True),
        ((9, 1, 6, 64), 6, False),
        ((9, 1, 49, 40), 1, False),
        ((9, 1, 12), 12, True),
        ((9, 1, 200), 1, False),
        ((9, 1, 1), 1, False),
    ],
)
def test_the_short_axis_holds_the_channels(shape: tuple[int, ...], channels: int, interleaved: bool) -> None:
    found = infer_layout(np.zeros(shape, np.float32), 0)
    assert (found.values_per_sample, found.channels) == (int(np.prod(shape[1:])), channels)
    assert found.channels == 1 or found.channels_last is interleaved


@pytest.mark.parametrize("count", [100, 150, 200, 298, 400])
def test_enough_samples_for_one_rate_are_enough_for_rules(
    digits_model: Path, digits: Arrays, tmp_path: Path, count: int
) -> None:
    profile = profile_of(digits_model, tmp_path, some(digits, count))
    assert profile is not None
    rates = [rule.guarantee.level for rule in profile.ood_rules]
    assert len(rates) == 2
    assert sum(rates) == pytest.approx(0.02 if count >= 299 else 0.1)
    assert all(rule.guarantee.calibration_samples == count for rule in profile.ood_rules)


def test_too_few_samples_make_no_profile(digits_model: Path, digits: Arrays, tmp_path: Path) -> None:
    assert profile_of(digits_model, tmp_path, some(digits, MIN_PROFILE_SAMPLES - 1)) is None


def test_repeated_frames_are_counted_once_and_promise_no_more_than_they_are(
    digits_model: Path, digits: Arrays, tmp_path: Path
) -> None:
    few = some(digits, 240)
    stream = {name: np.repeat(array, 5, axis=0) for name, array in few.items()}
    profile = profile_of(digits_model, tmp_path, stream, in_order=True, interval_seconds=0.1)
    assert profile is not None
    assert profile.thinning_step >= 5
    assert profile.is_testable
    assert profile.min_gap_seconds > 0
    assert all(rule.guarantee.calibration_samples <= 240 for rule in profile.ood_rules)
    regimes = {name: np.repeat(array[:3], 200, axis=0) for name, array in few.items()}
    hopeless = profile_of(digits_model, tmp_path, regimes, in_order=True)
    assert hopeless is not None
    assert not hopeless.is_testable


def test_of_each_group_one_sample_is_promised_about_and_groups_give_the_tolerance(
    digits_model: Path, digits: Arrays, tmp_path: Path
) -> None:
    random = np.random.default_rng(1)
    data = some(digits, 1200)
    groups = random.integers(0, 80, 1200)
    brighter = random.uniform(0.6, 1.0, 80)[groups]
    data["x"] = (data["x"] * brighter[:, None, None, None]).astype(np.float32)
    profile = profile_of(digits_model, tmp_path, data | {"writer": groups}, group="writer")
    assert profile is not None
    assert all(rule.guarantee.calibration_samples == 80 for rule in profile.ood_rules)
    tolerances = {signal.name: signal.tolerance for signal in profile.signals}
    assert tolerances["mean"] > 0.05
    alone = profile_of(digits_model, tmp_path, some(digits, 400))
    assert alone is not None
    assert {signal.tolerance for signal in alone.signals} == {0.0}
