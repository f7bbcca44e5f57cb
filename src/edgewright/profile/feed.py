"""Inputs for a model when there is no data."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgewright.contract.signature import InputContract, TensorSpec

__all__ = ["random_feed"]


def random_feed(contract: InputContract, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Return the inputs of one inference; every symbolic axis gets the size 1.

    Floats are drawn between the contract's ranges, or 0 and 1 where it has none. Integers are 0 where the range is
    unknown, since they may be indices.

    >>> contract = InputContract((TensorSpec("x", "float32", ("batch", 3)),), ())
    >>> random_feed(contract)["x"].shape
    (1, 3)
    """
    random = np.random.default_rng(seed)
    return {spec.name: _array(spec, random) for spec in contract.inputs}


def _array(spec: TensorSpec, random: np.random.Generator) -> NDArray[Any]:
    shape = tuple(size if isinstance(size, int) else 1 for size in spec.shape)
    dtype = np.dtype(spec.dtype)
    low, high = spec.low or 0.0, spec.high
    if dtype.kind == "f":
        return np.asarray(random.uniform(low, 1.0 + low if high is None else high, shape), dtype)
    if dtype.kind in "iu" and high is not None:
        return random.integers(int(low), int(high), shape, dtype=dtype, endpoint=True)
    return np.zeros(shape, dtype)
