"""Tasks made ready: the trained network and the data files, kept in the cache until their sources change."""

import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from benchmarks.environments import CACHE, PEERS, digest, environment, timed
from benchmarks.tasks.trained import Task
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

__all__ = ["MODELS", "SHARED", "Prepared", "prepare", "prepare_quick", "write_arrays"]

_BESIDE = Path(__file__).resolve().parents[3] / "shared"
SHARED = _BESIDE / "data"
MODELS = _BESIDE / "models"
_TRAINING_LIMIT_SECONDS = 3 * 3600.0
_SEED = "0"


@dataclass(frozen=True, slots=True)
class Prepared:
    """Files of a task: the trained model, and what Edgewright is given as data.

    Attributes:
        network: Name in `peers/train.py`; empty if it was not made there.
        state: Its weights as torch has them.
        train: What it was trained on; a tool that trains may have it.
    """

    name: str
    title: str
    model: Path
    data: Path
    group: str | None
    max_drops: tuple[float, ...]
    network: str = ""
    state: Path | None = None
    train: Path | None = None


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> Path:
    """Write an .npz file by renaming, so that a broken run leaves none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".writing.npz")
    np.savez(fresh, allow_pickle=False, **arrays)
    return fresh.replace(path)


def prepare(task: Task) -> Prepared:
    """Train a task's network unless that was done with the same sources.

    Raises:
        FileNotFoundError: The shared data is not beside the checkout.
        RuntimeError: The environment could not be made, or training failed.
    """
    if not SHARED.is_dir():
        raise FileNotFoundError(f"{SHARED} is not there: the data of this task stands beside the checkout")
    script = PEERS / "train.py"
    material = task.load(SHARED)
    arrays = (
        np.ascontiguousarray(array).data for part in (material.train, material.held) for array in part.values()
    )
    key = digest(_SEED, task.network, script, *sorted(PEERS.glob("requirements-train*.txt")), *arrays)
    folder = CACHE / "tasks" / f"{task.name}-{key}"
    model, state = folder / "model.onnx", folder / "teacher.pt"
    data, training = folder / "held.npz", folder / "train.npz"
    if not all(path.exists() for path in (model, state, data, training)):
        write_arrays(data, material.held)
        write_arrays(training, material.train)
        fresh = folder / "training.onnx"
        command = [str(environment("train")), str(script), task.network, str(training), str(fresh), _SEED]
        print(f"training the network of {task.name} (once, some minutes)", file=sys.stderr, flush=True)
        run = timed(command, timeout_seconds=_TRAINING_LIMIT_SECONDS)
        if run.code != 0:
            raise RuntimeError(f"training {task.network} failed: {run.error}")
        (folder / "training.txt").write_text(f"{run.error}\n{run.wall_seconds:.0f} s\n")
        fresh.with_suffix(".pt").replace(state)
        fresh.replace(model)
    return Prepared(
        name=task.name,
        title=task.title,
        model=model,
        data=data,
        group=task.group,
        max_drops=task.max_drops,
        network=task.network,
        state=state,
        train=training,
    )


def prepare_quick(folder: Path) -> Prepared:
    """Train a small perceptron on scikit-learn's digits and write its ONNX by hand: no torch, a second or two."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    images, labels = (images[order] / 16).astype(np.float32), labels[order]
    network = MLPClassifier((128, 128), max_iter=40, tol=0.0, early_stopping=True, random_state=0)
    with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
        network.fit(images[:700], labels[:700])
    nodes, weights, flow = [], [], "x"
    for i, (kernel, bias) in enumerate(zip(network.coefs_, network.intercepts_, strict=True)):
        weights += [
            numpy_helper.from_array(kernel.astype(np.float32), f"w{i}"),
            numpy_helper.from_array(bias.astype(np.float32), f"b{i}"),
        ]
        last = i == len(network.coefs_) - 1
        nodes.append(
            helper.make_node("Gemm", [flow, f"w{i}", f"b{i}"], ["logits" if last else f"g{i}"], f"gemm{i}")
        )
        if not last:
            nodes.append(helper.make_node("Relu", [f"g{i}"], [f"r{i}"], f"relu{i}"))
            flow = f"r{i}"
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])
    graph = helper.make_graph(nodes, "digits", [x], [logits], weights)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / "model.onnx"
    onnx.save(proto, str(model))
    data = write_arrays(folder / "held.npz", {"x": images[700:], "y": labels[700:]})
    return Prepared("quick", "perceptron, scikit-learn's digits", model, data, None, (0.03,))
