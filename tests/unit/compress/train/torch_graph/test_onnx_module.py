"""A graph as a module: the runtime's answers, torch's gradients, any batch, and the same graph back."""

import copy
import warnings
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgewright.compress.model.graph import Graph, session_bytes
from edgewright.compress.model.layers import layer_weights
from edgewright.compress.train.export.pytorch import export_torch_module
from edgewright.compress.train.nas.architecture import Architecture
from edgewright.compress.train.nas.graph_builder import build_network
from edgewright.compress.train.prune.pruner import StructuredPruning, prunable_widths, prune_network
from edgewright.compress.train.torch_graph.onnx_module import TrainableGraph
from edgewright.contract.errors import CandidateError
from edgewright.contract.model.signature import ModelSignature, TensorSpec

MODELS = Path(__file__).parents[6] / "shared" / "models"
PEERS = [
    "dtln_model_1",
    "fastestdet",
    "mlperftiny_ad_autoencoder_fp32",
    "mlperftiny_ic_resnet8_fp32",
    "mlperftiny_kws_dscnn_fp32",
    "ort_mnist_cnn",
    "ultraface_slim_320_simplified",
    "yunet_n_320",
]
Build = Callable[..., onnx.ModelProto]


def exported(module: nn.Module, value: Tensor) -> onnx.ModelProto:
    """Return the module as ONNX with a free batch, batch normalisation left standing."""
    stream = BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        torch.onnx.export(
            module.eval(),
            (value,),
            stream,  # type: ignore[arg-type] # a stream works and is not in the annotation
            dynamo=False,
            input_names=["x"],
            output_names=["y"],
            dynamic_axes={"x": {0: "batch"}, "y": {0: "batch"}},
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=not isinstance(module, Line),  # it would fold the normalisation
        )
    return onnx.load_from_string(stream.getvalue())


def runtime(model: onnx.ModelProto, *inputs: Tensor) -> list[NDArray[Any]]:
    session = session_bytes(model, level="disable")
    names = [value.name for value in session.get_inputs()]
    feed = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
    return [np.asarray(value) for value in session.run(None, feed)]


def assert_answers(network: TrainableGraph, model: onnx.ModelProto, *inputs: Tensor) -> None:
    """The module answers as the runtime does to a model, and so does the graph that it gives back."""
    network.eval()
    with torch.no_grad():
        given = [value.numpy() for value in network(*inputs)]
    written = runtime(network.to_onnx(), *inputs)
    for want, have, back in zip(runtime(model, *inputs), given, written, strict=True):
        limit = 1e-4 * max(float(np.abs(want).max()), 1e-2)
        np.testing.assert_allclose(have, want, rtol=0, atol=limit)
        np.testing.assert_allclose(back, want, rtol=0, atol=limit)


