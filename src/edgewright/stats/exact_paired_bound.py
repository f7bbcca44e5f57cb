"""An exact upper bound on the drop of a 0/1 score, from the pairs on which two models disagree.

Of n samples, `lost` were right with the original and wrong with the candidate, `gained` the reverse: a trinomial
outcome with rates p and q, whose drop is p - q. The bound is Buehler's: order all outcomes by an approximate bound
(the limit of the signed root of the likelihood ratio), and take the largest drop under which an outcome at least
as good as the observed one still has probability alpha, for the worst q (Buehler 1957; for paired proportions Lloyd
and Moldovan 2007).

Three facts make it exact and not merely accurate. The outcomes that look at least as good form a set that more
losses leave and more gains enter, so its probability falls in p and rises in q, and one drop that is rejected
rejects all greater ones. The worst q is sought in a Clopper-Pearson interval that misses it with probability gamma,
which is taken off alpha (Berger and Boos 1994). Between two values of q the probability is bounded, not guessed:
its second derivative is E[(S^2 + S') 1_A] with the score S, so the probability rises above a chord by no more than
E[-S' 1_A] allows.
"""

import math

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

__all__ = ["clopper_pearson_bounds", "exact_drop_bound", "likelihood_ratio_limit"]

_Floats = NDArray[np.float64]

# Share of alpha spent on the interval for the rate of gains: moves the bound by less than 1e-5 of itself.
_NUISANCE_ALPHA_SHARE = 1e-5
# Probability that truncated sums may leave out; it is added to what they give.
_TRUNCATED_PROBABILITY = 1e-13
# The proof is tried this many standard errors above the numerical solution, then wider.
_PROOF_MARGINS = (1e-3, 8e-3, 6.4e-2, 0.5, 4.0)
# Values of q at which one margin may evaluate the probability.
_MAX_EVALUATIONS = 600


def clopper_pearson_bounds(successes: int, sample_count: int, alpha: float) -> tuple[float, float]:
    """Return one-sided lower and upper bounds of a rate, each at level 1 - alpha.

    Source: Clopper and Pearson 1934.

    >>> round(clopper_pearson_bounds(0, 600, 0.05)[1], 6)
    0.00498
    """
    lower = 0.0 if successes == 0 else float(special.betaincinv(successes, sample_count - successes + 1, alpha))
    upper = (
        1.0
        if successes == sample_count
        else float(special.betainccinv(successes + 1, sample_count - successes, alpha))
    )
    return lower, upper


def likelihood_ratio_limit(losses: float, gains: float, sample_count: float, alpha: float) -> float:
    """Return the drop at which the likelihood ratio reaches level 1 - alpha: close to it, but not guaranteed.

    Counts may be fractional, for planning.
    """
    z = -float(special.ndtri(alpha))
    drop = (losses - gains) / sample_count

    def excess(delta: float) -> float:
        return (
            float(
                _signed_root_likelihood_ratio(
                    np.asarray(losses, np.float64), np.asarray(gains, np.float64), sample_count, delta
                )
            )
            + z
        )

    top = 1 - 1e-12
    if drop >= top or excess(top) > 0:
        return 1.0
    return float(optimize.brentq(excess, drop, top, xtol=1e-15))


def exact_drop_bound(losses: int, gains: int, sample_count: int, alpha: float) -> float:
    """Return an upper confidence bound of the drop that holds with probability 1 - alpha for any rates and any n.

    The lower bound is minus the upper bound of the gain: `-exact_bound(gained, lost, samples, alpha)`.

    Args:
        losses: Samples that only the original has right.
        gains: Samples that only the candidate has right.
        sample_count: All samples.
        alpha: One-sided error, between 0 and 0.5.

    Raises:
        ValueError: Impossible counts or alpha.

    >>> round(exact_drop_bound(0, 0, 600, 0.05), 5)
    0.00498
    """
    if min(losses, gains) < 0 or sample_count < 1 or losses + gains > sample_count:
        raise ValueError(f"{losses} lost and {gains} gained of {sample_count} samples")
    if not 0 < alpha <= 0.5:
        raise ValueError(f"alpha is {alpha}")
    if losses == sample_count:
        return 1.0
    level = alpha * (1 - _NUISANCE_ALPHA_SHARE)
    limit = likelihood_ratio_limit(losses, gains, sample_count, alpha)
    least, most = clopper_pearson_bounds(gains, sample_count, alpha * _NUISANCE_ALPHA_SHARE / 2)
    event = _RejectionEvent(losses, gains, sample_count, limit, (least, most))
    middle = (losses - gains) / sample_count
    scale = max(limit - middle, 1 / sample_count) / max(1.0, -float(special.ndtri(alpha)))

    def excess(delta: float) -> float:
        return event.max_on_grid(delta) - level

    low, high = middle, min(limit + scale, 1.0)
    while high < 1 and excess(high) > 0:
        low, high = high, min(high + 2 * scale, 1.0)
    root = low
    if excess(low) > 0:
        root = high if excess(high) > 0 else float(optimize.brentq(excess, low, high, xtol=1e-8 * scale))
    # Without losses the worst q is usually zero and the solution itself can be proved.
    for margin in (1e-6, *_PROOF_MARGINS) if losses == 0 else _PROOF_MARGINS:
        delta = root + margin * scale
        if delta >= 1:
            break
        if event.is_below_level(delta, level):
            return delta
    return _bonferroni_bound(losses, gains, sample_count, alpha)


