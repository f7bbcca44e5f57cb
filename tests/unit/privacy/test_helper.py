"""Sums with a helper: exact, and given once, for enough enrolled devices that signed, over seeds that are new."""

from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import numpy as np
import pytest
from benchmarks.summing.fleet import HELPER_KEY, Fleet, helper_terms
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgewright.privacy import helper as helper_module
from edgewright.privacy.helper import Answer, Ask, Gatherer, Gift, Helper, Slip, UsedInMemory, give
from edgewright.privacy.mask import digest
from edgewright.privacy.roster import DeclinedError, Enrolment, Reason, Terms, decode, encode

FLEET = Fleet(6)
TERMS = helper_terms(min_cohort=4)
VICTIM = FLEET.names[0]


def helper(used: UsedInMemory | None = None, *, floor: int = 2) -> Helper:
    return Helper(HELPER_KEY, FLEET.enrolment(), used or UsedInMemory(), floor=floor)


PUBLIC = helper().public


def gathered(terms: Terms = TERMS, devices: int = 6, fleet: Fleet = FLEET) -> Gatherer:
    gatherer = Gatherer(terms)
    values = fleet.values(terms)
    for gift in fleet.gifts(terms, PUBLIC, {name: values[name] for name in fleet.names[:devices]}):
        gatherer.take(gift)
    return gatherer


def plain(terms: Terms, names: list[bytes], fleet: Fleet = FLEET) -> NDArray[np.uint64]:
    values = fleet.values(terms)
    total = np.sum([values[name] for name in names], axis=0, dtype=np.uint64)
    return np.asarray(total % (1 << terms.bits))


@settings(max_examples=60)
@given(st.integers(2, 12), st.integers(2, 32), st.integers(1, 60), st.integers(0, 1000))
def test_the_sum_is_exact(devices: int, bits: int, length: int, seed: int) -> None:
    fleet, terms = Fleet(devices, seed), helper_terms(bits=bits, length=length, min_cohort=2)
    assert np.array_equal(fleet.helped(terms, fleet.values(terms)), plain(terms, fleet.names, fleet))


def test_devices_that_sent_nothing_are_missed_by_nobody() -> None:
    gatherer = gathered(devices=4)
    total = gatherer.total(helper().answer(gatherer.ask()))
    assert np.array_equal(total, plain(TERMS, FLEET.names[:4]))


def test_several_workers_find_the_same_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(helper_module, "_CHUNK", 2)
    ask = gathered().ask()
    jobs = []

    def spread(work, parts):  # type: ignore[no-untyped-def]
        jobs.extend(parts)
        return [work(part) for part in reversed(jobs)]

    several = Helper(HELPER_KEY, FLEET.enrolment(), UsedInMemory(), spread=spread)
    assert several.answer(ask) == helper().answer(ask)
    assert len(jobs) == 3


def test_the_same_question_gets_the_same_answer_and_another_none() -> None:
    used = UsedInMemory()
    asked = gathered(devices=5).ask()
    first = helper(used).answer(asked)
    assert helper(used).answer(asked) == first
    with pytest.raises(DeclinedError, match="for another set") as refusal:
        helper(used).answer(gathered(devices=6).ask())
    assert refusal.value.reason == "repeat"


def test_a_question_under_easier_terms_is_the_same_question() -> None:
    used = UsedInMemory()
    helper(used).answer(gathered().ask())
    easier = msgspec.structs.replace(TERMS, min_cohort=2)
    with pytest.raises(DeclinedError, match="for another set"):
        helper(used).answer(gathered(easier, devices=2).ask())


def test_the_next_window_is_another_question() -> None:
    used = UsedInMemory()
    for window in ("w1", "w2"):
        terms = helper_terms(min_cohort=4, window=window)
        gatherer = gathered(terms)
        assert np.array_equal(gatherer.total(helper(used).answer(gatherer.ask())), plain(terms, FLEET.names))


def test_used_seeds_are_stored_before_there_is_an_answer() -> None:
    class Full(UsedInMemory):
        def claim(self, *_: object) -> None:
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        helper(Full()).answer(gathered().ask())


def slips() -> list[Slip]:
    return list(decode(gathered().ask(), Ask).slips)


def asked(slips: list[Slip], terms: Terms = TERMS) -> bytes:
    return encode(Ask(terms, tuple(sorted(slips, key=lambda slip: slip.sender))))


def with_seed(name: bytes, seed: bytes, terms: Terms = TERMS) -> Slip:
    values = FLEET.values(terms)[name]
    gift = give(terms, PUBLIC, values, name, FLEET.keys[name].sign, entropy=lambda _: seed)
    return decode(gift, Gift).slip()


def signed(name: bytes, box: bytes) -> Slip:
    masked = digest("body", bytes(16))
    return Slip(name, masked, box, FLEET.keys[name].sign(digest("gift", TERMS.digest, name, masked, box)))


