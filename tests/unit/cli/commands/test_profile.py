import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgewright.cli.main import main

Dense = Callable[..., Path]
FAST = ["--seconds", "0.3"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def dense(tmp_path: Path) -> Dense:
    """Make a model of one dense layer, [batch, n] to [batch, n]."""

    def make(n: int = 16, op: str = "Relu", domain: str = "", external: bool = False) -> Path:
        weights = np.random.default_rng(0).standard_normal((n, n)).astype(np.float32)
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node(op, ["h"], ["y"], domain=domain)],
            "dense",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", n])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", n])],
            [numpy_helper.from_array(weights, "w")],
        )
        opsets = [helper.make_opsetid("", 13), *([helper.make_opsetid(domain, 1)] if domain else [])]
        path = tmp_path / f"dense{n}.onnx"
        proto = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        onnx.save(proto, path, save_as_external_data=external, location="weights.bin", size_threshold=0)
        return path

    return make


@pytest.fixture
def profile_json(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Run the verb with --json; stdout must hold one document and nothing else."""

    def run(*arguments: str | Path, code: int = 0) -> dict[str, Any]:
        assert main(["profile", *map(str, arguments), *FAST, "--json"]) == code
        document = json.loads(capsys.readouterr().out)
        assert isinstance(document, dict)
        return document

    return run


def test_one_json_document_has_every_figure_with_its_origin(
    dense: Dense, profile_json: Callable[..., dict[str, Any]]
) -> None:
    path = dense()
    profile = profile_json(path)
    assert profile["schema"] == 2
    assert profile["model"]["path"] == str(path)
    for name in (
        "size_bytes",
        "latency_p50_ms",
        "latency_p95_ms",
        "latency_p99_ms",
        "cold_start_ms",
        "throughput_per_second",
        "peak_memory_bytes",
        "process_peak_memory_bytes",
        "runtime_size_bytes",
        "energy_mj",
    ):
        figure = profile["model"][name]
        assert set(figure) >= {"value", "unit", "low", "high", "confidence", "observation_count", "origin"}
        assert set(figure["origin"]) == {"kind", "machine", "method"}
    assert profile["model"]["size_bytes"]["value"] == path.stat().st_size
    assert set(profile["runtime_options"]) == {"default", "best", "gain", "trials"}
    assert profile["sustained"]["verdict"] in ("none", "throttled", "slower")
    assert profile["contention"]["cpu_slowdown"] > 0
    assert profile["machine"]["cores"] >= 1
    assert profile["compared_with"] is None


def test_two_models_are_compared_with_an_interval(
    dense: Dense, profile_json: Callable[..., dict[str, Any]]
) -> None:
    against = profile_json(dense(16), "--against", dense(600))["compared_with"]
    assert against["model"]["latency_p50_ms"]["value"] > 0
    assert against["latency_ratio"]["high"] < 1
    assert against["size_ratio"] < 1


def test_the_first_sample_is_the_input_and_the_budget_of_the_device_class_is_judged(
    dense: Dense, tmp_path: Path, profile_json: Callable[..., dict[str, Any]]
) -> None:
    (tmp_path / "edgewright.toml").write_text(
        f'[model]\npath = "{dense()}"\n[data]\nsource = "data.npz"\n'
        '[[device_class]]\nname = "tiny"\nbudget = { size = "100B", latency_p50 = "10s" }\n'
    )
    np.savez(tmp_path / "data.npz", x=np.zeros((20, 16), np.float32), y=np.arange(20) % 2)
    profile = profile_json(dense(), "--device-class", "tiny", "--data", tmp_path / "data.npz")
    assert profile["model"]["input_shapes"] == {"x": [1, 16]}
    assert profile["device_class"] == "tiny"
    assert {check["name"]: check["is_met"] for check in profile["budget"]} == {
        "size_bytes": False,
        "latency_p50_seconds": True,
    }
    assert {row["options"]["threads"] for row in profile["runtime_options"]["trials"]} == {1}


def test_people_get_a_table_and_progress_goes_to_stderr(dense: Dense, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", str(dense()), "--against", str(dense(32)), *FAST]) == 0
    shown = capsys.readouterr()
    for words in ("latency p50", "(estimated)", "runtime options", "sustained", "beside other work"):
        assert words in shown.out or (words == "(estimated)" and "energy" in shown.out)
    assert "measuring both models in turns" in shown.err


def _truncated(dense: Dense) -> Path:
    path = dense()
    path.write_bytes(path.read_bytes()[:300])
    return path


def _text(dense: Dense) -> Path:
    path = dense()
    path.write_text("this is not a model")
    return path


def _without_weights(dense: Dense) -> Path:
    path = dense(external=True)
    (path.parent / "weights.bin").unlink()
    return path


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (_truncated, "truncated"),
        (_text, "not an ONNX model"),
        (lambda dense: Path("absent.onnx"), "does not exist"),
        (lambda dense: dense(op="NoSuchThing", domain="com.example"), "NoSuchThing"),
        (_without_weights, "weights.bin"),
    ],
    ids=["truncated", "text", "absent", "lacking operator", "external data missing"],
)
def test_a_bad_model_is_the_users_to_mend(
    make: Callable[[Dense], Path], said: str, dense: Dense, profile_json: Callable[..., dict[str, Any]]
) -> None:
    error = profile_json(make(dense), code=2)["error"]
    assert error["code"] == "invalid_model"
    assert said in error["message"]
    assert error["remedy"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--on", "telnet://host"], "is not a target"),
        (["--device-class", "watch"], "device class 'watch'"),
        (["--seconds", "0"], "--seconds is 0"),
        (["--seconds", "nan"], "--seconds is nan"),
        (["--project", "absent.toml", "--device-class", "watch"], "absent.toml"),
    ],
)
def test_bad_usage_is_refused_before_anything_is_measured(
    arguments: list[str], said: str, dense: Dense, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile", str(dense()), *arguments]) == 2
    assert said in capsys.readouterr().err


def test_an_unreachable_target_is_failed_work(dense: Dense, profile_json: Callable[..., dict[str, Any]]) -> None:
    error = profile_json(dense(), "--on", "ssh://127.0.0.1:1", code=1)["error"]
    assert error["code"] == "target_failed"
    assert "Check the port" in error["remedy"] or "OpenSSH" in error["message"]


def test_an_interrupt_ends_everything(dense: Dense, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    command = [sys.executable, "-m", "edgewright", "profile", str(dense()), "--seconds", "60"]
    environment = {**os.environ, "TMPDIR": str(scratch)}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    for line in process.stderr:
        if "trying runtime options" in line:
            break
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 130
    process.stderr.close()
    # onnxruntime in the process itself leaves .ses there, a file of its telemetry.
    assert [path.name for path in scratch.iterdir() if path.name != ".ses"] == []
    assert not any(str(scratch).encode() in _command(path) for path in Path("/proc").glob("[0-9]*"))


def _command(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


def test_help_has_groups_and_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["profile", "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for words in ("examples:", "what to measure", "where", "--against OTHER", "--on TARGET"):
        assert words in shown
