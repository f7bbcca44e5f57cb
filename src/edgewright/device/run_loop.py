"""Keeping a device up to date for as long as its process runs: checks, probations, and looking for rotten bytes."""

import random
import threading
import time
from collections.abc import Callable

from edgewright.device.agent import Agent

__all__ = ["keep_up"]

# Devices that were started together must not ask together.
_JITTER = 0.1
# A probation is looked at so often.
_SETTLE_S = 15.0
# Between two steps of a sum that others wait for.
_AWAITED_S = 30.0
_VERIFY_S = 24 * 3600.0


def keep_up(
    agent: Agent,
    ended: threading.Event,
    *,
    every_s: float,
    verify_s: float = _VERIFY_S,
    tell: Callable[[Agent, Exception | None], None] = lambda *_: None,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Check, settle and verify until told to end; what fails is tried again the next time.

    Args:
        agent: Of the device.
        ended: Set by whoever wants an end.
        every_s: Seconds between checks, give or take a tenth.
        verify_s: Seconds between two looks at the bytes of all slots.
        tell: Called after each check, and with what went wrong.
        clock: Seconds.
    """
    chance = random.Random(agent.settings.device_id)  # noqa: S311 - nothing secret
    check_at, verify_at = clock(), clock() + verify_s
    while not ended.is_set():
        try:
            if clock() >= check_at:
                check_at = clock() + every_s * (1 + _JITTER * (2 * chance.random() - 1))
                agent.check()
                tell(agent, None)
                if agent.awaited:
                    check_at = min(check_at, clock() + _AWAITED_S)
            if clock() >= verify_at:
                verify_at = clock() + verify_s
                agent.verify()
            agent.settle()
        except Exception as error:  # whatever it is, the next check may find it gone, and the model serves on
            tell(agent, error)
        waits = min(check_at, verify_at) - clock()
        ended.wait(max(0.05, min(waits, _SETTLE_S)))
