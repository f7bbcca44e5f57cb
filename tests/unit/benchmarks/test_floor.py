import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
from sklearn.datasets import load_digits

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from benchmarks.tasks.floor import write_floor
from benchmarks.tasks.preparation import prepare_quick


def test_the_floor_takes_and_gives_what_the_model_does(tmp_path: Path) -> None:
    prepared = prepare_quick(tmp_path)
    images = load_digits().data[:5].astype(np.float32)
    shapes = [
        ort.InferenceSession(str(path)).run(None, {"x": images})[0].shape
        for path in (prepared.model, write_floor(prepared.model, tmp_path / "floor.onnx"))
    ]
    assert shapes[0] == shapes[1] == (5, 10)
