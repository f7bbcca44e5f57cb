"""A control plane to be attacked: real store, signed repository, devices with keys, a clock that is turned."""

import asyncio
import hashlib
import ipaddress
import itertools
import shutil
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgewright.contract.api.device_api import PROOF, CheckInRequest, EnrolRequest, EnrolResponse, ErrorResponse
from edgewright.contract.api.device_status import DeviceStatus
from edgewright.contract.api.operator_api import CreateQuery, RolloutAction, StartRollout
from edgewright.contract.config.fleet import FleetConfig
from edgewright.contract.release import Manifest, StoredFile, Variant
from edgewright.contract.rollout.plan import RolloutArm, RolloutPlan, RolloutStage
from edgewright.profiling.job_archive import pack_job
from edgewright.server.access_control import UserRole
from edgewright.server.app import ControlPlaneApp, create_app
from edgewright.server.commands.acts import FleetCommands
from edgewright.server.profiling_jobs import PROFILE_JOB_KIND, create_profiling_job
from edgewright.server.read_models import PendingAction
from edgewright.server.services import Services
from edgewright.server.state_folder import ServerLocation, open_services
from edgewright.server.store.store import create_store
from edgewright.trust.keys import signing_keys
from edgewright.trust.keys.device_identity import DeviceKey
from edgewright.trust.keys.signing_keys import KeyFolder
from edgewright.trust.publishing.publish import publish_plan, publish_release
from edgewright.trust.repository.bootstrap import create_repository, move_online_keys, read_trusted_root
from edgewright.trust.repository.repository import Repository
from edgewright.trust.storage.storage import LocalStorage

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
SINCE = (NOW - timedelta(days=1)).isoformat()
PASSPHRASE = "correct horse"  # noqa: S105 - of test keys
CONTENT = bytes(range(256)) * 16
ROLES: dict[str, UserRole] = {
    "viewer": UserRole.VIEWER,
    "operator": UserRole.OPERATOR,
    "release manager": UserRole.RELEASE_MANAGER,
}
PASSWORD = "a long enough password"  # noqa: S105 - of test users


@dataclass
class Clock:
    """Seconds since 1970, UTC, that stand still until they are turned."""

    at: datetime = NOW

    def __call__(self) -> float:
        return self.at.timestamp()

    def turn(self, **by: float) -> None:
        self.at += timedelta(**by)


@dataclass
class Asked:
    """What an operator wanted done, by whom."""

    act: str
    who: str
    what: Any


@dataclass
class FakeCommands:
    """Does nothing but remember what was wanted."""

    services: Services
    asked: list[Asked] = field(default_factory=list)

    def start_rollout(self, who: str, asked: StartRollout) -> tuple[RolloutPlan, tuple[str, ...]]:
        self.asked.append(Asked("start", who, asked))
        return plan_of(self.services.repository()), ("noted",)

    def change_rollout(
        self, who: str, model: str, device_class: str, act: RolloutAction, reason: str
    ) -> RolloutPlan:
        self.asked.append(Asked(act, who, (model, device_class, reason)))
        return plan_of(self.services.repository())

    def create_query(self, who: str, model: str, device_class: str, asked: CreateQuery) -> tuple[str, ...]:
        self.asked.append(Asked("ask", who, (model, device_class, asked)))
        return ("asked",)

    def end_query(self, who: str, query_id: str) -> None:
        self.asked.append(Asked("end query", who, query_id))

    def pending_actions(self) -> Sequence[PendingAction]:
        return [PendingAction("a1", "roll back", "m/default/r", "devices fail", NOW.timestamp())]

    def decide_action(self, who: str, item: str, *, approve: bool, reason: str) -> Sequence[str]:
        self.asked.append(Asked("settle", who, (item, approve, reason)))
        return ["done"]

    def create_job(self, who: str, device: str, body: bytes) -> str:
        return create_profiling_job(self.services, who, device, PROFILE_JOB_KIND, body)


def plan_of(repository: Repository) -> RolloutPlan:
    """The rollout that the ground comes with."""
    return RolloutPlan(
        "m",
        "default",
        "r",
        1,
        1,
        (RolloutArm("1.0.0", digest_of_release()),),
        (RolloutStage(1.0),),
        stage_started_at=SINCE,
    )


