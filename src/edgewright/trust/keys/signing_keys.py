"""Keys for signing, in a folder: offline ones encrypted to a passphrase, online ones readable by their owner only.

Roles that a person signs for are offline: `root`, which says whose keys count, and `releases`, which says what may
be installed at all. The machine that advances rollouts and renews what expires holds the keys of the online roles.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from securesystemslib.signer import CryptoSigner, SSlibKey

from edgewright.contract.errors import InputError, OutputError
from edgewright.contract.names import checked_name

__all__ = [
    "OFFLINE_ROLES",
    "ONLINE_ROLES",
    "KeyFolder",
    "KeyRole",
    "PublicKey",
    "read_public_key",
]

KeyRole = Literal["root", "releases", "snapshot", "timestamp", "rollouts"]

OFFLINE_ROLES: tuple[KeyRole, ...] = ("root", "releases")
ONLINE_ROLES: tuple[KeyRole, ...] = ("snapshot", "timestamp", "rollouts")

# Source: RFC 7914; 128 MiB and about half a second, as OWASP's cheat sheet on password storage has it for files.
_SCRYPT_N, _SCRYPT_R, _SCRYPT_P = 2**17, 8, 1
_FORMAT = "edgewright key 1"

Passphrase = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key that others may know.

    Attributes:
        name: For people.
        roles: That its owner asks to sign for.
        value: 32 bytes, hexadecimal.
    """

    name: str
    roles: tuple[KeyRole, ...]
    value: str

    @property
    def keyid(self) -> str:
        """Return the name by which metadata knows the key."""
        return hashlib.sha256(b"ed25519:" + bytes.fromhex(self.value)).hexdigest()

    def for_metadata(self) -> SSlibKey:
        """Return the key as metadata holds it."""
        return SSlibKey(self.keyid, "ed25519", "ed25519", {"public": self.value})


@dataclass(frozen=True, slots=True)
class KeyFolder:
    """A folder of keys.

    Attributes:
        path: Holds `NAME.pub.json` for each key, and `NAME.key.json` for those whose private half is here.
        ask_passphrase: Asks for the passphrase of the offline keys; it is told which key for.
    """

    path: Path
    ask_passphrase: Passphrase

    def create(self, name: str, roles: Sequence[KeyRole], *, passphrase: str | None) -> PublicKey:
        """Make a key.

        Args:
            name: New in this folder.
            roles: All offline or all online.
            passphrase: Encrypts an offline key; None for an online one.

        Raises:
            InputError: The name is taken, or an offline key has no passphrase.
            OutputError: The folder cannot be written.
        """
        checked_name("key", name)
        offline = any(role in OFFLINE_ROLES for role in roles)
        if offline and (not passphrase or any(role in ONLINE_ROLES for role in roles)):
            raise InputError(
                f"the key {name!r} for {', '.join(roles)} must be encrypted and must not be online as well",
                remedy="Give a passphrase, and a key of its own for the online roles.",
            )
        private = Ed25519PrivateKey.generate()
        raw = private.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
        value = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()
        public = PublicKey(name, tuple(roles), value)
        described = {"format": _FORMAT, "name": name, "roles": list(roles), "public": value}
        secret = _encrypted(raw, passphrase, value) if passphrase else {"plain": raw.hex()}
        self._write(f"{name}.key.json", described | secret, mode=0o600)
        self._write(f"{name}.pub.json", described, mode=0o644)
        return public

    def public_keys(self) -> list[PublicKey]:
        """Return all keys of the folder, those of others included."""
        return [read_public_key(path) for path in sorted(self.path.glob("*.pub.json"))]

    def private_roles(self) -> set[KeyRole]:
        """Return the roles of all keys whose private half is here, encrypted or not.

        Raises:
            InputError: A key's file is damaged.
        """
        return {role for path in self.path.glob("*.key.json") for role in _public(_read(path), path).roles}

    def signers(self, keyids: Sequence[str]) -> list[CryptoSigner]:
        """Return signers for those of some keys whose private half is here.

        Args:
            keyids: As metadata names them.

        Raises:
            InputError: A key's file is damaged, or the passphrase is wrong.
        """
        found = []
        for path in sorted(self.path.glob("*.key.json")):
            described = _read(path)
            public = _public(described, path)
            if public.keyid in keyids:
                raw = _decrypted(described, path, self.ask_passphrase)
                private = Ed25519PrivateKey.from_private_bytes(raw)
                if private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex() != public.value:
                    raise InputError(f"{path} holds another key than it says", remedy="Restore it from a copy.")
                found.append(CryptoSigner(private, public.for_metadata()))
        return found

    def _write(self, name: str, content: dict[str, Any], *, mode: int) -> None:
        path = self.path / name
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                json.dump(content, stream, indent=1)
                stream.flush()
                os.fsync(stream.fileno())
        except FileExistsError:
            raise InputError(f"{path} exists already", remedy="Choose another name for the key.") from None
        except OSError as error:
            raise OutputError(
                f"{path} cannot be written: {error.strerror}",
                remedy="Permit writing there, or name another folder.",
            ) from error


