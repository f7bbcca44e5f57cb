"""Raw samples in: the same answers as preprocessing outside, and no float before an 8-bit first layer."""

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_images

from edgewright.compress.data.dataset import Dataset
from edgewright.compress.model.graph import Graph, clean_model, optimized, session_bytes
from edgewright.compress.model.loading import read_model
from edgewright.compress.quantize.activation_ranges import collect_statistics
from edgewright.compress.quantize.preprocess_folding import (
    FoldPreprocess,
    fold_preprocess,
    raw_contract,
    raw_dataset,
)
from edgewright.compress.quantize.static_int8 import StaticInt8, quantize_static, tensors_to_observe
from edgewright.compress.search.recipe import CandidateBuilder, CleanGraph, Recipe
from edgewright.contract.errors import DataError
from edgewright.contract.model.preprocess import Preprocess

Build = Callable[..., onnx.ModelProto]

BYTES = Preprocess(dtype="uint8", scale=0.0625, layout="NCHW")
SHORTS = Preprocess(dtype="int16", scale=0.001, mean=(-8.0,), std=(16.0,), layout="NCHW")
COLOURS = Preprocess(
    dtype="uint8", scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), layout="NCHW", colour="BGR"
)
INTEGER_ONLY = {"Cast", "Mul", "Add", "Max", "Min", "Div", "Transpose", "Slice", "Gather"}


def raw_digits(digits: dict[str, NDArray[Any]], steps: Preprocess) -> NDArray[Any]:
    pixels: NDArray[Any] = np.rint(np.moveaxis(digits["x"][:64], 1, -1) * 16)
    return pixels.astype(np.uint8) if steps is BYTES else ((pixels - 8) * 1000).astype(np.int16)


def colour_network(built: Build, padding: str) -> onnx.ModelProto:
    random = np.random.default_rng(0)
    return built(
        f"g (float[n,3,12,12] x) => (float[n,4] y) {{ c = Conv<pads=[{padding}]>(x, w, b)\n r = Relu(c)\n"
        " p = GlobalAveragePool(r)\n y = Flatten(p) }",
        w=random.normal(size=(4, 3, 3, 3)).astype(np.float32),
        b=random.normal(size=4).astype(np.float32),
    )


def photos() -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (8, 12, 12, 3)).astype(np.uint8)


@pytest.mark.parametrize("steps", [BYTES, SHORTS], ids=["bytes", "shorts"])
def test_raw_samples_give_the_answers_of_prepared_ones(
    digits_proto: onnx.ModelProto, digits: dict[str, NDArray[Any]], steps: Preprocess
) -> None:
    folded = fold_preprocess(clean_model(digits_proto), FoldPreprocess(steps))
    raw = raw_digits(digits, steps)
    wanted = session_bytes(digits_proto).run(None, {"image": steps.apply(raw)})[0]
    np.testing.assert_allclose(session_bytes(folded).run(None, {"image": raw})[0], wanted, atol=1e-4)


@pytest.mark.parametrize("padding", ["0,0,0,0", "1,1,1,1"], ids=["valid", "padded"])
def test_means_per_channel_and_reversed_colours_fold_exactly(built: Build, padding: str) -> None:
    model = colour_network(built, padding)
    folded = fold_preprocess(model, FoldPreprocess(COLOURS))
    wanted = session_bytes(model).run(None, {"x": COLOURS.apply(photos())})[0]
    np.testing.assert_allclose(session_bytes(folded).run(None, {"x": photos()})[0], wanted, rtol=1e-4, atol=1e-4)


def first_steps(model: onnx.ModelProto) -> Iterator[str]:
    """Yield the operators before the first layer, as the runtime runs them."""
    for node in optimized(model, "all").graph.node:
        if node.op_type.startswith(("QLinear", "QGemm")):
            return
        yield node.op_type


@pytest.mark.parametrize("steps", [BYTES, SHORTS], ids=["bytes", "shorts"])
def test_no_float_precedes_an_integer_first_layer(
    digits_proto: onnx.ModelProto, digits: dict[str, NDArray[Any]], steps: Preprocess
) -> None:
    folded = fold_preprocess(clean_model(digits_proto), FoldPreprocess(steps))
    raw = raw_digits(digits, steps)
    seen = collect_statistics(folded, tensors_to_observe(Graph(folded)), [{"image": raw}])
    quantized = quantize_static(folded, StaticInt8(), seen)
    before = list(first_steps(quantized))
    assert set(before) <= INTEGER_ONLY
    inferred = onnx.shape_inference.infer_shapes(quantized)
    kinds = {v.name: v.type.tensor_type.elem_type for v in (*inferred.graph.value_info, *inferred.graph.input)}
    producers = Graph(quantized).producers()
    conv = next(node for node in quantized.graph.node if node.op_type == "Conv")
    waiting = [producers[conv.input[0]].input[0]]  # the bytes under the first layer's dequantize node
    while waiting:
        name = waiting.pop()
        assert kinds[name] != onnx.TensorProto.FLOAT, name
        if name in producers:
            waiting += [i for i in producers[name].input if i in producers or i == "image"]
    wanted = session_bytes(digits_proto).run(None, {"image": steps.apply(raw)})[0]
    given = session_bytes(quantized).run(None, {"image": raw})[0]
    assert (given.argmax(axis=1) == wanted.argmax(axis=1)).mean() > 0.95


