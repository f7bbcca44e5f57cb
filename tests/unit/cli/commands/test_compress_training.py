"""`edgewright compress --train` from end to end on the handwritten digits, and what it says to bad input."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from sklearn.neural_network import MLPClassifier

from edgewright.cli.main import main

Digits = dict[str, NDArray[Any]]

# Two workers even on machines of one core: what is tested is more than one.
TRAINING = ("--workers", "2")


@dataclass(frozen=True)
class Done:
    """A finished run.

    Attributes:
        code: Its exit code.
        document: The JSON on stdout.
        out: Its folder.
    """

    code: int
    document: dict[str, Any]
    out: Path

    @property
    def training(self) -> dict[str, Any]:
        """The report's section on training."""
        section: dict[str, Any] = self.document["training"]
        return section

    @property
    def finished(self) -> list[dict[str, Any]]:
        """The networks of which something came."""
        return [network for network in self.training["networks"] if network["network_sha256"]]


Compress = Callable[..., Done]


@pytest.fixture(scope="module")
def compress(tmp_path_factory: pytest.TempPathFactory) -> Compress:
    """Run the verb in this process; stdout must hold one JSON document and nothing else."""

    def run(out: Path, *arguments: str | Path) -> Done:
        stdout, stderr = io.StringIO(), io.StringIO()
        with (
            pytest.MonkeyPatch.context() as patch,
            contextlib.redirect_stdout(stdout),
            contextlib.redirect_stderr(stderr),
        ):
            patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
            code = main(["compress", *map(str, arguments), "--out", str(out), "--json"])
        assert "Traceback" not in stderr.getvalue()
        return Done(code, json.loads(stdout.getvalue()), out)

    return run


@pytest.fixture(scope="module")
def training_npz(tmp_path_factory: pytest.TempPathFactory, digits_training: Digits) -> Path:
    path = tmp_path_factory.mktemp("training") / "training.npz"
    np.savez(path, **digits_training)  # type: ignore[arg-type]
    return path


