"""`edgewright compress` from end to end on the handwritten digits, and what it says to bad input."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgewright.cli.main import main

Digits = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Done:
    """A finished run.

    Attributes:
        code: Its exit code.
        document: The JSON on stdout.
        stderr: What it said besides.
        out: Its folder.
    """

    code: int
    document: dict[str, Any]
    stderr: str
    out: Path


def compress(out: Path, *arguments: str | Path, json_too: bool = True) -> Done:
    """Run the verb in this process; stdout must hold one JSON document and nothing else."""
    stdout, stderr = io.StringIO(), io.StringIO()
    given = ["compress", *map(str, arguments), "--out", str(out), *(["--json"] if json_too else [])]
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        code = main(given)
    text = stdout.getvalue()
    document = json.loads(text) if json_too else {"text": text}
    assert "Traceback" not in stderr.getvalue()
    return Done(code, document, stderr.getvalue(), out)


@pytest.fixture(scope="session", autouse=True)
def _no_earlier_looks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the ledger of looks apart from that of the person who runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session")
def original(digits_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the example's model, to see that it stays as it is."""
    path = tmp_path_factory.mktemp("original") / "digits.onnx"
    path.write_bytes(digits_model.read_bytes())
    return path


@pytest.fixture(scope="session")
def finished(original: Path, digits_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """One run that succeeds."""
    out = tmp_path_factory.mktemp("finished") / "out"
    return compress(out, original, "--data", digits_npz, "--time-limit", "9", "--trials", "9")


@pytest.fixture(scope="session")
def insufficient(original: Path, digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """One run whose data proves nothing."""
    folder = tmp_path_factory.mktemp("insufficient")
    np.savez(folder / "few.npz", x=digits["x"][:60], y=digits["y"][:60])
    return compress(folder / "out", original, "--data", folder / "few.npz", "--time-limit", "4", "--trials", "3")


@pytest.fixture(scope="session")
def impossible(original: Path, digits_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """One run whose budget cannot be met."""
    out = tmp_path_factory.mktemp("impossible") / "out"
    limits = ["--max-size", "1KB", "--time-limit", "4", "--trials", "4"]
    return compress(out, original, "--data", digits_npz, *limits)


FIGURES = ("size_bytes", "latency_p50_ms", "latency_p95_ms", "peak_memory_bytes", "energy_mj")


@pytest.mark.parametrize("run", ["finished", "insufficient", "impossible"])
def test_the_json_has_its_fixed_form_whatever_came_of_it(run: str, request: pytest.FixtureRequest) -> None:
    document = request.getfixturevalue(run).document
    assert document["schema"] == 2
    for model in (document["original"], document["chosen"]):
        assert isinstance(model["path"], str)
        for name in FIGURES:
            figure = model[name]
            assert figure["value"] > 0, name
            assert figure["unit"]
            assert figure["origin"]["kind"] in ("measured", "estimated", "computed")
            assert figure["origin"]["method"]
            assert figure["origin"]["machine"]
    assert "recipe" in document["chosen"]
    certificate = document["certificate"]
    assert certificate["verdict"] in ("certified", "refuted", "insufficient data")
    for name in ("original_metric", "chosen_metric", "drop", "upper_bound", "confidence"):
        assert isinstance(certificate[name], float), name
    assert certificate["metric"] == "accuracy"
    assert certificate["sample_count"] > 0
    assert isinstance(document["budget"]["met"], bool)
    assert "binding_limit" in document["budget"]
    assert document["pareto_front"]
    assert Path(document["report_path"]).is_file()
    trials = document["trials"]
    for trial in trials:
        assert trial["recipe"]
        assert trial["reason"]
        assert trial["duration_seconds"] >= 0
        assert trial["seed"] == 0
    numbers = {trial["number"] for trial in trials if trial["on_pareto_front"]}
    assert {trial["number"] for trial in document["pareto_front"]} == numbers


def test_success_is_a_certified_smaller_model_and_exit_code_zero(finished: Done) -> None:
    assert finished.code == 0
    document = finished.document
    assert document["certificate"]["verdict"] == "certified"
    assert document["certificate"]["upper_bound"] <= 0.01
    assert document["certificate"]["confidence"] == 0.95
    assert document["budget"]["met"] is True
    assert document["chosen"]["size_bytes"]["value"] < 0.5 * document["original"]["size_bytes"]["value"]
    assert document["chosen"]["recipe"][0]["step"] == "clean up"


def test_the_folder_holds_model_reports_journal_and_front(finished: Done) -> None:
    names = {path.name for path in finished.out.iterdir()}
    files = {"model.onnx", "profile.json", "report.json", "report.html", "search.journal"}
    assert names == files | {"candidates", "layouts"}
    model = finished.out / "model.onnx"
    assert model.stat().st_size == finished.document["chosen"]["size_bytes"]["value"]
    assert Path(finished.document["chosen"]["path"]) == model
    assert json.loads((finished.out / "report.json").read_text()) == finished.document
    assert (finished.out / "report.html").read_text().startswith("<!doctype html>")
    kept = {path.stem for path in (finished.out / "candidates").iterdir()}
    assert kept == {trial["sha256"][:16] for trial in finished.document["pareto_front"]}


def test_the_printed_snippet_runs_the_chosen_model(finished: Done, digits: Digits) -> None:
    scope: dict[str, Any] = {"image": digits["x"]}
    exec(finished.document["usage_example"], scope)  # noqa: S102 - this is what a person would do with it
    right = float((np.asarray(scope["outputs"][0]).argmax(1) == digits["y"]).mean())
    assert right > 0.9


@pytest.mark.parametrize("run", ["finished", "insufficient", "impossible"])
def test_the_original_is_not_touched(
    run: str, original: Path, digits_model: Path, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue(run)
    assert original.read_bytes() == digits_model.read_bytes()
    assert {path.name for path in original.parent.iterdir()} == {"digits.onnx"}


def test_too_few_samples_return_the_original_byte_for_byte_and_say_how_many_more(
    insufficient: Done, original: Path
) -> None:
    assert insufficient.code == 1
    certificate = insufficient.document["certificate"]
    assert certificate["verdict"] == "insufficient data"
    assert certificate["additional_samples_needed"] > 0
    assert insufficient.document["budget"] | {"limits": {}} == {
        "met": False,
        "binding_limit": "max_drop",
        "limits": {},
    }
    assert (insufficient.out / "model.onnx").read_bytes() == original.read_bytes()
    assert insufficient.document["chosen"]["recipe"] is None


def test_an_impossible_budget_gives_the_closest_candidate_and_what_binds(impossible: Done) -> None:
    assert impossible.code == 1
    document = impossible.document
    assert document["budget"]["met"] is False
    assert document["budget"]["binding_limit"] == "size_bytes"
    assert document["budget"]["limits"]["size_bytes"]["limit"] == 1000
    assert "size" in document["verdict"]
    assert document["certificate"]["verdict"] == "certified"
    complete = [trial for trial in document["trials"] if trial["state"] == "complete"]
    smallest = min(trial["size_bytes"] for trial in complete)
    assert document["chosen"]["size_bytes"]["value"] <= 1.05 * smallest  # equally close: then speed decides


def test_a_finished_search_can_be_resumed(finished: Done, original: Path, digits_npz: Path, tmp_path: Path) -> None:
    """Also from a copy, and although only the front's files were kept."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "search.journal").write_bytes((finished.out / "search.journal").read_bytes())
    count = len(finished.document["trials"])
    more = ["--time-limit", "4", "--trials", str(count), "--resume"]
    again = compress(out, original, "--data", digits_npz, *more)
    assert again.code == 0
    assert [t["title"] for t in again.document["trials"]] == [t["title"] for t in finished.document["trials"]]


def test_people_get_a_summary_and_no_json(original: Path, digits: Digits, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=digits["x"][:60])  # without labels: agreement with the original
    limits = ["--time-limit", "3", "--trials", "2", "--max-drop", "0.5"]
    done = compress(tmp_path / "out", original, "--data", tmp_path / "data.npz", *limits, json_too=False)
    assert done.code == 0
    assert not done.document["text"].startswith("{")
    assert "InferenceSession" in done.document["text"]
    assert "report.html" in done.document["text"]


# Bad input: the exit code, one message with what is wrong and what to do, nothing left behind.


def refused(out: Path, *arguments: str | Path, code: int = 2) -> str:
    done = compress(out, *arguments)
    assert done.code == code
    assert set(done.document) == {"schema", "error"}
    error = done.document["error"]
    assert set(error) == {"code", "message", "remedy"}
    assert error["message"]
    assert error["remedy"]
    assert done.stderr.count("edgewright: error:") == 1
    assert not out.exists() or list(out.iterdir()) == []
    return f"{error['message']}. {error['remedy']}"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def data(tmp_path: Path, digits: Digits) -> Callable[..., Path]:
    """Write the digits with some arrays replaced."""

    def write(**changes: Any) -> Path:
        arrays = {"x": digits["x"][:60], "y": digits["y"][:60]} | changes
        np.savez(tmp_path / "data.npz", **{k: v for k, v in arrays.items() if v is not None})
        return tmp_path / "data.npz"

    return write


def dense(weights: NDArray[Any] | onnx.TensorProto, op: str = "MatMul", domain: str = "") -> onnx.ModelProto:
    tensor = weights if isinstance(weights, onnx.TensorProto) else numpy_helper.from_array(weights, "w")
    graph = helper.make_graph(
        [helper.make_node(op, ["x", "w"], ["y"], domain=domain)],
        "dense",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8])],
        [tensor],
    )
    opsets = [helper.make_opsetid("", 17), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


@pytest.fixture
def model_file(tmp_path: Path) -> Callable[[onnx.ModelProto | bytes], Path]:
    def write(model: onnx.ModelProto | bytes) -> Path:
        path = tmp_path / "bad.onnx"
        path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
        return path

    return write


WriteModel = Callable[[onnx.ModelProto | bytes], Path]
WriteData = Callable[..., Path]


def test_a_truncated_model(out: Path, original: Path, digits_npz: Path, model_file: WriteModel) -> None:
    said = refused(out, model_file(original.read_bytes()[:100_000]), "--data", digits_npz)
    assert "bad.onnx" in said


def test_a_file_that_is_no_model(out: Path, digits_npz: Path, model_file: WriteModel) -> None:
    assert "not an ONNX model" in refused(out, model_file(b"GIF89a" * 50), "--data", digits_npz)


def test_a_model_that_is_missing(out: Path, digits_npz: Path, tmp_path: Path) -> None:
    assert "does not exist" in refused(out, tmp_path / "nowhere.onnx", "--data", digits_npz)


def test_an_operator_that_the_runtime_lacks(out: Path, digits_npz: Path, model_file: WriteModel) -> None:
    model = dense(np.eye(8, dtype=np.float32), "NoSuchThing", "com.example")
    said = refused(out, model_file(model), "--data", digits_npz)
    assert "NoSuchThing" in said
    assert "com.example" in said


def test_external_data_that_is_missing(out: Path, digits_npz: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    weights = dense(np.eye(8, dtype=np.float32))
    onnx.save(weights, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    (tmp_path / "weights.bin").unlink()
    assert "weights.bin" in refused(out, path, "--data", digits_npz)


def test_an_initializer_that_unpacks_to_far_more_than_the_file(
    out: Path, digits_npz: Path, model_file: WriteModel
) -> None:
    bomb = onnx.TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1 << 20, 1 << 20])
    bomb.raw_data = b"\0" * 16
    assert "w" in refused(out, model_file(dense(bomb)), "--data", digits_npz)


def test_weights_that_are_not_numbers(out: Path, digits_npz: Path, model_file: WriteModel) -> None:
    weights = np.eye(8, dtype=np.float32)
    weights[3, 3] = np.nan
    assert "NaN" in refused(out, model_file(dense(weights)), "--data", digits_npz)


def test_data_of_another_shape(out: Path, original: Path, data: WriteData) -> None:
    said = refused(out, original, "--data", data(x=np.zeros((60, 1, 9, 9), np.float32)))
    assert "9" in said
    assert "8" in said


def test_data_of_another_type(out: Path, original: Path, data: WriteData) -> None:
    assert "complex" in refused(out, original, "--data", data(x=np.zeros((60, 1, 8, 8), np.complex64)))


def test_data_that_is_not_finite(out: Path, original: Path, data: WriteData, digits: Digits) -> None:
    samples = digits["x"][:60].copy()
    samples[7, 0, 2, 2] = np.inf
    assert "7" in refused(out, original, "--data", data(x=samples))


def test_one_class_only(out: Path, original: Path, data: WriteData) -> None:
    assert "same class" in refused(out, original, "--data", data(y=np.full(60, 3)))


def test_labels_that_are_missing(out: Path, original: Path, data: WriteData, digits: Digits) -> None:
    assert "60 samples" in refused(out, original, "--data", data(y=digits["y"][:59]))
    labels = digits["y"][:60].astype(np.float32)
    labels[4] = np.nan
    assert "NaN" in refused(out, original, "--data", data(y=labels))
    assert "target" in refused(out, original, "--data", data(), "--label", "target")


def test_labels_out_of_range(out: Path, original: Path, data: WriteData, digits: Digits) -> None:
    said = refused(out, original, "--data", data(y=digits["y"][:60] + 1))
    assert "10" in said
    assert "start at 0" in said or "0 to 9" in said


def test_three_samples(out: Path, original: Path, data: WriteData, digits: Digits) -> None:
    said = refused(out, original, "--data", data(x=digits["x"][:3], y=digits["y"][:3]))
    assert "3 samples" in said
    assert "10" in said


def test_data_that_holds_pickles_is_never_unpickled(out: Path, original: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    np.savez(tmp_path / "trap.npz", x=np.array([Trap()] * 20, object), allow_pickle=True)
    refused(out, original, "--data", tmp_path / "trap.npz")
    assert not (tmp_path / "sprung").exists()


def test_data_that_is_missing_or_of_no_kind(out: Path, original: Path, tmp_path: Path) -> None:
    assert "nowhere.npz" in refused(out, original, "--data", tmp_path / "nowhere.npz")
    (tmp_path / "data.xyz").write_text("?")
    assert "kind" in refused(out, original, "--data", tmp_path / "data.xyz")
    (tmp_path / "broken.npz").write_text("?")
    assert "broken.npz" in refused(out, original, "--data", tmp_path / "broken.npz")


def test_no_data_at_all(out: Path, original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "--data" in refused(out, original)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--max-size", "0KB"], "0KB"),
        (["--max-latency", "0ms"], "0ms"),
        (["--max-size=-5KB"], "-5KB"),
        (["--max-size", "200ms"], "200ms"),
        (["--max-latency", "5 parsecs"], "5 parsecs"),
        (["--max-memory", "20"], "20"),
        (["--max-energy", "2mW"], "2mW"),
        (["--max-drop", "0"], "max_drop is 0"),
        (["--max-drop", "1.5"], "max_drop is 1.5"),
        (["--max-drop", "nan"], "max_drop is nan"),
        (["--min-metric", "nan"], "min_metric is nan"),
        (["--confidence", "1"], "confidence is 1"),
        (["--time-limit", "0"], "--time-limit is 0"),
        (["--time-limit", "inf"], "--time-limit is inf"),
        (["--trials", "0"], "--trials is 0"),
        (["--seed", "-1"], "--seed is -1"),
        (["--on", "moon"], "moon"),
        (["--device-class", "camera"], "camera"),
        (["--metric", "beauty"], "beauty"),
        (["--metric", "r2"], "r2"),
        (["--metric", "no_such_module:score"], "no_such_module"),
        (["--project", "nowhere.toml"], "nowhere.toml"),
        (["--group", "subject"], "subject"),
    ],
    ids=" ".join,
)
def test_impossible_wishes_name_themselves_and_the_way_out(
    out: Path, original: Path, data: WriteData, arguments: list[str], expected: str
) -> None:
    assert expected in refused(out, original, "--data", data(), *arguments)


def test_a_project_file_with_an_unknown_key(out: Path, original: Path, data: WriteData, tmp_path: Path) -> None:
    project = tmp_path / "edgewright.toml"
    project.write_text('[model]\npath = "m.onnx"\n[data]\nsource = "d.npz"\n[search]\nspeed = 11\n')
    said = refused(out, original, "--data", data(), "--project", project)
    assert "speed" in said


def test_usage_that_cannot_be_parsed(original: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for extra in ([], ["--json"]):
        with pytest.raises(SystemExit) as ended:
            main(["compress", str(original), "--max-drop", "little", *extra])
        assert ended.value.code == 2
        said = capsys.readouterr()
        assert "--max-drop" in said.err
        assert (json.loads(said.out)["error"]["code"] == "usage") if extra else said.out == ""


def test_an_unwritable_output_folder(unwritable: Path, original: Path, data: WriteData) -> None:
    said = refused(unwritable, original, "--data", data(), code=1)
    assert str(unwritable) in said
    assert "--out" in said


def test_a_full_output_folder(full_disk: Path, original: Path, data: WriteData) -> None:
    said = refused_by_disk(full_disk / "out", original, "--data", data(), "--time-limit", "4", "--trials", "2")
    assert "No space left" in said
    assert "Free space" in said
    assert not list((full_disk / "out").rglob("*.partial"))
    assert not (full_disk / "out" / "model.onnx").exists()


def refused_by_disk(out: Path, *arguments: str | Path) -> str:
    done = compress(out, *arguments)
    assert done.code == 1
    assert done.document["error"]["code"] == "output_failed"
    assert done.stderr.count("edgewright: error:") == 1
    return f"{done.document['error']['message']}. {done.document['error']['remedy']}"


def test_a_folder_with_something_else_in_it(out: Path, original: Path, data: WriteData) -> None:
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    done = compress(out, original, "--data", data())
    assert done.code == 2
    assert "thesis.tex" in done.document["error"]["message"]
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]


def test_nothing_to_resume(out: Path, original: Path, data: WriteData) -> None:
    assert "no search to resume" in refused(out, original, "--data", data(), "--resume")


def test_resuming_with_another_wish_is_refused(
    finished: Done, original: Path, digits_npz: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "search.journal").write_bytes((finished.out / "search.journal").read_bytes())
    for changed, arguments in (
        ("budget", ["--max-drop", "0.3"]),
        ("seed", ["--seed", "5"]),
        ("metric", ["--metric", "agreement"]),
    ):
        done = compress(out, original, "--data", digits_npz, "--resume", *arguments)
        assert done.code == 2
        assert changed in done.document["error"]["message"]


def test_the_output_folder_must_not_hold_the_model_itself(
    finished: Done, digits_npz: Path, data: WriteData
) -> None:
    """As `compress out/model.onnx` would by default: clearing the earlier run would delete the input."""
    before = (finished.out / "model.onnx").read_bytes()
    done = compress(finished.out, finished.out / "model.onnx", "--data", digits_npz)
    assert done.code == 2
    assert "--out" in done.document["error"]["remedy"]
    assert (finished.out / "model.onnx").read_bytes() == before


def test_an_earlier_run_survives_a_mistake_in_the_next_command(
    finished: Done, original: Path, digits_npz: Path
) -> None:
    before = {path.name for path in finished.out.iterdir()}
    assert compress(finished.out, original, "--data", digits_npz, "--metric", "beauty").code == 2
    assert {path.name for path in finished.out.iterdir()} == before


def test_external_data_is_counted_and_comes_along(digits_model: Path, digits: Digits, tmp_path: Path) -> None:
    model = onnx.load(digits_model)
    path = tmp_path / "in" / "model.onnx"
    path.parent.mkdir()
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=1024)
    np.savez(tmp_path / "few.npz", x=digits["x"][:30], y=digits["y"][:30])  # too few: the original is returned
    done = compress(tmp_path / "out", path, "--data", tmp_path / "few.npz", "--time-limit", "3", "--trials", "2")
    assert done.code == 1
    assert done.document["original"]["size_bytes"]["value"] > 600_000
    assert done.document["original"]["path"] == str(path)
    session = ort.InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])
    right = np.asarray(session.run(None, {"image": digits["x"]})[0]).argmax(1) == digits["y"]
    assert right.mean() > 0.9


def test_an_interrupt_leaves_a_search_that_can_be_resumed(original: Path, digits_npz: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "edgewright", "compress", str(original), "--data", str(digits_npz)]
    command += ["--out", str(out)]
    process = subprocess.Popen(
        [*command, "--time-limit", "60", "--json"],
        env=os.environ | {"XDG_STATE_HOME": str(tmp_path / "state")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    journal = out / "search.journal"
    until = time.monotonic() + 60
    while not (journal.exists() and journal.read_bytes().count(b'"record"') >= 2):
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 130, stderr
    assert json.loads(stdout)["error"]["code"] == "interrupted"
    assert "--resume" in stderr
    assert "Traceback" not in stderr
    assert not (out / "model.onnx").exists()
    earlier = journal.read_bytes().count(b'"record"')
    more = ["--time-limit", "4", "--trials", str(earlier), "--resume"]
    done = compress(out, original, "--data", digits_npz, *more)
    assert done.code in (0, 1)
    assert len(done.document["trials"]) == earlier
    assert (out / "model.onnx").exists()