def test_whole_number_arithmetic_is_at_most_one_step_from_rounding(built: Build) -> None:
    model = colour_network(built, "1,1,1,1")
    folded = fold_preprocess(model, FoldPreprocess(COLOURS))
    seen = collect_statistics(folded, tensors_to_observe(Graph(folded)), [{"x": photos()}])
    quantized = quantize_static(folded, StaticInt8(), seen)
    graph = Graph(quantized)
    conv = next(node for node in graph.nodes if node.op_type == "Conv")
    dequantize = graph.producers()[conv.input[0]]
    step, zero = (graph.constants[name] for name in dequantize.input[1:])
    watched = onnx.ModelProto()
    watched.CopyFrom(quantized)
    watched.graph.output.append(onnx.ValueInfoProto(name=dequantize.input[0]))
    codes = session_bytes(watched, level="disable").run([dequantize.input[0]], {"x": photos()})[0]
    exact = np.clip(np.rint(COLOURS.apply(photos()) / step) + zero, 0, 255)
    assert np.abs(codes.astype(int) - exact).max() <= 1


@pytest.mark.parametrize("steps", [BYTES, SHORTS], ids=["bytes", "shorts"])
def test_raw_samples_are_recovered_exactly(digits: dict[str, NDArray[Any]], steps: Preprocess) -> None:
    raw = raw_digits(digits, steps)
    prepared = Dataset({"image": steps.apply(raw)[:, None]}, None, None, "fidelity", "0", preprocess=steps)
    recovered = raw_dataset(prepared).inputs["image"]
    assert recovered.dtype == raw.dtype
    np.testing.assert_array_equal(recovered[:, 0], raw)


def test_the_contract_tells_type_and_layout_of_raw_samples(digits_model: Any) -> None:
    contract = raw_contract(read_model(digits_model).contract, FoldPreprocess(BYTES))
    assert contract.inputs[0].dtype == "uint8"
    assert contract.inputs[0].shape[1:] == (8, 8, 1)


def test_folding_needs_something_to_fold(digits: dict[str, NDArray[Any]]) -> None:
    with pytest.raises(DataError, match="no preprocessing to fold"):
        raw_dataset(Dataset({"image": digits["x"][:, None]}, None, None, "fidelity", "0"))


def test_photos_of_any_size_are_resized_in_the_graph_as_by_pillow(built: Build) -> None:
    model = colour_network(built, "1,1,1,1")
    steps = msgspec.structs.replace(COLOURS, size=(12, 12))
    folded = fold_preprocess(model, FoldPreprocess(steps))
    photo = load_sample_images().images[0]
    small = np.asarray(Image.fromarray(photo).resize((12, 12), Image.Resampling.BILINEAR))[None]
    wanted = session_bytes(model).run(None, {"x": COLOURS.apply(small)})[0]
    np.testing.assert_allclose(session_bytes(folded).run(None, {"x": photo[None]})[0], wanted, atol=0.02)
    np.testing.assert_allclose(session_bytes(folded).run(None, {"x": small})[0], wanted, rtol=1e-4, atol=1e-4)


def test_a_recipe_with_folding_runs_to_the_end(
    digits_proto: onnx.ModelProto, digits: dict[str, NDArray[Any]]
) -> None:
    raw = raw_digits(digits, BYTES)
    bench = CandidateBuilder(digits_proto, [{"image": raw}])
    built = bench.build(Recipe((CleanGraph(), FoldPreprocess(BYTES), StaticInt8())))
    assert session_bytes(built).run(None, {"image": raw})[0].shape == (64, 10)


def test_raw_floats_are_not_cut_to_whole_numbers(built: Build) -> None:
    steps = Preprocess(dtype="float32", scale=2.0, mean=(0.5,), layout="NCHW")
    folded = fold_preprocess(colour_network(built, "1,1,1,1"), FoldPreprocess(steps))
    raw = np.random.default_rng(0).random((8, 12, 12, 3)).astype(np.float32)
    seen = collect_statistics(folded, tensors_to_observe(Graph(folded)), [{"x": raw}])
    wanted = session_bytes(folded).run(None, {"x": raw})[0]
    given = session_bytes(quantize_static(folded, StaticInt8(), seen)).run(None, {"x": raw})[0]
    assert np.abs(given - wanted).max() < 0.05 * np.abs(wanted).max()
