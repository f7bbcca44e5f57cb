"""PyTorch modules as input: what can be exported answers as the module; what cannot is named."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from edgewright.compress.model.graph import session_bytes
from edgewright.compress.train.export.module_factory import load_module
from edgewright.compress.train.export.pytorch import export_torch_module
from edgewright.compress.train.torch_graph.onnx_module import TrainableGraph
from edgewright.contract.errors import InputError, ModelError


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.norm(tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]).mean(1)  # type: ignore[no-any-return]


class ScaledDotProduct(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project, self.out = nn.Linear(8, 24), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        query, key, value = self.project(x).reshape(n, t, 3, 2, 4).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return self.out(mixed.transpose(1, 2).reshape(n, t, c)[:, 0])  # type: ignore[no-any-return]


class Recurrent(nn.Module):
    def __init__(self, kind: Any, **options: Any) -> None:
        super().__init__()
        self.layer = kind(8, 5, batch_first=True, **options)
        self.out = nn.Linear(10 if options else 5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(x)[0][:, -1])  # type: ignore[no-any-return]


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(3, 2), nn.Linear(4, 2)

    def forward(self, sound: Tensor, motion: Tensor) -> dict[str, Tensor]:
        joined = self.left(sound) + self.right(motion)
        return {"logits": joined, "scores": joined.softmax(1)}


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x * 2
        return x - 1


class Bessel(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x)  # type: ignore[no-any-return]


class OneAtATime(nn.Module):
    """Fixes its batch, as code written for one sample does."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] == 1:
            return self.layer(x.reshape(1, 6))  # type: ignore[no-any-return]
        return torch.cat([self.layer(row.reshape(1, 6)) for row in x])


def samples(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal((6, *shape)).astype(np.float32)


def convolutions() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv1d(3, 8, 3, bias=False), nn.BatchNorm1d(8), nn.Hardswish(), nn.MaxPool1d(2), nn.Flatten(),
        nn.Linear(24, 4), nn.BatchNorm1d(4),
    )  # fmt: skip
    net(torch.randn(16, 3, 8))  # statistics that are not 0 and 1
    return net


MODULES = {
    "convolutions": (convolutions, (3, 8)),
    "attention": (Attention, (6, 8)),
    "scaled dot product": (ScaledDotProduct, (6, 8)),
    "gru": (lambda: Recurrent(nn.GRU), (6, 8)),
    "lstm": (lambda: Recurrent(nn.LSTM), (6, 8)),
    "both directions": (lambda: Recurrent(nn.LSTM, bidirectional=True), (6, 8)),
}


@pytest.mark.parametrize("kind", MODULES)
def test_the_graph_answers_any_batch_as_the_module_and_computes_no_shapes(kind: str) -> None:
    factory, shape = MODULES[kind]
    torch.manual_seed(1)
    module, x = factory().eval(), samples(*shape)
    graph = export_torch_module(module, [x[:1]])
    with torch.no_grad():
        wanted = module(torch.from_numpy(x)).numpy()
    name = graph.graph.input[0].name
    np.testing.assert_allclose(session_bytes(graph).run(None, {name: x})[0], wanted, rtol=1e-3, atol=1e-5)
    operators = {node.op_type for node in graph.graph.node}
    assert not operators & {"Shape", "Expand", "ConstantOfShape"}
    trained = TrainableGraph(graph).eval()
    with torch.no_grad():
        np.testing.assert_allclose(trained(torch.from_numpy(x))[0].numpy(), wanted, rtol=1e-3, atol=1e-5)
    assert not graph.metadata_props
    assert all(not node.metadata_props and not node.doc_string for node in graph.graph.node)


def test_batch_normalisation_is_still_there_to_be_trained() -> None:
    operators = [node.op_type for node in export_torch_module(convolutions(), [samples(3, 8)]).graph.node]
    assert operators.count("BatchNormalization") == 2
    assert "Conv" in operators


def test_inputs_are_named_as_arguments_and_outputs_as_keys(tmp_path: Path) -> None:
    graph = export_torch_module(Two(), {"motion": samples(4), "sound": samples(3)}, tmp_path / "two.onnx")
    assert [value.name for value in graph.graph.input] == ["sound", "motion"]
    assert [value.name for value in graph.graph.output] == ["logits", "scores"]
    assert onnx.load(tmp_path / "two.onnx").graph.input[0].name == "sound"


def test_a_module_that_fixes_its_batch_becomes_a_graph_of_some_batch() -> None:
    x = samples(2, 3)
    module = OneAtATime()
    graph = export_torch_module(module, [x])
    wanted = module(torch.from_numpy(x[:1])).detach().numpy()
    np.testing.assert_allclose(session_bytes(graph).run(None, {"x": x[:1]})[0], wanted, rtol=1e-3, atol=1e-5)


def test_control_flow_on_values_is_named_with_its_line() -> None:
    with pytest.raises(ModelError, match=r"test_module_factory\.py, line \d+: if x\.sum\(\) > 0") as caught:
        export_torch_module(Branch(), [samples(3)])
    assert "give the ONNX file" in caught.value.remedy


def test_an_operation_without_onnx_form_is_named() -> None:
    with pytest.raises(ModelError, match="bessel_j0"):
        export_torch_module(Bessel(), [samples(3)])


def test_data_of_another_shape_is_refused_with_both_named() -> None:
    with pytest.raises(InputError, match=r"\[6, 5\] float32"):
        export_torch_module(nn.Linear(3, 2), [samples(5)])


FACTORIES = """
import torch
from torch import nn
def good(): return nn.Linear(3, 2)
def broken(): raise FileNotFoundError("weights.pt is not there")
def weights(): return nn.Linear(3, 2).state_dict()
def number(): return 3
existing = nn.Linear(3, 2)
"""


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_networks.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("factories")
@pytest.mark.parametrize("name", ["good", "existing"])
def test_a_factory_in_the_current_folder_is_found(name: str) -> None:
    module = load_module(f"their_networks:{name}")
    assert isinstance(module, nn.Linear)
    assert not module.training


@pytest.mark.usefixtures("factories")
@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("their_networks:broken", r"FileNotFoundError: weights\.pt is not there"),
        ("their_networks:weights", r"weights \(a state dict\)"),
        ("their_networks:number", "returned int"),
        ("their_networks:missing", "no function 'missing'"),
        ("nowhere_at_all:net", "cannot be imported"),
        ("their_networks.py", "not of the form"),
    ],
)
def test_what_went_wrong_in_a_factory_is_said(reference: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load_module(reference)
