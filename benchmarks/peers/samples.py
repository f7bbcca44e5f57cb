"""Calibration samples as the peers read them: an .npz whose arrays are named as the model's inputs.

Each array is [samples, *shape of one inference], so that `array[i]` is what the model takes.
"""

import numpy as np


def read(path):
    """Return one feed per sample."""
    with np.load(path, allow_pickle=False) as arrays:
        columns = {name: arrays[name] for name in arrays.files}
    count = len(next(iter(columns.values())))
    return [{name: np.ascontiguousarray(column[i]) for name, column in columns.items()} for i in range(count)]
