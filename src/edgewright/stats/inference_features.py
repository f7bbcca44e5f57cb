"""Which statistics of an inference are watched, and their values from what `look` saw.

Of the input: extremes, mean, spread and roughness of the whole, mean and spread of each channel. Of the answer:
`confidence` (the greatest probability), `margin` (the greatest less the second), `energy` (log of the sum of
exponentials: Liu et al. 2020, arXiv:2010.03759) and the `class`. Confidence alone would not do: under sensor noise
its mean can rise while accuracy falls.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewright.stats.input_stats import InputLayout, summarize_inputs, summarize_scores

__all__ = ["answer_features", "features_of_rows", "features_of_samples", "signal_names"]

_Floats = NDArray[np.float64]
_ANSWER_FEATURES = {
    "logits": ("confidence", "margin", "energy", "class"),
    "probabilities": ("confidence", "margin", "class"),
}


def signal_names(layout: InputLayout, scores: str) -> tuple[str, ...]:
    """Return the names of all statistics.

    Args:
        layout: Of a sample and its output.
        scores: `logits`, `probabilities` or "".

    >>> signal_names(InputLayout(10, output_scores=3), "logits")[-4:]
    ('confidence', 'margin', 'energy', 'class')
    """
    return (*layout.columns[2:-4], *_ANSWER_FEATURES.get(scores, ()))


def features_of_rows(rows: _Floats, scores: str) -> _Floats:
    """Return the statistics of what a ring held.

    Args:
        rows: Shape [inferences, columns of the layout].
        scores: `logits`, `probabilities` or "".

    Returns:
        Shape [inferences, statistics], in the order of `signal_names`.
    """
    return np.concatenate([rows[:, 2:-4], answer_features(rows[:, -4:], scores)], axis=1)


def features_of_samples(
    samples: NDArray[Any], outputs: NDArray[Any] | None, layout: InputLayout, scores: str
) -> _Floats:
    """Return the statistics of samples and what a model answered to them.

    Args:
        samples: Shape [samples, ...].
        outputs: Shape [samples, classes]; None if there are no scores.
        layout: Of a sample and its output.
        scores: `logits`, `probabilities` or "".

    Returns:
        Shape [samples, statistics], in the order of `signal_names`.
    """
    found = summarize_inputs(samples, layout)
    if outputs is None:
        return found
    return np.concatenate([found, answer_features(summarize_scores(outputs), scores)], axis=1)


def answer_features(columns: _Floats, scores: str) -> _Floats:
    """Return the statistics of answers: confidence first, if there are scores.

    Args:
        columns: From `conclusions`, shape [samples, 4].
        scores: `logits`, `probabilities` or "".
    """
    greatest, second, total, label = columns.T
    known: Mapping[str, _Floats] = {
        "confidence": np.exp(greatest - total) if scores == "logits" else greatest,
        "margin": greatest - second,
        "energy": total,
        "class": label,
    }
    names = _ANSWER_FEATURES.get(scores, ())
    return np.stack([known[name] for name in names], axis=1) if names else np.empty((len(columns), 0))
