"""One device's part, the sum of many, and what an attacker who sees the sum learns of one."""

import hashlib
import math
from typing import Any
from unittest import mock

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.unit.privacy.examples import HISTOGRAM, VECTOR, query_of, template_like

from edgewright.contract.errors import DataError
from edgewright.contract.query.query import DeviceQueryLimits, Query, QueryTemplate
from edgewright.contract.refusal import RefusedError
from edgewright.privacy.accountant import cost_of, sensitivity_of
from edgewright.privacy.encoding import center_modular, conditional_stochastic_round
from edgewright.privacy.noise import draw_noise
from edgewright.privacy.private_sum import (
    _encode_counts,
    _encode_vector,
    contribution,
    query_objection,
    query_sum_range,
    recover_sum,
)
from edgewright.stats.exact_paired_bound import clopper_pearson_bounds

WEIGHTED = template_like(VECTOR, max_example_weight=4.0, clip=8.0)
_Floats = NDArray[np.float64]


def add_up(parts: list[NDArray[np.uint32]], bits: int) -> NDArray[np.uint32]:
    total = np.sum(parts, axis=0, dtype=np.uint64)
    return np.asarray(total & np.uint64((1 << bits) - 1), np.uint32)


@settings(max_examples=120, deadline=None)
@given(
    size=st.integers(1, 40),
    devices=st.integers(2, 30),
    dropped=st.integers(0, 10),
    share=st.floats(0.5, 3.0),
    scale=st.floats(1.0, 30.0),
    more_bits=st.integers(0, 6),
    noise=st.sampled_from(["gaussian", "skellam"]),
    base=st.sampled_from([HISTOGRAM, VECTOR]),
    number=st.integers(0, 10**6),
)
def test_the_decoded_sum_is_the_plain_one_and_noise_of_the_stated_variance(
    size: int,
    devices: int,
    dropped: int,
    share: float,
    scale: float,
    more_bits: int,
    noise: str,
    base: QueryTemplate,
    number: int,
) -> None:
    what: dict[str, Any] = {"max_norm": 0.0} if base is HISTOGRAM else {"vector_length": size}
    template = template_like(base, **what, min_cohort=2, noise=noise, max_rho=1e9, delta=0.01)
    sigma = max(1.5, share * scale * template.clip)
    query = query_of(template, number, sigma=sigma, scale=scale, min_cohort=2, max_cohort=devices + dropped)
    query = msgspec.structs.replace(query, bits=min(32, query.bits + more_bits))
    random = np.random.default_rng(number)
    if base is HISTOGRAM:
        values = random.integers(0, 7, (devices + dropped, template.values)).astype(float)
        most = math.floor(template.clip * scale) / scale
        plain = values.reshape(len(values), 2, 4)
        plain = (plain * np.minimum(1, most / np.maximum(plain.sum(axis=2, keepdims=True), 1))).reshape(
            len(values), 8
        )
    else:
        values = random.standard_normal((devices + dropped, size))
        plain = values / np.maximum(1, np.linalg.norm(values, axis=1, keepdims=True))
    parts = [contribution(one, template, query) for one in values]
    survivors = random.permutation(devices + dropped)[:devices]
    found = recover_sum(add_up([parts[index] for index in survivors], query.bits), template, query, devices)
    assert found.noise_sd == pytest.approx(math.sqrt(devices) * sigma / scale)
    assert found.out_of_range == 0
    # So many standard deviations that at 40 values and 120 cases it is not chance.
    assert np.abs(found.values - plain[survivors].sum(axis=0)).max() <= 7 * math.hypot(
        found.noise_sd, found.rounding_sd
    )


@pytest.mark.parametrize("noise", ["gaussian", "skellam"])
@pytest.mark.parametrize("base", [HISTOGRAM, VECTOR])
def test_the_noise_in_a_sum_has_the_stated_variance_no_more_and_no_less(base: QueryTemplate, noise: str) -> None:
    template = template_like(base, noise=noise)
    query = query_of(template, scale=64.0 if base is VECTOR else 1.0)
    nothing = np.zeros(template.values)
    values = np.concatenate(
        [
            recover_sum(
                add_up([contribution(nothing, template, query) for _ in range(8)], query.bits), template, query, 8
            ).values
            for _ in range(250)
        ]
    )
    stated = math.sqrt(8) * query.sigma / query.scale
    # The variance of a variance's estimate, 2 / n of its square, five times.
    assert abs(values.var() / stated**2 - 1) < 5 * math.sqrt(2 / values.size)
    assert abs(values.mean()) < 5 * stated / math.sqrt(values.size)