def read_public_key(path: Path) -> PublicKey:
    """Return the public key in a file.

    Raises:
        InputError: It is missing or holds none.
    """
    return _public(_read(path), path)


def _read(path: Path) -> dict[str, Any]:
    try:
        described = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path} does not exist", remedy="Check the path of the key.") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a key: {error}", remedy="Restore it from a copy.") from error
    if not isinstance(described, dict) or described.get("format") != _FORMAT:
        raise InputError(f"{path} is no key of Edgewright", remedy="Name a file made by 'edgewright keys'.")
    return described


def _public(described: dict[str, Any], path: Path) -> PublicKey:
    try:
        name, roles, value = described["name"], described["roles"], described["public"]
        if len(bytes.fromhex(value)) != 32 or any(role not in (*OFFLINE_ROLES, *ONLINE_ROLES) for role in roles):
            raise ValueError("no such key or role")
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged: {error}", remedy="Restore it from a copy.") from error
    return PublicKey(checked_name("key", name), tuple(roles), value)


def _encrypted(raw: bytes, passphrase: str, value: str) -> dict[str, Any]:
    salt, nonce = os.urandom(16), os.urandom(12)
    key = Scrypt(salt, 32, _SCRYPT_N, _SCRYPT_R, _SCRYPT_P).derive(passphrase.encode())
    return {
        "scrypt": {"salt": salt.hex(), "n": _SCRYPT_N, "r": _SCRYPT_R, "p": _SCRYPT_P},
        "nonce": nonce.hex(),
        "sealed": AESGCM(key).encrypt(nonce, raw, value.encode()).hex(),
    }


def _decrypted(described: dict[str, Any], path: Path, ask: Passphrase) -> bytes:
    try:
        if "plain" in described:
            return bytes.fromhex(described["plain"])
        kdf = described["scrypt"]
        if kdf["n"] > _SCRYPT_N or kdf["r"] > _SCRYPT_R or kdf["p"] > _SCRYPT_P:
            raise ValueError("its key derivation asks for too much memory")
        scrypt = Scrypt(bytes.fromhex(kdf["salt"]), 32, kdf["n"], kdf["r"], kdf["p"])
        key = scrypt.derive(ask(described["name"]).encode())
        nonce, sealed = bytes.fromhex(described["nonce"]), bytes.fromhex(described["sealed"])
        return AESGCM(key).decrypt(nonce, sealed, described["public"].encode())
    except InvalidTag:
        raise InputError(
            f"the passphrase does not open {path.name}", remedy="Check EDGEWRIGHT_PASSPHRASE, or type it again."
        ) from None
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged: {error}", remedy="Restore it from a copy.") from error
