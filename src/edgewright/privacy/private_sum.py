"""One device's part of a private sum, and what the sum says.

In this order, and no other: check the query, weigh, turn, clip (of counts, each signal's as a whole, so that its
shape stays), project, clip again, round within the norm, add noise, reduce modulo 2^bits. What comes out is ready
to be masked. The clip bounds what an honest device adds; whoever lies to his own device can put anything into his
cohort's sum.
"""

import math
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewright.contract.errors import DataError, InputError
from edgewright.contract.query.query import Limits, Query, Template, beyond, digest_of, grid_clip, laxer, size_of
from edgewright.contract.refusal import RefusedError
from edgewright.privacy.accountant import sensitivity_of, understated
from edgewright.privacy.encoding import (
    BLOCK,
    Span,
    centred,
    clip_norm,
    clip_total,
    mean_of,
    project,
    restore,
    rotate,
    round_within,
    span_of_counts,
    span_of_vectors,
    unrotate,
    weigh,
)
from edgewright.privacy.noise import Entropy, draw

__all__ = ["WRAP_CHANCE", "Recovered", "as_json", "by_signal", "contribute", "objection", "recover", "span_of"]

# Most that the probability of a wrapped number may be, over all numbers of a sum.
WRAP_CHANCE = 1e-9

_Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Recovered:
    """What a sum says.

    Attributes:
        values: Sum of the devices' values, shape [values], in their units.
        noise_sd: Standard deviation of the noise in each, which the devices added.
        rounding_sd: At most this much more, from rounding.
        survivors: How many devices are in it.
        beyond: How many numbers lie where no honest sum does: a device sent what it may not, or a sum wrapped.
    """

    values: _Floats
    noise_sd: float
    rounding_sd: float
    survivors: int
    beyond: int

    def mean(self, *, weighted: bool) -> _Floats:
        """Return the mean over devices, or over examples if the query's template has weights.

        Raises:
            DataError: The summed weight is not surely more than noise.
        """
        if not weighted:
            return self.values / self.survivors
        return mean_of(self.values, math.hypot(self.noise_sd, self.rounding_sd))


def span_of(query: Query, template: Template) -> Span:
    """Return between what a query's sums lie, and the bits that they take.

    Raises:
        InputError: No 32 bits hold them.
    """
    clip, size = grid_clip(query, template), size_of(query, template)
    squared = sensitivity_of(query, template).squared
    if template.kind == "histogram":
        return span_of_counts(
            min(int(clip), math.isqrt(squared)),
            size=size,
            devices=query.largest,
            noise=template.noise,
            sigma=query.sigma,
            chance=WRAP_CHANCE,
        )
    return span_of_vectors(
        clip,
        squared,
        length=template.values,
        projected=query.projected,
        devices=query.largest,
        noise=template.noise,
        sigma=query.sigma,
        chance=WRAP_CHANCE,
    )


def objection(query: Query, template: Template, limits: Limits | None = None) -> str | None:
    """Return why a query may not be answered at all, whenever it is asked; None if it may be.

    Args:
        query: To be answered.
        template: That the offline keys signed.
        limits: The device's own; None where the query is made.
    """
    # What is laxer may not even be computable, so it is looked at first.
    found = laxer(query, template) or understated(query, template)
    if found is None and limits is not None:
        found = beyond(query, template, limits)
    if found is not None:
        return found
    try:
        least = span_of(query, template).bits
    except InputError as error:
        return error.message
    if query.bits < least:
        return f"{query.bits} bits do not hold the sum, {least} do"
    return None