def test_a_projected_sum_is_unbiased() -> None:
    template = template_like(VECTOR, max_rho=1e6, delta=0.01, min_noise=0.01)
    values = np.linspace(-1, 1, 24) / 4
    found = []
    for number in range(300):
        query = query_of(template, number, projected_length=12, min_cohort=8)
        parts = [contribution(values, template, query) for _ in range(8)]
        found.append(recover_sum(add_up(parts, query.bits), template, query, 8).mean(weighted=False))
    error = (np.mean(found, axis=0) - values) / (np.std(found, axis=0) / math.sqrt(300))
    assert (error**2).sum() < 24 + 6 * math.sqrt(48)


def test_a_weighted_mean_is_that_of_the_examples() -> None:
    query = query_of(WEIGHTED, scale=200.0, sigma=230.0, min_cohort=1000, max_cohort=1100)
    random = np.random.default_rng(1)
    values, weights = random.normal(0.5, 0.1, (1000, 24)), random.uniform(1, 6, 1000)
    parts = [contribution(one, WEIGHTED, query, weight=w) for one, w in zip(values, weights, strict=True)]
    found = recover_sum(add_up(parts, query.bits), WEIGHTED, query, 1000)
    pairs = [np.append(v * min(w, 4), min(w, 4)) for v, w in zip(values, weights, strict=True)]
    pairs = [pair * min(1, 8 / np.linalg.norm(pair)) for pair in pairs]
    wanted = np.sum(pairs, axis=0)
    spread = 6 * found.noise_sd * math.hypot(1, 0.7) / wanted[-1]
    assert np.abs(found.mean(weighted=True) - wanted[:-1] / wanted[-1]).max() < spread
    # Of devices without data there is no mean.
    empty = [contribution(np.zeros(24), WEIGHTED, query, weight=0.0) for _ in range(1000)]
    with pytest.raises(DataError, match="summed weight"):
        recover_sum(add_up(empty, query.bits), WEIGHTED, query, 1000).mean(weighted=True)


@settings(max_examples=80, deadline=None)
@given(
    values=st.lists(st.floats(-1e12, 1e12), min_size=24, max_size=24),
    projected=st.sampled_from([0, 1, 5, 23]),
    number=st.integers(0, 1000),
)
def test_whatever_the_values_the_answer_without_noise_keeps_the_norm(
    values: list[float], projected: int, number: int
) -> None:
    query = query_of(VECTOR, number, projected_length=projected, sigma=64.0)
    offline = mock.patch(
        "edgewright.privacy.private_sum.draw_noise", lambda noise, sigma, count, entropy: np.zeros(count, np.int64)
    )
    with offline:
        sent = contribution(np.array(values), VECTOR, query)
    whole = center_modular(sent, query.bits, query_sum_range(query, VECTOR).low)
    assert sum(int(v) ** 2 for v in whole) <= sensitivity_of(query, VECTOR).l2_squared


def test_counts_beyond_the_clip_change_nothing() -> None:
    query = query_of(HISTOGRAM)
    parts = []
    for most in (4.0, 4e9):
        stream = hashlib.shake_256(b"the same")
        parts.append(contribution(np.full(8, most), HISTOGRAM, query, entropy=stream.digest))
    assert (parts[0] == parts[1]).all()


@pytest.mark.parametrize(
    "values", [np.zeros(7), np.zeros(9), np.zeros((1, 8)), np.full(8, np.nan), np.full(8, np.inf)]
)
def test_values_of_another_shape_or_none_are_not_sent(values: _Floats) -> None:
    with pytest.raises(DataError, match="8 finite numbers"):
        contribution(values, HISTOGRAM, query_of(HISTOGRAM))


