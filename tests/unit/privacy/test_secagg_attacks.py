"""What a device does not go along with, whatever the server gives it, and what a server does not take."""

from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import numpy as np
import pytest
from benchmarks.summing.fleet import Fleet, Round, drawn, neighbour_terms

from edgewright.privacy import secagg_client
from edgewright.privacy.mask import labelled_digest
from edgewright.privacy.roster import (
    DeclinedError,
    DeclineReason,
    ParticipantList,
    SignedMessage,
    SignedMessages,
    decode_message,
    encode_message,
    sign_message,
    verify_enrolment_list,
)
from edgewright.privacy.secagg_client import (
    AdvertisedKeys,
    EncryptedShares,
    IncomingShares,
    OutgoingShares,
    RevealedShares,
    ShareInbox,
    SurvivorLists,
)
from edgewright.privacy.secagg_server import SecAggServer

FLEET = Fleet(9)
TERMS = neighbour_terms(min_cohort=7, degree=4, threshold=3)
VICTIM = FLEET.names[0]
Sum = Callable[[], Round]


def letters_of(sum_: Round) -> list[SignedMessage]:
    return list(decode_message(sum_.server.participants(), SignedMessages).messages)


def roster(letters: list[SignedMessage]) -> bytes:
    return encode_message(SignedMessages(tuple(sorted(letters, key=lambda letter: letter.sender))))


def joined(sum_: Round, name: bytes, body: bytes) -> SignedMessage:
    return sign_message(sum_.terms, "advertise", name, body, FLEET.keys[name].sign)


def others(letters: list[SignedMessage]) -> list[SignedMessage]:
    return [letter for letter in letters if letter.sender != VICTIM]


def keys_with(letter: SignedMessage, **changes: bytes) -> bytes:
    return encode_message(msgspec.structs.replace(decode_message(letter.body, AdvertisedKeys), **changes))


