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
from edgewright.privacy.bit_packing import UnsignedArray, as_words, pack_bits, unpack_bits, word_type
from edgewright.privacy.mask import MASK_KEY_BYTES, add_mask, derive_key, labelled_digest, subtract_mask
from edgewright.privacy.roster import (
    MAX_DEVICES,
    DeclinedError,
    EnrolmentList,
    ProtocolTerms,
    SignFunction,
    check_cohort_size,
    check_signature,
    decode_message,
    encode_message,
)

__all__ = [
    "HelperRequest",
    "HelperResponse",
    "InMemoryUsedSeeds",
    "MaskHelper",
    "MaskSlip",
    "MaskedSubmission",
    "MaskedSumCollector",
    "UsedSeeds",
    "submit",
]

_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_128_GCM)
# Devices per piece of work, where several processes share it.
_SLIPS_PER_BATCH = 256
_TAG_BYTES = 16


class MaskedSubmission(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """What a device sends.

    Attributes:
        sender: Its public key.
        masked_values: Its values minus the mask, packed.
        sealed_seed: The mask's seed, sealed to the helper.
        signature: Over the terms, the masked values and the box.
    """

    sender: bytes
    masked_values: bytes
    sealed_seed: bytes
    signature: bytes

    def mask_slip(self) -> "MaskSlip":
        """Return what the helper gets of it."""
        return MaskSlip(self.sender, labelled_digest("body", self.masked_values), self.sealed_seed, self.signature)


class MaskSlip(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """What the helper gets of a device's message.

    Attributes:
        sender: The device.
        masked_digest: Digest of its masked values.
        sealed_seed: The mask's seed, sealed.
        signature: Of the device.
    """

    sender: bytes
    masked_digest: bytes
    sealed_seed: bytes
    signature: bytes

    def check(self, terms: ProtocolTerms) -> None:
        """Refuse what its sender did not sign under these terms.

        Raises:
            DeclinedError: It is not the sender's, or was for something else.
        """
        check_signature(
            self.sender, _signed_payload(terms, self.sender, self.masked_digest, self.sealed_seed), self.signature
        )


class HelperRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """What the server asks the helper.

    Attributes:
        terms: That the devices signed.
        slips: In order of their senders.
    """

    terms: ProtocolTerms
    slips: tuple[MaskSlip, ...]


class HelperResponse(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """What the helper answers.

    Attributes:
        request_digest: Digest of terms and slips.
        mask_sum: Their sum, packed.
    """

    request_digest: bytes
    mask_sum: bytes


def submit(
    terms: ProtocolTerms,
    helper_public_key: bytes,
    values: UnsignedArray,
    device: bytes,
    sign: SignFunction,
    *,
    entropy: Callable[[int], bytes] = os.urandom,
) -> bytes:
    """Return a device's one message; whoever calls stores it before it is sent, and never writes a second one.

    Args:
        terms: From the device's own check of the signed query.
        helper_public_key: Public key of the helper, from the same query, 32 bytes.
        values: Shape [length], mod 2^bits, with this device's noise in them.
        device: Its public key.
        sign: Signs with it.
        entropy: Returns so many random bytes; anything else than the system's own is for tests.

    Raises:
        ValueError: The values are not what the terms say.
    """
    seed = entropy(MASK_KEY_BYTES)
    masked = as_words(values, terms.vector_length, terms.bits)
    subtract_mask(masked, _mask_key(terms, device, seed))
    packed = pack_bits(masked, terms.bits)
    box = _SUITE.encrypt(seed, X25519PublicKey.from_public_bytes(helper_public_key), _hpke_info(terms, device))
    return encode_message(
        MaskedSubmission(
            device, packed, box, sign(_signed_payload(terms, device, labelled_digest("body", packed), box))
        )
    )


class UsedSeeds(Protocol):
    """What a helper must never forget."""

    def answered_digest(self, query_window_digest: bytes) -> bytes | None:
        """Return the digest of what was answered under a key, None if nothing was."""

    def any_used(self, seed_tags: Iterable[bytes]) -> bool:
        """Whether one of these seeds was used."""

    def claim_seeds(self, query_window_digest: bytes, request_digest: bytes, seed_tags: Iterable[bytes]) -> None:
        """Store an answer's key with what was asked, and its seeds, so that a power cut cannot undo it."""


class InMemoryUsedSeeds:
    """For tests, and for a helper that ends after one sum."""

    def __init__(self) -> None:
        self._answered: dict[bytes, bytes] = {}
        self._tags: set[bytes] = set()

    def answered_digest(self, query_window_digest: bytes) -> bytes | None:
        """See `UsedSeeds`."""
        return self._answered.get(query_window_digest)

    def any_used(self, seed_tags: Iterable[bytes]) -> bool:
        """See `UsedSeeds`."""
        return not self._tags.isdisjoint(seed_tags)

    def claim_seeds(self, query_window_digest: bytes, request_digest: bytes, seed_tags: Iterable[bytes]) -> None:
        """See `UsedSeeds`."""
        self._tags.update(seed_tags)
        self._answered[query_window_digest] = request_digest


_SlipBatch = tuple[ProtocolTerms, bytes, tuple[MaskSlip, ...]]
_OpenedBatch = tuple[list[bytes], list[tuple[bytes, str]], UnsignedArray]
MapChunks = Callable[[Callable[[_SlipBatch], _OpenedBatch], Iterable[_SlipBatch]], Iterable[_OpenedBatch]]


class MaskHelper:
    """The party that knows the masks and nothing else.

    Args:
        private: Its X25519 key, 32 bytes.
        enrolled: Devices that exist, from a list that the server cannot extend.
        used: What it must never forget.
        floor: Fewest devices that it would ever answer for, whatever the terms say.
        spread: Does the work; `map` of a pool of processes uses several cores.
    """

    def __init__(
        self,
        private_key: bytes,
        enrolment_list: EnrolmentList,
        used_seeds: UsedSeeds,
        *,
        min_devices: int = 2,
        map_chunks: MapChunks = map,
    ) -> None:
        self._private, self._enrolled, self._used, self._floor, self._spread = (
            private_key,
            enrolment_list,
            used_seeds,
            min_devices,
            map_chunks,
        )
        self._lock = Lock()

    @property
    def public_key(self) -> bytes:
        """Return what devices seal to, 32 bytes."""
        return X25519PrivateKey.from_private_bytes(self._private).public_key().public_bytes_raw()

    def answer_request(self, content: bytes) -> bytes:
        """Return the sum of the masks of a set of devices.

        Args:
            content: An `Ask`, as it came.

        Raises:
            DeclinedError: It breaks a rule; the culprits are those without whom the set could be asked again.
        """
        ask = decode_message(content, HelperRequest)
        terms, senders = ask.terms, [slip.sender for slip in ask.slips]
        if any(one >= other for one, other in pairwise(senders)):
            raise DeclinedError("participants", "the slips are not in order, or a device is there twice")
        check_cohort_size(terms, len(senders), min_devices=self._floor)
        self._enrolled.check_enrolled(senders)
        asked = labelled_digest("helper request", content)
        self._check_not_answered(terms, asked)
        jobs = ((terms, self._private, part) for part in _slip_batches(ask.slips))
        tags: list[bytes] = []
        bad: list[tuple[bytes, str]] = []
        total: UnsignedArray = np.zeros(terms.vector_length, word_type(terms.bits))
        for found, wrong, masks in self._spread(_open_slips, jobs):
            tags += found
            bad += wrong
            total += masks
        if bad:
            message = f"{len(bad)} messages are not their devices', the first since {bad[0][1]}"
            raise DeclinedError("signature", message, (sender for sender, _ in bad))
        twice = len(set(tags)) != len(tags)
        with self._lock:
            if self._check_not_answered(terms, asked):
                if twice or self._used.any_used(tags):
                    raise DeclinedError("seed", "a seed was used before")
                self._used.claim_seeds(terms.query_window_digest, asked, tags)
        return encode_message(HelperResponse(asked, pack_bits(total, terms.bits)))

    def _check_not_answered(self, terms: ProtocolTerms, request_digest: bytes) -> bool:
        """Whether nothing was answered yet; refuse if something else was."""
        before = self._used.answered_digest(terms.query_window_digest)
        if before is not None and before != request_digest:
            raise DeclinedError("equivocation", "the helper has answered this query and window for another set")
        return before is None


class MaskedSumCollector:
    """The server's part of one sum.

    Args:
        terms: Of the sum.
        masked: Holds what came, by sender; on a disk, where it is more than the memory.
        enrolled: Devices that exist; of others nothing is taken.
        most: Devices that may be in the sum.
    """

    def __init__(
        self,
        terms: ProtocolTerms,
        masked_values: MutableMapping[bytes, bytes] | None = None,
        *,
        enrolment_list: EnrolmentList | None = None,
        max_devices: int = MAX_DEVICES,
    ) -> None:
        self.terms = terms
        self._enrolled, self._most = enrolment_list, max_devices
        self._masked: MutableMapping[bytes, bytes] = {} if masked_values is None else masked_values
        self._slips: dict[bytes, MaskSlip] = {}
        self._request_digest = b""
        self._closed = False

    @property
    def device_count(self) -> int:
        """Return how many sent something."""
        return len(self._slips)

    @property
    def is_closed(self) -> bool:
        """Return whether nobody is let in any more, since the helper was or is being asked."""
        return self._closed

    def accept(self, content: bytes) -> None:
        """Take a device's message; the same may come again.

        Raises:
            DeclinedError: It is not an enrolled device's, of another size, another one than before, too late,
                or one too many.
        """
        gift = decode_message(content, MaskedSubmission)
        if self._enrolled is not None:
            self._enrolled.check_enrolled([gift.sender])
        slip = gift.mask_slip()
        slip.check(self.terms)
        known = self._slips.get(gift.sender)
        if known is not None:
            if known != slip:
                raise DeclinedError("equivocation", "this device has sent something else before", [gift.sender])
            return
        if self._closed:
            raise DeclinedError("step", "the helper was asked already", [gift.sender])
        if self.device_count >= self._most:
            raise DeclinedError("cohort", f"{self._most} devices are in the sum, as many as may be", [gift.sender])
        try:
            unpack_bits(gift.masked_values, self.terms.bits, self.terms.vector_length)
        except DataError as error:
            raise DeclinedError("message", error.message, [gift.sender]) from error
        self._masked[gift.sender] = gift.masked_values
        self._slips[gift.sender] = slip

    def helper_request(self) -> bytes:
        """Return what to ask the helper; nobody is let in from now on.

        Raises:
            DeclinedError: Too few devices sent something.
        """
        check_cohort_size(self.terms, self.device_count)
        self._closed = True
        content = encode_message(
            HelperRequest(self.terms, tuple(self._slips[sender] for sender in sorted(self._slips)))
        )
        self._request_digest = labelled_digest("helper request", content)
        return content

    def exclude(self, blamed_devices: Iterable[bytes]) -> None:
        """Forget devices for whom the helper declined; it has to be asked again.

        Raises:
            DeclinedError: One of them was not in the set, so asking again would be no other question.
        """
        named = set(blamed_devices)
        if not named or not named <= self._slips.keys():
            raise DeclinedError("participants", "the helper declines for devices that are not in the sum", named)
        for culprit in named:
            del self._slips[culprit], self._masked[culprit]

    def unmask_sum(self, content: bytes) -> UnsignedArray:
        """Return the sum.

        Args:
            content: An `HelperResponse`, as it came.

        Returns:
            Shape [length], the devices' values mod 2^bits.

        Raises:
            DeclinedError: It is no answer to what was asked.
        """
        answer = decode_message(content, HelperResponse)
        if not self._request_digest or answer.request_digest != self._request_digest:
            raise DeclinedError("step", "this is no answer to what was asked")
        try:
            total = unpack_bits(answer.mask_sum, self.terms.bits, self.terms.vector_length).copy()
        except DataError as error:
            raise DeclinedError("message", error.message) from error
        for sender in self._slips:
            total += unpack_bits(self._masked[sender], self.terms.bits, self.terms.vector_length)
        total &= total.dtype.type((1 << self.terms.bits) - 1)
        return total


def _open_slips(batch: _SlipBatch) -> _OpenedBatch:
    """Check messages, and return their seeds' tags, who is wrong and why, and the sum of their masks."""
    terms, raw, slips = batch
    private = X25519PrivateKey.from_private_bytes(raw)
    total: UnsignedArray = np.zeros(terms.vector_length, word_type(terms.bits))
    tags, bad = [], []
    for slip in slips:
        try:
            slip.check(terms)
            seed = _SUITE.decrypt(slip.sealed_seed, private, _hpke_info(terms, slip.sender))
            if len(seed) != MASK_KEY_BYTES:
                raise DeclinedError("seed", f"a seed has {len(seed)} bytes")
        except DeclinedError as error:
            bad.append((slip.sender, error.message))
        except (InvalidTag, ValueError):
            bad.append((slip.sender, "a seed does not open"))
        else:
            tags.append(labelled_digest("used seed", seed)[:_TAG_BYTES])
            add_mask(total, _mask_key(terms, slip.sender, seed))
    return tags, bad, total


def _slip_batches(slips: tuple[MaskSlip, ...]) -> Iterator[tuple[MaskSlip, ...]]:
    return (slips[start : start + _SLIPS_PER_BATCH] for start in range(0, len(slips), _SLIPS_PER_BATCH))


def _mask_key(terms: ProtocolTerms, device: bytes, seed: bytes) -> bytes:
    return derive_key(seed, "helper mask", terms.query_digest, terms.model_digest, terms.digest, device)


def _hpke_info(terms: ProtocolTerms, device: bytes) -> bytes:
    return labelled_digest("sealed seed", terms.digest, device)


def _signed_payload(terms: ProtocolTerms, device: bytes, masked_digest: bytes, sealed_seed: bytes) -> bytes:
    return labelled_digest("submit", terms.digest, device, masked_digest, sealed_seed)
