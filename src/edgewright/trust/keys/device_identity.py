"""Who a device is: a key that never leaves it, and requests signed with it.

Whoever serves HTTP hands them what came in. A request is bound to its audience, its
method and path, its body and its time, and its nonce counts once, so that one that was overheard is of no use.
"""

import base64
import binascii
import datetime
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from edgewright.contract.errors import InputError, WorkError
from edgewright.trust.keys.keystore import write_secret

__all__ = [
    "AuthenticationError",
    "DeviceKey",
    "ProofClaims",
    "RequestProof",
    "RequestVerifier",
    "device_id_of",
    "load_or_create_device_key",
    "parse_proof",
]

_KEY_BYTES = 32
_LIFETIME = datetime.timedelta(minutes=5)
_MAX_NONCES = 100_000


class AuthenticationError(WorkError):
    """A token or a request is not to be believed."""

    code = "unauthenticated"


class ProofClaims(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a proof says.

    Attributes:
        device_id: Who sends the request.
        audience: Whom it is for.
        method: Of the request.
        path: Of the request.
        body_sha256: sha256 of the body, hexadecimal.
        issued_at: When, UTC, ISO 8601.
        nonce: That counts once.
    """

    device_id: str
    audience: str
    method: str
    path: str
    body_sha256: str
    issued_at: str
    nonce: str


_decode_claims = msgspec.json.Decoder(ProofClaims).decode
# No + and / are permitted where - and _ stand for them.
_URL_SAFE = str.maketrans("-_+/", "+/!!")


def device_id_of(public: bytes) -> str:
    """Return a device's name, which its key alone can prove.

    Args:
        public: Its Ed25519 key, 32 bytes.
    """
    return hashlib.sha256(b"edgewright.device.1" + public).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class DeviceKey:
    """A device's own key.

    Attributes:
        private: Ed25519.
    """

    private: Ed25519PrivateKey

    @property
    def public(self) -> bytes:
        """Return the public half, 32 bytes."""
        return self.private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    def sign(self, audience: str, method: str, path: str, body: bytes, *, now: datetime.datetime) -> str:
        """Return what a request carries to prove who sends it.

        Args:
            audience: Whom it is for.
            method: Of the request.
            path: Of the request.
            body: Of the request.
            now: The device's clock.
        """
        claims = ProofClaims(
            device_id_of(self.public),
            audience,
            method,
            path,
            hashlib.sha256(body).hexdigest(),
            now.isoformat(),
            os.urandom(16).hex(),
        )
        content = msgspec.json.encode(claims)
        return ".".join(base64.urlsafe_b64encode(part).decode() for part in (content, self.private.sign(content)))


def load_or_create_device_key(path: Path) -> DeviceKey:
    """Return the key in a file; one is made if there is none.

    Raises:
        InputError: The file holds no key.
        OutputError: It cannot be written.
    """
    if not path.exists():
        private = Ed25519PrivateKey.generate()
        write_secret(path, private.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption()))
    content = path.read_bytes()
    if len(content) != _KEY_BYTES:
        raise InputError(f"{path} holds no device key", remedy="Enrol the device again.")
    return DeviceKey(Ed25519PrivateKey.from_private_bytes(content))


@dataclass(frozen=True, slots=True)
class RequestProof:
    """A proof that was read, and is not believed yet.

    Attributes:
        content: That was signed.
        signature: Of it, if it is one.
        claims: That it holds.
    """

    content: bytes
    signature: bytes
    claims: ProofClaims


def parse_proof(text: str) -> RequestProof:
    """Return what a request carries to prove who sends it.

    Raises:
        UnknownError: It cannot be read.
    """
    try:
        content, _, signature = text.translate(_URL_SAFE).encode("ascii").partition(b".")
        read = binascii.a2b_base64(content, strict_mode=True)
        return RequestProof(read, binascii.a2b_base64(signature, strict_mode=True), _decode_claims(read))
    except (ValueError, TypeError, RecursionError, msgspec.MsgspecError) as error:
        raise _not_authentic("its proof cannot be read or is not the device's") from error


@dataclass(slots=True)
class RequestVerifier:
    """Which signed requests are believed.

    Attributes:
        audience: Who is asked here.
        find_public_key: Returns a device's key by its name, None if it is unknown.
        now: The clock.
    """

    audience: str
    find_public_key: Callable[[str], bytes | None]
    now: Callable[[], datetime.datetime]
    _seen: dict[str, datetime.datetime] = field(default_factory=dict)

    def verify_once(self, proof: str, method: str, path: str, body: bytes) -> str:
        """Return which device a request is from; the same request is believed once, in this process.

        Args:
            proof: From `DeviceKey.sign`.
            method: Of the request, as it came.
            path: Of the request, as it came.
            body: Of the request, as it came.

        Raises:
            UnknownError: It is not signed by that device, for others, changed, old, or was sent before.
        """
        device_id, nonce = self.verify(proof, method, path, body)
        self._use_nonce(f"{device_id}.{nonce}")
        return device_id

    def verify(self, proof: str, method: str, path: str, body: bytes) -> tuple[str, str]:
        """Return which device signed a request, and its nonce: whoever asks must see to it that it counts once.

        For several processes that keep nonces together; see `verify_once`.

        Raises:
            UnknownError: It is not signed by that device, for others, changed, or old.
        """
        return self.verify_parsed(parse_proof(proof), method, path, body)

    def verify_parsed(self, proof: "RequestProof", method: str, path: str, body: bytes) -> tuple[str, str]:
        """As `verify`, for a proof that was read."""
        claims = proof.claims
        public = self.find_public_key(claims.device_id)
        if public is None or device_id_of(public) != claims.device_id:
            raise _not_authentic("its device is unknown")
        try:
            issued = datetime.datetime.fromisoformat(claims.issued_at)
            Ed25519PublicKey.from_public_bytes(public).verify(proof.signature, proof.content)
            age = abs(self.now() - issued)
        except (ValueError, TypeError, InvalidSignature) as error:
            raise _not_authentic("its proof cannot be read or is not the device's") from error
        told = (claims.audience, claims.method, claims.path, claims.body_sha256)
        if told != (self.audience, method, path, hashlib.sha256(body).hexdigest()):
            raise _not_authentic("it was signed for something else")
        if age > _LIFETIME:
            raise _not_authentic(f"it was signed at {claims.issued_at}")
        return claims.device_id, claims.nonce

    def _use_nonce(self, nonce: str) -> None:
        now = self.now()
        if nonce in self._seen:
            raise _not_authentic("it was sent before")
        if len(self._seen) >= _MAX_NONCES:
            oldest = now - 2 * _LIFETIME
            self._seen = {known: at for known, at in self._seen.items() if at > oldest}
            if len(self._seen) >= _MAX_NONCES:
                raise _not_authentic("too many requests came at the same time")
        self._seen[nonce] = now


def _not_authentic(reason: str) -> AuthenticationError:
    return AuthenticationError(
        f"the request is not believed: {reason}", remedy="Check the clocks, and enrol the device."
    )
