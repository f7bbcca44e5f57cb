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
from edgewright.privacy.bit_packing import LEAST_BITS, MOST_BITS
from edgewright.privacy.mask import digest

__all__ = [
    "MOST_DEVICES",
    "DeclinedError",
    "Enrolment",
    "Letter",
    "Letters",
    "Reason",
    "Receipt",
    "Roster",
    "Sign",
    "Terms",
    "check_cohort",
    "check_distinct",
    "check_signature",
    "decode",
    "encode",
    "open_enrolment",
    "sign_letter",
]

Sign = Callable[[bytes], bytes]
Reason = Literal[
    "cohort",  # too few devices
    "enrolment",  # a device that nobody enrolled
    "lists",  # survivors and dropouts that do not fit together
    "message",  # unreadable, or of the wrong size
    "query",  # other terms than those that the device was signed
    "repeat",  # asked again, and differently
    "roster",  # devices or keys twice, or not the roster that others have
    "seed",  # a seed that was used before
    "shares",  # too few, or malformed
    "signature",  # not by who it claims to be
    "step",  # not what comes next
]

ID_BYTES = DIGEST_BYTES = 32
SIGNATURE_BYTES = 64
MOST_DEVICES = 20_000
_LONGEST = 1 << 26
_Record = TypeVar("_Record", bound=msgspec.Struct)


class DeclinedError(WorkError):
    """A device, a server or a helper does not go on with a sum.

    Args:
        reason: The kind.
        message: For people.
        culprits: Devices without which it could go on.
    """

    code = "sum_declined"

    def __init__(self, reason: Reason, message: str, culprits: Iterable[bytes] = ()) -> None:
        self.reason: Reason = reason
        self.culprits = tuple(culprits)
        super().__init__(message, remedy="Nothing was given away by this; the next query begins anew.")


