"""The rollouts that there are, as they are signed."""

import msgspec

from edgewright.contract.plan import Plan
from edgewright.server.services import Services
from edgewright.trust.form import ROLLOUTS

__all__ = ["all_plans", "live_rollouts"]


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


def live_rollouts(services: Services) -> frozenset[tuple[str, str, str]]:
    """Return model, device class and name of each rollout that may still be decided about."""
    return frozenset(
        (plan.model, plan.device_class, plan.rollout)
        for plan in all_plans(services)
        if plan.state in ("running", "paused")
    )
