"""Keeping a device up to date for as long as its process runs: checks, probations, and looking for rotten bytes."""

import random
import threading
import time
from collections.abc import Callable

from edgewright.device.agent import Agent

__all__ = ["run_forever"]

# Devices that were started together must not ask together.
_JITTER_FRACTION = 0.1
# A probation is looked at so often.
_SETTLE_INTERVAL_SECONDS = 15.0
# Between two steps of a sum that others wait for.
_AWAITED_INTERVAL_SECONDS = 30.0
_VERIFY_INTERVAL_SECONDS = 24 * 3600.0


def run_forever(
    agent: Agent,
    stop_event: threading.Event,
    *,
    check_interval_seconds: float,
    verify_interval_seconds: float = _VERIFY_INTERVAL_SECONDS,
    report: Callable[[Agent, Exception | None], None] = lambda *_: None,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Check, settle and verify until told to end; what fails is tried again the next time.

    Args:
        agent: Of the device.
        stop_event: Set by whoever wants an end.
        check_interval_seconds: Seconds between checks, give or take a tenth.
        verify_interval_seconds: Seconds between two looks at the bytes of all slots.
        report: Called after each check, and with what went wrong.
        clock: Seconds.
    """
    chance = random.Random(agent.settings.device_id)  # noqa: S311 - nothing secret
    check_at, verify_at = clock(), clock() + verify_interval_seconds
    while not stop_event.is_set():
        try:
            if clock() >= check_at:
                check_at = clock() + check_interval_seconds * (1 + _JITTER_FRACTION * (2 * chance.random() - 1))
                agent.check_for_update()
                report(agent, None)
                if agent.is_awaited:
                    check_at = min(check_at, clock() + _AWAITED_INTERVAL_SECONDS)
            if clock() >= verify_at:
                verify_at = clock() + verify_interval_seconds
                agent.verify_slots()
            agent.settle_probation()
        except Exception as error:  # whatever it is, the next check may find it gone, and the model serves on
            report(agent, error)
        waits = min(check_at, verify_at) - clock()
        stop_event.wait(max(0.05, min(waits, _SETTLE_INTERVAL_SECONDS)))
