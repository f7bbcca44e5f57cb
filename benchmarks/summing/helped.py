"""What a sum with a helper costs a device, the server and the helper."""

import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
from benchmarks.summing.fleet import HELPER_KEY, Fleet, helper_terms
from benchmarks.summing.values import drawn_values

from edgewright.privacy.helper import InMemoryUsedSeeds, MapChunks, MaskedSumCollector, MaskHelper

__all__ = ["HelpedCost", "helped_cost"]


@dataclass(frozen=True, slots=True)
class HelpedCost:
    """What one sum costs.

    Attributes:
        clients: How many.
        take_seconds: Wall time of the server to take all messages, on one core.
        answer_seconds: Wall time of the helper, on as many processes as it was given.
        total_seconds: Wall time of the server to add up.
        cpu_us: CPU time of server and helper for each client, on one core.
        bytes_up: Of a device's message.
        bytes_asked: Of what the helper gets for each client.
        bytes_answered: Of the helper's answer.
    """

    clients: int
    take_seconds: float
    answer_seconds: float
    total_seconds: float
    cpu_us: float
    bytes_up: int
    bytes_asked: int
    bytes_answered: int

    @property
    def clients_per_s(self) -> float:
        """Return how many clients are summed in a second."""
        return self.clients / (self.take_seconds + self.answer_seconds + self.total_seconds)


def helped_cost(clients: int, length: int, *, processes: int) -> HelpedCost:
    """Measure a server and a helper.

    Args:
        clients: In the sum.
        length: Values of each.
        processes: Of the helper; 1 for its own alone.
    """
    fleet, terms = Fleet(clients), helper_terms(length=length, min_cohort=2)
    row = drawn_values(length)()
    public = MaskHelper(HELPER_KEY, fleet.enrolment(), InMemoryUsedSeeds()).public_key
    gatherer, take_seconds, take_cpu, size = MaskedSumCollector(terms), 0.0, 0.0, 0
    for gift in fleet.gifts(terms, public, dict.fromkeys(fleet.names, row)):
        began, cpu = time.perf_counter(), time.process_time()
        gatherer.accept(gift)
        take_seconds += time.perf_counter() - began
        take_cpu += time.process_time() - cpu
        size = len(gift)
    ask = gatherer.helper_request()

    def answered(spread: MapChunks) -> tuple[bytes, float, float]:
        helper = MaskHelper(HELPER_KEY, fleet.enrolment(), InMemoryUsedSeeds(), map_chunks=spread)
        began, cpu = time.perf_counter(), time.process_time()
        answer = helper.answer_request(ask)
        return answer, time.perf_counter() - began, time.process_time() - cpu

    answer, answer_seconds, answer_cpu = answered(map)
    if processes > 1:
        with ProcessPoolExecutor(processes) as pool:
            list(pool.map(abs, range(processes)))  # they start before the time does
            answer, answer_seconds, _ = answered(pool.map)
    began, cpu = time.perf_counter(), time.process_time()
    total = gatherer.unmask_sum(answer)
    total_seconds, total_cpu = time.perf_counter() - began, time.process_time() - cpu
    assert np.array_equal(total, row.astype(np.uint64) * clients % (1 << terms.bits))
    cpu_us = 1e6 * (take_cpu + answer_cpu + total_cpu) / clients
    return HelpedCost(
        clients=clients,
        take_seconds=take_seconds,
        answer_seconds=answer_seconds,
        total_seconds=total_seconds,
        cpu_us=cpu_us,
        bytes_up=size,
        bytes_asked=len(ask) // clients,
        bytes_answered=len(answer),
    )
