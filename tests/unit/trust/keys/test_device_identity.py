"""A key of its own, and requests that cannot be sent again, changed or sent elsewhere."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from edgewright.contract.errors import InputError
from edgewright.trust.keys.device_identity import (
    AuthenticationError,
    DeviceKey,
    RequestVerifier,
    device_id_of,
    load_or_create_device_key,
)

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


class Clock:
    at = NOW

    def __call__(self) -> datetime:
        return self.at


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def device(tmp_path: Path) -> DeviceKey:
    return load_or_create_device_key(tmp_path / "device.key")


@pytest.fixture
def requests(device: DeviceKey, clock: Clock) -> RequestVerifier:
    known = {device_id_of(device.public): device.public}
    return RequestVerifier("updates.example", known.get, clock)


def test_a_signed_request_is_believed_once(requests: RequestVerifier, device: DeviceKey) -> None:
    proof = device.sign("updates.example", "POST", "/status", b"{}", now=NOW)
    assert requests.verify_once(proof, "POST", "/status", b"{}") == device_id_of(device.public)
    with pytest.raises(AuthenticationError, match="sent before"):
        requests.verify_once(proof, "POST", "/status", b"{}")


def test_who_keeps_nonces_elsewhere_is_told_them(requests: RequestVerifier, device: DeviceKey) -> None:
    proofs = [device.sign("updates.example", "POST", "/status", b"{}", now=NOW) for _ in range(2)]
    told = [requests.verify(proof, "POST", "/status", b"{}") for proof in (*proofs, proofs[0])]
    assert {device_id for device_id, _ in told} == {device_id_of(device.public)}
    assert told[0] == told[2] != told[1]
    with pytest.raises(AuthenticationError, match="something else"):
        requests.verify(proofs[0], "POST", "/status", b"{1}")


ATTACKS: dict[str, tuple[dict[str, object], dict[str, object], str]] = {
    "for another audience": ({"audience": "other.example"}, {}, "something else"),
    "another method": ({}, {"method": "DELETE"}, "something else"),
    "another path": ({}, {"path": "/tokens"}, "something else"),
    "another body": ({}, {"body": b"{1}"}, "something else"),
    "old": ({"now": NOW - HOUR}, {}, "signed at"),
    "from the future": ({"now": NOW + HOUR}, {}, "signed at"),
    "no proof": ({}, {"proof": ""}, "cannot be read"),
    "a proof of noise": ({}, {"proof": "####.####"}, "cannot be read"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_request_that_is_not_the_devices_is_not_believed(
    requests: RequestVerifier, device: DeviceKey, attack: str
) -> None:
    signed, sent, message = ATTACKS[attack]
    given = {"audience": "updates.example", "method": "POST", "path": "/status", "body": b"{}", "now": NOW} | signed
    proof = device.sign(**given)  # type: ignore[arg-type]
    arrives = {"proof": proof, "method": "POST", "path": "/status", "body": b"{}"} | sent
    with pytest.raises(AuthenticationError, match=message):
        requests.verify_once(**arrives)  # type: ignore[arg-type]


def test_another_devices_signature_is_not_believed(
    requests: RequestVerifier, device: DeviceKey, tmp_path: Path
) -> None:
    other = load_or_create_device_key(tmp_path / "other.key")
    proof = other.sign("updates.example", "POST", "/status", b"{}", now=NOW)
    with pytest.raises(AuthenticationError, match="unknown"):
        requests.verify_once(proof, "POST", "/status", b"{}")
    ours = device.sign("updates.example", "POST", "/status", b"{}", now=NOW)
    mixed = f"{ours.split('.')[0]}.{proof.split('.')[1]}"
    with pytest.raises(AuthenticationError, match="not the device's"):
        requests.verify_once(mixed, "POST", "/status", b"{}")


def test_a_devices_key_is_made_once_and_is_its_owners_only(tmp_path: Path) -> None:
    path = tmp_path / "device.key"
    assert load_or_create_device_key(path).public == load_or_create_device_key(path).public
    assert path.stat().st_mode & 0o077 == 0
    path.write_bytes(b"short")
    with pytest.raises(InputError):
        load_or_create_device_key(path)
