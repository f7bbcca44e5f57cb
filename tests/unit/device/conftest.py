"""A small world: a repository on a real web server, with a model whose answers tell its version."""

import hashlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgewright.compress.release_variant import build_variant
from edgewright.contract.device_class import DeviceClass
from edgewright.contract.release import Manifest
from edgewright.contract.rollout.plan import RolloutArm, RolloutPlan, RolloutStage
from edgewright.device.agent import Agent
from edgewright.device.enrolment import enrol_offline
from edgewright.trust.client.fetcher import Fetcher
from edgewright.trust.keys import signing_keys
from edgewright.trust.keys.signing_keys import KeyFolder
from edgewright.trust.publishing.publish import PublishResult, list_releases, publish_plan, publish_release
from edgewright.trust.repository.bootstrap import create_repository, read_trusted_root
from edgewright.trust.repository.repository import Repository
from edgewright.trust.storage.storage import LocalStorage

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


def model(factor: float, *, size: int = 64) -> onnx.ModelProto:
    """Return a model that multiplies; beside that, it carries weights so that it has a size."""
    ballast = np.random.default_rng(7).normal(size=(size, size)).astype(np.float32)
    weights: dict[str, NDArray[Any]] = {
        "factor": np.array([factor], np.float32),
        "ballast": ballast,
        "axes": np.array([0, 1], np.int64),
    }
    nodes = [
        helper.make_node("Mul", ["x", "factor"], ["scaled"]),
        helper.make_node("ReduceMean", ["ballast", "axes"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
        helper.make_node("Add", ["scaled", "nothing"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()]
        + [numpy_helper.from_array(np.array(0, np.float32), "zero")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@dataclass
class Clock:
    """A clock that a test turns."""

    at: datetime = NOW

    def __call__(self) -> datetime:
        return self.at

    def turn(self, **by: float) -> None:
        self.at += timedelta(**by)


@dataclass
class World:
    """A repository, its keys, and a web server.

    Attributes:
        path: Holds `repo`, `keys` and the devices' states.
        url: Of the server.
        clock: Of publishers and devices.
        served: Replaces what the server gives, by path.
    """

    path: Path
    url: str
    clock: Clock
    served: dict[str, Callable[[bytes], bytes] | None] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    agents: dict[str, Agent] = field(default_factory=dict)

    @property
    def repo(self) -> Path:
        return self.path / "repo"

    @property
    def keys(self) -> KeyFolder:
        return KeyFolder(self.path / "keys", lambda _: "correct horse")

    def repository(self) -> Repository:
        return Repository(LocalStorage(self.repo), read_trusted_root(self.path / "keys"), self.clock)

    def publish(
        self,
        version: str,
        factor: float,
        *,
        device_class: str = "default",
        change: Callable[..., Any] | None = None,
        end_of_life: str = "",
    ) -> PublishResult:
        path = self.path / f"{version}.onnx"
        onnx.save(model(factor), path)
        made = build_variant(path, DeviceClass(device_class))
        variant, contents = made.variant, made.contents
        if change is not None:
            variant, contents = change(variant, contents)
        manifest = Manifest("m", version, "model", (variant,), end_of_life_at=end_of_life)
        return publish_release(self.repository(), self.keys, manifest, {device_class: contents})

    def start(
        self, version: str, *, fraction: float = 1.0, device_class: str = "default", **changes: Any
    ) -> RolloutPlan:
        repository = self.repository()
        counter = 1 + len(list((self.repo / "metadata").glob("*.rollouts.json")))
        plan = RolloutPlan(
            "m",
            device_class,
            f"r-{version}",
            1,
            counter,
            (RolloutArm(version, dict(list_releases(repository, "m"))[version]),),
            (RolloutStage(fraction),),
        )
        for name, value in changes.items():
            plan = type(plan)(**{f: getattr(plan, f) for f in plan.__struct_fields__} | {name: value})
        publish_plan(repository, self.keys, plan)
        return plan

    def enrol(self, name: str = "device", **more: Any) -> Path:
        state = self.path / name
        given = {"device_class": "default", "root": (self.repo / "metadata/1.root.json").read_bytes()} | more
        enrol_offline(state, repository_url=self.url, **given)
        return state

    def agent(self, name: str = "device", **more: Any) -> Agent:
        state = self.path / name
        if not state.exists():
            self.enrol(name)
        fetcher = more.pop("fetcher", None) or Fetcher(timeout_seconds=2.0, deadline_seconds=0.5)
        if name in self.agents:  # as if its process had ended
            self.agents.pop(name)._lock.release()  # type: ignore[union-attr]
        self.agents[name] = Agent(state, fetcher=fetcher, clock=self.clock, **more)
        return self.agents[name]


def answer(agent: Agent, value: float = 1.0) -> float | None:
    """Return what a model makes of a value, None if there is no answer."""
    feed: dict[str, NDArray[Any]] = {"x": np.full((1, 4), value, np.float32)}
    outputs = agent.predict(feed).outputs
    return float(outputs["y"][0, 0]) if outputs else None


def failed(agent: Agent, count: int) -> None:
    """Have so many inferences of a device fail."""
    engine = agent.predictor.current
    assert engine is not None
    for _ in range(count):
        engine.failures.tick()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(signing_keys, "_SCRYPT_N", 2**10)
    served: dict[str, Callable[[bytes], bytes] | None] = {}
    requests: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            name = self.path.lstrip("/")
            if name not in served:
                super().do_GET()
                return
            change = served[name]
            path = tmp_path / "repo" / name
            if change is None:
                self.send_error(404)
                return
            content = change(path.read_bytes() if path.exists() else b"")
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    (tmp_path / "repo").mkdir()

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """A device may hang up."""

    server = Server(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path / "repo")))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    clock = Clock()
    made = World(tmp_path, f"http://127.0.0.1:{server.server_address[1]}/", clock, served, requests)
    create_repository(
        LocalStorage(made.repo), made.keys, passphrase=made.keys.ask_passphrase(""), bits=2, now=clock
    )
    yield made
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def running(world: World) -> World:
    """A world with version 1.0.0 proven on a device."""
    world.publish("1.0.0", 1.0)
    world.start("1.0.0")
    agent = world.agent()
    agent.check_for_update()
    assert answer(agent) == 1.0
    world.clock.turn(hours=1)
    agent.settle_probation()
    assert agent.status()["proven"] == "1.0.0"
    return world


def digest(content: bytes) -> str:
    """Return the sha256 of bytes."""
    return hashlib.sha256(content).hexdigest()
