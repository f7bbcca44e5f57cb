"""A sum with a helper: one message per device, and two parties who would have to collude to see any of it.

A device draws a seed, sends the server its values minus the seed's mask, and beside them the seed, sealed to a
helper that somebody else runs (HPKE, RFC 9180, with X25519, HKDF-SHA256 and AES-128-GCM). The server passes the
sealed seeds on; the helper answers with the sum of the masks. It never sees values, and learns who took part and
when.

Rules that a device keeps: it writes one message per query and window, and sends those bytes again if asked again.

Rules that the helper enforces, before it answers with anything but a refusal:

- Each device signed this message under these terms, is on the enrolment list, and is there once.
- There are as many devices as the terms and the helper's own floor ask for, whichever is more.
- No seed came twice or was ever used before. Seeds and the answer's key are stored durably first.
- It answers once per query and window. The same set again gets the same answer, any other none.

Where one operator runs both, nothing but the noise of each device protects it.
"""

import os
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from itertools import pairwise
from threading import Lock
from typing import Protocol

import msgspec
import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from edgewright.contract.errors import DataError
from edgewright.privacy.bit_packing import Words, fitted, pack, unpack, words
from edgewright.privacy.mask import KEY_BYTES, add_mask, derive, digest, subtract_mask
from edgewright.privacy.roster import (
    MOST_DEVICES,
    DeclinedError,
    Enrolment,
    Sign,
    Terms,
    check_cohort,
    check_signature,
    decode,
    encode,
)

__all__ = ["Answer", "Ask", "Gatherer", "Gift", "Helper", "Slip", "Used", "UsedInMemory", "give"]

_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_128_GCM)
# Devices per piece of work, where several processes share it.
_CHUNK = 256
_TAG_BYTES = 16