# Each turns the roster that the server has into the one that it shows to the victim.
ROSTERS: dict[str, tuple[Callable[[Round, list[SignedMessage]], bytes], DeclineReason, str]] = {
    "a cohort under the floor": (lambda _, all_: roster(all_[: TERMS.min_cohort - 1]), "cohort", "6 devices"),
    "a closed group of the victim's neighbours": (
        lambda s, all_: roster(
            [one for one in all_ if one.sender in {VICTIM, *ParticipantList(TERMS, tuple(all_)).neighbours(VICTIM)}]
        ),
        "cohort",
        "5 devices",
    ),
    "a closed group made up to the floor by repetition": (
        lambda _, all_: roster(all_[:4] + all_[:4]),
        "participants",
        "holds a device twice",
    ),
    "one device twice": (lambda _, all_: roster([*all_, all_[3]]), "participants", "twice"),
    "one device twice with different keys": (
        lambda s, all_: roster(
            [
                *all_,
                joined(
                    s,
                    FLEET.names[3],
                    secagg_client.advertise_keys(
                        TERMS, FLEET.names[3], FLEET.keys[FLEET.names[3]].sign
                    ).last_message,
                ),
            ]
        ),
        "participants",
        "twice",
    ),
    "in another order": (
        lambda _, all_: encode_message(SignedMessages(tuple(all_[::-1]))),
        "participants",
        "not in order",
    ),
    "a letter without a signature": (
        lambda _, all_: roster([msgspec.structs.replace(all_[2], signature=b""), *all_[:2], *all_[3:]]),
        "signature",
        "not signed",
    ),
    "keys exchanged by the server": (
        lambda _, all_: roster(
            [
                msgspec.structs.replace(all_[2], body=keys_with(all_[2], share_key=bytes(31) + b"\x09")),
                *all_[:2],
                *all_[3:],
            ]
        ),
        "signature",
        "not signed",
    ),
    "invented devices": (
        lambda _, all_: roster([*all_, SignedMessage(bytes(32), all_[0].body, all_[0].signature)]),
        "signature",
        "not signed",
    ),
    "letters of another window": (
        lambda _, all_: (
            Round(FLEET, neighbour_terms(min_cohort=7, degree=4, threshold=3, window="w0"))
            .reach("share")
            .server.participants()
        ),
        "signature",
        "not signed",
    ),
    "without the victim": (lambda _, all_: roster(others(all_)), "participants", "not in the roster as it joined"),
    "the victim with other keys": (
        lambda s, all_: roster(
            [*others(all_), joined(s, VICTIM, keys_with(all_[0], self_mask_commitment=bytes(32)))],
        ),
        "participants",
        "not in the roster as it joined",
    ),
    "two devices with one key": (
        lambda s, all_: roster(
            [
                *all_[:-1],
                joined(
                    s,
                    all_[-1].sender,
                    keys_with(all_[-1], mask_key=decode_message(all_[-2].body, AdvertisedKeys).mask_key),
                ),
            ]
            if all_[-1].sender != VICTIM
            else [
                *all_[1:],
                joined(
                    s,
                    all_[0].sender,
                    keys_with(all_[0], mask_key=decode_message(all_[1].body, AdvertisedKeys).mask_key),
                ),
            ]
        ),
        "participants",
        "not all different",
    ),
    "two devices with one commitment": (
        lambda s, all_: roster(
            [
                *(one for one in all_ if one.sender != others(all_)[0].sender),
                joined(
                    s,
                    others(all_)[0].sender,
                    keys_with(
                        others(all_)[0],
                        self_mask_commitment=decode_message(
                            others(all_)[1].body, AdvertisedKeys
                        ).self_mask_commitment,
                    ),
                ),
            ]
        ),
        "participants",
        "not all different",
    ),
    "malformed keys": (
        lambda s, all_: roster(
            [
                *(one for one in all_ if one.sender != others(all_)[0].sender),
                joined(s, others(all_)[0].sender, keys_with(others(all_)[0], share_key=b"short")),
            ]
        ),
        "message",
        "malformed",
    ),
    "nothing readable": (lambda _, all_: b"\xc1", "message", "no SignedMessages can be read"),
    "something behind it": (
        lambda s, _: s.server.participants() + b"\0",
        "message",
        "no SignedMessages can be read",
    ),
}


@pytest.mark.parametrize("attack", ROSTERS)
def test_a_device_shares_nothing_over_a_roster_that_is_not_right(attack: str) -> None:
    forge, reason, message = ROSTERS[attack]
    sum_ = Round(FLEET, TERMS).reach("share")
    shown = forge(sum_, letters_of(sum_))
    with pytest.raises(DeclinedError, match=message) as refusal:
        secagg_client.share_keys(sum_.members[VICTIM], shown, FLEET.keys[VICTIM].sign)
    assert refusal.value.reason == reason


def test_devices_that_nobody_enrolled_are_no_cohort() -> None:
    sum_ = Round(FLEET, TERMS).reach("share")
    authority = Fleet(1, seed=9)
    (key,) = authority.keys.values()
    known = msgspec.structs.replace(FLEET.enrolment(), devices=frozenset(FLEET.names[:-2]), version=4)
    content = encode_message(known)
    signature = key.sign(labelled_digest("enrolment", content))
    enrolled = verify_enrolment_list(content, signature, authority.names[0], min_version=4)
    with pytest.raises(DeclinedError, match="2 devices are not enrolled") as refusal:
        secagg_client.share_keys(
            sum_.members[VICTIM], sum_.server.participants(), FLEET.keys[VICTIM].sign, enrolment_list=enrolled
        )
    assert set(refusal.value.culprits) == set(FLEET.names[-2:])
    longer = encode_message(FLEET.enrolment())
    with pytest.raises(DeclinedError, match="not signed"):
        verify_enrolment_list(longer, signature, authority.names[0])
    with pytest.raises(DeclinedError, match="5 was seen"):
        verify_enrolment_list(content, signature, authority.names[0], min_version=5)


