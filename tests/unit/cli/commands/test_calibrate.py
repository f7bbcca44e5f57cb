"""Confidence that means what it says, by the command."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from edgewright.cli.main import main


def calibrated(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["calibrate", *map(str, arguments), "--json"]) == code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def answers(model: Path, samples: NDArray[Any]) -> NDArray[Any]:
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    found: NDArray[Any] = session.run(None, {"image": samples})[0]
    return found


@pytest.mark.parametrize("vector", [False, True])
def test_confidence_gets_better_and_a_temperature_changes_no_answer(
    capsys: pytest.CaptureFixture[str],
    digits_model: Path,
    digits_npz: Path,
    digits: dict[str, NDArray[Any]],
    tmp_path: Path,
    vector: bool,
) -> None:
    out = tmp_path / "calibrated.onnx"
    given = (digits_model, "--data", digits_npz, "--out", out, *(["--vector"] if vector else []))
    found = calibrated(capsys, *given)
    assert found["after"]["nll"] < found["before"]["nll"]
    assert found["after"]["calibration_error"] <= found["before"]["calibration_error"]
    before, after = (answers(path, digits["x"][:200]) for path in (digits_model, out))
    if vector:
        assert found["temperature"] is None
    else:
        assert found["temperature"] > 0
        np.testing.assert_allclose(after, before / found["temperature"], rtol=1e-3, atol=1e-3)
        assert found["after"]["accuracy"] == found["before"]["accuracy"]


def test_data_without_classes_is_refused(
    capsys: pytest.CaptureFixture[str], digits_model: Path, digits: dict[str, NDArray[Any]], tmp_path: Path
) -> None:
    np.savez(tmp_path / "x.npz", image=digits["x"][:100])
    out = tmp_path / "out.onnx"
    found = calibrated(capsys, digits_model, "--data", tmp_path / "x.npz", "--out", out, code=2)
    assert "not for classification" in found["error"]["message"]
    assert not out.exists()
