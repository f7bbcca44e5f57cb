"""Changes to a sample that leave its meaning alone.

Each is a function of the rows and of uniform numbers drawn for each row, so what happens to a row depends neither
on the other rows of its batch nor on their order: a teacher's answers to changed rows hold for every student.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from edgewright.compress.train.data.modality import Modality, SampleFormat
from edgewright.contract.errors import CandidateError

__all__ = ["DRAWS_PER_ROW", "augment", "augmentation_names", "value_deviations"]

DRAWS_PER_ROW = 4  # uniform numbers that one augmentation may use per row
_BANK = 4096
_BANK_SEED = 1904

Augmentation = Callable[[Tensor, Tensor, SampleFormat, Tensor], Tensor]


def augmentation_names(kind: Modality) -> tuple[str, ...]:
    """Return the names of what may be tried on such samples.

    >>> augmentation_names("table")
    ('noise',)
    """
    return tuple(_OF_KIND[kind])


def augment(batch: Tensor, draws: Tensor, names: Sequence[str], form: SampleFormat, spread: Tensor) -> Tensor:
    """Apply augmentations one after the other.

    Args:
        batch: [b, ...], float.
        draws: [b, DRAWS * len(names)], uniform in [0, 1).
        names: Of `augmentations(form.kind)`.
        form: Of the batch.
        spread: [...] standard deviation of each value over the rows (see `value_deviations`).

    Raises:
        CandidateError: A name does not belong to such samples.
    """
    known = _OF_KIND[form.kind]
    for place, name in enumerate(names):
        if name not in known:
            raise CandidateError(
                f"augmentation {name!r} does not exist for a {form.kind}",
                remedy=f"Choose of: {', '.join(known) or 'none'}.",
            )
        batch = known[name](batch, draws[:, place * DRAWS_PER_ROW : (place + 1) * DRAWS_PER_ROW], form, spread)
    return batch


def value_deviations(samples: NDArray[Any]) -> Tensor:
    """Return the standard deviation of each value over at most 4096 rows."""
    if samples.dtype.kind != "f":
        return torch.zeros(samples.shape[1:])
    return torch.as_tensor(samples[:4096].std(axis=0), dtype=torch.float32)


def _image_shift(batch: Tensor, draws: Tensor, form: SampleFormat, _: Tensor) -> Tensor:
    """Move by up to a twelfth (at least one pixel) of height and width; edges are repeated."""
    for place, axis in enumerate(form.axes):
        most = max(1, round(batch.shape[axis] / 12))
        batch = _shift_rows(batch, axis, _uniform_integers(draws[:, place], -most, most))
    return batch


def _image_mirror(batch: Tensor, draws: Tensor, form: SampleFormat, _: Tensor) -> Tensor:
    """Exchange left and right in half of the rows."""
    return torch.where(_per_row(draws[:, 0] < 0.5, batch), batch.flip(form.axes[1]), batch)


def _image_cutout(batch: Tensor, draws: Tensor, form: SampleFormat, _: Tensor) -> Tensor:
    """Fill a patch of a quarter of height and width with the mean, in half of the rows (arXiv:1708.04552)."""
    inside = _per_row(draws[:, 2] < 0.5, batch)
    for place, axis in enumerate(form.axes):
        length = max(1, batch.shape[axis] // 4)
        inside = inside & _span_mask(batch, axis, draws[:, place], torch.full((len(batch),), length))
    return torch.where(inside, _row_mean(batch), batch)


def _image_light(batch: Tensor, draws: Tensor, _form: SampleFormat, _: Tensor) -> Tensor:
    """Change contrast by up to 20 % and brightness by up to 0.2 standard deviations of the row."""
    mean, deviation = _row_mean(batch), _row_deviation(batch)
    contrast = _per_row(0.8 + 0.4 * draws[:, 0], batch)
    return mean + (batch - mean) * contrast + deviation * _per_row(0.4 * draws[:, 1] - 0.2, batch)


def _spectrogram_shift(batch: Tensor, draws: Tensor, form: SampleFormat, _: Tensor) -> Tensor:
    """Move by up to a tenth of the time; edges are repeated."""
    axis = form.axes[0]
    most = max(1, batch.shape[axis] // 10)
    return _shift_rows(batch, axis, _uniform_integers(draws[:, 0], -most, most))


def _spectrogram_masks(batch: Tensor, draws: Tensor, form: SampleFormat, _: Tensor) -> Tensor:
    """Fill up to an eighth of the times and of the frequencies with the mean (SpecAugment, arXiv:1904.08779)."""
    mean = _row_mean(batch)
    for place, axis in enumerate(form.axes):
        lengths = _uniform_integers(draws[:, 2 * place], 0, max(1, batch.shape[axis] // 8))
        batch = torch.where(_span_mask(batch, axis, draws[:, 2 * place + 1], lengths), mean, batch)
    return batch


def _loudness(batch: Tensor, draws: Tensor, _form: SampleFormat, _: Tensor) -> Tensor:
    """Add up to 0.3 standard deviations of the row to all of it: loudness, where values are logarithms."""
    return batch + _row_deviation(batch) * _per_row(0.6 * draws[:, 0] - 0.3, batch)


def _series_roll(batch: Tensor, draws: Tensor, form: SampleFormat, _: Tensor) -> Tensor:
    """Begin the window at another time, what falls off comes back at the other end."""
    axis = form.axes[0]
    return _shift_rows(batch, axis, _uniform_integers(draws[:, 0], 0, batch.shape[axis] - 1), wrap=True)


def _series_shift(batch: Tensor, draws: Tensor, form: SampleFormat, _: Tensor) -> Tensor:
    """Move by up to a tenth of the time; ends are repeated."""
    return _spectrogram_shift(batch, draws, form, _)


def _series_scale(batch: Tensor, draws: Tensor, _form: SampleFormat, _: Tensor) -> Tensor:
    """Multiply by 0.85 to 1.15."""
    return batch * _per_row(0.85 + 0.3 * draws[:, 0], batch)


def _noise(batch: Tensor, draws: Tensor, _form: SampleFormat, spread: Tensor) -> Tensor:
    """Add normal noise of 0.05 standard deviations of each value over the rows."""
    size = batch[0].numel()
    windows = _noise_bank(size).unfold(0, size, 1)
    offsets = (draws[:, 0] * _BANK).long().clamp(max=_BANK - 1)
    return batch + 0.05 * spread * windows[offsets].reshape(batch.shape)


_OF_KIND: dict[Modality, dict[str, Augmentation]] = {
    "image": {"shift": _image_shift, "mirror": _image_mirror, "cut-out": _image_cutout, "light": _image_light},
    "spectrogram": {"shift": _spectrogram_shift, "masks": _spectrogram_masks, "level": _loudness},
    "series": {"roll": _series_roll, "shift": _series_shift, "scale": _series_scale, "noise": _noise},
    "table": {"noise": _noise},
    "other": {},
}


@lru_cache(maxsize=4)
def _noise_bank(size: int) -> Tensor:
    """Return one long row of noise; a sample's is a window of it."""
    return torch.randn(_BANK + size, generator=torch.Generator().manual_seed(_BANK_SEED))


