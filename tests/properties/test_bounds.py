import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewright.compress.certify.certificate import min_samples_to_certify
from edgewright.compress.certify.look_ledger import alpha_of_look
from edgewright.stats.exact_paired_bound import clopper_pearson_bounds, exact_drop_bound
from edgewright.stats.paired_bounds import betting_bound

alphas = st.sampled_from([0.2, 0.05, 0.025, 0.0083, 0.001])


@st.composite
def counts(draw: st.DrawFn) -> tuple[int, int, int]:
    samples = draw(st.integers(2, 3000))
    lost = draw(st.integers(0, min(samples - 1, 60)))
    return lost, draw(st.integers(0, min(samples - 1 - lost, 60))), samples


@settings(max_examples=60, deadline=None)
@given(counts(), alphas)
def test_more_losses_never_look_better_and_more_gains_never_worse(
    outcome: tuple[int, int, int], alpha: float
) -> None:
    lost, gained, samples = outcome
    bound = exact_drop_bound(lost, gained, samples, alpha)
    # The proof's margin is a thousandth of a standard error.
    slack = 1e-3 * max(bound - (lost - gained) / samples, 1 / samples)
    assert exact_drop_bound(lost + 1, gained, samples, alpha) >= bound - slack
    assert exact_drop_bound(lost, gained + 1, samples, alpha) <= bound + slack


@settings(max_examples=60, deadline=None)
@given(counts(), alphas)
def test_a_bound_lies_between_the_observed_drop_and_the_crude_bound(
    outcome: tuple[int, int, int], alpha: float
) -> None:
    lost, gained, samples = outcome
    crude = (
        clopper_pearson_bounds(lost, samples, alpha / 2)[1] - clopper_pearson_bounds(gained, samples, alpha / 2)[0]
    )
    assert (lost - gained) / samples <= exact_drop_bound(lost, gained, samples, alpha) <= crude + 1e-12
    assert -exact_drop_bound(gained, lost, samples, alpha) <= exact_drop_bound(lost, gained, samples, alpha)


@settings(max_examples=40, deadline=None)
@given(counts(), st.sampled_from([(0.2, 0.05), (0.05, 0.01)]))
def test_more_confidence_never_tightens(outcome: tuple[int, int, int], levels: tuple[float, float]) -> None:
    lost, gained, samples = outcome
    loose, strict = (exact_drop_bound(lost, gained, samples, alpha) for alpha in levels)
    assert strict >= loose


@settings(max_examples=60, deadline=None)
@given(st.floats(0.002, 0.5), st.sampled_from([0.8, 0.95, 0.99]), st.integers(1, 30))
def test_the_least_samples_certify_and_one_fewer_never_does(max_drop: float, confidence: float, look: int) -> None:
    samples = min_samples_to_certify(max_drop, confidence, look)
    alpha = alpha_of_look(1 - confidence, look)
    assert exact_drop_bound(0, 0, samples, alpha) <= max_drop
    assert samples == 1 or 1 - alpha ** (1 / (samples - 1)) > max_drop * (1 - 1e-4)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=60), st.integers(0, 59), st.floats(0, 1))
def test_a_greater_loss_never_lowers_the_betting_bound(values: list[float], place: int, more: float) -> None:
    differences = np.array(values)
    worse = differences.copy()
    worse[place % worse.size] = min(1.0, worse[place % worse.size] + more)
    bound = betting_bound(differences, 0.05, -1, 1)
    assert differences.mean() - 1e-9 <= bound <= 1
    assert betting_bound(worse, 0.05, -1, 1) >= bound - 1e-9
