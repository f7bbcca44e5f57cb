"""Populations of signals from real data: what a monitor would see of each sample, before and after a change."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from benchmarks.report import ROOT
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

__all__ = [
    "DATA",
    "IMAGE_SIGNALS",
    "WINDOW_SIGNALS",
    "Draw",
    "Images",
    "Series",
    "Windows",
    "images",
    "series",
    "windows",
]

DATA = ROOT.parent / "shared" / "data"
IMAGE_SIGNALS = ("mean", "spread", "least", "greatest", "high frequencies", "confidence", "class")
WINDOW_SIGNALS = (
    "mean x",
    "mean y",
    "mean z",
    "spread",
    "least",
    "greatest",
    "high frequencies",
    "rotation",
    "confidence",
    "class",
)

Floats = NDArray[np.float64]
Draw = Callable[[int, np.random.Generator], Floats]


@dataclass(frozen=True, slots=True)
class Images:
    """Fashion-MNIST images that no model was fitted on.

    Attributes:
        clean: Shape [images, signals].
        labels: Shape [images].
        changed: Shape [images, signals] each, of the last images.
    """

    clean: Floats
    labels: NDArray[np.int64]
    changed: dict[str, Floats]

    def draw(self, rows: int, random: np.random.Generator) -> Floats:
        """Return independent samples of the population."""
        return self.clean[random.integers(len(self.clean), size=rows)]

    def draw_changed(self, change: str, rows: int, random: np.random.Generator) -> Floats:
        """Return samples after a change; the gradual one is complete after 5,000."""
        if change == "prior":
            weights = np.where(self.labels < 3, 2.0, 1.0)
            return self.clean[random.choice(len(self.clean), rows, p=weights / weights.sum())]
        if change == "gradual":
            share = np.minimum(np.arange(rows) / 5000, 1)[:, None]
            blurred = self.draw_changed("blur", rows, random)
            return np.where(random.random((rows, 1)) < share, blurred, self.draw(rows, random))
        pool = self.changed[change]
        return pool[random.integers(len(pool), size=rows)]

    def draw_regimes(self, rows: int, length: int, random: np.random.Generator) -> Floats:
        """Return samples that stay with one class for `length` samples."""
        by_class = [self.clean[self.labels == label] for label in range(10)]
        parts = []
        for _ in range(-(-rows // length)):
            pool = by_class[random.integers(10)]
            parts.append(pool[random.integers(len(pool), size=length)])
        return np.concatenate(parts)[:rows]


@dataclass(frozen=True, slots=True)
class Windows:
    """WISDM watch windows of subjects that no model was fitted on.

    Attributes:
        clean: Shape [windows, signals].
        swapped: The same with two axes exchanged.
        clipped: The same with acceleration clipped.
        subjects: Shape [windows].
    """

    clean: Floats
    swapped: Floats
    clipped: Floats
    subjects: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Series:
    """One file of NAB: value and its change, and whether each row lies in an anomaly's window."""

    name: str
    signals: Floats
    anomalous: NDArray[np.bool_]


