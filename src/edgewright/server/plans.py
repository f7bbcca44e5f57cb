"""The rollouts that there are, as they are signed."""

import msgspec

from edgewright.contract.plan import Plan
from edgewright.server.services import Services
from edgewright.trust.form import ROLLOUTS

__all__ = ["all_plans", "live_plans"]


def all_plans(services: Services) -> list[Plan]:
    """Return all plans, by model and device class.

    Raises:
        TrustError: The repository cannot be believed.
    """
    repository = services.repository()
    metadata = repository.role(ROLLOUTS)
    found = []
    for path in () if metadata is None else sorted(metadata.signed.targets):
        content = repository.read_target(ROLLOUTS, path) if path.startswith("rollouts/") else None
        if content is not None:
            found.append(msgspec.json.decode(content, type=Plan))
    return found


def live_plans(services: Services) -> dict[tuple[str, str], list[Plan]]:
    """Return the plans of rollouts that may still be decided about, by device class and rollout."""
    found: dict[tuple[str, str], list[Plan]] = {}
    for plan in all_plans(services):
        if plan.state in ("running", "paused"):
            found.setdefault((plan.device_class, plan.rollout), []).append(plan)
    return found