def random(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.shared
@pytest.mark.parametrize("name", PEERS)
def test_networks_of_others_answer_as_the_runtime_does(name: str) -> None:
    path = MODELS / f"{name}.onnx"
    if not path.exists():
        pytest.skip("the models of ../shared/models are not beside the checkout")
    model = onnx.load(path)
    network = TrainableGraph(model)
    given = {value.name: value for value in model.graph.input}
    shapes = [[d.dim_value or 1 for d in given[n].type.tensor_type.shape.dim] for n in network.input_names]
    assert_answers(network, model, *[random(*shape) for shape in shapes])
    more = [random(3, *shape[1:]) for shape in shapes]  # also where the graph says one
    with torch.no_grad():
        together = network(*more)
        alone = [network(*[value[i : i + 1] for value in more]) for i in range(3)]
    for place, many in enumerate(together):
        single = torch.cat([answer[place] for answer in alone])
        torch.testing.assert_close(many, single, rtol=1e-3, atol=1e-3 * float(single.abs().max()))


def test_the_digits_network_keeps_its_answers_and_its_layers_names(
    digits_proto: onnx.ModelProto, digits_batch: NDArray[np.float32]
) -> None:
    network = TrainableGraph(digits_proto)
    assert_answers(network, digits_proto, torch.from_numpy(digits_batch))
    names = {weight.layer for weight in layer_weights(Graph(digits_proto))}
    assert names <= set(network.weights())
    assert sum(isinstance(module, nn.Conv2d) for module in network.modules()) == 8


def test_a_copy_trains_alone(digits_proto: onnx.ModelProto, digits_batch: NDArray[np.float32]) -> None:
    network = TrainableGraph(digits_proto).eval()
    twin = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(0.5)
    assert_answers(network, digits_proto, torch.from_numpy(digits_batch))
    batch = torch.from_numpy(digits_batch)
    assert not torch.allclose(twin(batch)[0], network(batch)[0])


class Residual(nn.Module):
    """Convolutions of all kinds and a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.wide = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8 * 4 * 4, 5)

    def forward(self, image: Tensor) -> Tensor:
        value = torch.relu(self.stem(image))
        value = value + nn.functional.hardswish(self.wide(nn.functional.relu6(self.deep(value))))
        return self.head(nn.functional.avg_pool2d(value, 2).flatten(1))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """One block of a transformer over a short sequence, and a token's embedding before it."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 16)
        self.place = nn.Parameter(torch.randn(6, 16) * 0.1)
        self.first = nn.LayerNorm(16)
        self.mixed = nn.Linear(16, 48)
        self.back = nn.Linear(16, 16)
        self.second = nn.LayerNorm(16)
        self.up = nn.Linear(16, 32)
        self.down = nn.Linear(32, 16)

    def forward(self, tokens: Tensor) -> Tensor:
        value = self.table(tokens) + self.place
        query, key, content = self.mixed(self.first(value)).reshape(-1, 6, 3, 4, 4).permute(2, 0, 3, 1, 4)
        scores = (query @ key.transpose(-1, -2) / 2).softmax(-1) @ content
        value = value + self.back(scores.transpose(1, 2).reshape(-1, 6, 16))
        value = value + self.down(nn.functional.gelu(self.up(self.second(value))))
        pooled: Tensor = value.mean(1)
        return pooled


class Recurrence(nn.Module):
    """Two kinds of recurrent layers and a dense one."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(5, 7, batch_first=True, bidirectional=True)
        self.lstm = nn.LSTM(14, 6, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, sound: Tensor) -> Tensor:
        value, _ = self.gru(sound)
        value, _ = self.lstm(value)
        return self.head(value[:, -1])  # type: ignore[no-any-return]


class Line(nn.Module):
    """Convolutions over time, a pool, and clamps."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(2, 6, 5, padding=2, dilation=1)
        self.norm = nn.BatchNorm1d(6)
        self.slope = nn.PReLU(6)
        self.second = nn.Conv1d(6, 6, 3, padding=2, dilation=2, groups=2)
        self.up = nn.ConvTranspose1d(6, 4, 4, stride=2, padding=1)

    def forward(self, signal: Tensor) -> Tensor:
        value = self.slope(self.norm(self.first(signal)))
        value = nn.functional.max_pool1d(torch.tanh(self.second(value)), 2)
        return torch.sigmoid(self.up(value)).amax(-1)


CASES: list[tuple[Callable[[], nn.Module], Tensor]] = [
    (Residual, random(4, 3, 16, 16)),
    (Line, random(4, 2, 24)),
    (Recurrence, random(4, 9, 5)),
    (Attention, (random(4, 6) * 20).to(torch.int64)),
]


@pytest.mark.parametrize(("made", "value"), CASES, ids=[case[0].__name__ for case in CASES])
def test_gradients_are_those_of_the_module_that_was_exported(made: Callable[[], nn.Module], value: Tensor) -> None:
    torch.manual_seed(0)
    native = made()
    with torch.no_grad():
        for parameter in native.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)  # no two are equal
    model = exported(native, value)
    network = TrainableGraph(model).eval()
    assert_answers(network, model, value)
    target = random(*native(value).shape)
    twins = [(parameter, _twin(parameter, network)) for parameter in native.parameters()]
    nn.functional.mse_loss(native(value), target).backward()
    nn.functional.mse_loss(network(value)[0], target).backward()
    wanted = [parameter.grad for parameter, _ in twins if parameter.grad is not None]
    assert len(wanted) == len(twins)
    limit = 1e-5 * max(float(gradient.abs().max()) for gradient in wanted)
    for want, (parameter, twin) in zip(wanted, twins, strict=True):
        assert twin.grad is not None
        have = twin.grad if twin.shape == parameter.shape and torch.equal(twin, parameter) else twin.grad.mT
        torch.testing.assert_close(have.reshape(want.shape), want, rtol=0, atol=limit)