class Gift(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """What a device sends.

    Attributes:
        sender: Its public key.
        masked: Its values minus the mask, packed.
        box: The mask's seed, sealed to the helper.
        signature: Over the terms, the masked values and the box.
    """

    sender: bytes
    masked: bytes
    box: bytes
    signature: bytes

    def slip(self) -> "Slip":
        """Return what the helper gets of it."""
        return Slip(self.sender, digest("body", self.masked), self.box, self.signature)


class Slip(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """What the helper gets of a device's message.

    Attributes:
        sender: The device.
        masked: Digest of its masked values.
        box: The mask's seed, sealed.
        signature: Of the device.
    """

    sender: bytes
    masked: bytes
    box: bytes
    signature: bytes

    def check(self, terms: Terms) -> None:
        """Refuse what its sender did not sign under these terms.

        Raises:
            DeclinedError: It is not the sender's, or was for something else.
        """
        check_signature(self.sender, _signed(terms, self.sender, self.masked, self.box), self.signature)


class Ask(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """What the server asks the helper.

    Attributes:
        terms: That the devices signed.
        slips: In order of their senders.
    """

    terms: Terms
    slips: tuple[Slip, ...]


class Answer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """What the helper answers.

    Attributes:
        asked: Digest of terms and slips.
        masks: Their sum, packed.
    """

    asked: bytes
    masks: bytes


def give(
    terms: Terms,
    helper: bytes,
    values: Words,
    device: bytes,
    sign: Sign,
    *,
    entropy: Callable[[int], bytes] = os.urandom,
) -> bytes:
    """Return a device's one message; whoever calls stores it before it is sent, and never writes a second one.

    Args:
        terms: From the device's own check of the signed query.
        helper: Public key of the helper, from the same query, 32 bytes.
        values: Shape [length], mod 2^bits, with this device's noise in them.
        device: Its public key.
        sign: Signs with it.
        entropy: Returns so many random bytes; anything else than the system's own is for tests.

    Raises:
        ValueError: The values are not what the terms say.
    """
    seed = entropy(KEY_BYTES)
    masked = fitted(values, terms.length, terms.bits)
    subtract_mask(masked, _mask_key(terms, device, seed))
    packed = pack(masked, terms.bits)
    box = _SUITE.encrypt(seed, X25519PublicKey.from_public_bytes(helper), _info(terms, device))
    return encode(Gift(device, packed, box, sign(_signed(terms, device, digest("body", packed), box))))


class Used(Protocol):
    """What a helper must never forget."""

    def answered(self, once: bytes) -> bytes | None:
        """Return the digest of what was answered under a key, None if nothing was."""

    def any_of(self, tags: Iterable[bytes]) -> bool:
        """Whether one of these seeds was used."""

    def claim(self, once: bytes, asked: bytes, tags: Iterable[bytes]) -> None:
        """Store an answer's key with what was asked, and its seeds, so that a power cut cannot undo it."""


class UsedInMemory:
    """For tests, and for a helper that ends after one sum."""

    def __init__(self) -> None:
        self._answered: dict[bytes, bytes] = {}
        self._tags: set[bytes] = set()

    def answered(self, once: bytes) -> bytes | None:
        """See `Used`."""
        return self._answered.get(once)

    def any_of(self, tags: Iterable[bytes]) -> bool:
        """See `Used`."""
        return not self._tags.isdisjoint(tags)

    def claim(self, once: bytes, asked: bytes, tags: Iterable[bytes]) -> None:
        """See `Used`."""
        self._tags.update(tags)
        self._answered[once] = asked


_Job = tuple[Terms, bytes, tuple[Slip, ...]]
_Part = tuple[list[bytes], list[tuple[bytes, str]], Words]
Spread = Callable[[Callable[[_Job], _Part], Iterable[_Job]], Iterable[_Part]]


class Helper:
    """The party that knows the masks and nothing else.

    Args:
        private: Its X25519 key, 32 bytes.
        enrolled: Devices that exist, from a list that the server cannot extend.
        used: What it must never forget.
        floor: Fewest devices that it would ever answer for, whatever the terms say.
        spread: Does the work; `map` of a pool of processes uses several cores.
    """

    def __init__(
        self, private: bytes, enrolled: Enrolment, used: Used, *, floor: int = 2, spread: Spread = map
    ) -> None:
        self._private, self._enrolled, self._used, self._floor, self._spread = (
            private,
            enrolled,
            used,
            floor,
            spread,
        )
        self._lock = Lock()

    @property
    def public(self) -> bytes:
        """Return what devices seal to, 32 bytes."""
        return X25519PrivateKey.from_private_bytes(self._private).public_key().public_bytes_raw()

    def answer(self, content: bytes) -> bytes:
        """Return the sum of the masks of a set of devices.

        Args:
            content: An `Ask`, as it came.

        Raises:
            DeclinedError: It breaks a rule; the culprits are those without whom the set could be asked again.
        """
        ask = decode(content, Ask)
        terms, senders = ask.terms, [slip.sender for slip in ask.slips]
        if any(one >= other for one, other in pairwise(senders)):
            raise DeclinedError("roster", "the slips are not in order, or a device is there twice")
        check_cohort(terms, len(senders), floor=self._floor)
        self._enrolled.check(senders)
        asked = digest("ask", content)
        self._check_once(terms, asked)
        jobs = ((terms, self._private, part) for part in _chunks(ask.slips))
        tags: list[bytes] = []
        bad: list[tuple[bytes, str]] = []
        total: Words = np.zeros(terms.length, words(terms.bits))
        for found, wrong, masks in self._spread(_open, jobs):
            tags += found
            bad += wrong
            total += masks
        if bad:
            message = f"{len(bad)} messages are not their devices', the first since {bad[0][1]}"
            raise DeclinedError("signature", message, (sender for sender, _ in bad))
        twice = len(set(tags)) != len(tags)
        with self._lock:
            if self._check_once(terms, asked):
                if twice or self._used.any_of(tags):
                    raise DeclinedError("seed", "a seed was used before")
                self._used.claim(terms.once, asked, tags)
        return encode(Answer(asked, pack(total, terms.bits)))

    def _check_once(self, terms: Terms, asked: bytes) -> bool:
        """Whether nothing was answered yet; refuse if something else was."""
        before = self._used.answered(terms.once)
        if before is not None and before != asked:
            raise DeclinedError("repeat", "the helper has answered this query and window for another set")
        return before is None


class Gatherer:
    """The server's part of one sum.

    Args:
        terms: Of the sum.
        masked: Holds what came, by sender; on a disk, where it is more than the memory.
        enrolled: Devices that exist; of others nothing is taken.
        most: Devices that may be in the sum.
    """

    def __init__(
        self,
        terms: Terms,
        masked: MutableMapping[bytes, bytes] | None = None,
        *,
        enrolled: Enrolment | None = None,
        most: int = MOST_DEVICES,
    ) -> None:
        self.terms = terms
        self._enrolled, self._most = enrolled, most
        self._masked: MutableMapping[bytes, bytes] = {} if masked is None else masked
        self._slips: dict[bytes, Slip] = {}
        self._asked = b""
        self._closed = False

    @property
    def devices(self) -> int:
        """Return how many sent something."""
        return len(self._slips)

    @property
    def closed(self) -> bool:
        """Return whether nobody is let in any more, since the helper was or is being asked."""
        return self._closed

    def take(self, content: bytes) -> None:
        """Take a device's message; the same may come again.

        Raises:
            DeclinedError: It is not an enrolled device's, of another size, another one than before, too late,
                or one too many.
        """
        gift = decode(content, Gift)
        if self._enrolled is not None:
            self._enrolled.check([gift.sender])
        slip = gift.slip()
        slip.check(self.terms)
        known = self._slips.get(gift.sender)
        if known is not None:
            if known != slip:
                raise DeclinedError("repeat", "this device has sent something else before", [gift.sender])
            return
        if self._closed:
            raise DeclinedError("step", "the helper was asked already", [gift.sender])
        if self.devices >= self._most:
            raise DeclinedError("cohort", f"{self._most} devices are in the sum, as many as may be", [gift.sender])
        try:
            unpack(gift.masked, self.terms.bits, self.terms.length)
        except DataError as error:
            raise DeclinedError("message", error.message, [gift.sender]) from error
        self._masked[gift.sender] = gift.masked
        self._slips[gift.sender] = slip

    def ask(self) -> bytes:
        """Return what to ask the helper; nobody is let in from now on.

        Raises:
            DeclinedError: Too few devices sent something.
        """
        check_cohort(self.terms, self.devices)
        self._closed = True
        content = encode(Ask(self.terms, tuple(self._slips[sender] for sender in sorted(self._slips))))
        self._asked = digest("ask", content)
        return content

    def leave_out(self, culprits: Iterable[bytes]) -> None:
        """Forget devices for whom the helper declined; it has to be asked again.

        Raises:
            DeclinedError: One of them was not in the set, so asking again would be no other question.
        """
        named = set(culprits)
        if not named or not named <= self._slips.keys():
            raise DeclinedError("roster", "the helper declines for devices that are not in the sum", named)
        for culprit in named:
            del self._slips[culprit], self._masked[culprit]

    def total(self, content: bytes) -> Words:
        """Return the sum.

        Args:
            content: An `Answer`, as it came.

        Returns:
            Shape [length], the devices' values mod 2^bits.

        Raises:
            DeclinedError: It is no answer to what was asked.
        """
        answer = decode(content, Answer)
        if not self._asked or answer.asked != self._asked:
            raise DeclinedError("step", "this is no answer to what was asked")
        try:
            total = unpack(answer.masks, self.terms.bits, self.terms.length).copy()
        except DataError as error:
            raise DeclinedError("message", error.message) from error
        for sender in self._slips:
            total += unpack(self._masked[sender], self.terms.bits, self.terms.length)
        total &= total.dtype.type((1 << self.terms.bits) - 1)
        return total


def _open(job: _Job) -> _Part:
    """Check messages, and return their seeds' tags, who is wrong and why, and the sum of their masks."""
    terms, raw, slips = job
    private = X25519PrivateKey.from_private_bytes(raw)
    total: Words = np.zeros(terms.length, words(terms.bits))
    tags, bad = [], []
    for slip in slips:
        try:
            slip.check(terms)
            seed = _SUITE.decrypt(slip.box, private, _info(terms, slip.sender))
            if len(seed) != KEY_BYTES:
                raise DeclinedError("seed", f"a seed has {len(seed)} bytes")
        except DeclinedError as error:
            bad.append((slip.sender, error.message))
        except (InvalidTag, ValueError):
            bad.append((slip.sender, "a seed does not open"))
        else:
            tags.append(digest("used seed", seed)[:_TAG_BYTES])
            add_mask(total, _mask_key(terms, slip.sender, seed))
    return tags, bad, total


def _chunks(slips: tuple[Slip, ...]) -> Iterator[tuple[Slip, ...]]:
    return (slips[start : start + _CHUNK] for start in range(0, len(slips), _CHUNK))


def _mask_key(terms: Terms, device: bytes, seed: bytes) -> bytes:
    return derive(seed, "helper mask", terms.query, terms.model, terms.digest, device)


def _info(terms: Terms, device: bytes) -> bytes:
    return digest("sealed seed", terms.digest, device)


def _signed(terms: Terms, device: bytes, masked: bytes, box: bytes) -> bytes:
    return digest("gift", terms.digest, device, masked, box)
