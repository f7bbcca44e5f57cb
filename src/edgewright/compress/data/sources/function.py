"""The user's own code, named as `module:function`: the only code that data or a metric can bring along."""

import importlib
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewright.contract.errors import DataError

__all__ = ["call_data_function", "is_function_reference", "load_function"]

_REFERENCE = re.compile(r"([A-Za-z_][\w.]*):([A-Za-z_]\w*)")


def is_function_reference(text: str) -> bool:
    """Tell `module:function` from a path.

    >>> is_function_reference("my.data:load"), is_function_reference("data.npz")
    (True, False)
    """
    return _REFERENCE.fullmatch(text) is not None


def load_function(reference: str) -> Callable[..., Any]:
    """Import `module:function`, looking in the current folder first.

    Raises:
        DataError: Not such a reference, or the module or function cannot be had.
    """
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise DataError(
            f"{reference!r} is not of the form module:function", remedy="Write for example my_data:load."
        )
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        function = getattr(importlib.import_module(match[1]), match[2], None)
    except Exception as error:  # importing runs the user's code, which may raise anything
        raise DataError(
            f"module {match[1]!r} cannot be imported: {type(error).__name__}: {error}",
            remedy=f"It is looked for in {folder} first, then where Python looks.",
        ) from error
    finally:
        sys.path.remove(folder)
    if not callable(function):
        raise DataError(
            f"module {match[1]!r} has no function {match[2]!r}", remedy="Check the name after the colon."
        )
    return function  # type: ignore[no-any-return] # callable() does not narrow Any


def call_data_function(reference: str) -> dict[str, NDArray[Any]]:
    """Call the user's function; it returns a dict of arrays, or the tuple (x, y).

    Raises:
        DataError: The function raised, or returned something else.
    """
    function = load_function(reference)
    try:
        result = function()
    except Exception as error:  # the user's code may raise anything
        raise DataError(
            f"{reference} raised {type(error).__name__}: {error}", remedy="Call it by itself to see where."
        ) from error
    if isinstance(result, tuple) and len(result) == 2:
        result = {"x": result[0], "y": result[1]}
    if not isinstance(result, Mapping) or not all(isinstance(name, str) for name in result):
        raise DataError(
            f"{reference} returned {type(result).__name__}",
            remedy="Return a dict of arrays, named as in an .npz file, or the tuple (x, y).",
        )
    arrays = {str(name): np.asarray(value) for name, value in result.items() if value is not None}
    for name, array in arrays.items():
        if array.dtype == object:
            raise DataError(
                f"{reference} returned {name!r} with Python objects, perhaps rows of different lengths",
                remedy="Return arrays of numbers, bools or strings.",
            )
    return arrays