def manifest() -> Manifest:
    stored = StoredFile("image", hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))
    return Manifest("m", "1.0.0", "firmware", (Variant("default", (stored,)),), created_at="2026-11-21")


def digest_of_release() -> str:
    return hashlib.sha256(msgspec.json.encode(manifest())).hexdigest()


def make_ground(path: Path) -> None:
    """Lay out a state folder: a repository with a release and a rollout of it, and the online key."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(signing_keys, "_SCRYPT_N", 2**4)
        store = LocalStorage(path / "repo")
        keys = KeyFolder(path.parent / f"{path.name}-offline", lambda _: PASSPHRASE)
        create_repository(store, keys, passphrase=PASSPHRASE, bits=2, now=lambda: NOW)
        repository = Repository(store, read_trusted_root(keys.path), lambda: NOW)
        published = publish_release(repository, keys, manifest(), {"default": {"image": CONTENT}})
        plan = msgspec.structs.replace(plan_of(repository), arms=(RolloutArm("1.0.0", published.digest),))
        publish_plan(Repository(store, read_trusted_root(keys.path), lambda: NOW), keys, plan)
        move_online_keys(keys, path / "keys")
    create_store(f"sqlite:///{path / 'fleet.db'}").close()


@dataclass(frozen=True)
class Answer:
    """What came back, with its headers in lower case."""

    status: int
    headers: list[tuple[str, str]]
    content: bytes

    def header(self, name: str) -> str | None:
        found = [value for key, value in self.headers if key == name]
        assert len(found) <= 1, f"{name} comes {len(found)} times"
        return found[0] if found else None

    @property
    def said(self) -> Any:
        return msgspec.json.decode(self.content)

    @property
    def problem(self) -> ErrorResponse:
        return msgspec.json.decode(self.content, type=ErrorResponse)


class Machine:
    """A device with a key."""

    def __init__(self, plant: "Plant", key: DeviceKey | None = None) -> None:
        self.plant = plant
        self.key = key or DeviceKey(Ed25519PrivateKey.generate())
        self.id = ""

    def enrolled(self, **offered: Any) -> "Machine":
        services = self.plant.services
        given: dict[str, Any] = {
            "created_by": "user:ann",
            "now": services.now(),
            "lifetime_seconds": 60.0,
        } | offered
        token = services.store.devices.create_enrolment_token(given.pop("device_class", "default"), **given)
        self.id = services.store.devices.enrol(token, self.key.public, now=services.now()).id
        return self

    def proof(
        self,
        path: str,
        body: bytes,
        *,
        method: str = "POST",
        audience: str | None = None,
        skew: timedelta = timedelta(),
    ) -> str:
        there = self.plant.services.audience if audience is None else audience
        return self.key.sign(there, method, path, body, now=self.plant.clock.at + skew)

    def post(self, path: str, body: bytes = b"", **given: Any) -> Answer:
        return self.plant.post(path, body, {PROOF: self.proof(path, body)}, **given)

    def check_in(self, status: DeviceStatus | None = None, **outcome: Any) -> Answer:
        return self.post(
            "/device/check-in", msgspec.json.encode(CheckInRequest(status or DeviceStatus(), **outcome))
        )


class Plant:
    """A control plane that answers in this process."""

    def __init__(
        self,
        state: Path,
        *,
        fleet: FleetConfig | None = None,
        pages: Callable[[Services, FleetCommands], list[Any]] | None = None,
        **more: Any,
    ) -> None:
        self.clock = Clock()
        self.state = state
        self.services = open_services(ServerLocation(state), fleet or FleetConfig(), signs=True, now=self.clock)
        self.acting = FakeCommands(self.services)
        if pages is not None:
            more["pages"] = pages(self.services, self.acting)
        self.app: ControlPlaneApp = create_app(self.services, self.acting, **more)
        self.runner = asyncio.Runner()
        self._tokens: dict[str, str] = {}
        self._clients = itertools.count(1)

    def close(self) -> None:
        self.runner.close()
        self.services.store.close()

    def token(self, role: str) -> str:
        """A token of a role, made when it is first wanted."""
        if role not in self._tokens:
            self._tokens[role] = self.services.store.accounts.add_token(
                f"t-{role.replace(' ', '-')}",
                ROLES[role],
                created_by="server",
                now=self.services.now(),
                lifetime_seconds=86400.0,
            )
        return self._tokens[role]

    def machine(self, **offered: Any) -> Machine:
        return Machine(self).enrolled(**offered)

    def run(self, work: Awaitable[Any]) -> Any:
        async def awaited() -> Any:
            return await work

        return self.runner.run(awaited())

    def get(self, path: str, headers: Mapping[str, str] | None = None, **given: Any) -> Answer:
        return self.ask("GET", path, b"", headers, **given)

    def post(self, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None, **given: Any) -> Answer:
        return self.ask("POST", path, body, headers, **given)

    def operate(self, method: str, path: str, body: Any = None, *, role: str = "release manager") -> Answer:
        """Ask as somebody with a token of a role; a body is encoded as JSON."""
        headers = {"Authorization": f"Bearer {self.token(role)}"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        return self.ask(method, path, b"" if body is None else msgspec.json.encode(body), headers)

    def ask(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None, **given: Any
    ) -> Answer:
        answer: Answer = self.run(self.asked(method, path, body, headers, **given))
        return answer

    async def asked(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        *,
        client: str = "",
        told: int | None = None,
        parts: Iterable[bytes] | None = None,
        receive: Callable[[], Awaitable[dict[str, Any]]] | None = None,
        raw: Sequence[tuple[bytes, bytes]] | None = None,
    ) -> Answer:
        """Ask once.

        Args:
            method: Of the request.
            path: With its query.
            body: Of the request.
            headers: Of the request.
            client: Address that it comes from; one of its own if not given, so that no limit counts them together.
            told: Length that the request tells, its body's if not given, none for -1.
            parts: In which the body comes; in one if not given.
            receive: That is asked for the body instead.
            raw: More headers, as they are.
        """
        place, _, query = path.partition("?")
        lines = [(name.lower().encode(), value.encode("latin-1")) for name, value in (headers or {}).items()]
        lines += raw or ()
        if told != -1 and (body or method not in ("GET", "HEAD")):
            lines.append((b"content-length", str(len(body) if told is None else told).encode()))
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": unquoted(place),
            "raw_path": place.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": lines,
            "client": (client or str(ipaddress.IPv4Address(0x0A000000 + next(self._clients))), 50000),
            "server": ("127.0.0.1", 8765),
            "state": {},
        }
        waiting = list(parts) if parts is not None else [body]

        async def given() -> dict[str, Any]:
            if not waiting:
                return {"type": "http.disconnect"}
            part = waiting.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(waiting)}

        status, content = 0, b""
        sent: list[tuple[str, str]] = []

        async def send(message: dict[str, Any]) -> None:
            nonlocal status, content
            if message["type"] == "http.response.start":
                assert not status, "an answer begins once"
                status = message["status"]
                sent.extend((key.decode().lower(), value.decode("latin-1")) for key, value in message["headers"])
            else:
                content += message.get("body", b"")

        await self.app(scope, receive or given, send)
        return Answer(status, sent, content)


def work(folder: Path, *, size: int = 10) -> bytes:
    """A profiling job, with a file of as many bytes."""
    (folder / "model.onnx").write_bytes(bytes(size))
    return pack_job(
        {"action": "machine"},
        {"model.onnx": folder / "model.onnx"},
        timeout_seconds=10.0,
        expires_after_seconds=1e6,
    )


def unquoted(path: str) -> str:
    """A path as a server hands it on."""
    from urllib.parse import unquote

    return unquote(path, errors="replace")


def stand(state: Path, ground: Path, **more: Any) -> Plant:
    """Put up a control plane on a copy of the ground."""
    shutil.copytree(ground, state)
    return Plant(state, **more)


def enrolling(plant: Plant, machine: Machine, token: str) -> tuple[Answer, EnrolResponse | None]:
    """Enrol over HTTP."""
    answer = plant.post("/device/enrol", msgspec.json.encode(EnrolRequest(token, machine.key.public.hex())))
    return answer, msgspec.json.decode(answer.content, type=EnrolResponse) if answer.status == 200 else None
