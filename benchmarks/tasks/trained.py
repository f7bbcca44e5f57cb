"""The tasks with labels: what each network is trained on, and what it never sees before it is judged."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["TASKS", "TRAINING_TASKS", "Material", "Task"]

_Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Material:
    """Data of one task.

    Attributes:
        train: x, y and perhaps the group of each sample, for training.
        held: x, y and perhaps the group of each sample; Edgewright divides it into calibrate, select and certify,
            and every peer calibrates and is judged on the same parts.
    """

    train: _Arrays
    held: _Arrays


@dataclass(frozen=True, slots=True)
class Task:
    """A network on data.

    Attributes:
        name: Of the task; figures are called after it.
        title: For people.
        network: Name in `peers/train.py`.
        max_drops: Limits in the order in which they are tried; the first that is certified is stated.
        group: Array of `held` that holds the groups, None for independent samples.
        load: From the shared data's folder to the material.
        least_accuracy: That the network must reach on what is held back, None without such a demand.
        least_samples: That must be left to certify on, None without such a demand.
    """

    name: str
    title: str
    network: str
    max_drops: tuple[float, ...]
    group: str | None
    load: Callable[[Path], Material]
    least_accuracy: float | None = None
    least_samples: int | None = None


def fashion(shared: Path) -> Material:
    """Fashion-MNIST in its original split: 60,000 images to train on, 10,000 held back."""
    with np.load(shared / "fashion_mnist.npz", allow_pickle=False) as file:
        arrays = {name: file[name] for name in ("X_train", "y_train", "X_test", "y_test")}

    def scaled(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return ((images[:, None].astype(np.float32) / 255 - 0.286) / 0.353).astype(np.float32)

    return Material(
        train={"x": scaled(arrays["X_train"]), "y": arrays["y_train"]},
        held={"x": scaled(arrays["X_test"]), "y": arrays["y_test"]},
    )


# Of the 50 recordings of each digit by each of six speakers, those from this one on are trained on. Edgewright
# takes half of the others to calibrate and to select; that leaves more than 900 to certify on.
_FIRST_TRAINED_RECORDING = 31


def spoken_digits(shared: Path) -> Material:
    """1,140 recordings to train on, 1,860 held back: the official test set and others by the same speakers."""
    with np.load(shared / "fsdd.npz", allow_pickle=False) as file:
        x, y, index, is_test = (file[name] for name in ("logmel", "y", "index", "is_test"))
    trained = index >= _FIRST_TRAINED_RECORDING
    assert not (trained & is_test).any()
    x = x.astype(np.float32)[:, None]
    x = (x - x[trained].mean()) / x[trained].std()
    return Material(train={"x": x[trained], "y": y[trained]}, held={"x": x[~trained], "y": y[~trained]})


_TRAINED_SUBJECTS = 20


def wearable(shared: Path) -> Material:
    """Windows of a wrist-worn sensor by 46 people: 20 to train on, 26 held back, chosen evenly by number."""
    with np.load(shared / "wisdm51_watch.npz", allow_pickle=False) as file:
        x = np.concatenate([file["X_train"], file["X_test"]]).astype(np.float32)
        y = np.concatenate([file["y_train"], file["y_test"]])
        subject = np.concatenate([file["subject_train"], file["subject_test"]])
    subjects = np.unique(subject)
    picks = np.linspace(0, len(subjects) - 1, _TRAINED_SUBJECTS).round().astype(int)
    trained = np.isin(subject, subjects[picks])
    x = (x - x[trained].mean((0, 1))) / x[trained].std((0, 1))
    return Material(
        train={"x": x[trained], "y": y[trained], "subject": subject[trained]},
        held={"x": x[~trained], "y": y[~trained], "subject": subject[~trained]},
    )


TASKS = (
    Task("fashion", "residual network, Fashion-MNIST", "residual", (0.005,), None, fashion),
    Task("digits", "depthwise-separable network, spoken digits", "separable", (0.01,), None, spoken_digits),
    Task("wearable", "matrices, WISDM by subject", "matrix", (0.005, 0.01, 0.02, 0.03, 0.05), "subject", wearable),
)

TRAINING_TASKS = (
    Task(
        "fashion-train",
        "residual network at full resolution, Fashion-MNIST",
        "residual-full",
        (0.01,),
        None,
        fashion,
        least_accuracy=0.92,
    ),
    Task(
        "digits-train",
        "residual network, spoken digits",
        "residual-sound",
        (0.01,),
        None,
        spoken_digits,
        least_samples=900,
    ),
    Task("wearable-train", "residual network over time, WISDM", "residual-windows", (0.03,), "subject", wearable),
)
"""Tasks for tools that train: they are given the teacher's own training data as well."""
