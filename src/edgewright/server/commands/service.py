"""What changes the fleet, for people through the API and the page, and for what alerts set off."""

import datetime
import os
from collections.abc import Sequence
from dataclasses import dataclass

from edgewright.contract.api.operator_api import AskQuery, RolloutAct, StartRollout
from edgewright.contract.errors import InputError
from edgewright.contract.query.query import Limits
from edgewright.contract.rollout.plan import Plan
from edgewright.contract.timestamps import time_of
from edgewright.privacy.query_calibration import price, question
from edgewright.server import profiling_jobs
from edgewright.server.alerting import automated_actions
from edgewright.server.commands import rollouts
from edgewright.server.controller.metadata_maintenance import keep_believable
from edgewright.server.controller.online_key import online_keys
from edgewright.server.errors import MissingError
from edgewright.server.read_models import Awaiting
from edgewright.server.services import Services
from edgewright.trust.publishing.publish import known_plan, releases
from edgewright.trust.publishing.signed_queries import ask, known_permit, known_questions

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
        started = rollouts.start(self.services, asked, who)
        return started.plan, started.warnings

    def change(self, who: str, model: str, device_class: str, act: RolloutAct, reason: str) -> Plan:
        """Advance, pause, resume or abort a rollout."""
        return rollouts.change(self.services, who, model, device_class, act, reason)

    def ask(self, who: str, model: str, device_class: str, asked: AskQuery) -> tuple[str, ...]:
        """Ask the fleet, within the permit, and return what it costs in words."""
        services = self.services
        repository, keys = services.repository(), online_keys(services)
        permit = known_permit(repository, model, device_class)
        template = (
            next((each for each in permit.templates if each.name == asked.template), None) if permit else None
        )
        if template is None:
            raise InputError(
                f"no template {asked.template[:80]} is permitted for {model} on {device_class}",
                remedy="Have the offline keys sign it with 'edgewright query permit'.",
            )
        release = dict(releases(repository, model)).get(asked.version)
        if release is None:
            raise InputError(f"{model} {asked.version[:80]} is not published", remedy="List the releases.")
        start, end = (_hour(text) for text in (asked.start, asked.end))
        cohort = asked.cohort or template.min_cohort
        query = question(
            template,
            name=asked.id,
            window=(start, end),
            deadline=time_of(asked.deadline) if asked.deadline else end + datetime.timedelta(days=1),
            release=release,
            epsilon=asked.epsilon,
            seed=os.urandom(32).hex(),
            backend=asked.backend,
            cohort=cohort,
            largest=asked.largest or 100 * cohort,
            subgroup=asked.subgroup,
        )
        cost = price(
            query, template, Limits(least_cohort=2, rho_per_period=max(Limits().rho_per_period, query.rho))
        )
        detail = {"template": template.name, "epsilon": cost.cost.epsilon, "rho": query.rho}
        services.store.audit.write(who, "ask query", query.id, at_s=services.now(), detail=detail)
        ask(repository, keys, model, device_class, query=query)
        services.store.sums.ask(query, template, model, now_s=services.now())
        return (
            f"epsilon {cost.cost.epsilon:.2f} if the others are honest, {cost.cost.epsilon_own:.3g} by own noise; "
            f"each summed number has noise of {cost.sum_sd:.3g}",
        )

    def end_query(self, who: str, query_id: str) -> None:
        """Ask no more; what was not summed yet has no result."""
        services, kept = self.services, self.services.store.sums.get(query_id)
        if kept is None:
            raise MissingError(f"there is no query {query_id[:80]!r}", remedy="List the queries.")
        services.store.audit.write(who, "end query", query_id, at_s=services.now())
        repository = services.repository()
        if any(each.id == query_id for each in known_questions(repository, kept.model, kept.device_class).queries):
            ask(repository, online_keys(services), kept.model, kept.device_class, without=query_id)
        services.store.sums.end(query_id, result=None, devices=None, now_s=services.now())

    def awaiting(self) -> Sequence[Awaiting]:
        """Return actions that wait for somebody's approval."""
        return [
            Awaiting(each.id, each.action, each.subject, each.reason, each.asked_s)
            for each in automated_actions.awaiting(self.services)
        ]

    def settle(self, who: str, item: str, *, approve: bool, reason: str) -> Sequence[str]:
        """Approve or refuse an action."""
        done = (
            automated_actions.approve(self.services, who, item)
            if approve
            else automated_actions.refuse(self.services, who, item, reason)
        )
        return (done.why,)

    def add_job(self, who: str, device: str, body: bytes) -> str:
        """Give a bench device a profiling job, and return its name."""
        return profiling_jobs.add_job(self.services, who, device, profiling_jobs.KIND, body)

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


def _hour(text: str) -> datetime.datetime:
    found = time_of(text)
    if found.timestamp() % 3600:
        raise InputError(f"{text} is no whole hour", remedy="Devices count by the hour, UTC.")
    return found
