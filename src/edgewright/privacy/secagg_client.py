"""A sum under masks that cancel, with one server and nobody to trust: a device's part.

SecAgg+ (Bell, Bonawitz, Gascón, Lepoint, Raykova 2020, CCS) over a graph in which everybody has k neighbours. A
device never waits: it says that it is there with the check-in that brings the query, and then polls three times.
In each poll it pulls what the step allows, decides, stores its new state and sends one letter.

=======  ==============================  ====================================================================
poll     pulls                           sends
=======  ==============================  ====================================================================
(query)  the signed query                two X25519 keys, a commitment to its own mask's seed (`advertise_keys`)
1        the roster: all those letters   for each neighbour, sealed: shares of its two seeds (`share_keys`)
2        its neighbours' sealed shares   its values under its own mask and one with each neighbour (`mask_key`)
3        who survived and who dropped    for each neighbour one share: of the own mask's seed of a survivor,
                                         of the mask key's seed of a dropout (`reveal_shares`)
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
give one kind only: 2 t - k or more colluders (`tolerated_colluders`). A server that also enrols devices can be most
of them.
"""

import os
from collections.abc import Callable
from typing import Literal, NoReturn

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from edgewright.privacy.bit_packing import UnsignedArray, as_words, pack_bits
from edgewright.privacy.mask import add_mask, derive_key, labelled_digest, subtract_mask
from edgewright.privacy.roster import (
    DeclinedError,
    DeclineReason,
    EnrolmentList,
    MessageReceipt,
    ParticipantList,
    ProtocolTerms,
    SignedMessage,
    SignedMessages,
    SignFunction,
    check_cohort_size,
    check_distinct,
    decode_message,
    encode_message,
    sign_message,
)
from edgewright.privacy.shamir import SECRET_BYTES, SHARE_BYTES, split_secret

__all__ = [
    "AdvertisedKeys",
    "ClientState",
    "EncryptedShares",
    "IncomingShares",
    "RevealedShares",
    "ShareInbox",
    "SurvivorLists",
    "advertise_keys",
    "mask_key_pair",
    "mask_values",
    "pairwise_mask_key",
    "parse_keys",
    "reveal_shares",
    "seed_commitment",
    "self_mask_key",
    "share_keys",
    "share_tag",
    "tolerated_colluders",
]

ShareKind = Literal["self_mask", "mask_key"]
ClientStep = Literal["advertised", "shared", "masked", "revealed"]

_KEY_BYTES, _NONCE_BYTES, _TAG_BYTES = 32, 12, 16


