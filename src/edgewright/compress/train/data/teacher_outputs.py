"""A teacher's answers to the lessons: computed once, shared by all students."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
from numpy.typing import NDArray

from edgewright.compress.train.data.shared_arrays import read_arrays, write_arrays

__all__ = ["Answers", "Reading", "read_answers", "write_answers"]

Reading = Literal["classes", "flags", "values"]


@dataclass(frozen=True, slots=True)
class Answers:
    """What a teacher says.

    Attributes:
        train: Per float output [views, rows, ...] for `lessons.train`. The first is in logarithms of probabilities
            (classes), log-odds (flags) or as it is (values).
        validation: Per float output [rows, ...] for `lessons.validation`, not augmented.
        features: [views, rows, d] what the teacher's last layer reads; None if not wanted.
        reading: What the first output means.
        augment: Augmentations of the views.
        seed: Of the views.
        fingerprint: sha256 over everything that the answers depend on, hex.
        notes: For people.
    """

    train: tuple[NDArray[Any], ...]
    validation: tuple[NDArray[Any], ...]
    features: NDArray[Any] | None
    reading: Reading
    augment: tuple[str, ...]
    seed: int
    fingerprint: str
    notes: tuple[str, ...] = ()

    @property
    def views(self) -> int:
        """Number of augmented copies."""
        return len(self.train[0])


class _About(msgspec.Struct, frozen=True):
    """What of answers is no array."""

    reading: Reading
    augment: tuple[str, ...]
    seed: int
    fingerprint: str
    outputs: int
    notes: tuple[str, ...]


def write_answers(answers: Answers, folder: Path) -> None:
    """Write answers so that `read_answers` gives them back, mapped and not copied."""
    arrays: dict[str, NDArray[Any]] = {f"train{i}": array for i, array in enumerate(answers.train)}
    arrays |= {f"validation{i}": array for i, array in enumerate(answers.validation)}
    if answers.features is not None:
        arrays["features"] = answers.features
    about = _About(
        answers.reading, answers.augment, answers.seed, answers.fingerprint, len(answers.train), answers.notes
    )
    write_arrays(folder, arrays, msgspec.json.encode(about))


def read_answers(folder: Path) -> Answers:
    """Return what `write_answers` wrote.

    Raises:
        OutputError: It was not written whole, or has gone.
    """
    arrays, text = read_arrays(folder)
    about = msgspec.json.decode(text, type=_About)
    return Answers(
        train=tuple(arrays[f"train{i}"] for i in range(about.outputs)),
        validation=tuple(arrays[f"validation{i}"] for i in range(about.outputs)),
        features=arrays.get("features"),
        reading=about.reading,
        augment=about.augment,
        seed=about.seed,
        fingerprint=about.fingerprint,
        notes=about.notes,
    )
