"""What devices import of the signals needs numpy and the records alone."""

import subprocess
import sys

import pytest

ABSENT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("scipy", "sklearn", "onnx", "torch", "onnxruntime"):
            raise ModuleNotFoundError("not on a device: " + name, name=name)
sys.meta_path.insert(0, Absent())
"""


@pytest.mark.parametrize("module", ["calibration", "conformal", "ood_scores"])
def test_it_imports_on_a_device(module: str) -> None:
    code = f"{ABSENT}import edgewright.stats.{module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