def _twin(parameter: nn.Parameter, network: TrainableGraph) -> nn.Parameter:
    """Return the network's parameter with these values, as they are or transposed."""
    for other in network.parameters():
        for view in (other, other.mT) if other.ndim == 2 else (other,):
            if view.numel() == parameter.numel() and torch.equal(view.reshape(parameter.shape), parameter):
                return other
    raise AssertionError(f"no parameter has the values of one of shape {list(parameter.shape)}")


class Encoder(nn.Module):
    """Torch's own transformer layer, or its attention alone with the batch in the middle."""

    def __init__(self, *, whole: bool) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 32)
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True) if whole else None
        self.attention = nn.MultiheadAttention(32, 4) if not whole else None
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        value: Tensor = self.embed(x)
        if self.layer is not None:
            value = self.layer(value)
        elif self.attention is not None:
            turned = value.transpose(0, 1)
            value = value + self.attention(turned, turned, turned, need_weights=False)[0].transpose(0, 1)
        answer: Tensor = self.head(value.mean(1))
        return answer


@pytest.fixture(scope="module", params=[True, False], ids=["TransformerEncoderLayer", "MultiheadAttention"])
def encoder(request: pytest.FixtureRequest) -> onnx.ModelProto:
    torch.manual_seed(0)
    return export_torch_module(Encoder(whole=request.param), [random(2, 12, 6).numpy()])


def with_batch_of_one(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph as exporters write it that know no free axes: all targets of reshapes are numbers."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for value in (*fixed.graph.input, *fixed.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    del fixed.graph.value_info[:]
    graph = Graph(onnx.shape_inference.infer_shapes(fixed, data_prop=True))
    for node in graph.nodes:
        if node.op_type == "Reshape":
            node.input[1] = graph.add_constant("target", np.array(graph.shapes[node.output[0]], np.int64))
    return graph.to_model()


def test_attention_of_torch_trains_and_loses_heads(encoder: onnx.ModelProto) -> None:
    network, value = TrainableGraph(encoder), random(6, 12, 6)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    losses = []
    for _ in range(8):
        loss = nn.functional.cross_entropy(network(value)[0], torch.arange(6) % 5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    trained = network.to_onnx()
    assert_answers(TrainableGraph(trained), trained, value)
    narrow = prune_network(trained, StructuredPruning(ratio=0.0, head_ratio=0.5))
    assert [width.count for width in prunable_widths(narrow).values() if width.kind == "heads"] == [2]
    assert_answers(TrainableGraph(narrow), narrow, value)


def test_attention_for_a_batch_of_one_takes_any(encoder: onnx.ModelProto) -> None:
    fixed = with_batch_of_one(encoder)
    assert_answers(TrainableGraph(fixed), fixed, random(1, 12, 6))
    value = random(7, 12, 6)
    with torch.no_grad():
        given = TrainableGraph(fixed).eval()(value)[0].numpy()
    np.testing.assert_allclose(given, runtime(encoder, value)[0], rtol=1e-4, atol=1e-5)


# What is read of a recurrent layer, and how the answer is made of it.
HEARD = {
    "all": ("all", "m = Transpose <perm=[2, 0, 1, 3]> (all)"),
    "last": ('"", last', "m = Transpose <perm=[1, 0, 2]> (last)"),
    "both": (
        "all, last",
        "s = ReduceMean <axes=[0], keepdims=0> (all) a = Add (s, last) m = Transpose <perm=[1, 0, 2]> (a)",
    ),
}


def recurrent(built: Build, kind: str, heard: str, attributes: str = "", states: str = "") -> onnx.ModelProto:
    """[n, 9, 5] -> recurrent layer of 7 units -> 3 values; of its outputs only some have a name."""
    generator = np.random.default_rng(2)
    gates, (outputs, path) = {"GRU": 3, "LSTM": 4}[kind], HEARD[heard]

    def normal(*shape: int) -> NDArray[np.float32]:
        return (generator.standard_normal(shape) * 0.4).astype(np.float32)

    text = f"""g (float[n, 9, 5] x) => (float[n, 3] y) {{
        t = Transpose <perm=[1, 0, 2]> (x) all, last = {kind} <hidden_size=7{attributes}> (t, w, r, b{states})
        {path} f = Flatten (m) y = MatMul (f, v) }}"""
    rows = 7 * (9 if heard == "all" else 1)
    model = built(
        text, w=normal(1, gates * 7, 5), r=normal(1, gates * 7, 7), b=normal(1, gates * 14), v=normal(rows, 3)
    )
    node = next(node for node in model.graph.node if node.op_type == kind)
    node.output[:] = [name.strip().strip('"') for name in outputs.split(",")]
    return model


@pytest.mark.parametrize("heard", HEARD)
@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
def test_outputs_of_a_recurrent_layer_may_be_left_out(built: Build, kind: str, heard: str) -> None:
    model = recurrent(built, kind, heard, ", linear_before_reset=1" if kind == "GRU" else "")
    network = TrainableGraph(model)
    network(random(4, 9, 5))[0].square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())
    assert_answers(network, model, random(4, 9, 5))
    (width,) = prunable_widths(model).values()
    assert width.count == 7
    narrow = prune_network(model, StructuredPruning(ratio=0.5, round_to=2))
    assert narrow.ByteSize() < model.ByteSize()
    assert_answers(TrainableGraph(narrow), narrow, random(4, 9, 5))


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_a_reset_before_the_product_trains_too(built: Build, direction: str) -> None:
    generator = np.random.default_rng(3)
    turns = 2 if direction == "bidirectional" else 1
    shapes = {"w": (turns, 21, 5), "r": (turns, 21, 7), "b": (turns, 42), "h": (turns, 1, 7), "v": (63 * turns, 3)}
    model = built(
        "g (float[1, 9, 5] x) => (float[1, 3] y) { t = Transpose <perm=[1, 0, 2]> (x)"
        f' all = GRU <hidden_size=7, direction="{direction}"> (t, w, r, b, "", h)'
        " m = Transpose <perm=[2, 0, 1, 3]> (all) f = Flatten (m) y = MatMul (f, v) }",
        **{name: (generator.standard_normal(shape) * 0.4).astype(np.float32) for name, shape in shapes.items()},
    )
    for node in model.graph.node:
        node.input[:] = [name.strip('"') for name in node.input]
    network = TrainableGraph(model)
    network(random(4, 9, 5))[0].square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())
    torch.optim.SGD(network.parameters(), 0.01).step()
    assert_answers(network, network.to_onnx(), random(1, 9, 5))
    assert_answers(TrainableGraph(model), model, random(1, 9, 5))