def test_a_weight_is_given_where_there_are_weights_and_nowhere_else() -> None:
    with pytest.raises(DataError, match="weight"):
        contribution(np.zeros(24), WEIGHTED, query_of(WEIGHTED, sigma=200.0))
    with pytest.raises(DataError, match="weight"):
        contribution(np.zeros(24), VECTOR, query_of(VECTOR), weight=1.0)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "laxer than its template": ({"min_cohort": 7}, "cohort of 7"),
    "noise below the floor": ({"sigma": 0.2}, "noise"),
    "dearer than it claims": ({"sigma": 3.0}, "claims to cost"),
    "too narrow for its sum": ({"bits": 6}, "bits do not hold"),
    "more devices than its width holds": ({"max_cohort": 4000}, "bits do not hold"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_query_that_may_not_be_answered_is_not(what: str) -> None:
    changes, reason = REFUSED[what]
    query = msgspec.structs.replace(query_of(HISTOGRAM), **changes)
    assert reason in str(query_objection(query, HISTOGRAM))
    with pytest.raises(RefusedError, match=reason):
        contribution(np.zeros(8), HISTOGRAM, query)


def test_a_device_s_own_limits_are_an_objection() -> None:
    query = query_of(HISTOGRAM)
    assert query_objection(query, HISTOGRAM, DeviceQueryLimits(min_cohort=8, rho_per_period=query.rho)) is None
    assert "cohort" in str(query_objection(query, HISTOGRAM, DeviceQueryLimits()))


@pytest.mark.parametrize(
    ("total", "survivors"),
    [
        (np.zeros(7, np.uint32), 8),
        (np.full(8, 1 << 31, np.uint32), 8),
        (np.zeros(8, np.uint32), 7),
        (np.zeros(8, np.uint32), 17),
    ],
)
def test_a_sum_that_is_not_this_query_s_is_not_read(total: NDArray[np.uint32], survivors: int) -> None:
    with pytest.raises(DataError):
        recover_sum(total, HISTOGRAM, query_of(HISTOGRAM), survivors)


def test_a_number_that_no_honest_cohort_sends_is_seen() -> None:
    query = msgspec.structs.replace(query_of(HISTOGRAM), bits=16)
    total = add_up([contribution(np.zeros(8), HISTOGRAM, query) for _ in range(8)], 16)
    assert recover_sum(total, HISTOGRAM, query, 8).out_of_range == 0
    total[3] = (int(total[3]) + 20_000) % (1 << 16)
    assert recover_sum(total, HISTOGRAM, query, 8).out_of_range == 1


# The attack: a device sends the worst vector, or zeros; the others send zeros, and all but the promised cohort's
# noise is known. Whoever sees the sum projects it on the vector and decides by a threshold.

TRIALS = 40_000


def worst(template: QueryTemplate) -> _Floats:
    if template.kind == "histogram":
        # All observations in one bin of each signal.
        return np.tile([template.clip, 0.0, 0.0, 0.0], 2)
    return np.linspace(1, 2, template.vector_length) * template.clip


def least_epsilon(template: QueryTemplate, query: Query, sigma: float, delta: float) -> float:
    """A lower confidence bound of epsilon, 99.9 %, by the attack; the noise is of the sigma given."""
    seed = hashlib.sha256(f"attack {template.name} {template.noise} {sigma}".encode()).hexdigest()
    stream, calls = bytes.fromhex(seed), iter(range(10**9))

    def entropy(count: int) -> bytes:
        return hashlib.shake_128(stream + next(calls).to_bytes(8, "big")).digest(count)

    size = template.values
    span = query_sum_range(query, template)
    # What the target sends without its noise, as `contribute` does: its noise is taken off again.
    zero = np.zeros(size)
    encode = _encode_counts if template.kind == "histogram" else _encode_vector
    squared = sensitivity_of(query, template).l2_squared
    scores = []
    for values in (zero, worst(template)):
        encoded = encode(values, template, query)
        sent = np.stack([conditional_stochastic_round(encoded, squared, entropy) for _ in range(200)])
        noise = sum(
            draw_noise(template.noise, sigma, TRIALS * size, entropy).reshape(TRIALS, size)
            for _ in range(query.min_cohort)
        )
        total = (sent[np.arange(TRIALS) % len(sent)] + noise) % (1 << query.bits)
        seen = (total - span.low) % (1 << query.bits) + span.low
        scores.append(seen @ encode(worst(template), template, query))
    absent, present = scores
    best = 0.0
    # Thresholds are chosen on one half of the trials and judged on the other; both directions, 20 of them.
    half = TRIALS // 2
    for threshold in np.quantile(np.concatenate([absent[:half], present[:half]]), np.linspace(0.02, 0.98, 20)):
        for false, true in (
            (absent[half:] > threshold, present[half:] > threshold),
            (present[half:] <= threshold, absent[half:] <= threshold),
        ):
            low = clopper_pearson_bounds(int(true.sum()), half, 0.001 / 80)[0]
            high = clopper_pearson_bounds(int(false.sum()), half, 0.001 / 80)[1]
            if low > delta:
                best = max(best, math.log((low - delta) / high))
    return best


ATTACKED = {
    "counts, discrete Gaussian": template_like(HISTOGRAM, max_norm=0.0),
    "counts with a norm": HISTOGRAM,
    "counts, Skellam": template_like(HISTOGRAM, max_norm=0.0, noise="skellam"),
    "a turned vector, discrete Gaussian": template_like(VECTOR, vector_length=8),
    "a turned vector, Skellam": template_like(VECTOR, vector_length=8, noise="skellam"),
}


@pytest.mark.parametrize("what", ATTACKED)
def test_no_attack_tells_a_device_by_more_than_the_claimed_epsilon(what: str) -> None:
    template = template_like(ATTACKED[what], delta=1e-3)
    scale = 1.0 if template.kind == "histogram" else 6.0
    query = query_of(template, scale=scale, sigma=3.0)
    claimed = cost_of(query, template).epsilon
    shown = least_epsilon(template, query, query.sigma, template.delta)
    assert 0.3 * claimed < shown <= claimed
    # And the same attack breaks the claim when the noise is a quarter of what was claimed.
    claimed = cost_of(query_of(template, scale=scale, sigma=6.0), template).epsilon
    assert least_epsilon(template, query, 1.5, template.delta) > claimed
