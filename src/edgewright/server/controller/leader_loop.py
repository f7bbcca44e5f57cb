"""What the leader does again and again: look at rollouts and alerts, close hours, forget what is old.

One process of a fleet leads. Whatever fails is logged and tried again at the next look: a store that is away, a
repository that cannot be read. Whoever finds that somebody else decides lets go.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from edgewright.server.services import Services
from edgewright.server.store.check_ins import HOUR_S
from edgewright.server.store.decisions import TakenError
from edgewright.server.store.leader_election import Leadership
from edgewright.server.store.retention import DAY_S, Retention

__all__ = ["Step", "lead"]

Step = Callable[[float], Sequence[str]]
"""Work for one look: from the time, seconds since 1970, to what was done, in words."""

_log = logging.getLogger(__name__)
# Hours that a leader closes when it begins, should the one before it have failed to.
_HOURS_BACK = 2
# Of 100,000 devices and a day they would be a gigabyte.
_NONCES_S = 600.0


@dataclass(slots=True)
class _Housekeeping:
    """When what was done last.

    Attributes:
        services: Of the server.
    """

    services: Services
    _hour_s: int | None = field(default=None)
    _swept_s: float | None = field(default=None)
    _spent_s: float | None = field(default=None)

    def step(self, now_s: float) -> Sequence[str]:
        """Close hours that are over, and forget what is due: nonces soon, for each check-in leaves one."""
        store, done = self.services.store, []
        this_s = int(now_s // HOUR_S) * HOUR_S
        first_s = this_s - _HOURS_BACK * HOUR_S if self._hour_s is None else self._hour_s
        for start_s in range(first_s, this_s, HOUR_S):
            # One that was closed is left alone: it would count devices that came since.
            hours = store.check_ins.hours(start_s, start_s + 1)
            if any(not hour.devices for hour in hours):
                done.append(f"closed an hour of {store.check_ins.close_hour(start_s)} groups")
        self._hour_s = this_s
        if self._swept_s is None or now_s - self._swept_s >= DAY_S:
            gone = store.sweep(Retention(), now_s=now_s)
            done += [f"forgot {count} rows of {table}" for table, count in gone.items() if count]
            self._swept_s = now_s
        elif self._spent_s is None or now_s - self._spent_s >= _NONCES_S:
            store.forget_nonces(now_s=now_s)
            self._spent_s = now_s
        return done


def lead(services: Services, ended: threading.Event, steps: Sequence[Step]) -> None:
    """Lead whenever nobody else does, until the end.

    Args:
        services: Of the server.
        ended: Ends it, within a look.
        steps: Done in order at each look; one that fails does not keep the others from it.
    """
    leadership = services.store.leadership()
    work = [*steps, _Housekeeping(services).step]
    look_s = services.fleet.looking.look_s
    failing: dict[int, str] = {}
    try:
        while not ended.is_set():
            if leadership.take():
                _look(services, leadership, ended, work, failing)
            ended.wait(look_s)
    finally:
        leadership.release()


def _look(
    services: Services,
    leadership: Leadership,
    ended: threading.Event,
    work: Sequence[Step],
    failing: dict[int, str],
) -> None:
    """Do all steps once, as long as this process leads."""
    for number, step in enumerate(work):
        if ended.is_set() or not leadership.held():
            return
        try:
            for done in step(services.now()):
                _log.info("%s", done)
        except TakenError as error:
            _log.warning("somebody else decides here: %s", error)
            leadership.release()
            return
        except Exception as error:
            # Said once, not at each look.
            if failing.get(number) != repr(error):
                _log.exception("a look failed, the next one tries again")
            failing[number] = repr(error)
            continue
        if failing.pop(number, None) is not None:
            _log.info("what failed works again")
