"""From a compressed model to a device that answers, by the commands that the issue of shipping promises."""

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgewright.cli.main import main
from edgewright.contract.errors import EdgewrightError, InputError, WorkError
from edgewright.trust.keys import signing_keys

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(signing_keys, "_SCRYPT_N", 2**4)
    monkeypatch.setenv("EDGEWRIGHT_PASSPHRASE", "correct horse battery staple")

    def said(*arguments: object, code: int = 0) -> dict[str, Any]:
        capsys.readouterr()
        found = main([*map(str, arguments), "--json"])
        shown = capsys.readouterr()
        assert found == code, shown
        document: dict[str, Any] = json.loads(shown.out)
        return document

    return said


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "REPO").mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "REPO")))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


class Places:
    """Where the commands work."""

    def __init__(self, path: Path) -> None:
        self.state, self.samples = path / "STATE", path / "x.npz"
        self.signing = ("--keys", path / "KEYS", "--repo", path / "REPO")
        self.root = path / "REPO/metadata/1.root.json"


@pytest.fixture
def places(tmp_path: Path, url: str, run: Run, digits_model: Path, digits: dict[str, NDArray[Any]]) -> Places:
    made = Places(tmp_path)
    run("keys", "init", *made.signing)
    run("publish", digits_model, "--name", "digits", "--version", "1.0.0", *made.signing)
    run("rollout", "start", "digits==1.0.0", "--device-class", "default", "--fraction", "1.0", *made.signing)
    run("device", "enrol", "--repo", url, "--root", made.root, "--device-class", "default", "--state", made.state)
    np.savez(made.samples, image=digits["x"][:3])
    return made


def test_a_device_runs_what_was_published(
    run: Run, places: Places, digits: dict[str, NDArray[Any]], digits_model: Path
) -> None:
    import onnxruntime as ort

    done = run("device", "run", "--once", "--state", places.state)
    assert (done["version"], done["state"], done["last_refusal"]) == ("1.0.0", "probation", None)
    answered = run("device", "predict", "--state", places.state, "--input", places.samples)
    assert (answered["version"], answered["rejections"]) == ("1.0.0", [None] * 3)
    session = ort.InferenceSession(digits_model, providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"image": digits["x"][:3]})
    found = np.concatenate([next(iter(outputs.values())) for outputs in answered["outputs"]])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    status = run("device", "status", "--state", places.state)
    assert {"version", "digest", "state", "last_refusal"} <= set(status)
    assert status["digest"]
    assert run("repo", "check", *places.signing)["check"]["faults"] == []


def test_a_bad_input_is_rejected_and_nothing_breaks(run: Run, places: Places, tmp_path: Path) -> None:
    run("device", "run", "--once", "--state", places.state)
    np.savez(tmp_path / "bad.npz", image=np.full((1, 1, 8, 8), np.nan, np.float32))
    answered = run("device", "predict", "--state", places.state, "--input", tmp_path / "bad.npz", code=1)
    assert answered["rejections"][0]["check"] == "not finite"
    run("device", "predict", "--state", places.state, "--input", places.samples)


def test_a_rollout_is_staged_paused_and_taken_back(run: Run, places: Places, digits_model: Path) -> None:
    run("device", "run", "--once", "--state", places.state)
    run("publish", digits_model, "--name", "digits", "--version", "1.1.0", *places.signing)
    plan = run("rollout", "start", "digits==1.1.0", "--stages", "0,1", *places.signing)["rollout"]
    assert [stage["fraction"] for stage in plan["stages"]] == [0.0, 1.0]
    done = run("device", "run", "--once", "--seconds", 0, "--state", places.state)
    assert (done["version"], done["proven"]) == ("1.0.0", "1.0.0")
    for act, state in (("pause", "paused"), ("resume", "running"), ("advance", "running")):
        assert run("rollout", act, "digits", *places.signing)["rollout"]["state"] == state
    assert run("device", "run", "--once", "--state", places.state)["trial"] == "1.1.0"
    assert run("rollout", "status", "digits", *places.signing)["rollout"]["stage"] == 1
    run("rollout", "abort", "digits", *places.signing)
    back = run("device", "run", "--once", "--state", places.state, code=1)
    assert back["trial"] is None
    done = run("rollout", "rollback", "digits==1.0.0", *places.signing)
    assert (done["release"], done["landed"]) == ("digits==1.1.1", True)
    assert run("device", "run", "--once", "--state", places.state)["version"] == "1.1.1"


