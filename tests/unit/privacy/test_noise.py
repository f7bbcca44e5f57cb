"""The sampler draws from what it names: against exact probabilities, and OpenDP's exact sampler."""

import hashlib
import math

import numpy as np
import opendp.prelude as dp
import pytest
from numpy.typing import NDArray
from scipy import special, stats

from edgewright.contract.query.query import NoiseKind
from edgewright.privacy.noise import EntropySource, _cdf_table, draw_noise, table_error, table_reach, tail_bound

dp.enable_features("contrib")


def entropy_of(seed: str) -> EntropySource:
    """Bytes that are the same in every run."""
    calls = 0

    def read(count: int) -> bytes:
        nonlocal calls
        calls += 1
        return hashlib.shake_256(f"{seed} {calls}".encode()).digest(count)

    return read


def exact(noise: NoiseKind, sigma: float, values: NDArray[np.int64]) -> NDArray[np.float64]:
    """Probabilities by the definitions, with scipy's Bessel function."""
    if noise == "skellam":
        return np.asarray(special.ive(np.abs(values), sigma**2))
    grid = np.arange(-math.ceil(40 * sigma), math.ceil(40 * sigma) + 1)
    return np.asarray(np.exp(-(values**2) / (2 * sigma**2)) / np.exp(-(grid**2) / (2 * sigma**2)).sum())


CASES: list[tuple[NoiseKind, float]] = [
    ("gaussian", 1.5),
    ("gaussian", 4.3),
    ("gaussian", 60.0),
    ("skellam", 1.5),
    ("skellam", 4.3),
    ("skellam", 60.0),
]


@pytest.mark.parametrize(("noise", "sigma"), CASES)
def test_the_table_holds_the_exact_probabilities(noise: NoiseKind, sigma: float) -> None:
    table, low = _cdf_table(noise, sigma)
    edges = np.concatenate([[0], table.astype(object), [1 << 64]])
    held = np.diff(edges).astype(float) / 2.0**64
    values = np.arange(low, low + held.size)
    # What scipy's floats allow; the table's own error is below 2^-64 a value.
    assert np.abs(held - exact(noise, sigma, values)).max() < 1e-14
    assert abs(math.fsum(held * values)) < 1e-13 * sigma
    assert math.fsum(held * values**2) == pytest.approx(sigma**2, rel=1e-5 if sigma < 2 else 1e-12)


@pytest.mark.parametrize(("noise", "sigma"), CASES)
def test_draws_follow_the_exact_probabilities(noise: NoiseKind, sigma: float) -> None:
    drawn = draw_noise(noise, sigma, 400_000, entropy_of(f"{noise} {sigma}"))
    values = np.arange(-table_reach(noise, sigma), table_reach(noise, sigma) + 1)
    expected = exact(noise, sigma, values) * drawn.size
    often = expected >= 10
    counts = np.bincount(drawn - values[0], minlength=values.size)
    seen = np.append(counts[often], counts[~often].sum())
    wanted = np.append(expected[often], drawn.size - expected[often].sum())
    assert stats.chisquare(seen, wanted).pvalue > 1e-4


@pytest.mark.parametrize("sigma", [1.5, 6.0])
def test_draws_follow_those_of_opendp_s_exact_sampler(sigma: float) -> None:
    space = dp.vector_domain(dp.atom_domain(T=int)), dp.l2_distance(T=float)
    theirs = np.array(dp.m.make_gaussian(*space, scale=sigma)([0] * 60_000))
    ours = draw_noise("gaussian", sigma, 60_000, entropy_of("beside OpenDP"))
    edges = np.arange(-math.ceil(3 * sigma), math.ceil(3 * sigma) + 2) - 0.5
    table = [np.histogram(np.clip(drawn, edges[0], edges[-1]), edges)[0] for drawn in (ours, theirs)]
    assert stats.chi2_contingency(table).pvalue > 1e-4
    # The same test tells noise that is a tenth too small.
    small = draw_noise("gaussian", max(1.5, 0.9 * sigma), 60_000, entropy_of("too small"))
    wrong = np.histogram(np.clip(small, edges[0], edges[-1]), edges)[0]
    assert sigma == 1.5 or stats.chi2_contingency([wrong, table[1]]).pvalue < 1e-9


def test_each_draw_takes_its_own_eight_bytes_of_entropy() -> None:
    asked: list[int] = []

    def read(count: int) -> bytes:
        asked.append(count)
        return b"\xff" * count

    assert set(draw_noise("gaussian", 2.0, 5, read)) == {table_reach("gaussian", 2.0)}
    assert asked == [40]
    with pytest.raises(ValueError, match="random words"):
        draw_noise("gaussian", 2.0, 5, lambda count: b"\0" * 8)


def test_two_draws_differ() -> None:
    assert (draw_noise("gaussian", 50.0, 64) != draw_noise("gaussian", 50.0, 64)).any()


@pytest.mark.parametrize("sigma", [0.0, 1.49, 4097.0, float("nan")])
@pytest.mark.parametrize("noise", ["gaussian", "skellam"])
def test_noise_that_is_too_fine_or_too_coarse_is_not_drawn(noise: NoiseKind, sigma: float) -> None:
    with pytest.raises(ValueError, match="sigma"):
        draw_noise(noise, sigma, 1)


@pytest.mark.parametrize(("noise", "sigma"), CASES)
def test_less_than_the_stated_error_lies_beyond_the_table(noise: NoiseKind, sigma: float) -> None:
    beyond = np.arange(table_reach(noise, sigma) + 1, 3 * table_reach(noise, sigma) + 60)
    assert 2 * exact(noise, sigma, beyond).sum() < 2.0**-64 < table_error(noise, sigma) < 1e-15


@pytest.mark.parametrize(("noise", "sigma"), CASES)
@pytest.mark.parametrize("log_chance", [1.0, 5.0, 20.0])
def test_the_bound_of_the_tail_is_one(noise: NoiseKind, sigma: float, log_chance: float) -> None:
    least = math.ceil(tail_bound(noise, sigma**2, log_chance))
    values = np.arange(least, least + 60 * math.ceil(sigma))
    assert exact(noise, sigma, values).sum() <= math.exp(-log_chance)
