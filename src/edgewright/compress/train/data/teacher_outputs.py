"""A teacher's answers to the lessons: computed once, shared by all students."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
from numpy.typing import NDArray

from edgewright.compress.train.data.shared_arrays import read_arrays, write_arrays

__all__ = ["OutputMeaning", "TeacherOutputs", "read_teacher_outputs", "write_teacher_outputs"]

OutputMeaning = Literal["classes", "flags", "values"]


@dataclass(frozen=True, slots=True)
class TeacherOutputs:
    """What a teacher says.

    Attributes:
        train: Per float output [views, rows, ...] for `lessons.train`. The first is in logarithms of probabilities
            (classes), log-odds (flags) or as it is (values).
        validation: Per float output [rows, ...] for `lessons.validation`, not augmented.
        features: [views, rows, d] what the teacher's last layer reads; None if not wanted.
        meaning: What the first output means.
        augmentations: Augmentations of the views.
        seed: Of the views.
        fingerprint: sha256 over everything that the answers depend on, hex.
        notes: For people.
    """

    train: tuple[NDArray[Any], ...]
    validation: tuple[NDArray[Any], ...]
    features: NDArray[Any] | None
    meaning: OutputMeaning
    augmentations: tuple[str, ...]
    seed: int
    fingerprint: str
    notes: tuple[str, ...] = ()

    @property
    def view_count(self) -> int:
        """Number of augmented copies."""
        return len(self.train[0])


class _OutputsMetadata(msgspec.Struct, frozen=True):
    """What of answers is no array."""

    reading: OutputMeaning
    augment: tuple[str, ...]
    seed: int
    fingerprint: str
    outputs: int
    notes: tuple[str, ...]


def write_teacher_outputs(outputs: TeacherOutputs, folder: Path) -> None:
    """Write answers so that `read_teacher_outputs` gives them back, mapped and not copied."""
    arrays: dict[str, NDArray[Any]] = {f"train{i}": array for i, array in enumerate(outputs.train)}
    arrays |= {f"validation{i}": array for i, array in enumerate(outputs.validation)}
    if outputs.features is not None:
        arrays["features"] = outputs.features
    about = _OutputsMetadata(
        outputs.meaning, outputs.augmentations, outputs.seed, outputs.fingerprint, len(outputs.train), outputs.notes
    )
    write_arrays(folder, arrays, msgspec.json.encode(about))


def read_teacher_outputs(folder: Path) -> TeacherOutputs:
    """Return what `write_teacher_outputs` wrote.

    Raises:
        OutputError: It was not written whole, or has gone.
    """
    arrays, text = read_arrays(folder)
    about = msgspec.json.decode(text, type=_OutputsMetadata)
    return TeacherOutputs(
        train=tuple(arrays[f"train{i}"] for i in range(about.outputs)),
        validation=tuple(arrays[f"validation{i}"] for i in range(about.outputs)),
        features=arrays.get("features"),
        meaning=about.reading,
        augmentations=about.augment,
        seed=about.seed,
        fingerprint=about.fingerprint,
        notes=about.notes,
    )
