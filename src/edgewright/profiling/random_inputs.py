"""Inputs for a model when there is no data."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from edgewright.contract.errors import DataError
from edgewright.contract.model.signature import ModelSignature, TensorSpec
from edgewright.runtime.options import RuntimeOptions, session_options

__all__ = ["random_inputs", "runnable_inputs"]

# Tried for axes of free size, since many models need more than one sample of a signal.
_FREE_AXIS_SIZES = (8, 32, 128, 512, 1024)
_MAX_ELEMENTS = 50_000_000


def random_inputs(
    contract: ModelSignature, seed: int = 0, sizes: Mapping[str, int] | None = None
) -> dict[str, NDArray[Any]]:
    """Return the inputs of one inference.

    Floats are drawn between the contract's ranges, or 0 and 1 where it has none. Integers are 0 where the range is
    unknown, since they may be indices.

    Args:
        contract: Of the model.
        seed: Of the values.
        sizes: Of symbolic axes; 1 for those that are not named.

    >>> contract = ModelSignature((TensorSpec("x", "float32", ("batch", 3)),), ())
    >>> random_inputs(contract)["x"].shape
    (1, 3)
    """
    random = np.random.default_rng(seed)
    return {spec.name: _random_array(spec, random, sizes or {}) for spec in contract.inputs}


def _random_array(spec: TensorSpec, random: np.random.Generator, sizes: Mapping[str, int]) -> NDArray[Any]:
    shape = tuple(size if isinstance(size, int) else sizes.get(size, 1) for size in spec.shape)
    dtype = np.dtype(spec.dtype)
    low, high = spec.low or 0.0, spec.high
    if dtype.kind == "f":
        return np.asarray(random.uniform(low, 1.0 + low if high is None else high, shape), dtype)
    if dtype.kind in "iu" and high is not None:
        return random.integers(int(low), int(high), shape, dtype=dtype, endpoint=True)
    return np.zeros(shape, dtype)


def runnable_inputs(model: Path, contract: ModelSignature, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Return random inputs that the model runs with on this machine, with the free axes as small as that allows.

    Raises:
        DataError: No size that was tried lets it run.
    """
    options = session_options(RuntimeOptions())
    options.log_severity_level = 4
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    first = ""
    for sizes in _candidate_axis_sizes(contract):
        feed = random_inputs(contract, seed, sizes)
        try:
            session.run(None, feed)
        except Exception as error:  # onnxruntime's own exceptions share no public base class
            first = first or str(error).strip().splitlines()[0]
        else:
            return feed
    raise DataError(
        f"{model} does not run with random input of any size tried: {first}", remedy="Give real input with --data."
    )


def _candidate_axis_sizes(contract: ModelSignature) -> Iterator[dict[str, int]]:
    """Yield sizes of the symbolic axes: all 1, then each alone larger, then all but the batch's larger."""
    yield {}
    axes = [axis for spec in contract.inputs for axis in spec.shape[1:] if isinstance(axis, str)]
    free = list(dict.fromkeys(axes))
    batch = {spec.shape[0] for spec in contract.inputs if spec.has_free_batch_axis}
    candidates = [{axis: size} for size in _FREE_AXIS_SIZES for axis in free]
    candidates += [{axis: size for axis in free if axis not in batch} for size in _FREE_AXIS_SIZES]
    for sizes in candidates:
        elements = sum(
            int(
                np.prod([axis if isinstance(axis, int) else sizes.get(axis, 1) for axis in spec.shape], dtype=float)
            )
            for spec in contract.inputs
        )
        if elements <= _MAX_ELEMENTS:
            yield sizes
