"""What the leader does again and again: look at rollouts and alerts, close hours, forget what is old.

One process of a fleet leads. Whatever fails is logged and tried again at the next look: a store that is away, a
repository that cannot be read. Whoever finds that somebody else decides lets go.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from edgewright.server.services import Services
from edgewright.server.store.check_ins import HOUR_SECONDS
from edgewright.server.store.decisions import DecisionExistsError
from edgewright.server.store.leader_election import Leadership
from edgewright.server.store.retention import DAY_SECONDS, RetentionPeriods

__all__ = ["LeaderStep", "lead_until"]

LeaderStep = Callable[[float], Sequence[str]]
"""Work for one look: from the time, seconds since 1970, to what was done, in words."""

_log = logging.getLogger(__name__)
# Hours that a leader closes when it begins, should the one before it have failed to.
_HOURS_BACK = 2
# Of 100,000 devices and a day they would be a gigabyte.
_NONCES_SECONDS = 600.0


@dataclass(slots=True)
class _Housekeeping:
    """When what was done last.

    Attributes:
        services: Of the server.
    """

    services: Services
    _hour_at: int | None = field(default=None)
    _swept_at: float | None = field(default=None)
    _spent_seconds: float | None = field(default=None)

    def step(self, now: float) -> Sequence[str]:
        """Close hours that are over, and forget what is due: nonces soon, for each check-in leaves one."""
        store, done = self.services.store, []
        this_at = int(now // HOUR_SECONDS) * HOUR_SECONDS
        first_at = this_at - _HOURS_BACK * HOUR_SECONDS if self._hour_at is None else self._hour_at
        for started_at in range(first_at, this_at, HOUR_SECONDS):
            # One that was closed is left alone: it would count devices that came since.
            hours = store.check_ins.rollups(started_at, started_at + 1)
            if any(not hour.devices for hour in hours):
                done.append(f"closed an hour of {store.check_ins.close_hour(started_at)} groups")
        self._hour_at = this_at
        if self._swept_at is None or now - self._swept_at >= DAY_SECONDS:
            gone = store.delete_expired(RetentionPeriods(), now=now)
            done += [f"forgot {count} rows of {table}" for table, count in gone.items() if count]
            self._swept_at = now
        elif self._spent_seconds is None or now - self._spent_seconds >= _NONCES_SECONDS:
            store.delete_old_nonces(now=now)
            self._spent_seconds = now
        return done


def lead_until(services: Services, ended: threading.Event, steps: Sequence[LeaderStep]) -> None:
    """Lead whenever nobody else does, until the end.

    Args:
        services: Of the server.
        ended: Ends it, within a look.
        steps: Done in order at each look; one that fails does not keep the others from it.
    """
    leadership = services.store.leadership()
    work = [*steps, _Housekeeping(services).step]
    look_seconds = services.fleet_config.monitoring.evaluation_interval_seconds
    failing: dict[int, str] = {}
    try:
        while not ended.is_set():
            if leadership.try_acquire():
                _run_steps(services, leadership, ended, work, failing)
            ended.wait(look_seconds)
    finally:
        leadership.release()


def _run_steps(
    services: Services,
    leadership: Leadership,
    ended: threading.Event,
    work: Sequence[LeaderStep],
    failing: dict[int, str],
) -> None:
    """Do all steps once, as long as this process leads."""
    for number, step in enumerate(work):
        if ended.is_set() or not leadership.is_held():
            return
        try:
            for done in step(services.now()):
                _log.info("%s", done)
        except DecisionExistsError as error:
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
