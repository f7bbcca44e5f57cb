"""What `read_model` lets in, and what it refuses."""

import contextlib
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgewright.compress.model.loading import read_model
from edgewright.contract.errors import ModelError

SHARED = Path(__file__).parents[5] / "shared" / "models"


def model_of(
    nodes: Sequence[onnx.NodeProto],
    constants: Sequence[onnx.TensorProto] = (),
    *,
    opset: int = 17,
    ir_version: int = 8,
    domains: Sequence[str] = (),
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        constants,
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)


def dense(weights: np.ndarray | None = None) -> onnx.ModelProto:
    values = np.eye(2, dtype=np.float32) if weights is None else weights
    return model_of([helper.make_node("MatMul", ["x", "w"], ["y"])], [numpy_helper.from_array(values, "w")])


def saved(tmp_path: Path, model: onnx.ModelProto | bytes) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return path


def refused(path: Path) -> str:
    with pytest.raises(ModelError) as raised:
        read_model(path)
    assert raised.value.exit_code == 2
    assert raised.value.remedy
    return raised.value.message


def test_a_valid_model_is_read_with_its_contract(tmp_path: Path) -> None:
    path = saved(tmp_path, dense())
    model = read_model(path)
    assert model.opset == 17
    assert model.size_bytes == path.stat().st_size
    assert model.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert [(spec.name, spec.dtype, spec.shape) for spec in model.contract.inputs] == [
        ("x", "float32", ("batch", 2))
    ]
    assert model.contract.outputs[0].shape == ("batch", 2), "inferred where the file leaves it out"
    assert model.contract.has_free_batch_axis


def test_initializers_listed_as_inputs_are_not_inputs(tmp_path: Path) -> None:
    model = dense()
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [2, 2]))
    assert [spec.name for spec in read_model(saved(tmp_path, model)).contract.inputs] == ["x"]


def test_a_missing_file_a_folder_and_an_empty_file_are_refused(tmp_path: Path) -> None:
    assert "does not exist" in refused(tmp_path / "none.onnx")
    assert "is a folder" in refused(tmp_path)
    assert "is empty" in refused(saved(tmp_path, b""))


def test_an_unreadable_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, dense())

    def deny(_: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", deny)
    assert "Permission denied" in refused(path)


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.99])
def test_a_truncated_file_is_refused(tmp_path: Path, kept: float) -> None:
    data = dense(np.ones((2, 50), np.float32)).SerializeToString()
    refused(saved(tmp_path, data[: int(kept * len(data))]))


@pytest.mark.parametrize("data", [b"hello, world", b"\x89PNG\r\n\x1a\n" + bytes(99), b"{}", bytes(500)])
def test_bytes_that_are_not_onnx_are_refused(tmp_path: Path, data: bytes) -> None:
    refused(saved(tmp_path, data))


def test_an_empty_graph_is_refused(tmp_path: Path) -> None:
    assert "empty" in refused(saved(tmp_path, model_of([])))


def externally_saved(tmp_path: Path, location: str) -> Path:
    model = dense()
    tensor = model.graph.initializer[0]
    (tmp_path / "weights.bin").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "16")):
        tensor.external_data.add(key=key, value=value)
    return saved(tmp_path, model)


def test_external_data_is_loaded_and_counted(tmp_path: Path) -> None:
    path = externally_saved(tmp_path, "weights.bin")
    model = read_model(path)
    assert model.size_bytes == path.stat().st_size + 16
    assert (numpy_helper.to_array(model.proto.graph.initializer[0]) == np.eye(2)).all()


def test_missing_external_data_is_refused(tmp_path: Path) -> None:
    path = externally_saved(tmp_path, "weights.bin")
    (tmp_path / "weights.bin").unlink()
    assert "'weights.bin', which is missing" in refused(path)


def test_truncated_external_data_is_refused(tmp_path: Path) -> None:
    path = externally_saved(tmp_path, "weights.bin")
    (tmp_path / "weights.bin").write_bytes(bytes(7))
    assert "up to byte 16" in refused(path)


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", ""])
def test_external_data_outside_the_folder_is_refused(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(16))
    assert "outside" in refused(externally_saved(folder, location))


def test_external_data_behind_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    path = externally_saved(folder, "link.bin")
    (tmp_path / "secret.bin").write_bytes(bytes(16))
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    assert "outside" in refused(path)


def test_an_initializer_that_declares_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    model = dense()
    model.graph.initializer[0].ClearField("dims")
    model.graph.initializer[0].dims.extend([2, 2**40])
    message = refused(saved(tmp_path, model))
    assert "'w' declares" in message
    assert "holds 16" in message


def test_typed_data_shorter_than_declared_is_refused(tmp_path: Path) -> None:
    model = dense()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.float_data.extend([1.0, 2.0, 3.0])
    assert "'w' declares 16 bytes" in refused(saved(tmp_path, model))


@pytest.mark.parametrize("operator", ["ConstantOfShape", "Expand", "Tile"])
def test_a_constant_that_grows_huge_is_refused(tmp_path: Path, operator: str) -> None:
    size = numpy_helper.from_array(np.array([2**20, 2**20], np.int64), "size")
    one = numpy_helper.from_array(np.ones((1, 1), np.float32), "one")
    inputs = ["size"] if operator == "ConstantOfShape" else ["one", "size"]
    nodes = [
        helper.make_node(operator, inputs, ["huge"]),
        helper.make_node("ReduceMax", ["huge"], ["small"]),
        helper.make_node("Add", ["x", "small"], ["y"]),
    ]
    assert "would take" in refused(saved(tmp_path, model_of(nodes, [size, one])))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_broken_weights_are_refused_by_name(tmp_path: Path, value: float) -> None:
    weights = np.eye(2, dtype=np.float32)
    weights[1, 0] = value
    assert "'w' holds" in refused(saved(tmp_path, dense(weights)))