def test_a_key_that_agrees_with_everybody_on_zero_is_refused() -> None:
    sum_ = Round(FLEET, TERMS).reach("share")
    letters = letters_of(sum_)
    near = ParticipantList(TERMS, tuple(letters)).neighbours(VICTIM)
    # Whatever the ring becomes with it, with all but the victim's keys of low order some neighbour has one.
    low = [bytes(32), (1).to_bytes(32, "little")]
    assert near
    changed = [
        joined(sum_, one.sender, keys_with(one, share_key=low[0])) if place == 0 else one
        for place, one in enumerate(others(letters))
    ]
    full = neighbour_terms(min_cohort=9, degree=8, threshold=5)
    member = secagg_client.advertise_keys(full, VICTIM, FLEET.keys[VICTIM].sign)
    everyone = [
        sign_message(full, "advertise", one.sender, one.body, FLEET.keys[one.sender].sign) for one in changed
    ] + [decode_message(member.last_message, SignedMessage)]
    with pytest.raises(DeclinedError, match="is none") as refusal:
        secagg_client.share_keys(member, roster(everyone), FLEET.keys[VICTIM].sign)
    assert refusal.value.reason == "participants"


def test_an_altered_query_gets_no_answers() -> None:
    # The server opens a sum under a lower floor than the one that devices verified: their letters don't fit.
    honest = Round(FLEET, TERMS)
    lowered = SecAggServer(neighbour_terms(min_cohort=5, degree=4, threshold=3))
    said = secagg_client.advertise_keys(TERMS, VICTIM, FLEET.keys[VICTIM].sign).last_message
    with pytest.raises(DeclinedError, match="not signed"):
        lowered.accept("advertise", said)
    honest.server.accept("advertise", said)


def test_neighbours_with_different_rosters_never_mask() -> None:
    sum_ = Round(FLEET, TERMS).reach("share")
    letters = letters_of(sum_)
    one_less = roster(letters[:-1]) if letters[-1].sender != VICTIM else roster(letters[1:])
    with_all = sum_.server.participants()
    members = {}
    for place, name in enumerate(FLEET.names):
        shown = (
            one_less
            if place % 2 and name in {one.sender for one in decode_message(one_less, SignedMessages).messages}
            else with_all
        )
        members[name] = secagg_client.share_keys(sum_.members[name], shown, FLEET.keys[name].sign)
    # A server that lies about rosters also passes on what its own checks would refuse.
    seen = ParticipantList(TERMS, members[VICTIM].participants)
    parcels = []
    for other in seen.neighbours(VICTIM):
        theirs = ParticipantList(TERMS, members[other].participants)
        ordered = theirs.neighbours(other)
        place = ordered.index(VICTIM) if VICTIM in ordered else 0
        parcels.append(
            IncomingShares(
                other,
                decode_message(
                    decode_message(members[other].last_message, SignedMessage).body, OutgoingShares
                ).shares[place],
            )
        )
    assert any(members[other].participants != members[VICTIM].participants for other in seen.neighbours(VICTIM))
    with pytest.raises(DeclinedError, match="another roster"):
        secagg_client.mask_values(
            members[VICTIM],
            encode_message(ShareInbox(tuple(parcels))),
            np.zeros(TERMS.vector_length, np.uint16),
            FLEET.keys[VICTIM].sign,
        )


def stranger(sum_: Round) -> bytes:
    near = {VICTIM, *ParticipantList(TERMS, sum_.members[VICTIM].participants).neighbours(VICTIM)}
    return next(name for name in FLEET.names if name not in near)


def first_changed(parcels: list[IncomingShares], **changes: bytes) -> list[IncomingShares]:
    sealed = msgspec.structs.replace(parcels[0].shares, **changes)
    return [IncomingShares(parcels[0].sender, sealed), *parcels[1:]]


