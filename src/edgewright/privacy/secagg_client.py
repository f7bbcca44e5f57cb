"""A sum under masks that cancel, with one server and nobody to trust: a device's part.

SecAgg+ (Bell, Bonawitz, Gascón, Lepoint, Raykova 2020, CCS) over a graph in which everybody has k neighbours. A
device never waits: it says that it is there with the check-in that brings the query, and then polls three times.
In each poll it pulls what the step allows, decides, stores its new state and sends one letter.

=======  ==============================  ====================================================================
poll     pulls                           sends
=======  ==============================  ====================================================================
(query)  the signed query                two X25519 keys, a commitment to its own mask's seed (`join`)
1        the roster: all those letters   for each neighbour, sealed: shares of its two seeds (`share`)
2        its neighbours' sealed shares   its values under its own mask and one with each neighbour (`mask`)
3        who survived and who dropped    for each neighbour one share: of the own mask's seed of a survivor,
                                         of the mask key's seed of a dropout (`reveal`)
=======  ==============================  ====================================================================

Rules that a device enforces:

- It answers a query once per window. Asked the same again, it sends the same bytes; asked anything else, nothing.
- It counts the roster, checks every signature, and that no device and no key is there twice, and finds
  itself in it.
- It works out its neighbours from the roster's hash; nobody tells it.
- All keys are bound to query, model and roster. Neighbours that were shown another roster cannot open each other's
  shares, and nobody masks before at least t neighbours' shares have opened: that is how the hash is confirmed.
- Survivors and dropouts are disjoint and are together the whole roster. Each survivor has signed its masked values
  under this roster; they are as many as the noise was calibrated to, at least t of them are neighbours, and the
  device is one of them.
- It reveals once, and for each neighbour one of the two shares. Afterwards it holds none of them.

What holds: fewer than t neighbours who collude with a server that keeps to the protocol learn nothing but the sum.
A server that tells neighbours different lists needs t shares of each kind among k neighbours, of whom the honest
give one kind only: 2 t - k or more colluders (`tolerated`). A server that also enrols devices can be most of them.
"""

import os
from collections.abc import Callable
from typing import Literal, NoReturn

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from edgewright.privacy.bit_packing import Words, fitted, pack
from edgewright.privacy.mask import add_mask, derive, digest, subtract_mask
from edgewright.privacy.roster import (
    DeclinedError,
    Enrolment,
    Letter,
    Letters,
    Reason,
    Receipt,
    Roster,
    Sign,
    Terms,
    check_cohort,
    check_distinct,
    decode,
    encode,
    sign_letter,
)
from edgewright.privacy.shamir import SECRET_BYTES, SHARE_BYTES, split

__all__ = [
    "Inbox",
    "Keys",
    "Lists",
    "Member",
    "Parcel",
    "Reveals",
    "Sealed",
    "commitment",
    "join",
    "keys_of",
    "mask",
    "mask_key_pair",
    "own_key",
    "pair_key",
    "reveal",
    "share",
    "tag",
    "tolerated",
]

Kind = Literal["own", "pair"]
Step = Literal["joined", "shared", "masked", "revealed"]

_KEY_BYTES, _NONCE_BYTES, _TAG_BYTES = 32, 12, 16


