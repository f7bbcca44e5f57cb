"""The rollouts that there are, as they are signed."""

from typing import TypeVar

from edgewright.contract.rollout.plan import RolloutPlan
from edgewright.contract.schema import decode_record
from edgewright.server.services import Services
from edgewright.trust.repository.metadata_rules import ROLLOUTS

__all__ = ["all_plans", "live_plans", "read_signed_records"]

_T = TypeVar("_T")


def read_signed_records(services: Services, folder: str, kind: type[_T]) -> list[_T]:
    """Return what the online key signed in a folder of targets, by its path.

    Raises:
        TrustError: The repository cannot be believed.
    """
    repository = services.repository()
    metadata = repository.role(ROLLOUTS)
    paths = () if metadata is None else sorted(metadata.signed.targets)
    found = [repository.read_target(ROLLOUTS, path) for path in paths if path.startswith(f"{folder}/")]
    return [decode_record(content, type=kind) for content in found if content is not None]


def all_plans(services: Services) -> list[RolloutPlan]:
    """Return all plans, by model and device class.

    Raises:
        TrustError: The repository cannot be believed.
    """
    return read_signed_records(services, "rollouts", RolloutPlan)


def live_plans(services: Services) -> dict[tuple[str, str], list[RolloutPlan]]:
    """Return the plans of rollouts that may still be decided about, by device class and rollout."""
    found: dict[tuple[str, str], list[RolloutPlan]] = {}
    for plan in all_plans(services):
        if plan.state in ("running", "paused"):
            found.setdefault((plan.device_class, plan.rollout), []).append(plan)
    return found
