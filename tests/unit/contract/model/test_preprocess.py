"""Raw samples become a model's input exactly as the record says."""

import numpy as np
import pytest

from edgewright.contract.errors import DataError, ProjectError
from edgewright.contract.model.preprocess import Preprocess

RAW = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3)).astype(np.uint8)


def test_the_steps_are_colour_scale_mean_std_layout() -> None:
    steps = Preprocess(scale=0.5, mean=(1.0, 2.0, 3.0), std=(2.0, 4.0, 8.0), layout="NCHW", colour="BGR")
    expected = (RAW[..., ::-1] * 0.5 - [1, 2, 3]) / [2, 4, 8]
    result = steps.apply(RAW)
    assert result.dtype == np.float32
    assert (result == np.moveaxis(expected, -1, 1).astype(np.float32)).all()


def test_nothing_declared_is_a_plain_cast() -> None:
    assert (Preprocess().apply(RAW) == RAW).all()


def test_sensor_samples_work_like_images() -> None:
    samples = np.array([[[-32768, 32767]]], np.int16)
    steps = Preprocess(dtype="int16", scale=1 / 32768)
    assert steps.apply(samples).tolist() == [[[-1.0, np.float32(32767) * np.float32(1 / 32768)]]]


def test_another_dtype_or_number_of_channels_is_refused() -> None:
    with pytest.raises(DataError, match=r"samples are int16, \[preprocess\] declares uint8"):
        Preprocess().apply(RAW.astype(np.int16))
    with pytest.raises(DataError, match="mean has 2 values"):
        Preprocess(mean=(1.0, 2.0)).apply(RAW)


@pytest.mark.parametrize(
    "steps",
    [
        {"scale": 0.0},
        {"scale": float("nan")},
        {"std": (1.0, 0.0)},
        {"mean": (float("inf"),)},
        {"size": (0, 4)},
    ],
)
def test_steps_that_lose_every_value_are_refused(steps: dict[str, object]) -> None:
    with pytest.raises(ProjectError):
        Preprocess(**steps)  # type: ignore[arg-type] # any of its fields
