import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.unit.profiling.conftest import Sshd

from edgewright.cli.main import main
from edgewright.contract.errors import CandidateError, TargetError
from edgewright.profiling.latency import LatencyResult, Workload, measure_latency, paired_ratio
from edgewright.profiling.memory import measure_memory
from edgewright.profiling.target import open_target, query_machine
from edgewright.profiling.workload import pack_workloads
from edgewright.runtime.options import RuntimeOptions

Make = Callable[..., Workload]


def _children(pid: int) -> list[int]:
    shown = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in shown.stdout.split()]


def _processes_naming(text: str) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if text.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def test_the_target_describes_itself(sshd: Sshd) -> None:
    here, there = query_machine(open_target("local")), query_machine(sshd.target)
    assert there == here
    assert sshd.left_behind() == []


def test_models_are_measured_there_and_nothing_is_left(sshd: Sshd, subject: Make) -> None:
    small, large = measure_latency(sshd.target, [subject(16), subject(512)], seconds=0.4)
    assert isinstance(small, LatencyResult)
    assert isinstance(large, LatencyResult)
    ratio = paired_ratio(small, large)
    assert ratio.high is not None
    assert ratio.high < 1
    assert measure_memory(sshd.target, subject(512)).process_peak.value > 1e6
    assert sshd.left_behind() == []


def test_compress_is_driven_by_what_is_measured_there(
    sshd: Sshd,
    digits_model: Path,
    digits_npz: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EDGEWRIGHT_STATE", str(tmp_path / "state"))
    command = ["compress", str(digits_model), "--data", str(digits_npz), "--on", sshd.target.name, "--json"]
    assert main([*command, "--trials", "2", "--time-limit", "20", "--out", str(tmp_path / "out")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["chosen"]["latency_p50_ms"]["origin"]["kind"] == "measured"
    assert report["chosen"]["size_bytes"]["value"] < report["original"]["size_bytes"]["value"]
    assert sshd.left_behind() == []


def test_the_command_profiles_there(sshd: Sshd, subject: Make, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["profile", str(subject(64).model), "--on", sshd.target.name, "--seconds", "0.3", "--json"]
    assert main(command) == 0
    profile = json.loads(capsys.readouterr().out)
    assert profile["target"] == sshd.target.name
    assert profile["model"]["latency_p50_ms"]["value"] > 0
    assert sshd.left_behind() == []


def test_external_data_travels_with_the_model(sshd: Sshd, external: Path) -> None:
    feed = {"x": np.ones((1, 64), np.float32)}
    (result,) = measure_latency(sshd.target, [Workload("m", external, RuntimeOptions(), feed)], seconds=0.1)
    assert isinstance(result, LatencyResult)


def test_a_model_that_does_not_load_is_reported_by_label(sshd: Sshd, subject: Make, lacking_op: Path) -> None:
    feed = {"x": np.ones((1, 16), np.float32)}
    bad = Workload("bad", lacking_op, RuntimeOptions(), feed)
    good, failure = measure_latency(sshd.target, [subject(16), bad], seconds=0.2)
    assert isinstance(good, LatencyResult)
    assert isinstance(failure, CandidateError)
    assert "bad" in failure.message
    assert "NoSuchThing" in failure.message


def test_a_wrong_port_says_so(sshd: Sshd) -> None:
    with pytest.raises(TargetError, match=r"refused.*Check the port"):
        query_machine(open_target("ssh://127.0.0.1:1"))


def test_an_unknown_host_key_says_so(sshd: Sshd) -> None:
    sshd.known_hosts.write_text("")
    with pytest.raises(TargetError, match=r"Host key verification failed.*confirm the host key"):
        query_machine(sshd.target)


def test_a_refused_key_says_so(sshd: Sshd) -> None:
    (sshd.known_hosts.parent / "authorized_keys").write_text("")
    with pytest.raises(TargetError, match=r"Permission denied.*authorized_keys"):
        query_machine(sshd.target)


def test_a_missing_python_says_so(sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEWRIGHT_SSH_PYTHON", "python-that-is-not-there")
    with pytest.raises(TargetError, match=r"python-that-is-not-there was not found there.*Install Python"):
        query_machine(sshd.target)
    assert sshd.left_behind() == []


@pytest.mark.parametrize("library", ["onnxruntime", "numpy"])
def test_a_missing_library_says_so(
    sshd: Sshd, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, subject: Make, library: str
) -> None:
    blocked = tmp_path / "blocked.py"
    blocked.write_text(f"import runpy, sys\nsys.modules[{library!r}] = None\nsys.argv = sys.argv[1:]\n"
                       "runpy.run_path(sys.argv[0], run_name='__main__')\n")  # fmt: skip
    shim = tmp_path / "python3"
    shim.write_text(f'#!/bin/sh\nexec {sys.executable} {blocked} "$@"\n')
    shim.chmod(0o755)
    monkeypatch.setenv("EDGEWRIGHT_SSH_PYTHON", str(shim))
    with pytest.raises(TargetError, match=rf"{library}.*pip install numpy onnxruntime"):
        measure_memory(sshd.target, subject(16))
    assert sshd.left_behind() == []


def test_a_timeout_ends_the_work_there_too(sshd: Sshd, subject: Make) -> None:
    with pack_workloads([subject(16)]) as bundle, pytest.raises(TargetError, match="longer than 1 s"):
        sshd.target.run(
            {"action": "sustained", "workloads": bundle.workloads, "seconds": 30}, bundle.files, timeout_seconds=1
        )
    assert sshd.left_behind() == []
    assert _processes_naming(str(sshd.folder)) == []


@pytest.mark.parametrize("action", ["sustained", "contention"])
def test_a_lost_connection_leaves_no_folder_and_no_process(sshd: Sshd, subject: Make, action: str) -> None:
    """The session's sshd is killed in the middle, as if the cable were pulled."""
    raised: list[Exception] = []

    def measure() -> None:
        with pack_workloads([subject(16)]) as bundle:
            request = {"action": action, "workloads": bundle.workloads, "seconds": 60}
            try:
                sshd.target.run(request, bundle.files, timeout_seconds=60)
            except TargetError as error:
                raised.append(error)

    thread = threading.Thread(target=measure)
    thread.start()
    until = time.monotonic() + 20
    while not _processes_naming(f"{sshd.folder}/edgewright") and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(0.7)
    assert _processes_naming(f"{sshd.folder}/edgewright")
    for child in _children(sshd.process.pid):
        for grandchild in _children(child):
            if "sshd" in Path(f"/proc/{grandchild}/comm").read_text():
                os.kill(grandchild, signal.SIGKILL)
        os.kill(child, signal.SIGKILL)
    thread.join(timeout=20)
    assert not thread.is_alive()
    assert "connection was lost" in str(raised[0])
    assert sshd.left_behind() == []
    assert _processes_naming(str(sshd.folder)) == []


@pytest.fixture
def full_disk(sshd: Sshd) -> Iterator[Path]:
    """Mount a disk of 64 KB where the sessions keep temporary files."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(sshd.folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a small disk needs root and the right to mount")
    yield sshd.folder
    subprocess.run(["umount", str(sshd.folder)], check=True)


def test_a_full_disk_there_says_so(sshd: Sshd, full_disk: Path, subject: Make) -> None:
    with pytest.raises(TargetError, match=r"disk is full there.*Free space"):
        measure_memory(sshd.target, subject(512))
    assert sshd.left_behind() == []


def test_no_ssh_client_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TargetError, match=r"OpenSSH client is missing.*openssh-client"):
        query_machine(open_target("ssh://127.0.0.1"))
