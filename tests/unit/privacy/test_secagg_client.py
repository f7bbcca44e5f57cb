"""Sums without a helper: exact whoever drops out and when, or none at all."""

import msgspec
import numpy as np
import pytest
from benchmarks.summing.fleet import Fleet, Round, neighbour_terms
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewright.contract.errors import InputError
from edgewright.privacy import secagg_client
from edgewright.privacy.roster import (
    DeclinedError,
    ParticipantList,
    ProtocolTerms,
    SignedMessage,
    SignedMessages,
    decode_message,
)
from edgewright.privacy.shamir import combine_shares, split_secret


@st.composite
def sums(draw: st.DrawFn) -> tuple[int, ProtocolTerms, list[set[int]]]:
    devices = draw(st.integers(3, 12))
    degree = draw(st.integers(2, devices - 1))
    threshold = draw(st.integers(degree // 2 + 1, degree))
    terms = neighbour_terms(
        bits=draw(st.integers(2, 32)),
        length=draw(st.integers(1, 40)),
        degree=degree,
        threshold=threshold,
        min_cohort=draw(st.integers(degree + 1, devices)),
    )
    drops = [draw(st.sets(st.integers(0, devices - 1), max_size=2)) for _ in range(4)]
    return devices, terms, drops


@settings(deadline=None, max_examples=120)
@given(sums(), st.integers(0, 1000))
def test_a_sum_is_exact_or_none_whoever_drops_out(
    case: tuple[int, ProtocolTerms, list[set[int]]], seed: int
) -> None:
    devices, terms, drops = case
    fleet = Fleet(devices, seed)
    sum_ = Round(fleet, terms)
    survivors: list[bytes] = []
    refused: str | None
    try:
        for dropped in drops:
            masking = sum_.server.step == "mask"
            sum_.step(without=[fleet.names[number] for number in dropped])
            survivors = list(sum_.members) if masking else survivors
        total = sum_.server.unmask_sum()
    except DeclinedError as error:
        refused = error.reason
    else:
        refused = None
    if refused is not None:
        assert refused in ("cohort", "shares")
        assert any(drops)  # without dropouts there is a sum
        return
    assert np.array_equal(total, sum_.plain(survivors))
    assert len(survivors) >= terms.min_cohort


@pytest.mark.parametrize("step", ["share", "mask", "reveal"])
def test_as_many_dropouts_as_the_threshold_allows_lose_nobody_elses_values(step: str) -> None:
    fleet = Fleet(20)
    terms = neighbour_terms(min_cohort=17, degree=8, threshold=5)
    sum_ = Round(fleet, terms).reach(step)
    gone = fleet.names[4:7]
    sum_.step(without=gone)
    survivors = [name for name in fleet.names if step == "reveal" or name not in gone]
    while sum_.server.step != "done":
        sum_.step()
    assert not sum_.declined
    assert np.array_equal(sum_.server.unmask_sum(), sum_.plain(survivors))


def test_a_sum_fails_closed_when_too_few_neighbours_come_back() -> None:
    fleet = Fleet(8)
    terms = neighbour_terms(degree=4, threshold=3)
    sum_ = Round(fleet, terms).reach("reveal")
    alone = fleet.names[0]
    neighbours = ParticipantList(terms, sum_.members[alone].participants).neighbours(alone)
    sum_.step(without=neighbours[:2])
    with pytest.raises(DeclinedError, match="2 shares, 3 are needed") as refusal:
        sum_.server.unmask_sum()
    assert refusal.value.reason == "shares"


@settings(deadline=None)
@given(st.integers(3, 40), st.data())
def test_neighbours_are_mutual_and_all_have_as_many(devices: int, data: st.DataObject) -> None:
    degree = data.draw(st.integers(2, devices - 1))
    terms = neighbour_terms(degree=degree, threshold=degree // 2 + 1, min_cohort=degree + 1)
    letters = tuple(SignedMessage(bytes([number]) * 32, b"", b"") for number in range(devices))
    roster = ParticipantList(terms, letters)
    everyone = degree + (degree % 2 and devices % 2)
    for letter in letters:
        neighbours = roster.neighbours(letter.sender)
        assert len(neighbours) == everyone
        assert letter.sender not in neighbours
        assert all(letter.sender in roster.neighbours(other) for other in neighbours)


def test_neighbours_change_with_anything_in_the_roster() -> None:
    terms = neighbour_terms(degree=4, threshold=3)
    letters = [SignedMessage(bytes([number]) * 32, b"", b"") for number in range(30)]
    before = ParticipantList(terms, tuple(letters))
    letters[7] = msgspec.structs.replace(letters[7], body=b"x")
    after = ParticipantList(terms, tuple(letters))
    changed = sum(before.neighbours(one.sender) != after.neighbours(one.sender) for one in letters)
    assert changed > 20


def test_a_device_holds_no_secret_that_it_needs_no_more() -> None:
    fleet = Fleet(6)
    sum_ = Round(fleet, neighbour_terms()).reach("reveal")
    masked = sum_.members[fleet.names[0]]
    assert (masked.self_mask_seed, masked.mask_key_seed, masked.share_private_key) == (b"", b"", b"")
    assert masked.held_shares
    sum_.step()
    assert sum_.members[fleet.names[0]].held_shares == {}


def test_a_device_that_lost_power_goes_on_where_it_was() -> None:
    fleet = Fleet(6)
    sum_ = Round(fleet, neighbour_terms())
    while sum_.server.step != "done":
        sum_.step()
        for name, member in sum_.members.items():
            sum_.members[name] = msgspec.msgpack.decode(
                msgspec.msgpack.encode(member), type=secagg_client.ClientState
            )
    assert np.array_equal(sum_.server.unmask_sum(), sum_.plain(fleet.names))


def test_the_roster_is_everybodys_letter() -> None:
    sum_ = Round(Fleet(6), neighbour_terms()).reach("share")
    assert len(decode_message(sum_.server.participants(), SignedMessages).messages) == 6


@pytest.mark.parametrize(("degree", "threshold"), [(4, 2), (4, 5), (6, 4), (0, 1)])
def test_terms_that_protect_nobody_are_refused(degree: int, threshold: int) -> None:
    with pytest.raises(InputError, match="neighbours"):
        neighbour_terms(degree=degree, threshold=threshold, min_cohort=6)


def test_more_shares_tolerate_more_liars() -> None:
    assert [
        secagg_client.tolerated_colluders(neighbour_terms(degree=17, threshold=t, min_cohort=20))
        for t in (9, 12, 17)
    ] == [
        0,
        6,
        16,
    ]


@settings(deadline=None)
@given(st.binary(min_size=16, max_size=16), st.integers(1, 20), st.data())
def test_any_threshold_of_shares_gives_the_secret(secret: bytes, holders: int, data: st.DataObject) -> None:
    threshold = data.draw(st.integers(1, holders))
    shares = dict(enumerate(split_secret(secret, threshold, holders), 1))
    chosen = data.draw(st.permutations(sorted(shares)))[: data.draw(st.integers(threshold, holders))]
    assert combine_shares({holder: shares[holder] for holder in chosen}, threshold) == secret
    if threshold > 1:
        with pytest.raises(ValueError, match="are needed"):
            combine_shares({holder: shares[holder] for holder in chosen[: threshold - 1]}, threshold)


def test_too_few_shares_fit_every_secret() -> None:
    # Two of three shares and any guess at 0 lie on one parabola: they exclude nothing.
    first, second, _ = split_secret(bytes(16), 3, 3)
    prime = (1 << 130) - 5
    one, two = int.from_bytes(first, "big"), int.from_bytes(second, "big")
    for guess in (0, 1, 2**128 - 1):
        square = ((two - guess) - 2 * (one - guess)) * pow(2, -1, prime) % prime
        slope = (one - guess - square) % prime
        assert [(square * x * x + slope * x + guess) % prime for x in (1, 2)] == [one, two]


@pytest.mark.parametrize(
    "spoil",
    [lambda share: share[:-1], lambda share: b"\xff" * 17, lambda share: share[:-1] + bytes([share[-1] ^ 1])],
    ids=["short", "beyond the field", "another value"],
)
def test_malformed_shares_give_no_secret(spoil: object) -> None:
    shares = dict(enumerate(split_secret(bytes(range(16)), 2, 3), 1))
    shares[3] = spoil(shares[3])  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"malformed|not of one secret"):
        combine_shares(shares, 2)