INBOXES: dict[str, tuple[Callable[[Round, list[IncomingShares]], list[IncomingShares]], DeclineReason, str]] = {
    "too few neighbours": (lambda _, all_: all_[: TERMS.threshold - 1], "shares", "2 of 4 neighbours"),
    "one neighbour many times": (lambda _, all_: all_[:1] * 4, "shares", "1 of 4 neighbours"),
    "somebody who is no neighbour": (
        lambda s, all_: [*all_, IncomingShares(stranger(s), all_[0].shares)],
        "participants",
        "no neighbours",
    ),
    "a box of another neighbour": (
        lambda _, all_: first_changed(all_, ciphertext=all_[1].shares.ciphertext),
        "participants",
        "do not open",
    ),
    "a changed box": (
        lambda _, all_: first_changed(all_, ciphertext=b"\0" + all_[0].shares.ciphertext),
        "participants",
        "do not open",
    ),
    "an empty box": (lambda _, all_: first_changed(all_, ciphertext=b""), "participants", "do not open"),
    "a share that is not the one that was tagged": (
        lambda _, all_: first_changed(all_, mask_key_tag=bytes(16)),
        "shares",
        "malformed",
    ),
}


@pytest.mark.parametrize("attack", INBOXES)
def test_a_device_masks_nothing_over_shares_that_are_not_right(attack: str) -> None:
    forge, reason, message = INBOXES[attack]
    sum_ = Round(FLEET, TERMS).reach("mask")
    parcels = forge(sum_, list(decode_message(sum_.server.share_inbox(VICTIM), ShareInbox).incoming))
    with pytest.raises(DeclinedError, match=message) as refusal:
        secagg_client.mask_values(
            sum_.members[VICTIM],
            encode_message(ShareInbox(tuple(parcels))),
            sum_.values[VICTIM],
            FLEET.keys[VICTIM].sign,
        )
    assert refusal.value.reason == reason


def neighbours(sum_: Round) -> tuple[bytes, ...]:
    return ParticipantList(TERMS, sum_.members[VICTIM].participants).neighbours(VICTIM)


def moved(lists: SurvivorLists, names: tuple[bytes, ...] | list[bytes]) -> SurvivorLists:
    """Survivors told to be dropouts."""
    return SurvivorLists(
        tuple(one for one in lists.survivors if one.sender not in names), (*lists.dropouts, *sorted(names))
    )


def replaced(lists: SurvivorLists, **changes: bytes) -> SurvivorLists:
    place = next(place for place, one in enumerate(lists.survivors) if one.sender != VICTIM)
    changed = msgspec.structs.replace(lists.survivors[place], **changes)
    return SurvivorLists((*lists.survivors[:place], changed, *lists.survivors[place + 1 :]), lists.dropouts)


LISTS: dict[str, tuple[Callable[[Round, SurvivorLists], SurvivorLists], DeclineReason, str]] = {
    "not disjoint": (lambda s, one: SurvivorLists(one.survivors, (neighbours(s)[0],)), "survivors", "named twice"),
    "a survivor twice": (
        lambda _, one: SurvivorLists((*one.survivors, one.survivors[0]), one.dropouts),
        "survivors",
        "named twice",
    ),
    "not complete": (lambda _, one: SurvivorLists(one.survivors[1:], ()), "survivors", "not together the roster"),
    "with a stranger": (
        lambda _, one: SurvivorLists(one.survivors, (bytes(32),)),
        "survivors",
        "not together the roster",
    ),
    "the victim as a dropout": (lambda _, one: moved(one, [VICTIM]), "survivors", "not among the survivors"),
    "survivors under the floor": (
        lambda s, one: moved(one, [name for name in FLEET.names if name not in (VICTIM, *neighbours(s))][:3]),
        "cohort",
        "6 devices",
    ),
    "too few neighbours": (lambda s, one: moved(one, neighbours(s)[:2]), "survivors", "2 neighbours survived"),
    "a survivor who signed other values": (
        lambda _, one: replaced(one, body_digest=bytes(32)),
        "signature",
        "not signed",
    ),
    "a survivor who signed nothing": (lambda _, one: replaced(one, signature=bytes(64)), "signature", "not signed"),
    "a survivor of another sum": (
        lambda s, one: replaced(
            one,
            signature=next(
                receipt.signature
                for receipt in decode_message(
                    Round(FLEET, TERMS).reach("reveal").server.survivor_lists(), SurvivorLists
                ).survivors
                if receipt.sender != VICTIM
            ),
        ),
        "signature",
        "not signed",
    ),
}