def _bonferroni_bound(losses: int, gains: int, sample_count: int, alpha: float) -> float:
    """Return the Bonferroni bound: loose, and valid whatever the arithmetic above ran into."""
    return (
        clopper_pearson_bounds(losses, sample_count, alpha / 2)[1]
        - clopper_pearson_bounds(gains, sample_count, alpha / 2)[0]
    )


def _signed_root_likelihood_ratio(losses: _Floats, gains: _Floats, sample_count: float, delta: float) -> _Floats:
    """Return the signed root of the likelihood ratio for a drop; very negative speaks for a smaller one."""
    # The likeliest q at this drop solves 2 n q^2 + linear q + constant = 0 (Tango 1998).
    linear = -losses - gains + (2 * sample_count - losses + gains) * delta
    constant = -gains * delta * (1 - delta)
    root = np.sqrt(np.maximum(linear**2 - 8 * sample_count * constant, 0))
    # Whichever form adds rather than cancels.
    q = np.where(
        linear < 0, (root - linear) / (4 * sample_count), -2 * constant / np.maximum(root + linear, 1e-300)
    )
    q = np.clip(q, max(0.0, -delta), (1 - delta) / 2)
    rest = sample_count - losses - gains
    ratio = (
        special.rel_entr(losses, sample_count * (q + delta))
        + special.rel_entr(gains, sample_count * q)
        + special.rel_entr(rest, sample_count * np.maximum(1 - delta - 2 * q, 0))
    )
    sign = np.sign(losses - gains - sample_count * delta)
    return np.asarray(sign * np.sqrt(2 * np.maximum(ratio, 0)))


def _event_probability(gains: _Floats, losses: _Floats, sample_count: int, p: _Floats, q: _Floats) -> _Floats:
    """Return the chance, rounded up, of at most losses[i] losses with gains[i] gains for some i.

    Args:
        gains: Shape [window], consecutive counts outside of which the tails are negligible.
        losses: Shape [window], -1 for none allowed.
        sample_count: All samples.
        p: Shape [rates], rate of losses.
        q: Shape [rates], rate of gains.
    """
    p, q, rest = p[:, None], q[:, None], sample_count - gains
    log_choose = special.gammaln(sample_count + 1) - special.gammaln(gains + 1) - special.gammaln(rest + 1)
    mass = np.exp(log_choose + special.xlogy(gains, q) + special.xlog1py(rest, -q))
    counted = mass > _TRUNCATED_PROBABILITY / gains.size
    share = np.broadcast_to(np.minimum(p / np.maximum(1 - q, 1e-300), 1.0), mass.shape)[counted]
    losses, rest = (np.broadcast_to(values, mass.shape)[counted] for values in (losses, rest))
    below = special.betaincc(np.maximum(losses, 0) + 1, np.maximum(rest - losses, 1e-300), share)
    total = np.zeros_like(mass)
    total[counted] = mass[counted] * np.where(losses < 0, 0.0, np.where(losses >= rest, 1.0, below))
    # What lies outside the window, on either side, and what was too small to count.
    return np.asarray(total.sum(axis=1) + 4 * _TRUNCATED_PROBABILITY)


