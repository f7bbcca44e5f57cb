"""`edgewright serve` as people start it, and `edgewright fleet` asking it: addresses, tokens, exit codes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import urllib3
from tests.unit.server.live_server import make_ground

from edgewright.cli import api_client
from edgewright.cli.commands import serve
from edgewright.cli.main import main


@dataclass(frozen=True)
class Served:
    """A control plane in a process of its own."""

    process: subprocess.Popen[str]
    state: Path
    page: str
    token: str


def start(state: Path, *options: str) -> "subprocess.Popen[str]":
    command = [
        sys.executable,
        "-m",
        "edgewright",
        "serve",
        "--state",
        str(state),
        "--port",
        "0",
        "--json",
        *options,
    ]
    environment = {**os.environ, "EDGEWRIGHT_LOG": "WARNING"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )


def greeting(process: "subprocess.Popen[str]") -> Any:
    """The object that it prints once it answers."""
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        if line == "}\n":
            return json.loads(text)
    raise AssertionError(process.communicate()[1])


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    state = tmp_path_factory.mktemp("served") / "state"
    state.mkdir(mode=0o700)
    make_ground(state)
    process = start(state)
    try:
        told = greeting(process)
        yield Served(process, state, told["page"], told["token"])
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == 0, "a signal ends it well"


@pytest.fixture
def near(served: Served, monkeypatch: pytest.MonkeyPatch) -> Served:
    """The environment of somebody who has its address and a token."""
    monkeypatch.setenv(api_client.SERVER_VARIABLE, served.page)
    monkeypatch.setenv(api_client.TOKEN_VARIABLE, served.token)
    monkeypatch.setattr(api_client, "_STARTING_SECONDS", 0.2)
    return served


def said(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_it_tells_where_it_is_and_a_token_that_works(served: Served) -> None:
    assert served.page.startswith("http://127.0.0.1:")
    assert urllib3.request("GET", f"{served.page}/healthz", retries=False).status == 200
    headers = {"Authorization": f"Bearer {served.token}"}
    assert urllib3.request("GET", f"{served.page}/api/users", headers=headers, retries=False).status == 200
    page = urllib3.request("GET", f"{served.page}/", retries=False, redirect=False)
    assert page.headers["location"].startswith("/login")


def test_what_holds_the_token_and_the_database_is_its_owner_s_alone(served: Served) -> None:
    for name in ("operator.json", "fleet.db"):
        assert (served.state / name).stat().st_mode & 0o077 == 0, name


@pytest.mark.parametrize("how", ["environment", "folder", "option"])
def test_the_fleet_is_asked_by_address_or_by_folder(
    near: Served, how: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"environment": [], "folder": ["--fleet", str(near.state)], "option": ["--server", near.page + "/"]}
    if how != "environment":
        monkeypatch.delenv(api_client.SERVER_VARIABLE)
    if how == "folder":
        monkeypatch.delenv(api_client.TOKEN_VARIABLE)
    assert main(["fleet", "status", "--json", *options[how]]) == 0
    shown = said(capsys)["fleet"]
    assert (shown["devices"], shown["rollouts"][0]["rollout"]) == (0, "r")


def test_people_read_what_programs_parse(near: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fleet", "status"]) == 0
    assert "0 devices" in capsys.readouterr().out
    assert main(["fleet", "devices"]) == 0
    assert "last check-in" in capsys.readouterr().out
    assert main(["fleet", "alerts"]) == 0
    assert main(["fleet", "approvals"]) == 0


def test_invitations_and_tokens_are_made_and_made_void(near: Served, capsys: pytest.CaptureFixture[str]) -> None:
    invite = ["fleet", "invite", "--device-class", "camera", "--label", "site=b", "--count", "2", "--json"]
    assert main(invite) == 0
    assert len(set(said(capsys)["tokens"])) == 2
    assert main(["fleet", "token", "ci", "--role", "viewer", "--json"]) == 0
    (secret,) = said(capsys)["tokens"]
    viewer = {"Authorization": f"Bearer {secret}"}
    assert urllib3.request("GET", f"{near.page}/api/fleet", headers=viewer, retries=False).status == 200
    assert main(["fleet", "token", "ci", "--retire"]) == 0
    assert urllib3.request("GET", f"{near.page}/api/fleet", headers=viewer, retries=False).status == 401


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["silence", "drift", "--device-class", "camera"], "no alert"),
        (["silence", "drift", "--for", "-3"], "for_seconds"),
        (["device", "nobody"], "no device"),
        (["retire", "nobody"], "no device"),
        (["devices", "--limit", "5000"], "limit"),
        (["invite", "--count", "0"], "0 tokens"),
        (["token", "a/../b"], "no name"),
        (["token", "--retire", "nobody"], "no token"),
        (["approve", "nothing"], ""),
    ],
)
def test_what_is_wrong_is_told_with_exit_code_2(
    near: Served, command: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fleet", *command]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("token", "words"),
    [
        ("ew_token_" + "A" * 43, "does not know the token"),
        ("", "no token"),
        ("a\nb", "what no token does"),
        ("\u00e9", "what no token does"),
        ("a b", "what no token does"),
    ],
)
def test_a_wrong_token_is_the_asker_s_to_mend(
    near: Served, token: str, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(api_client.TOKEN_VARIABLE, token)
    assert main(["fleet", "status"]) == 2
    told = capsys.readouterr().err
    assert words in told
    assert "Traceback" not in told


def test_what_a_role_may_not_is_told(
    near: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fleet", "token", "looker", "--role", "viewer", "--json"]) == 0
    monkeypatch.setenv(api_client.TOKEN_VARIABLE, said(capsys)["tokens"][0])
    assert main(["fleet", "status"]) == 0
    assert main(["fleet", "invite"]) == 2
    assert "may not invite devices" in capsys.readouterr().err


def test_a_server_that_is_gone_is_nobody_s_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(api_client.SERVER_VARIABLE, "http://127.0.0.1:9")
    monkeypatch.setenv(api_client.TOKEN_VARIABLE, "t")
    assert main(["fleet", "status", "--json"]) == 1
    assert "cannot be reached" in capsys.readouterr().out
    assert main(["fleet", "status"]) == 1
    assert "cannot be reached" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("status", "headers", "body", "code"),
    [
        (302, {"Location": "http://127.0.0.1:9/"}, b"", 1),
        (200, {}, b"<html>", 1),
        (200, {}, b"[]", 1),
        (500, {}, b"<html>", 1),
        (503, {}, b'{"code":"unavailable","message":"the database does not answer","remedy":"Later."}', 1),
        (403, {}, b'{"code":"forbidden","message":"no","remedy":""}', 2),
        (418, {}, b"\xff\xfe", 1),
    ],
)
def test_whatever_answers_there_is_told_in_words(
    status: int,
    headers: dict[str, str],
    body: bytes,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    seen: list[str] = []

    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.path)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Other)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        monkeypatch.setenv(api_client.SERVER_VARIABLE, f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv(api_client.TOKEN_VARIABLE, "t")
        assert main(["fleet", "status"]) == code
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()
    assert seen == ["/api/fleet"], "a token goes nowhere else"
    told = capsys.readouterr().err
    assert told
    assert "Traceback" not in told


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--host", "203.0.113.1"], "cannot be listened on"),
        (["--tls", "a,b"], "no two files"),
        (["--proxies", "-1"], "--proxies is -1"),
        (["--repo", "/nowhere"], "there is no repository"),
        (["--database", "mysql://x"], "no database known here"),
        (["--root", "/nowhere"], "cannot be read"),
    ],
)
def test_what_cannot_be_served_is_told_with_exit_code_2(
    ground: Path,
    tmp_path: Path,
    options: list[str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    state = tmp_path / "state"
    shutil.copytree(ground, state)
    monkeypatch.setattr(serve, "_log", lambda: None)  # it is for a process of its own
    assert main(["serve", "--state", str(state), "--port", "0", *options]) == 2
    told = capsys.readouterr().err
    assert words in told
    assert "Traceback" not in told


def test_a_level_of_the_log_that_is_none_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDGEWRIGHT_LOG", "loud")
    assert main(["serve", "--state", str(tmp_path)]) == 2
    assert "EDGEWRIGHT_LOG is 'LOUD'" in capsys.readouterr().err


def test_a_second_one_shows_no_token_and_keeps_the_first(ground: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    shutil.copytree(ground, state)
    tokens = []
    for _ in range(2):
        process = start(state)
        tokens.append(greeting(process)["token"])
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
        assert process.returncode == 0
    assert tokens[0]
    assert tokens[1] is None
    assert json.loads((state / "operator.json").read_bytes())["token"] == tokens[0]