def test_broken_weights_in_a_constant_node_are_refused(tmp_path: Path) -> None:
    value = numpy_helper.from_array(np.full((2, 2), np.nan, np.float16).astype(np.float32))
    nodes = [
        helper.make_node("Constant", [], ["c"], value=value),
        helper.make_node("MatMul", ["x", "c"], ["y"]),
    ]
    assert "'c' holds 4 NaN" in refused(saved(tmp_path, model_of(nodes)))


def test_infinity_is_allowed_as_a_mask_and_as_a_limit(tmp_path: Path) -> None:
    mask = numpy_helper.from_array(np.array([[0, -np.inf]], np.float32), "mask")
    limit = numpy_helper.from_array(np.array(np.inf, np.float32), "limit")
    nodes = [
        helper.make_node("Clip", ["x", "", "limit"], ["c"]),
        helper.make_node("Add", ["c", "mask"], ["m"]),
        helper.make_node("Softmax", ["m"], ["y"]),
    ]
    read_model(saved(tmp_path, model_of(nodes, [mask, limit])))


def test_an_invalid_graph_is_refused(tmp_path: Path) -> None:
    model = model_of([helper.make_node("MatMul", ["x", "nowhere"], ["y"])])
    assert "not a valid ONNX graph" in refused(saved(tmp_path, model))


def test_contradicting_shapes_are_refused(tmp_path: Path) -> None:
    refused(saved(tmp_path, dense(np.ones((3, 3), np.float32))))


def test_an_operator_that_the_runtime_lacks_is_named_with_its_domain(tmp_path: Path) -> None:
    custom = model_of([helper.make_node("Wobble", ["x"], ["y"], domain="acme")], domains=["acme"])
    assert "operator Wobble of domain acme" in refused(saved(tmp_path, custom))
    standard = model_of([helper.make_node("Wobble", ["x"], ["y"])])
    assert "operator Wobble of domain ai.onnx" in refused(saved(tmp_path, standard))


def test_an_operator_without_a_kernel_for_its_types_is_named(tmp_path: Path) -> None:
    model = model_of(
        [helper.make_node("Conv", ["x", "w"], ["y"])], [numpy_helper.from_array(np.ones((1, 1, 2, 2)), "w")]
    )
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.DOUBLE, [1, 1, 4, 4]))
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    assert "operator Conv of domain ai.onnx" in refused(saved(tmp_path, model))


@pytest.mark.parametrize(("opset", "said"), [(5, "oldest"), (6, "oldest"), (999, "knows up to")])
def test_operator_sets_outside_the_runtimes_are_refused(tmp_path: Path, opset: int, said: str) -> None:
    message = refused(saved(tmp_path, model_of([helper.make_node("Relu", ["x"], ["y"])], opset=opset)))
    assert str(opset) in message
    assert said in message


def test_a_file_version_newer_than_the_runtimes_is_refused(tmp_path: Path) -> None:
    assert "99" in refused(saved(tmp_path, model_of([helper.make_node("Relu", ["x"], ["y"])], ir_version=99)))


def test_a_string_input_is_refused(tmp_path: Path) -> None:
    model = model_of([helper.make_node("Identity", ["x"], ["y"])])
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.STRING
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.STRING
    assert "STRING" in refused(saved(tmp_path, model))


def test_damaged_bytes_end_in_a_clear_error_or_a_valid_model(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = dense(np.ones((2, 20), np.float32)).SerializeToString()
    for seed in range(200):
        random = np.random.default_rng(seed)
        data = bytearray(whole)
        for place in random.integers(0, len(data), random.integers(1, 6)):
            data[place] = random.integers(0, 256)
        with contextlib.suppress(ModelError):
            read_model(saved(tmp_path, bytes(data)))
    assert capfd.readouterr().out == "", "nothing but results may come on stdout"


def test_an_input_of_an_unknown_type_is_refused(tmp_path: Path) -> None:
    model = dense()
    model.graph.input[0].type.tensor_type.elem_type = 2307
    refused(saved(tmp_path, model))


def test_subgraphs_are_looked_into(tmp_path: Path) -> None:
    bad = numpy_helper.from_array(np.array([np.nan, 0], np.float32), "inner_weights")
    out = helper.make_tensor_value_info("b", TensorProto.FLOAT, None)
    branches = [
        helper.make_graph([helper.make_node("Add", ["x", "inner_weights"], ["b"])], name, [], [out], [bad])
        for name in ("then", "else")
    ]
    yes = numpy_helper.from_array(np.array(True), "yes")
    node = helper.make_node("If", ["yes"], ["y"], then_branch=branches[0], else_branch=branches[1])
    assert "'inner_weights' holds 1 NaN" in refused(saved(tmp_path, model_of([node], [yes])))


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/models is absent")
@pytest.mark.parametrize("path", sorted(SHARED.glob("*.onnx")), ids=lambda path: path.stem)
def test_every_shared_model_is_read(path: Path) -> None:
    model = read_model(path)
    assert model.contract.inputs
    assert model.contract.outputs
    assert model.size_bytes == path.stat().st_size
