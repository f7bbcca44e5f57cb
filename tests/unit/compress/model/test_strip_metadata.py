"""What is taken out of a file changes no answer."""

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgewright.compress.model.graph import session_bytes
from edgewright.compress.model.strip_metadata import strip_model


def convolution(**attributes: Any) -> onnx.ModelProto:
    """Return a 3 x 3 convolution of 4 channels of 6 x 6."""
    weight = np.random.default_rng(0).normal(size=(4, 4, 3, 3)).astype(np.float32)
    node = helper.make_node("Conv", ["image", "a long name"], ["answer"], name="prose", **attributes)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 4, 6, 6])],
        [helper.make_tensor_value_info("answer", TensorProto.FLOAT, [1, 4, None, None])],
        [numpy_helper.from_array(weight, "a long name")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def answers(model: onnx.ModelProto) -> NDArray[np.float32]:
    session = session_bytes(model)
    image = np.random.default_rng(1).normal(size=(1, 4, 6, 6)).astype(np.float32)
    return np.asarray(session.run(None, {"image": image})[0])


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ({"strides": [1, 1], "dilations": [1, 1], "pads": [0, 0, 0, 0], "group": 1, "auto_pad": "NOTSET"}, set()),
        ({"strides": [2, 1], "dilations": [1, 2], "pads": [0, 1, 0, 0]}, {"strides", "dilations", "pads"}),
        ({"auto_pad": "SAME_UPPER", "kernel_shape": [3, 3]}, {"auto_pad", "kernel_shape"}),
    ],
)
def test_attributes_that_say_what_goes_without_saying_are_left_out(written: dict[str, Any], kept: set[str]) -> None:
    model = convolution(**written)
    small = strip_model(model)
    assert {attribute.name for attribute in small.graph.node[0].attribute} == kept
    np.testing.assert_array_equal(answers(small), answers(model))
    assert small.graph.node[0].name == ""
    assert strip_model(small) == small


def test_operators_that_the_standard_does_not_know_keep_theirs() -> None:
    model = convolution()
    model.graph.node[0].domain = "com.example"
    model.graph.node[0].attribute.append(helper.make_attribute("group", 1))
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    assert [attribute.name for attribute in strip_model(model).graph.node[0].attribute] == ["group"]
