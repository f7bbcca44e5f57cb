"""Unlabelled inputs for the models in `../shared/models`, in the form that each was trained with.

Every array is [samples, *shape of one inference]. States are those that the model itself arrives at.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from benchmarks.tasks.sound import cepstra, frames, log_mel, motor, recordings, stream
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

__all__ = ["INPUTS"]

_Arrays = dict[str, NDArray[Any]]
_Floats = NDArray[np.float32]
_SEED = 0


def _photos(count: int, height: int, width: int) -> _Floats:
    """Return crops of scikit-learn's two photographs, resized, mirrored, brightened; RGB 0 to 255, NHWC."""
    random = np.random.default_rng(_SEED)
    photos = load_sample_images().images
    crops = np.empty((count, height, width, 3), np.float32)
    for i in range(count):
        photo = photos[i % len(photos)]
        tall = int(random.uniform(0.3, 1.0) * min(photo.shape[0], photo.shape[1] * height / width))
        wide = int(tall * width / height)
        top, left = random.integers(0, photo.shape[0] - tall + 1), random.integers(0, photo.shape[1] - wide + 1)
        crop = Image.fromarray(photo[top : top + tall, left : left + wide])
        crops[i] = np.asarray(crop.resize((width, height), Image.Resampling.BILINEAR), np.float32)
        crops[i] *= random.uniform(0.6, 1.2)
        if random.random() < 0.5:
            crops[i] = crops[i, :, ::-1]
    return np.asarray(crops.clip(0, 255).round(), np.float32)


def _channels_first(images: NDArray[Any]) -> _Floats:
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)[:, None], np.float32)


def ultraface(_: Path, __: Path) -> _Arrays:
    """(RGB - 127) / 128, as the repository's demo has it."""
    return {"input": _channels_first((_photos(64, 240, 320) - 127) / 128)}


def yunet(_: Path, __: Path) -> _Arrays:
    """BGR from 0 to 255."""
    return {"input": _channels_first(_photos(64, 320, 320)[..., ::-1])}


def fastestdet(_: Path, __: Path) -> _Arrays:
    """BGR / 255."""
    return {"input.1": _channels_first(_photos(64, 352, 352)[..., ::-1] / 255)}


def resnet8(_: Path, __: Path) -> _Arrays:
    """RGB from 0 to 255 as MLPerf Tiny trains it, channels last."""
    return {"input_1": _photos(1200, 32, 32)[:, None]}


def digits(_: Path, __: Path) -> _Arrays:
    """scikit-learn's digits of 8 x 8 brought to 28 x 28, white on black, from 0 to 1."""
    images = load_digits().images
    large = np.zeros((len(images), 1, 1, 28, 28), np.float32)
    for i, image in enumerate(images):
        grey = Image.fromarray((image * (255 / 16)).astype(np.uint8))
        large[i, 0, 0, 4:24, 4:24] = np.asarray(grey.resize((20, 20), Image.Resampling.BICUBIC)) / 255
    return {"Input3": large}


def keywords(_: Path, data: Path) -> _Arrays:
    """Cepstra of spoken digits."""
    return {"input_1": np.stack([cepstra(clip) for clip in recordings(data, 1200, _SEED)])[:, None, :, :, None]}


def keywords_int8(model: Path, data: Path) -> _Arrays:
    """The same, quantised as the model's input is."""
    scale, zero_point = 0.5847029089927673, 83  # of the original .tflite; see models.json
    codes = np.round(keywords(model, data)["input_1"] / scale) + zero_point
    return {"input_1": codes.clip(-128, 127).astype(np.int8)}


def machine_sound(_: Path, __: Path) -> _Arrays:
    """Five frames of log-mel bands in a row, of a motor's hum made here."""
    bands = log_mel(motor(45, _SEED))
    return {
        "input_1": np.lib.stride_tricks.sliding_window_view(bands, 5, axis=0).transpose(0, 2, 1).reshape(-1, 1, 640)
    }


def _with_state(model: Path, steps: _Floats, sample: str, state: str, fixed: _Arrays) -> _Arrays:
    """Run a stateful model over consecutive steps and keep the state that each step began with."""
    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    shape = next(given.shape for given in session.get_inputs() if given.name == state)
    now = np.zeros([size if isinstance(size, int) else 1 for size in shape], np.float32)
    states = []
    for step in steps:
        states.append(now)
        _, now = session.run(None, {sample: step, state: now, **fixed})
    return {sample: steps, state: np.stack(states), **fixed}


def voice_activity(model: Path, data: Path) -> _Arrays:
    """Windows of 512 samples behind the 64 before them."""
    steps = np.ascontiguousarray(frames(stream(data, 25, _SEED), 576, 512)[:, None])
    return _with_state(model, steps, "input", "state", {"sr": np.array(16_000, np.int64)})


def denoiser(model: Path, data: Path) -> _Arrays:
    """Magnitudes of frames of 512 samples every 128."""
    spectra = np.fft.rfft(frames(stream(data, 8, _SEED), 512, 128))
    return _with_state(model, np.abs(spectra).astype(np.float32)[:, None, None], "input_2", "input_3", {})


INPUTS: dict[str, Callable[[Path, Path], _Arrays]] = {
    "dtln_model_1": denoiser,
    "fastestdet": fastestdet,
    "mlperftiny_ad_autoencoder_fp32": machine_sound,
    "mlperftiny_ic_resnet8_fp32": resnet8,
    "mlperftiny_kws_dscnn_fp32": keywords,
    "mlperftiny_kws_dscnn_int8": keywords_int8,
    "ort_mnist_cnn": digits,
    "silero_vad_16k_op15": voice_activity,
    "ultraface_rfb_320": ultraface,
    "ultraface_slim_320_simplified": ultraface,
    "yunet_n_320": yunet,
}
"""Model's name: from the model's file and the shared data's folder to the arrays that it takes."""
