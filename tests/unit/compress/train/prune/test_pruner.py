"""Structured pruning: what is left runs, is right, is as wide as kernels like it, and unneeded parts go first."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from edgewright.compress.model.graph import Graph, clean_model, session_bytes
from edgewright.compress.train.export.pytorch import export_torch_module
from edgewright.compress.train.nas.architecture import Architecture
from edgewright.compress.train.nas.graph_builder import build_network
from edgewright.compress.train.prune.attention_heads import find_attention, remove_heads
from edgewright.compress.train.prune.importance import LabelledBatch, PruningCriterion
from edgewright.compress.train.prune.pruner import PrunableWidth, StructuredPruning, prunable_widths, prune_network
from edgewright.compress.train.torch_graph.onnx_module import TrainableGraph
from edgewright.compress.train.torch_graph.prepare import prepare_graph
from edgewright.contract.errors import CandidateError
from edgewright.contract.model.signature import ModelSignature, TensorSpec

torch.set_num_threads(1)

MODELS = Path(__file__).parents[6] / "shared" / "models"
IMAGE = ModelSignature((TensorSpec("x", "float32", ("n", 3, 16, 16)),), (TensorSpec("y", "float32", ("n", 10)),))
SERIES = ModelSignature((TensorSpec("x", "float32", ("n", 40, 6)),), (TensorSpec("y", "float32", ("n", 5)),))
TABLE = ModelSignature((TensorSpec("x", "float32", ("n", 20)),), (TensorSpec("y", "float32", ("n", 4)),))
CODED = ModelSignature((TensorSpec("x", "float32", ("n", 64)),), (TensorSpec("y", "float32", ("n", 64)),))


def noise(model: onnx.ModelProto, count: int = 3) -> dict[str, NDArray[Any]]:
    graph = Graph(model)
    random = np.random.default_rng(1)
    shapes = {
        name: [count if graph.shapes[name][0] is None else 1, *graph.shapes[name][1:]] for name in graph.input_names
    }
    return {
        name: random.standard_normal([size or 7 for size in shape]).astype(np.float32)
        for name, shape in shapes.items()
    }


def answers(model: onnx.ModelProto, feed: dict[str, NDArray[Any]]) -> NDArray[Any]:
    return np.asarray(session_bytes(model).run(None, feed)[0])


def assert_sound(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    """The pruned graph is valid, runs, keeps its interface, and the trainable module answers the same."""
    onnx.checker.check_model(after, full_check=True)
    assert [*Graph(after).input_names, *Graph(after).output_names] == [
        *Graph(before).input_names,
        *Graph(before).output_names,
    ]
    feed = noise(before)
    given = answers(after, feed)
    assert given.shape == answers(before, feed).shape
    network = TrainableGraph(after).eval()
    with torch.no_grad():
        (simulated, *_) = network(*(torch.from_numpy(array) for array in feed.values()))
    np.testing.assert_allclose(simulated.numpy(), given, rtol=1e-4, atol=1e-4 * np.abs(given).max())


def recurrent(built: Callable[..., onnx.ModelProto], kind: str, direction: str = "forward") -> onnx.ModelProto:
    """[n, 20, 6] -> recurrent layer of 24 units -> mean over time -> 5 classes."""
    random = np.random.default_rng(0)
    gates, turns = {"GRU": 3, "LSTM": 4}[kind], 2 if direction == "bidirectional" else 1

    def weight(*shape: int) -> NDArray[np.float32]:
        return (random.standard_normal(shape) * 0.3).astype(np.float32)

    extra = ", linear_before_reset=1" if kind == "GRU" else ""
    text = f"""g (float[n, 20, 6] x) => (float[n, 5] y) {{
        t = Transpose <perm=[1, 0, 2]> (x)
        all, last = {kind} <hidden_size=24, direction="{direction}"{extra}> (t, w, r, b)
        turned = Transpose <perm=[2, 0, 1, 3]> (all)
        flat = Reshape (turned, shape)
        mean = ReduceMean <axes=[1], keepdims=0> (flat)
        y = Gemm (mean, head, bias)
    }}"""
    return built(
        text,
        w=weight(turns, gates * 24, 6),
        r=weight(turns, gates * 24, 24),
        b=weight(turns, 2 * gates * 24),
        shape=np.array([0, 20, 24 * turns], np.int64),
        head=weight(24 * turns, 5),
        bias=weight(5),
    )


def weight(*shape: int) -> NDArray[np.float32]:
    return (np.random.default_rng(sum(shape)).standard_normal(shape) * 0.3).astype(np.float32)


IMAGES = "g (float[n, 3, 8, 8] x) => (float[n, 5] y)"
STEPS = "g (float[n, 30, 6] x) => (float[n, 5] y)"
POOL = "p = GlobalAveragePool (z) f = Flatten (p) y = Gemm (f, w9)"

# Text of a graph, its weights, and the widths before and after half of what can go is gone.
COUPLINGS: dict[str, tuple[str, dict[str, Any], list[int], list[int]]] = {
    "flattened": (
        f"{IMAGES} {{ a = Conv (x, w1) z = Relu (a) f = Flatten (z) y = Gemm (f, w9) }}",
        {"w1": weight(16, 3, 3, 3), "w9": weight(16 * 36, 5)},
        [16],
        [8],
    ),
    "flattened with channels last": (  # Torch-Pruning takes the wrong columns: nothing goes
        f"{IMAGES} {{ a = Conv (x, w1) z = Transpose <perm=[0, 2, 3, 1]> (a) f = Flatten (z) y = Gemm (f, w9) }}",
        {"w1": weight(16, 3, 3, 3), "w9": weight(16 * 36, 5)},
        [],
        [],
    ),
    "added to the input": (
        f"g (float[n, 16, 8, 8] x) => (float[n, 5] y) {{ a = Conv (x, w1) z = Add (a, x) {POOL} }}",
        {"w1": weight(16, 16, 1, 1), "w9": weight(16, 5)},
        [],
        [],
    ),
    "joined": (
        f"{IMAGES} {{ a = Conv (x, w1) b = Conv (x, w2) c = Concat <axis=1> (a, b) z = Relu (c) {POOL} }}",
        {"w1": weight(16, 3, 1, 1), "w2": weight(24, 3, 1, 1), "w9": weight(40, 5)},
        [16, 24],
        [8, 16],
    ),
    "gated by itself": (
        f"""{IMAGES} {{ a = Conv (x, w1) b = GlobalAveragePool (a) c = Conv (b, w2) d = Relu (c) e = Conv (d, w3)
        h = Sigmoid (e) z = Mul (a, h) {POOL} }}""",
        {"w1": weight(32, 3, 3, 3), "w2": weight(16, 32, 1, 1), "w3": weight(32, 16, 1, 1), "w9": weight(32, 5)},
        [32, 16],
        [16, 8],
    ),
    "split": (
        f"{IMAGES} {{ a = Conv (x, w1) b, c = Split <axis=1> (a, s) d = Sigmoid (c) z = Mul (b, d) {POOL} }}",
        {"w1": weight(32, 3, 3, 3), "s": np.array([16, 16], np.int64), "w9": weight(16, 5)},
        [],
        [],
    ),
    "in groups": (
        f"{IMAGES} {{ a = Conv (x, w1) b = Conv <group=4> (a, w2) z = Conv (b, w3) {POOL} }}",
        {"w1": weight(16, 3, 3, 3), "w2": weight(16, 4, 1, 1), "w3": weight(24, 16, 1, 1), "w9": weight(24, 5)},
        [24],
        [16],
    ),
    "normalised": (
        f"""{STEPS} {{ t = Transpose <perm=[0, 2, 1]> (x) a = Conv (t, w1) u = Transpose <perm=[0, 2, 1]> (a)
        l = LayerNormalization <axis=-1> (u, w2, w3) p = ReduceMean <axes=[1], keepdims=0> (l)
        y = MatMul (p, w9) }}""",
        {"w1": weight(16, 6, 3), "w2": weight(16), "w3": weight(16), "w9": weight(16, 5)},
        [16],
        [8],
    ),
    "read by a recurrent layer": (
        f"""{STEPS} {{ t = Transpose <perm=[0, 2, 1]> (x) a = Conv (t, w1) u = Transpose <perm=[2, 0, 1]> (a)
        all, last = GRU <hidden_size=24, linear_before_reset=1> (u, w2, w3) f = Squeeze (last, axes)
        y = Gemm (f, w9) }}""",
        {
            "w1": weight(16, 6, 3),
            "w2": weight(1, 72, 16),
            "w3": weight(1, 72, 24),
            "axes": np.array([0], np.int64),
            "w9": weight(24, 5),
        },
        [24, 16],
        [16, 8],
    ),
    "one recurrent layer after another": (
        f"""{STEPS} {{ u = Transpose <perm=[1, 0, 2]> (x) all = LSTM <hidden_size=16> (u, w1, w2)
        s = Squeeze (all, axes) other, last = LSTM <hidden_size=24> (s, w3, w4) f = Squeeze (last, first)
        y = Gemm (f, w9) }}""",
        {
            "w1": weight(1, 64, 6),
            "w2": weight(1, 64, 16),
            "axes": np.array([1], np.int64),
            "w3": weight(1, 96, 16),
            "w4": weight(1, 96, 24),
            "first": np.array([0], np.int64),
            "w9": weight(24, 5),
        },
        [16, 24],
        [8, 16],
    ),
}


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_couplings_are_followed_or_left_alone(built: Callable[..., onnx.ModelProto], coupling: str) -> None:
    text, weights, before, after = COUPLINGS[coupling]
    model = built(text, **weights)
    assert [width.count for width in prunable_widths(model).values()] == before
    narrow = prune_network(model, StructuredPruning(ratio=0.5))
    assert_sound(model, narrow)
    assert [width.count for width in prunable_widths(narrow).values()] == after


FAMILIES: dict[str, tuple[Architecture, ModelSignature]] = {
    "residual": (Architecture("residual", width=16, stages=2, depth=1), IMAGE),
    "inverted": (Architecture("inverted", width=16, stages=2, depth=1, expansion=2), IMAGE),
    "temporal": (Architecture("temporal", width=16, stages=2, depth=1), SERIES),
    "transformer": (Architecture("transformer", width=32, stages=1, depth=1, resolution=4, expansion=2), SERIES),
    "mlp": (Architecture("mlp", width=32, stages=1, depth=2), TABLE),
    "autoencoder": (Architecture("bottleneck", width=32, stages=1, depth=2), CODED),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_becomes_narrower_in_whole_simd_widths(family: str) -> None:
    model = build_network(*FAMILIES[family], seed=1)
    narrow = prune_network(model, StructuredPruning(ratio=0.5, head_ratio=0.5))
    assert_sound(model, narrow)
    before, after = prunable_widths(model), prunable_widths(narrow)
    widths = {name: width for name, width in before.items() if width.kind == "channels"}
    assert widths
    for name, width in widths.items():
        assert after[name].count == StructuredPruning().remaining(width, 0.5)
        assert after[name].count % 8 == 0 or after[name].count == width.count
    heads = [name for name, width in before.items() if width.kind == "heads"]
    assert bool(heads) == (family == "transformer")
    assert not [name for name in heads if name in after]  # of two heads one is left, which is none to choose from


def test_the_digits_network_loses_half_of_every_layer(digits_proto: onnx.ModelProto) -> None:
    narrow = prune_network(digits_proto, StructuredPruning(ratio=0.5))
    assert_sound(digits_proto, narrow)
    assert [width.count for width in prunable_widths(digits_proto).values()] == [32, 32, 64, 64, 64]
    assert [width.count for width in prunable_widths(narrow).values()] == [16, 16, 32, 32, 32]


@pytest.mark.shared
@pytest.mark.parametrize(
    "name",
    ["mlperftiny_ic_resnet8_fp32.onnx", "mlperftiny_kws_dscnn_fp32.onnx", "mlperftiny_ad_autoencoder_fp32.onnx"],
)
def test_networks_of_others_become_narrower(name: str) -> None:
    if not (MODELS / name).exists():
        pytest.skip(f"{name} is not beside the checkout")
    model = onnx.load(MODELS / name)
    narrow = prune_network(model, StructuredPruning(ratio=0.5))
    assert_sound(model, narrow)
    assert all(width.count % 8 == 0 for width in prunable_widths(narrow).values())
    assert clean_model(narrow).ByteSize() < 0.6 * clean_model(model).ByteSize()


@pytest.mark.parametrize(
    ("kind", "direction"), [("GRU", "forward"), ("LSTM", "forward"), ("GRU", "bidirectional"), ("LSTM", "reverse")]
)
def test_units_leave_all_gates_of_a_recurrent_layer(
    built: Callable[..., onnx.ModelProto], kind: str, direction: str
) -> None:
    model = recurrent(built, kind, direction)
    narrow = prune_network(model, StructuredPruning(ratio=0.6))
    assert_sound(model, narrow)
    (width,) = prunable_widths(narrow).values()
    assert width == PrunableWidth("units", 8, width.members)


@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
def test_units_that_nobody_hears_leave_no_trace(built: Callable[..., onnx.ModelProto], kind: str) -> None:
    model = recurrent(built, kind)
    graph = Graph(model)
    dead = [1, 4, 5, 9, 13, 17, 22, 23]
    gates = graph.constants["w"].shape[1] // 24
    rows = [gate * 24 + unit for gate in range(gates) for unit in dead]
    for name in ("w", "r", "b"):
        graph.constants[name] = graph.constants[name].copy()
        graph.constants[name][:, rows] = 0
    graph.constants["b"][:, [gates * 24 + row for row in rows]] = 0
    model = graph.to_model()
    narrow = prune_network(model, StructuredPruning(ratio=1 / 3))
    feed = noise(model)
    np.testing.assert_allclose(answers(narrow, feed), answers(model, feed), rtol=1e-5, atol=1e-6)


class Attentive(torch.nn.Module):
    """One layer of torch's own attention over [n, 12, 6]."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Linear(6, 32)
        self.attention = torch.nn.MultiheadAttention(32, 4, batch_first=True)
        self.norm = torch.nn.LayerNorm(32)
        self.head = torch.nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        embedded = self.embed(x)
        mixed, _ = self.attention(embedded, embedded, embedded, need_weights=False)
        answer: torch.Tensor = self.head(self.norm(embedded + mixed).mean(dim=1))
        return answer


