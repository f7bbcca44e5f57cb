"""How much memory an agent takes, in processes of its own."""

import subprocess
import sys
from pathlib import Path

__all__ = ["resident_mb"]

# The signing library loads what clouds have for keys, if it is installed; developers' tools bring some of that.
_ALONE = """
import sys
for name in ("boto3", "botocore", "google", "azure", "PyKCS11", "asn1crypto", "pysequoia", "hvac"):
    sys.modules[name] = None
"""
_TELL = """
with open("/proc/self/status") as lines:
    print(next(int(line.split()[1]) / 1024 for line in lines if line.startswith("{}")))
"""
CORE = """
import sys
from pathlib import Path
from edgewright.device import Agent
agent = Agent(Path(sys.argv[1]), serves_model=False)
agent.status()
assert "onnxruntime" not in sys.modules and "torch" not in sys.modules
"""
CHECKED = """
import sys
from pathlib import Path
from edgewright.device import Agent
agent = Agent(Path(sys.argv[1]))
agent.check_for_update()
import numpy as np
for _ in range(100):
    assert agent.predict({"x": np.ones((1, 16), np.float32)}).outputs
assert "torch" not in sys.modules
"""
BARE = "import numpy, onnxruntime"


def resident_mb(script: str, *arguments: Path, peak: bool = False) -> float:
    """Return the resident memory of a process at a script's end, or its peak, MB of 2**20 bytes."""
    tell = _TELL.format("VmHWM" if peak else "VmRSS")
    done = subprocess.run(
        [sys.executable, "-c", _ALONE + script + tell, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout.split()[-1])
