import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgewright.contract.errors import CandidateError, InputError, TargetError
from edgewright.profiling.latency import Workload
from edgewright.profiling.memory import measure_memory
from edgewright.profiling.target import LocalTarget, Machine, open_target, query_machine
from edgewright.profiling.workload import pack_workloads

Make = Callable[..., Workload]


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "remote",
        "ssh://",
        "ssh://host:0",
        "ssh://host:65536",
        "ssh://host:22:22",
        "ssh://-oProxyCommand=touch",
        "ssh://-user@host",
        "ssh://user@",
        "ssh://host/path",
        "http://host",
        "bench:",
        "bench:../x",
        "bench:a b",
        "bench:a/b",
        "bench:a\n",
        "ssh://host name",
        "ssh://host\n",
    ],
)
def test_a_bad_target_is_refused_with_the_right_form(spec: str) -> None:
    with pytest.raises(InputError, match=r"is not a target.*ssh://user@host"):
        open_target(spec)


@pytest.mark.parametrize(
    "spec", ["local", "ssh://host", "ssh://pi@10.0.0.7:2222", "bench:camera-7", "ssh://me@[::1]:22"]
)
def test_a_target_keeps_its_name(spec: str) -> None:
    assert open_target(spec).name == spec


def test_this_machine_describes_itself() -> None:
    machine = query_machine(open_target("local"))
    assert machine.cores >= 1
    assert "CPUExecutionProvider" in machine.providers
    assert machine.runtime_bytes > 1e6
    assert machine.arch in machine.summary


def test_the_summary_names_the_instructions_that_decide() -> None:
    machine = Machine(
        cpu="Cortex-A76",
        cores=4,
        arch="aarch64",
        features=("asimd", "asimddp"),
        memory_bytes=0,
        os="",
        python="",
        runtime="",
        providers=(),
        runtime_bytes=0,
        meters=(),
    )
    assert machine.summary == "Cortex-A76, 4 cores, aarch64, asimddp"


def test_a_timeout_ends_the_worker(subject: Make) -> None:
    start = time.monotonic()
    with pack_workloads([subject()]) as bundle:
        request = {"action": "sustained", "workloads": bundle.workloads, "seconds": 60}
        with pytest.raises(TargetError, match="longer than 1 s"):
            LocalTarget().run(request, bundle.files, timeout_seconds=0.6)
    assert time.monotonic() - start < 10


def test_a_runtime_that_is_killed_is_the_candidates_failure(subject: Make) -> None:
    raised: list[Exception] = []

    def measure() -> None:
        with pack_workloads([subject()]) as bundle:
            request = {"action": "sustained", "workloads": bundle.workloads, "seconds": 60}
            try:
                LocalTarget().run(request, bundle.files, timeout_seconds=60)
            except CandidateError as error:
                raised.append(error)

    before = _workers()
    thread = threading.Thread(target=measure)
    thread.start()
    until = time.monotonic() + 20
    while not (started := _workers() - before) and time.monotonic() < until:
        time.sleep(0.05)
    for pid in started:
        os.kill(pid, signal.SIGKILL)
    thread.join(timeout=20)
    assert "signal 9" in str(raised[0])


def _workers() -> set[int]:
    shown = subprocess.run(
        ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(os.getpid())], capture_output=True, text=True
    )
    return {int(line.split()[0]) for line in shown.stdout.splitlines() if "worker.py" in line}


def test_nothing_is_left_in_the_folder_for_temporary_files(
    subject: Make, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path_factory.mktemp("tmp")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    measure_memory(LocalTarget(), subject())
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("width", [16, 4096])
def test_a_full_disk_here_says_so(
    width: int, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, subject: Make
) -> None:
    made = subject(16)
    made = Workload(made.label, made.model, made.options, {"x": np.ones((width, 16), np.float32)})
    folder = tmp_path_factory.mktemp("small")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a small disk needs root and the right to mount")
    try:
        (folder / "filler").write_bytes(b"\0" * 4096)
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        with pytest.raises(TargetError, match=r"[Nn]o space.*Free space"):
            measure_memory(LocalTarget(), made)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_paths_with_blanks_and_links_are_found(subject: Make, tmp_path: Path, external: Path) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    (folder / "my model.onnx").symlink_to(subject(16).model)
    made = subject(16)
    linked = Workload("linked", folder / "my model.onnx", made.options, made.inputs)
    assert measure_memory(LocalTarget(), linked).process_peak.value > 1e6
