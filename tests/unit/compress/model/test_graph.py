"""A graph as a working copy: its clean-up keeps the answers, whatever the exporter wrote."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgewright.compress.model.graph import Graph, clean_model, names_read, raise_opset, session_bytes, walk_nodes
from edgewright.compress.model.strip_metadata import strip_model
from edgewright.contract.errors import CandidateError

Build = Callable[..., onnx.ModelProto]
Run = Callable[..., list[NDArray[Any]]]
Decibels = Callable[[list[NDArray[Any]], list[NDArray[Any]]], float]

RANDOM = np.random.default_rng(5)


def normal(*shape: int) -> NDArray[np.float32]:
    return RANDOM.standard_normal(shape).astype(np.float32)


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in walk_nodes(model.graph.node)]


def test_cleaning_keeps_the_answers_of_a_trained_network(
    digits_proto: onnx.ModelProto, digits_batch: NDArray[np.float32], answers: Run, decibels: Decibels
) -> None:
    cleaned = clean_model(digits_proto)
    assert decibels(answers(digits_proto, image=digits_batch), answers(cleaned, image=digits_batch)) > 100
    assert Graph(cleaned).input_names == ["image"]
    assert Graph(cleaned).output_names == Graph(digits_proto).output_names


def test_cleaning_leaves_the_model_that_it_was_given_as_it_was(digits_proto: onnx.ModelProto) -> None:
    before = digits_proto.SerializeToString()
    strip_model(clean_model(digits_proto))
    assert digits_proto.SerializeToString() == before


@pytest.fixture
def normalised(built: Build) -> onnx.ModelProto:
    return built(
        """g (float[n,3,6,6] x) => (float[n,4,4,4] y) {
            c = Conv(x, w, b)
            bn = BatchNormalization(c, scale, shift, mean, variance)
            y = Relu(bn)
        }""",
        w=normal(4, 3, 3, 3),
        b=normal(4),
        scale=normal(4),
        shift=normal(4),
        mean=normal(4),
        variance=np.abs(normal(4)) + 0.5,
    )


def test_batch_normalisation_goes_into_the_convolution(
    normalised: onnx.ModelProto, answers: Run, decibels: Decibels
) -> None:
    cleaned = clean_model(normalised)
    assert operators(cleaned) == ["Conv", "Relu"]
    x = normal(2, 3, 6, 6)
    assert decibels(answers(normalised, "disable", x=x), answers(cleaned, x=x)) > 100


@pytest.mark.parametrize("opset", [8, 9, 11])
def test_old_operator_sets_are_raised_with_the_same_answers(
    built: Build, answers: Run, decibels: Decibels, opset: int
) -> None:
    model = built(
        """g (float[2,3,6,6] x) => (float[2,5] y) {
            c = Conv(x, w)
            r = Relu(c)
            p = MaxPool<kernel_shape = [2,2], strides = [2,2]>(r)
            f = Flatten(p)
            y = Gemm(f, m, v)
        }""",
        opset=opset,
        w=normal(4, 3, 3, 3),
        m=normal(16, 5),
        v=normal(5),
    )
    # Before IR version 4, initializers had to be listed as inputs as well.
    for tensor in model.graph.initializer:
        shape = list(tensor.dims)
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, shape))
    model.ir_version = 3
    cleaned = clean_model(model)
    assert Graph(cleaned).opset >= 13
    assert [value.name for value in cleaned.graph.input] == ["x"]
    x = normal(2, 3, 6, 6)
    assert decibels(answers(model, "disable", x=x), answers(cleaned, x=x)) > 100


def test_an_operator_set_without_conversion_is_left_as_it_is(built: Build) -> None:
    model = built("g (float[2] x) => (float[2] y) { y = FusedGelu(x) }", opset=11)
    assert Graph(raise_opset(model)).opset == 11


def test_weights_are_taken_off_the_list_of_inputs(normalised: onnx.ModelProto, answers: Run) -> None:
    before = answers(normalised, x=np.ones((1, 3, 6, 6), np.float32))
    for tensor in normalised.graph.initializer:
        normalised.graph.input.append(
            helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, list(tensor.dims))
        )
    cleaned = clean_model(normalised)
    assert [value.name for value in cleaned.graph.input] == ["x"]
    np.testing.assert_allclose(answers(cleaned, x=np.ones((1, 3, 6, 6), np.float32))[0], before[0], rtol=1e-4)


def test_constant_nodes_become_initializers(built: Build, answers: Run) -> None:
    model = built(
        """g (float[n,2] x) => (float[n,2] y) {
            two = Constant<value = float[2] {2.0, 3.0}>()
            same = Constant<value = float[2] {2.0, 3.0}>()
            h = Mul(x, two)
            y = Add(h, same)
        }"""
    )
    cleaned = clean_model(model)
    assert "Constant" not in operators(cleaned)
    assert len(cleaned.graph.initializer) == 1  # equal ones once
    x = normal(3, 2)
    np.testing.assert_array_equal(answers(cleaned, x=x)[0], answers(model, x=x)[0])


@pytest.fixture
def branching(built: Build) -> onnx.ModelProto:
    model: onnx.ModelProto = built(
        """g (float[2,3] x, bool go) => (float[2,4] y) {
            y = If(go) <
                then_branch = yes () => (float[2,4] a) {
                    w1 = Constant<value = float[1] {3.0}>()
                    p = MatMul(x, w)
                    a = Mul(p, w1)
                },
                else_branch = no () => (float[2,4] b) {
                    w1 = Constant<value = float[1] {5.0}>()
                    q = MatMul(x, w)
                    b = Mul(q, w1)
                }
            >
        }""",
        w=normal(3, 4),
    )
    # An initializer inside a branch, with a name that the other branch uses for something else.
    branch = next(a.g for a in model.graph.node[0].attribute if a.name == "then_branch")
    branch.initializer.append(numpy_helper.from_array(np.array([7.0], np.float32), "extra"))
    branch.node[2].output[0] = "scaled"
    branch.node.append(helper.make_node("Add", ["scaled", "extra"], ["a"]))
    return model


@pytest.mark.parametrize("go", [True, False])
def test_constants_of_branches_are_lifted_and_stay_apart(
    branching: onnx.ModelProto, answers: Run, go: bool
) -> None:
    x = normal(2, 3)
    for made in (clean_model(branching), strip_model(clean_model(branching))):
        assert "Constant" not in operators(made)
        for have, want in zip(
            answers(made, x=x, go=np.array(go)), answers(branching, "disable", x=x, go=np.array(go)), strict=True
        ):
            np.testing.assert_allclose(have, want, rtol=1e-5)


def test_what_a_branch_reads_counts_as_read(branching: onnx.ModelProto) -> None:
    graph = Graph(branching)
    assert {"x", "w", "go"} <= set(names_read(graph.nodes[0]))
    assert "w" in graph.consumers()
    graph.prune()
    assert "w" in graph.constants


def test_weights_stored_as_integers_become_floats(built: Build, answers: Run) -> None:
    model = built(
        """g (float[n,6] x) => (float[n,4] y) {
            w = DequantizeLinear<axis = -1>(codes, steps, zeros)
            y = MatMul(x, w)
        }""",
        codes=RANDOM.integers(-100, 100, (6, 4)).astype(np.int8),
        steps=np.abs(normal(4)),
        zeros=np.array([1, -2, 3, 0], np.int8),
    )
    cleaned = clean_model(model)
    assert operators(cleaned) == ["MatMul"]
    x = normal(3, 6)
    np.testing.assert_allclose(answers(cleaned, x=x)[0], answers(model, x=x)[0], rtol=1e-4, atol=1e-4)


def test_weights_stored_in_blocks_are_cleaned_with_the_same_answers(built: Build, answers: Run) -> None:
    model = built(
        """g (float[n,8] x) => (float[n,4] y) {
            w = DequantizeLinear<axis = 0, block_size = 4>(codes, steps)
            y = MatMul(x, w)
        }""",
        opset=21,
        codes=RANDOM.integers(-100, 100, (8, 4)).astype(np.int8),
        steps=np.abs(normal(2, 4)),
    )
    model.ir_version = 10
    x = normal(3, 8)
    np.testing.assert_allclose(answers(clean_model(model), x=x)[0], answers(model, x=x)[0], rtol=1e-4, atol=1e-4)


def test_integer_weights_stay_where_activations_are_integers(built: Build) -> None:
    model = built(
        """g (float[n,6] x) => (float[n,4] y) {
            q = QuantizeLinear(x, s, z)
            d = DequantizeLinear(q, s, z)
            w = DequantizeLinear(codes, s, zw)
            y = MatMul(d, w)
        }""",
        codes=RANDOM.integers(-100, 100, (6, 4)).astype(np.int8),
        s=np.float32(0.1),
        z=np.uint8(128),
        zw=np.int8(0),
    )
    assert operators(clean_model(model)).count("DequantizeLinear") == 2


def test_compacting_keeps_names_of_inputs_and_outputs_and_every_answer(
    digits_proto: onnx.ModelProto, digits_batch: NDArray[np.float32], answers: Run
) -> None:
    cleaned = clean_model(digits_proto)
    small = strip_model(cleaned)
    assert small.ByteSize() < cleaned.ByteSize()
    assert Graph(small).input_names == Graph(digits_proto).input_names
    assert Graph(small).output_names == Graph(digits_proto).output_names
    assert not small.graph.value_info
    assert not any(node.name or node.doc_string for node in small.graph.node)
    np.testing.assert_array_equal(answers(small, image=digits_batch)[0], answers(cleaned, image=digits_batch)[0])


def test_short_names_never_meet_names_that_stay(built: Build, answers: Run) -> None:
    model = built(
        """g (float[n,3] b, float[n,3] c) => (float[n,3] d, float[n,3] d_) {
            first = Add(b, w)
            second = Mul(first, c)
            d = Relu(second)
            d_ = Sub(first, v)
        }""",
        w=normal(3),
        v=normal(3),
    )
    feed = {"b": normal(2, 3), "c": normal(2, 3)}
    small = strip_model(model)
    for have, want in zip(answers(small, **feed), answers(model, **feed), strict=True):
        np.testing.assert_array_equal(have, want)


def test_fresh_names_are_never_taken(built: Build) -> None:
    model = built(
        """g (float[n,3] ew_scale_1, bool ew_scale_4) => (float[n,3] ew_scale_2) {
            ew_scale_3 = Add(ew_scale_1, ew_scale_5)
            ew_scale_2 = If(ew_scale_4) <
                then_branch = yes () => (float[n,3] ew_scale_6) { ew_scale_6 = Relu(ew_scale_3) },
                else_branch = no () => (float[n,3] ew_scale_7) { ew_scale_7 = Abs(ew_scale_3) }
            >
        }""",
        ew_scale_5=normal(3),
    )
    graph = Graph(model)
    names = [graph.unique_name("scale") for _ in range(20)]
    assert len(set(names)) == 20
    assert not set(names) & {f"ew_scale_{i}" for i in range(1, 8)}
    for _ in range(3):  # a copy of a copy does not know which names were given out, but sees those in use
        graph.make_node("Relu", ["ew_scale_1"], [graph.unique_name("scale")])
    again = Graph(Graph(graph.to_model()).proto)
    assert again.unique_name("scale") not in {name for node in graph.nodes for name in node.output}


def test_nodes_with_equal_or_no_names_get_names_of_their_own(built: Build) -> None:
    model = built("g (float[n] x) => (float[n] y) { a = Relu(x)\n b = Relu(a)\n c = Abs(b)\n y = Neg(c) }")
    model.graph.node[0].name = model.graph.node[1].name = "twin"
    names = [node.name for node in Graph(model).nodes]
    assert all(names)
    assert len(set(names)) == 4


def test_sorting_finds_an_order_and_refuses_a_circle(built: Build) -> None:
    model = built("g (float[n] x) => (float[n] y) { a = Relu(x)\n b = Abs(a)\n y = Neg(b) }")
    graph = Graph(model)
    graph.nodes.reverse()
    graph.sort()
    assert [node.op_type for node in graph.nodes] == ["Relu", "Abs", "Neg"]
    graph.nodes[0].input[0] = "b"
    with pytest.raises(CandidateError, match="circle"):
        graph.sort()


def test_pruning_drops_what_no_output_needs(built: Build) -> None:
    model = built("g (float[n] x) => (float[n] y) { a = Add(x, w)\n y = Relu(x) }", w=normal(1))
    graph = Graph(model)
    graph.prune()
    assert [node.op_type for node in graph.nodes] == ["Relu"]
    assert not graph.constants


def test_an_output_that_is_an_input_or_a_constant_survives(built: Build, answers: Run) -> None:
    model = built("g (float[n] x) => (float[n] y, float[1] w) { y = Relu(x) }", w=np.array([4], np.float32))
    x = np.array([-1, 2], np.float32)
    for made in (clean_model(model), strip_model(clean_model(model))):
        y, w = answers(made, x=x)
        assert y.tolist() == [0, 2]
        assert w.tolist() == [4]


def test_a_graph_that_the_runtime_refuses_is_an_error_of_the_candidate(built: Build) -> None:
    with pytest.raises(CandidateError, match="onnxruntime refuses the graph"):
        session_bytes(built("g (float[n] x) => (float[n] y) { y = NoSuchThing(x) }"))


def test_sparse_initializers_survive(answers: Run) -> None:
    values = numpy_helper.from_array(np.array([2, 3], np.float32), "w")
    indices = numpy_helper.from_array(np.array([1, 3], np.int64), "w_indices")
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
    )
    graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    x = np.ones(4, np.float32)
    assert answers(strip_model(clean_model(model)), x=x)[0].tolist() == [1, 3, 1, 4]