@pytest.fixture(scope="module")
def attentive() -> onnx.ModelProto:
    torch.manual_seed(0)
    return export_torch_module(
        Attentive(), [np.random.default_rng(0).standard_normal((2, 12, 6)).astype(np.float32)]
    )


def test_heads_leave_the_attention_of_torch_as_a_whole(attentive: onnx.ModelProto) -> None:
    graph = prepare_graph(attentive)
    (attention,) = find_attention(graph)
    assert attention.heads == 4
    (reader,) = [n for n in graph.nodes if n.op_type == "Gemm" and graph.constants[n.input[1]].shape == (32, 32)]
    deaf = graph.constants[reader.input[1]].copy()
    deaf[:, [*range(8), *range(16, 24)]] = 0  # out of heads 0 and 2
    graph.constants[reader.input[1]] = deaf
    wanted = graph.to_model()
    remove_heads(graph, attention, [0, 2])
    narrow = graph.to_model()
    (left,) = find_attention(Graph(narrow))
    assert left.heads == 2
    feed = noise(attentive)
    np.testing.assert_allclose(answers(narrow, feed), answers(wanted, feed), rtol=1e-4, atol=1e-5)


def separate(built: Callable[..., onnx.ModelProto]) -> onnx.ModelProto:
    """[n, 12, 16] -> attention of 4 heads of 8, a layer for each of q, k, v -> sum with the input -> 5 classes."""
    random = np.random.default_rng(4)
    matrices = {name: (random.standard_normal((16, 32)) * 0.4).astype(np.float32) for name in ("wq", "wk", "wv")}
    text = """g (float[n, 12, 16] x) => (float[n, 5] y) {
        q0 = MatMul (x, wq) q1 = Add (q0, bq) q2 = Reshape (q1, parts) q = Transpose <perm=[0, 2, 1, 3]> (q2)
        k0 = MatMul (x, wk) k2 = Reshape (k0, parts) k = Transpose <perm=[0, 2, 3, 1]> (k2)
        v0 = MatMul (x, wv) v2 = Reshape (v0, parts) v = Transpose <perm=[0, 2, 1, 3]> (v2)
        scores = MatMul (q, k) scaled = Mul (scores, scale) shares = Softmax <axis=-1> (scaled)
        mixed = MatMul (shares, v) turned = Transpose <perm=[0, 2, 1, 3]> (mixed) flat = Reshape (turned, whole)
        out = MatMul (flat, wo) sum = Add (out, x) mean = ReduceMean <axes=[1], keepdims=0> (sum)
        y = MatMul (mean, head)
    }"""
    return built(
        text,
        **matrices,
        bq=random.standard_normal(32).astype(np.float32),
        parts=np.array([0, 0, 4, 8], np.int64),
        whole=np.array([0, 0, 32], np.int64),
        scale=np.float32(8**-0.5),
        wo=random.standard_normal((32, 16)).astype(np.float32),
        head=random.standard_normal((16, 5)).astype(np.float32),
    )


