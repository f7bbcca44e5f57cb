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
from edgewright.privacy.helper import (
    HelperRequest,
    HelperResponse,
    InMemoryUsedSeeds,
    MaskedSubmission,
    MaskedSumCollector,
    MaskHelper,
    MaskSlip,
    submit,
)
from edgewright.privacy.mask import labelled_digest
from edgewright.privacy.roster import (
    DeclinedError,
    DeclineReason,
    EnrolmentList,
    ProtocolTerms,
    decode_message,
    encode_message,
)

FLEET = Fleet(6)
TERMS = helper_terms(min_cohort=4)
VICTIM = FLEET.names[0]


def helper(used: InMemoryUsedSeeds | None = None, *, floor: int = 2) -> MaskHelper:
    return MaskHelper(HELPER_KEY, FLEET.enrolment(), used or InMemoryUsedSeeds(), min_devices=floor)


PUBLIC = helper().public_key


def gathered(terms: ProtocolTerms = TERMS, devices: int = 6, fleet: Fleet = FLEET) -> MaskedSumCollector:
    gatherer = MaskedSumCollector(terms)
    values = fleet.values(terms)
    for gift in fleet.gifts(terms, PUBLIC, {name: values[name] for name in fleet.names[:devices]}):
        gatherer.accept(gift)
    return gatherer


def plain(terms: ProtocolTerms, names: list[bytes], fleet: Fleet = FLEET) -> NDArray[np.uint64]:
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
    total = gatherer.unmask_sum(helper().answer_request(gatherer.helper_request()))
    assert np.array_equal(total, plain(TERMS, FLEET.names[:4]))


def test_several_workers_find_the_same_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(helper_module, "_SLIPS_PER_BATCH", 2)
    ask = gathered().helper_request()
    jobs = []

    def spread(work, parts):  # type: ignore[no-untyped-def]
        jobs.extend(parts)
        return [work(part) for part in reversed(jobs)]

    several = MaskHelper(HELPER_KEY, FLEET.enrolment(), InMemoryUsedSeeds(), map_chunks=spread)
    assert several.answer_request(ask) == helper().answer_request(ask)
    assert len(jobs) == 3


def test_the_same_question_gets_the_same_answer_and_another_none() -> None:
    used = InMemoryUsedSeeds()
    asked = gathered(devices=5).helper_request()
    first = helper(used).answer_request(asked)
    assert helper(used).answer_request(asked) == first
    with pytest.raises(DeclinedError, match="for another set") as refusal:
        helper(used).answer_request(gathered(devices=6).helper_request())
    assert refusal.value.reason == "equivocation"


def test_a_question_under_easier_terms_is_the_same_question() -> None:
    used = InMemoryUsedSeeds()
    helper(used).answer_request(gathered().helper_request())
    easier = msgspec.structs.replace(TERMS, min_cohort=2)
    with pytest.raises(DeclinedError, match="for another set"):
        helper(used).answer_request(gathered(easier, devices=2).helper_request())


def test_the_next_window_is_another_question() -> None:
    used = InMemoryUsedSeeds()
    for window in ("w1", "w2"):
        terms = helper_terms(min_cohort=4, window=window)
        gatherer = gathered(terms)
        assert np.array_equal(
            gatherer.unmask_sum(helper(used).answer_request(gatherer.helper_request())), plain(terms, FLEET.names)
        )


def test_used_seeds_are_stored_before_there_is_an_answer() -> None:
    class Full(InMemoryUsedSeeds):
        def claim_seeds(self, *_: object, **__: object) -> None:
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        helper(Full()).answer_request(gathered().helper_request())


def slips() -> list[MaskSlip]:
    return list(decode_message(gathered().helper_request(), HelperRequest).slips)


def asked(slips: list[MaskSlip], terms: ProtocolTerms = TERMS) -> bytes:
    return encode_message(HelperRequest(terms, tuple(sorted(slips, key=lambda slip: slip.sender))))


def with_seed(name: bytes, seed: bytes, terms: ProtocolTerms = TERMS) -> MaskSlip:
    values = FLEET.values(terms)[name]
    gift = submit(terms, PUBLIC, values, name, FLEET.keys[name].sign, entropy=lambda _: seed)
    return decode_message(gift, MaskedSubmission).mask_slip()


def signed(name: bytes, box: bytes) -> MaskSlip:
    masked = labelled_digest("body", bytes(16))
    return MaskSlip(
        name, masked, box, FLEET.keys[name].sign(labelled_digest("submit", TERMS.digest, name, masked, box))
    )


@dataclass(frozen=True)
class Attack:
    ask: Callable[[], bytes]
    reason: DeclineReason
    message: str
    floor: int = 2


