"""Small networks, written as ONNX, trained through Edgewright's own bridge to PyTorch."""

import numpy as np
import onnx
import torch
from benchmarks.unusual.material import Material
from onnx import numpy_helper
from torch.nn import functional

from edgewright.compress.train.torch_graph.onnx_module import TrainableGraph

__all__ = ["trained"]

_BATCH = 128
_RATE = 2e-3


def trained(material: Material, seed: int = 0) -> onnx.ModelProto:
    """Return a network with an embedding of 64 features and a last layer, trained on the material."""
    random = np.random.default_rng(seed)
    x, y = material.train
    shapes = material.shapes | {"w5": (material.classes, 64)}
    weights = {
        name: random.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape).astype(np.float32)
        for name, shape in shapes.items()
    }
    weights |= {f"b{name[1:]}": np.zeros(shape[0], np.float32) for name, shape in shapes.items()}
    axes = ",".join(str(size) for size in x.shape[1:])
    text = (
        f'<ir_version: 8, opset_import: ["" : 17]> g (float[n,{axes}] x) => (float[n,{material.classes}] logits)'
        f" {{ {material.text} logits = Gemm<transB=1>(e, w5, b5) }}"
    )
    model = onnx.parser.parse_model(text)
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())
    torch.manual_seed(seed)
    network = TrainableGraph(model)
    steps = material.epochs * -(-len(x) // _BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), _RATE, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE * 2, total_steps=steps + 1)
    for _ in range(material.epochs):
        order = random.permutation(len(x))
        for start in range(0, len(x), _BATCH):
            picks = order[start : start + _BATCH]
            optimizer.zero_grad()
            loss = functional.cross_entropy(network(torch.from_numpy(x[picks]))[0], torch.from_numpy(y[picks]))
            loss.backward()
            optimizer.step()
            schedule.step()
    network.eval()
    return network.to_onnx()