def test_a_ceremony_with_two_keys(run: Run, url: str, tmp_path: Path, digits_model: Path) -> None:
    signing = ("--keys", tmp_path / "KEYS", "--repo", tmp_path / "REPO")
    run("keys", "init", *signing, "--offline", 2, "--threshold", 2)
    done = run("publish", digits_model, "--name", "digits", "--version", "1.0.0", "--stage", *signing)
    assert done["landed"] is False
    refused = run("repo", "sign", "releases", *signing, code=2)
    assert "not confirmed" in refused["error"]["message"]
    signed = run("repo", "sign", "releases", "--yes", *signing)
    assert any("releases/digits/1.0.0.json" in change for change in signed["changes"])
    assert signed["waiting"] == {}
    assert run("repo", "staged", *signing)["changes"] == signed["changes"]
    assert run("repo", "refresh", *signing)["landed"] is True
    assert run("repo", "discard", *signing)["discarded"] == 0
    run("keys", "rotate", "online", *signing)
    run("keys", "add", "releases", "--name", "third", *signing)
    shown = run("keys", "show", *signing)
    assert shown["thresholds"] == {"root": 2, "releases": 2, "online": 1}
    assert {key["name"] for key in shown["keys"] if "releases" in key["counts_for"]} >= {"third"}
    assert run("repo", "check", *signing)["check"]["faults"] == []


def test_a_policy_is_set_and_kept(run: Run, places: Places, digits_model: Path) -> None:
    changed = run("policy", "set", "digits", "--min-version", "1.0.0", "--max-stage-step", 0.5, *places.signing)[
        "policy"
    ]
    assert (changed["revision"], changed["min_version"], changed["max_stage_step"]) == (2, "1.0.0", 0.5)
    refused = run("rollout", "start", "digits==1.0.0", "--fraction", 1.0, *places.signing, code=2)
    assert "the policy forbids it" in refused["error"]["message"]
    assert run("policy", "show", "digits", *places.signing)["policy"] == changed
    denied = run("policy", "set", "digits", "--deny", "1.0.0", *places.signing)["policy"]
    assert len(denied["denied_manifests"]) == 1
    assert run("policy", "set", "digits", *places.signing, code=2)["error"]["code"] == "invalid_input"


WRONG: dict[str, tuple[tuple[str, ...], str]] = {
    "no such release": (("rollout", "start", "digits==9", "--fraction", "1"), "not published"),
    "no fraction": (("rollout", "start", "digits==1.0.0"), "--fraction or --stages"),
    "no version": (("rollout", "start", "digits", "--fraction", "1"), "no release"),
    "no rollout": (("rollout", "status", "other"), "no rollout of other"),
    "a path for a name": (("policy", "show", "../x"), "no name"),
    "a rule that is none": (("rollout", "start", "digits==1.0.0", "--fraction", "1", "--rule", "x=y"), "no rule"),
    "nothing staged": (("repo", "sign", "releases", "--yes"), "nothing is staged"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_said_with_a_next_step(run: Run, places: Places, wrong: str) -> None:
    arguments, message = WRONG[wrong]
    error = run(*arguments, *places.signing, code=2)["error"]
    assert message in error["message"]
    assert error["remedy"]


def test_an_old_copy_of_the_repository_is_not_signed_anew(
    run: Run, places: Places, tmp_path: Path, digits_model: Path
) -> None:
    shutil.copytree(tmp_path / "REPO", tmp_path / "OLD")
    run("publish", digits_model, "--name", "digits", "--version", "1.1.0", *places.signing)
    run("rollout", "status", "digits", *places.signing)
    shutil.rmtree(tmp_path / "REPO")
    shutil.copytree(tmp_path / "OLD", tmp_path / "REPO")
    error = run("repo", "refresh", *places.signing, code=1)["error"]
    assert "saw it last" in error["message"]


@pytest.mark.parametrize(("error", "stays"), [(InputError, False), (WorkError, True)])
def test_a_new_key_is_removed_only_if_it_cannot_count_yet(
    run: Run,
    places: Places,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: type[EdgewrightError],
    stays: bool,
) -> None:
    """A store that fails after the root has landed must not cost the key that the root names."""

    def fails(*_: object, **__: object) -> None:
        raise error("no", remedy="none")

    monkeypatch.setattr("edgewright.cli.commands.keys.change_keys", fails)
    run("keys", "rotate", "online", "--name", "new", *places.signing, code=1 if stays else 2)
    assert (tmp_path / "KEYS/new.key.json").exists() is stays


def test_a_second_repository_is_not_made_on_top(run: Run, places: Places) -> None:
    assert "is a repository already" in run("keys", "init", *places.signing, code=2)["error"]["message"]


def test_a_device_that_was_enrolled_is_not_enrolled_again(run: Run, places: Places, url: str) -> None:
    again = run("device", "enrol", "--repo", url, "--root", places.root, "--state", places.state, code=2)
    assert "is not empty" in again["error"]["message"]
