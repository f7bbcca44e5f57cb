"""A fleet in memory: the real devices, server and helper of private sums, without sockets and disks."""

import hashlib
import os
from collections.abc import Callable, Collection, Iterator

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from edgewright.privacy import secagg_client
from edgewright.privacy.bit_packing import UnsignedArray
from edgewright.privacy.helper import InMemoryUsedSeeds, MaskedSumCollector, MaskHelper, submit
from edgewright.privacy.roster import DeclinedError, EnrolmentList, ProtocolTerms
from edgewright.privacy.secagg_server import SecAggServer

__all__ = ["HELPER_KEY", "Fleet", "Round", "drawn", "helper_terms", "neighbour_terms"]

QUERY = hashlib.sha256(b"a query").digest()
HELPER_KEY = bytes(range(32))
Entropy = Callable[[int], bytes]


def drawn(seed: bytes) -> Entropy:
    """Return a source of bytes that gives the same ones again: for tests, never for devices."""
    count = 0

    def draw(size: int) -> bytes:
        nonlocal count
        count += 1
        return hashlib.shake_256(seed + count.to_bytes(8, "big")).digest(size)

    return draw


def neighbour_terms(
    *, bits: int = 16, length: int = 8, min_cohort: int = 6, degree: int = 5, threshold: int = 3, window: str = "w1"
) -> ProtocolTerms:
    """Return terms of a sum without a helper."""
    return ProtocolTerms(QUERY, window, bits, length, min_cohort, degree=degree, threshold=threshold)


def helper_terms(*, bits: int = 16, length: int = 8, min_cohort: int = 3, window: str = "w1") -> ProtocolTerms:
    """Return terms of a sum with a helper."""
    return ProtocolTerms(QUERY, window, bits, length, min_cohort)


class Fleet:
    """Devices with keys and values.

    Args:
        devices: How many.
        seed: Of their keys and values.
    """

    def __init__(self, devices: int, seed: int = 0) -> None:
        self.seed = seed
        self.keys = {
            key.public_key().public_bytes_raw(): key
            for key in (
                Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"%d.%d" % (seed, number)).digest())
                for number in range(devices)
            )
        }
        self.names = list(self.keys)

    def values(self, terms: ProtocolTerms) -> dict[bytes, UnsignedArray]:
        """Return random values for each device."""
        rng = np.random.default_rng(self.seed)
        drawn_values = rng.integers(0, 1 << terms.bits, (len(self.names), terms.vector_length), dtype=np.uint64)
        return {name: row.astype(np.uint32) for name, row in zip(self.names, drawn_values, strict=True)}

    def enrolment(self) -> EnrolmentList:
        """Return the list of them."""
        return EnrolmentList(1, frozenset(self.names))

    def gifts(
        self, terms: ProtocolTerms, helper: bytes, values: dict[bytes, UnsignedArray] | None = None
    ) -> Iterator[bytes]:
        """Yield each device's message in a sum with a helper."""
        for name, row in (values or self.values(terms)).items():
            yield submit(terms, helper, row, name, self.keys[name].sign)

    def helped(self, terms: ProtocolTerms, values: dict[bytes, UnsignedArray]) -> UnsignedArray:
        """Return the sum as a server and a helper find it."""
        helper = MaskHelper(HELPER_KEY, self.enrolment(), InMemoryUsedSeeds())
        gatherer = MaskedSumCollector(terms)
        for gift in self.gifts(terms, helper.public_key, values):
            gatherer.accept(gift)
        return gatherer.unmask_sum(helper.answer_request(gatherer.helper_request()))


class Round:
    """A sum without a helper, step by step.

    Args:
        fleet: Whose.
        terms: Of the sum.
        values: By device; random if none are given.
        entropy: Of device number n; the system's own if none is given.
    """

    def __init__(
        self,
        fleet: Fleet,
        terms: ProtocolTerms,
        values: dict[bytes, UnsignedArray] | None = None,
        entropy: Callable[[int], Entropy] | None = None,
    ) -> None:
        self.fleet, self.terms = fleet, terms
        self.values = values or fleet.values(terms)
        self.server = SecAggServer(terms)
        self.members: dict[bytes, secagg_client.ClientState] = {}
        self.declined: dict[bytes, DeclinedError] = {}
        self._draws = {
            name: os.urandom if entropy is None else entropy(number) for number, name in enumerate(fleet.names)
        }

    def act(self, name: bytes) -> secagg_client.ClientState:
        """Return what a device becomes by the step that is open, with what the server gives it."""
        sign, draw = self.fleet.keys[name].sign, self._draws[name]
        if self.server.step == "advertise":
            return secagg_client.advertise_keys(self.terms, name, sign, entropy=draw)
        member = self.members[name]
        if self.server.step == "share":
            return secagg_client.share_keys(member, self.server.participants(), sign, entropy=draw)
        if self.server.step == "mask":
            return secagg_client.mask_values(member, self.server.share_inbox(name), self.values[name], sign)
        return secagg_client.reveal_shares(member, self.server.survivor_lists(), sign)

    def step(self, *, without: Collection[bytes] = (), advance: bool = True) -> None:
        """Have all devices that are still there do the open step; those who decline have dropped out."""
        step = self.server.step
        for name in self.fleet.names if step == "advertise" else list(self.members):
            if name in without:
                self.members.pop(name, None)
                continue
            try:
                self.members[name] = self.act(name)
            except DeclinedError as error:
                self.declined[name] = error
                del self.members[name]
            else:
                self.server.accept(step, self.members[name].last_message)
        if advance:
            self.server.advance()

    def reach(self, step: str) -> "Round":
        """Do all steps before one."""
        while self.server.step != step:
            self.step()
        return self

    def plain(self, names: Collection[bytes]) -> NDArray[np.uint64]:
        """Return what the sum of some devices must be."""
        total = np.sum([self.values[name] for name in names], axis=0, dtype=np.uint64)
        return np.asarray(total & np.uint64((1 << self.terms.bits) - 1))
