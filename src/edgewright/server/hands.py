"""What changes the fleet, for people through the API and the page, and for what alerts set off."""

from collections.abc import Sequence
from dataclasses import dataclass

from edgewright.contract.errors import InputError
from edgewright.contract.operator import RolloutAct, StartRollout
from edgewright.contract.plan import Plan, Stage
from edgewright.server import acting, bench, rollouts
from edgewright.server.fleets import Awaiting
from edgewright.server.rollouts import Request, Wanted
from edgewright.server.services import Services
from edgewright.server.upkeep import keep_believable
from edgewright.trust.publish import known_plan

__all__ = ["Hands"]

_BY_ITSELF = "server"


@dataclass(frozen=True, slots=True)
class Hands:
    """Everything that is done rather than looked at.

    Attributes:
        services: What it is done with.
    """

    services: Services

    def start(self, who: str, asked: StartRollout) -> tuple[Plan, tuple[str, ...]]:
        """Begin a rollout; what was published a moment ago lands first."""
        keep_believable(self.services, self.services.now())
        weights = asked.weights or (1.0,) * len(asked.versions)
        if len(weights) != len(asked.versions) or not asked.versions:
            raise InputError(
                f"{len(weights)} weights for {len(asked.versions)} releases", remedy="Give one for each release."
            )
        request = Request(
            asked.model,
            asked.device_class,
            tuple(Wanted(version, weight) for version, weight in zip(asked.versions, weights, strict=True)),
            tuple(Stage(fraction, asked.stage_s, asked.rules) for fraction in asked.fractions),
            asked.selector,
            asked.start,
            asked.end,
            asked.min_battery,
            asked.hours,
            asked.shadow,
            asked.replace,
            asked.force,
        )
        started = rollouts.start(self.services, request, who)
        return started.plan, started.warnings

    def change(self, who: str, model: str, device_class: str, act: RolloutAct, reason: str) -> Plan:
        """Advance, pause, resume or abort a rollout."""
        return rollouts.change(self.services, who, model, device_class, act, reason)

    def awaiting(self) -> Sequence[Awaiting]:
        """Return actions that wait for somebody's approval."""
        return [
            Awaiting(each.id, each.action, each.subject, each.reason, each.asked_s)
            for each in acting.awaiting(self.services)
        ]

    def settle(self, who: str, item: str, *, approve: bool, reason: str) -> Sequence[str]:
        """Approve or refuse an action."""
        done = (
            acting.approve(self.services, who, item) if approve else acting.refuse(self.services, who, item, reason)
        )
        return (done.why,)

    def add_job(self, who: str, device: str, body: bytes) -> str:
        """Give a bench device a profiling job, and return its name."""
        return bench.add_job(self.services, who, device, bench.KIND, body)

    def pause(self, model: str, device_class: str, reason: str) -> bool:
        """Have a rollout advance no further, by itself; whether there was one that did."""
        return self._unless("pause", ("running",), model, device_class, reason)

    def abort(self, model: str, device_class: str, reason: str) -> bool:
        """Take a rollout back, by itself; whether there was one."""
        return self._unless("abort", ("running", "paused"), model, device_class, reason)

    def _unless(self, act: RolloutAct, states: tuple[str, ...], model: str, device_class: str, reason: str) -> bool:
        plan = known_plan(self.services.repository(), model, device_class)
        if plan is None or plan.state not in states:
            return False
        rollouts.change(self.services, _BY_ITSELF, model, device_class, act, reason[:500])
        return True
