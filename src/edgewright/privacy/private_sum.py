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
from edgewright.contract.query.query import (
    DeviceQueryLimits,
    Query,
    QueryTemplate,
    grid_clip,
    limit_violation,
    record_digest,
    template_violation,
    vector_size,
)
from edgewright.contract.refusal import RefusedError
from edgewright.privacy.accountant import sensitivity_of, understated_cost
from edgewright.privacy.encoding import (
    ROTATION_BLOCK,
    ValueRange,
    center_modular,
    clip_counts,
    clip_norm,
    conditional_stochastic_round,
    count_sum_range,
    project,
    rotate,
    unproject,
    unrotate,
    vector_sum_range,
    weighted_mean,
    weighted_vector,
)
from edgewright.privacy.noise import EntropySource, draw_noise

__all__ = [
    "WRAP_PROBABILITY",
    "RecoveredSum",
    "contribution",
    "query_objection",
    "query_sum_range",
    "recover_sum",
    "sum_as_json",
    "sums_by_signal",
]

# Most that the probability of a wrapped number may be, over all numbers of a sum.
WRAP_PROBABILITY = 1e-9

_Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class RecoveredSum:
    """What a sum says.

    Attributes:
        values: Sum of the devices' values, shape [values], in their units.
        noise_sd: Standard deviation of the noise in each, which the devices added.
        rounding_sd: At most this much more, from rounding.
        device_count: How many devices are in it.
        out_of_range: How many numbers lie where no honest sum does: a device sent what it may not, or a sum wrapped.
    """

    values: _Floats
    noise_sd: float
    rounding_sd: float
    device_count: int
    out_of_range: int

    def mean(self, *, weighted: bool) -> _Floats:
        """Return the mean over devices, or over examples if the query's template has weights.

        Raises:
            DataError: The summed weight is not surely more than noise.
        """
        if not weighted:
            return self.values / self.device_count
        return weighted_mean(self.values, math.hypot(self.noise_sd, self.rounding_sd))


def query_sum_range(query: Query, template: QueryTemplate) -> ValueRange:
    """Return between what a query's sums lie, and the bits that they take.

    Raises:
        InputError: No 32 bits hold them.
    """
    clip, size = grid_clip(query, template), vector_size(query, template)
    squared = sensitivity_of(query, template).l2_squared
    if template.kind == "histogram":
        return count_sum_range(
            min(int(clip), math.isqrt(squared)),
            size=size,
            devices=query.max_cohort,
            noise=template.noise,
            sigma=query.sigma,
            failure_probability=WRAP_PROBABILITY,
        )
    return vector_sum_range(
        clip,
        squared,
        length=template.values,
        projected_size=query.projected_length,
        devices=query.max_cohort,
        noise=template.noise,
        sigma=query.sigma,
        failure_probability=WRAP_PROBABILITY,
    )


def query_objection(query: Query, template: QueryTemplate, limits: DeviceQueryLimits | None = None) -> str | None:
    """Return why a query may not be answered at all, whenever it is asked; None if it may be.

    Args:
        query: To be answered.
        template: That the offline keys signed.
        limits: The device's own; None where the query is made.
    """
    # What is laxer may not even be computable, so it is looked at first.
    found = template_violation(query, template) or understated_cost(query, template)
    if found is None and limits is not None:
        found = limit_violation(query, template, limits)
    if found is not None:
        return found
    try:
        least = query_sum_range(query, template).bits
    except InputError as error:
        return error.message
    if query.bits < least:
        return f"{query.bits} bits do not hold the sum, {least} do"
    return None


