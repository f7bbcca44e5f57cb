"""Keys of devices are read many at a time; what one request meets is not another's."""

import asyncio
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgewright.contract.api.device_api import PROOF, CheckInRequest
from edgewright.contract.api.device_status import DeviceStatus
from edgewright.contract.config.fleet import FleetConfig
from edgewright.server.device_api.endpoint import DeviceEndpoint
from edgewright.server.services import Services
from edgewright.server.state_folder import ServerLocation, open_services
from edgewright.server.store.database import DatabaseUnavailableError
from edgewright.server.store.devices import DeviceCredentials, DeviceStore
from edgewright.trust.keys import signing_keys
from edgewright.trust.keys.device_identity import DeviceKey
from edgewright.trust.keys.signing_keys import KeyFolder
from edgewright.trust.repository.bootstrap import create_repository
from edgewright.trust.storage.storage import LocalStorage

DEVICES = 40
BODY = msgspec.json.encode(CheckInRequest(DeviceStatus()))


@pytest.fixture
def services(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Services]:
    monkeypatch.setattr(signing_keys, "_SCRYPT_N", 2**4)
    keys = KeyFolder(tmp_path / "KEYS", lambda _: "no secret")
    create_repository(LocalStorage(tmp_path / "repo"), keys, passphrase="no secret", bits=2)  # noqa: S106
    made = open_services(ServerLocation(tmp_path), FleetConfig(), signs=False)
    yield made
    made.store.close()


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """How many keys each read asked for; an error in it is raised by the next read instead."""
    asked: list[Any] = []
    known = DeviceStore.credentials

    def counted(self: DeviceStore, names: Sequence[str]) -> dict[str, DeviceCredentials]:
        if asked and isinstance(asked[-1], Exception):
            raise asked.pop()
        asked.append(len(names))
        return known(self, names)

    monkeypatch.setattr(DeviceStore, "credentials", counted)
    return asked


def enrolled(services: Services) -> list[DeviceKey]:
    keys = [DeviceKey(Ed25519PrivateKey.generate()) for _ in range(DEVICES)]
    for key in keys:
        token = services.store.devices.create_enrolment_token(
            "pi", created_by="test", now=services.now(), lifetime_seconds=60
        )
        services.store.devices.enrol(token, key.public, now=services.now())
    return keys


async def check_in(intake: DeviceEndpoint, services: Services, key: DeviceKey) -> int:
    proof = key.sign(services.audience, "POST", "/device/check-in", BODY, now=datetime.now(UTC))
    headers = [(b"content-length", str(len(BODY)).encode()), (PROOF.lower().encode(), proof.encode())]
    said: list[int] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": BODY, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        said.append(message.get("status", 0))

    await intake({"path": "/device/check-in", "method": "POST", "headers": headers}, receive, send)
    return said[0]


def test_devices_that_come_together_cost_few_reads(services: Services, reads: list[Any]) -> None:
    keys = enrolled(services)
    stranger = DeviceKey(Ed25519PrivateKey.generate())

    async def run() -> list[int]:
        intake = DeviceEndpoint(services)
        return list(await asyncio.gather(*(check_in(intake, services, key) for key in [*keys, stranger])))

    assert asyncio.run(run()) == [200] * DEVICES + [401]
    assert sum(reads) == DEVICES + 1
    assert len(reads) <= 3


def test_the_same_device_many_times_is_read_once(services: Services, reads: list[Any]) -> None:
    key = enrolled(services)[0]

    async def run() -> list[int]:
        intake = DeviceEndpoint(services)
        return list(await asyncio.gather(*(check_in(intake, services, key) for _ in range(10))))

    assert asyncio.run(run()) == [200] * 10
    assert sum(reads) == 1


def test_a_database_that_is_away_is_said_to_all_that_wait_and_to_nobody_after(
    services: Services, reads: list[Any]
) -> None:
    keys = enrolled(services)
    reads.append(DatabaseUnavailableError("away", remedy="wait"))

    async def run() -> tuple[set[int], set[int]]:
        intake = DeviceEndpoint(services)
        first = await asyncio.gather(*(check_in(intake, services, key) for key in keys[:5]))
        later = await asyncio.gather(*(check_in(intake, services, key) for key in keys))
        return set(first), set(later)

    assert asyncio.run(run()) == ({503}, {200})


def test_a_device_that_goes_away_takes_no_other_with_it(services: Services, reads: list[Any]) -> None:
    keys = enrolled(services)

    async def run() -> list[Any]:
        intake = DeviceEndpoint(services)
        tasks = [asyncio.create_task(check_in(intake, services, key)) for key in [keys[0], *keys]]
        await asyncio.sleep(0)
        tasks[0].cancel()
        return list(await asyncio.gather(*tasks, return_exceptions=True))

    said = asyncio.run(run())
    assert isinstance(said[0], asyncio.CancelledError)
    assert said[1:] == [200] * DEVICES
