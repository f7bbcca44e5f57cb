"""What networks are trained on, and what they were not made for: near, far and shifted samples of each data set.

Arrays of samples are [n, channels, height, width] of float32.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.datasets import load_digits

__all__ = ["MATERIALS", "Labelled", "Material"]

Floats = NDArray[np.float32]
Labelled = tuple[Floats, NDArray[np.intp]]

_SEED = 0


@dataclass(frozen=True, slots=True)
class Material:
    """One data set.

    Attributes:
        text: The network's graph after its first tensor `x`, up to the embedding `e` of 64 features.
        shapes: Of the network's weights, by name; biases are the last axis of what they are called after.
        train: Samples and labels for the network and the measures.
        calibrate: For the temperature, and by its other half for every threshold; where `usual` comes from.
        usual: What the network is made for.
        shifted: Known classes under other circumstances, by name.
        strange: No known classes, by name, with `near: ` or `far: ` before it.
        low: Least value that an attack may make.
        high: Greatest.
        strengths: Greatest change of a value by an attack.
        axes: Along which neighbouring values are alike.
        epochs: Of training.
    """

    text: str
    shapes: dict[str, tuple[int, ...]]
    train: Labelled
    calibrate: Labelled
    usual: Labelled
    shifted: dict[str, Labelled]
    strange: dict[str, Floats]
    low: float
    high: float
    strengths: tuple[float, ...]
    axes: tuple[int, ...]
    epochs: int

    @property
    def classes(self) -> int:
        """How many the network knows."""
        return int(self.train[1].max()) + 1


_IMAGES = """ c1 = Conv<pads=[1,1,1,1]>(x, w1, b1) r1 = Relu(c1) p1 = MaxPool<kernel_shape=[2,2],strides=[2,2]>(r1)
 c2 = Conv<pads=[1,1,1,1]>(p1, w2, b2) r2 = Relu(c2) p2 = MaxPool<kernel_shape=[2,2],strides=[2,2]>(r2)
 c3 = Conv<pads=[1,1,1,1]>(p2, w3, b3) r3 = Relu(c3) p3 = MaxPool<kernel_shape=[2,2],strides=[2,2]>(r3)
 f = Flatten(p3) g = Gemm<transB=1>(f, w4, b4) e = Relu(g)"""
_BANDS = """ c1 = Conv<pads=[1,1,1,1],strides=[2,2]>(x, w1, b1) r1 = Relu(c1)
 c2 = Conv<pads=[1,1,1,1]>(r1, w2, b2) r2 = Relu(c2) p2 = MaxPool<kernel_shape=[2,2],strides=[2,2]>(r2)
 c3 = Conv<pads=[1,1,1,1]>(p2, w3, b3) r3 = Relu(c3) p3 = MaxPool<kernel_shape=[2,2],strides=[2,2]>(r3)
 f = Flatten(p3) g = Gemm<transB=1>(f, w4, b4) e = Relu(g)"""
_DIGITS = """ c1 = Conv<pads=[1,1,1,1]>(x, w1, b1) r1 = Relu(c1) p1 = MaxPool<kernel_shape=[2,2],strides=[2,2]>(r1)
 f = Flatten(p1) g = Gemm<transB=1>(f, w4, b4) e = Relu(g)"""
_WINDOWS = """ c1 = Conv<pads=[3,0,3,0],strides=[2,1]>(x, w1, b1) r1 = Relu(c1)
 c2 = Conv<pads=[2,0,2,0],strides=[2,1]>(r1, w2, b2) r2 = Relu(c2)
 c3 = Conv<pads=[1,0,1,0]>(r2, w3, b3) r3 = Relu(c3)
 p = GlobalAveragePool(r3) f = Flatten(p) g = Gemm<transB=1>(f, w4, b4) e = Relu(g)"""


def digits(_: Path, *, quick: bool) -> Material:
    """Scikit-learn's digits without 4 and 9; no shared data is needed."""
    del quick
    x, y = load_digits(return_X_y=True)
    images = (x / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    order = np.random.default_rng(_SEED).permutation(len(y))
    known, unknown = _without(images[order], y[order], (4, 9))
    train, calibrate, usual = _cut(known, 480, 960)
    return Material(
        text=_DIGITS,
        shapes={"w1": (16, 1, 3, 3), "w4": (64, 256)},
        train=train,
        calibrate=calibrate,
        usual=usual,
        shifted={"noise": (_noised(usual[0], 0.25, 0, 1), usual[1]), "shifted by a pixel": _rolled(usual)},
        strange={"near: held-out digits": unknown, **_far(usual[0], 0, 1)},
        low=0,
        high=1,
        strengths=(0.1,),
        axes=(-2, -1),
        epochs=30,
    )


def fashion(shared: Path, *, quick: bool) -> Material:
    """Fashion-MNIST without coats and ankle boots, which look like pullovers and sneakers."""
    with np.load(shared / "fashion_mnist.npz", allow_pickle=False) as file:
        arrays = {name: file[name] for name in ("X_train", "y_train", "X_test", "y_test")}

    def scaled(images: NDArray[np.uint8]) -> Floats:
        return np.asarray(images[:, None].astype(np.float32) / 255, np.float32)

    cut = 8000 if quick else None
    known, _ = _without(scaled(arrays["X_train"][:cut]), arrays["y_train"][:cut], (4, 9))
    held, unknown = _without(scaled(arrays["X_test"]), arrays["y_test"], (4, 9))
    # What sets thresholds comes out of the original test images: the training images were collected apart.
    train, (calibrate, usual) = known, _halves(held)
    large = np.stack([ndimage.zoom(np.pad(image, 1), 2.8, order=1) for image in load_digits().images / 16])
    return Material(
        text=_IMAGES,
        shapes={"w1": (16, 1, 3, 3), "w2": (32, 16, 3, 3), "w3": (64, 32, 3, 3), "w4": (64, 576)},
        train=train,
        calibrate=calibrate,
        usual=usual,
        shifted={
            "noise": (_noised(usual[0], 0.15, 0, 1), usual[1]),
            "blur": (ndimage.gaussian_filter(usual[0], (0, 0, 1, 1)), usual[1]),
            "half as bright": (np.asarray(usual[0] / 2, np.float32), usual[1]),
        },
        strange={
            "near: coats, boots": unknown,
            "far: digits": large[:, None, :28, :28].astype(np.float32).clip(0, 1),
            **_far(usual[0], 0, 1),
        },
        low=0,
        high=1,
        strengths=(4 / 255, 16 / 255),
        axes=(-2, -1),
        epochs=1 if quick else 6,
    )


def speech(shared: Path, *, quick: bool) -> Material:
    """Spoken digits without 2 and 8, of five speakers; the sixth is a shift."""
    with np.load(shared / "fsdd.npz", allow_pickle=False) as file:
        x, y, speaker = file["logmel"].astype(np.float32)[:, None], file["y"], file["speaker"]
    x = (x - x.mean()) / x.std()
    order = np.random.default_rng(_SEED).permutation(len(y))
    x, y, speaker = x[order], y[order].astype(np.intp), speaker[order]
    known, unknown = _without(x[speaker < 5], y[speaker < 5], (2, 8))
    other, _ = _without(x[speaker == 5], y[speaker == 5], (2, 8))
    train, calibrate, usual = _cut(known, 800, 1400)
    low, high = float(x.min()), float(x.max())
    with np.load(shared / "fashion_mnist.npz", allow_pickle=False) as file:
        photos = file["X_test"][:600].astype(np.float32)
    photos = np.stack([ndimage.zoom(image, (49 / 28, 40 / 28), order=1) for image in photos])[:, None]
    photos = (photos - photos.mean()) / photos.std()
    return Material(
        text=_BANDS,
        shapes={"w1": (16, 1, 3, 3), "w2": (32, 16, 3, 3), "w3": (64, 32, 3, 3), "w4": (64, 64 * 6 * 5)},
        train=train,
        calibrate=calibrate,
        usual=usual,
        shifted={"unseen speaker": other, "noise": (_noised(usual[0], 0.5, low, high), usual[1])},
        strange={"near: held-out words": unknown, "far: images": photos, **_far(usual[0], low, high)},
        low=low,
        high=high,
        strengths=(0.05, 0.2),
        axes=(-2, -1),
        epochs=3 if quick else 60,
    )


def wearable(shared: Path, *, quick: bool) -> Material:
    """WISDM without jogging, typing, clapping; usual windows are of the people that set thresholds."""
    with np.load(shared / "wisdm51_watch.npz", allow_pickle=False) as file:
        x = np.concatenate([file["X_train"], file["X_test"]]).astype(np.float32)
        y = np.concatenate([file["y_train"], file["y_test"]]).astype(np.intp)
        subject = np.concatenate([file["subject_train"], file["subject_test"]])
        unseen = np.isin(subject, np.unique(file["subject_test"]))
    with np.load(shared / "nab.npz", allow_pickle=False) as file:
        series = file["value"].astype(np.float64)
    mean, spread = x[~unseen].mean((0, 1)), x[~unseen].std((0, 1))
    x = ((x - mean) / spread).transpose(0, 2, 1)[..., None].astype(np.float32).clip(-8, 8)
    people = np.unique(subject[~unseen])
    trained = np.isin(subject, people[::2] if quick else people[: len(people) * 2 // 3])
    known, _ = _without(x[trained], y[trained], (1, 5, 16))
    between, unknown = _without(x[~trained & ~unseen], y[~trained & ~unseen], (1, 5, 16))
    strangers, _ = _without(x[unseen], y[unseen], (1, 5, 16))
    calibrate, usual = _halves(_shuffled(between))
    cut = series[: len(series) // (64 * 6) * 64 * 6].reshape(-1, 6, 64, 1)
    windows = (cut - cut.mean((2, 3), keepdims=True)) / (cut.std((2, 3), keepdims=True) + 1e-6)
    return Material(
        text=_WINDOWS,
        shapes={"w1": (32, 6, 7, 1), "w2": (64, 32, 5, 1), "w3": (64, 64, 3, 1), "w4": (64, 64)},
        train=_shuffled(known),
        calibrate=calibrate,
        usual=usual,
        shifted={
            "unseen people": strangers,
            "swapped axes": (usual[0][:, [1, 0, 2, 3, 4, 5]], usual[1]),
            "clipped sensor": (usual[0].clip(-0.7, 0.7), usual[1]),
        },
        strange={
            "near: held-out activities": unknown,
            "far: server metrics": windows.astype(np.float32)[:900],
            **_far(usual[0], -8, 8),
        },
        low=-8,
        high=8,
        strengths=(0.05, 0.2),
        axes=(-2,),
        epochs=2 if quick else 15,
    )


MATERIALS: dict[str, Callable[..., Material]] = {
    made.__name__: made for made in (digits, fashion, speech, wearable)
}
"""Name to the function from the shared data's folder and `quick` to the material."""


def _without(x: Floats, y: NDArray[np.integer], unknown: tuple[int, ...]) -> tuple[Labelled, Floats]:
    """Return samples of the other classes, numbered anew, and those of these classes."""
    out = np.isin(y, unknown)
    return (x[~out], np.unique(y[~out], return_inverse=True)[1].astype(np.intp)), x[out]


def _cut(known: Labelled, first: int, second: int) -> tuple[Labelled, Labelled, Labelled]:
    x, y = known
    return (x[:first], y[:first]), (x[first:second], y[first:second]), (x[second:], y[second:])


def _halves(known: Labelled) -> tuple[Labelled, Labelled]:
    x, y = known
    return (x[::2], y[::2]), (x[1::2], y[1::2])


def _shuffled(known: Labelled) -> Labelled:
    order = np.random.default_rng(_SEED).permutation(len(known[1]))
    return known[0][order], known[1][order]


def _noised(x: Floats, spread: float, low: float, high: float) -> Floats:
    noise = np.random.default_rng(_SEED).normal(0, spread, x.shape)
    return (x + noise).astype(np.float32).clip(low, high)


def _rolled(known: Labelled) -> Labelled:
    return np.roll(known[0], 1, axis=-1), known[1]


def _far(x: Floats, low: float, high: float) -> dict[str, Floats]:
    """Return noise with the usual values' mean and spread, and usual samples whose values changed places."""
    random = np.random.default_rng(_SEED)
    noise = random.normal(x.mean(), x.std(), x[:1000].shape).astype(np.float32).clip(low, high)
    mixed = random.permuted(x[:1000].reshape(len(x[:1000]), -1), axis=1).reshape(x[:1000].shape)
    return {"far: noise": noise, "far: values mixed": mixed}
