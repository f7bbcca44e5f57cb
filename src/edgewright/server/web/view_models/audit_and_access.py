"""Who did what, and who may: the audit log, users, tokens, invitations."""

from collections.abc import Sequence
from dataclasses import dataclass

from edgewright.server.store.records import AuditEntry, Invited, Token, User
from edgewright.server.web.view_models.formatting import Badge, Moment, badge, labels, moment

__all__ = [
    "EntryRow",
    "InvitedRow",
    "TokenRow",
    "UserRow",
    "chain",
    "entry_rows",
    "invited_rows",
    "token_rows",
    "user_rows",
]


@dataclass(frozen=True, slots=True)
class EntryRow:
    """An entry of the audit log.

    Attributes:
        number: Of it.
        at: When.
        actor: Who.
        action: What.
        subject: To what.
        detail: More, as JSON; "" for none.
        digest: Of it, which the next one holds.
    """

    number: int
    at: Moment | None
    actor: str
    action: str
    subject: str
    detail: str
    digest: str


@dataclass(frozen=True, slots=True)
class UserRow:
    """Somebody who may log in.

    Attributes:
        name: Theirs.
        role: Theirs.
        state: Whether they still may.
        made: Since when.
        alive: Whether they can be retired.
    """

    name: str
    role: str
    state: Badge
    made: Moment | None
    alive: bool


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A token of a script.

    Attributes:
        name: Of it.
        role: Of it.
        made_by: Who made it.
        state: Whether it still counts.
        expires: When it is void.
        used: When it was used last.
        alive: Whether it can be retired.
    """

    name: str
    role: str
    made_by: str
    state: Badge
    expires: Moment | None
    used: Moment | None
    alive: bool


@dataclass(frozen=True, slots=True)
class InvitedRow:
    """A device that may still enrol.

    Attributes:
        device_class: That it enrols into.
        labels: That it gets.
        channel: That it gets.
        bench: Whether it takes profiling jobs.
        made_by: Who invited.
        expires: When the invitation is void.
    """

    device_class: str
    labels: str
    channel: str
    bench: bool
    made_by: str
    expires: Moment | None


def entry_rows(entries: Sequence[AuditEntry], now_s: float) -> tuple[EntryRow, ...]:
    """Return entries in the order given."""
    return tuple(
        EntryRow(
            one.number,
            moment(one.at_s, now_s),
            one.actor,
            one.action,
            one.subject,
            "" if bytes(one.detail) == b"{}" else bytes(one.detail).decode(),
            one.digest,
        )
        for one in entries
    )


def chain(broken: int | None, head: tuple[int, str]) -> Badge:
    """Return whether the log is as it was written.

    Args:
        broken: Number of the first entry that is not.
        head: Number and digest of the last entry.
    """
    if broken is not None:
        return badge("bad", f"entry {broken} is not as it was written")
    return badge("good", f"all {head[0]:,} entries are as they were written")


def user_rows(users: Sequence[User], now_s: float) -> tuple[UserRow, ...]:
    """Return users in the order given."""
    return tuple(
        UserRow(
            one.name,
            one.role,
            badge("good", "may log in") if one.retired_s is None else badge("quiet", "retired"),
            moment(one.made_s, now_s),
            one.retired_s is None,
        )
        for one in users
    )


def token_rows(tokens: Sequence[Token], now_s: float) -> tuple[TokenRow, ...]:
    """Return tokens in the order given."""
    found = []
    for one in tokens:
        alive = one.retired_s is None and one.expires_s > now_s
        state = (
            badge("good", "counts") if alive else badge("quiet", "expired" if one.retired_s is None else "retired")
        )
        times = moment(one.expires_s, now_s), moment(one.used_s, now_s)
        found.append(TokenRow(one.name, one.role, one.made_by, state, *times, alive))
    return tuple(found)


def invited_rows(invited: Sequence[Invited], now_s: float) -> tuple[InvitedRow, ...]:
    """Return invitations in the order given."""
    return tuple(
        InvitedRow(
            one.device_class,
            labels(one.labels),
            one.channel,
            one.bench,
            one.made_by,
            moment(one.expires_s, now_s),
        )
        for one in invited
    )
