"""Taking a fleet's answers to one query, and opening their sum. Behind `edgewright query collect`."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import urllib3

from edgewright.cli.desk import serving
from edgewright.contract.errors import WorkError
from edgewright.contract.query import Query, Template
from edgewright.device.sums import post
from edgewright.privacy.agreement import terms_of
from edgewright.privacy.collect import Collector
from edgewright.privacy.desk import SumDesk
from edgewright.privacy.helper import Gatherer
from edgewright.privacy.roster import DeclinedError
from edgewright.privacy.sum import Recovered, recover

__all__ = ["Patience", "as_json", "by_signal", "collect"]


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
    query: Query, template: Template, helper_url: str, listen: tuple[str, int], patience: Patience
) -> Recovered:
    """Listen for answers, and open their sum.

    Args:
        query: That is asked.
        template: Of the query.
        helper_url: Of the helper, where the query has one.
        listen: Host and port.
        patience: How long devices are waited for.

    Raises:
        WorkError: Too few devices answered, or the helper declines.
    """
    desk = SumDesk()
    collected = desk.open(terms_of(query, template))
    with serving(desk.handle, *listen):
        try:
            if isinstance(collected, Gatherer):
                total, survivors = _helped(collected, helper_url, patience)
            else:
                total, survivors = _neighbourly(collected, patience)
        except DeclinedError as error:
            raise WorkError(
                f"query {query.id} has no sum: {error.message}", remedy="Wait for more devices."
            ) from error
    return recover(total.astype(np.uint32), template, query, survivors)


def _helped(gatherer: Gatherer, helper_url: str, patience: Patience) -> tuple[Any, int]:
    ends = time.monotonic() + patience.wait_s
    while gatherer.devices < patience.devices and time.monotonic() < ends:
        time.sleep(0.1)
    pool = urllib3.PoolManager(timeout=120, retries=False)
    while True:
        content = gatherer.ask()
        try:
            answer = post(pool, f"{helper_url.rstrip('/')}/help", content)
        except DeclinedError as error:
            if not error.culprits:
                raise
            gatherer.leave_out(error.culprits)
            continue
        return gatherer.total(answer), gatherer.devices


def _neighbourly(collector: Collector, patience: Patience) -> tuple[Any, int]:
    wanted, ends = patience.devices, time.monotonic() + patience.wait_s
    for _ in range(4):
        while collector.devices < wanted and time.monotonic() < ends:
            time.sleep(0.1)
        wanted = min(wanted, collector.devices)
        ends = time.monotonic() + patience.step_s
        collector.advance()
    return collector.total(), collector.survivors


def as_json(found: Recovered, template: Template) -> dict[str, Any]:
    """Return a sum for a script."""
    return {
        "devices": found.survivors,
        "noise_sd": found.noise_sd,
        "rounding_sd": found.rounding_sd,
        "beyond": found.beyond,
        "sums": {name: values.tolist() for name, values in by_signal(found, template).items()},
    }


def by_signal(found: Recovered, template: Template) -> dict[str, Any]:
    """Return the sums of each signal, or of the whole vector under the template's name."""
    if template.kind == "vector":
        return {template.name: found.values}
    ends = np.cumsum([signal.bins for signal in template.signals])[:-1]
    return dict(zip((signal.name for signal in template.signals), np.split(found.values, ends), strict=True))
