"""Tiny real models, and a real sshd on loopback."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgewright.profiling.latency import Workload
from edgewright.profiling.target import SshTarget
from edgewright.runtime.options import RuntimeOptions


@pytest.fixture
def dense(tmp_path: Path) -> Callable[[int], Path]:
    """Make a model of one dense layer, [batch, n] to [batch, n]."""

    def make(n: int) -> Path:
        path = tmp_path / f"dense{n}.onnx"
        onnx.save(_dense(n), path)
        return path

    return make


def _dense(n: int) -> onnx.ModelProto:
    weights = np.random.default_rng(0).standard_normal((n, n)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])],
        "dense",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", n])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", n])],
        [numpy_helper.from_array(weights, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


@pytest.fixture
def subject(dense: Callable[[int], Path]) -> Callable[..., Workload]:
    """Make a subject of such a model."""

    def make(n: int = 16, label: str = "", options: RuntimeOptions | None = None) -> Workload:
        feed = {"x": np.ones((1, n), np.float32)}
        return Workload(label or f"dense{n}", dense(n), options or RuntimeOptions(), feed)

    return make


@pytest.fixture
def lacking_op(tmp_path: Path) -> Path:
    """A model with an operator that no runtime has."""
    graph = helper.make_graph(
        [helper.make_node("NoSuchThing", ["x"], ["y"], domain="com.example")],
        "lacking",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 16])],
    )
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid("com.example", 1)]
    path = tmp_path / "lacking.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


@pytest.fixture
def external(tmp_path: Path) -> Path:
    """A model with its weights in a file beside it, weights.bin."""
    path = tmp_path / "external" / "model.onnx"
    path.parent.mkdir()
    onnx.save(_dense(64), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


@dataclass(frozen=True)
class Sshd:
    """A running sshd.

    Attributes:
        target: Reaches it.
        process: The daemon.
        folder: TMPDIR of its sessions.
        known_hosts: Of the client.
    """

    target: SshTarget
    process: subprocess.Popen[bytes]
    folder: Path
    known_hosts: Path

    def left_behind(self) -> list[str]:
        """Return what is in the sessions' folder for temporary files, once it has settled."""
        until = time.monotonic() + 5
        while (left := [path.name for path in self.folder.iterdir()]) and time.monotonic() < until:
            time.sleep(0.05)
        return left


@pytest.fixture
def sshd(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sshd]:
    """Start an sshd of our own with its own keys, port and configuration."""
    daemon = shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if daemon is None or shutil.which("ssh") is None:
        pytest.skip("OpenSSH is not installed: apt install openssh-server")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where the daemon gives up root
    folder = tmp_path_factory.mktemp("sshd")
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    sessions = folder / "sessions"
    sessions.mkdir()
    port = _free_port()
    (folder / "authorized_keys").write_text((folder / "user.pub").read_text())
    (folder / "config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nPidFile none\nUsePAM no\nStrictModes no\n"
        f"AuthorizedKeysFile {folder}/authorized_keys\nPasswordAuthentication no\nPermitRootLogin yes\n"
        f"SetEnv TMPDIR={sessions}\n"
    )
    known_hosts = folder / "known_hosts"
    known_hosts.write_text(f"[127.0.0.1]:{port} {(folder / 'host.pub').read_text()}")
    monkeypatch.setenv(
        "EDGEWRIGHT_SSH_OPTIONS",
        f"-F none -i {folder}/user -o IdentitiesOnly=yes -o IdentityAgent=none -o UserKnownHostsFile={known_hosts}",
    )
    monkeypatch.setenv("EDGEWRIGHT_SSH_PYTHON", sys.executable)
    process = subprocess.Popen([daemon, "-D", "-e", "-f", str(folder / "config")], stderr=subprocess.DEVNULL)
    try:
        _await_port(port)
        target = SshTarget(name=f"ssh://127.0.0.1:{port}", host="127.0.0.1", port=port)
        yield Sshd(target, process, sessions, known_hosts)
    finally:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _await_port(port: int) -> None:
    until = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)
        else:
            return
