"""What the fleet was asked and what that cost each device that answered."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgewright.contract.query.query import DeviceQueryLimits, Query, QueryTemplate
from edgewright.contract.schema import decode_record
from edgewright.privacy.accountant import cost_of, epsilon_of
from edgewright.privacy.budget_ledger import epsilon_after_years
from edgewright.server.store.records import StoredQuery
from edgewright.server.web.view_models.formatting import (
    Badge,
    DisplayTime,
    Tone,
    display_time,
    duration,
    labels_text,
    make_badge,
    percent_text,
)

__all__ = ["BudgetRow", "QueryRow", "budget_rows", "epsilon_text", "query_rows"]

_TONES: dict[str, Tone] = {"open": "warn", "done": "good", "failed": "quiet"}
_DELTA = 1e-6
_YEARS = 5


@dataclass(frozen=True, slots=True)
class QueryRow:
    """A question.

    Attributes:
        id: Of the query.
        model: That it is about.
        device_class: Whose devices were asked.
        template: That it was made of.
        counted: What was summed.
        subgroup: Of which devices only, "" for all.
        state: Where it stands.
        asked: When.
        devices: In the sum, or at least how many must be.
        epsilon: If the others are honest.
        epsilon_own: By a device's own noise alone.
        delta: For both.
        backend: How it was answered.
    """

    id: str
    model: str
    device_class: str
    template: str
    counted: str
    subgroup: str
    state: Badge
    asked: DisplayTime | None
    devices: str
    epsilon: str
    epsilon_own: str
    delta: str
    backend: str


@dataclass(frozen=True, slots=True)
class BudgetRow:
    """What a device of a class has spent if it answered everything.

    Attributes:
        device_class: Whose.
        period: In the last how long.
        spent: In rho.
        allowed: By devices' usual limits, in rho.
        share: Of the one in the other, 0 to 100.
        words: The same.
        epsilon: Of what was spent.
        growth: Most that epsilon can be after some years, whatever is asked.
    """

    device_class: str
    period: str
    spent: str
    allowed: str
    share: float
    words: str
    epsilon: str
    growth: str


def query_rows(queries: Sequence[StoredQuery], now: float) -> tuple[QueryRow, ...]:
    """Return questions in the order given."""
    return tuple(_query(one, now) for one in queries)


def budget_rows(spent: Mapping[str, float], limits: DeviceQueryLimits) -> tuple[BudgetRow, ...]:
    """Return what was spent.

    Args:
        spent: In rho within the last period, by device class.
        limits: Of the devices, as they are unless an owner changed them.
    """
    most = limits.rho_per_period
    later = f"{epsilon_text(epsilon_after_years(limits, _YEARS, _DELTA))} after {_YEARS} years"
    return tuple(
        BudgetRow(
            device_class=device_class,
            period=duration(limits.period_seconds),
            spent=f"{rho:.3g}",
            allowed=f"{most:.3g}",
            share=round(min(100.0, 100 * rho / most), 1),
            words=f"{percent_text(rho / most, 0)} of what a device gives in {duration(limits.period_seconds)}",
            epsilon=epsilon_text(epsilon_of(rho, _DELTA)) if rho else "0",
            growth=later,
        )
        for device_class, rho in sorted(spent.items())
    )


def epsilon_text(epsilon: float) -> str:
    """Return an epsilon; one so large that it promises nothing says so.

    >>> epsilon_text(0.523), epsilon_text(81.2)
    ('0.52', '81 (promises nothing)')
    """
    return f"{epsilon:.2f}" if epsilon < 20 else f"{epsilon:.0f} (promises nothing)"


def _query(one: StoredQuery, now: float) -> QueryRow:
    query = decode_record(bytes(one.body), type=Query)
    template = decode_record(bytes(one.template), type=QueryTemplate)
    cost = cost_of(query, template)
    signals = ", ".join(signal.name for signal in template.signals) or f"{template.vector_length:,} numbers"
    devices = f"{query.min_cohort:,} or more" if one.devices is None else f"{one.devices:,}"
    return QueryRow(
        id=one.id,
        model=one.model,
        device_class=one.device_class,
        template=template.name,
        counted=signals,
        subgroup=labels_text(query.subgroup),
        state=make_badge(_TONES[one.state], one.state),
        asked=display_time(one.asked_at, now),
        devices=devices,
        epsilon=epsilon_text(cost.epsilon),
        epsilon_own=epsilon_text(cost.local_epsilon),
        delta=f"{cost.delta:.1g}",
        backend=query.backend,
    )
