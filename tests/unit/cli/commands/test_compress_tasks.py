"""`edgewright compress` from end to end on every kind of task, input and graph; small models on real data."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from sklearn.datasets import load_diabetes, load_digits
from sklearn.decomposition import PCA
from sklearn.neural_network import MLPClassifier, MLPRegressor

from edgewright.cli.main import main
from edgewright.compress.model.graph import Graph, clean_model
from edgewright.compress.quantize.activation_ranges import collect_statistics
from edgewright.compress.quantize.static_int8 import StaticInt8, quantize_static, tensors_to_observe

Compress = Callable[..., dict[str, Any]]
Arrays = dict[str, NDArray[Any]]


@pytest.fixture
def compress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Compress:
    """Run the verb on a model and arrays; the result must run and be smaller or the same."""
    monkeypatch.setenv("EDGEWRIGHT_STATE", str(tmp_path / "state"))

    def run(
        model: onnx.ModelProto, arrays: Arrays, *arguments: str, codes: tuple[int, ...] = (0,)
    ) -> dict[str, Any]:
        path = tmp_path / "original.onnx"
        path.write_bytes(model.SerializeToString())
        np.savez(tmp_path / "data.npz", **arrays)  # type: ignore[arg-type]
        command = ["compress", str(path), "--data", str(tmp_path / "data.npz"), "--out", str(tmp_path / "out")]
        code = main([*command, "--trials", "5", "--time-limit", "10", "--json", *arguments])
        report: dict[str, Any] = json.loads(capsys.readouterr().out)
        assert code in codes, report["verdict"]
        ort.InferenceSession(report["chosen"]["path"])
        assert report["chosen"]["latency_ratio"]["low"] <= 1.05
        return report

    return run


def network(text: str, *, opset: int = 17, **constants: NDArray[Any]) -> onnx.ModelProto:
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> {text}')
    arrays = {name: np.asarray(value, np.float32) for name, value in constants.items()}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in arrays.items())
    return model


def perceptron(fitted: Any, inputs: int, outputs: int, last: str = "", *, opset: int = 17) -> onnx.ModelProto:
    (w, v), (b, c) = fitted.coefs_, fitted.intercepts_
    end = f"z = Gemm(r, v, c)\n y = {last}(z)" if last else "y = Gemm(r, v, c)"
    text = f"g (float[n,{inputs}] x) => (float[n,{outputs}] y) {{ h = Gemm(x, w, b)\n r = Relu(h)\n {end} }}"
    return network(text, opset=opset, w=w, b=b, v=v, c=c)


def digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    return (images[order] / 16).astype(np.float32), labels[order].astype(np.int64)


@pytest.fixture(scope="module")
def reader() -> MLPClassifier:
    x, y = digits()
    return MLPClassifier(hidden_layer_sizes=(48,), max_iter=60, random_state=0).fit(x[:597], y[:597])


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_regression_is_bounded_in_r2(compress: Compress) -> None:
    x, y = load_diabetes(return_X_y=True)
    scaled = (y - y.mean()) / y.std()
    fitted = MLPRegressor(hidden_layer_sizes=(32,), max_iter=300, random_state=0).fit(x[:150] * 10, scaled[:150])
    arrays = {"x": (x[150:] * 10).astype(np.float32), "y": scaled[150:].astype(np.float32)}
    report = compress(perceptron(fitted, 10, 1), arrays, "--max-drop", "0.03", codes=(0, 1))
    assert report["data"]["task"] == "regression"
    assert report["certificate"]["metric"] == "r2"
    assert "asymptotic" in report["certificate"]["method"]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_multi_label_answers_are_bounded_by_betting(compress: Compress) -> None:
    x, y = digits()
    several = np.stack([y % 2, y >= 5, np.isin(y, (2, 3, 5, 7))], axis=1).astype(np.int64)
    fitted = MLPClassifier(hidden_layer_sizes=(48,), max_iter=60, random_state=0).fit(x[:597], several[:597])
    arrays = {"x": x[597:], "y": several[597:]}
    report = compress(perceptron(fitted, 64, 3, "Sigmoid"), arrays, "--max-drop", "0.03")
    assert report["data"]["task"] == "multilabel"
    assert report["certificate"]["method"] == "betting"
    assert report["certificate"]["verdict"] == "certified"


def test_reconstruction_is_compared_with_the_input(compress: Compress) -> None:
    x, _ = digits()
    pca = PCA(24, random_state=0).fit(x[:597])
    model = network(
        "g (float[n,64] x) => (float[n,64] y) { z = Gemm(x, w, b)\n y = Gemm(z, v, c) }",
        w=pca.components_.T,
        b=-pca.mean_ @ pca.components_.T,
        v=pca.components_,
        c=pca.mean_,
    )
    report = compress(model, {"x": x[597:]}, "--max-drop", "0.02")
    assert report["certificate"]["metric"] == "reconstruction_r2"
    assert report["certificate"]["verdict"] == "certified"


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_grouped_data_is_bounded_by_cluster(compress: Compress, reader: MLPClassifier) -> None:
    x, y = digits()
    writers = np.arange(len(x) - 597) % 24
    arrays = {"x": x[597:], "y": y[597:], "writer": writers}
    report = compress(perceptron(reader, 64, 10), arrays, "--group", "writer", "--max-drop", "0.03")
    assert report["certificate"]["cluster_count"] >= 12
    assert "cluster" in report["certificate"]["method"]
    assert "groups" in report["verdict"]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("opset", [9, 13, 22])
def test_old_and_new_operator_sets_compress(compress: Compress, reader: MLPClassifier, opset: int) -> None:
    x, y = digits()
    report = compress(perceptron(reader, 64, 10, opset=opset), {"x": x[597:], "y": y[597:]}, "--max-drop", "0.03")
    assert report["chosen"]["size_bytes"]["value"] < 0.5 * report["original"]["size_bytes"]["value"]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_metric_of_ones_own_with_float_scores_is_bounded_exactly(
    compress: Compress, reader: MLPClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_metric_of_test.py").write_text(
        "def hits(labels, outputs):\n    return (outputs[0].argmax(axis=1) == labels).astype(float)\n"
    )
    monkeypatch.chdir(tmp_path)
    x, y = digits()
    arrays = {"x": x[597:660], "y": y[597:660]}
    report = compress(perceptron(reader, 64, 10), arrays, "--metric", "own_metric_of_test:hits", codes=(1,))
    assert report["certificate"]["method"] == "exact"
    assert report["certificate"]["verdict"] == "insufficient data"  # thirty samples that agree prove nothing
    assert report["certificate"]["additional_samples_needed"] > 200


def test_states_and_several_outputs_are_compared_with_the_original(compress: Compress) -> None:
    random = np.random.default_rng(0)
    model = network(
        "g (float[1,1,64] x, float[1,1,32] h, float[1,1,32] c)"
        " => (float[1,1,1,32] y, float[1,1,32] hn, float[1,1,32] cn)"
        " { y, hn, cn = LSTM<hidden_size=32>(x, w, r, b, , h, c) }",
        w=random.normal(0, 0.2, (1, 128, 64)),
        r=random.normal(0, 0.2, (1, 128, 32)),
        b=random.normal(0, 0.1, (1, 256)),
    )
    rows, _ = digits()
    states = random.normal(0, 0.3, (2, 300, 1, 1, 32)).astype(np.float32)
    report = compress(model, {"x": rows[:300, None, None], "h": states[0], "c": states[1]})
    assert report["certificate"]["metric"] == "fidelity"
    assert report["fidelity"]["sqnr_db"] >= 30
    assert {spec["name"] for spec in report["contract"]["inputs"]} == {"x", "h", "c"}


def test_a_quantised_model_is_mended_and_packed(compress: Compress, digits_model: Path, digits_npz: Path) -> None:
    float_model = clean_model(onnx.load(digits_model))
    with np.load(digits_npz) as held:
        arrays = dict(held)
    seen = collect_statistics(float_model, tensors_to_observe(Graph(float_model)), [{"image": arrays["x"][:64]}])
    signed = quantize_static(float_model, StaticInt8(activations="int8"), seen)
    report = compress(signed, arrays, codes=(0,))
    assert report["chosen"]["recipe"][0]["step"] in ("mend", "clean up")
    assert report["chosen"]["latency_ratio"]["value"] < 0.8
    assert report["certificate"]["verdict"] == "certified"


def test_the_contract_tells_the_range_that_the_model_was_shown(
    compress: Compress, digits_model: Path, digits_npz: Path
) -> None:
    with np.load(digits_npz) as held:
        report = compress(onnx.load(digits_model), dict(held))
    (image,) = report["contract"]["inputs"]
    assert (image["low"], image["high"]) == (0.0, 1.0)
    assert image["shape"] == ["batch", 1, 8, 8]
