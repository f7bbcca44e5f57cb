"""A sum under masks that cancel: the server's part, which is believed by nobody. See `secagg` for the steps.

It takes each device's letter of the step that is open, gives devices what they pull, and, once survivors revealed
enough shares, takes the masks off the sum. Where fewer than t of a device's neighbours revealed, there is no sum.
"""

from collections.abc import Iterator
from typing import Literal

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from edgewright.contract.errors import DataError
from edgewright.privacy.bit_packing import UnsignedArray, unpack_bits, word_type
from edgewright.privacy.mask import add_mask, subtract_mask
from edgewright.privacy.roster import (
    MAX_DEVICES,
    DeclinedError,
    EnrolmentList,
    MessageReceipt,
    ParticipantList,
    ProtocolTerms,
    SignedMessage,
    SignedMessages,
    check_cohort_size,
    decode_message,
    encode_message,
)
from edgewright.privacy.secagg_client import (
    AdvertisedKeys,
    IncomingShares,
    OutgoingShares,
    RevealedShares,
    ShareInbox,
    ShareKind,
    SurvivorLists,
    mask_key_pair,
    pairwise_mask_key,
    parse_keys,
    seed_commitment,
    self_mask_key,
    share_tag,
)
from edgewright.privacy.shamir import combine_shares

__all__ = ["SERVER_STEPS", "SecAggServer"]

ServerStep = Literal["advertise", "share", "mask", "reveal", "done"]
SERVER_STEPS: tuple[ServerStep, ...] = ("advertise", "share", "mask", "reveal", "done")


