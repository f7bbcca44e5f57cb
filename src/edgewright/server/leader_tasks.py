"""What the leader does at each look, in order."""

import logging
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from edgewright.server.alerting.monitor import check_fleet, make_monitor
from edgewright.server.commands.service import CommandService
from edgewright.server.controller.leader_loop import LeaderStep
from edgewright.server.controller.metadata_maintenance import maintain_metadata
from edgewright.server.controller.rollout_controller import RolloutController
from edgewright.server.queries.coordinator import QueryCoordinator
from edgewright.server.services import Services

__all__ = ["leader_steps", "tend_sums"]

_LOG = logging.getLogger("edgewright.server")


def leader_steps(
    services: Services, coordinator: QueryCoordinator, *, state: Path, project: Path | None
) -> tuple[Sequence[LeaderStep], Callable[[], None]]:
    """Return the steps, and what ends them: keep the repository believable, decide, ask, watch.

    Args:
        services: What they work with.
        coordinator: Private sums of this process.
        state: Folder of the server.
        project: The project file, None for none.

    Raises:
        InputError: A secret that the project file names is missing.
    """
    folder = Path.cwd() if project is None else project.absolute().parent
    watcher = make_monitor(services, CommandService(services), project=folder, state=state, environment=os.environ)

    def watched(now: float) -> Sequence[str]:
        return [event.message for event in check_fleet(watcher, now).events]

    def kept(now: float) -> Sequence[str]:
        return maintain_metadata(services, now)

    decides = () if services.online_keys is None else (kept, RolloutController(services).check_rollouts)
    return (*decides, coordinator.advance_sums, watched), watcher.close


def tend_sums(services: Services, ended: threading.Event, coordinator: QueryCoordinator) -> None:
    """Open desks for what is asked until the end; for processes that answer devices."""
    while not ended.is_set():
        try:
            coordinator.sync_open_sums(services.now())
        except Exception as error:  # a database or a repository that is away: the next look tries again
            _LOG.warning("questions cannot be read: %s", error)
        ended.wait(services.fleet_config.monitoring.evaluation_interval_seconds)
