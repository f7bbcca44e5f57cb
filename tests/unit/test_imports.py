"""What a device installs is enough for what a device imports."""

import subprocess
import sys

# Everything that an extra or another package could bring along.
STUDIO = (
    "bsdiff4 dp_accounting obstore onnx opendp optuna rich scipy pyarrow PIL jinja2 river torch sklearn sqlalchemy "
    "alembic psycopg pandas hypothesis pytest"
)

BARE = f"""
import importlib, pkgutil, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {STUDIO.split()!r}:
            raise ModuleNotFoundError("not in a bare installation: " + name, name=name)

sys.meta_path.insert(0, Absent())
import edgewright, edgewright.contract, edgewright.device, edgewright.privacy, edgewright.runtime, edgewright.trust
for room in (edgewright.contract, edgewright.device, edgewright.privacy, edgewright.runtime, edgewright.trust):
    for module in pkgutil.walk_packages(room.__path__, room.__name__ + "."):
        # Each of these two has an extra of its own.
        if module.name not in ("edgewright.trust.storage.object_store", "edgewright.trust.keys.tpm"):
            importlib.import_module(module.name)
            print(module.name)
import edgewright.cli.commands.device, edgewright.cli.commands.helper
import edgewright.server.access_control, edgewright.server.store.records
assert "onnxruntime" not in sys.modules, "the core of the agent loads the runtime"
"""


def test_what_a_device_runs_imports_in_a_bare_installation() -> None:
    done = subprocess.run([sys.executable, "-c", BARE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {
        "edgewright.contract.config.project",
        "edgewright.device.agent",
        "edgewright.privacy.private_sum",
        "edgewright.trust.client.verification",
    } <= set(done.stdout.split())


def test_the_command_shows_its_help_without_loading_the_studio() -> None:
    code = BARE.split("import edgewright,")[0] + "from edgewright.cli.main import main; main(['--help'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "compress" in done.stdout
