"""Taking a fleet's answers to one query, and opening their sum. Behind `edgewright query collect`."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import urllib3

from edgewright.cli.aggregation_server import serving
from edgewright.contract.errors import InputError, WorkError
from edgewright.contract.query.query import Query, Template
from edgewright.device.queries.sum_client import Kept, post
from edgewright.privacy.aggregation_handler import SumDesk
from edgewright.privacy.bit_packing import Words
from edgewright.privacy.helper import Gatherer
from edgewright.privacy.private_sum import Recovered, recover
from edgewright.privacy.protocol_params import terms_of
from edgewright.privacy.roster import DeclinedError, Enrolment
from edgewright.privacy.secagg_server import Collector

__all__ = ["Patience", "collect", "kept_in"]


@dataclass(frozen=True, slots=True)
class Patience:
    """How long devices are waited for.

    Attributes:
        devices: That are enough.
        wait_s: For the first step, at most.
        step_s: For late ones at each further step.
    """

    devices: int
    wait_s: float
    step_s: float


def collect(
    query: Query,
    template: Template,
    helper_url: str,
    listen: tuple[str, int],
    patience: Patience,
    *,
    enrolled: Enrolment,
    state: Path,
) -> Recovered:
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
    desk, terms = SumDesk(), terms_of(query, template)
    folder = state / terms.digest.hex()
    collected = desk.open(terms, enrolled=enrolled, most=query.largest, keep=Kept(folder).write)
    try:
        desk.restore(terms, kept_in(folder))
        with serving(desk.handle, *listen, knows=desk.knows):
            if isinstance(collected, Gatherer):
                total, survivors = _helped(desk, collected, helper_url, patience)
            else:
                total, survivors = _neighbourly(desk, collected, patience)
    except DeclinedError as error:
        raise WorkError(f"query {query.id} has no sum: {error.message}", remedy="Wait for more devices.") from error
    return recover(total.astype(np.uint32), template, query, survivors)


def kept_in(folder: Path) -> dict[str, bytes]:
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


def _helped(desk: SumDesk, gatherer: Gatherer, helper_url: str, patience: Patience) -> tuple[Words, int]:
    terms, ends = gatherer.terms, time.monotonic() + patience.wait_s
    while not gatherer.closed and desk.devices(terms) < patience.devices and time.monotonic() < ends:
        time.sleep(0.1)
    pool = urllib3.PoolManager(timeout=120, retries=False)
    while True:
        content = desk.ask(terms)
        try:
            answer = post(pool, f"{helper_url.rstrip('/')}/help", content)
        except DeclinedError as error:
            if not error.culprits:
                raise
            desk.leave_out(terms, error.culprits)
            continue
        return desk.total(terms, answer)


def _neighbourly(desk: SumDesk, collector: Collector, patience: Patience) -> tuple[Words, int]:
    terms, wanted, ends = collector.terms, patience.devices, time.monotonic() + patience.wait_s
    while collector.step != "done":
        while desk.devices(terms) < wanted and time.monotonic() < ends:
            time.sleep(0.1)
        wanted = min(wanted, desk.devices(terms))
        ends = time.monotonic() + patience.step_s
        desk.advance(terms)
    return desk.total(terms)
