"""What everything on the server works with: the store, the repository, the online key, the clock."""

from collections.abc import Callable
from dataclasses import dataclass, field

from edgewright.contract.config.fleet import Fleet
from edgewright.privacy.aggregation_handler import SumDesk
from edgewright.server.store.store import Store
from edgewright.trust.keys.signing_keys import KeyFolder
from edgewright.trust.repository.repository import Repository
from edgewright.trust.storage.storage import Store as Files

__all__ = ["Services"]


@dataclass(frozen=True, slots=True)
class Services:
    """What handlers and loops share.

    Attributes:
        store: What the fleet said, what was decided.
        audience: Name of this fleet, which devices' proofs are for.
        repository: Opens the repository and verifies it, as it is now.
        files: Where the repository lies.
        keys: Of the online roles; None if this process signs nothing.
        fleet: What the project file says.
        now: Seconds since 1970, UTC.
        repository_url: That devices are told; a path of this server, or another one's address.
        helper_url: Of the second operator of private sums, "" for none.
        desk: Takes answers to private sums.
    """

    store: Store
    audience: str
    repository: Callable[[], Repository]
    files: Files
    keys: KeyFolder | None
    fleet: Fleet
    now: Callable[[], float]
    repository_url: str = "/repo/"
    helper_url: str = ""
    desk: SumDesk = field(default_factory=SumDesk)
