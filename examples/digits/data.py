"""Scikit-learn's handwritten digits: which of them the model was trained on, and which it never saw."""

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

TRAINING_SAMPLES = 597


def shuffled_digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return all 1,797 digits in one fixed order: [n, 1, 8, 8] of 0 to 1, and their labels [n]."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(20261120).permutation(len(labels))
    x = (images[order] / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    return x, labels[order].astype(np.int64)


def training() -> dict[str, NDArray[np.float32] | NDArray[np.int64]]:
    """Return the 597 digits that the model was trained on, as `edgewright compress --train` takes them."""
    x, y = shuffled_digits()
    return {"x": x[:TRAINING_SAMPLES], "y": y[:TRAINING_SAMPLES]}


def held_out() -> dict[str, NDArray[np.float32] | NDArray[np.int64]]:
    """Return the 1,200 digits that the model never saw, as `edgewright compress --data` takes them."""
    x, y = shuffled_digits()
    return {"x": x[TRAINING_SAMPLES:], "y": y[TRAINING_SAMPLES:]}