class _RejectionEvent:
    """The outcomes that look at least as good as the observed one: per count of gains, the most losses."""

    def __init__(self, lost: int, gained: int, sample_count: int, limit: float, rates: tuple[float, float]) -> None:
        self.samples = sample_count
        self.rates = rates
        first = math.floor(special.bdtrik(_TRUNCATED_PROBABILITY, sample_count, rates[0])) if rates[0] > 0 else 0
        last = (
            math.ceil(special.bdtrik(1 - _TRUNCATED_PROBABILITY, sample_count, rates[1]))
            if rates[1] < 1
            else sample_count
        )
        self.gains = np.arange(max(first, 0), min(last + 1, sample_count) + 1, dtype=np.float64)
        self.losses = self._losses_allowed(lost, gained, limit)

    def _losses_allowed(self, lost: int, gained: int, limit: float) -> _Floats:
        """Bisect, for each count of gains, the most losses whose score limit is at most the observed one."""
        observed = _signed_root_likelihood_ratio(
            np.asarray(lost, np.float64), np.asarray(gained, np.float64), self.samples, limit
        )
        threshold = observed + 1e-9 * max(1.0, abs(float(observed)))
        low = np.full_like(self.gains, -1.0)
        high = self.samples - self.gains + 1
        while ((high - low) > 1).any():
            middle = np.floor((low + high) / 2)
            inside = _signed_root_likelihood_ratio(middle, self.gains, self.samples, limit) <= threshold
            low, high = np.where(inside, middle, low), np.where(inside, high, middle)
        # The observed outcome belongs, and the set only grows with gains, whatever rounding says.
        low[(self.gains >= gained) & (low < lost)] = lost
        low = np.maximum.accumulate(low)
        return np.asarray(np.minimum(low, self.samples - self.gains))

    def _gain_rate_range(self, delta: float) -> tuple[float, float]:
        """Return the least and greatest q to look at; empty if the two cross.

        Below q = -delta a greater drop has p > 0 and fewer gains: the event is likelier at p = 0 and q = -delta,
        or at the interval's end if that comes first.
        """
        least, most = self.rates
        return max(least, min(-delta, most)), min(most, (1 - delta) / 2)

    def _probability_at(self, delta: float, q: _Floats) -> _Floats:
        """Return the probability at gains q for one drop."""
        return _event_probability(self.gains, self.losses, self.samples, np.maximum(q + delta, 0.0), q)

    def _gain_rate_grid(self, delta: float, cells: int) -> _Floats:
        low, high = self._gain_rate_range(delta)
        return np.asarray(np.linspace(math.sqrt(low), math.sqrt(high), cells + 1) ** 2).clip(low, high)

    def max_on_grid(self, delta: float) -> float:
        """Return the event's greatest probability on a grid of q."""
        low, high = self._gain_rate_range(delta)
        if low > high:
            return 0.0
        q = self._gain_rate_grid(delta, 40)
        return float(self._probability_at(delta, q).max())

    def is_below_level(self, delta: float, level: float) -> bool:
        """Whether the event's probability is at most `level` for every q, by branch and bound over q."""
        low, high = self._gain_rate_range(delta)
        if low > high:
            return True
        edges = self._gain_rate_grid(delta, 40)
        left, right = edges[:-1], edges[1:]
        at_edges = self._probability_at(delta, edges)
        at_left, at_right = at_edges[:-1], at_edges[1:]
        share = self._curvature_shares(delta, edges)
        evaluations = 2 * edges.size
        while left.size and max(at_left.max(), at_right.max()) <= level:
            curvature = share * np.maximum(
                self._fisher_information(left, delta), self._fisher_information(right, delta)
            )
            bound = np.maximum(at_left, at_right) + (right - left) ** 2 / 8 * curvature
            # Where a rate reaches zero the curvature has no bound: take fewest losses with most gains instead.
            edge = np.isinf(curvature)
            bound[edge] = _event_probability(
                self.gains, self.losses, self.samples, np.maximum(left[edge] + delta, 0.0), right[edge]
            )
            open_ = bound > level
            left, right, share = left[open_], right[open_], share[open_]
            at_left, at_right = at_left[open_], at_right[open_]
            evaluations += left.size
            if evaluations > _MAX_EVALUATIONS:
                return False
            middle = (left + right) / 2
            at_middle = self._probability_at(delta, middle)
            left, right, share = np.concatenate([left, middle]), np.concatenate([middle, right]), np.tile(share, 2)
            at_left, at_right = np.concatenate([at_left, at_middle]), np.concatenate([at_middle, at_right])
        return not left.size

    def _curvature_shares(self, delta: float, edges: _Floats) -> _Floats:
        """Return, for each cell between edges, the share of the Fisher information that can bend it down.

        -E[(S^2 + S') 1_A] is at most E[-S' 1_A], which is a mean of the information's three terms weighted with the
        chances that n - 1 samples and a loss, a gain, or neither make the event. One more gain makes it likeliest;
        over a cell, fewest losses with most gains do.
        """
        losses = np.append(self.losses[1:], self.samples)
        losses = np.minimum(losses, self.samples - 1 - self.gains)
        inside = self.gains < self.samples
        fewest, most = np.maximum(edges[:-1] + delta, 0.0), edges[1:]
        return _event_probability(self.gains[inside], losses[inside], self.samples - 1, fewest, most)

    def _fisher_information(self, q: _Floats, delta: float) -> _Floats:
        """Return the Fisher information about q at a fixed drop; convex, so greatest at a cell's ends."""
        with np.errstate(divide="ignore"):
            rest = np.maximum(1 - delta - 2 * q, 0)
            return np.asarray(self.samples * (1 / q + 1 / np.maximum(q + delta, 0) + 4 / rest))
