"""How long training takes, measured on a few steps before it is planned."""

import time

import numpy as np
import onnx
import torch

from edgewright.compress.train.data.training_data import TrainingData
from edgewright.compress.train.threads import use_one_thread
from edgewright.compress.train.torch_graph.onnx_module import TrainableGraph

__all__ = ["measure_seconds_per_row"]

_STEPS = 3
# Beside forward and backward: the optimiser, the augmentation, the teacher's share.
_SAFETY_FACTOR = 1.25


def measure_seconds_per_row(model: onnx.ModelProto, data: TrainingData, batch: int) -> float:
    """Return how long one thread takes to train a network on one row.

    Args:
        model: Float, or quantised to be trained.
        data: Whose rows.
        batch: Rows per step.

    Raises:
        CandidateError: The network cannot be trained.
    """
    with use_one_thread():
        network = TrainableGraph(model)
        rows = data.train[:batch]
        inputs = [torch.from_numpy(np.ascontiguousarray(array[rows])) for array in data.inputs]
        network.train()
        times = []
        for _ in range(_STEPS):
            began = time.perf_counter()
            loss = sum(output.float().square().mean() for output in network(*inputs) if output.is_floating_point())
            network.zero_grad(set_to_none=True)
            torch.as_tensor(loss).backward()
            times.append(time.perf_counter() - began)
    return _SAFETY_FACTOR * min(times) / len(rows)