@pytest.mark.parametrize("attack", LISTS)
def test_a_device_reveals_nothing_over_lists_that_are_not_right(attack: str) -> None:
    forge, reason, message = LISTS[attack]
    sum_ = Round(FLEET, TERMS).reach("reveal")
    told = forge(sum_, decode_message(sum_.server.survivor_lists(), SurvivorLists))
    with pytest.raises(DeclinedError, match=message) as refusal:
        secagg_client.reveal_shares(sum_.members[VICTIM], encode_message(told), FLEET.keys[VICTIM].sign)
    assert refusal.value.reason == reason


def test_a_second_different_unmasking_is_refused() -> None:
    sum_ = Round(FLEET, TERMS).reach("reveal")
    told = decode_message(sum_.server.survivor_lists(), SurvivorLists)
    first = secagg_client.reveal_shares(sum_.members[VICTIM], encode_message(told), FLEET.keys[VICTIM].sign)
    other = moved(told, neighbours(sum_)[:1])
    assert (
        secagg_client.reveal_shares(
            sum_.members[VICTIM], encode_message(other), FLEET.keys[VICTIM].sign
        ).last_message
        != first.last_message
    )
    with pytest.raises(DeclinedError, match="once already") as refusal:
        secagg_client.reveal_shares(first, encode_message(other), FLEET.keys[VICTIM].sign)
    assert refusal.value.reason == "equivocation"


def test_no_device_gives_both_shares_of_a_neighbour() -> None:
    sum_ = Round(FLEET, TERMS).reach("reveal")
    member = sum_.members[VICTIM]
    gone = neighbours(sum_)[0]
    told = moved(decode_message(sum_.server.survivor_lists(), SurvivorLists), [gone])
    given = dict(
        decode_message(
            decode_message(
                secagg_client.reveal_shares(member, encode_message(told), FLEET.keys[VICTIM].sign).last_message,
                SignedMessage,
            ).body,
            RevealedShares,
        ).shares
    )
    assert given.keys() == member.held_shares.keys()
    for name, (own, pair) in member.held_shares.items():
        assert given[name] == (pair if name == gone else own)


@pytest.mark.parametrize("step", ["share", "mask", "reveal"])
def test_asked_the_same_again_a_device_says_the_same_and_anything_else_nothing(step: str) -> None:
    sum_ = Round(FLEET, TERMS).reach(step)
    before = sum_.members[VICTIM]
    first = sum_.act(VICTIM)
    sum_.members[VICTIM] = first
    sum_.values[VICTIM] = sum_.values[VICTIM] + np.uint32(1)  # noise drawn afresh
    assert sum_.act(VICTIM) is first
    sign, changed = FLEET.keys[VICTIM].sign, b"something else"
    act: dict[str, Callable[[], secagg_client.ClientState]] = {
        "share": lambda: secagg_client.share_keys(first, changed, sign),
        "mask": lambda: secagg_client.mask_values(first, changed, sum_.values[VICTIM], sign),
        "reveal": lambda: secagg_client.reveal_shares(first, changed, sign),
    }
    with pytest.raises(DeclinedError) as refusal:
        act[step]()
    assert refusal.value.reason == "equivocation"
    assert before.step != first.step


def test_no_step_is_left_out() -> None:
    sum_ = Round(FLEET, TERMS).reach("reveal")
    fresh = secagg_client.advertise_keys(TERMS, VICTIM, FLEET.keys[VICTIM].sign)
    with pytest.raises(DeclinedError) as refusal:
        secagg_client.reveal_shares(fresh, sum_.server.survivor_lists(), FLEET.keys[VICTIM].sign)
    assert refusal.value.reason == "step"
    with pytest.raises(DeclinedError):
        secagg_client.mask_values(
            fresh, sum_.server.share_inbox(VICTIM), sum_.values[VICTIM], FLEET.keys[VICTIM].sign
        )