def _uniform_integers(draws: Tensor, least: int, most: int) -> Tensor:
    """Return whole numbers from `least` to `most`."""
    return least + (draws * (most - least + 1)).long().clamp(max=most - least)


def _per_row(values: Tensor, batch: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (batch.ndim - 1))


def _along(axis: int, batch: Tensor) -> Tensor:
    shape = [1] * batch.ndim
    shape[axis] = batch.shape[axis]
    return torch.arange(batch.shape[axis]).reshape(shape)


def _row_mean(batch: Tensor) -> Tensor:
    return _per_row(batch.flatten(1).mean(dim=1), batch)


def _row_deviation(batch: Tensor) -> Tensor:
    return _per_row(batch.flatten(1).std(dim=1, correction=0), batch)


def _shift_rows(batch: Tensor, axis: int, steps: Tensor, *, wrap: bool = False) -> Tensor:
    """Return every row moved by its own number of steps."""
    size = batch.shape[axis]
    sources = _along(axis, batch) - _per_row(steps, batch)
    return torch.take_along_dim(batch, sources % size if wrap else sources.clamp(0, size - 1), dim=axis)


def _span_mask(batch: Tensor, axis: int, starts: Tensor, lengths: Tensor) -> Tensor:
    """Return a mask of every row's own span along an axis; `starts` are uniform in [0, 1)."""
    first = (starts * (batch.shape[axis] - lengths + 1)).long()
    places = _along(axis, batch)
    return (places >= _per_row(first, batch)) & (places < _per_row(first + lengths, batch))