class AdvertisedKeys(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """What a device says when it joins.

    Attributes:
        share_key: Its X25519 key for shares.
        mask_key: Its X25519 key for masks.
        self_mask_commitment: To the seed of its own mask.
    """

    share_key: bytes
    mask_key: bytes
    self_mask_commitment: bytes


class EncryptedShares(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """A neighbour's two shares, and what shows later that the neighbour gave back those.

    Attributes:
        ciphertext: Both shares, encrypted.
        self_mask_tag: Of the share of the own mask's seed.
        mask_key_tag: Of the share of the mask key's seed.
    """

    ciphertext: bytes
    self_mask_tag: bytes
    mask_key_tag: bytes


class OutgoingShares(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """What a device sends to its neighbours.

    Attributes:
        shares: One for each neighbour, in their order.
    """

    shares: tuple[EncryptedShares, ...]


class IncomingShares(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """What a device gets from one neighbour.

    Attributes:
        sender: The neighbour.
        shares: What it sent.
    """

    sender: bytes
    shares: EncryptedShares


class ShareInbox(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """What a device gets from its neighbours.

    Attributes:
        incoming: One from each neighbour who sent shares, in their order.
    """

    incoming: tuple[IncomingShares, ...]


class SurvivorLists(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """Whose masked values arrived.

    Attributes:
        survivors: What proves that they sent them.
        dropouts: All others of the roster.
    """

    survivors: tuple[MessageReceipt, ...]
    dropouts: tuple[bytes, ...]


class RevealedShares(msgspec.Struct, frozen=True, forbid_unknown_fields=True, array_like=True):
    """What unmasks a device's neighbours.

    Attributes:
        shares: For each neighbour, in their order, one share.
    """

    shares: tuple[tuple[bytes, bytes], ...]


class ClientState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A device in the middle of a sum: what it stores, away from others' eyes, before it sends what it says.

    Attributes:
        terms: Of the sum.
        device: Its public key.
        step: What it did last.
        last_message: The letter of that step.
        last_request_digest: Digest of what that was said to.
        self_mask_seed: Of its own mask, until it has masked.
        mask_key_seed: Of its mask key, until it has masked.
        share_private_key: X25519, until it has masked.
        participants: Everybody's letters, once they are known.
        held_shares: Both shares of each neighbour, until it has revealed.
    """

    terms: ProtocolTerms
    device: bytes
    step: ClientStep
    last_message: bytes
    last_request_digest: bytes = b""
    self_mask_seed: bytes = b""
    mask_key_seed: bytes = b""
    share_private_key: bytes = b""
    participants: tuple[SignedMessage, ...] = ()
    held_shares: dict[bytes, tuple[bytes, bytes]] = {}


def tolerated_colluders(terms: ProtocolTerms) -> int:
    """Return how many of a device's neighbours may collude with a server that lies about who dropped out."""
    return 2 * terms.threshold - terms.degree - 1


def advertise_keys(
    terms: ProtocolTerms, device: bytes, sign: SignFunction, *, entropy: Callable[[int], bytes] = os.urandom
) -> ClientState:
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
    keys = AdvertisedKeys(
        X25519PrivateKey.from_private_bytes(seal_key).public_key().public_bytes_raw(),
        mask_key_pair(terms, device, pair_seed).public_key().public_bytes_raw(),
        seed_commitment(terms, device, own_seed),
    )
    said = encode_message(sign_message(terms, "advertise", device, encode_message(keys), sign))
    return ClientState(
        terms,
        device,
        "advertised",
        said,
        self_mask_seed=own_seed,
        mask_key_seed=pair_seed,
        share_private_key=seal_key,
    )


def share_keys(
    state: ClientState,
    messages: bytes,
    sign: SignFunction,
    *,
    enrolment_list: EnrolmentList | None = None,
    entropy: Callable[[int], bytes] = os.urandom,
) -> ClientState:
    """Check the roster, and return the device with shares for its neighbours.

    Args:
        state: That joined.
        messages: The roster, as it came.
        sign: Signs with the device's key.
        enrolment_list: Devices that exist, where the device has such a list.
        entropy: Returns so many random bytes.

    Raises:
        DeclinedError: It breaks a rule.
    """
    if _already_done(state, "advertised", "shared", messages):
        return state
    terms, device = state.terms, state.device
    roster = ParticipantList.verified(
        terms, decode_message(messages, SignedMessages).messages, enrolment_list=enrolment_list
    )
    if roster.key_bodies.get(device) != decode_message(state.last_message, SignedMessage).body:
        raise DeclinedError("participants", "this device is not in the roster as it joined")
    keys = {other: parse_keys(other, body) for other, body in roster.key_bodies.items()}
    check_distinct("the roster's keys", [key for one in keys.values() for key in (one.share_key, one.mask_key)])
    check_distinct("the roster's commitments", [one.self_mask_commitment for one in keys.values()])
    neighbours = roster.neighbours(device)
    own, pair = (
        split_secret(seed, terms.threshold, len(neighbours), entropy=entropy)
        for seed in (state.self_mask_seed, state.mask_key_seed)
    )
    seal_key = X25519PrivateKey.from_private_bytes(state.share_private_key)
    sealed = []
    for other, own_share, pair_share in zip(neighbours, own, pair, strict=True):
        cipher = _share_cipher(roster, _shared_secret(seal_key, keys[other].share_key, other), device, other)
        # A key encrypts one letter, unless a device was restored from a copy: then a fixed nonce would tell.
        nonce = entropy(_NONCE_BYTES)
        box = nonce + cipher.encrypt(nonce, own_share + pair_share, None)
        own_tag = share_tag(roster, device, other, "self_mask", own_share)
        sealed.append(EncryptedShares(box, own_tag, share_tag(roster, device, other, "mask_key", pair_share)))
    letter = sign_message(
        terms, "share", device, encode_message(OutgoingShares(tuple(sealed))), sign, roster.digest
    )
    return _with_message(state, "shared", messages, letter, participants=roster.messages)


def mask_values(state: ClientState, inbox: bytes, values: UnsignedArray, sign: SignFunction) -> ClientState:
    """Open the neighbours' shares, and return the device with its values masked.

    Args:
        state: That shared.
        inbox: What its neighbours sent, as it came.
        values: Shape [length], mod 2^bits, with this device's noise in them. If the device was asked this before,
            they are ignored: it says again what it said.
        sign: Signs with the device's key.

    Raises:
        DeclinedError: It breaks a rule.
        ValueError: The values are not what the terms say.
    """
    if _already_done(state, "shared", "masked", inbox):
        return state
    terms, device = state.terms, state.device
    masked = as_words(values, terms.vector_length, terms.bits)
    roster = ParticipantList(terms, state.participants)
    parcels = {parcel.sender: parcel.shares for parcel in decode_message(inbox, ShareInbox).incoming}
    neighbours = set(roster.neighbours(device))
    if not parcels.keys() <= neighbours:
        raise DeclinedError("participants", "shares came from devices that are no neighbours of this one")
    if len(parcels) < terms.threshold:
        raise DeclinedError(
            "shares", f"{len(parcels)} of {len(neighbours)} neighbours shared, {terms.threshold} are needed"
        )
    keys = {other: parse_keys(other, roster.key_bodies[other]) for other in parcels}
    seal_key = X25519PrivateKey.from_private_bytes(state.share_private_key)
    held = {
        other: _decrypt_shares(
            roster, _shared_secret(seal_key, keys[other].share_key, other), other, device, sealed
        )
        for other, sealed in parcels.items()
    }
    add_mask(masked, self_mask_key(roster, device, state.self_mask_seed))
    private = mask_key_pair(terms, device, state.mask_key_seed)
    for other in parcels:
        # Whoever comes first in the roster's order adds, the other subtracts.
        (add_mask if device < other else subtract_mask)(
            masked, pairwise_mask_key(roster, private, keys[other].mask_key, device, other)
        )
    letter = sign_message(terms, "mask", device, pack_bits(masked, terms.bits), sign, roster.digest)
    return _with_message(
        state,
        "masked",
        inbox,
        letter,
        self_mask_seed=b"",
        mask_key_seed=b"",
        share_private_key=b"",
        held_shares=held,
    )


def reveal_shares(state: ClientState, survivor_lists: bytes, sign: SignFunction) -> ClientState:
    """Check who survived, and return the device with one share of each neighbour.

    Args:
        state: That masked.
        survivor_lists: Survivors and dropouts, as they came.
        sign: Signs with the device's key.

    Raises:
        DeclinedError: They break a rule.
    """
    if _already_done(state, "masked", "revealed", survivor_lists):
        return state
    terms, device = state.terms, state.device
    roster = ParticipantList(terms, state.participants)
    told = decode_message(survivor_lists, SurvivorLists)
    survivors = {receipt.sender: receipt for receipt in told.survivors}
    dropped = set(told.dropouts)
    if len(survivors) != len(told.survivors) or len(dropped) != len(told.dropouts) or survivors.keys() & dropped:
        raise DeclinedError("survivors", "a device is named twice among survivors and dropouts")
    if survivors.keys() | dropped != roster.key_bodies.keys():
        raise DeclinedError("survivors", "survivors and dropouts are not together the roster")
    if device not in survivors or survivors[device] != decode_message(state.last_message, SignedMessage).receipt():
        raise DeclinedError("survivors", "this device sent its values and is not among the survivors with them")
    check_cohort_size(terms, len(survivors))
    alive = survivors.keys() & state.held_shares.keys()
    if len(alive) < terms.threshold:
        raise DeclinedError("survivors", f"{len(alive)} neighbours survived, {terms.threshold} are needed")
    for receipt in told.survivors:
        receipt.check(terms, "mask", roster.digest)
    given = RevealedShares(
        tuple((other, state.held_shares[other][other in dropped]) for other in sorted(state.held_shares))
    )
    letter = sign_message(terms, "reveal", device, encode_message(given), sign, roster.digest)
    return _with_message(state, "revealed", survivor_lists, letter, held_shares={})


def parse_keys(device: bytes, body: bytes) -> AdvertisedKeys:
    """Return what a device said when it joined.

    Raises:
        DeclinedError: It is no such thing.
    """
    keys = decode_message(body, AdvertisedKeys)
    if {len(keys.share_key), len(keys.mask_key), len(keys.self_mask_commitment)} != {_KEY_BYTES}:
        raise DeclinedError("message", f"the keys of {device[:8].hex()} are malformed", [device])
    return keys


def seed_commitment(terms: ProtocolTerms, device: bytes, self_mask_seed: bytes) -> bytes:
    """Return what binds a device to its own mask without telling it: the seed cannot be guessed."""
    return labelled_digest("commitment", terms.digest, device, self_mask_seed)


def mask_key_pair(terms: ProtocolTerms, device: bytes, mask_key_seed: bytes) -> X25519PrivateKey:
    """Return the key by which a device agrees on masks; its public half binds the device to the seed."""
    return X25519PrivateKey.from_private_bytes(
        derive_key(mask_key_seed, "mask key pair", terms.digest, device, size=_KEY_BYTES)
    )


def self_mask_key(participants: ParticipantList, device: bytes, self_mask_seed: bytes) -> bytes:
    """Return the key of the mask that a device shares with nobody."""
    return derive_key(
        self_mask_seed,
        "own mask",
        participants.terms.query_digest,
        participants.terms.model_digest,
        participants.digest,
        device,
    )


def pairwise_mask_key(
    participants: ParticipantList, private_key: X25519PrivateKey, public_key: bytes, device: bytes, neighbour: bytes
) -> bytes:
    """Return the key of the mask of two neighbours; both find the same one.

    Args:
        participants: Of both.
        private_key: The mask key of one.
        public_key: The mask key of the other.
        device: The one.
        neighbour: The other.

    Raises:
        DeclinedError: The public key is none.
    """
    first, second = sorted((device, neighbour))
    secret = _shared_secret(private_key, public_key, neighbour)
    return derive_key(
        secret,
        "pair mask",
        participants.terms.query_digest,
        participants.terms.model_digest,
        participants.digest,
        first,
        second,
    )


def share_tag(
    participants: ParticipantList, owner: bytes, holder: bytes, share_kind: ShareKind, share: bytes
) -> bytes:
    """Return what shows that a holder gives back the share that it got; the share cannot be guessed from it."""
    return labelled_digest("share", participants.digest, owner, holder, share_kind.encode(), share)[:_TAG_BYTES]


def _shared_secret(private_key: X25519PrivateKey, public_key: bytes, other: bytes) -> bytes:
    try:
        return private_key.exchange(X25519PublicKey.from_public_bytes(public_key))
    except ValueError as error:
        raise DeclinedError("participants", f"the key of {other[:8].hex()} is none", [other]) from error


def _share_cipher(participants: ParticipantList, secret: bytes, sender: bytes, receiver: bytes) -> AESGCM:
    return AESGCM(
        derive_key(
            secret,
            "seal",
            participants.terms.query_digest,
            participants.terms.model_digest,
            participants.digest,
            sender,
            receiver,
        )
    )


def _decrypt_shares(
    participants: ParticipantList, secret: bytes, neighbour: bytes, device: bytes, encrypted_shares: EncryptedShares
) -> tuple[bytes, bytes]:
    try:
        both = _share_cipher(participants, secret, neighbour, device).decrypt(
            encrypted_shares.ciphertext[:_NONCE_BYTES], encrypted_shares.ciphertext[_NONCE_BYTES:], None
        )
    except (InvalidTag, ValueError) as error:
        raise DeclinedError(
            "participants", f"the shares of {neighbour[:8].hex()} do not open: it has another roster", [neighbour]
        ) from error
    own, pair = both[:SHARE_BYTES], both[SHARE_BYTES:]
    tags = (
        share_tag(participants, neighbour, device, "self_mask", own),
        share_tag(participants, neighbour, device, "mask_key", pair),
    )
    if len(both) != 2 * SHARE_BYTES or tags != (encrypted_shares.self_mask_tag, encrypted_shares.mask_key_tag):
        raise DeclinedError("shares", f"the shares of {neighbour[:8].hex()} are malformed", [neighbour])
    return own, pair


def _already_done(
    state: ClientState, step_before: ClientStep, step_after: ClientStep, request_digest: bytes
) -> bool:
    """Whether this step was done for the same question; refuse it for another, and out of turn."""
    if state.step == step_after:
        if state.last_request_digest == labelled_digest("asked", request_digest):
            return True
        _declined_error(
            "equivocation", f"this device has {step_after} once already, and what it is asked now is not the same"
        )
    if state.step != step_before:
        _declined_error("step", f"this device has {state.step}, so it cannot be {step_after}")
    return False


def _declined_error(reason: DeclineReason, message: str) -> NoReturn:
    raise DeclinedError(reason, message)


def _with_message(
    state: ClientState, step: ClientStep, request_digest: bytes, message: SignedMessage, **changes: object
) -> ClientState:
    return msgspec.structs.replace(
        state,
        step=step,
        last_message=encode_message(message),
        last_request_digest=labelled_digest("asked", request_digest),
        **changes,
    )
