import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edgewright.compress.certify.look_ledger import LookLedger, state_folder
from edgewright.contract.errors import InputError, OutputError

LOOK = """
import sys
from pathlib import Path
from edgewright.compress.certify.look_ledger import LookLedger
ledger = LookLedger(Path(sys.argv[1]))
for i in range(40):
    ledger.look("data", "accuracy", f"{sys.argv[2]}-{i}")
"""

DIE_IN_WRITE = """
import json, os, signal, sys
from pathlib import Path
from edgewright.compress.certify.look_ledger import LookLedger
def dump(content, file, **_):
    file.write('{"schema": 2, "lo')
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
json.dump = dump
LookLedger(Path(sys.argv[1])).look("data", "accuracy", "b")
"""


def test_candidates_are_numbered_per_data_and_metric_and_the_same_one_keeps_its_number(tmp_path: Path) -> None:
    ledger = LookLedger(tmp_path / "not" / "there" / "yet")
    assert [ledger.look("data", "accuracy", name) for name in "abacb"] == [1, 2, 1, 3, 2]
    assert ledger.look("data", "f1", "z") == 1
    assert ledger.look("other data", "accuracy", "z") == 1
    assert LookLedger(ledger.folder).look("data", "accuracy", "d") == 4


def test_two_processes_at_once_lose_no_look(tmp_path: Path) -> None:
    running = [subprocess.Popen([sys.executable, "-c", LOOK, str(tmp_path), name]) for name in "ab"]
    assert [process.wait(timeout=60) for process in running] == [0, 0]
    seen = json.loads((tmp_path / "looks.json").read_text())["looks"]["data:accuracy"]
    assert sorted(seen) == sorted(f"{name}-{i}" for name in "ab" for i in range(40))
    for name in "ab":
        own = [entry for entry in seen if entry.startswith(name)]
        assert own == [f"{name}-{i}" for i in range(40)]


def test_a_kill_in_the_middle_of_a_write_leaves_the_ledger_whole_and_unlocked(tmp_path: Path) -> None:
    ledger = LookLedger(tmp_path)
    ledger.look("data", "accuracy", "a")
    died = subprocess.run([sys.executable, "-c", DIE_IN_WRITE, str(tmp_path)], timeout=60, check=False)
    assert died.returncode == -signal.SIGKILL
    assert ledger.look("data", "accuracy", "a") == 1
    assert ledger.look("data", "accuracy", "c") == 2


@pytest.mark.parametrize(
    "content",
    ["", '{"schema": 2, "lo', "[]", '{"schema": 1, "looks": {}}', '{"schema": 2, "looks": {"a": 3}}', "\x00\x01"],
)
def test_a_damaged_ledger_is_an_error_and_is_left_as_it_is(tmp_path: Path, content: str) -> None:
    (tmp_path / "looks.json").write_text(content)
    with pytest.raises(InputError, match=r"looks\.json is damaged.*Restore"):
        LookLedger(tmp_path).look("data", "accuracy", "a")
    assert (tmp_path / "looks.json").read_text() == content


def test_a_ledger_that_is_not_text_is_damaged_too(tmp_path: Path) -> None:
    (tmp_path / "looks.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="damaged"):
        LookLedger(tmp_path).look("data", "accuracy", "a")


def test_a_folder_that_cannot_be_made_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="EDGEWRIGHT_STATE"):
        LookLedger(tmp_path / "file" / "state").look("data", "accuracy", "a")


def test_the_state_folder_follows_the_environment() -> None:
    assert state_folder({"EDGEWRIGHT_STATE": "/s", "XDG_STATE_HOME": "/x"}) == Path("/s")
    assert state_folder({"XDG_STATE_HOME": "/x"}) == Path("/x/edgewright")
    assert state_folder({"XDG_STATE_HOME": "relative"}) == Path.home() / ".local/state/edgewright"
    assert state_folder(dict.fromkeys(os.environ, "")) == Path.home() / ".local/state/edgewright"
