"""What people and programs have done, each written down; what changes rollouts is behind `Acting`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from edgewright.contract.api.operator_api import (
    AskQuery,
    Invite,
    NewToken,
    NewUser,
    RolloutAct,
    Silencing,
    StartRollout,
)
from edgewright.contract.rollout.plan import Plan
from edgewright.server.access_control import role_of
from edgewright.server.errors import MissingError
from edgewright.server.read_models import Awaiting
from edgewright.server.services import Services

__all__ = ["Acting", "Acts"]


class Acting(Protocol):
    """What changes the fleet; each returns what whoever asked should know."""

    def start(self, who: str, asked: StartRollout) -> tuple[Plan, tuple[str, ...]]:
        """Begin a rollout."""

    def change(self, who: str, model: str, device_class: str, act: RolloutAct, reason: str) -> Plan:
        """Advance, pause, resume or abort a rollout."""

    def ask(self, who: str, model: str, device_class: str, asked: AskQuery) -> tuple[str, ...]:
        """Ask the fleet, within the permit."""

    def end_query(self, who: str, query_id: str) -> None:
        """Ask no more."""

    def awaiting(self) -> Sequence[Awaiting]:
        """Return actions that wait for somebody's approval."""

    def settle(self, who: str, item: str, *, approve: bool, reason: str) -> Sequence[str]:
        """Approve or refuse one."""

    def add_job(self, who: str, device: str, body: bytes) -> str:
        """Give a bench device a profiling job, and return its name."""


@dataclass(frozen=True, slots=True)
class Acts:
    """What can be done; `by` is `user:NAME` or `token:NAME`, of whom it is known already that they may.

    Attributes:
        services: What it is done to.
        acting: Who changes rollouts and settles what awaits approval; it writes that down itself.
    """

    services: Services
    acting: Acting

    def silence(self, by: str, asked: Silencing) -> None:
        """Tell nobody of an alert for a while, or tell again.

        Raises:
            MissingError: There is none.
        """
        until_s = self.services.now() + asked.for_s if asked.for_s else None
        if not self.services.store.alerts.silence(asked.rule, asked.device_class, until_s=until_s):
            raise MissingError(
                f"there is no alert {asked.rule[:80]!r} for {asked.device_class[:80]!r}", remedy="List the alerts."
            )
        detail = {"device_class": asked.device_class, "for_s": asked.for_s, "reason": asked.reason}
        self._note(by, "silence", asked.rule, **detail)

    def invite(self, by: str, asked: Invite) -> tuple[str, ...]:
        """Return tokens that each enrol one device; they are shown this once.

        Raises:
            InputError: A class, a label or a channel is no name.
        """
        tokens = tuple(
            self.services.store.devices.invite(
                asked.device_class,
                made_by=by,
                now_s=self.services.now(),
                lifetime_s=asked.lifetime_s,
                labels=asked.labels,
                channel=asked.channel,
                bench=asked.bench,
            )
            for _ in range(asked.count)
        )
        detail = {"count": asked.count, "labels": asked.labels, "bench": asked.bench}
        self._note(by, "invite", asked.device_class, **detail)
        return tokens

    def retire_device(self, by: str, device_id: str, why: str) -> None:
        """Believe a device no more.

        Raises:
            UnknownError: There is none of that name.
        """
        self.services.store.devices.retire(device_id, now_s=self.services.now())
        self._note(by, "retire device", device_id, reason=why)

    def mark_bench(self, by: str, device_id: str, *, bench: bool) -> None:
        """Say whether a device takes profiling jobs.

        Raises:
            UnknownError: There is none of that name.
        """
        self.services.store.devices.mark_bench(device_id, bench=bench)
        self._note(by, "mark bench", device_id, bench=bench)

    def add_token(self, by: str, asked: NewToken) -> str:
        """Return a new token for a program; it is shown this once.

        Raises:
            InputError: The name is none or taken, or there is no such role.
        """
        secret = self.services.store.people.add_token(
            asked.name, role_of(asked.role), made_by=by, now_s=self.services.now(), lifetime_s=asked.lifetime_s
        )
        self._note(by, "add token", asked.name, role=asked.role)
        return secret

    def retire_token(self, by: str, name: str) -> None:
        """Make a token void.

        Raises:
            InputError: There is none of that name.
        """
        self.services.store.people.retire_token(name, now_s=self.services.now())
        self._note(by, "retire token", name)

    def add_user(self, by: str, asked: NewUser) -> None:
        """Let somebody log in.

        Raises:
            InputError: The name is none or taken, the password too short, or there is no such role.
        """
        self.services.store.people.add_user(
            asked.name, role_of(asked.role), asked.password, now_s=self.services.now()
        )
        self._note(by, "add user", asked.name, role=asked.role)

    def retire_user(self, by: str, name: str) -> None:
        """Let somebody log in no more.

        Raises:
            InputError: There is none of that name.
        """
        self.services.store.people.change_user(name, retired_s=self.services.now())
        self._note(by, "retire user", name)

    def _note(self, by: str, action: str, subject: str, **detail: Any) -> None:
        self.services.store.audit.write(by, action, subject, at_s=self.services.now(), detail=detail)
