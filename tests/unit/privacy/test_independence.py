"""What the server sees, but for the sum, is as likely for any inputs: counted at modulus 16.

Values reach a device's letters at one step. Before it, nothing can depend on them; at it, the letters of all
survivors but the last are compared between two very different sets of inputs, and with the uniform distribution,
after everything that the server can take off was taken off: each survivor's own mask and each dropout's masks.
"""

from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
from benchmarks.summing.fleet import HELPER_KEY, Fleet, Round, drawn, helper_terms, neighbour_terms
from numpy.typing import NDArray
from scipy import stats

from edgewright.privacy import helper, secagg_client, secagg_server
from edgewright.privacy.bit_packing import UnsignedArray, unpack_bits
from edgewright.privacy.helper import InMemoryUsedSeeds, MaskedSubmission, MaskHelper, submit
from edgewright.privacy.mask import add_mask, subtract_mask
from edgewright.privacy.roster import ProtocolTerms, SignedMessage, decode_message
from edgewright.privacy.secagg_server import SecAggServer

BITS, LENGTH, SUMS = 4, 800, 12
# Each set is compared in several ways; at this level a run of the file is wrong once in ten thousand.
LEVEL = 1e-6
FLEET = Fleet(6)
TERMS = neighbour_terms(bits=BITS, length=LENGTH, min_cohort=5, degree=4, threshold=3)
DROPPED = FLEET.names[5]
View = NDArray[np.int64]


def inputs(terms: ProtocolTerms, kind: str, number: int) -> dict[bytes, UnsignedArray]:
    """All zeros but for the last device, or ramps; the sum of each column is the same in both."""
    ramp = np.arange(terms.vector_length) % 16
    rows = np.zeros((len(FLEET.names), terms.vector_length), np.int64)
    if kind == "ramps":
        for place in range(len(rows) - 2):
            rows[place] = (ramp * (place + 1)) % 16
    survivors = len(rows) - 1  # the last device drops out
    if kind == "ramps":
        rows[survivors] = (ramp * 3) % 16
    rows[survivors - 1] = (5 - rows[: survivors - 1].sum(axis=0)) % 16
    return {name: row.astype(np.uint32) for name, row in zip(FLEET.names, rows, strict=True)}


def view_of(server: SecAggServer, members: dict[bytes, secagg_client.ClientState]) -> View:
    """Return what a server that kept to the protocol knows of each survivor's values, shape [survivors, length]."""
    rows = []
    roster = server._participants
    # As the module has them, for a test breaks them there.
    add, subtract = vars(secagg_client)["add_mask"], vars(secagg_client)["subtract_mask"]
    private = server._reconstruct_mask_key(DROPPED)
    for name, member in members.items():
        row = unpack_bits(decode_message(member.last_message, SignedMessage).body, BITS, LENGTH).copy()
        subtract(row, secagg_client.self_mask_key(roster, name, server._reconstruct_self_mask_seed(name)))
        if DROPPED in roster.neighbours(name):
            key = secagg_client.pairwise_mask_key(roster, private, server._keys[name].mask_key, DROPPED, name)
            (subtract if name < DROPPED else add)(row, key)
        rows.append(row.astype(np.int64) % 16)
    return np.array(rows)


def views(kind: str) -> View:
    """Return what the server knows in many sums, shape [survivors, sums * length]."""
    found = []
    for number in range(SUMS):
        sum_ = Round(FLEET, TERMS, inputs(TERMS, kind, number))
        sum_.reach("mask").step(without=[DROPPED])
        masked = dict(sum_.members)
        sum_.step()
        assert not sum_.declined
        view = view_of(sum_.server, masked)
        assert (sum_.server.unmask_sum() == 5).all()
        assert (view.sum(axis=0) % 16 == 5).all()  # it is the whole view: it has the sum, and only that
        found.append(view)
    return np.concatenate(found, axis=1)


def raw(kind: str) -> View:
    """Return the masked letters alone, shape [survivors, sums * length]."""
    found = []
    for number in range(SUMS):
        sum_ = Round(FLEET, TERMS, inputs(TERMS, kind, number)).reach("mask")
        sum_.step(without=[DROPPED])
        rows = [
            unpack_bits(decode_message(member.last_message, SignedMessage).body, BITS, LENGTH)
            for member in sum_.members.values()
        ]
        found.append(np.array(rows, np.int64))
    return np.concatenate(found, axis=1)


def helped(kind: str) -> View:
    """Return what the server of a sum with a helper sees: the gifts, shape [devices, sums * length]."""
    terms = helper_terms(bits=BITS, length=LENGTH)
    public = MaskHelper(HELPER_KEY, FLEET.enrolment(), InMemoryUsedSeeds()).public_key
    found = []
    for number in range(SUMS):
        values = inputs(terms, kind, number)
        gifts = [
            decode_message(submit(terms, public, values[name], name, FLEET.keys[name].sign), MaskedSubmission)
            for name in FLEET.names
        ]
        found.append(np.array([unpack_bits(gift.masked_values, BITS, LENGTH) for gift in gifts], np.int64))
    return np.concatenate(found, axis=1)