STRANGERS = Fleet(3, seed=4)
BAD_BOX = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_128_GCM)
ATTACKS = {
    "a set under the terms' floor": Attack(lambda: asked(slips()[:3]), "cohort", "3 devices take part, 4"),
    "a set under the helper's floor": Attack(lambda: asked(slips()), "cohort", "6 devices take part, 10", floor=10),
    "one device twice": Attack(lambda: asked([*slips()[:4], slips()[0]]), "participants", "twice"),
    "one device twice with another seed": Attack(
        lambda: asked([*slips(), with_seed(VICTIM, bytes(16))]), "participants", "twice"
    ),
    "out of order": Attack(
        lambda: encode_message(HelperRequest(TERMS, tuple(slips()[::-1]))), "participants", "not in order"
    ),
    "Sybils": Attack(
        lambda: asked([*slips(), *(MaskSlip(name, bytes(32), b"", b"") for name in STRANGERS.names)]),
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
        lambda: asked([*slips()[1:], msgspec.structs.replace(slips()[0], sealed_seed=slips()[1].sealed_seed)]),
        "signature",
        "not signed",
    ),
    "a box of another device, signed": Attack(
        lambda: asked([*slips()[1:], signed(slips()[0].sender, slips()[1].sealed_seed)]),
        "signature",
        "does not open",
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
                        labelled_digest("sealed seed", TERMS.digest, slips()[0].sender),
                    ),
                ),
            ]
        ),
        "signature",
        "5 bytes",
    ),
    "an altered query": Attack(
        lambda: asked(slips(), msgspec.structs.replace(TERMS, query_digest=bytes(32))), "signature", "not signed"
    ),
    "a lowered floor": Attack(
        lambda: asked(slips()[:3], msgspec.structs.replace(TERMS, min_cohort=2)), "signature", "not signed"
    ),
    "a replay from another window": Attack(
        lambda: asked(slips(), msgspec.structs.replace(TERMS, window="w2")), "signature", "not signed"
    ),
    "nothing readable": Attack(lambda: b"\xc1", "message", "no HelperRequest"),
    "terms that nobody may ask": Attack(
        lambda: msgspec.msgpack.encode([[b"q" * 32, "w", 16, 8, 1, bytes(32), 0, 0], []]), "message", "cohort of 1"
    ),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_helper_refuses_and_keeps_nothing(attack: str) -> None:
    case = ATTACKS[attack]
    used = InMemoryUsedSeeds()
    with pytest.raises(DeclinedError, match=case.message) as refusal:
        helper(used, floor=case.floor).answer_request(case.ask())
    assert refusal.value.reason == case.reason
    # The honest question is still answered.
    gatherer = gathered()
    assert np.array_equal(
        gatherer.unmask_sum(helper(used).answer_request(gatherer.helper_request())), plain(TERMS, FLEET.names)
    )


def test_a_seed_of_an_earlier_sum_is_refused() -> None:
    used = InMemoryUsedSeeds()
    repeated = b"r" * 16
    helper(used).answer_request(asked([*slips()[1:], with_seed(slips()[0].sender, repeated)]))
    later = helper_terms(min_cohort=4, window="w2")
    overlapping = [
        *decode_message(gathered(later).helper_request(), HelperRequest).slips[1:],
        with_seed(slips()[0].sender, repeated, later),
    ]
    with pytest.raises(DeclinedError, match="used before") as refusal:
        helper(used).answer_request(asked(overlapping, later))
    assert refusal.value.reason == "seed"


def test_overlapping_sets_of_one_window_are_refused() -> None:
    used, all_ = InMemoryUsedSeeds(), slips()
    helper(used).answer_request(asked(all_[:5]))
    for overlapping in (all_[1:], all_[:4], all_):
        with pytest.raises(DeclinedError, match="for another set"):
            helper(used).answer_request(asked(overlapping))


def test_the_server_goes_on_without_those_whom_the_helper_names() -> None:
    gatherer = gathered(devices=5)
    liar = FLEET.names[5]
    packed = bytes(16)
    box = b"no box"
    gift = MaskedSubmission(
        liar,
        packed,
        box,
        FLEET.keys[liar].sign(labelled_digest("submit", TERMS.digest, liar, labelled_digest("body", packed), box)),
    )
    gatherer.accept(encode_message(gift))
    party = helper()
    with pytest.raises(DeclinedError) as refusal:
        party.answer_request(gatherer.helper_request())
    assert refusal.value.culprits == (liar,)
    gatherer.exclude(refusal.value.culprits)
    assert np.array_equal(
        gatherer.unmask_sum(party.answer_request(gatherer.helper_request())), plain(TERMS, FLEET.names[:5])
    )


def gift_of(name: bytes = VICTIM, terms: ProtocolTerms = TERMS) -> MaskedSubmission:
    return decode_message(
        submit(terms, PUBLIC, FLEET.values(terms)[name], name, FLEET.keys[name].sign), MaskedSubmission
    )


