"""What an answer costs, in plain Python, never less than it does: a device believes this and not the query's claim.

The unit is one device with all that it contributes: neighbours are its answer and an answer of zeros. A cost is a
number rho: the Renyi divergence of each whole order a >= 2 is at most rho * a (zCDP, of whole orders; the published
bounds for Skellam are for whole orders). Costs of answers add up, also when later ones are chosen by what earlier
ones told.
"""

import math
from dataclasses import dataclass

from edgewright.contract.query.query import Query, QueryTemplate, grid_clip, vector_size
from edgewright.privacy.noise import table_error

__all__ = [
    "PrivacyCost",
    "Sensitivity",
    "cost_of",
    "counted_noise_shares",
    "epsilon_of",
    "gaussian_rho",
    "renyi_orders",
    "rho_of",
    "rounded_l2_squared_bound",
    "sensitivity_of",
    "skellam_rho",
    "sum_divergence",
    "understated_cost",
]


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """How far one device can move the sum, in grid units.

    Attributes:
        l2_squared: Of the L2 norm; a whole number that the encoded vector's squared norm never exceeds.
        l1: Of the L1 norm.
        dimension: How many numbers.
    """

    l2_squared: int
    l1: float
    dimension: int

    @property
    def l2(self) -> float:
        """Of the L2 norm."""
        return math.sqrt(self.l2_squared)


@dataclass(frozen=True, slots=True)
class PrivacyCost:
    """What one answer costs.

    Attributes:
        rho: When the others are honest, as many as the query promises less the colluders.
        local_rho: From the device's own noise alone, whoever colludes.
        epsilon: Of rho, at delta.
        local_epsilon: Of rho_own, at delta.
        delta: The template's, and what the sampler's table adds.
    """

    rho: float
    local_rho: float
    epsilon: float
    local_epsilon: float
    delta: float


def rounded_l2_squared_bound(clip: float, dimension: int) -> int:
    """Return the squared L2 norm that a stochastically rounded vector keeps with a chance of at least 0.39.

    Args:
        clip: L2 norm before rounding, in grid units.
        dimension: How many numbers.

    Source: arXiv:2102.06387, theorem 1 and proposition 22, with beta = exp(-1/2).
    """
    return math.floor(
        min((clip + math.sqrt(dimension)) ** 2, clip**2 + dimension / 4 + clip + math.sqrt(dimension) / 2)
    )


def sensitivity_of(query: Query, template: QueryTemplate) -> Sensitivity:
    """Return how far an answer can move the sum; encoding keeps to it, exactly."""
    clip, size = grid_clip(query, template), vector_size(query, template)
    if template.kind == "vector":
        squared, l1 = rounded_l2_squared_bound(clip, size), math.inf
    else:
        # Of each signal the counts add up to the clip at most, so their norm is no more; rounding adds to both.
        signals = len(template.signals)
        squared = min(size * int(clip) ** 2, rounded_l2_squared_bound(math.sqrt(signals) * clip, size))
        l1 = min(size * clip, signals * clip + size)
        if template.max_norm:
            squared = min(squared, rounded_l2_squared_bound(template.max_norm * query.scale, size))
    # Of whole numbers, no magnitude is above its square.
    return Sensitivity(squared, min(l1, math.sqrt(size * squared), float(squared)), size)


def sum_divergence(sigma: float, noise_shares: int) -> float:
    """Return tau: how far a sum of discrete Gaussians is from one, per value.

    Source: arXiv:2102.06387, theorem 1.

    >>> round(1e6 * sum_divergence(1.0, 1000)), round(1e6 * sum_divergence(1.5, 10), 3)
    (573, 0.002)
    """
    rate = -2 * (math.pi * sigma) ** 2
    total, count = 0.0, noise_shares - 1
    for k in range(1, min(count, 1000) + 1):
        total += math.exp(rate * k / (k + 1))
    # Later terms only fall, so the last one bounds each.
    if count > 1000:
        total += (count - 1000) * math.exp(rate * 1000 / 1001)
    return 10 * total