class Terms(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """What a device agreed to answer, from its own check of the signed query.

    Attributes:
        query: sha256 of the signed query, 32 bytes.
        window: The period that is asked about; each query is answered once per window.
        bits: Of the modulus.
        length: Integers in an answer.
        min_cohort: Fewest devices whose sum may come out; their noise is calibrated to that many.
        model: sha256 of the model that the answer is about, 32 bytes.
        degree: Neighbours of each device; 0 where a helper holds the masks.
        threshold: Neighbours whose shares unmask a device; more than half, for one that is told lies about who
            dropped out must not be unmasked twice.
    """

    query: bytes
    window: str
    bits: int
    length: int
    min_cohort: int
    model: bytes = bytes(DIGEST_BYTES)
    degree: int = 0
    threshold: int = 0

    def __post_init__(self) -> None:
        """Refuse terms under which nothing would be private."""
        if {len(self.query), len(self.model)} != {DIGEST_BYTES} or not 1 <= len(self.window.encode()) <= 200:
            raise InputError(
                f"the query's digest has {len(self.query)} bytes, the model's {len(self.model)}, the window "
                f"{len(self.window)} letters",
                remedy="Give digests of 32 bytes and a window of 1 to 200.",
            )
        if not (LEAST_BITS <= self.bits <= MOST_BITS and 1 <= self.length <= _LONGEST):
            raise InputError(
                f"{self.length} integers of {self.bits} bits",
                remedy=f"Sum 1 to {_LONGEST} of {LEAST_BITS} to {MOST_BITS} bits.",
            )
        if not 2 <= self.min_cohort <= MOST_DEVICES:
            raise InputError(f"a cohort of {self.min_cohort}", remedy=f"Take 2 to {MOST_DEVICES} devices.")
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
        numbers = (self.bits, self.length, self.min_cohort, self.degree, self.threshold)
        return digest(
            "terms", self.query, self.window.encode(), self.model, *(n.to_bytes(8, "big") for n in numbers)
        )

    @property
    def once(self) -> bytes:
        """Return what is answered once: the query in its window, whatever else is said about it, 32 bytes."""
        return digest("once", self.query, self.window.encode())


class Letter(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """What a device says at one step.

    Attributes:
        sender: Its public key, by which it is known.
        body: What it says.
        signature: Over the terms, the roster, the step and the body.
    """

    sender: bytes
    body: bytes
    signature: bytes

    def check(self, terms: Terms, step: str, roster: bytes = b"") -> None:
        """Refuse what its sender did not sign for this step of this sum.

        Args:
            terms: Of the sum.
            step: That it is for.
            roster: Digest of the roster, once there is one.

        Raises:
            DeclinedError: It is not the sender's, or was for something else.
        """
        self.receipt().check(terms, step, roster)

    def receipt(self) -> "Receipt":
        """Return what proves to others that it was sent."""
        return Receipt(self.sender, digest("body", self.body), self.signature)


class Receipt(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """A letter without its body.

    Attributes:
        sender: Of the letter.
        body: Digest of what it says.
        signature: Of the letter.
    """

    sender: bytes
    body: bytes
    signature: bytes

    def check(self, terms: Terms, step: str, roster: bytes = b"") -> None:
        """See `Letter.check`."""
        check_signature(self.sender, _signed(terms, step, roster, self.sender, self.body), self.signature)


class Letters(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """Many of them, as they travel.

    Attributes:
        letters: In order of their senders.
    """

    letters: tuple[Letter, ...]


def sign_letter(terms: Terms, step: str, sender: bytes, body: bytes, sign: Sign, roster: bytes = b"") -> Letter:
    """Return a letter.

    Args:
        terms: Of the sum.
        step: That it is for.
        sender: Public key of the device, 32 bytes.
        body: What it says.
        sign: Signs with the device's key.
        roster: Digest of the roster, once there is one.
    """
    return Letter(sender, body, sign(_signed(terms, step, roster, sender, digest("body", body))))


def _signed(terms: Terms, step: str, roster: bytes, sender: bytes, body: bytes) -> bytes:
    return digest("letter", terms.digest, step.encode(), roster, sender, body)


def check_signature(public: bytes, message: bytes, signature: bytes) -> None:
    """Refuse a message that the key did not sign (Ed25519).

    Raises:
        DeclinedError: It did not, or is no key.
    """
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError) as error:
        raise DeclinedError(
            "signature", f"a message is not signed by {public[:8].hex()}, who is said to have sent it", [public]
        ) from error


class Enrolment(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """Devices that exist, as somebody other than the server says.

    Attributes:
        version: Rises with every list.
        devices: Their public keys.
    """

    version: int
    devices: frozenset[bytes]

    def check(self, devices: Iterable[bytes]) -> None:
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


def open_enrolment(content: bytes, signature: bytes, authority: bytes, *, least_version: int = 0) -> Enrolment:
    """Return an enrolment list.

    Args:
        content: The list, encoded.
        signature: Of the authority, over `digest("enrolment", content)`.
        authority: Public key of who enrols devices; the server must not have its private half.
        least_version: Highest version that was seen before.

    Raises:
        DeclinedError: It is not the authority's, unreadable, or an older one.
    """
    check_signature(authority, digest("enrolment", content), signature)
    enrolment = decode(content, Enrolment)
    if enrolment.version < least_version:
        raise DeclinedError(
            "enrolment", f"the enrolment list is of version {enrolment.version}, {least_version} was seen before"
        )
    return enrolment


@dataclass(frozen=True)
class Roster:
    """Everybody who takes part, checked.

    Attributes:
        terms: That all of them signed.
        letters: Of the first step, in order of their senders.
    """

    terms: Terms
    letters: tuple[Letter, ...]

    @classmethod
    def opened(cls, terms: Terms, letters: Iterable[Letter], *, enrolled: Enrolment | None = None) -> Self:
        """Return a roster that was checked in full.

        Args:
            terms: Of the sum.
            letters: Of all who take part.
            enrolled: Devices that exist, where the device has such a list.

        Raises:
            DeclinedError: Too few or too many devices, one twice, one unsigned, or one that is not enrolled.
        """
        ordered = tuple(letters)
        check_cohort(terms, len(ordered))
        senders = [letter.sender for letter in ordered]
        if any(one >= other for one, other in pairwise(senders)):
            raise DeclinedError("roster", "the roster is not in order, or holds a device twice")
        for letter in ordered:
            letter.check(terms, "join")
        if enrolled is not None:
            enrolled.check(senders)
        return cls(terms, ordered)

    @cached_property
    def digest(self) -> bytes:
        """Return what keys are bound to, so that whoever has another roster shares no key, 32 bytes."""
        return digest(
            "roster", self.terms.digest, *(part for one in self.letters for part in (one.sender, one.body))
        )

    @cached_property
    def bodies(self) -> dict[bytes, bytes]:
        """Return what each device said when it joined."""
        return {letter.sender: letter.body for letter in self.letters}

    @cached_property
    def _ring(self) -> tuple[bytes, ...]:
        order = self.digest
        return tuple(sorted(self.bodies, key=lambda device: digest("ring", order, device)))

    @cached_property
    def _places(self) -> dict[bytes, int]:
        return {device: place for place, device in enumerate(self._ring)}

    def neighbours(self, device: bytes) -> tuple[bytes, ...]:
        """Return whom a device shares masks with, in order.

        A circulant graph (Harary 1962) on a ring in random order, as in SecAgg+ (Bell et al. 2020, section 3):
        everybody knows those who are nearest on both sides. An odd number of neighbours takes the device opposite
        as well; where a ring of odd size has none, everybody has one neighbour more.

        Raises:
            DeclinedError: The device is not in the roster.
        """
        place = self._places.get(device)
        if place is None:
            raise DeclinedError("roster", f"{device[:8].hex()} is not in the roster")
        size, degree = len(self._ring), self.terms.degree
        reach = (degree + size % 2) // 2 if degree % 2 else degree // 2
        steps = {step % size for one in range(1, reach + 1) for step in (one, -one)}
        if degree % 2 and size % 2 == 0:
            steps.add(size // 2)
        return tuple(sorted(self._ring[(place + step) % size] for step in steps - {0}))


def check_cohort(terms: Terms, devices: int, *, floor: int = 0) -> None:
    """Refuse a cohort that is too small for its noise, or too large to be read.

    Args:
        terms: Of the sum.
        devices: In the cohort.
        floor: Fewest that whoever asks would ever accept.

    Raises:
        DeclinedError: It is.
    """
    least = max(terms.min_cohort, floor)
    if not least <= devices <= MOST_DEVICES:
        raise DeclinedError("cohort", f"{devices} devices take part, {least} to {MOST_DEVICES} may")


def check_distinct(what: str, values: Collection[bytes]) -> None:
    """Refuse values of which two are the same.

    Raises:
        DeclinedError: Two are.
    """
    if len(set(values)) != len(values):
        raise DeclinedError("roster", f"{what} are not all different")


def encode(record: msgspec.Struct) -> bytes:
    """Return a record as it travels."""
    return msgspec.msgpack.encode(record)


def decode(content: bytes, kind: type[_Record]) -> _Record:
    """Return a record that came.

    Raises:
        DeclinedError: It is none of that kind.
    """
    try:
        return msgspec.msgpack.decode(content, type=kind)
    except (msgspec.MsgspecError, InputError) as error:
        raise DeclinedError("message", f"no {kind.__name__} can be read from what came: {error}") from error
