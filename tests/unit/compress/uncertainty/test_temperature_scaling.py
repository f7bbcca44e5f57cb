"""Softened graphs give the answers of scaled logits, at no node more where that is possible."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from scipy import special

from edgewright.compress.model.embedding_output import expose_embedding
from edgewright.compress.model.graph import Graph, clean_model, optimized
from edgewright.compress.quantize.activation_ranges import collect_statistics
from edgewright.compress.quantize.dynamic_int8 import BlockwiseWeights, DynamicInt8
from edgewright.compress.quantize.sparsity import MagnitudePruning
from edgewright.compress.quantize.static_int8 import StaticInt8, quantize_static, tensors_to_observe
from edgewright.compress.quantize.weight_only import StoreHalfWeights, StoreIntegerWeights
from edgewright.compress.search.recipe import CandidateBuilder, CleanGraph, Recipe
from edgewright.compress.uncertainty.temperature_scaling import scale_logits
from edgewright.contract.errors import CandidateError
from edgewright.stats.calibration import LogitScaling, fit_temperature_scaling, negative_log_likelihood, softmax

Build = Callable[..., onnx.ModelProto]
Run = Callable[..., list[NDArray[Any]]]
MODELS = Path(__file__).parents[5] / "shared" / "models"
RANDOM = np.random.default_rng(3)

TEMPERATURE = LogitScaling(np.array([0.37]), np.zeros(1))
VECTOR = LogitScaling(np.linspace(0.4, 1.6, 4), np.array([0.5, -0.2, 0.0, -0.3]))
SCALES = LogitScaling(np.linspace(0.4, 1.6, 4), np.zeros(4))


def normal(*shape: int) -> NDArray[np.float32]:
    return RANDOM.standard_normal(shape).astype(np.float32)


X = normal(9, 6)
IMAGES = normal(5, 3, 6, 6)

# Text of the graph, whether a vector folds too, its input.
GRAPHS: dict[str, tuple[str, bool, NDArray[np.float32]]] = {
    "gemm": ("g (float[n,6] x) => (float[n,4] y) { y = Gemm(x, w, b) }", True, X),
    "gemm, transposed": ("g (float[n,6] x) => (float[n,4] y) { y = Gemm<transB=1>(x, wt, b) }", True, X),
    "gemm, factors": ("g (float[n,6] x) => (float[n,4] y) { y = Gemm<alpha=0.5,beta=2.0>(x, w, b) }", True, X),
    "gemm without bias": ("g (float[n,6] x) => (float[n,4] y) { y = Gemm(x, w) }", True, X),
    "product and sum": ("g (float[n,6] x) => (float[n,4] y) { m = MatMul(x, w) y = Add(m, b) }", True, X),
    "sum and product": ("g (float[n,6] x) => (float[n,4] y) { m = MatMul(x, w) y = Add(b, m) }", True, X),
    "softmax": ("g (float[n,6] x) => (float[n,4] y) { l = Gemm(x, w, b) y = Softmax(l) }", True, X),
    "log softmax": ("g (float[n,6] x) => (float[n,4] y) { l = Gemm(x, w, b) y = LogSoftmax(l) }", True, X),
    "sigmoid": ("g (float[n,6] x) => (float[n,4] y) { l = Gemm(x, w, b) y = Sigmoid(l) }", True, X),
    "pooled convolution": (
        "g (float[n,3,6,6] x) => (float[n,4] y) { c = Conv(x, k, b) p = GlobalAveragePool(c) f = Flatten(p)"
        " y = Softmax(f) }",
        True,
        IMAGES,
    ),
    "convolution to one pixel": (
        "g (float[n,3,6,6] x) => (float[n,4] y) { p = GlobalAveragePool(x) c = Conv(p, k, b) y = Flatten(c) }",
        True,
        IMAGES,
    ),
    "positions": (
        "g (float[n,3,6,6] x) => (float[n,3,6,4] y) { m = MatMul(x, w) a = Add(m, b) y = Identity(a) }",
        True,
        IMAGES,
    ),
}


def made(built: Build, text: str) -> onnx.ModelProto:
    weight = RANDOM.standard_normal((6, 4)).astype(np.float32)
    arrays = {"w": weight, "wt": weight.T.copy(), "b": normal(4), "k": normal(4, 3, 1, 1)}
    used = {name: value for name, value in arrays.items() if re.search(rf"[(, ]{name}[,)]", text)}
    return built(text, **used)


def of_logits(model: onnx.ModelProto) -> tuple[onnx.ModelProto, str]:
    """The model cut before its ending, and the ending."""
    cut = onnx.ModelProto()
    cut.CopyFrom(model)
    last = cut.graph.node[-1]
    if last.op_type not in ("Softmax", "LogSoftmax", "Sigmoid"):
        return cut, ""
    kind = last.op_type
    name = last.input[0]
    del cut.graph.node[-1]
    cut.graph.output[0].name = name
    return cut, kind


ENDINGS: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "": lambda logits: logits,
    "Softmax": lambda logits: special.softmax(logits, axis=-1),
    "LogSoftmax": lambda logits: special.log_softmax(logits, axis=-1),
    "Sigmoid": special.expit,
}


@pytest.mark.parametrize("softening", [TEMPERATURE, VECTOR, SCALES], ids=["temperature", "vector", "scales"])
@pytest.mark.parametrize("form", GRAPHS)
def test_the_answers_are_those_of_scaled_logits(
    built: Build, answers: Run, form: str, softening: LogitScaling
) -> None:
    text, folds, x = GRAPHS[form]
    model = made(built, text)
    cut, ending = of_logits(model)
    wanted = ENDINGS[ending](softening.apply(answers(cut, x=x)[0]))
    softened = scale_logits(model, softening)
    onnx.checker.check_model(softened)
    np.testing.assert_allclose(answers(softened, x=x)[0], wanted, rtol=1e-4, atol=1e-5)
    if folds:
        assert len(softened.graph.node) == len(model.graph.node)


def test_a_product_without_bias_gets_its_shift_as_a_sum(built: Build, answers: Run) -> None:
    model = made(built, "g (float[n,6] x) => (float[n,4] y) { y = MatMul(x, w) }")
    softened = scale_logits(model, VECTOR)
    np.testing.assert_allclose(
        answers(softened, x=X)[0], VECTOR.apply(answers(model, x=X)[0]), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("softening", [TEMPERATURE, VECTOR], ids=["temperature", "vector"])
def test_what_else_reads_the_layer_or_its_weight_stays_as_it_was(
    built: Build, answers: Run, softening: LogitScaling
) -> None:
    model = made(
        built,
        "g (float[n,6] x) => (float[n,4] y, float[n,4] l, float[n,4] z)"
        " { l = Gemm(x, w, b) y = Softmax(l) r = Relu(x) z = Gemm(r, w, b) }",
    )
    before = answers(model, x=X)
    after = answers(scale_logits(model, softening), x=X)
    np.testing.assert_allclose(after[0], special.softmax(softening.apply(before[1]), axis=1), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(after[1], before[1])
    np.testing.assert_allclose(after[2], before[2], rtol=1e-6)
    third = answers(scale_logits(model, softening, "z"), x=X)
    np.testing.assert_array_equal(third[0], before[0])
    np.testing.assert_allclose(third[2], softening.apply(before[2]), rtol=1e-4, atol=1e-5)


def test_an_integer_weight_of_two_layers_is_scaled_for_neither(built: Build, answers: Run) -> None:
    model = built(
        "g (float[n,6] x) => (float[n,4] y, float[n,4] z)"
        " { w = DequantizeLinear(q, s) y = MatMul(x, w) r = Relu(x) z = MatMul(r, w) }",
        q=RANDOM.integers(-127, 127, (6, 4)).astype(np.int8),
        s=np.float32(0.02),
    )
    before, after = answers(model, x=X), answers(scale_logits(model, TEMPERATURE), x=X)
    np.testing.assert_allclose(after[0], 0.37 * before[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(after[1], before[1], rtol=1e-6)


def test_a_residual_end_gets_a_multiplication(built: Build, answers: Run) -> None:
    model = made(built, "g (float[n,6] x) => (float[n,4] y) { a = Gemm(x, w, b) r = Relu(a) y = Add(a, r) }")
    softened = scale_logits(model, VECTOR)
    np.testing.assert_allclose(
        answers(softened, x=X)[0], VECTOR.apply(answers(model, x=X)[0]), rtol=1e-4, atol=1e-5
    )


def test_classes_on_an_inner_axis_are_met_there(built: Build, answers: Run) -> None:
    model = made(built, "g (float[n,3,6,6] x) => (float[n,4,6,6] y) { c = Conv(x, k, b) y = Softmax<axis=1>(c) }")
    cut, _ = of_logits(model)
    view = (4, 1, 1)
    scaled = answers(cut, x=IMAGES)[0] * VECTOR.scale.reshape(view) + VECTOR.bias.reshape(view)
    given = answers(scale_logits(model, VECTOR), x=IMAGES)[0]
    np.testing.assert_allclose(given, special.softmax(scaled, axis=1), rtol=1e-4, atol=1e-6)


def test_whole_numbers_are_not_softened(built: Build) -> None:
    model = made(built, "g (float[n,6] x) => (int64[n,1] y) { l = Gemm(x, w, b) y = ArgMax<axis=1>(l) }")
    with pytest.raises(CandidateError, match="not floats"):
        scale_logits(model, TEMPERATURE)
    with pytest.raises(CandidateError, match="no output"):
        scale_logits(model, TEMPERATURE, "l")


def test_averaged_probabilities_are_not_softened(built: Build) -> None:
    model = made(
        built,
        "g (float[n,3,6,6] x) => (float[n,4,1,1] y)"
        " { c = Conv(x, k, b) p = Softmax<axis=1>(c) y = GlobalAveragePool(p) }",
    )
    with pytest.raises(CandidateError, match="averaged"):
        scale_logits(model, TEMPERATURE)


def test_the_given_model_is_left_alone(digits_proto: onnx.ModelProto) -> None:
    before = digits_proto.SerializeToString()
    scale_logits(digits_proto, TEMPERATURE)
    assert digits_proto.SerializeToString() == before


FORMS = [
    StaticInt8(),
    StaticInt8(per_channel=False),
    StaticInt8(activations="int8"),
    StaticInt8(bias_correction=True),
]


def quantized(model: onnx.ModelProto, step: StaticInt8, **feed: NDArray[Any]) -> onnx.ModelProto:
    cleaned = clean_model(model)
    seen = collect_statistics(cleaned, tensors_to_observe(Graph(cleaned)), [feed])
    return quantize_static(cleaned, step, seen)


@pytest.mark.parametrize("step", FORMS, ids=str)
def test_a_temperature_keeps_integers_and_kernels(
    digits_proto: onnx.ModelProto, digits: dict[str, NDArray[Any]], answers: Run, step: StaticInt8
) -> None:
    model = quantized(digits_proto, step, image=digits["x"][:64])
    softened = scale_logits(model, TEMPERATURE)
    before, after = (answers(one, image=digits["x"])[0] for one in (model, softened))
    np.testing.assert_allclose(after, 0.37 * before, rtol=2e-5, atol=1e-6)
    assert (after.argmax(1) == before.argmax(1)).all()
    kinds = [sorted(node.op_type for node in optimized(one, "all").graph.node) for one in (model, softened)]
    assert kinds[0] == kinds[1]
    assert abs(len(softened.SerializeToString()) - len(model.SerializeToString())) < 200


@pytest.mark.parametrize("step", FORMS, ids=str)
def test_a_vector_in_integers_is_within_their_rounding(
    digits_proto: onnx.ModelProto, digits: dict[str, NDArray[Any]], answers: Run, step: StaticInt8
) -> None:
    vector = LogitScaling(np.linspace(0.5, 1.5, 10), np.linspace(-1, 1, 10))
    model = quantized(digits_proto, step, image=digits["x"][:64])
    wanted = vector.apply(answers(model, image=digits["x"])[0])
    softened = scale_logits(model, vector)
    np.testing.assert_allclose(answers(softened, image=digits["x"])[0], wanted, atol=2e-2)
    assert len(softened.graph.node) <= len(model.graph.node) + (0 if step.per_channel else 2)


@pytest.mark.parametrize(
    "step",
    [DynamicInt8(), BlockwiseWeights(), StoreIntegerWeights(), StoreHalfWeights(), MagnitudePruning()],
    ids=lambda step: type(step).__name__,
)
@pytest.mark.parametrize("softening", ["temperature", "vector"])
def test_what_the_search_builds_is_softened_and_has_an_embedding(
    digits_proto: onnx.ModelProto, digits: dict[str, NDArray[Any]], answers: Run, step: Any, softening: str
) -> None:
    vector = LogitScaling(np.linspace(0.5, 1.5, 10), np.linspace(-1, 1, 10))
    chosen = TEMPERATURE if softening == "temperature" else vector
    x = digits["x"][:64]
    model = CandidateBuilder(digits_proto, [{"image": x}]).build(Recipe((CleanGraph(), step)))
    before = answers(model, image=x)[0]
    softened = scale_logits(model, chosen)
    after, embedding = answers(expose_embedding(softened), image=x)
    np.testing.assert_allclose(after, chosen.apply(before), atol=1e-4)
    assert embedding.shape == (64, 64)
    if isinstance(step, DynamicInt8 | BlockwiseWeights) and softening == "temperature":
        assert len(softened.graph.node) == len(model.graph.node)


def test_logits_that_leave_as_integers_are_scaled_in_their_scale(built: Build, answers: Run) -> None:
    model = built(
        "g (float[n,6] x) => (float[n,4] y) { l = Gemm(x, w, b) q = QuantizeLinear(l, s, z)"
        " d = DequantizeLinear(q, s, z) y = Softmax(d) }",
        w=normal(6, 4),
        b=normal(4),
        s=np.float32(0.05),
        z=np.uint8(128),
    )
    cut, _ = of_logits(model)
    softened = scale_logits(model, TEMPERATURE)
    wanted = special.softmax(0.37 * answers(cut, x=X)[0], axis=1)
    np.testing.assert_allclose(answers(softened, "disable", x=X)[0], wanted, rtol=1e-5)
    assert len(softened.graph.node) == len(model.graph.node)


def test_a_fitted_temperature_in_the_graph_lowers_the_loss_of_other_samples(
    digits_proto: onnx.ModelProto, digits: dict[str, NDArray[Any]], answers: Run
) -> None:
    noise = np.random.default_rng(0).normal(0, 0.35, digits["x"].shape).astype(np.float32)
    noisy, labels = digits["x"] + noise, digits["y"]
    found = fit_temperature_scaling(answers(digits_proto, image=noisy[:600])[0], labels[:600])
    before, after = (
        answers(model, image=noisy[600:])[0] for model in (digits_proto, scale_logits(digits_proto, found))
    )
    assert (
        negative_log_likelihood(softmax(after), labels[600:])
        < negative_log_likelihood(softmax(before), labels[600:]) - 0.02
    )
    assert (before.argmax(1) == after.argmax(1)).all()


@pytest.mark.shared
@pytest.mark.skipif(not MODELS.is_dir(), reason="../shared/models is absent")
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("ort_mnist_cnn", "float32"),
        ("mlperftiny_ic_resnet8_fp32", "float32"),
        ("mlperftiny_kws_dscnn_fp32", "float32"),
        ("mlperftiny_kws_dscnn_int8", "int8"),
    ],
)
def test_peer_models_keep_their_answers(name: str, kind: str, answers: Run) -> None:
    model = onnx.load(MODELS / f"{name}.onnx")
    given = model.graph.input[0]
    shape = [axis.dim_value or 1 for axis in given.type.tensor_type.shape.dim]
    softened = scale_logits(model, TEMPERATURE)
    random = np.random.default_rng(0)
    for _ in range(10):
        sample = random.integers(-100, 100, shape) if kind == "int8" else random.normal(0, 1, shape)
        before, after = (answers(one, **{given.name: sample.astype(kind)})[0] for one in (model, softened))
        assert before.argmax() == after.argmax()
        if name == "ort_mnist_cnn":
            np.testing.assert_allclose(after, 0.37 * before, rtol=1e-3, atol=1e-3 * np.abs(before).max())
        elif kind == "float32":
            # log p of a softmax at that temperature is 0.37 log p, normalised again.
            wanted = special.softmax(0.37 * np.log(np.maximum(before, 1e-38)), axis=-1)
            np.testing.assert_allclose(after, wanted, atol=2e-3)
        else:
            assert not np.array_equal(before, after)