def gaussian_rho(sensitivity: Sensitivity, sigma: float, noise_shares: int) -> float:
    """Return the cost under the sum of independent discrete Gaussians.

    Args:
        sensitivity: Of the sum.
        sigma: Parameter of each, grid units.
        noise_shares: How many.

    Source: arXiv:2102.06387, proposition 14. Its first bound, a l2^2/2 + tau d, has a constant that whole orders
    a >= 2 let us halve into rho.
    """
    scale = math.sqrt(noise_shares) * sigma
    l2, l1, tau, size = (
        sensitivity.l2 / scale,
        sensitivity.l1 / scale,
        sum_divergence(sigma, noise_shares),
        sensitivity.dimension,
    )
    return min(
        l2**2 / 2 + tau * size / 2,
        (l2**2 + 2 * l1 * tau + tau**2 * size) / 2,
        (l2 + math.sqrt(size) * tau) ** 2 / 2,
    )


def skellam_rho(sensitivity: Sensitivity, sigma: float, noise_shares: int) -> float:
    """Return the cost under the sum of independent Skellam noises, which is one.

    Args:
        sensitivity: Of the sum.
        sigma: Standard deviation of each, grid units.
        noise_shares: How many.

    Source: arXiv:2110.04995, theorem 3.5, whose bound is for whole orders:
    a l2^2 / (2 v) + min(((2 a - 1) l2^2 + 6 l1) / (4 v^2), 3 l1 / (2 v)), at its dearest, a = 2 or a without end.
    """
    variance, squared, l1 = noise_shares * sigma**2, sensitivity.l2_squared, sensitivity.l1
    fine = squared / (2 * variance**2) + max(0.0, 6 * l1 - squared) / (8 * variance**2)
    return squared / (2 * variance) + min(fine, 3 * l1 / (4 * variance))


def epsilon_of(rho: float, delta: float) -> float:
    """Return the epsilon that a cost means.

    Any order gives a valid one; the best of `renyi_orders` is taken.

    Source: arXiv:2004.00010, proposition 12: rho a + log(1 - 1/a) - log(delta a) / (a - 1), here for whole a.

    >>> round(epsilon_of(0.05, 1e-6), 2)
    1.47
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta is {delta}")
    if rho < 0 or math.isnan(rho):
        raise ValueError(f"rho is {rho}")
    if rho == 0:
        return 0.0
    if math.isinf(rho):
        return math.inf
    best = min(rho * a + math.log1p(-1 / a) - math.log(delta * a) / (a - 1) for a in renyi_orders(rho, delta))
    return max(0.0, best)


def renyi_orders(rho: float, delta: float) -> list[int]:
    """Return whole orders around the one at which a cost means the least epsilon, in steps of 1 %."""
    middle = 1 + min(math.sqrt(-math.log(delta) / rho), 1e12)
    return sorted({max(2, round(middle * 1.01**step)) for step in range(-140, 71)})


def rho_of(query: Query, template: QueryTemplate, noise_shares: int) -> float:
    """Return what an answer costs if that many devices, itself among them, add honest noise that nobody tells."""
    if noise_shares < 1:
        return math.inf
    bound = gaussian_rho if template.noise == "gaussian" else skellam_rho
    return bound(sensitivity_of(query, template), query.sigma, noise_shares)


def counted_noise_shares(query: Query, template: QueryTemplate) -> int:
    """Return how many devices' noise counts: those proved to be in the sum, less the colluders among them."""
    return (
        template.min_verified_peers + 1 if template.min_verified_peers else query.min_cohort
    ) - template.assumed_colluders


def cost_of(query: Query, template: QueryTemplate) -> PrivacyCost:
    """Return what an answer costs; the query's own claim is not looked at."""
    shares = counted_noise_shares(query, template)
    rho, own = rho_of(query, template, shares), rho_of(query, template, 1)
    distance = vector_size(query, template) * max(shares, 1) * table_error(template.noise, query.sigma)
    # Ideal noise is (epsilon, delta); ours differs from it by the distance, on both sides.
    epsilon, epsilon_own = epsilon_of(rho, template.delta), epsilon_of(own, template.delta)
    added = distance * (1 + math.exp(min(epsilon, 700.0)))
    return PrivacyCost(rho, own, epsilon, epsilon_own, min(1.0, template.delta + added))


def understated_cost(query: Query, template: QueryTemplate) -> str | None:
    """Return in what a query claims less than it costs, None if it does not."""
    cost = cost_of(query, template)
    # A claim is written with as many digits as a float has; a server's arithmetic may differ in the last.
    if query.rho < cost.rho * (1 - 1e-9):
        return f"it claims to cost {query.rho:.4g}, and costs {cost.rho:.4g}"
    if cost.delta > 2 * template.delta:
        return (
            f"its delta is {cost.delta:.3g}, the template's {template.delta:.3g}: the sampler's table adds too much"
        )
    return None
