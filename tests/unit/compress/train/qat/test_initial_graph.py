"""Training in integers: what is simulated is what the runtime does, and it recovers what rounding lost."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from edgewright.compress.model.fusion_lint import lint_model
from edgewright.compress.model.graph import Graph, clean_model, session_bytes
from edgewright.compress.model.strip_metadata import strip_model
from edgewright.compress.quantize.activation_ranges import TensorStatistics, collect_statistics
from edgewright.compress.quantize.bit_packing import pack_integers
from edgewright.compress.quantize.static_int8 import StaticInt8, integer_layers, quantize_static, tensors_to_observe
from edgewright.compress.train.qat.initial_graph import make_qat_graph
from edgewright.compress.train.torch_graph.onnx_module import TrainableGraph

Build = Callable[..., onnx.ModelProto]
Images = NDArray[np.float32]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def observed(model: onnx.ModelProto, values: NDArray[Any]) -> tuple[onnx.ModelProto, dict[str, TensorStatistics]]:
    cleaned = clean_model(model)
    name = Graph(cleaned).input_names[0]
    return cleaned, collect_statistics(cleaned, tensors_to_observe(Graph(cleaned)), [{name: values}])


@pytest.fixture(scope="module")
def observed_digits(
    digits_proto: onnx.ModelProto, digits: dict[str, Any]
) -> tuple[onnx.ModelProto, dict[str, TensorStatistics]]:
    return observed(digits_proto, digits["x"][:128])


def train(
    network: TrainableGraph, values: NDArray[Any], labels: NDArray[Any], steps: int, rate: float = 1e-3
) -> None:
    """Train on mini-batches of 64, seeded."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(network.parameters(), rate)
    network.train()
    for _ in range(steps):
        chosen = torch.randint(len(values), (64,), generator=generator)
        answer = network(torch.from_numpy(values[chosen]))[0]
        loss = nn.functional.cross_entropy(answer.flatten(1), torch.from_numpy(labels[chosen]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval()


def simulated(network: TrainableGraph, values: NDArray[Any]) -> NDArray[np.float32]:
    with torch.no_grad():
        return network(torch.from_numpy(values))[0].numpy()  # type: ignore[no-any-return]


def answered(model: onnx.ModelProto, values: NDArray[Any]) -> NDArray[np.float32]:
    session = session_bytes(model)
    return np.asarray(session.run(None, {session.get_inputs()[0].name: values})[0])


def step_of(answers: NDArray[np.float32]) -> float:
    """Return the quantisation step of a tensor with this range."""
    return float(answers.max() - answers.min()) / 255


FORMS = [StaticInt8(activations=kind, per_channel=whole) for kind in ("uint8", "int8") for whole in (True, False)]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_the_runtime_answers_as_training_simulated(
    observed_digits: tuple[onnx.ModelProto, dict[str, TensorStatistics]], digits: dict[str, Any], form: StaticInt8
) -> None:
    values, labels = digits["x"][:600], digits["y"][:600].astype(np.int64)
    cleaned, seen = observed_digits
    layers = [weight.layer for weight in integer_layers(Graph(cleaned))]
    form = StaticInt8(
        form.activations, form.per_channel, max_integer_by_layer={layers[2]: 7, layers[4]: 1, layers[-1]: 7}
    )
    before = quantize_static(cleaned, form, seen)
    network = TrainableGraph(make_qat_graph(cleaned, form, seen))
    np.testing.assert_array_equal(answered(network.eval().to_onnx(), values), answered(before, values))
    train(network, values, labels, 4)
    made = network.to_onnx()
    want, have = answered(made, values), simulated(network, values)
    assert np.abs(want - have).max() < step_of(want)
    assert (want.argmax(1) == have.argmax(1)).mean() >= 0.995
    assert [node.op_type for node in made.graph.node] == [node.op_type for node in before.graph.node]
    assert lint_model(made).fused_fraction == lint_model(before).fused_fraction
    peaks = [
        int(np.abs(value).max())
        for value in Graph(made).constants.values()
        if value.dtype == np.int8 and value.ndim
    ]
    assert sum(peak == 1 for peak in peaks) >= 1
    packed = strip_model(pack_integers(made))
    assert packed.ByteSize() < made.ByteSize()
    np.testing.assert_array_equal(answered(packed, values), want)


@pytest.mark.parametrize("activations", ["uint8", "int8"])
def test_depthwise_products_sums_and_clamps_are_simulated_too(built: Build, activations: Any) -> None:
    generator = np.random.default_rng(3)

    def normal(*shape: int) -> NDArray[np.float32]:
        drawn = generator.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        return np.asarray(drawn, np.float32)

    model = built(
        "g (float[n,4,8,8] x) => (float[n,6] y) {"
        " a = Conv <pads=[1,1,1,1]> (x, v, b) c = Relu (a) d = Conv <group=8, pads=[1,1,1,1]> (c, u, e)"
        " f = Add (c, d) p = MaxPool <kernel_shape=[2,2], strides=[2,2]> (f)"
        " h = Conv (p, t, k) s = LeakyRelu (h) q = GlobalAveragePool (s) i = Flatten (q) y = MatMul (i, w) }",
        v=normal(8, 4, 3, 3),
        b=normal(8, 1)[:, 0],
        u=normal(8, 1, 3, 3),
        e=normal(8, 1)[:, 0],
        t=normal(16, 8, 1, 1),
        k=normal(16, 1)[:, 0],
        w=normal(16, 6),
    )
    values = generator.standard_normal((256, 4, 8, 8)).astype(np.float32)
    labels = generator.integers(0, 6, 256)
    cleaned, seen = observed(model, values[:128])
    network = TrainableGraph(make_qat_graph(cleaned, StaticInt8(activations=activations), seen))
    train(network, values, labels, 10)
    want, have = answered(network.to_onnx(), values), simulated(network, values)
    assert np.abs(want - have).max() < 2 * step_of(want)
    assert np.sqrt(np.square(want - have).mean()) < step_of(want) / 2


@pytest.mark.parametrize("per_channel", [True, False])
def test_training_recovers_what_few_integers_lose(
    observed_digits: tuple[onnx.ModelProto, dict[str, TensorStatistics]], digits: dict[str, Any], per_channel: bool
) -> None:
    values, labels = digits["x"][:1200], digits["y"][:1200].astype(np.int64)
    taught = np.arange(len(values)) % 3 > 0
    cleaned, seen = observed_digits
    form = StaticInt8(max_integer=1, per_channel=per_channel)

    def accuracy(model: onnx.ModelProto) -> float:
        return float((answered(model, values[~taught]).argmax(1) == labels[~taught]).mean())

    lost = accuracy(quantize_static(cleaned, form, seen))
    network = TrainableGraph(make_qat_graph(cleaned, form, seen))
    train(network, values[taught], labels[taught], 25)
    assert accuracy(network.to_onnx()) > max(lost + 0.5 * (accuracy(cleaned) - lost), 0.9)


def test_a_start_answers_as_the_quantised_model_and_holds_its_floats(
    digits_proto: onnx.ModelProto, digits_batch: Images
) -> None:
    cleaned, seen = observed(digits_proto, digits_batch)
    form = StaticInt8(max_integer=3)
    start = onnx.load_from_string(make_qat_graph(cleaned, form, seen).SerializeToString())
    np.testing.assert_array_equal(
        answered(start, digits_batch), answered(quantize_static(cleaned, form, seen), digits_batch)
    )
    floats = Graph(cleaned).constants
    network = TrainableGraph(start)
    for weight in integer_layers(Graph(cleaned)):
        latent = network.weights()[weight.layer].detach().numpy()
        want = floats[weight.tensor]
        np.testing.assert_array_equal(latent if latent.shape == want.shape else latent.T, want)
    assert all(not name.endswith(":latent") for name in Graph(network.to_onnx()).constants)


def test_steps_learn_by_the_published_gradient() -> None:
    from edgewright.compress.train.qat.fake_quant import FakeQuantizer

    values = torch.tensor([0.3, -0.6, 5.0, -5.0])
    quantizer = FakeQuantizer(torch.tensor(0.5), -2, 2, batched=False)
    rounded = quantizer(values)
    torch.testing.assert_close(rounded, torch.tensor([0.5, -0.5, 1.0, -1.0]))
    (rounded * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum().backward()
    by_hand = 1 * (1 - 0.6) + 2 * (-1 + 1.2) + 3 * 2 + 4 * -2  # Esser 2020, equation 3
    assert quantizer.growth.grad is not None
    torch.testing.assert_close(float(quantizer.growth.grad), by_hand * 0.5 / np.sqrt(4 * 2), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("per_channel", [True, False])
def test_gradients_of_many_values_are_summed_exactly_enough(per_channel: bool) -> None:
    from edgewright.compress.train.qat.fake_quant import FakeQuantizer

    generator = torch.Generator().manual_seed(0)
    values = torch.randn(32, 16, 12, 12, generator=generator).requires_grad_()
    upstream = torch.randn(32, 16, 12, 12, generator=generator)
    step = torch.full((32, 1, 1, 1), 0.015) if per_channel else torch.tensor(0.015)
    quantizer = FakeQuantizer(step, -128, 127, batched=False)
    (quantizer(values) * upstream).sum().backward()
    exact, gradient, size = values.detach().double(), upstream.double(), step.double()
    codes = (exact / size).round().clamp(-128, 127)
    inside = (exact / size).round() == codes
    change = (gradient * (codes - inside * exact / size)).sum_to_size(step.shape) * size
    change /= np.sqrt(values.numel() / step.numel() * 128)
    assert quantizer.growth.grad is not None
    assert values.grad is not None
    limit = 1e-4 * float(change.abs().max())
    torch.testing.assert_close(quantizer.growth.grad.double(), change, rtol=1e-3, atol=limit)
    assert float((values.grad.double() != gradient * inside).double().mean()) < 1e-5  # but for ties
