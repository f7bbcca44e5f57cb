"""Taking a fleet's answers to one query, and opening their sum. Behind `edgewright query collect`."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import urllib3

from edgewright.cli.aggregation_server import serve_aggregation
from edgewright.contract.errors import InputError, WorkError
from edgewright.contract.query.query import Query, QueryTemplate
from edgewright.device.queries.sum_client import MessageStore, post_bytes
from edgewright.privacy.aggregation_handler import AggregationService
from edgewright.privacy.bit_packing import UnsignedArray
from edgewright.privacy.helper import MaskedSumCollector
from edgewright.privacy.private_sum import RecoveredSum, recover_sum
from edgewright.privacy.protocol_params import protocol_terms
from edgewright.privacy.roster import DeclinedError, EnrolmentList
from edgewright.privacy.secagg_server import SecAggServer

__all__ = ["CollectTimeouts", "collect_sum", "stored_messages"]


@dataclass(frozen=True, slots=True)
class CollectTimeouts:
    """How long devices are waited for.

    Attributes:
        devices: That are enough.
        wait_seconds: For the first step, at most.
        step_seconds: For late ones at each further step.
    """

    devices: int
    wait_seconds: float
    step_seconds: float


def collect_sum(
    query: Query,
    template: QueryTemplate,
    helper_url: str,
    listen: tuple[str, int],
    patience: CollectTimeouts,
    *,
    enrolled: EnrolmentList,
    state: Path,
) -> RecoveredSum:
    """Listen for answers, and open their sum.

    Args:
        query: That is asked.
        template: Of the query.
        helper_url: Of the helper, where the query has one.
        listen: Host and port.
        patience: How long devices are waited for.
        enrolled: Devices that exist; of others nothing is taken.
        state: Folder in which letters are kept, and from which a process that was broken off is taken up.

    Raises:
        WorkError: Too few devices answered, or the helper declines.
        OutputError: The folder cannot be written.
    """
    desk, terms = AggregationService(), protocol_terms(query, template)
    folder = state / terms.digest.hex()
    collected = desk.open_sum(
        terms, enrolment_list=enrolled, max_devices=query.max_cohort, store_message=MessageStore(folder).write
    )
    try:
        desk.restore_sum(terms, stored_messages(folder))
        with serve_aggregation(desk.handle, *listen, knows=desk.has_path):
            if isinstance(collected, MaskedSumCollector):
                total, survivors = _collect_with_helper(desk, collected, helper_url, patience)
            else:
                total, survivors = _collect_with_neighbours(desk, collected, patience)
    except DeclinedError as error:
        raise WorkError(f"query {query.id} has no sum: {error.message}", remedy="Wait for more devices.") from error
    return recover_sum(total.astype(np.uint32), template, query, survivors)


def stored_messages(folder: Path) -> dict[str, bytes]:
    """Return what an earlier process kept in a folder, by name."""
    try:
        # What begins with a dot was broken off while it was written.
        return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise InputError(
            f"the letters in {folder} cannot be read: {error.strerror}", remedy="Permit reading there."
        ) from error


def _collect_with_helper(
    service: AggregationService, collector: MaskedSumCollector, helper_url: str, patience: CollectTimeouts
) -> tuple[UnsignedArray, int]:
    terms, ends = collector.terms, time.monotonic() + patience.wait_seconds
    while not collector.is_closed and service.device_count(terms) < patience.devices and time.monotonic() < ends:
        time.sleep(0.1)
    pool = urllib3.PoolManager(timeout=120, retries=False)
    while True:
        content = service.helper_request(terms)
        try:
            answer = post_bytes(pool, f"{helper_url.rstrip('/')}/help", content)
        except DeclinedError as error:
            if not error.culprits:
                raise
            service.exclude(terms, error.culprits)
            continue
        return service.unmask_sum(terms, answer)


def _collect_with_neighbours(
    service: AggregationService, collector: SecAggServer, patience: CollectTimeouts
) -> tuple[UnsignedArray, int]:
    terms, wanted, ends = collector.terms, patience.devices, time.monotonic() + patience.wait_seconds
    while collector.step != "done":
        while service.device_count(terms) < wanted and time.monotonic() < ends:
            time.sleep(0.1)
        wanted = min(wanted, service.device_count(terms))
        ends = time.monotonic() + patience.step_seconds
        service.advance(terms)
    return service.unmask_sum(terms)