@dataclass(frozen=True)
class Attack:
    ask: Callable[[], bytes]
    reason: Reason
    message: str
    floor: int = 2


STRANGERS = Fleet(3, seed=4)
BAD_BOX = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_128_GCM)
ATTACKS = {
    "a set under the terms' floor": Attack(lambda: asked(slips()[:3]), "cohort", "3 devices take part, 4"),
    "a set under the helper's floor": Attack(lambda: asked(slips()), "cohort", "6 devices take part, 10", floor=10),
    "one device twice": Attack(lambda: asked([*slips()[:4], slips()[0]]), "roster", "twice"),
    "one device twice with another seed": Attack(
        lambda: asked([*slips(), with_seed(VICTIM, bytes(16))]), "roster", "twice"
    ),
    "out of order": Attack(lambda: encode(Ask(TERMS, tuple(slips()[::-1]))), "roster", "not in order"),
    "Sybils": Attack(
        lambda: asked([*slips(), *(Slip(name, bytes(32), b"", b"") for name in STRANGERS.names)]),
        "enrolment",
        "3 devices are not enrolled",
    ),
    "one seed of two devices": Attack(
        lambda: asked([*slips()[2:], *(with_seed(one.sender, b"s" * 16) for one in slips()[:2])]),
        "seed",
        "used before",
    ),
    "a letter without a signature": Attack(
        lambda: asked([*slips()[1:], msgspec.structs.replace(slips()[0], signature=b"")]), "signature", "not signed"
    ),
    "a box of another device": Attack(
        lambda: asked([*slips()[1:], msgspec.structs.replace(slips()[0], box=slips()[1].box)]),
        "signature",
        "not signed",
    ),
    "a box of another device, signed": Attack(
        lambda: asked([*slips()[1:], signed(slips()[0].sender, slips()[1].box)]), "signature", "does not open"
    ),
    "a box of nothing": Attack(
        lambda: asked([*slips()[1:], signed(slips()[0].sender, b"")]), "signature", "does not open"
    ),
    "a short seed": Attack(
        lambda: asked(
            [
                *slips()[1:],
                signed(
                    slips()[0].sender,
                    BAD_BOX.encrypt(
                        b"short",
                        X25519PublicKey.from_public_bytes(PUBLIC),
                        digest("sealed seed", TERMS.digest, slips()[0].sender),
                    ),
                ),
            ]
        ),
        "signature",
        "5 bytes",
    ),
    "an altered query": Attack(
        lambda: asked(slips(), msgspec.structs.replace(TERMS, query=bytes(32))), "signature", "not signed"
    ),
    "a lowered floor": Attack(
        lambda: asked(slips()[:3], msgspec.structs.replace(TERMS, min_cohort=2)), "signature", "not signed"
    ),
    "a replay from another window": Attack(
        lambda: asked(slips(), msgspec.structs.replace(TERMS, window="w2")), "signature", "not signed"
    ),
    "nothing readable": Attack(lambda: b"\xc1", "message", "no Ask"),
    "terms that nobody may ask": Attack(
        lambda: msgspec.msgpack.encode([[b"q" * 32, "w", 16, 8, 1, bytes(32), 0, 0], []]), "message", "cohort of 1"
    ),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_helper_refuses_and_keeps_nothing(attack: str) -> None:
    case = ATTACKS[attack]
    used = UsedInMemory()
    with pytest.raises(DeclinedError, match=case.message) as refusal:
        helper(used, floor=case.floor).answer(case.ask())
    assert refusal.value.reason == case.reason
    # The honest question is still answered.
    gatherer = gathered()
    assert np.array_equal(gatherer.total(helper(used).answer(gatherer.ask())), plain(TERMS, FLEET.names))


def test_a_seed_of_an_earlier_sum_is_refused() -> None:
    used = UsedInMemory()
    repeated = b"r" * 16
    helper(used).answer(asked([*slips()[1:], with_seed(slips()[0].sender, repeated)]))
    later = helper_terms(min_cohort=4, window="w2")
    overlapping = [*decode(gathered(later).ask(), Ask).slips[1:], with_seed(slips()[0].sender, repeated, later)]
    with pytest.raises(DeclinedError, match="used before") as refusal:
        helper(used).answer(asked(overlapping, later))
    assert refusal.value.reason == "seed"


def test_overlapping_sets_of_one_window_are_refused() -> None:
    used, all_ = UsedInMemory(), slips()
    helper(used).answer(asked(all_[:5]))
    for overlapping in (all_[1:], all_[:4], all_):
        with pytest.raises(DeclinedError, match="for another set"):
            helper(used).answer(asked(overlapping))


def test_the_server_goes_on_without_those_whom_the_helper_names() -> None:
    gatherer = gathered(devices=5)
    liar = FLEET.names[5]
    packed = bytes(16)
    box = b"no box"
    gift = Gift(
        liar, packed, box, FLEET.keys[liar].sign(digest("gift", TERMS.digest, liar, digest("body", packed), box))
    )
    gatherer.take(encode(gift))
    party = helper()
    with pytest.raises(DeclinedError) as refusal:
        party.answer(gatherer.ask())
    assert refusal.value.culprits == (liar,)
    gatherer.leave_out(refusal.value.culprits)
    assert np.array_equal(gatherer.total(party.answer(gatherer.ask())), plain(TERMS, FLEET.names[:5]))


def gift_of(name: bytes = VICTIM, terms: Terms = TERMS) -> Gift:
    return decode(give(terms, PUBLIC, FLEET.values(terms)[name], name, FLEET.keys[name].sign), Gift)


def short() -> bytes:
    packed = bytes(14)
    box = gift_of().box
    signature = FLEET.keys[VICTIM].sign(digest("gift", TERMS.digest, VICTIM, digest("body", packed), box))
    return encode(Gift(VICTIM, packed, box, signature))


GIFTS: dict[str, tuple[Callable[[], bytes], Reason, str]] = {
    "of another window": (lambda: encode(gift_of(terms=helper_terms(window="w0"))), "signature", "not signed"),
    "of other values": (
        lambda: encode(msgspec.structs.replace(gift_of(), masked=bytes(16))),
        "signature",
        "not signed",
    ),
    "of the wrong length": (short, "message", "14 bytes"),
    "of nothing": (lambda: b"", "message", "no Gift"),
}


@pytest.mark.parametrize("attack", GIFTS)
def test_the_server_takes_no_gift_that_is_not_right(attack: str) -> None:
    make, reason, message = GIFTS[attack]
    gatherer = Gatherer(TERMS)
    with pytest.raises(DeclinedError, match=message) as refusal:
        gatherer.take(make())
    assert refusal.value.reason == reason
    assert gatherer.devices == 0


def test_the_server_takes_one_gift_of_a_device() -> None:
    gatherer = gathered()
    first = encode(gift_of())
    with pytest.raises(DeclinedError, match="something else") as refusal:
        gatherer.take(first)
    assert refusal.value.reason == "repeat"
    alone = Gatherer(TERMS)
    alone.take(first)
    alone.take(first)
    assert alone.devices == 1


def test_the_server_takes_no_answer_to_another_question() -> None:
    gatherer = gathered()
    answer = helper().answer(gatherer.ask())
    gatherer.leave_out([VICTIM])
    gatherer.ask()
    with pytest.raises(DeclinedError, match="no answer to what was asked"):
        gatherer.total(answer)
    with pytest.raises(DeclinedError, match="8 integers"):
        gatherer.total(encode(Answer(digest("ask", gatherer.ask()), b"")))


def test_who_comes_after_the_helper_was_asked_comes_too_late() -> None:
    gatherer = gathered(devices=5)
    gatherer.ask()
    with pytest.raises(DeclinedError, match="asked already") as refusal:
        gatherer.take(encode(gift_of(FLEET.names[5])))
    assert refusal.value.reason == "step"


def test_two_messages_of_a_device_share_nothing() -> None:
    one, two = gift_of(), gift_of()
    assert one.masked != two.masked
    assert one.box != two.box


def test_the_server_takes_nothing_of_a_device_that_nobody_enrolled() -> None:
    gatherer = Gatherer(TERMS, enrolled=Enrolment(1, frozenset(FLEET.names[1:])))
    with pytest.raises(DeclinedError, match="not enrolled") as refusal:
        gatherer.take(encode(gift_of()))
    assert (refusal.value.reason, gatherer.devices) == ("enrolment", 0)
    gatherer.take(encode(gift_of(FLEET.names[1])))
    assert gatherer.devices == 1


def test_no_more_devices_are_let_in_than_the_sum_holds() -> None:
    gatherer = Gatherer(TERMS, most=2)
    for name in FLEET.names[:2]:
        gatherer.take(encode(gift_of(name)))
    with pytest.raises(DeclinedError, match="as many as may be"):
        gatherer.take(encode(gift_of(FLEET.names[2])))


def test_a_helper_that_declines_for_strangers_ends_the_sum() -> None:
    gatherer = gathered()
    gatherer.ask()
    for named in ([b"x" * 32], [VICTIM, b"x" * 32], []):
        with pytest.raises(DeclinedError, match="not in the sum"):
            gatherer.leave_out(named)
    assert gatherer.devices == 6


def test_nobody_slips_in_while_the_helper_s_question_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    gatherer, late = gathered(devices=5), encode(gift_of(FLEET.names[5]))

    def slow(record: msgspec.Struct) -> bytes:
        with pytest.raises(DeclinedError, match="asked already"):
            gatherer.take(late)
        return encode(record)

    monkeypatch.setattr(helper_module, "encode", slow)
    assert np.array_equal(gatherer.total(helper().answer(gatherer.ask())), plain(TERMS, FLEET.names[:5]))
