"""What the leader does at each look, in order."""

import logging
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from edgewright.server.alerting.monitor import make_watcher, watch
from edgewright.server.commands.service import Hands
from edgewright.server.controller.leader_loop import Step
from edgewright.server.controller.metadata_maintenance import keep_believable
from edgewright.server.controller.rollout_controller import Controller
from edgewright.server.queries.coordinator import Asking
from edgewright.server.services import Services

__all__ = ["steps_of", "tend"]

_LOG = logging.getLogger("edgewright.server")


def steps_of(
    services: Services, asking: Asking, *, state: Path, project: Path | None
) -> tuple[Sequence[Step], Callable[[], None]]:
    """Return the steps, and what ends them: keep the repository believable, decide, ask, watch.

    Args:
        services: What they work with.
        asking: Private sums of this process.
        state: Folder of the server.
        project: The project file, None for none.

    Raises:
        InputError: A secret that the project file names is missing.
    """
    folder = Path.cwd() if project is None else project.absolute().parent
    watcher = make_watcher(services, Hands(services), project=folder, state=state, environment=os.environ)

    def watched(now_s: float) -> Sequence[str]:
        return [event.words for event in watch(watcher, now_s).events]

    def kept(now_s: float) -> Sequence[str]:
        return keep_believable(services, now_s)

    decides = () if services.keys is None else (kept, Controller(services).step)
    return (*decides, asking.step, watched), watcher.close


def tend(services: Services, ended: threading.Event, asking: Asking) -> None:
    """Open desks for what is asked until the end; for processes that answer devices."""
    while not ended.is_set():
        try:
            asking.tend(services.now())
        except Exception as error:  # a database or a repository that is away: the next look tries again
            _LOG.warning("questions cannot be read: %s", error)
        ended.wait(services.fleet.looking.look_s)