def resigned(sum_: Round, name: bytes, step: str, body: bytes) -> bytes:
    """What a device with its own program could say."""
    digest = b"" if step == "advertise" else ParticipantList(TERMS, tuple(letters_of(sum_))).digest
    return encode_message(sign_message(TERMS, step, name, body, FLEET.keys[name].sign, digest))


def body_at(sum_: Round) -> bytes:
    return decode_message(sum_.act(VICTIM).last_message, SignedMessage).body


def tampered_reveal(sum_: Round, change: Callable[[tuple[bytes, bytes]], tuple[bytes, bytes]]) -> bytes:
    shares = decode_message(body_at(sum_), RevealedShares).shares
    return encode_message(RevealedShares((change(shares[0]), *shares[1:])))


@dataclass(frozen=True)
class Lie:
    step: str
    say: Callable[[Round], bytes]
    reason: DeclineReason
    message: str


OUTSIDER = Fleet(1, seed=5)
LIES = {
    "no record": Lie("advertise", lambda _: b"hello", "message", "can be read"),
    "a letter without a signature": Lie(
        "advertise",
        lambda s: encode_message(
            msgspec.structs.replace(decode_message(s.act(VICTIM).last_message, SignedMessage), signature=bytes(64))
        ),
        "signature",
        "not signed",
    ),
    "a letter in another's name": Lie(
        "advertise",
        lambda s: encode_message(
            msgspec.structs.replace(
                decode_message(s.act(VICTIM).last_message, SignedMessage), sender=FLEET.names[1]
            )
        ),
        "signature",
        "not signed",
    ),
    "a key of low order": Lie(
        "advertise",
        lambda s: resigned(
            s,
            VICTIM,
            "advertise",
            keys_with(decode_message(s.act(VICTIM).last_message, SignedMessage), mask_key=bytes(32)),
        ),
        "message",
        "none",
    ),
    "one key for both": Lie(
        "advertise",
        lambda s: resigned(s, VICTIM, "advertise", encode_message(AdvertisedKeys(b"k" * 32, b"k" * 32, b"c" * 32))),
        "participants",
        "another device",
    ),
    "a step too early": Lie(
        "mask", lambda s: resigned(s, VICTIM, "reveal", encode_message(RevealedShares(()))), "step", "mask is open"
    ),
    "a letter of an outsider": Lie(
        "share",
        lambda s: encode_message(
            sign_message(
                TERMS,
                "share",
                OUTSIDER.names[0],
                b"",
                OUTSIDER.keys[OUTSIDER.names[0]].sign,
                ParticipantList(TERMS, tuple(letters_of(s))).digest,
            )
        ),
        "participants",
        "not in the roster",
    ),
    "a share too few": Lie(
        "share",
        lambda s: resigned(
            s,
            VICTIM,
            "share",
            encode_message(OutgoingShares(decode_message(body_at(s), OutgoingShares).shares[1:])),
        ),
        "shares",
        "3 shares came for 4",
    ),
    "a vector too short": Lie(
        "mask", lambda s: resigned(s, VICTIM, "mask", body_at(s)[:-2]), "message", "14 bytes"
    ),
    "a vector too long": Lie(
        "mask", lambda s: resigned(s, VICTIM, "mask", body_at(s) + b"\0"), "message", "17 bytes"
    ),
    "a malformed share": Lie(
        "reveal",
        lambda s: resigned(s, VICTIM, "reveal", tampered_reveal(s, lambda one: (one[0], one[1][:-1]))),
        "shares",
        "another share",
    ),
    "a share of another's": Lie(
        "reveal",
        lambda s: resigned(s, VICTIM, "reveal", tampered_reveal(s, lambda one: (one[0], bytes(17)))),
        "shares",
        "another share",
    ),
    "the wrong one of both shares": Lie(
        "reveal",
        lambda s: resigned(
            s, VICTIM, "reveal", tampered_reveal(s, lambda one: (one[0], s.members[VICTIM].held_shares[one[0]][1]))
        ),
        "shares",
        "another share",
    ),
    "a share of a stranger": Lie(
        "reveal",
        lambda s: resigned(s, VICTIM, "reveal", tampered_reveal(s, lambda one: (bytes(32), one[1]))),
        "shares",
        "not one of each",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_server_takes_no_letter_that_is_not_right(lie: str) -> None:
    case = LIES[lie]
    sum_ = Round(FLEET, TERMS).reach(case.step)
    content = case.say(sum_)
    step = "reveal" if lie == "a step too early" else case.step
    with pytest.raises(DeclinedError, match=case.message) as refusal:
        sum_.server.accept(step, content)
    assert refusal.value.reason == case.reason
    if step == case.step:  # the honest letter is still taken, and the sum is what it is
        sum_.step()
        while sum_.server.step != "done":
            sum_.step()
        assert np.array_equal(sum_.server.unmask_sum(), sum_.plain(FLEET.names))


def test_a_letter_is_taken_once_and_its_repetition_changes_nothing() -> None:
    sum_ = Round(FLEET, TERMS).reach("mask")
    other = resigned(sum_, VICTIM, "mask", bytes(len(body_at(sum_))))
    sum_.step(advance=False)
    sum_.server.accept("mask", sum_.members[VICTIM].last_message)
    with pytest.raises(DeclinedError, match="something else") as refusal:
        sum_.server.accept("mask", other)
    assert refusal.value.reason == "equivocation"
    sum_.server.advance()
    sum_.server.accept("mask", sum_.members[VICTIM].last_message)
    sum_.step()
    assert np.array_equal(sum_.server.unmask_sum(), sum_.plain(FLEET.names))


def test_letters_of_one_window_are_none_of_another() -> None:
    earlier = Round(FLEET, TERMS).reach("mask")
    later = Round(FLEET, neighbour_terms(min_cohort=7, degree=4, threshold=3, window="w2")).reach("mask")
    with pytest.raises(DeclinedError, match="not signed"):
        later.server.accept("mask", earlier.act(VICTIM).last_message)
    # Nor of a second sum of the same window: its roster is another one.
    again = Round(FLEET, TERMS).reach("mask")
    with pytest.raises(DeclinedError, match="not signed"):
        again.server.accept("mask", earlier.act(VICTIM).last_message)


def test_a_device_that_shares_another_seed_than_its_own_spoils_the_sum_and_is_named() -> None:
    sum_ = Round(FLEET, TERMS).reach("share")
    liar = sum_.members[VICTIM]
    sum_.members[VICTIM] = msgspec.structs.replace(liar, self_mask_seed=bytes(16))
    while sum_.server.step != "done":
        sum_.step()
    with pytest.raises(DeclinedError, match="another seed") as refusal:
        sum_.server.unmask_sum()
    assert refusal.value.culprits == (VICTIM,)


def test_the_server_is_told_nothing_of_a_share_by_its_tag_and_its_box() -> None:
    # Same device, same roster, other polynomials: nothing of a box or tag repeats.
    letters = Round(FLEET, TERMS, entropy=lambda n: drawn(b"%d" % n)).reach("share")
    one, two = (
        decode_message(
            decode_message(
                secagg_client.share_keys(
                    letters.members[VICTIM], letters.server.participants(), FLEET.keys[VICTIM].sign
                ).last_message,
                SignedMessage,
            ).body,
            OutgoingShares,
        ).shares
        for _ in range(2)
    )
    assert all(
        isinstance(sealed, EncryptedShares) and sealed.ciphertext != other.ciphertext
        for sealed, other in zip(one, two, strict=True)
    )
