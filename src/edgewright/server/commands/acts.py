"""What people and programs have done, each written down; what changes rollouts is behind `FleetCommands`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from edgewright.contract.api.operator_api import (
    CreateEnrolmentTokens,
    CreateQuery,
    CreateToken,
    CreateUser,
    RolloutAction,
    SilenceAlert,
    StartRollout,
)
from edgewright.contract.rollout.plan import RolloutPlan
from edgewright.server.access_control import role_by_name
from edgewright.server.errors import NotFoundError
from edgewright.server.read_models import PendingAction
from edgewright.server.services import Services

__all__ = ["FleetCommands", "OperatorCommands"]


class FleetCommands(Protocol):
    """What changes the fleet; each returns what whoever asked should know."""

    def start_rollout(self, principal: str, request: StartRollout) -> tuple[RolloutPlan, tuple[str, ...]]:
        """Begin a rollout."""

    def change_rollout(
        self, principal: str, model: str, device_class: str, act: RolloutAction, reason: str
    ) -> RolloutPlan:
        """Advance, pause, resume or abort a rollout."""

    def create_query(self, principal: str, model: str, device_class: str, request: CreateQuery) -> tuple[str, ...]:
        """Ask the fleet, within the permit."""

    def end_query(self, principal: str, query_id: str) -> None:
        """Ask no more."""

    def pending_actions(self) -> Sequence[PendingAction]:
        """Return actions that wait for somebody's approval."""

    def decide_action(self, principal: str, item: str, *, approve: bool, reason: str) -> Sequence[str]:
        """Approve or refuse one."""

    def create_job(self, principal: str, device: str, body: bytes) -> str:
        """Give a bench device a profiling job, and return its name."""


@dataclass(frozen=True, slots=True)
class OperatorCommands:
    """What can be done; `by` is `user:NAME` or `token:NAME`, of whom it is known already that they may.

    Attributes:
        services: What it is done to.
        commands: Who changes rollouts and settles what awaits approval; it writes that down itself.
    """

    services: Services
    commands: FleetCommands

    def silence_alert(self, by: str, request: SilenceAlert) -> None:
        """Tell nobody of an alert for a while, or tell again.

        Raises:
            MissingError: There is none.
        """
        until = self.services.now() + request.for_seconds if request.for_seconds else None
        if not self.services.store.alerts.silence(request.rule, request.device_class, until=until):
            raise NotFoundError(
                f"there is no alert {request.rule[:80]!r} for {request.device_class[:80]!r}",
                remedy="List the alerts.",
            )
        detail = {
            "device_class": request.device_class,
            "for_seconds": request.for_seconds,
            "reason": request.reason,
        }
        self._audit(by, "silence", request.rule, **detail)

    def create_enrolment_tokens(self, by: str, request: CreateEnrolmentTokens) -> tuple[str, ...]:
        """Return tokens that each enrol one device; they are shown this once.

        Raises:
            InputError: A class, a label or a channel is no name.
        """
        tokens = tuple(
            self.services.store.devices.create_enrolment_token(
                request.device_class,
                created_by=by,
                now=self.services.now(),
                lifetime_seconds=request.lifetime_seconds,
                labels=request.labels,
                channel=request.channel,
                profiling=request.profiling,
            )
            for _ in range(request.count)
        )
        detail = {"count": request.count, "labels": request.labels, "profiling": request.profiling}
        self._audit(by, "invite", request.device_class, **detail)
        return tokens

    def retire_device(self, by: str, device_id: str, reason: str) -> None:
        """Believe a device no more.

        Raises:
            UnknownError: There is none of that name.
        """
        self.services.store.devices.retire(device_id, now=self.services.now())
        self._audit(by, "retire device", device_id, reason=reason)

    def set_profiling(self, by: str, device_id: str, *, profiling: bool) -> None:
        """Say whether a device takes profiling jobs.

        Raises:
            UnknownError: There is none of that name.
        """
        self.services.store.devices.set_profiling(device_id, profiling=profiling)
        self._audit(by, "set profiling", device_id, profiling=profiling)

    def create_token(self, by: str, request: CreateToken) -> str:
        """Return a new token for a program; it is shown this once.

        Raises:
            InputError: The name is none or taken, or there is no such role.
        """
        secret = self.services.store.accounts.add_token(
            request.name,
            role_by_name(request.role),
            created_by=by,
            now=self.services.now(),
            lifetime_seconds=request.lifetime_seconds,
        )
        self._audit(by, "add token", request.name, role=request.role)
        return secret

    def revoke_token(self, by: str, name: str) -> None:
        """Make a token void.

        Raises:
            InputError: There is none of that name.
        """
        self.services.store.accounts.revoke_token(name, now=self.services.now())
        self._audit(by, "retire token", name)

    def create_user(self, by: str, request: CreateUser) -> None:
        """Let somebody log in.

        Raises:
            InputError: The name is none or taken, the password too short, or there is no such role.
        """
        self.services.store.accounts.add_user(
            request.name, role_by_name(request.role), request.password, now=self.services.now()
        )
        self._audit(by, "add user", request.name, role=request.role)

    def deactivate_user(self, by: str, name: str) -> None:
        """Let somebody log in no more.

        Raises:
            InputError: There is none of that name.
        """
        self.services.store.accounts.update_user(name, retired_at=self.services.now())
        self._audit(by, "retire user", name)

    def _audit(self, by: str, action: str, subject: str, **detail: Any) -> None:
        self.services.store.audit.write(by, action, subject, at=self.services.now(), detail=detail)
