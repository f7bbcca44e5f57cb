from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgewright.contract.errors import DataError
from edgewright.contract.model.signature import ModelSignature, TensorSpec
from edgewright.profiling.random_inputs import random_inputs, runnable_inputs

CONTRACT = ModelSignature((TensorSpec("x", "float32", ("batch", "time")),), ())


def _model(path: Path, pad: list[int], shape: list[str | int]) -> Path:
    """Make a model that reflects its input at the ends, for which one sample is too few."""
    graph = helper.make_graph(
        [helper.make_node("Pad", ["x", "pads"], ["y"], mode="reflect")],
        "pad",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", None])],
        [helper.make_tensor("pads", TensorProto.INT64, [4], pad)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path


def test_the_same_seed_gives_the_same_input() -> None:
    assert np.array_equal(random_inputs(CONTRACT, 3)["x"], random_inputs(CONTRACT, 3)["x"])
    assert not np.array_equal(random_inputs(CONTRACT, 3)["x"], random_inputs(CONTRACT, 4)["x"])


def test_ranges_of_the_contract_are_kept() -> None:
    spec = TensorSpec("x", "uint8", (1, 1000), low=3, high=9)
    values = random_inputs(ModelSignature((spec,), ()))["x"]
    assert values.dtype == np.uint8
    assert (values.min(), values.max()) == (3, 9)


def test_a_free_axis_is_made_as_long_as_the_model_needs(tmp_path: Path) -> None:
    model = _model(tmp_path / "m.onnx", [0, 20, 0, 20], ["batch", "time"])
    assert runnable_inputs(model, CONTRACT)["x"].shape == (1, 32)


def test_a_model_that_no_size_fits_asks_for_real_input(tmp_path: Path) -> None:
    model = _model(tmp_path / "m.onnx", [0, 20, 0, 20], ["batch", 4])
    contract = ModelSignature((TensorSpec("x", "float32", ("batch", 4)),), ())
    with pytest.raises(DataError, match=r"does not run with random input.*--data"):
        runnable_inputs(model, contract)