def contribution(
    values: _Floats,
    template: QueryTemplate,
    query: Query,
    *,
    weight: float | None = None,
    entropy: EntropySource = os.urandom,
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
    if reason := query_objection(query, template):
        raise RefusedError("policy", f"query {query.id}", reason)
    numbers = np.asarray(values)
    expected = template.values - (1 if template.max_example_weight else 0)
    finite = all(
        np.isfinite(numbers[at : at + ROTATION_BLOCK]).all() for at in range(0, numbers.size, ROTATION_BLOCK)
    )
    if numbers.shape != (expected,) or not finite:
        raise DataError(
            f"template {template.name} sums {expected} finite numbers, not shape {list(numbers.shape)}",
            remedy="Give each of them, zeros where there is nothing.",
        )
    if (weight is None) == bool(template.max_example_weight):
        raise DataError(
            f"weight is {weight}, most_weight of template {template.name} {template.max_example_weight:g}",
            remedy="Give a weight where the template has weights, and none where it has none.",
        )
    if weight is not None:
        numbers = weighted_vector(numbers, weight, template.max_example_weight)
    if template.kind == "histogram":
        encoded = _encode_counts(numbers, template, query)
    else:
        encoded = _encode_vector(numbers, template, query, overwrite=overwrite)
    sensitivity = sensitivity_of(query, template)
    whole = conditional_stochastic_round(encoded, sensitivity.l2_squared, entropy)
    del encoded
    for start in range(0, whole.size, ROTATION_BLOCK):
        part = whole[start : start + ROTATION_BLOCK]
        part += draw_noise(template.noise, query.sigma, part.size, entropy)
    sent = whole.view(np.uint32)
    sent &= np.uint32((1 << query.bits) - 1)
    return sent


def recover_sum(
    total: NDArray[np.uint32], template: QueryTemplate, query: Query, device_count: int
) -> RecoveredSum:
    """Return what a sum of parts modulo 2^bits says.

    Args:
        total: Shape [numbers sent], each below 2^bits, without masks.
        template: Of the query.
        query: That was answered.
        device_count: How many devices are in the sum.

    Raises:
        DataError: The sum is not one of this query, or is of too few or too many devices.
    """
    size = vector_size(query, template)
    if total.shape != (size,) or int(total.max()) >= 1 << query.bits:
        raise DataError(
            f"the sum of query {query.id} has shape {list(total.shape)} and numbers up to {int(total.max())}",
            remedy=f"It has {size} numbers below 2^{query.bits}; remove all masks and reduce it first.",
        )
    if not query.min_cohort <= device_count <= query.max_cohort:
        raise DataError(
            f"{device_count} devices are in the sum of query {query.id}, {query.min_cohort} "
            f"to {query.max_cohort} may be",
            remedy="Ask again, with a cohort that holds.",
        )
    span = query_sum_range(query, template)
    whole = center_modular(total, query.bits, span.low)
    values: _Floats = whole / query.scale
    if template.kind == "vector":
        seed = bytes.fromhex(query.seed)
        if query.projected_length:
            values = unproject(values, template.values, seed)
        values = unrotate(values, seed)
    return RecoveredSum(
        values=values,
        noise_sd=math.sqrt(device_count) * query.sigma / query.scale,
        rounding_sd=math.sqrt(device_count) * 0.5 / query.scale,
        device_count=device_count,
        out_of_range=int(np.count_nonzero(whole > span.high)),
    )


def _encode_counts(counts: _Floats, template: QueryTemplate, query: Query) -> _Floats:
    ends = np.cumsum([signal.bins for signal in template.signals])[:-1]
    most = grid_clip(query, template)
    clipped = np.concatenate([clip_counts(part, query.scale, most) for part in np.split(counts, ends)])
    return clip_norm(clipped, template.max_norm * query.scale) if template.max_norm else clipped


def _encode_vector(values: _Floats, template: QueryTemplate, query: Query, *, overwrite: bool = False) -> _Floats:
    seed = bytes.fromhex(query.seed)
    turned = clip_norm(rotate(values, seed, overwrite=overwrite), template.clip)
    if query.projected_length:
        # The clip before it kept the sum's width, the one after it keeps the privacy: it can make a vector longer.
        turned = clip_norm(project(turned, query.projected_length, seed), template.clip)
    turned *= query.scale
    return turned


def sum_as_json(recovered: RecoveredSum, query: Query, template: QueryTemplate) -> dict[str, Any]:
    """Return a sum for a script, with all that says what it is a sum of."""
    return {
        "query": query.id,
        "query_digest": record_digest(query),
        "template": template.name,
        "template_digest": record_digest(template),
        "release": query.release,
        "window": (query.window_start, query.window_end),
        "subgroup": query.subgroup,
        "device_count": recovered.device_count,
        "noise_sd": recovered.noise_sd,
        "rounding_sd": recovered.rounding_sd,
        "out_of_range": recovered.out_of_range,
        "sums": {name: values.tolist() for name, values in sums_by_signal(recovered, template).items()},
    }


def sums_by_signal(recovered: RecoveredSum, template: QueryTemplate) -> dict[str, Any]:
    """Return the sums of each signal, or of the whole vector under the template's name."""
    if template.kind == "vector":
        return {template.name: recovered.values}
    ends = np.cumsum([signal.bins for signal in template.signals])[:-1]
    return dict(zip((signal.name for signal in template.signals), np.split(recovered.values, ends), strict=True))