def test_heads_leave_all_three_projections(built: Callable[..., onnx.ModelProto]) -> None:
    model = separate(built)
    ((name, width),) = prunable_widths(model).items()
    assert (width.kind, width.count, len(width.members)) == ("heads", 4, 3)
    narrow = prune_network(model, StructuredPruning(head_ratio=0.5))
    assert_sound(model, narrow)
    assert prunable_widths(narrow)[name].count == 2
    shapes = sorted(value.shape for value in Graph(narrow).constants.values() if value.ndim == 2)
    assert shapes == [(16, 5), (16, 16), (16, 16), (16, 16), (16, 16)]
    assert prune_network(model, StructuredPruning(ratio=0.0, ratios={name: 0.5})) == narrow


@pytest.mark.parametrize("criterion", ["magnitude", "magnitude l1", "batch norm", "lamp"])
def test_channels_that_are_zero_leave_no_trace(criterion: PruningCriterion) -> None:
    model = build_network(Architecture("residual", width=16, stages=2, depth=1), IMAGE, seed=2)
    graph = Graph(model)
    random = np.random.default_rng(0)
    for name, width in prunable_widths(model).items():
        dead = random.permutation(width.count)[: width.count // 2]
        for node in graph.nodes:
            if node.name in width.members:
                (norm,) = [
                    n for n in graph.nodes if n.op_type == "BatchNormalization" and n.input[0] == node.output[0]
                ]
                for tensor in (node.input[1], norm.input[1], norm.input[2]):
                    graph.constants[tensor] = graph.constants[tensor].copy()
                    graph.constants[tensor][dead] = 0
        assert name in {node.name for node in graph.nodes}
    dead_half = graph.to_model()
    narrow = prune_network(dead_half, StructuredPruning(ratio=0.5, criterion=criterion))
    assert all(width.count in (8, 16) for width in prunable_widths(narrow).values())
    feed = noise(model)
    np.testing.assert_allclose(answers(narrow, feed), answers(dead_half, feed), rtol=1e-4, atol=1e-5)


def digit_batches(digits: dict[str, NDArray[Any]], start: int, count: int) -> list[LabelledBatch]:
    return [((digits["x"][i : i + 100],), digits["y"][i : i + 100]) for i in range(start, start + count, 100)]


def accuracy(model: onnx.ModelProto, digits: dict[str, NDArray[Any]]) -> float:
    rows = slice(300, 1200)
    (given,) = session_bytes(model).run(None, {"image": digits["x"][rows]})
    return float((given.argmax(axis=1) == digits["y"][rows]).mean())


def test_gradients_choose_better_than_chance(
    digits_proto: onnx.ModelProto, digits: dict[str, NDArray[Any]]
) -> None:
    batches = digit_batches(digits, 0, 300)
    step = StructuredPruning(ratio=0.25)
    taylor = accuracy(
        prune_network(digits_proto, msgspec.structs.replace(step, criterion="taylor"), batches), digits
    )
    by_chance = [
        accuracy(prune_network(digits_proto, msgspec.structs.replace(step, criterion="random", seed=seed)), digits)
        for seed in range(4)
    ]
    assert taylor > max(by_chance)


@pytest.mark.parametrize("criterion", ["taylor", "activation"])
def test_criteria_that_look_at_data_ask_for_it(digits_proto: onnx.ModelProto, criterion: PruningCriterion) -> None:
    with pytest.raises(CandidateError, match="needs data"):
        prune_network(digits_proto, StructuredPruning(criterion=criterion))


def test_activations_choose(digits_proto: onnx.ModelProto, digits: dict[str, NDArray[Any]]) -> None:
    batches = digit_batches(digits, 0, 300)
    narrow = prune_network(digits_proto, StructuredPruning(ratio=0.25, criterion="activation"), batches)
    assert_sound(digits_proto, narrow)
    assert accuracy(narrow, digits) > accuracy(
        prune_network(digits_proto, StructuredPruning(ratio=0.25, criterion="random")), digits
    )


def test_over_the_whole_model_layers_lose_what_matters_least(digits_proto: onnx.ModelProto) -> None:
    narrow = prune_network(digits_proto, StructuredPruning(ratio=0.4, scope="model"))
    assert_sound(digits_proto, narrow)
    before, after = (
        sum(width.count for width in prunable_widths(model).values()) for model in (digits_proto, narrow)
    )
    assert 0.25 < 1 - after / before < 0.55


def test_a_ratio_of_its_own_touches_one_layer(digits_proto: onnx.ModelProto) -> None:
    before = prunable_widths(digits_proto)
    name = list(before)[2]
    after = prunable_widths(prune_network(digits_proto, StructuredPruning(ratio=0.0, ratios={name: 0.5})))
    assert {key for key in before if after[key].count != before[key].count} == {name}


def test_the_same_seed_prunes_the_same(digits_proto: onnx.ModelProto) -> None:
    step = StructuredPruning(criterion="random", seed=3)
    assert prune_network(digits_proto, step) == prune_network(digits_proto, step)
    assert prune_network(digits_proto, step) != prune_network(digits_proto, msgspec.structs.replace(step, seed=4))


def test_no_ratio_prunes_nothing(digits_proto: onnx.ModelProto) -> None:
    assert prune_network(digits_proto, StructuredPruning(ratio=0.0)) == digits_proto


@pytest.mark.parametrize(
    "step", [{"ratio": 1.0}, {"ratio": -0.1}, {"head_ratio": 1.5}, {"ratios": {"a": 2.0}}, {"round_to": 0}]
)
def test_impossible_requests_are_refused(step: dict[str, Any]) -> None:
    with pytest.raises(CandidateError):
        StructuredPruning(**step)


def test_a_ratio_for_a_layer_that_does_not_exist_is_refused(digits_proto: onnx.ModelProto) -> None:
    with pytest.raises(CandidateError, match="'nowhere'"):
        prune_network(digits_proto, StructuredPruning(ratios={"nowhere": 0.5}))


def test_an_operator_that_cannot_be_trained_is_named(built: Callable[..., onnx.ModelProto]) -> None:
    model = built("g (float[n, 4] x) => (int64[a, 2] y) { z = NonZero (x) y = Transpose (z) }")
    with pytest.raises(CandidateError, match="NonZero"):
        prune_network(model, StructuredPruning())