class SecAggServer:
    """One sum.

    Args:
        terms: Of the sum.
        enrolled: Devices that exist; of others nothing is taken.
        most: Devices that may be in the sum.
    """

    def __init__(
        self, terms: ProtocolTerms, *, enrolment_list: EnrolmentList | None = None, max_devices: int = MAX_DEVICES
    ) -> None:
        self.terms = terms
        self._enrolled, self._most = enrolment_list, max_devices
        self._arrived = 0
        self.step: ServerStep = "advertise"
        self._total: UnsignedArray = np.zeros(terms.vector_length, word_type(terms.bits))
        self._messages: dict[bytes, SignedMessage] = {}
        self._keys: dict[bytes, AdvertisedKeys] = {}
        self._used: set[bytes] = set()
        self._participants = ParticipantList(terms, ())
        self._parcels: dict[bytes, OutgoingShares] = {}
        self._survivors: dict[bytes, MessageReceipt] = {}
        self._revealed: dict[bytes, dict[int, tuple[ShareKind, bytes]]] = {}
        self._taken: dict[tuple[str, bytes], MessageReceipt] = {}

    @property
    def device_count(self) -> int:
        """Return how many have sent the letter of the open step."""
        return self._arrived

    @property
    def survivor_count(self) -> int:
        """Return how many devices are in the sum."""
        return len(self._survivors)

    def accept(self, step: str, content: bytes) -> None:
        """Take a device's letter; one that was taken before may come again.

        Args:
            step: That it is for.
            content: As it came.

        Raises:
            DeclinedError: It is not what this device may say now.
        """
        letter = decode_message(content, SignedMessage)
        if self._enrolled is not None:
            self._enrolled.check_enrolled([letter.sender])
        letter.check(self.terms, step, b"" if step == "advertise" else self._participants.digest)
        known = self._taken.get((step, letter.sender))
        if known is not None:
            if known != letter.receipt():
                raise DeclinedError(
                    "equivocation", "this device has said something else at this step", [letter.sender]
                )
            return
        if step != self.step or step == "done":
            raise DeclinedError("step", f"a letter for {step} came, {self.step} is open")
        if self._arrived >= self._most:
            raise DeclinedError(
                "cohort", f"{self._most} devices are in the sum, as many as may be", [letter.sender]
            )
        if step != "advertise" and letter.sender not in self._participants.key_bodies:
            raise DeclinedError("participants", f"{letter.sender[:8].hex()} is not in the roster", [letter.sender])
        {
            "advertise": self._accept_keys,
            "share": self._accept_shares,
            "mask": self._accept_masked_values,
            "reveal": self._accept_revealed_shares,
        }[step](letter)
        self._taken[step, letter.sender] = letter.receipt()
        self._arrived += 1

    def advance(self) -> None:
        """Close the step that is open.

        Raises:
            DeclinedError: Too few devices are left for a sum.
        """
        if self.step == "advertise":
            self._participants = ParticipantList.verified(
                self.terms, (self._messages[device] for device in sorted(self._messages))
            )
        elif self.step in ("share", "mask"):
            check_cohort_size(self.terms, self.device_count)
        self.step, self._arrived = SERVER_STEPS[min(SERVER_STEPS.index(self.step) + 1, len(SERVER_STEPS) - 1)], 0

    def participants(self) -> bytes:
        """Return what devices pull before they share.

        Raises:
            DeclinedError: It is not complete yet.
        """
        self._require_past("advertise")
        return encode_message(SignedMessages(self._participants.messages))

    def share_inbox(self, device: bytes) -> bytes:
        """Return what a device pulls before it masks.

        Raises:
            DeclinedError: Devices still share, or this one did not.
        """
        self._require_past("share")
        return encode_message(ShareInbox(tuple(self._incoming_shares(device))))

    def survivor_lists(self) -> bytes:
        """Return what devices pull before they reveal.

        Raises:
            DeclinedError: Devices still mask.
        """
        self._require_past("mask")
        survivors = tuple(self._survivors[device] for device in sorted(self._survivors))
        return encode_message(
            SurvivorLists(survivors, tuple(sorted(self._participants.key_bodies.keys() - self._survivors.keys())))
        )

    def unmask_sum(self) -> UnsignedArray:
        """Take the masks off.

        Returns:
            Shape [length], the sum of the survivors' values mod 2^bits.

        Raises:
            DeclinedError: Too few shares of a device were revealed, or they are not of what it committed to.
        """
        self._require_past("mask")
        total = self._total.copy()
        for device in sorted(self._survivors):
            subtract_mask(
                total, self_mask_key(self._participants, device, self._reconstruct_self_mask_seed(device))
            )
        for device in sorted(self._parcels.keys() - self._survivors.keys()):
            partners = [other for other in self._sharing_neighbours(device) if other in self._survivors]
            private = self._reconstruct_mask_key(device) if partners else None
            for other in partners:
                assert private is not None  # noqa: S101 - for the type checker
                key = pairwise_mask_key(self._participants, private, self._keys[other].mask_key, device, other)
                # The partner's side of the mask is in the sum, so its opposite is added.
                (add_mask if device < other else subtract_mask)(total, key)
        total &= total.dtype.type((1 << self.terms.bits) - 1)
        return total

    def _accept_keys(self, message: SignedMessage) -> None:
        keys = parse_keys(message.sender, message.body)
        parts = {keys.share_key, keys.mask_key, keys.self_mask_commitment}
        if len(parts) < 3 or parts & self._used:
            raise DeclinedError(
                "participants", "a key or a commitment was used by another device", [message.sender]
            )
        probe = X25519PrivateKey.generate()
        try:
            for public in (keys.share_key, keys.mask_key):
                probe.exchange(X25519PublicKey.from_public_bytes(public))
        except ValueError as error:
            raise DeclinedError("message", "a key is none", [message.sender]) from error
        self._used |= parts
        self._messages[message.sender], self._keys[message.sender] = message, keys

    def _accept_shares(self, message: SignedMessage) -> None:
        parcels = decode_message(message.body, OutgoingShares)
        neighbours = self._participants.neighbours(message.sender)
        if len(parcels.shares) != len(neighbours):
            raise DeclinedError(
                "shares", f"{len(parcels.shares)} shares came for {len(neighbours)} neighbours", [message.sender]
            )
        self._parcels[message.sender] = parcels

    def _accept_masked_values(self, message: SignedMessage) -> None:
        if message.sender not in self._parcels:
            raise DeclinedError("step", "this device did not share", [message.sender])
        try:
            self._total += unpack_bits(message.body, self.terms.bits, self.terms.vector_length)
        except DataError as error:
            raise DeclinedError("message", error.message, [message.sender]) from error
        self._survivors[message.sender] = message.receipt()

    def _accept_revealed_shares(self, message: SignedMessage) -> None:
        holder = message.sender
        if holder not in self._survivors:
            raise DeclinedError("step", "this device did not mask", [holder])
        shares = decode_message(message.body, RevealedShares).shares
        if [owner for owner, _ in shares] != self._sharing_neighbours(holder):
            raise DeclinedError("shares", "the shares are not one of each neighbour", [holder])
        found: dict[bytes, tuple[int, ShareKind, bytes]] = {}
        for owner, value in shares:
            kind: ShareKind = "self_mask" if owner in self._survivors else "mask_key"
            place = self._participants.neighbours(owner).index(holder)
            sealed = self._parcels[owner].shares[place]
            if share_tag(self._participants, owner, holder, kind, value) != (
                sealed.self_mask_tag if kind == "self_mask" else sealed.mask_key_tag
            ):
                raise DeclinedError(
                    "shares", f"{holder[:8].hex()} gave another share of {owner[:8].hex()} than it got", [holder]
                )
            found[owner] = place + 1, kind, value
        for owner, (point, kind, value) in found.items():
            self._revealed.setdefault(owner, {})[point] = kind, value

    def _sharing_neighbours(self, device: bytes) -> list[bytes]:
        """Return the neighbours who sent shares, in order."""
        return [other for other in self._participants.neighbours(device) if other in self._parcels]

    def _incoming_shares(self, device: bytes) -> Iterator[IncomingShares]:
        if device not in self._parcels:
            raise DeclinedError("step", "this device did not share")
        for other in self._sharing_neighbours(device):
            yield IncomingShares(
                other, self._parcels[other].shares[self._participants.neighbours(other).index(device)]
            )

    def _reconstruct_seed(self, device: bytes) -> bytes:
        revealed = {point: value for point, (_, value) in self._revealed.get(device, {}).items()}
        try:
            return combine_shares(revealed, self.terms.threshold)
        except ValueError as error:
            raise DeclinedError("shares", f"{device[:8].hex()} cannot be unmasked: {error}", [device]) from error

    def _reconstruct_self_mask_seed(self, device: bytes) -> bytes:
        seed = self._reconstruct_seed(device)
        if seed_commitment(self.terms, device, seed) != self._keys[device].self_mask_commitment:
            raise DeclinedError("shares", f"{device[:8].hex()} shared another seed than its own", [device])
        return seed

    def _reconstruct_mask_key(self, device: bytes) -> X25519PrivateKey:
        private = mask_key_pair(self.terms, device, self._reconstruct_seed(device))
        if private.public_key().public_bytes_raw() != self._keys[device].mask_key:
            raise DeclinedError("shares", f"{device[:8].hex()} shared another seed than its own", [device])
        return private

    def _require_past(self, step: ServerStep) -> None:
        if SERVER_STEPS.index(self.step) <= SERVER_STEPS.index(step):
            raise DeclinedError("step", f"{step} is open")