def contribute(
    values: _Floats,
    template: Template,
    query: Query,
    *,
    weight: float | None = None,
    entropy: Entropy = os.urandom,
    overwrite: bool = False,
) -> NDArray[np.uint32]:
    """Return one device's part of the sum, with its noise, modulo 2^bits.

    Each call draws new noise, so an answer is computed once and kept: see `ledger.debit`.

    Args:
        values: Shape [values]: counts over the bins, or the vector; zeros if the device has nothing.
        template: That the offline keys signed.
        query: Made of it.
        weight: Of the device's examples, where the template has weights.
        entropy: Source of randomness, for rounding and noise.
        overwrite: Use the memory of the values, which are lost then.

    Returns:
        Shape [numbers sent], each below 2^bits.

    Raises:
        RefusedError: The query is not one that may be answered.
        DataError: The values are not the template's.
    """
    if reason := objection(query, template):
        raise RefusedError("policy", f"query {query.id}", reason)
    numbers = np.asarray(values)
    expected = template.values - (1 if template.most_weight else 0)
    finite = all(np.isfinite(numbers[at : at + BLOCK]).all() for at in range(0, numbers.size, BLOCK))
    if numbers.shape != (expected,) or not finite:
        raise DataError(
            f"template {template.name} sums {expected} finite numbers, not shape {list(numbers.shape)}",
            remedy="Give each of them, zeros where there is nothing.",
        )
    if (weight is None) == bool(template.most_weight):
        raise DataError(
            f"weight is {weight}, most_weight of template {template.name} {template.most_weight:g}",
            remedy="Give a weight where the template has weights, and none where it has none.",
        )
    if weight is not None:
        numbers = weigh(numbers, weight, template.most_weight)
    if template.kind == "histogram":
        encoded = _counts(numbers, template, query)
    else:
        encoded = _vector(numbers, template, query, overwrite=overwrite)
    sensitivity = sensitivity_of(query, template)
    whole = round_within(encoded, sensitivity.squared, entropy)
    del encoded
    for start in range(0, whole.size, BLOCK):
        part = whole[start : start + BLOCK]
        part += draw(template.noise, query.sigma, part.size, entropy)
    sent = whole.view(np.uint32)
    sent &= np.uint32((1 << query.bits) - 1)
    return sent


def recover(total: NDArray[np.uint32], template: Template, query: Query, survivors: int) -> Recovered:
    """Return what a sum of parts modulo 2^bits says.

    Args:
        total: Shape [numbers sent], each below 2^bits, without masks.
        template: Of the query.
        query: That was answered.
        survivors: How many devices are in the sum.

    Raises:
        DataError: The sum is not one of this query, or is of too few or too many devices.
    """
    size = size_of(query, template)
    if total.shape != (size,) or int(total.max()) >= 1 << query.bits:
        raise DataError(
            f"the sum of query {query.id} has shape {list(total.shape)} and numbers up to {int(total.max())}",
            remedy=f"It has {size} numbers below 2^{query.bits}; remove all masks and reduce it first.",
        )
    if not query.cohort <= survivors <= query.largest:
        raise DataError(
            f"{survivors} devices are in the sum of query {query.id}, {query.cohort} to {query.largest} may be",
            remedy="Ask again, with a cohort that holds.",
        )
    span = span_of(query, template)
    whole = centred(total, query.bits, span.low)
    values: _Floats = whole / query.scale
    if template.kind == "vector":
        seed = bytes.fromhex(query.seed)
        if query.projected:
            values = restore(values, template.values, seed)
        values = unrotate(values, seed)
    return Recovered(
        values=values,
        noise_sd=math.sqrt(survivors) * query.sigma / query.scale,
        rounding_sd=math.sqrt(survivors) * 0.5 / query.scale,
        survivors=survivors,
        beyond=int(np.count_nonzero(whole > span.high)),
    )


def _counts(counts: _Floats, template: Template, query: Query) -> _Floats:
    ends = np.cumsum([signal.bins for signal in template.signals])[:-1]
    most = grid_clip(query, template)
    clipped = np.concatenate([clip_total(part, query.scale, most) for part in np.split(counts, ends)])
    return clip_norm(clipped, template.norm * query.scale) if template.norm else clipped


def _vector(values: _Floats, template: Template, query: Query, *, overwrite: bool = False) -> _Floats:
    seed = bytes.fromhex(query.seed)
    turned = clip_norm(rotate(values, seed, overwrite=overwrite), template.clip)
    if query.projected:
        # The clip before it kept the sum's width, the one after it keeps the privacy: it can make a vector longer.
        turned = clip_norm(project(turned, query.projected, seed), template.clip)
    turned *= query.scale
    return turned


def as_json(found: Recovered, query: Query, template: Template) -> dict[str, Any]:
    """Return a sum for a script, with all that says what it is a sum of."""
    return {
        "query": query.id,
        "digest": digest_of(query),
        "template": template.name,
        "template_digest": digest_of(template),
        "release": query.release,
        "window": (query.window_start, query.window_end),
        "subgroup": query.subgroup,
        "devices": found.survivors,
        "noise_sd": found.noise_sd,
        "rounding_sd": found.rounding_sd,
        "beyond": found.beyond,
        "sums": {name: values.tolist() for name, values in by_signal(found, template).items()},
    }


def by_signal(found: Recovered, template: Template) -> dict[str, Any]:
    """Return the sums of each signal, or of the whole vector under the template's name."""
    if template.kind == "vector":
        return {template.name: found.values}
    ends = np.cumsum([signal.bins for signal in template.signals])[:-1]
    return dict(zip((signal.name for signal in template.signals), np.split(found.values, ends), strict=True))
