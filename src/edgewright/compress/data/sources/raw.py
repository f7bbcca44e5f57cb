"""Arrays as a source gives them, before they are held against the model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

__all__ = ["RawData"]


@dataclass(frozen=True, slots=True)
class RawData:
    """What a source holds.

    Attributes:
        arrays: Per model input, in any of the forms that `alignment.align` knows.
        labels: [n, ...], None if there are none.
        groups: [n], None if there are none.
        notes: What was assumed.
        is_images: Whether the arrays are pixels [n, height, width, channels], uint8, RGB or grey.
    """

    arrays: Mapping[str, NDArray[Any]]
    labels: NDArray[Any] | None
    groups: NDArray[Any] | None
    notes: tuple[str, ...] = ()
    is_images: bool = False