@pytest.fixture(scope="module")
def trained(
    compress: Compress,
    digits_model: Path,
    digits_npz: Path,
    training_npz: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Done:
    """One whole run; a longer one where the machine is so busy that nothing was trained."""
    out = tmp_path_factory.mktemp("trained") / "out"
    given = ("--data", digits_npz, "--train", training_npz, "--max-drop", "0.03", *TRAINING)
    done = compress(out, digits_model, *given, "--time-limit", "50")
    return done if done.finished else compress(out, digits_model, *given, "--time-limit", "200")


@pytest.mark.slow
def test_training_finds_networks_whose_forms_are_tried(trained: Done) -> None:
    assert trained.code in (0, 1), trained.document
    assert trained.finished
    known = {network["network_sha256"] for network in trained.finished}
    of_networks = [trial for trial in trained.document["trials"] if trial["network_sha256"]]
    assert of_networks
    for trial in of_networks:
        assert trial["network_sha256"] in known
        assert trial["recipe"][0]["step"] == "trained"
        assert trial["recipe"][0]["network"] == trial["network_sha256"]
        assert trial["duration_seconds"] >= 0


@pytest.mark.slow
def test_the_section_on_training_is_complete(trained: Done) -> None:
    section = trained.training
    assert (section["engine"], section["workers"]) == ("local", 2)
    assert section["training_rows"] + section["validation_rows"] == 597
    assert "shift" in section["augmentations"]
    assert "mirror" not in section["augmentations"]  # a mirrored 2 is none
    assert any("mirror" in note for note in section["notes"])
    for network in trained.finished:
        curve = network["learning_curve"]
        assert (curve[0]["epoch"], curve[0]["training_rows"], curve[0]["train_loss"]) == (0, 0, None)
        assert [point["training_rows"] for point in curve] == sorted(point["training_rows"] for point in curve)
        assert curve[-1]["training_rows"] == network["training_rows"] > 0
        assert max(point["validation_metric"] for point in curve) == network["validation_metric"]
        assert network["parameters"] > 0
        assert network["latency_ratio"] > 0
        assert -1 <= network["drop"] <= 1
        assert network["error"] == ""
    for network in section["networks"]:
        assert bool(network["network_sha256"]) != bool(network["error"])
    for contribution in section["ablations"]:
        assert contribution["step"] in ("distillation", "pruning", "training of integers")
        assert 0 <= contribution["metric_with"] <= 1
        assert 0 <= contribution["metric_without"] <= 1


@pytest.mark.slow
def test_networks_go_on_from_what_earlier_rounds_made(trained: Done) -> None:
    rounds = [n["search_round"] for n in trained.training["networks"] if n["origin"] != "integers"]
    assert rounds == sorted(rounds)
    assert rounds[0] == 1
    made: dict[str, int] = {}
    for network in trained.finished:  # what no epoch made better is the same network again
        made.setdefault(network["network_sha256"], network["search_round"])
    for network in trained.training["networks"]:
        if network["origin"] == "continued":
            assert made[network["parent_sha256"]] < network["search_round"]


@pytest.mark.slow
def test_the_time_limit_is_kept_to_within_a_tenth(trained: Done) -> None:
    assert trained.document["search"]["seconds"] <= 1.1 * trained.document["search"]["time_limit_seconds"]


@pytest.mark.slow
def test_only_what_is_faster_than_the_model_is_trained(trained: Done) -> None:
    assert all(network["latency_ratio"] < 1 for network in trained.training["networks"])


@pytest.mark.slow
def test_the_folder_keeps_networks_and_nothing_of_the_work(trained: Done) -> None:
    names = {path.name for path in trained.out.iterdir()}
    assert names >= {"model.onnx", "report.json", "report.html", "search.journal", "candidates", "networks"}
    assert "training" not in names
    kept = {path.stem for path in (trained.out / "networks").iterdir()}
    assert kept >= {trial["network_sha256"][:16] for trial in trained.document["trials"] if trial["network_sha256"]}
    assert json.loads((trained.out / "report.json").read_text()) == trained.document


@pytest.mark.slow
def test_the_chosen_model_runs_and_answers_as_certified(trained: Done, digits: Digits) -> None:
    session = ort.InferenceSession(trained.out / "model.onnx", providers=["CPUExecutionProvider"])
    right = np.asarray(session.run(None, {"image": digits["x"]})[0]).argmax(1) == digits["y"]
    assert right.mean() > 0.9
    assert trained.document["certificate"]["verdict"] == "certified"


@pytest.mark.slow
def test_every_candidate_on_the_front_can_be_made_again_and_runs(trained: Done) -> None:
    for trial in trained.document["pareto_front"]:
        ort.InferenceSession(trained.out / "candidates" / f"{trial['sha256'][:16]}.onnx")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are counted in /proc")
def test_a_training_that_is_killed_and_interrupted_goes_on(
    compress: Compress, digits_model: Path, digits_npz: Path, training_npz: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = [str(digits_model), "--data", str(digits_npz), "--train", str(training_npz), *TRAINING]
    command = [sys.executable, "-m", "edgewright", "compress", *arguments, "--out", str(out), "--json"]
    environment = os.environ | {"XDG_STATE_HOME": str(tmp_path / "state")}

    def begun(outcomes: int, *more: str) -> tuple[subprocess.Popen[str], set[int]]:
        """Start, and return when so many networks are trained and workers are at the next."""
        process = subprocess.Popen(
            [*command, *more], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        until = time.monotonic() + 150
        while len(finished_in(out)) < outcomes:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < until
            time.sleep(0.02)
        workers = children_of(process.pid)
        assert workers
        return process, workers

    process, workers = begun(1, "--time-limit", "100")
    process.kill()
    process.communicate()
    ended(workers)
    earlier = finished_in(out)
    assert earlier

    process, workers = begun(len(earlier) + 1, "--time-limit", "100", "--resume")
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert json.loads(stdout)["error"]["code"] == "interrupted"
    assert "--resume" in stderr
    assert "Traceback" not in stderr
    ended(workers)
    later = finished_in(out)
    assert {name: later[name] for name in earlier} == earlier
    assert not (out / "model.onnx").exists()

    done = compress(out, *arguments, "--time-limit", "40", "--resume")
    assert done.code in (0, 1), done.document
    networks = [json.dumps(network, sort_keys=True) for network in done.training["networks"]]
    for record in later.values():  # seconds and curves are equal too: nothing was trained again
        assert networks.count(json.dumps(record, sort_keys=True)) == 1
    ort.InferenceSession(out / "model.onnx")


def finished_in(out: Path) -> dict[str, Any]:
    """Return the records of trained networks in a folder, by name."""
    return {path.name: json.loads(path.read_text()) for path in (out / "training" / "outcomes").glob("[!.]*.json")}


def children_of(pid: int) -> set[int]:
    """Return the processes whose parent this is."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if path.read_text().rpartition(")")[2].split()[1] == str(pid):
                found.add(int(path.parent.name))
    return found


def ended(pids: set[int]) -> None:
    """Wait a moment for processes to be gone."""
    until = time.monotonic() + 20
    while running := {pid for pid in pids if _runs(pid)}:
        assert time.monotonic() < until, f"{running} still run"
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


@pytest.fixture(scope="module")
def module_of_digits(tmp_path_factory: pytest.TempPathFactory, digits_training: Digits) -> Path:
    """The folder of a Python module whose `make` returns a trained perceptron, and others what goes wrong."""
    folder = tmp_path_factory.mktemp("module")
    reader = MLPClassifier(hidden_layer_sizes=(64,), max_iter=80, random_state=0, early_stopping=False, tol=1e-2)
    reader.fit(digits_training["x"].reshape(-1, 64), digits_training["y"])
    (w, v), (b, c) = reader.coefs_, reader.intercepts_
    np.savez(folder / "weights.npz", w=w.T, v=v.T, b=b, c=c)
    (folder / "torch_module_of_test.py").write_text(MODULE)
    return folder


MODULE = """
from pathlib import Path
import numpy as np
import torch
from torch import nn

class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    def forward(self, image):
        return self.layers(image)

class Odd(Reader):
    def forward(self, image):
        return torch.linalg.svdvals(image[:, 0]) + self.layers(image)[:, :8]

def make():
    made = Reader()
    with np.load(Path(__file__).with_name("weights.npz")) as weights, torch.no_grad():
        for layer, weight, bias in ((made.layers[1], "w", "b"), (made.layers[3], "v", "c")):
            layer.weight.copy_(torch.from_numpy(weights[weight]))
            layer.bias.copy_(torch.from_numpy(weights[bias]))
    return made

def odd():
    return Odd()

def broken():
    raise OSError("weights.pt is not there")

def weights():
    return make().state_dict()

def bad_recipe():
    raise KeyError("schedule")

def wrong_recipe():
    return {"epoch": 3}
"""


@pytest.fixture
def here(module_of_digits: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Go where the module is."""
    monkeypatch.chdir(module_of_digits)
    return module_of_digits


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("ray"), reason="Ray is not installed: make setup installs it")
def test_a_module_in_groups_is_exported_and_trained_on_by_ray(
    compress: Compress, here: Path, digits: Digits, digits_training: Digits, tmp_path: Path
) -> None:
    np.savez(tmp_path / "data.npz", **digits, writer=np.arange(1200) % 30)  # type: ignore[arg-type]
    np.savez(tmp_path / "train.npz", **digits_training, writer=np.arange(597) % 20)  # type: ignore[arg-type]
    done = compress(
        tmp_path / "out",
        "torch_module_of_test:make",
        *("--data", tmp_path / "data.npz", "--train", tmp_path / "train.npz", "--group", "writer"),
        # Ray itself may take half a minute to start where two processors are shared.
        *("--time-limit", "110", "--max-drop", "0.05", "--features", "x", "--engine", "ray", *TRAINING),
    )
    assert done.code in (0, 1), done.document
    assert done.document["original"]["path"] == str(tmp_path / "out" / "original.onnx")
    assert (tmp_path / "out" / "original.onnx").exists()
    assert done.training["validation_rows"] % 30 in (0, 29, 28)  # whole writers
    assert done.document["certificate"]["cluster_count"] >= 12
    assert done.training["engine"] == "ray"
    assert done.finished
    ort.InferenceSession(tmp_path / "out" / "model.onnx")


@pytest.mark.slow
def test_without_labels_networks_learn_from_the_teacher_alone_and_become_sparse(
    compress: Compress, here: Path, digits: Digits, digits_training: Digits, tmp_path: Path
) -> None:
    np.savez(tmp_path / "data.npz", x=digits["x"])
    np.savez(tmp_path / "train.npz", x=digits_training["x"])
    project = tmp_path / "sparse.toml"
    project.write_text(
        '[model]\npath = "torch_module_of_test:make"\n[data]\nsource = "data.npz"\n'
        '[metric]\nname = "agreement"\n[training]\nsource = "train.npz"\nsparsity = "2:4"\n'
    )
    done = compress(
        tmp_path / "out", "--project", project, *("--time-limit", "50", "--max-drop", "0.05"), *TRAINING
    )
    assert done.code in (0, 1), done.document
    assert done.finished
    assert all(network["drop"] is not None for network in done.finished)
    best = max(network["validation_metric"] for network in done.finished)
    assert 0.2 < best <= 1  # agreement with the teacher
    sparse = {network["network_sha256"] for network in done.finished if network["origin"] == "sparse"}
    assert sparse
    (path,) = (tmp_path / "out" / "networks").glob(f"{next(iter(sparse))[:16]}*")
    layers = [w for w in map(numpy_helper.to_array, onnx.load(path).graph.initializer) if w.ndim == 2]
    for weights in layers:
        inward = [np.moveaxis(weights, axis, -1) for axis in (0, 1) if weights.shape[axis] % 4 == 0]
        assert any(((turned.reshape(-1, 4) != 0).sum(1) <= 2).all() for turned in inward)
    assert any(contribution["step"] == "sparsity" for contribution in done.training["ablations"])
    ort.InferenceSession(tmp_path / "out" / "model.onnx")


@pytest.mark.slow
def test_what_cannot_be_trained_is_compressed_without(compress: Compress, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    text = (
        "g (float[n,16] a, float[n,16] b) => (float[n,4] y)"
        " { s = Sub(a, b)\n d = Det(q)\n h = MatMul(s, w)\n e = Erf(h)\n p = Add(e, d)\n y = MatMul(p, v) }"
    )
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    arrays = {"w": (16, 64), "v": (64, 4), "q": (2, 2)}
    model.graph.initializer.extend(
        numpy_helper.from_array(random.normal(0, 0.3, shape).astype(np.float32), name)
        for name, shape in arrays.items()
    )
    onnx.save(model, tmp_path / "two.onnx")
    for name, rows in (("data", 400), ("train", 300)):
        pair = random.normal(size=(2, rows, 16)).astype(np.float32)
        np.savez(tmp_path / f"{name}.npz", a=pair[0], b=pair[1])
    done = compress(
        tmp_path / "out",
        tmp_path / "two.onnx",
        *("--data", tmp_path / "data.npz", "--train", tmp_path / "train.npz", "--time-limit", "12", *TRAINING),
    )
    assert done.code in (0, 1), done.document
    assert done.document["trials"]
    assert any("family" in note for note in done.training["notes"])
    ort.InferenceSession(tmp_path / "out" / "model.onnx")


Refused = Callable[..., str]


@pytest.fixture
def refused(compress: Compress, digits_npz: Path, tmp_path: Path) -> Refused:
    """Run the verb with something wrong; return the message and its remedy."""

    def run(model: str | Path, *arguments: str | Path) -> str:
        limits = ("--time-limit", "6", "--trials", "1")
        done = compress(tmp_path / "out", model, "--data", digits_npz, *limits, *arguments)
        assert done.code == 2, done.document
        error = done.document["error"]
        assert not (tmp_path / "out" / "model.onnx").exists()
        return f"{error['message']}. {error['remedy']}"

    return run


def test_an_operation_without_onnx_form_is_named(refused: Refused, here: Path) -> None:
    assert "svd" in refused("torch_module_of_test:odd")


def test_a_factory_that_raises_is_quoted(refused: Refused, here: Path) -> None:
    said = refused("torch_module_of_test:broken")
    assert "weights.pt is not there" in said
    assert "torch_module_of_test:broken" in said


def test_weights_alone_are_no_module(refused: Refused, here: Path) -> None:
    assert "state dict" in refused("torch_module_of_test:weights")


def test_a_module_that_does_not_exist(refused: Refused, here: Path) -> None:
    assert "nobody" in refused("torch_module_of_test:nobody")
    assert "no_such_module_of_test" in refused("no_such_module_of_test:make")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--recipe", "mine:recipe"), "--recipe"),
        (("--teacher", "other.onnx"), "--teacher"),
        (("--engine", "ray"), "--engine"),
        (("--workers", "2"), "--workers"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_words_about_training_need_training_data(
    refused: Refused, digits_model: Path, arguments: tuple[str, ...], expected: str
) -> None:
    said = refused(digits_model, *arguments)
    assert expected in said
    assert "--train" in said


def test_an_unknown_engine_is_refused(refused: Refused, digits_model: Path, training_npz: Path) -> None:
    assert "'slurm'" in refused(digits_model, "--train", training_npz, "--engine", "slurm")


def test_no_workers_are_refused(refused: Refused, digits_model: Path, training_npz: Path) -> None:
    assert "--workers is 0" in refused(digits_model, "--train", training_npz, "--workers", "0")


def test_training_data_that_is_certified_too_is_refused(
    refused: Refused, digits_model: Path, digits_npz: Path
) -> None:
    said = refused(digits_model, "--train", digits_npz)
    assert "0 rows are left to train on" in said
    assert "differs" in said


def test_training_data_of_another_shape_is_refused(refused: Refused, digits_model: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "large.npz", x=np.zeros((80, 1, 9, 9), np.float32), y=np.arange(80) % 10)
    said = refused(digits_model, "--train", tmp_path / "large.npz")
    assert "9" in said
    assert "8" in said


def test_training_data_that_is_missing_is_named(refused: Refused, digits_model: Path, tmp_path: Path) -> None:
    assert "nowhere.npz" in refused(digits_model, "--train", tmp_path / "nowhere.npz")


def test_a_teacher_of_other_inputs_is_refused(
    refused: Refused, digits_model: Path, training_npz: Path, tmp_path: Path
) -> None:
    text = "g (float[n,4] other) => (float[n,10] y) { y = MatMul(other, w) }"
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    model.graph.initializer.append(numpy_helper.from_array(np.ones((4, 10), np.float32), "w"))
    onnx.save(model, tmp_path / "teacher.onnx")
    said = refused(digits_model, "--train", training_npz, "--teacher", tmp_path / "teacher.onnx")
    assert "teacher.onnx" in said
    assert "other" in said
    assert "image" in said


def test_a_teacher_of_other_answers_is_refused(
    refused: Refused, digits_model: Path, training_npz: Path, tmp_path: Path
) -> None:
    text = "g (float[n,1,8,8] image) => (float[n,3] y) { f = Flatten(image)\n y = MatMul(f, w) }"
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    model.graph.initializer.append(numpy_helper.from_array(np.ones((64, 3), np.float32), "w"))
    onnx.save(model, tmp_path / "teacher.onnx")
    said = refused(digits_model, "--train", training_npz, "--teacher", tmp_path / "teacher.onnx")
    assert "teacher.onnx" in said


@pytest.mark.parametrize(("name", "expected"), [("bad_recipe", "schedule"), ("wrong_recipe", "epoch")])
def test_a_recipe_with_a_mistake_is_told_before_any_training(
    refused: Refused, here: Path, digits_model: Path, training_npz: Path, name: str, expected: str
) -> None:
    said = refused(digits_model, "--train", training_npz, "--recipe", f"torch_module_of_test:{name}")
    assert expected in said
    assert name in said