@pytest.mark.parametrize(
    ("inputs", "given", "reason"),
    [
        ("int32[n] lengths", "lengths", "lengths of their own"),
        ("float[1, n, 7] state", ", state", "state is .* second axis"),
    ],
)
def test_recurrent_layers_that_cannot_be_trained_say_why(
    built: Build, inputs: str, given: str, reason: str
) -> None:
    lengths, _, state = given.partition(", ")
    model = built(
        f"g (float[n, 9, 5] x, {inputs}) => (float[n, 7] y) {{ t = Transpose <perm=[1, 0, 2]> (x)"
        " all, last = GRU <hidden_size=7, linear_before_reset=1> (t, w, r) y = Squeeze (last, axes) }",
        w=np.ones((1, 21, 5), np.float32),
        r=np.ones((1, 21, 7), np.float32),
        axes=np.array([0]),
    )
    next(node for node in model.graph.node if node.op_type == "GRU").input.extend(["", lengths, state])
    with pytest.raises(CandidateError, match=reason):
        TrainableGraph(model)


def test_the_recurrent_family_trains_and_is_pruned() -> None:
    series = ModelSignature((TensorSpec("x", "float32", ("n", 16, 6)),), (TensorSpec("y", "float32", ("n", 5)),))
    model = build_network(Architecture("gru", width=16, depth=2, resolution=2), series, seed=1)
    network, value = TrainableGraph(model), random(8, 16, 6)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    losses = []
    for _ in range(5):
        loss = nn.functional.cross_entropy(network(value)[0], torch.arange(8) % 5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    narrow = prune_network(network.to_onnx(), StructuredPruning(ratio=0.5))
    assert {name: width.count for name, width in prunable_widths(narrow).items()} == {
        "gru1": 8,
        "gru2": 8,
        "stem": 8,
    }
    assert_answers(TrainableGraph(narrow), narrow, value)


def test_a_shared_weight_stays_one_parameter(built: Build) -> None:
    weight = np.random.default_rng(0).standard_normal((6, 6)).astype(np.float32)
    model = built(
        "g (float[n,6] x) => (float[n,6] y) { h = MatMul (x, w) r = Relu (h) y = MatMul (r, w) }", w=weight
    )
    network = TrainableGraph(model)
    assert len(list(network.parameters())) == 1
    with torch.no_grad():
        next(network.parameters()).mul_(2)
    np.testing.assert_allclose(Graph(network.to_onnx()).constants["w"], weight * 2)


def test_equal_vectors_of_different_layers_are_separate_parameters(built: Build) -> None:
    generator = np.random.default_rng(0)
    model = built(
        "g (float[n,4,3,3] x) => (float[n,4,3,3] y) {"
        " a = Conv (x, v, zeros) h = BatchNormalization (a, ones, zeros, zeros, ones) y = Conv (h, w, zeros) }",
        v=generator.standard_normal((4, 4, 1, 1)).astype(np.float32),
        w=generator.standard_normal((4, 4, 1, 1)).astype(np.float32),
        zeros=np.zeros(4, np.float32),
        ones=np.ones(4, np.float32),
    )
    network = TrainableGraph(model)
    assert len(list(network.parameters())) == 6
    network.train()
    network(random(8, 4, 3, 3))[0].square().sum().backward()
    torch.optim.SGD(network.parameters(), 0.01).step()
    assert_answers(network, network.to_onnx(), random(3, 4, 3, 3))


def test_inner_tensors_can_be_asked_for(digits_proto: onnx.ModelProto, digits_batch: NDArray[np.float32]) -> None:
    network = TrainableGraph(digits_proto)
    name = next(node.output[0] for node in digits_proto.graph.node if node.op_type == "Relu")
    outputs, inner = network.run_with_tensors([torch.from_numpy(digits_batch)], [name])
    assert outputs[0].shape == (64, 10)
    assert inner[name].shape[0] == 64
    with pytest.raises(CandidateError, match="no tensor 'nothing'"):
        network.run_with_tensors([torch.from_numpy(digits_batch)], ["nothing"])


def test_an_operator_that_cannot_be_trained_is_named(built: Build) -> None:
    model = built("g (float[n,6] x) => (float[n,6] y) { y = Hardmax (x) }")
    with pytest.raises(CandidateError, match="Hardmax"):
        TrainableGraph(model)


def test_samples_that_influence_each_other_are_refused(built: Build) -> None:
    model = built("g (float[n,6] x) => (float[n,6] y) { y = Softmax <axis=0> (x) }")
    with pytest.raises(CandidateError, match="in batches"):
        TrainableGraph(model)


def test_what_pruning_removed_is_gone_from_the_graph(built: Build) -> None:
    generator = np.random.default_rng(0)
    model = built(
        "g (float[1,3,4,4] x) => (float[1,5] y) {"
        " h = Conv (x, w, b) r = Relu (h) f = Reshape (r, shape) y = Gemm <transB=1> (f, v, c) }",
        w=generator.standard_normal((8, 3, 1, 1)).astype(np.float32),
        b=generator.standard_normal(8).astype(np.float32),
        shape=np.array([1, 128]),
        v=generator.standard_normal((5, 128)).astype(np.float32),
        c=np.zeros(5, np.float32),
    )
    network = TrainableGraph(model).eval()
    conv = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    dense = next(module for module in network.modules() if isinstance(module, nn.Linear))
    conv.weight = nn.Parameter(conv.weight[:5].detach())
    assert conv.bias is not None
    conv.bias = nn.Parameter(conv.bias[:5].detach())
    dense.weight = nn.Parameter(dense.weight[:, : 5 * 16].detach())
    value = random(1, 3, 4, 4)
    pruned = network.to_onnx()
    np.testing.assert_allclose(runtime(pruned, value)[0], network(value)[0].detach().numpy(), rtol=1e-4, atol=1e-5)
    again = TrainableGraph(pruned)
    assert sum(p.numel() for p in again.parameters()) == sum(p.numel() for p in network.parameters())
    assert again(random(7, 3, 4, 4))[0].shape == (7, 5)
