"""A sum under masks that cancel: the server's part, which is believed by nobody. See `secagg` for the steps.

It takes each device's letter of the step that is open, gives devices what they pull, and, once survivors revealed
enough shares, takes the masks off the sum. Where fewer than t of a device's neighbours revealed, there is no sum.
"""

from collections.abc import Iterator
from typing import Literal

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from edgewright.contract.errors import DataError
from edgewright.privacy.bit_packing import Words, unpack, words
from edgewright.privacy.mask import add_mask, subtract_mask
from edgewright.privacy.roster import (
    MOST_DEVICES,
    DeclinedError,
    Enrolment,
    Letter,
    Letters,
    Receipt,
    Roster,
    Terms,
    check_cohort,
    decode,
    encode,
)
from edgewright.privacy.secagg_client import (
    Inbox,
    Keys,
    Kind,
    Lists,
    Parcel,
    Parcels,
    Reveals,
    commitment,
    keys_of,
    mask_key_pair,
    own_key,
    pair_key,
    tag,
)
from edgewright.privacy.shamir import combine

__all__ = ["STEPS", "Collector"]

Step = Literal["join", "share", "mask", "reveal", "done"]
STEPS: tuple[Step, ...] = ("join", "share", "mask", "reveal", "done")


class Collector:
    """One sum.

    Args:
        terms: Of the sum.
        enrolled: Devices that exist; of others nothing is taken.
        most: Devices that may be in the sum.
    """

    def __init__(self, terms: Terms, *, enrolled: Enrolment | None = None, most: int = MOST_DEVICES) -> None:
        self.terms = terms
        self._enrolled, self._most = enrolled, most
        self._arrived = 0
        self.step: Step = "join"
        self._total: Words = np.zeros(terms.length, words(terms.bits))
        self._letters: dict[bytes, Letter] = {}
        self._keys: dict[bytes, Keys] = {}
        self._used: set[bytes] = set()
        self._roster = Roster(terms, ())
        self._parcels: dict[bytes, Parcels] = {}
        self._survivors: dict[bytes, Receipt] = {}
        self._revealed: dict[bytes, dict[int, tuple[Kind, bytes]]] = {}
        self._taken: dict[tuple[str, bytes], Receipt] = {}

    @property
    def devices(self) -> int:
        """Return how many have sent the letter of the open step."""
        return self._arrived

    @property
    def survivors(self) -> int:
        """Return how many devices are in the sum."""
        return len(self._survivors)

    def take(self, step: str, content: bytes) -> None:
        """Take a device's letter; one that was taken before may come again.

        Args:
            step: That it is for.
            content: As it came.

        Raises:
            DeclinedError: It is not what this device may say now.
        """
        letter = decode(content, Letter)
        if self._enrolled is not None:
            self._enrolled.check([letter.sender])
        letter.check(self.terms, step, b"" if step == "join" else self._roster.digest)
        known = self._taken.get((step, letter.sender))
        if known is not None:
            if known != letter.receipt():
                raise DeclinedError("repeat", "this device has said something else at this step", [letter.sender])
            return
        if step != self.step or step == "done":
            raise DeclinedError("step", f"a letter for {step} came, {self.step} is open")
        if self._arrived >= self._most:
            raise DeclinedError(
                "cohort", f"{self._most} devices are in the sum, as many as may be", [letter.sender]
            )
        if step != "join" and letter.sender not in self._roster.bodies:
            raise DeclinedError("roster", f"{letter.sender[:8].hex()} is not in the roster", [letter.sender])
        {"join": self._join, "share": self._share, "mask": self._mask, "reveal": self._reveal}[step](letter)
        self._taken[step, letter.sender] = letter.receipt()
        self._arrived += 1

    def advance(self) -> None:
        """Close the step that is open.

        Raises:
            DeclinedError: Too few devices are left for a sum.
        """
        if self.step == "join":
            self._roster = Roster.opened(self.terms, (self._letters[device] for device in sorted(self._letters)))
        elif self.step in ("share", "mask"):
            check_cohort(self.terms, self.devices)
        self.step, self._arrived = STEPS[min(STEPS.index(self.step) + 1, len(STEPS) - 1)], 0

    def roster(self) -> bytes:
        """Return what devices pull before they share.

        Raises:
            DeclinedError: It is not complete yet.
        """
        self._is_past("join")
        return encode(Letters(self._roster.letters))

    def inbox(self, device: bytes) -> bytes:
        """Return what a device pulls before it masks.

        Raises:
            DeclinedError: Devices still share, or this one did not.
        """
        self._is_past("share")
        return encode(Inbox(tuple(self._sent_to(device))))

    def lists(self) -> bytes:
        """Return what devices pull before they reveal.

        Raises:
            DeclinedError: Devices still mask.
        """
        self._is_past("mask")
        survivors = tuple(self._survivors[device] for device in sorted(self._survivors))
        return encode(Lists(survivors, tuple(sorted(self._roster.bodies.keys() - self._survivors.keys()))))

    def total(self) -> Words:
        """Take the masks off.

        Returns:
            Shape [length], the sum of the survivors' values mod 2^bits.

        Raises:
            DeclinedError: Too few shares of a device were revealed, or they are not of what it committed to.
        """
        self._is_past("mask")
        total = self._total.copy()
        for device in sorted(self._survivors):
            subtract_mask(total, own_key(self._roster, device, self._own_seed(device)))
        for device in sorted(self._parcels.keys() - self._survivors.keys()):
            partners = [other for other in self._sharers(device) if other in self._survivors]
            private = self._mask_key(device) if partners else None
            for other in partners:
                assert private is not None  # noqa: S101 - for the type checker
                key = pair_key(self._roster, private, self._keys[other].mask, device, other)
                # The partner's side of the mask is in the sum, so its opposite is added.
                (add_mask if device < other else subtract_mask)(total, key)
        total &= total.dtype.type((1 << self.terms.bits) - 1)
        return total

    def _join(self, letter: Letter) -> None:
        keys = keys_of(letter.sender, letter.body)
        parts = {keys.seal, keys.mask, keys.commitment}
        if len(parts) < 3 or parts & self._used:
            raise DeclinedError("roster", "a key or a commitment was used by another device", [letter.sender])
        probe = X25519PrivateKey.generate()
        try:
            for public in (keys.seal, keys.mask):
                probe.exchange(X25519PublicKey.from_public_bytes(public))
        except ValueError as error:
            raise DeclinedError("message", "a key is none", [letter.sender]) from error
        self._used |= parts
        self._letters[letter.sender], self._keys[letter.sender] = letter, keys

    def _share(self, letter: Letter) -> None:
        parcels = decode(letter.body, Parcels)
        neighbours = self._roster.neighbours(letter.sender)
        if len(parcels.sealed) != len(neighbours):
            raise DeclinedError(
                "shares", f"{len(parcels.sealed)} shares came for {len(neighbours)} neighbours", [letter.sender]
            )
        self._parcels[letter.sender] = parcels

    def _mask(self, letter: Letter) -> None:
        if letter.sender not in self._parcels:
            raise DeclinedError("step", "this device did not share", [letter.sender])
        try:
            self._total += unpack(letter.body, self.terms.bits, self.terms.length)
        except DataError as error:
            raise DeclinedError("message", error.message, [letter.sender]) from error
        self._survivors[letter.sender] = letter.receipt()

    def _reveal(self, letter: Letter) -> None:
        holder = letter.sender
        if holder not in self._survivors:
            raise DeclinedError("step", "this device did not mask", [holder])
        shares = decode(letter.body, Reveals).shares
        if [owner for owner, _ in shares] != self._sharers(holder):
            raise DeclinedError("shares", "the shares are not one of each neighbour", [holder])
        found: dict[bytes, tuple[int, Kind, bytes]] = {}
        for owner, value in shares:
            kind: Kind = "own" if owner in self._survivors else "pair"
            place = self._roster.neighbours(owner).index(holder)
            sealed = self._parcels[owner].sealed[place]
            if tag(self._roster, owner, holder, kind, value) != (
                sealed.own_tag if kind == "own" else sealed.pair_tag
            ):
                raise DeclinedError(
                    "shares", f"{holder[:8].hex()} gave another share of {owner[:8].hex()} than it got", [holder]
                )
            found[owner] = place + 1, kind, value
        for owner, (point, kind, value) in found.items():
            self._revealed.setdefault(owner, {})[point] = kind, value

    def _sharers(self, device: bytes) -> list[bytes]:
        """Return the neighbours who sent shares, in order."""
        return [other for other in self._roster.neighbours(device) if other in self._parcels]

    def _sent_to(self, device: bytes) -> Iterator[Parcel]:
        if device not in self._parcels:
            raise DeclinedError("step", "this device did not share")
        for other in self._sharers(device):
            yield Parcel(other, self._parcels[other].sealed[self._roster.neighbours(other).index(device)])

    def _seed(self, device: bytes) -> bytes:
        revealed = {point: value for point, (_, value) in self._revealed.get(device, {}).items()}
        try:
            return combine(revealed, self.terms.threshold)
        except ValueError as error:
            raise DeclinedError("shares", f"{device[:8].hex()} cannot be unmasked: {error}", [device]) from error

    def _own_seed(self, device: bytes) -> bytes:
        seed = self._seed(device)
        if commitment(self.terms, device, seed) != self._keys[device].commitment:
            raise DeclinedError("shares", f"{device[:8].hex()} shared another seed than its own", [device])
        return seed

    def _mask_key(self, device: bytes) -> X25519PrivateKey:
        private = mask_key_pair(self.terms, device, self._seed(device))
        if private.public_key().public_bytes_raw() != self._keys[device].mask:
            raise DeclinedError("shares", f"{device[:8].hex()} shared another seed than its own", [device])
        return private

    def _is_past(self, step: Step) -> None:
        if STEPS.index(self.step) <= STEPS.index(step):
            raise DeclinedError("step", f"{step} is open")
