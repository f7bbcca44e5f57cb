"""`edgewright lint`: findings in words and JSON, mending into a new file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from edgewright.cli.main import main
from edgewright.compress.quantize.static_int8 import StaticInt8
from edgewright.compress.search.recipe import CandidateBuilder, CleanGraph, Recipe


@pytest.fixture(scope="module")
def signed(digits_model: Path, digits: dict[str, NDArray[Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits network with signed activations, which x86 does not fuse."""
    bench = CandidateBuilder(onnx.load(digits_model), [{"image": digits["x"][:64]}])
    path = tmp_path_factory.mktemp("lint") / "signed.onnx"
    onnx.save(bench.build(Recipe((CleanGraph(), StaticInt8(activations="int8")))), path)
    return path


@pytest.fixture
def lint(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    def run(*arguments: str | Path, code: int) -> dict[str, Any]:
        assert main(["lint", *map(str, arguments), "--json"]) == code
        document: dict[str, Any] = json.loads(capsys.readouterr().out)
        return document

    return run


Lint = Callable[..., dict[str, Any]]


def test_a_model_without_findings_is_exit_code_zero(digits_model: Path, lint: Lint) -> None:
    document = lint(digits_model, code=0)
    assert document["schema"] == 2
    assert document["lint"]["findings"] == []
    assert document["lint"]["layers"] == 9


def test_findings_are_exit_code_one_each_with_reason_and_remedy(signed: Path, lint: Lint) -> None:
    document = lint(signed, code=1)
    assert document["fixed"] == []
    for finding in document["lint"]["findings"]:
        assert finding["rule"]
        assert finding["reason"]
        assert finding["remedy"]
        assert isinstance(finding["fixable"], bool)


def test_a_mended_file_is_fused_and_answers_the_same(
    signed: Path, lint: Lint, tmp_path: Path, digits: dict[str, NDArray[Any]]
) -> None:
    before = signed.read_bytes()
    document = lint(signed, "--fix", tmp_path / "mended.onnx", code=0)
    assert document["fixed"]
    assert document["left"]["findings"] == []
    assert signed.read_bytes() == before
    assert lint(tmp_path / "mended.onnx", code=0)["lint"]["integer_layers"] == 9
    right = [
        (ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"image": digits["x"]})[0])
        for path in (signed, tmp_path / "mended.onnx")
    ]
    assert (np.asarray(right[0]).argmax(1) == np.asarray(right[1]).argmax(1)).mean() > 0.99


def test_people_read_words(signed: Path, digits_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lint", str(signed)]) == 1
    said = capsys.readouterr().out
    assert "signed activations" in said
    assert "remedy" in said
    assert main(["lint", str(digits_model)]) == 0
    assert "Nothing slows this graph down" in capsys.readouterr().out


def test_bad_models_and_places_are_one_message(
    signed: Path, lint: Lint, tmp_path: Path, unwritable: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"GIF89a" * 50)
    assert lint(tmp_path / "bad.onnx", code=2)["error"]["code"] == "invalid_model"
    assert lint(tmp_path / "nowhere.onnx", code=2)["error"]["code"] == "invalid_model"
    assert lint(signed, "--fix", unwritable / "mended.onnx", code=1)["error"]["code"] == "output_failed"