class Keys(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """What a device says when it joins.

    Attributes:
        seal: Its X25519 key for shares.
        mask: Its X25519 key for masks.
        commitment: To the seed of its own mask.
    """

    seal: bytes
    mask: bytes
    commitment: bytes


class Sealed(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """A neighbour's two shares, and what shows later that the neighbour gave back those.

    Attributes:
        box: Both shares, encrypted.
        own_tag: Of the share of the own mask's seed.
        pair_tag: Of the share of the mask key's seed.
    """

    box: bytes
    own_tag: bytes
    pair_tag: bytes


class Parcels(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """What a device sends to its neighbours.

    Attributes:
        sealed: One for each neighbour, in their order.
    """

    sealed: tuple[Sealed, ...]


class Parcel(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """What a device gets from one neighbour.

    Attributes:
        sender: The neighbour.
        sealed: What it sent.
    """

    sender: bytes
    sealed: Sealed


class Inbox(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """What a device gets from its neighbours.

    Attributes:
        parcels: One from each neighbour who sent shares, in their order.
    """

    parcels: tuple[Parcel, ...]


class Lists(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """Whose masked values arrived.

    Attributes:
        survivors: What proves that they sent them.
        dropped: All others of the roster.
    """

    survivors: tuple[Receipt, ...]
    dropped: tuple[bytes, ...]


class Reveals(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """What unmasks a device's neighbours.

    Attributes:
        shares: For each neighbour, in their order, one share.
    """

    shares: tuple[tuple[bytes, bytes], ...]


class Member(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A device in the middle of a sum: what it stores, away from others' eyes, before it sends what it says.

    Attributes:
        terms: Of the sum.
        device: Its public key.
        step: What it did last.
        said: The letter of that step.
        asked: Digest of what that was said to.
        own_seed: Of its own mask, until it has masked.
        pair_seed: Of its mask key, until it has masked.
        seal_key: X25519, until it has masked.
        roster: Everybody's letters, once they are known.
        held: Both shares of each neighbour, until it has revealed.
    """

    terms: Terms
    device: bytes
    step: Step
    said: bytes
    asked: bytes = b""
    own_seed: bytes = b""
    pair_seed: bytes = b""
    seal_key: bytes = b""
    roster: tuple[Letter, ...] = ()
    held: dict[bytes, tuple[bytes, bytes]] = {}


def tolerated(terms: Terms) -> int:
    """Return how many of a device's neighbours may collude with a server that lies about who dropped out."""
    return 2 * terms.threshold - terms.degree - 1


def join(terms: Terms, device: bytes, sign: Sign, *, entropy: Callable[[int], bytes] = os.urandom) -> Member:
    """Return a device that said it is there.

    Args:
        terms: From its own check of the signed query.
        device: Its public key.
        sign: Signs with it.
        entropy: Returns so many random bytes; anything else than the system's own is for tests.

    Raises:
        ValueError: The terms are for another way of summing.
    """
    if not terms.degree:
        raise ValueError("these terms name no neighbours")
    own_seed, pair_seed, seal_key = entropy(SECRET_BYTES), entropy(SECRET_BYTES), entropy(_KEY_BYTES)
    keys = Keys(
        X25519PrivateKey.from_private_bytes(seal_key).public_key().public_bytes_raw(),
        mask_key_pair(terms, device, pair_seed).public_key().public_bytes_raw(),
        commitment(terms, device, own_seed),
    )
    said = encode(sign_letter(terms, "join", device, encode(keys), sign))
    return Member(terms, device, "joined", said, own_seed=own_seed, pair_seed=pair_seed, seal_key=seal_key)


def share(
    member: Member,
    letters: bytes,
    sign: Sign,
    *,
    enrolled: Enrolment | None = None,
    entropy: Callable[[int], bytes] = os.urandom,
) -> Member:
    """Check the roster, and return the device with shares for its neighbours.

    Args:
        member: That joined.
        letters: The roster, as it came.
        sign: Signs with the device's key.
        enrolled: Devices that exist, where the device has such a list.
        entropy: Returns so many random bytes.

    Raises:
        DeclinedError: It breaks a rule.
    """
    if _was_asked(member, "joined", "shared", letters):
        return member
    terms, device = member.terms, member.device
    roster = Roster.opened(terms, decode(letters, Letters).letters, enrolled=enrolled)
    if roster.bodies.get(device) != decode(member.said, Letter).body:
        raise DeclinedError("roster", "this device is not in the roster as it joined")
    keys = {other: keys_of(other, body) for other, body in roster.bodies.items()}
    check_distinct("the roster's keys", [key for one in keys.values() for key in (one.seal, one.mask)])
    check_distinct("the roster's commitments", [one.commitment for one in keys.values()])
    neighbours = roster.neighbours(device)
    own, pair = (
        split(seed, terms.threshold, len(neighbours), entropy=entropy)
        for seed in (member.own_seed, member.pair_seed)
    )
    seal_key = X25519PrivateKey.from_private_bytes(member.seal_key)
    sealed = []
    for other, own_share, pair_share in zip(neighbours, own, pair, strict=True):
        cipher = _cipher(roster, _agreed(seal_key, keys[other].seal, other), device, other)
        # A key encrypts one letter, unless a device was restored from a copy: then a fixed nonce would tell.
        nonce = entropy(_NONCE_BYTES)
        box = nonce + cipher.encrypt(nonce, own_share + pair_share, None)
        own_tag = tag(roster, device, other, "own", own_share)
        sealed.append(Sealed(box, own_tag, tag(roster, device, other, "pair", pair_share)))
    letter = sign_letter(terms, "share", device, encode(Parcels(tuple(sealed))), sign, roster.digest)
    return _said(member, "shared", letters, letter, roster=roster.letters)


def mask(member: Member, inbox: bytes, values: Words, sign: Sign) -> Member:
    """Open the neighbours' shares, and return the device with its values masked.

    Args:
        member: That shared.
        inbox: What its neighbours sent, as it came.
        values: Shape [length], mod 2^bits, with this device's noise in them. If the device was asked this before,
            they are ignored: it says again what it said.
        sign: Signs with the device's key.

    Raises:
        DeclinedError: It breaks a rule.
        ValueError: The values are not what the terms say.
    """
    if _was_asked(member, "shared", "masked", inbox):
        return member
    terms, device = member.terms, member.device
    masked = fitted(values, terms.length, terms.bits)
    roster = Roster(terms, member.roster)
    parcels = {parcel.sender: parcel.sealed for parcel in decode(inbox, Inbox).parcels}
    neighbours = set(roster.neighbours(device))
    if not parcels.keys() <= neighbours:
        raise DeclinedError("roster", "shares came from devices that are no neighbours of this one")
    if len(parcels) < terms.threshold:
        raise DeclinedError(
            "shares", f"{len(parcels)} of {len(neighbours)} neighbours shared, {terms.threshold} are needed"
        )
    keys = {other: keys_of(other, roster.bodies[other]) for other in parcels}
    seal_key = X25519PrivateKey.from_private_bytes(member.seal_key)
    held = {
        other: _opened(roster, _agreed(seal_key, keys[other].seal, other), other, device, sealed)
        for other, sealed in parcels.items()
    }
    add_mask(masked, own_key(roster, device, member.own_seed))
    private = mask_key_pair(terms, device, member.pair_seed)
    for other in parcels:
        # Whoever comes first in the roster's order adds, the other subtracts.
        (add_mask if device < other else subtract_mask)(
            masked, pair_key(roster, private, keys[other].mask, device, other)
        )
    letter = sign_letter(terms, "mask", device, pack(masked, terms.bits), sign, roster.digest)
    return _said(member, "masked", inbox, letter, own_seed=b"", pair_seed=b"", seal_key=b"", held=held)


def reveal(member: Member, lists: bytes, sign: Sign) -> Member:
    """Check who survived, and return the device with one share of each neighbour.

    Args:
        member: That masked.
        lists: Survivors and dropouts, as they came.
        sign: Signs with the device's key.

    Raises:
        DeclinedError: They break a rule.
    """
    if _was_asked(member, "masked", "revealed", lists):
        return member
    terms, device = member.terms, member.device
    roster = Roster(terms, member.roster)
    told = decode(lists, Lists)
    survivors = {receipt.sender: receipt for receipt in told.survivors}
    dropped = set(told.dropped)
    if len(survivors) != len(told.survivors) or len(dropped) != len(told.dropped) or survivors.keys() & dropped:
        raise DeclinedError("lists", "a device is named twice among survivors and dropouts")
    if survivors.keys() | dropped != roster.bodies.keys():
        raise DeclinedError("lists", "survivors and dropouts are not together the roster")
    if device not in survivors or survivors[device] != decode(member.said, Letter).receipt():
        raise DeclinedError("lists", "this device sent its values and is not among the survivors with them")
    check_cohort(terms, len(survivors))
    alive = survivors.keys() & member.held.keys()
    if len(alive) < terms.threshold:
        raise DeclinedError("lists", f"{len(alive)} neighbours survived, {terms.threshold} are needed")
    for receipt in told.survivors:
        receipt.check(terms, "mask", roster.digest)
    given = Reveals(tuple((other, member.held[other][other in dropped]) for other in sorted(member.held)))
    letter = sign_letter(terms, "reveal", device, encode(given), sign, roster.digest)
    return _said(member, "revealed", lists, letter, held={})


def keys_of(device: bytes, body: bytes) -> Keys:
    """Return what a device said when it joined.

    Raises:
        DeclinedError: It is no such thing.
    """
    keys = decode(body, Keys)
    if {len(keys.seal), len(keys.mask), len(keys.commitment)} != {_KEY_BYTES}:
        raise DeclinedError("message", f"the keys of {device[:8].hex()} are malformed", [device])
    return keys


def commitment(terms: Terms, device: bytes, own_seed: bytes) -> bytes:
    """Return what binds a device to its own mask without telling it: the seed cannot be guessed."""
    return digest("commitment", terms.digest, device, own_seed)


def mask_key_pair(terms: Terms, device: bytes, pair_seed: bytes) -> X25519PrivateKey:
    """Return the key by which a device agrees on masks; its public half binds the device to the seed."""
    return X25519PrivateKey.from_private_bytes(
        derive(pair_seed, "mask key pair", terms.digest, device, size=_KEY_BYTES)
    )


def own_key(roster: Roster, device: bytes, own_seed: bytes) -> bytes:
    """Return the key of the mask that a device shares with nobody."""
    return derive(own_seed, "own mask", roster.terms.query, roster.terms.model, roster.digest, device)


def pair_key(roster: Roster, private: X25519PrivateKey, public: bytes, device: bytes, other: bytes) -> bytes:
    """Return the key of the mask of two neighbours; both find the same one.

    Args:
        roster: Of both.
        private: The mask key of one.
        public: The mask key of the other.
        device: The one.
        other: The other.

    Raises:
        DeclinedError: The public key is none.
    """
    first, second = sorted((device, other))
    secret = _agreed(private, public, other)
    return derive(secret, "pair mask", roster.terms.query, roster.terms.model, roster.digest, first, second)


def tag(roster: Roster, owner: bytes, holder: bytes, kind: Kind, value: bytes) -> bytes:
    """Return what shows that a holder gives back the share that it got; the share cannot be guessed from it."""
    return digest("share", roster.digest, owner, holder, kind.encode(), value)[:_TAG_BYTES]


def _agreed(private: X25519PrivateKey, public: bytes, other: bytes) -> bytes:
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:
        raise DeclinedError("roster", f"the key of {other[:8].hex()} is none", [other]) from error


def _cipher(roster: Roster, secret: bytes, sender: bytes, receiver: bytes) -> AESGCM:
    return AESGCM(derive(secret, "seal", roster.terms.query, roster.terms.model, roster.digest, sender, receiver))


def _opened(roster: Roster, secret: bytes, other: bytes, device: bytes, sealed: Sealed) -> tuple[bytes, bytes]:
    try:
        both = _cipher(roster, secret, other, device).decrypt(
            sealed.box[:_NONCE_BYTES], sealed.box[_NONCE_BYTES:], None
        )
    except (InvalidTag, ValueError) as error:
        raise DeclinedError(
            "roster", f"the shares of {other[:8].hex()} do not open: it has another roster", [other]
        ) from error
    own, pair = both[:SHARE_BYTES], both[SHARE_BYTES:]
    tags = (tag(roster, other, device, "own", own), tag(roster, other, device, "pair", pair))
    if len(both) != 2 * SHARE_BYTES or tags != (sealed.own_tag, sealed.pair_tag):
        raise DeclinedError("shares", f"the shares of {other[:8].hex()} are malformed", [other])
    return own, pair


def _was_asked(member: Member, before: Step, after: Step, asked: bytes) -> bool:
    """Whether this step was done for the same question; refuse it for another, and out of turn."""
    if member.step == after:
        if member.asked == digest("asked", asked):
            return True
        _decline("repeat", f"this device has {after} once already, and what it is asked now is not the same")
    if member.step != before:
        _decline("step", f"this device has {member.step}, so it cannot be {after}")
    return False


def _decline(reason: Reason, message: str) -> NoReturn:
    raise DeclinedError(reason, message)


def _said(member: Member, step: Step, asked: bytes, letter: Letter, **changes: object) -> Member:
    return msgspec.structs.replace(member, step=step, said=encode(letter), asked=digest("asked", asked), **changes)
