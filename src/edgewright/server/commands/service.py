"""What changes the fleet, for people through the API and the page, and for what alerts set off."""

import datetime
import os
from collections.abc import Sequence
from dataclasses import dataclass

from edgewright.contract.api.operator_api import CreateQuery, RolloutAction, StartRollout
from edgewright.contract.errors import InputError
from edgewright.contract.query.query import DeviceQueryLimits
from edgewright.contract.rollout.plan import RolloutPlan
from edgewright.contract.timestamps import parse_iso8601
from edgewright.privacy.query_calibration import draft_query, query_cost
from edgewright.server import profiling_jobs
from edgewright.server.alerting import automated_actions
from edgewright.server.commands import rollouts
from edgewright.server.controller.metadata_maintenance import maintain_metadata
from edgewright.server.controller.online_key import online_keys
from edgewright.server.errors import NotFoundError
from edgewright.server.read_models import PendingAction
from edgewright.server.services import Services
from edgewright.trust.publishing.publish import current_plan, list_releases
from edgewright.trust.publishing.signed_queries import current_permit, current_queries, publish_query

__all__ = ["CommandService"]

_ACTOR = "server"


@dataclass(frozen=True, slots=True)
class CommandService:
    """Everything that is done rather than looked at.

    Attributes:
        services: What it is done with.
    """

    services: Services

    def start_rollout(self, principal: str, request: StartRollout) -> tuple[RolloutPlan, tuple[str, ...]]:
        """Begin a rollout; what was published a moment ago lands first."""
        maintain_metadata(self.services, self.services.now())
        started = rollouts.start_rollout(self.services, request, principal)
        return started.plan, started.warnings

    def change_rollout(
        self, principal: str, model: str, device_class: str, act: RolloutAction, reason: str
    ) -> RolloutPlan:
        """Advance, pause, resume or abort a rollout."""
        return rollouts.change_rollout(self.services, principal, model, device_class, act, reason)

    def create_query(self, principal: str, model: str, device_class: str, request: CreateQuery) -> tuple[str, ...]:
        """Ask the fleet, within the permit, and return what it costs in words."""
        services = self.services
        repository, keys = services.repository(), online_keys(services)
        permit = current_permit(repository, model, device_class)
        template = (
            next((each for each in permit.templates if each.name == request.template), None) if permit else None
        )
        if template is None:
            raise InputError(
                f"no template {request.template[:80]} is permitted for {model} on {device_class}",
                remedy="Have the offline keys sign it with 'edgewright query permit'.",
            )
        release = dict(list_releases(repository, model)).get(request.version)
        if release is None:
            raise InputError(f"{model} {request.version[:80]} is not published", remedy="List the releases.")
        start, end = (_hour(text) for text in (request.window_start, request.window_end))
        cohort = request.min_cohort or template.min_cohort
        query = draft_query(
            template,
            query_id=request.id,
            window=(start, end),
            deadline=parse_iso8601(request.deadline) if request.deadline else end + datetime.timedelta(days=1),
            release=release,
            epsilon=request.epsilon,
            seed=os.urandom(32).hex(),
            backend=request.backend,
            min_cohort=cohort,
            max_cohort=request.max_cohort or 100 * cohort,
            subgroup=request.subgroup,
        )
        cost = query_cost(
            query,
            template,
            DeviceQueryLimits(min_cohort=2, rho_per_period=max(DeviceQueryLimits().rho_per_period, query.rho)),
        )
        detail = {"template": template.name, "epsilon": cost.cost.epsilon, "rho": query.rho}
        services.store.audit.write(principal, "ask query", query.id, at=services.now(), detail=detail)
        publish_query(repository, keys, model, device_class, query=query)
        services.store.queries.store_query(query, template, model, now=services.now())
        return (
            f"epsilon {cost.cost.epsilon:.2f} if the others are honest, {cost.cost.local_epsilon:.3g} by own noise; "
            f"each summed number has noise of {cost.noise_sd:.3g}",
        )

    def end_query(self, principal: str, query_id: str) -> None:
        """Ask no more; what was not summed yet has no result."""
        services, kept = self.services, self.services.store.queries.get(query_id)
        if kept is None:
            raise NotFoundError(f"there is no query {query_id[:80]!r}", remedy="List the queries.")
        services.store.audit.write(principal, "end query", query_id, at=services.now())
        repository = services.repository()
        if any(each.id == query_id for each in current_queries(repository, kept.model, kept.device_class).queries):
            publish_query(repository, online_keys(services), kept.model, kept.device_class, without=query_id)
        services.store.queries.finish_query(query_id, result=None, devices=None, now=services.now())

    def pending_actions(self) -> Sequence[PendingAction]:
        """Return actions that wait for somebody's approval."""
        return [
            PendingAction(each.id, each.action, each.device_class, each.reason, each.asked_at)
            for each in automated_actions.pending_actions(self.services)
        ]

    def decide_action(self, principal: str, item: str, *, approve: bool, reason: str) -> Sequence[str]:
        """Approve or refuse an action."""
        done = (
            automated_actions.approve_action(self.services, principal, item)
            if approve
            else automated_actions.refuse_action(self.services, principal, item, reason)
        )
        return (done.state_reason,)

    def create_job(self, principal: str, device: str, body: bytes) -> str:
        """Give a bench device a profiling job, and return its name."""
        return profiling_jobs.create_profiling_job(
            self.services, principal, device, profiling_jobs.PROFILE_JOB_KIND, body
        )

    def pause_rollout(self, model: str, device_class: str, reason: str) -> bool:
        """Have a rollout advance no further, by itself; whether there was one that did."""
        return self._unless("pause", ("running",), model, device_class, reason)

    def abort_rollout(self, model: str, device_class: str, reason: str) -> bool:
        """Take a rollout back, by itself; whether there was one."""
        return self._unless("abort", ("running", "paused"), model, device_class, reason)

    def _unless(
        self, act: RolloutAction, states: tuple[str, ...], model: str, device_class: str, reason: str
    ) -> bool:
        plan = current_plan(self.services.repository(), model, device_class)
        if plan is None or plan.state not in states:
            return False
        rollouts.change_rollout(self.services, _ACTOR, model, device_class, act, reason[:500])
        return True


def _hour(text: str) -> datetime.datetime:
    found = parse_iso8601(text)
    if found.timestamp() % 3600:
        raise InputError(f"{text} is no whole hour", remedy="Devices count by the hour, UTC.")
    return found
