"""Real networks of others: cleaning and storing keep their names and their answers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from edgewright.compress.model.graph import Graph, clean_model, session_bytes
from edgewright.compress.model.loading import read_model
from edgewright.compress.model.strip_metadata import strip_model
from edgewright.compress.quantize.bit_packing import pack_integers
from edgewright.compress.quantize.sensitivity import make_noise_probe
from edgewright.compress.quantize.weight_only import StoreIntegerWeights, store_integer_weights

MODELS = Path(__file__).parents[4] / "shared" / "models"
NAMES = [path.name for path in sorted(MODELS.glob("*.onnx"))]

Case = tuple[onnx.ModelProto, dict[str, NDArray[Any]]]

pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(not NAMES, reason="the models of ../shared/models are not beside the checkout"),
]


# Greatest value of the samples that these were trained on; others take 0 to 1.
SCALES = {"mlperftiny_ic_resnet8_fp32.onnx": 255.0, "yunet_n_320.onnx": 255.0, "ort_mnist_cnn.onnx": 255.0}


def inputs_of(name: str, model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    """Return plausible inputs: random samples in the usual range, a batch of one, a window of 576 samples."""
    random = np.random.default_rng(0)
    feed: dict[str, NDArray[Any]] = {}
    for value in session_bytes(model, level="disable").get_inputs():
        free = {"sequence": 576}
        shape = [axis if isinstance(axis, int) and axis > 0 else free.get(axis, 1) for axis in value.shape]
        if value.type == "tensor(float)":
            feed[value.name] = random.random(shape, np.float32) * np.float32(SCALES.get(name, 1.0))
        elif value.type in ("tensor(uint8)", "tensor(int8)"):
            feed[value.name] = random.integers(0, 100, shape).astype(value.type[7:-1])
        else:
            feed[value.name] = np.full(shape, 16000, np.int64)  # the only other input is a sampling rate
    return feed


@pytest.fixture(params=NAMES or ["absent"])
def case(request: pytest.FixtureRequest) -> Case:
    model = read_model(MODELS / request.param).proto
    return model, inputs_of(request.param, model)


def interface(model: onnx.ModelProto) -> tuple[list[str], list[str]]:
    graph = Graph(model)
    return graph.input_names, graph.output_names


def test_every_listed_model_is_there() -> None:
    known = json.loads((MODELS / "models.json").read_text())
    assert set(NAMES) == {f"{model['name']}.onnx" for model in known}


def test_cleaning_keeps_names_and_answers(
    case: Case, answers: Callable[..., Any], decibels: Callable[..., float]
) -> None:
    model, feed = case
    truth = answers(model, "disable", **feed)
    cleaned = clean_model(model)
    assert interface(cleaned) == interface(model)
    assert decibels(truth, answers(cleaned, **feed)) > 40
    small = strip_model(cleaned)
    assert interface(small) == interface(model)
    assert decibels(truth, answers(small, **feed)) > 40


def test_weights_of_eight_bits_keep_names_and_twenty_decibels(case: Case, answers: Callable[..., Any]) -> None:
    model, feed = case
    cleaned = clean_model(model)
    stored = pack_integers(store_integer_weights(cleaned, StoreIntegerWeights()))
    assert make_noise_probe(cleaned, [feed]).noise(stored) < 10 ** (-20 / 10)  # before a final softmax or sigmoid
    made = strip_model(stored)
    assert interface(made) == interface(model)
    assert made.ByteSize() <= model.ByteSize()
    for have, want in zip(answers(made, **feed), answers(stored, **feed), strict=True):
        np.testing.assert_array_equal(have, want)
