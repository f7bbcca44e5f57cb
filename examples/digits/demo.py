"""The demo: compress a real model and train smaller ones, with a certificate, and say where the report is."""

import os
import sys
import tempfile
from pathlib import Path

from edgewright.cli.main import main

HERE = Path(__file__).parent

if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    print(
        "Compressing examples/digits/model.onnx, and training smaller networks with it as their teacher. At most 1 "
        "percentage point of accuracy may be lost, certified at 95 % on digits that nothing was trained or chosen "
        "by.",
        file=sys.stderr,
    )
    # A demo may be run again and again: its looks at the digits are not counted against yours.
    os.environ["EDGEWRIGHT_STATE"] = tempfile.mkdtemp(prefix="edgewright-demo-")
    out = Path("edgewright-out/digits")
    arguments = ["--data", "data:held_out", "--train", "data:training", "--max-drop", "0.01"]
    arguments += ["--time-limit", "150", "--out", str(out)]
    sys.exit(main(["compress", str(HERE / "model.onnx"), *arguments]))
