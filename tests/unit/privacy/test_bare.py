"""What a device loads for a private sum: nothing that only the side that asks needs."""

import subprocess
import sys

LOADED = """
import importlib, pkgutil, sys
import edgewright.privacy, edgewright.device.queries.ledger_file
for module in pkgutil.walk_packages(edgewright.privacy.__path__, "edgewright.privacy."):
    importlib.import_module(module.name)
print(*sorted({name.split(".")[0] for name in sys.modules}))
"""


def test_the_private_sum_loads_neither_scipy_nor_accounting_libraries_nor_the_runtime() -> None:
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert {"edgewright", "numpy", "msgspec"} <= loaded
    assert not loaded & {"scipy", "dp_accounting", "opendp", "onnxruntime", "torch", "pandas"}
