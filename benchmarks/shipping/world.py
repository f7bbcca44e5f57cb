"""A repository on a real web server, with models whose answers tell their version."""

import http.server
import os
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgewright.compress.release_variant import build_variant
from edgewright.contract.device_class import DeviceClass
from edgewright.contract.release import Manifest
from edgewright.contract.rollout.plan import RolloutArm, RolloutPlan, RolloutStage
from edgewright.device.agent import Agent
from edgewright.device.enrolment import enrol_offline
from edgewright.trust.keys import signing_keys
from edgewright.trust.keys.signing_keys import KeyFolder
from edgewright.trust.publishing.publish import current_plan, list_releases, publish_plan, publish_release
from edgewright.trust.repository.bootstrap import create_repository, read_trusted_root
from edgewright.trust.repository.repository import Repository
from edgewright.trust.storage.storage import LocalStorage

__all__ = ["World", "answer_of", "feed", "scaler", "serving"]

NAME = "m"
INPUTS = 16


def scaler(factor: float, *, weights: int = 4096) -> onnx.ModelProto:
    """Return a network that multiplies by a factor, and carries weights that make it as large as a real one.

    Args:
        factor: By which it multiplies: its version, to whoever asks it.
        weights: Beside that.
    """
    ballast = np.random.default_rng(int(1000 * factor)).normal(size=weights).astype(np.float32)
    constants: dict[str, NDArray[Any]] = {
        "factor": np.array([factor], np.float32),
        "ballast": ballast,
        "axes": np.array([0], np.int64),
        "zero": np.array([0], np.float32),
    }
    nodes = [
        helper.make_node("Mul", ["x", "factor"], ["scaled"]),
        helper.make_node("ReduceMean", ["ballast", "axes"], ["mean"], keepdims=1),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
        helper.make_node("Add", ["scaled", "nothing"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "scaler",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", INPUTS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", INPUTS])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def feed(value: float = 1.0) -> dict[str, NDArray[Any]]:
    """Return an input of `scaler`."""
    return {"x": np.full((1, INPUTS), value, np.float32)}


def answer_of(agent: Agent) -> float | None:
    """Return by how much a device's model multiplies, None if there is no answer."""
    outputs = agent.predict(feed()).outputs
    return float(outputs["y"][0, 0]) if outputs else None


class World:
    """A repository and what is done to it.

    Attributes:
        path: Holds `repo`, `keys` and the devices' states.
        url: Of the web server that serves `repo`.
    """

    def __init__(self, path: Path, url: str = "") -> None:
        self.path, self.url = path, url

    @property
    def keys(self) -> KeyFolder:
        """Return its keys."""
        return KeyFolder(self.path / "keys", lambda _: "correct horse")

    def begin(self, *, bits: int = 8) -> None:
        """Make keys and an empty repository."""
        signing_keys._SCRYPT_N = 2**4  # the passphrase protects nothing here
        create_repository(LocalStorage(self.path / "repo"), self.keys, passphrase="correct horse", bits=bits)  # noqa: S106

    def repository(self) -> Repository:
        """Return the repository as of now."""
        return Repository(LocalStorage(self.path / "repo"), read_trusted_root(self.path / "keys"))

    def publish(self, version: str, model: onnx.ModelProto) -> None:
        """Publish a model."""
        path = self.path / f"{version}.onnx"
        onnx.save(model, path)
        made = build_variant(path, DeviceClass("default"))
        manifest = Manifest(NAME, version, "model", (made.variant,))
        publish_release(self.repository(), self.keys, manifest, {"default": made.contents})

    def roll_out(self, version: str) -> None:
        """Roll a release out to all devices."""
        repository = self.repository()
        before = current_plan(repository, NAME, "default")
        counter = 1 if before is None else before.counter + 1
        digest = dict(list_releases(repository, NAME))[version]
        plan = RolloutPlan(
            NAME, "default", f"r-{counter}", 1, counter, (RolloutArm(version, digest),), (RolloutStage(1.0),)
        )
        publish_plan(repository, self.keys, plan)

    def enrol(self, name: str) -> Path:
        """Make a device's state."""
        state = self.path / name
        root = (self.path / "repo/metadata/1.root.json").read_bytes()
        enrol_offline(state, repository_url=self.url, root=root, device_class="default")
        return state


@contextmanager
def serving(path: Path) -> Iterator[str]:
    """Serve a folder from a process of its own, and yield its URL."""
    port_file = path.parent / f"{path.name}.port"
    port_file.unlink(missing_ok=True)
    process = subprocess.Popen([sys.executable, __file__, str(path), str(port_file)])
    try:
        deadline = time.monotonic() + 20
        while not port_file.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        url = f"http://127.0.0.1:{port_file.read_text()}/"
        urllib.request.urlopen(url, timeout=5).close()
        yield url
    finally:
        process.terminate()
        process.wait()


def _serve(folder: str, port_file: str) -> None:
    class Handler(http.server.SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    handler: Callable[..., Any] = partial(Handler, directory=folder)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    partial_file = Path(f"{port_file}.new")
    partial_file.write_text(str(server.server_address[1]))
    partial_file.replace(port_file)
    threading.Thread(target=_end_with_parent, args=(server,), daemon=True).start()
    server.serve_forever()


def _end_with_parent(server: http.server.ThreadingHTTPServer) -> None:
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(0.5)
    server.shutdown()


def copied(state: Path, to: Path) -> Path:
    """Return a copy of a device's state."""
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(state, to, symlinks=True)
    return to


if __name__ == "__main__":
    _serve(sys.argv[1], sys.argv[2])