@cache
def images(*, quick: bool) -> Images:
    """Read Fashion-MNIST; fit a classifier to some images and describe the others."""
    with np.load(DATA / "fashion_mnist.npz") as file:
        pixels = np.concatenate([file["X_train"], file["X_test"]]).astype(np.float64)
        labels = np.concatenate([file["y_train"], file["y_test"]]).astype(np.int64)
    fitted, last = (2000, 2000) if quick else (10_000, 10_000)
    model = _classifier(pixels[:fitted].reshape(fitted, -1) / 255, labels[:fitted])
    pixels, labels = pixels[fitted:], labels[fitted:]
    if quick:
        pixels, labels = pixels[-8000:], labels[-8000:]

    def describe(some: Floats) -> Floats:
        return np.concatenate(
            [_image_signals(part, model) for part in np.array_split(some, max(1, len(some) // 5000))]
        )

    random = np.random.default_rng(0)
    some = pixels[-last:].astype(np.float64)
    dead = some.copy()
    dead[:, :, ::7] = 0
    changed = {
        "noise": np.clip(some + random.normal(0, 10, some.shape), 0, 255),
        "blur": _blur(some),
        "brightness": np.clip(some * 1.1, 0, 255),
        "dead": dead,
    }
    return Images(describe(pixels), labels, {name: describe(each) for name, each in changed.items()})


@cache
def windows(*, quick: bool) -> Windows:
    """Read WISDM; fit a classifier to a quarter of the subjects and describe the others."""
    del quick
    with np.load(DATA / "wisdm51_watch.npz") as file:
        samples = np.concatenate([file["X_train"], file["X_test"]]).astype(np.float64)
        labels = np.concatenate([file["y_train"], file["y_test"]]).astype(np.int64)
        subjects = np.concatenate([file["subject_train"], file["subject_test"]]).astype(np.int64)
    fitted = np.isin(subjects, np.unique(subjects)[::4])
    scales = _window_signals(samples[fitted])
    model = _classifier(scales, labels[fitted])
    samples, subjects = samples[~fitted], subjects[~fitted]
    swapped = samples[:, :, [1, 0, 2, 4, 3, 5]]
    clipped = samples.copy()
    clipped[:, :, :3] = np.clip(clipped[:, :, :3], -9, 9)

    def describe(some: Floats) -> Floats:
        inputs = _window_signals(some)
        return np.column_stack([inputs, _answers(model, inputs)])

    return Windows(describe(samples), describe(swapped), describe(clipped), subjects)


def series() -> list[Series]:
    """Read all files of NAB."""
    found = []
    with np.load(DATA / "nab.npz") as file:
        values, anomalous, offsets = (
            file["value"].astype(np.float64),
            file["in_anomaly_window"] > 0,
            file["offsets"],
        )
        for name, start, end in zip(file["file_names"].tolist(), offsets[:-1], offsets[1:], strict=True):
            value = values[start:end]
            change = np.abs(np.diff(value, prepend=value[0]))
            found.append(Series(str(name), np.column_stack([value, change]), anomalous[start:end]))
    return found


def _classifier(inputs: Floats, labels: NDArray[np.int64]) -> Pipeline:
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=60, tol=1e-2))
    return model.fit(inputs, labels)


def _answers(model: Any, inputs: Floats) -> Floats:
    chances = model.predict_proba(inputs)
    return np.column_stack([chances.max(axis=1), chances.argmax(axis=1).astype(np.float64)])


def _image_signals(pixels: NDArray[Any], model: Pipeline) -> Floats:
    scaled = pixels.astype(np.float64) / 255
    flat = scaled.reshape(len(scaled), -1)
    edges = np.diff(scaled, axis=1).reshape(len(scaled), -1), np.diff(scaled, axis=2).reshape(len(scaled), -1)
    energy = sum((edge**2).mean(axis=1) for edge in edges)
    return np.column_stack(
        [flat.mean(axis=1), flat.std(axis=1), flat.min(axis=1), flat.max(axis=1), energy, _answers(model, flat)]
    )


def _window_signals(samples: Floats) -> Floats:
    force = np.linalg.norm(samples[:, :, :3], axis=2)
    energy = (np.diff(samples[:, :, :3], axis=1) ** 2).mean(axis=(1, 2))
    turning = np.sqrt((samples[:, :, 3:] ** 2).mean(axis=(1, 2)))
    return np.column_stack(
        [
            samples[:, :, :3].mean(axis=1),
            force.std(axis=1),
            force.min(axis=1),
            force.max(axis=1),
            energy,
            turning,
        ]
    )


def _blur(pixels: Floats) -> Floats:
    """Return images with a quarter of each pixel taken from its neighbours above, below and beside."""
    beside = np.pad(pixels, ((0, 0), (1, 1), (1, 1)), mode="edge")
    neighbours = beside[:, :-2, 1:-1] + beside[:, 2:, 1:-1] + beside[:, 1:-1, :-2] + beside[:, 1:-1, 2:]
    return 0.75 * pixels + 0.25 * neighbours / 4
