"""Who takes part in a private sum and on which terms; what is signed, counted and derived before masks are.

- A roster is every device's signed letter for one query, under one set of terms. Whoever relies on it has all of it
  and checks each signature, that nobody and no key is there twice, and that it has as many as the terms ask for.
- Who is whose neighbour follows from the hash of the complete roster, so nobody can choose it for one device. A
  server that may leave letters out can still try many rosters; each try is a new draw of all neighbours.
- An enrolment list is signed by a key that the server does not have, so the server alone cannot extend it.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal, Self, TypeVar

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from edgewright.contract.errors import InputError, WorkError
from edgewright.privacy.bit_packing import MAX_BITS, MIN_BITS
from edgewright.privacy.mask import labelled_digest

__all__ = [
    "MAX_DEVICES",
    "DeclineReason",
    "DeclinedError",
    "EnrolmentList",
    "MessageReceipt",
    "ParticipantList",
    "ProtocolTerms",
    "SignFunction",
    "SignedMessage",
    "SignedMessages",
    "check_cohort_size",
    "check_distinct",
    "check_signature",
    "decode_message",
    "encode_message",
    "sign_message",
    "verify_enrolment_list",
]

SignFunction = Callable[[bytes], bytes]
DeclineReason = Literal[
    "cohort",  # too few devices
    "enrolment",  # a device that nobody enrolled
    "survivors",  # survivors and dropouts that do not fit together
    "message",  # unreadable, or of the wrong size
    "query",  # other terms than those that the device was signed
    "equivocation",  # asked again, and differently
    "participants",  # devices or keys twice, or not the roster that others have
    "seed",  # a seed that was used before
    "shares",  # too few, or malformed
    "signature",  # not by who it claims to be
    "step",  # not what comes next
]

ID_BYTES = DIGEST_BYTES = 32
SIGNATURE_BYTES = 64
MAX_DEVICES = 20_000
_MAX_MESSAGE_BYTES = 1 << 26
_Record = TypeVar("_Record", bound=msgspec.Struct)


class DeclinedError(WorkError):
    """A device, a server or a helper does not go on with a sum.

    Args:
        reason: The kind.
        message: For people.
        culprits: Devices without which it could go on.
    """

    code = "sum_declined"

    def __init__(self, reason: DeclineReason, message: str, blamed_devices: Iterable[bytes] = ()) -> None:
        self.reason: DeclineReason = reason
        self.culprits = tuple(blamed_devices)
        super().__init__(message, remedy="Nothing was given away by this; the next query begins anew.")


class ProtocolTerms(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """What a device agreed to answer, from its own check of the signed query.

    Attributes:
        query_digest: sha256 of the signed query, 32 bytes.
        window: The period that is asked about; each query is answered once per window.
        bits: Of the modulus.
        vector_length: Integers in an answer.
        min_cohort: Fewest devices whose sum may come out; their noise is calibrated to that many.
        model_digest: sha256 of the model that the answer is about, 32 bytes.
        degree: Neighbours of each device; 0 where a helper holds the masks.
        threshold: Neighbours whose shares unmask a device; more than half, for one that is told lies about who
            dropped out must not be unmasked twice.
    """

    query_digest: bytes
    window: str
    bits: int
    vector_length: int
    min_cohort: int
    model_digest: bytes = bytes(DIGEST_BYTES)
    degree: int = 0
    threshold: int = 0

    def __post_init__(self) -> None:
        """Refuse terms under which nothing would be private."""
        if {len(self.query_digest), len(self.model_digest)} != {DIGEST_BYTES} or not 1 <= len(
            self.window.encode()
        ) <= 200:
            raise InputError(
                f"the query's digest has {len(self.query_digest)} bytes, the model's "
                f"{len(self.model_digest)}, the window "
                f"{len(self.window)} letters",
                remedy="Give digests of 32 bytes and a window of 1 to 200.",
            )
        if not (MIN_BITS <= self.bits <= MAX_BITS and 1 <= self.vector_length <= _MAX_MESSAGE_BYTES):
            raise InputError(
                f"{self.vector_length} integers of {self.bits} bits",
                remedy=f"Sum 1 to {_MAX_MESSAGE_BYTES} of {MIN_BITS} to {MAX_BITS} bits.",
            )
        if not 2 <= self.min_cohort <= MAX_DEVICES:
            raise InputError(f"a cohort of {self.min_cohort}", remedy=f"Take 2 to {MAX_DEVICES} devices.")
        if self.degree == self.threshold == 0:
            return
        if not self.degree // 2 < self.threshold <= self.degree < self.min_cohort:
            raise InputError(
                f"{self.threshold} of {self.degree} neighbours in a cohort of {self.min_cohort}",
                remedy="Take fewer neighbours than devices, and more than half of them as the threshold.",
            )

    @property
    def digest(self) -> bytes:
        """Return what every signature and key is bound to, 32 bytes."""
        numbers = (self.bits, self.vector_length, self.min_cohort, self.degree, self.threshold)
        return labelled_digest(
            "terms",
            self.query_digest,
            self.window.encode(),
            self.model_digest,
            *(n.to_bytes(8, "big") for n in numbers),
        )

    @property
    def query_window_digest(self) -> bytes:
        """Return what is answered once: the query in its window, whatever else is said about it, 32 bytes."""
        return labelled_digest("once", self.query_digest, self.window.encode())


class SignedMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """What a device says at one step.

    Attributes:
        sender: Its public key, by which it is known.
        body: What it says.
        signature: Over the terms, the roster, the step and the body.
    """

    sender: bytes
    body: bytes
    signature: bytes

    def check(self, terms: ProtocolTerms, step: str, participants_digest: bytes = b"") -> None:
        """Refuse what its sender did not sign for this step of this sum.

        Args:
            terms: Of the sum.
            step: That it is for.
            participants_digest: Digest of the roster, once there is one.

        Raises:
            DeclinedError: It is not the sender's, or was for something else.
        """
        self.receipt().check(terms, step, participants_digest)

    def receipt(self) -> "MessageReceipt":
        """Return what proves to others that it was sent."""
        return MessageReceipt(self.sender, labelled_digest("body", self.body), self.signature)


class MessageReceipt(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """A letter without its body.

    Attributes:
        sender: Of the letter.
        body_digest: Digest of what it says.
        signature: Of the letter.
    """

    sender: bytes
    body_digest: bytes
    signature: bytes

    def check(self, terms: ProtocolTerms, step: str, participants_digest: bytes = b"") -> None:
        """See `Letter.check_enrolled`."""
        check_signature(
            self.sender,
            _signed_payload(terms, step, participants_digest, self.sender, self.body_digest),
            self.signature,
        )


class SignedMessages(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """Many of them, as they travel.

    Attributes:
        messages: In order of their senders.
    """

    messages: tuple[SignedMessage, ...]


def sign_message(
    terms: ProtocolTerms,
    step: str,
    sender: bytes,
    body: bytes,
    sign: SignFunction,
    participants_digest: bytes = b"",
) -> SignedMessage:
    """Return a letter.

    Args:
        terms: Of the sum.
        step: That it is for.
        sender: Public key of the device, 32 bytes.
        body: What it says.
        sign: Signs with the device's key.
        participants_digest: Digest of the roster, once there is one.
    """
    return SignedMessage(
        sender, body, sign(_signed_payload(terms, step, participants_digest, sender, labelled_digest("body", body)))
    )


def _signed_payload(
    terms: ProtocolTerms, step: str, participants_digest: bytes, sender: bytes, body: bytes
) -> bytes:
    return labelled_digest("letter", terms.digest, step.encode(), participants_digest, sender, body)


def check_signature(public_key: bytes, message: bytes, signature: bytes) -> None:
    """Refuse a message that the key did not sign (Ed25519).

    Raises:
        DeclinedError: It did not, or is no key.
    """
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError) as error:
        raise DeclinedError(
            "signature",
            f"a message is not signed by {public_key[:8].hex()}, who is said to have sent it",
            [public_key],
        ) from error


class EnrolmentList(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """Devices that exist, as somebody other than the server says.

    Attributes:
        version: Rises with every list.
        devices: Their public keys.
    """

    version: int
    devices: frozenset[bytes]

    def check_enrolled(self, devices: Iterable[bytes]) -> None:
        """Refuse devices that are not on the list.

        Raises:
            DeclinedError: Somebody is not.
        """
        strangers = [device for device in devices if device not in self.devices]
        if strangers:
            raise DeclinedError(
                "enrolment",
                f"{len(strangers)} devices are not enrolled, such as {strangers[0][:8].hex()}",
                strangers,
            )


def verify_enrolment_list(
    content: bytes, signature: bytes, authority_public_key: bytes, *, min_version: int = 0
) -> EnrolmentList:
    """Return an enrolment list.

    Args:
        content: The list, encoded.
        signature: Of the authority, over `digest("enrolment", content)`.
        authority_public_key: Public key of who enrols devices; the server must not have its private half.
        min_version: Highest version that was seen before.

    Raises:
        DeclinedError: It is not the authority's, unreadable, or an older one.
    """
    check_signature(authority_public_key, labelled_digest("enrolment", content), signature)
    enrolment = decode_message(content, EnrolmentList)
    if enrolment.version < min_version:
        raise DeclinedError(
            "enrolment", f"the enrolment list is of version {enrolment.version}, {min_version} was seen before"
        )
    return enrolment


@dataclass(frozen=True)
class ParticipantList:
    """Everybody who takes part, checked.

    Attributes:
        terms: That all of them signed.
        messages: Of the first step, in order of their senders.
    """

    terms: ProtocolTerms
    messages: tuple[SignedMessage, ...]

    @classmethod
    def verified(
        cls, terms: ProtocolTerms, messages: Iterable[SignedMessage], *, enrolment_list: EnrolmentList | None = None
    ) -> Self:
        """Return a roster that was checked in full.

        Args:
            terms: Of the sum.
            messages: Of all who take part.
            enrolment_list: Devices that exist, where the device has such a list.

        Raises:
            DeclinedError: Too few or too many devices, one twice, one unsigned, or one that is not enrolled.
        """
        ordered = tuple(messages)
        check_cohort_size(terms, len(ordered))
        senders = [letter.sender for letter in ordered]
        if any(one >= other for one, other in pairwise(senders)):
            raise DeclinedError("participants", "the roster is not in order, or holds a device twice")
        for letter in ordered:
            letter.check(terms, "advertise")
        if enrolment_list is not None:
            enrolment_list.check_enrolled(senders)
        return cls(terms, ordered)

    @cached_property
    def digest(self) -> bytes:
        """Return what keys are bound to, so that whoever has another roster shares no key, 32 bytes."""
        return labelled_digest(
            "participants", self.terms.digest, *(part for one in self.messages for part in (one.sender, one.body))
        )

    @cached_property
    def key_bodies(self) -> dict[bytes, bytes]:
        """Return what each device said when it joined."""
        return {letter.sender: letter.body for letter in self.messages}

    @cached_property
    def _ring_order(self) -> tuple[bytes, ...]:
        order = self.digest
        return tuple(sorted(self.key_bodies, key=lambda device: labelled_digest("ring", order, device)))

    @cached_property
    def _ring_positions(self) -> dict[bytes, int]:
        return {device: place for place, device in enumerate(self._ring_order)}

    def neighbours(self, device: bytes) -> tuple[bytes, ...]:
        """Return whom a device shares masks with, in order.

        A circulant graph (Harary 1962) on a ring in random order, as in SecAgg+ (Bell et al. 2020, section 3):
        everybody knows those who are nearest on both sides. An odd number of neighbours takes the device opposite
        as well; where a ring of odd size has none, everybody has one neighbour more.

        Raises:
            DeclinedError: The device is not in the roster.
        """
        place = self._ring_positions.get(device)
        if place is None:
            raise DeclinedError("participants", f"{device[:8].hex()} is not in the roster")
        size, degree = len(self._ring_order), self.terms.degree
        reach = (degree + size % 2) // 2 if degree % 2 else degree // 2
        steps = {step % size for one in range(1, reach + 1) for step in (one, -one)}
        if degree % 2 and size % 2 == 0:
            steps.add(size // 2)
        return tuple(sorted(self._ring_order[(place + step) % size] for step in steps - {0}))


def check_cohort_size(terms: ProtocolTerms, device_count: int, *, min_devices: int = 0) -> None:
    """Refuse a cohort that is too small for its noise, or too large to be read.

    Args:
        terms: Of the sum.
        device_count: In the cohort.
        min_devices: Fewest that whoever asks would ever accept.

    Raises:
        DeclinedError: It is.
    """
    least = max(terms.min_cohort, min_devices)
    if not least <= device_count <= MAX_DEVICES:
        raise DeclinedError("cohort", f"{device_count} devices take part, {least} to {MAX_DEVICES} may")


def check_distinct(description: str, values: Collection[bytes]) -> None:
    """Refuse values of which two are the same.

    Raises:
        DeclinedError: Two are.
    """
    if len(set(values)) != len(values):
        raise DeclinedError("participants", f"{description} are not all different")


def encode_message(record: msgspec.Struct) -> bytes:
    """Return a record as it travels."""
    return msgspec.msgpack.encode(record)


def decode_message(content: bytes, record_type: type[_Record]) -> _Record:
    """Return a record that came.

    Raises:
        DeclinedError: It is none of that kind.
    """
    try:
        return msgspec.msgpack.decode(content, type=record_type)
    except (msgspec.MsgspecError, InputError) as error:
        raise DeclinedError("message", f"no {record_type.__name__} can be read from what came: {error}") from error
