"""What a query costs, where it is made: checked against dp-accounting, which devices never load.

Only functions here import it, and only when they are called: the extra `studio` brings it.
"""

import datetime
import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from edgewright.contract.errors import InputError
from edgewright.contract.query.query import (
    MAX_SIGMA,
    MIN_SIGMA,
    DeviceQueryLimits,
    Query,
    QueryBackend,
    QueryTemplate,
    record_digest,
)
from edgewright.privacy.accountant import (
    PrivacyCost,
    cost_of,
    counted_noise_shares,
    epsilon_of,
    renyi_orders,
    rho_of,
)
from edgewright.privacy.budget_ledger import epsilon_after_years
from edgewright.privacy.private_sum import query_objection, query_sum_range

__all__ = ["QueryCost", "calibrate_sigma", "draft_query", "fill_template", "query_cost"]

_GROWTH_YEARS = (1, 5, 10)
# Of vectors, grid units per unit of their values; counts are whole already.
_VECTOR_SCALE = 1024.0


@dataclass(frozen=True, slots=True)
class QueryCost:
    """What whoever asks is told.

    Attributes:
        cost: As devices compute it.
        epsilon: By dp-accounting, when the others are honest; never above the devices' figure.
        local_epsilon: By dp-accounting, from a device's own noise alone.
        noise_sd: Standard deviation of the noise in each number of the smallest sum, in the values' units.
        epsilon_after_years: Most that epsilon can be after 1, 5 and 10 years of a device's limits, whatever is asked.
    """

    cost: PrivacyCost
    epsilon: float
    local_epsilon: float
    noise_sd: float
    epsilon_after_years: dict[int, float]


def query_cost(query: Query, template: QueryTemplate, limits: DeviceQueryLimits | None = None) -> QueryCost:
    """Return what a query costs.

    Args:
        query: About to be signed.
        template: Of the query.
        limits: Of the devices.

    Raises:
        InputError: Devices would refuse it, or dp-accounting is missing.
    """
    permitted = limits or DeviceQueryLimits()
    if reason := query_objection(query, template, permitted):
        raise InputError(f"devices would refuse query {query.id}: {reason}", remedy="Change the query.")
    cost = cost_of(query, template)
    return QueryCost(
        cost=cost,
        epsilon=_dp_accounting_epsilon(cost.rho, template.delta),
        local_epsilon=_dp_accounting_epsilon(cost.local_rho, template.delta),
        noise_sd=math.sqrt(query.min_cohort) * query.sigma / query.scale,
        epsilon_after_years={
            years: epsilon_after_years(permitted, years, template.delta) for years in _GROWTH_YEARS
        },
    )


def calibrate_sigma(query: Query, template: QueryTemplate, epsilon: float) -> float:
    """Return the least local sigma, in grid units, with which a query costs at most an epsilon.

    It is no less than the template's floor and the sampler's.

    Args:
        query: With any sigma.
        template: Of the query.
        epsilon: At the template's delta, when the others are honest.

    Raises:
        InputError: No sigma that can be sampled is enough.
    """
    shares = counted_noise_shares(query, template)

    def enough(sigma: float) -> bool:
        asked = msgspec.structs.replace(query, sigma=sigma)
        return epsilon_of(rho_of(asked, template, shares), template.delta) <= epsilon

    low = max(MIN_SIGMA, template.min_noise * template.clip * query.scale)
    high = MAX_SIGMA
    if not low <= high or not enough(high):
        raise InputError(
            f"epsilon {epsilon:g} takes more noise than {MAX_SIGMA:g} grid units a device",
            remedy="Ask more devices, lower the scale, or permit a greater epsilon.",
        )
    if enough(low):
        return low
    while high / low > 1 + 1e-6:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def draft_query(
    template: QueryTemplate,
    *,
    query_id: str,
    window: tuple[datetime.datetime, datetime.datetime],
    deadline: datetime.datetime,
    release: str,
    epsilon: float,
    seed: str,
    backend: QueryBackend,
    min_cohort: int,
    max_cohort: int,
    subgroup: Mapping[str, str],
) -> Query:
    """Return a query that asks a template.

    Args:
        template: To be asked.
        query_id: Of the query.
        window: Of what is counted, from and to.
        deadline: No answer after.
        release: sha256 of the manifest that it is about.
        epsilon: That an answer may cost, at the template's delta, when the others are honest.
        seed: 64 hexadecimal digits, no secret.
        backend: Over which it is answered.
        min_cohort: Devices that must answer.
        max_cohort: Devices that may.
        subgroup: Labels and values that they have, besides the template's.

    Raises:
        InputError: It cannot be had.
    """
    whole = Query(
        id=query_id,
        template=template.name,
        template_digest=record_digest(template),
        window_start=window[0].isoformat(),
        window_end=window[1].isoformat(),
        deadline=deadline.isoformat(),
        bits=32,
        scale=_VECTOR_SCALE if template.kind == "vector" else 1.0,
        sigma=2.0,
        min_cohort=min_cohort,
        max_cohort=max_cohort,
        rho=1.0,
        backend=backend,
        seed=seed,
        release=release,
        subgroup=dict(subgroup),
    )
    return fill_template(whole, template, epsilon)


def fill_template(query: Query, template: QueryTemplate, epsilon: float) -> Query:
    """Return a query with the template's digest, and the noise, bits and cost that an epsilon takes.

    Args:
        query: With everything else.
        template: To be asked.
        epsilon: At the template's delta, when the others are honest.

    Raises:
        InputError: It cannot be had.
    """
    sigma = calibrate_sigma(query, template, epsilon)
    asked = msgspec.structs.replace(
        query, sigma=sigma, template=template.name, template_digest=record_digest(template)
    )
    return msgspec.structs.replace(
        asked, bits=query_sum_range(asked, template).bits, rho=cost_of(asked, template).rho
    )


def _dp_accounting_epsilon(rho: float, delta: float) -> float:
    """Return dp-accounting's epsilon for a zCDP mechanism."""
    try:
        # By name, for no device may find these libraries when it looks at what this module imports.
        accounting: Any = importlib.import_module("dp_accounting")
        rdp: Any = importlib.import_module("dp_accounting.rdp")
    except ImportError as error:
        raise InputError(
            f"dp-accounting cannot be loaded: {error}", remedy="Install it: pip install 'edgewright[studio]'."
        ) from error
    # The device's orders and finer ones.
    orders = sorted({1 + x / 50 for x in range(1, 3000)} | set(renyi_orders(rho, delta)))
    accountant = rdp.RdpAccountant(orders=orders)
    accountant.compose(accounting.ZCDpEvent(rho))
    return float(accountant.get_epsilon(delta))
