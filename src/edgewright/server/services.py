"""What everything on the server works with: the store, the repository, the online key, the clock."""

from collections.abc import Callable
from dataclasses import dataclass, field

from edgewright.contract.config.fleet import FleetConfig
from edgewright.privacy.aggregation_handler import AggregationService
from edgewright.server.store.store import FleetStore
from edgewright.trust.keys.signing_keys import KeyFolder
from edgewright.trust.repository.repository import Repository
from edgewright.trust.storage.storage import Storage as Files

__all__ = ["Services"]


@dataclass(frozen=True, slots=True)
class Services:
    """What handlers and loops share.

    Attributes:
        store: What the fleet said, what was decided.
        audience: Name of this fleet, which devices' proofs are for.
        repository: Opens the repository and verifies it, as it is now.
        repository_files: Where the repository lies.
        online_keys: Of the online roles; None if this process signs nothing.
        fleet_config: What the project file says.
        now: Seconds since 1970, UTC.
        repository_url: That devices are told; a path of this server, or another one's address.
        helper_url: Of the second operator of private sums, "" for none.
        aggregation: Takes answers to private sums.
    """

    store: FleetStore
    audience: str
    repository: Callable[[], Repository]
    repository_files: Files
    online_keys: KeyFolder | None
    fleet_config: FleetConfig
    now: Callable[[], float]
    repository_url: str = "/repo/"
    helper_url: str = ""
    aggregation: AggregationService = field(default_factory=AggregationService)
