"""Arrays in a folder, so that worker processes share one copy of them in memory."""

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewright.compress.output_folder import write_file
from edgewright.contract.errors import OutputError

__all__ = ["read_arrays", "write_arrays"]

_ABOUT = "about.json"


def write_arrays(folder: Path, arrays: Mapping[str, NDArray[Any]], about: bytes) -> None:
    """Write arrays and what is to be known of them; `about` comes last, so that a folder with it is whole.

    Raises:
        OutputError: The folder cannot be written.
    """
    for name, array in arrays.items():
        stream = BytesIO()
        np.save(stream, np.ascontiguousarray(array), allow_pickle=False)
        write_file(folder / f"{name}.npy", stream.getvalue())
    write_file(folder / _ABOUT, about)


def read_arrays(folder: Path) -> tuple[dict[str, NDArray[Any]], bytes]:
    """Return the arrays of a folder, mapped from the files, and `about`.

    Raises:
        OutputError: It was not written whole, or has gone.
    """
    try:
        about = (folder / _ABOUT).read_bytes()
        arrays = {
            path.stem: np.load(path, mmap_mode="r", allow_pickle=False) for path in sorted(folder.glob("*.npy"))
        }
    except (OSError, ValueError) as error:
        raise OutputError(f"{folder} cannot be read: {error}", remedy="Start the training again.") from error
    return arrays, about
