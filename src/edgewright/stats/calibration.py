"""Confidence that means something: scaling of logits, and how far confidence is from the truth. numpy alone.

A temperature divides all logits by one number and changes no answer. Vector scaling has a factor and a shift per
class; it can mend classes that are favoured, and can change answers. Both are convex and fitted by Newton's method.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ExpectedCalibrationError",
    "LogitScaling",
    "are_probabilities",
    "brier_score",
    "expected_calibration_error",
    "fit_temperature_scaling",
    "fit_vector_scaling",
    "log_probabilities",
    "negative_log_likelihood",
    "softmax",
]

_Floats = NDArray[np.float64]

_MAX_ITERATIONS = 100
_GRADIENT_TOLERANCE = 1e-9
# A temperature is sought between these, in units of the logits' spread.
_MIN_SCALE, _MAX_SCALE = 1e-3, 1e3
# Probabilities that were computed in single precision sum up to 1 as well as this.
_SUM_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class LogitScaling:
    """Logits become `scale * logits + shift`.

    Attributes:
        scale: Shape [1], one over the temperature, or [classes].
        bias: Shape [1], zero for a temperature, or [classes].
    """

    scale: _Floats
    bias: _Floats

    def apply(self, logits: NDArray[Any]) -> _Floats:
        """Return the scaled logits, shape [samples, classes]."""
        return np.asarray(logits, np.float64) * self.scale + self.bias


@dataclass(frozen=True, slots=True)
class ExpectedCalibrationError:
    """How far confidence and hit rate differ over bins.

    Attributes:
        plugin: Mean distance as it is seen; above zero even for a perfect model, by chance.
        debiased: The same less what chance adds, at least 0.
        rms: Root of the mean squared distance; its square is unbiased before it is cut at 0.
    """

    plugin: float
    debiased: float
    rms: float


def are_probabilities(scores: NDArray[Any]) -> bool:
    """Whether each row holds shares of one, as well as single precision adds them up."""
    values = np.asarray(scores, np.float64)
    return bool(values.min() >= 0 and np.abs(values.sum(axis=1) - 1).max() < _SUM_TOLERANCE)


def log_probabilities(probabilities: NDArray[Any]) -> _Floats:
    """Return logarithms, which serve as logits; a probability of 0 counts as the least normal float32."""
    return np.asarray(np.log(np.maximum(np.asarray(probabilities, np.float64), np.finfo(np.float32).tiny)))


def softmax(logits: NDArray[Any]) -> _Floats:
    """Return probabilities, shape [samples, classes]; a single column is the logit of yes and gives no and yes."""
    values = _class_logits(logits)
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def fit_temperature_scaling(logits: NDArray[Any], labels: NDArray[Any]) -> LogitScaling:
    """Return the one factor under which the labels are likeliest.

    Args:
        logits: Shape [samples, classes], of samples that the model was not trained on.
        labels: Shape [samples], from 0.

    Returns:
        The factor, greater than 0. It is finite even where every answer is right: targets are softened by one
        sample's worth of doubt, spread over the classes (as Platt 1999 does for two).

    Raises:
        ValueError: No samples, labels that are no class, logits that are not finite or all equal.

    Source: Guo et al. 2017, arXiv:1706.04599, section 4.2.
    """
    values, targets = _logits_and_targets(logits, labels)
    # Only differences between logits count, and only they tell a scale.
    values = values - values.mean(axis=1, keepdims=True)
    spread = float(np.sqrt(np.square(values).mean()))
    if spread == 0:
        raise ValueError("all logits of each sample are equal: no temperature can be told")
    wanted = float((targets * values).sum(axis=1).mean())
    low, high = min(1.0, _MIN_SCALE / spread), max(1.0, _MAX_SCALE / spread)  # as it is, is always allowed
    factor = 1.0
    for _ in range(_MAX_ITERATIONS):
        chances = softmax(factor * values)
        means = (chances * values).sum(axis=1)
        slope = float(means.mean()) - wanted
        if abs(slope) <= _GRADIENT_TOLERANCE * spread:
            break
        low, high = (factor, high) if slope < 0 else (low, factor)
        curve = float(((chances * np.square(values)).sum(axis=1) - np.square(means)).mean())
        newton = factor - slope / curve if curve > 0 else math.inf
        # Newton's step where it stays between the bounds, else their middle: the slope rises with the factor.
        factor = newton if low < newton < high else math.sqrt(low * high)
    return LogitScaling(np.array([factor]), np.zeros(1))


def fit_vector_scaling(logits: NDArray[Any], labels: NDArray[Any], *, prior_strength: float = 1.0) -> LogitScaling:
    """Return a factor and a shift per class.

    Args:
        logits: Shape [samples, classes], of samples that the model was not trained on; at least two classes.
        labels: Shape [samples], from 0.
        prior_strength: How strongly factors are held to the temperature's and shifts to zero, in samples; without it a
            class of few samples would be fitted to them.

    Raises:
        ValueError: As `fit_temperature_scaling`, or a single column of logits.

    Source: vector scaling, Guo et al. 2017, arXiv:1706.04599, section 4.2, with a Gaussian prior.
    """
    if np.ndim(logits) != 2 or np.shape(logits)[1] < 2:
        raise ValueError(f"vector scaling needs two classes or more, the logits are {np.shape(logits)}")
    factor = float(fit_temperature_scaling(logits, labels).scale[0])
    values, targets = _logits_and_targets(logits, labels)
    samples, classes = values.shape
    means = values.mean(axis=0)
    # Centred and brought to one spread, factors and shifts weigh alike and the steps are well conditioned.
    spread = float(np.sqrt(np.square(values - means).mean()))
    scaled = (values - means) / spread
    start = np.concatenate([np.full(classes, factor * spread), factor * (means - means.mean())])

    def loss(at: _Floats) -> float:
        raised = scaled * at[:classes] + at[classes:]
        likelihood = float((_log_sum_exp(raised) - (targets * raised).sum(axis=1)).sum())
        return likelihood + prior_strength / 2 * float(np.square(at - start).sum())

    def slopes(at: _Floats) -> tuple[_Floats, _Floats]:
        chances = softmax(scaled * at[:classes] + at[classes:])
        error = chances - targets
        gradient = np.concatenate([(error * scaled).sum(axis=0), error.sum(axis=0)]) + prior_strength * (at - start)
        weighted = np.hstack([chances * scaled, chances])
        diagonal = np.concatenate([(weighted[:, :classes] * scaled).sum(axis=0), chances.sum(axis=0)])
        hessian = np.diag(diagonal + prior_strength) - weighted.T @ weighted
        mixed = np.arange(classes), np.arange(classes) + classes
        hessian[mixed] += weighted[:, :classes].sum(axis=0)
        hessian[mixed[::-1]] += weighted[:, :classes].sum(axis=0)
        return gradient, hessian

    found = _minimize_newton(start, loss, slopes, _GRADIENT_TOLERANCE * samples)
    scale = found[:classes] / spread
    shift = found[classes:] - scale * means
    return LogitScaling(scale, shift - shift.mean())


def negative_log_likelihood(probabilities: NDArray[Any], labels: NDArray[Any]) -> float:
    """Return the mean negative log likelihood of the labels, nats; a probability of 0 counts as the least float."""
    values = np.asarray(probabilities, np.float64)
    given = values[np.arange(len(values)), np.asarray(labels, np.intp)]
    return float(-np.log(np.maximum(given, np.finfo(np.float64).tiny)).mean())


def brier_score(probabilities: NDArray[Any], labels: NDArray[Any]) -> float:
    """Return the mean squared distance between probabilities and truth, 0 to 2 (Brier 1950, over all classes)."""
    errors = np.array(probabilities, np.float64)
    errors[np.arange(len(errors)), np.asarray(labels, np.intp)] -= 1
    return float(np.square(errors).sum(axis=1).mean())


def expected_calibration_error(
    confidence: NDArray[Any], correct: NDArray[Any], *, bin_count: int = 15
) -> ExpectedCalibrationError:
    """Return the distance between confidence and hit rate, over bins of equally many samples.

    Args:
        confidence: Shape [samples], of the answers given.
        correct: Shape [samples], whether they were right.
        bin_count: How many; fewer where a bin would have less than two samples.

    Raises:
        ValueError: Fewer than two samples.

    Source: Kumar et al. 2019, arXiv:1909.10155: its equation for the debiased squared error, and for the plain
    one its Gaussian model of a bin, of which chance adds E|N(gap, variance)| - |gap| (the folded normal's mean).
    """
    sure, right = np.asarray(confidence, np.float64), np.asarray(correct, np.float64)
    if sure.ndim != 1 or sure.shape != right.shape or sure.size < 2:
        raise ValueError(f"{sure.shape} confidences and {right.shape} hits")
    order = np.argsort(sure, kind="stable")
    plain = chance = squared = 0.0
    for part in np.array_split(order, max(1, min(bin_count, sure.size // 2))):
        rate, weight = float(right[part].mean()), part.size / sure.size
        gap = abs(rate - float(sure[part].mean()))
        variance = rate * (1 - rate) / (part.size - 1)
        plain += weight * gap
        chance += weight * (_folded_normal_mean(gap, variance) - gap)
        squared += weight * (gap**2 - variance)
    return ExpectedCalibrationError(plain, max(0.0, plain - chance), math.sqrt(max(0.0, squared)))


def _folded_normal_mean(mean: float, variance: float) -> float:
    """Return the mean of a normal's absolute value."""
    if variance == 0:
        return abs(mean)
    spread = math.sqrt(variance)
    density = spread * math.sqrt(2 / math.pi) * math.exp(-(mean**2) / (2 * variance))
    return density + mean * math.erf(mean / (spread * math.sqrt(2)))


def _minimize_newton(
    start: _Floats,
    loss: Callable[[_Floats], float],
    derivatives: Callable[[_Floats], tuple[_Floats, _Floats]],
    gradient_tolerance: float,
) -> _Floats:
    """Minimise a strictly convex function by Newton steps that are halved until they descend."""
    at, value = start, loss(start)
    for _ in range(_MAX_ITERATIONS):
        gradient, hessian = derivatives(at)
        if float(np.abs(gradient).max()) <= gradient_tolerance:
            break
        step = np.linalg.solve(hessian, gradient)
        length, descent = 1.0, float(gradient @ step)
        while length > 1e-8:
            further = loss(at - length * step)
            if further <= value - 1e-4 * length * descent:
                break
            length /= 2
        else:
            break  # rounding leaves nothing to gain
        at, value = at - length * step, further
    return at


def _log_sum_exp(values: _Floats) -> _Floats:
    peak = values.max(axis=1)
    return np.asarray(peak + np.log(np.exp(values - peak[:, None]).sum(axis=1)))


def _class_logits(logits: NDArray[Any]) -> _Floats:
    values = np.asarray(logits, np.float64)
    if values.ndim != 2 or values.shape[1] < 1:
        raise ValueError(f"logits have the shape {values.shape}, not [samples, classes]")
    # A sigmoid is a softmax over the logit and zero.
    return np.hstack([np.zeros_like(values), values]) if values.shape[1] == 1 else values


def _logits_and_targets(logits: NDArray[Any], labels: NDArray[Any]) -> tuple[_Floats, _Floats]:
    """Return the logits and softened targets, both [samples, classes]."""
    values, given = _class_logits(logits), np.asarray(labels)
    samples, classes = values.shape
    if samples < 1 or given.shape != (samples,) or not np.isfinite(values).all():
        raise ValueError(f"{values.shape} logits, finite ones, need as many labels; these are {given.shape}")
    if given.min() < 0 or given.max() >= classes:
        raise ValueError(f"labels from {given.min()} to {given.max()} for {classes} classes")
    doubt = 1 / (samples + 2)
    targets = np.full((samples, classes), doubt / classes)
    targets[np.arange(samples), given.astype(np.intp)] += 1 - doubt
    return values, targets