def short() -> bytes:
    packed = bytes(14)
    box = gift_of().sealed_seed
    signature = FLEET.keys[VICTIM].sign(
        labelled_digest("submit", TERMS.digest, VICTIM, labelled_digest("body", packed), box)
    )
    return encode_message(MaskedSubmission(VICTIM, packed, box, signature))


GIFTS: dict[str, tuple[Callable[[], bytes], DeclineReason, str]] = {
    "of another window": (
        lambda: encode_message(gift_of(terms=helper_terms(window="w0"))),
        "signature",
        "not signed",
    ),
    "of other values": (
        lambda: encode_message(msgspec.structs.replace(gift_of(), masked_values=bytes(16))),
        "signature",
        "not signed",
    ),
    "of the wrong length": (short, "message", "14 bytes"),
    "of nothing": (lambda: b"", "message", "no MaskedSubmission"),
}


@pytest.mark.parametrize("attack", GIFTS)
def test_the_server_takes_no_gift_that_is_not_right(attack: str) -> None:
    make, reason, message = GIFTS[attack]
    gatherer = MaskedSumCollector(TERMS)
    with pytest.raises(DeclinedError, match=message) as refusal:
        gatherer.accept(make())
    assert refusal.value.reason == reason
    assert gatherer.device_count == 0


def test_the_server_takes_one_gift_of_a_device() -> None:
    gatherer = gathered()
    first = encode_message(gift_of())
    with pytest.raises(DeclinedError, match="something else") as refusal:
        gatherer.accept(first)
    assert refusal.value.reason == "equivocation"
    alone = MaskedSumCollector(TERMS)
    alone.accept(first)
    alone.accept(first)
    assert alone.device_count == 1


def test_the_server_takes_no_answer_to_another_question() -> None:
    gatherer = gathered()
    answer = helper().answer_request(gatherer.helper_request())
    gatherer.exclude([VICTIM])
    gatherer.helper_request()
    with pytest.raises(DeclinedError, match="no answer to what was asked"):
        gatherer.unmask_sum(answer)
    with pytest.raises(DeclinedError, match="8 integers"):
        gatherer.unmask_sum(
            encode_message(HelperResponse(labelled_digest("helper request", gatherer.helper_request()), b""))
        )


def test_who_comes_after_the_helper_was_asked_comes_too_late() -> None:
    gatherer = gathered(devices=5)
    gatherer.helper_request()
    with pytest.raises(DeclinedError, match="asked already") as refusal:
        gatherer.accept(encode_message(gift_of(FLEET.names[5])))
    assert refusal.value.reason == "step"


def test_two_messages_of_a_device_share_nothing() -> None:
    one, two = gift_of(), gift_of()
    assert one.masked_values != two.masked_values
    assert one.sealed_seed != two.sealed_seed


def test_the_server_takes_nothing_of_a_device_that_nobody_enrolled() -> None:
    gatherer = MaskedSumCollector(TERMS, enrolment_list=EnrolmentList(1, frozenset(FLEET.names[1:])))
    with pytest.raises(DeclinedError, match="not enrolled") as refusal:
        gatherer.accept(encode_message(gift_of()))
    assert (refusal.value.reason, gatherer.device_count) == ("enrolment", 0)
    gatherer.accept(encode_message(gift_of(FLEET.names[1])))
    assert gatherer.device_count == 1


def test_no_more_devices_are_let_in_than_the_sum_holds() -> None:
    gatherer = MaskedSumCollector(TERMS, max_devices=2)
    for name in FLEET.names[:2]:
        gatherer.accept(encode_message(gift_of(name)))
    with pytest.raises(DeclinedError, match="as many as may be"):
        gatherer.accept(encode_message(gift_of(FLEET.names[2])))


def test_a_helper_that_declines_for_strangers_ends_the_sum() -> None:
    gatherer = gathered()
    gatherer.helper_request()
    for named in ([b"x" * 32], [VICTIM, b"x" * 32], []):
        with pytest.raises(DeclinedError, match="not in the sum"):
            gatherer.exclude(named)
    assert gatherer.device_count == 6


def test_nobody_slips_in_while_the_helper_s_question_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    gatherer, late = gathered(devices=5), encode_message(gift_of(FLEET.names[5]))

    def slow(record: msgspec.Struct) -> bytes:
        with pytest.raises(DeclinedError, match="asked already"):
            gatherer.accept(late)
        return encode_message(record)

    monkeypatch.setattr(helper_module, "encode_message", slow)
    assert np.array_equal(
        gatherer.unmask_sum(helper().answer_request(gatherer.helper_request())), plain(TERMS, FLEET.names[:5])
    )
