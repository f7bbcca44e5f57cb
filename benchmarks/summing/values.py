"""What is summed: the seam where a device's own noise comes in.

Masks do not care what they hide, so random integers stand here for noised values. `gift_cost` takes any other
source: with encoding and noise in it, it measures a device's whole answer.
"""

from collections.abc import Callable

import numpy as np

from edgewright.privacy.bit_packing import UnsignedArray

__all__ = ["Values", "drawn_values"]

# Returns what a device sums, shape [length]; `edgewright.privacy.private_sum.contribute` with its query fits.
Values = Callable[[], UnsignedArray]


def drawn_values(length: int, bits: int = 16, seed: int = 0) -> Values:
    """Return a source of random integers mod 2^bits, drawn beforehand."""
    values = np.random.default_rng(seed).integers(0, 1 << bits, length, dtype=np.uint64).astype(np.uint32)
    return lambda: values