def least_chance(one: View, other: View) -> float:
    """Return the smallest p-value of all comparisons, corrected for how many they are.

    Single devices and pairs are compared between the two input sets and with the uniform distribution, and so are
    letters with the column that they are of, which is what an input depends on here.
    """
    chances = []
    columns = np.tile(np.arange(LENGTH) % 16, one.shape[1] // LENGTH)
    cases: list[tuple[View, View]] = [(one[i] * 16 + columns, other[i] * 16 + columns) for i in range(len(one))]
    # All survivors together give the sum, so pairs are taken of all but the last.
    cases += [(one[i] * 16 + one[j], other[i] * 16 + other[j]) for i, j in combinations(range(len(one) - 1), 2)]
    for first, second in cases:
        counts = np.array([np.bincount(first, minlength=256), np.bincount(second, minlength=256)])
        kept = counts[:, counts.sum(axis=0) > 0]
        chances.append(float(stats.chi2_contingency(kept).pvalue))
        chances += [float(stats.chisquare(row).pvalue) for row in counts]
    return min(1.0, min(chances) * len(chances))


SEEN: dict[str, Callable[[str], View]] = {"letters": raw, "unmasked": views, "gifts": helped}


@pytest.mark.parametrize("what", SEEN)
def test_what_the_server_sees_does_not_depend_on_the_inputs(what: str) -> None:
    assert least_chance(SEEN[what]("zeros"), SEEN[what]("ramps")) > LEVEL


NONE = b"none"


def spare(apply: Callable[[UnsignedArray, bytes], None]) -> Callable[[UnsignedArray, bytes], None]:
    """Return what leaves out masks without a key."""
    return lambda values, key: None if key is NONE else apply(values, key)


def without(*_: object) -> bytes:
    return NONE


def constant(*_: object) -> bytes:
    return bytes(16)


# What is looked at, and how which keys are broken.
BREAKS: dict[str, tuple[str, str, Callable[..., bytes]]] = {
    "no masks between neighbours": ("unmasked", "pairwise_mask_key", without),
    "one mask between all neighbours": ("unmasked", "pairwise_mask_key", constant),
    "no mask for the helper": ("gifts", "_mask_key", without),
    "one mask for the helper": ("gifts", "_mask_key", constant),
}


@pytest.mark.parametrize("broken", BREAKS)
def test_the_comparison_notices_broken_masks(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    what, name, key = BREAKS[broken]
    for module in (secagg_client, secagg_server, helper):
        if hasattr(module, name):
            monkeypatch.setattr(module, name, key)
        monkeypatch.setattr(module, "add_mask", spare(add_mask))
        monkeypatch.setattr(module, "subtract_mask", spare(subtract_mask))
    assert least_chance(SEEN[what]("zeros"), SEEN[what]("ramps")) < LEVEL


def test_nothing_that_is_said_before_or_after_the_masked_values_depends_on_them() -> None:
    said: dict[str, list[dict[str, list[bytes]]]] = {"zeros": [], "ramps": []}
    for kind, found in said.items():
        sum_ = Round(FLEET, TERMS, inputs(TERMS, kind, 0), entropy=lambda number: drawn(b"%d" % number))
        letters: dict[str, list[bytes]] = {}
        while sum_.server.step != "done":
            step = sum_.server.step
            sum_.step()
            letters[step] = [
                decode_message(sum_.members[name].last_message, SignedMessage).body for name in FLEET.names
            ]
        found.append(letters)
    (zeros,), (ramps,) = said["zeros"], said["ramps"]
    for step in ("advertise", "share", "reveal"):
        assert zeros[step] == ramps[step]
    assert zeros["mask"] != ramps["mask"]


def test_a_late_dropout_whose_neighbours_took_it_for_lost_is_still_hidden() -> None:
    """Its own mask stays on: without one, the keys that its neighbours reveal would show its values."""
    found = []
    for kind in ("zeros", "ramps"):
        rows = []
        for number in range(SUMS):
            sum_ = Round(FLEET, TERMS, inputs(TERMS, kind, number)).reach("mask")
            late = sum_.act(DROPPED)
            sum_.step(without=[DROPPED])
            sum_.step()
            server, row = (
                sum_.server,
                unpack_bits(decode_message(late.last_message, SignedMessage).body, BITS, LENGTH).copy(),
            )
            for other in server._sharing_neighbours(DROPPED):
                private = server._reconstruct_mask_key(DROPPED)
                key = secagg_client.pairwise_mask_key(
                    server._participants, private, server._keys[other].mask_key, DROPPED, other
                )
                (subtract_mask if other > DROPPED else add_mask)(row, key)
            rows.append(row.astype(np.int64) % 16)
        found.append(np.concatenate(rows)[None, :])
    assert least_chance(*found) > LEVEL
