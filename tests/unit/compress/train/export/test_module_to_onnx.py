"""A PyTorch module becomes the ONNX file that is compressed, with inputs as the data has them."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgewright.compress.train.export.module_to_onnx import export_module
from edgewright.contract.errors import InputError, ModelError
from edgewright.contract.model.preprocess import Preprocess

Digits = dict[str, NDArray[Any]]


class Reader(nn.Module):
    """A small network with a layer that behaves otherwise in training."""

    def __init__(self) -> None:
        super().__init__()
        normal = nn.BatchNorm2d(4)
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3), normal, nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))

    def forward(self, picture: Tensor) -> Tensor:
        scores: Tensor = self.layers(picture)
        return scores


@pytest.fixture
def reader() -> Reader:
    torch.manual_seed(0)
    return Reader()


@pytest.fixture
def data(tmp_path: Path, digits: Digits) -> str:
    np.savez(tmp_path / "data.npz", x=digits["x"][:40], y=digits["y"][:40])
    return str(tmp_path / "data.npz")


def test_the_file_answers_as_the_module_does(reader: Reader, data: str, digits: Digits, tmp_path: Path) -> None:
    path = export_module(reader, data, tmp_path / "m.onnx")
    session = ort.InferenceSession(path)
    (given,) = session.get_inputs()
    assert given.name == "picture"
    assert isinstance(given.shape[0], str)
    reader.eval()
    with torch.no_grad():
        wanted = reader(torch.from_numpy(digits["x"][:30])).numpy()
    np.testing.assert_allclose(session.run(None, {"picture": digits["x"][:30]})[0], wanted, atol=1e-5)


@pytest.mark.parametrize("is_training", [True, False])
def test_the_module_is_left_as_it_was(reader: Reader, data: str, tmp_path: Path, is_training: bool) -> None:
    before = {name: value.clone() for name, value in reader.state_dict().items()}
    reader.train(is_training)
    export_module(reader, data, tmp_path / "m.onnx")
    assert reader.training is is_training
    for name, value in reader.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_samples_are_preprocessed_as_in_use(reader: Reader, tmp_path: Path, digits: Digits) -> None:
    raw = (digits["x"][:20].transpose(0, 2, 3, 1) * 16).astype(np.uint8)
    np.savez(tmp_path / "raw.npz", x=raw, y=digits["y"][:20])
    preprocess = Preprocess(dtype="uint8", scale=1 / 16, layout="NCHW")
    path = export_module(reader, str(tmp_path / "raw.npz"), tmp_path / "m.onnx", preprocess=preprocess)
    (given,) = onnx.load(path).graph.input
    assert [axis.dim_value for axis in given.type.tensor_type.shape.dim][1:] == [1, 8, 8]


def test_whole_numbers_that_stand_for_values_are_taken_as_floats(
    reader: Reader, tmp_path: Path, digits: Digits
) -> None:
    np.savez(tmp_path / "whole.npz", x=(digits["x"][:20] * 16).astype(np.uint8), y=digits["y"][:20])
    path = export_module(reader, str(tmp_path / "whole.npz"), tmp_path / "m.onnx")
    assert ort.InferenceSession(path).get_inputs()[0].type == "tensor(float)"


def test_tokens_stay_whole_numbers(tmp_path: Path) -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.last = nn.Embedding(50, 8), nn.Linear(8, 3)

        def forward(self, tokens: Tensor) -> Tensor:
            scores: Tensor = self.last(self.embedding(tokens).mean(1))
            return scores

    tokens = np.random.default_rng(0).integers(0, 50, (20, 6)).astype(np.int32)
    np.savez(tmp_path / "words.npz", tokens=tokens, y=np.arange(20) % 3)
    path = export_module(Words(), str(tmp_path / "words.npz"), tmp_path / "m.onnx")
    assert ort.InferenceSession(path).get_inputs()[0].type == "tensor(int64)"


def test_several_inputs_are_named_as_the_arguments(tmp_path: Path) -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(7, 2)

        def forward(self, motion: Tensor, place: Tensor) -> Tensor:
            scores: Tensor = self.last(torch.cat([motion, place], dim=1))
            return scores

    np.savez(tmp_path / "pair.npz", place=np.ones((20, 3), np.float32), motion=np.zeros((20, 4), np.float32))
    path = export_module(Pair(), str(tmp_path / "pair.npz"), tmp_path / "m.onnx")
    shapes = {given.name: given.shape[1:] for given in ort.InferenceSession(path).get_inputs()}
    assert shapes == {"motion": [4], "place": [3]}


def test_a_table_shows_the_features(tmp_path: Path) -> None:
    rows = "\n".join(f"{i},{i * 2},{i % 2}" for i in range(20))
    (tmp_path / "t.csv").write_text(f"a,b,kind\n{rows}\n")
    path = export_module(nn.Linear(2, 2), str(tmp_path / "t.csv"), tmp_path / "m.onnx", label="kind")
    assert ort.InferenceSession(path).get_inputs()[0].shape[1:] == [2]


def test_data_that_shows_no_inputs_is_refused(reader: Reader, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for source in (tmp_path / "photos", tmp_path / "nowhere.npz"):
        with pytest.raises(InputError, match="does not show") as raised:
            export_module(reader, str(source), tmp_path / "m.onnx")
        assert raised.value.exit_code == 2
        assert not (tmp_path / "m.onnx").exists()


def test_data_of_another_shape_is_refused(reader: Reader, tmp_path: Path) -> None:
    np.savez(tmp_path / "flat.npz", x=np.ones((20, 64), np.float32))
    with pytest.raises(InputError, match=r"\[8, 64\]"):
        export_module(reader, str(tmp_path / "flat.npz"), tmp_path / "m.onnx")


def test_a_part_without_onnx_form_is_named(tmp_path: Path, data: str) -> None:
    class Odd(Reader):
        def forward(self, picture: Tensor) -> Tensor:
            values: Tensor = torch.linalg.svdvals(picture[:, 0])
            return values

    with pytest.raises(ModelError, match="svd"):
        export_module(Odd(), data, tmp_path / "m.onnx")
