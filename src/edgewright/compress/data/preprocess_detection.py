"""Which preprocessing images need, found out by the original model's accuracy where nobody states it."""

from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgewright.compress.data.alignment import align_arrays
from edgewright.compress.data.dataset import Dataset
from edgewright.compress.data.model_outputs import model_outputs, open_cpu_session
from edgewright.compress.data.sources.images import infer_image_format
from edgewright.compress.data.splits import split_dataset
from edgewright.contract.errors import DataError
from edgewright.contract.model.preprocess import Preprocess
from edgewright.contract.model.signature import ModelSignature

__all__ = ["detect_preprocessing"]

_SAMPLES = 128
_PIXEL_SCALE = 1 / 255
# Scale, mean, std; the last is what ImageNet models of torchvision and timm were trained with.
_FLOAT_CONVENTIONS: dict[str, tuple[float, tuple[float, ...], tuple[float, ...]]] = {
    "0..1": (_PIXEL_SCALE, (), ()),
    "-1..1": (_PIXEL_SCALE, (0.5,), (0.5,)),
    "0..255": (1.0, (), ()),
    "ImageNet": (_PIXEL_SCALE, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
_INTEGER_CONVENTIONS: dict[str, dict[str, tuple[float, tuple[float, ...], tuple[float, ...]]]] = {
    "uint8": {"0..255": (1.0, (), ())},
    "int8": {"-128..127": (1.0, (128.0,), ())},
}


def detect_preprocessing(
    pixels: NDArray[np.uint8],
    labels: NDArray[np.int64] | None,
    contract: ModelSignature,
    model: Path | None,
    seed: int,
) -> tuple[Preprocess, tuple[str, ...]]:
    """Try the customary ways and return the one with which the model is most accurate.

    Only samples of the calibrate part (at most 128) are looked at, so nothing is learned about the others.

    Args:
        pixels: Shape [n, height, width, channels], RGB or grey.
        labels: Shape [n], class ids.
        contract: Of the model; its first input takes the images.
        model: The model file.
        seed: Of the split.

    Returns:
        The preprocessing, and notes on how every way fared.

    Raises:
        DataError: No labels or no model to judge by.
    """
    if labels is None or model is None:
        raise DataError(
            "the images' scaling is not stated, and without class folders it cannot be found out",
            remedy="State it in [preprocess], for example scale = 0.00392156862745098 for 0 to 1.",
        )
    spec = contract.inputs[0]
    as_read = Dataset({spec.name: pixels}, labels, None, "classification", fingerprint="")
    chosen = split_dataset(as_read, seed=seed).calibrate[:_SAMPLES]
    session = open_cpu_session(model)
    accuracies: dict[str, float] = {}
    ways = _candidates(contract)
    for name, way in ways.items():
        inputs, _ = align_arrays({spec.name: way.apply(pixels[chosen])}, contract)
        sample = Dataset(inputs, labels[chosen], None, "classification", fingerprint="")
        output = model_outputs(session, sample, range(len(chosen)), contract)[0].reshape(len(chosen), -1)
        answers = output.argmax(axis=1) if output.shape[1] > 1 else output[:, 0] > (0 if output.min() < 0 else 0.5)
        accuracies[name] = float((answers == labels[chosen]).mean())
    best = max(ways, key=lambda name: accuracies[name])
    fared = ", ".join(f"{name} {accuracy:.3f}" for name, accuracy in accuracies.items())
    layout = f"layout {ways[best].layout} from the model's shape {list(spec.shape)}"
    notes = [
        f"preprocessing found out on {len(chosen)} images by the original's accuracy: {best} ({fared}); {layout}"
    ]
    chance = float(np.bincount(labels[chosen]).max() / len(chosen))
    if accuracies[best] <= chance:
        notes.append(
            f"no customary preprocessing beats always answering one class ({chance:.3f}): "
            "state [preprocess], and check the order of the class folders (classes.txt)"
        )
    return ways[best], tuple(notes)


def _candidates(contract: ModelSignature) -> dict[str, Preprocess]:
    spec = contract.inputs[0]
    form = infer_image_format(spec)
    layout: Literal["NHWC", "NCHW"] = "NCHW" if form.channels_first else "NHWC"
    customs = _FLOAT_CONVENTIONS if spec.dtype.startswith("float") else _INTEGER_CONVENTIONS.get(spec.dtype, {})
    if not customs:
        raise DataError(f"input {spec.name!r} takes {spec.dtype}", remedy="State [preprocess] for these images.")
    colours: tuple[Literal["RGB", "BGR"], ...] = ("RGB", "BGR") if form.channels == 3 else ("RGB",)
    return {
        name if form.channels == 1 else f"{name} {colour}": Preprocess(
            scale=scale, mean=mean, std=std, layout=layout, colour=colour
        )
        for (name, (scale, mean, std)), colour in product(customs.items(), colours)
        if len(mean) in (0, 1, form.channels)
    }
