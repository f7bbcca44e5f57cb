"""`edgewright init` writes a project file that holds what was found, or nothing."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from edgewright.cli.main import main
from edgewright.compress.data.loader import load_data
from edgewright.compress.model.loading import read_model
from edgewright.contract.config.project import load_project


@pytest.fixture(autouse=True)
def short_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgewright.cli.commands.init._LATENCY_SECONDS", 0.1)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a digits classifier and its data."""
    folder = tmp_path_factory.mktemp("digits")
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    linear = LogisticRegression(max_iter=300).fit(x[:900], y[:900])
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)],
        "digits",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 10])],
        [
            numpy_helper.from_array(linear.coef_.astype(np.float32), "w"),
            numpy_helper.from_array(linear.intercept_.astype(np.float32), "b"),
        ],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "m.onnx"
    )
    np.savez(folder / "d.npz", x=x, y=y, writer=np.arange(len(y)) % 12)
    return folder


def init(digits: Path, out: Path, *more: str) -> int:
    return main(
        ["init", "--model", str(digits / "m.onnx"), "--data", str(digits / "d.npz"), "--out", str(out), *more]
    )


def test_the_written_file_loads_and_says_what_was_found(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "edgewright.toml"
    assert init(digits, out, "--json") == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["schema"] == 2
    assert document["data"]["samples"] == 1797
    assert document["metric"]["name"] == "accuracy"
    assert document["metric"]["original"] > 0.9
    assert "Wrote" in captured.err

    project = load_project(out)
    model = read_model(Path(project.model.path))
    assert len(load_data(project.data.source, model.contract, task=project.data.task)) == 1797
    budget = project.device_class("default").budget
    assert budget.size_bytes is not None
    assert model.size_bytes / 2 <= budget.size_bytes < model.size_bytes
    assert budget.latency_p50_seconds is not None
    assert budget.max_drop == 0.01
    assert project.metric.name == "accuracy"
    assert project.pilot.devices == 20
    text = out.read_text()
    assert "# 1797 samples, of which 899 are kept for the certificate" in text
    assert "# measured here with one thread: latency p50" in text
    assert "# the original has accuracy 0.9" in text
    assert [path.name for path in tmp_path.iterdir()] == ["edgewright.toml"]


def test_groups_are_kept_in_the_file_and_widen_the_drop(digits: Path, tmp_path: Path) -> None:
    out = tmp_path / "edgewright.toml"
    assert init(digits, out, "--group", "writer") == 0
    project = load_project(out)
    assert project.data.group == "writer"
    assert project.device_class("default").budget.max_drop == 0.02


def test_an_existing_file_is_kept_unless_forced(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "edgewright.toml"
    out.write_text("mine")
    assert init(digits, out) == 2
    assert "--force" in capsys.readouterr().err
    assert out.read_text() == "mine"
    assert init(digits, out, "--force") == 0
    load_project(out)


def test_a_folder_that_is_missing_or_cannot_be_written_ends_in_a_clear_error(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert init(digits, tmp_path / "none" / "edgewright.toml", "--json") == 1
    captured = capsys.readouterr()
    assert "cannot be written" in captured.err
    assert json.loads(captured.out)["error"]["code"] == "output_failed"
    assert init(digits, tmp_path) == 1


def test_a_full_disk_leaves_nothing_behind(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("edgewright.cli.commands.init.os.fsync", full)
    assert init(digits, tmp_path / "edgewright.toml") == 1
    assert "No space left on device" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_bad_data_ends_with_exit_code_2_and_no_file(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "bad.npz", x=np.zeros((3, 64), np.float32), y=np.arange(3))
    out = tmp_path / "edgewright.toml"
    code = main(
        [
            "init",
            "--model",
            str(digits / "m.onnx"),
            "--data",
            str(tmp_path / "bad.npz"),
            "--out",
            str(out),
            "--json",
        ]
    )
    assert code == 2
    assert "3 samples, the least is 10" in json.loads(capsys.readouterr().out)["error"]["message"]
    assert not out.exists()
