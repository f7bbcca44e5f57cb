"""Sealing: only the right key opens a file, and only as it was."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewright.trust.keys.file_encryption import decrypt_file, encrypt_file, encrypted_size
from edgewright.trust.keys.keystore import KeyStore, LockedError, create_key_file

CONTENT = bytes(range(256)) * 10
DIGEST = hashlib.sha256(CONTENT).hexdigest()
CHUNK = 1000


class Plain:
    """A key store that wraps nothing, for laws about chunks."""

    def wrap(self, key: bytes, context: bytes) -> bytes:
        return key

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        return wrapped


@pytest.fixture
def keys(tmp_path: Path) -> KeyStore:
    return create_key_file(tmp_path / "device.key")


@given(st.binary(max_size=5000), st.integers(1, 2000))
def test_what_was_sealed_comes_back(content: bytes, chunk: int) -> None:
    digest = hashlib.sha256(content).hexdigest()
    sealed = encrypt_file(content, digest, Plain(), chunk=chunk)
    assert decrypt_file(sealed, digest, Plain()) == content
    assert len(sealed) == encrypted_size(len(content), 32, chunk=chunk)


def test_two_sealings_share_nothing(keys: KeyStore) -> None:
    one, other = (encrypt_file(CONTENT, DIGEST, keys, chunk=CHUNK) for _ in range(2))
    assert one != other
    assert CONTENT[:64] not in one


HEAD = len(encrypt_file(b"", hashlib.sha256(b"").hexdigest(), Plain())) - 16
ATTACKS: dict[str, Callable[[bytes], bytes]] = {
    "a flipped bit in the head": lambda s: bytes([s[0] ^ 1]) + s[1:],
    "a flipped bit in the wrapped key": lambda s: s[:70] + bytes([s[70] ^ 1]) + s[71:],
    "a flipped bit in the first chunk": lambda s: s[:200] + bytes([s[200] ^ 1]) + s[201:],
    "a flipped bit in the last byte": lambda s: s[:-1] + bytes([s[-1] ^ 1]),
    "cut off": lambda s: s[:-1],
    "cut off after a chunk": lambda s: s[: -(len(CONTENT) % CHUNK + 16)],
    "bytes behind it": lambda s: s + b"\0",
    "chunks exchanged": lambda s: s[:-2592] + s[-1576:-560] + s[-2592:-1576] + s[-560:],
    "empty": lambda s: b"",
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_was_changed_is_not_opened(attack: str, keys: KeyStore) -> None:
    sealed = encrypt_file(CONTENT, DIGEST, keys, chunk=CHUNK)
    changed = ATTACKS[attack](sealed)
    assert changed != sealed
    with pytest.raises(LockedError):
        decrypt_file(changed, DIGEST, keys)


def test_another_device_does_not_open_it(keys: KeyStore, tmp_path: Path) -> None:
    with pytest.raises(LockedError):
        decrypt_file(encrypt_file(CONTENT, DIGEST, keys), DIGEST, create_key_file(tmp_path / "other.key"))


def test_it_does_not_pass_for_another_file(keys: KeyStore) -> None:
    with pytest.raises(LockedError):
        decrypt_file(encrypt_file(CONTENT, DIGEST, keys), hashlib.sha256(b"other").hexdigest(), keys)


def test_a_key_file_is_the_owners_alone_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "device.key"
    create_key_file(path)
    before = path.read_bytes()
    create_key_file(path)
    assert path.read_bytes() == before
    assert path.stat().st_mode & 0o077 == 0
