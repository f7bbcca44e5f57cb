"""A folder of images: one folder per class, or all in one folder without labels.

Class ids follow `classes.txt` in the folder (one name per line), else the sorted names of the class folders.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgewright.compress.data.sources.arrays import MAX_DATA_BYTES
from edgewright.compress.data.sources.raw import RawData
from edgewright.contract.errors import DataError
from edgewright.contract.model.signature import TensorSpec

__all__ = ["ImageFormat", "infer_image_format", "read_images"]

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}
_CHANNELS = (1, 3)


@dataclass(frozen=True, slots=True)
class ImageFormat:
    """Height, width, channels and layout of the images that a model takes; None is free."""

    height: int | None
    width: int | None
    channels: int
    channels_first: bool


def infer_image_format(spec: TensorSpec) -> ImageFormat:
    """Tell layout and size from an input's shape.

    Raises:
        DataError: Not the shape of an image.

    >>> form = infer_image_format(TensorSpec("x", "float32", ("n", 3, 240, 320)))
    >>> form.height, form.width, form.channels, form.channels_first
    (240, 320, 3, True)
    """
    sizes = [size if isinstance(size, int) else None for size in spec.shape]
    if len(sizes) == 4 and sizes[0] in (None, 1):
        if sizes[1] in _CHANNELS and (sizes[3] not in _CHANNELS or sizes[2] == sizes[3]):
            return ImageFormat(sizes[2], sizes[3], sizes[1] or 1, channels_first=True)
        if sizes[3] in _CHANNELS:
            return ImageFormat(sizes[1], sizes[2], sizes[3] or 1, channels_first=False)
    raise DataError(
        f"input {spec.name!r} has shape [{', '.join(map(str, spec.shape))}], which is not one of an image "
        "([batch, 1 or 3, height, width] or [batch, height, width, 1 or 3])",
        remedy="Give the data as an .npz file instead.",
    )


def read_images(folder: Path, input_name: str, form: ImageFormat, size: tuple[int, int] | None = None) -> RawData:
    """Read every image of a folder as pixels [n, height, width, channels], uint8, RGB or grey.

    Args:
        folder: With one folder per class, or with images only.
        input_name: Of the model's input.
        form: What the model takes.
        size: Height and width to resize to (bilinear, half-pixel centres); None takes the model's.

    Raises:
        DataError: No images, an image that cannot be read or would exhaust memory, or images of different sizes
            for a model whose size is free.
    """
    classes = _class_names(folder)
    # Without class folders the one number is not used as a label.
    numbered = list(enumerate(classes)) if classes else [(0, ".")]
    paths = [(path, label) for label, name in numbered for path in _images_of(folder / name)]
    skipped = (
        sum(1 for path in folder.rglob("*") if path.is_file()) - len(paths) - (folder / "classes.txt").is_file()
    )
    if not paths:
        raise DataError(f"{folder} holds no images", remedy="Put images into one folder per class.")
    if size is None and form.height is not None and form.width is not None:
        size = (form.height, form.width)
    notes = [f"{len(paths)} images of {len(classes)} classes: {', '.join(classes[:20])}"] if classes else []
    if skipped:
        notes.append(f"{skipped} files of {folder.name} were skipped: not images, or outside the class folders")
    pixels: NDArray[np.uint8] | None = None
    resized = 0
    for i, (path, _) in enumerate(paths):
        image, original = _read_image(path, form.channels, size)
        resized += original != image.shape[:2]
        if pixels is None:
            if image.nbytes * len(paths) > MAX_DATA_BYTES // 8:
                raise DataError(
                    f"{len(paths)} images of {image.shape[0]} x {image.shape[1]} pixels would take more than "
                    f"{MAX_DATA_BYTES} bytes of memory",
                    remedy="Take a random subset of the images.",
                )
            pixels = np.empty((len(paths), *image.shape), np.uint8)
        if image.shape != pixels.shape[1:]:
            raise DataError(
                f"{path} has {image.shape[0]} x {image.shape[1]} pixels, the images before it "
                f"{pixels.shape[1]} x {pixels.shape[2]}",
                remedy="The model leaves the size free: declare [preprocess] size = [height, width].",
            )
        pixels[i] = image
    if resized and pixels is not None:
        notes.append(f"{resized} images were resized to {pixels.shape[1]} x {pixels.shape[2]} pixels (bilinear)")
    labels = np.array([label for _, label in paths], np.int64) if classes else None
    return RawData({} if pixels is None else {input_name: pixels}, labels, None, tuple(notes), is_images=True)


def _class_names(folder: Path) -> list[str]:
    folders = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    listing = folder / "classes.txt"
    if not listing.is_file():
        return folders
    try:
        listed = [line.strip() for line in listing.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{listing} cannot be read: {error}", remedy="Write one class name per line, UTF-8."
        ) from error
    missing = sorted(set(folders) - set(listed))
    if missing or len(set(listed)) != len(listed):
        raise DataError(
            f"{listing} does not list the class folders {', '.join(missing)}"
            if missing
            else f"{listing} lists a class twice",
            remedy="List every class folder once, in the order of the model's outputs.",
        )
    return listed


def _images_of(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_file() and path.suffix.lower() in _SUFFIXES)


def _read_image(
    path: Path, channels: int, size: tuple[int, int] | None
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Return the pixels [height, width, channels] and the size before resizing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                original = (image.height, image.width)
                converted = image.convert("L" if channels == 1 else "RGB")
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(
            f"{path} would unpack to more than {Image.MAX_IMAGE_PIXELS} pixels", remedy="Remove or shrink it."
        ) from error
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{path} cannot be read as an image: {error}", remedy="Remove or mend it.") from error
    if size is not None and size != original:
        converted = converted.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    pixels = np.asarray(converted, np.uint8)
    return pixels.reshape(*pixels.shape[:2], channels), original
