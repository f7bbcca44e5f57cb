import ast
import sys
from itertools import product
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from edgewright.profiling import worker
from edgewright.runtime.options import OptimizationLevel, RuntimeOptions, session_options

FILES = [Path(worker.__file__), Path(worker.__file__).with_name("power_meters.py")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_what_is_sent_needs_only_python_3_9_numpy_and_onnxruntime(path: Path) -> None:
    tree = ast.parse(path.read_text(), feature_version=(3, 9))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    roots = {name.split(".")[0] for name in names}
    assert roots - {"numpy", "onnxruntime"} <= sys.stdlib_module_names


@pytest.mark.parametrize("level", get_args(OptimizationLevel))
def test_the_worker_runs_models_as_the_runtime_room_does(level: OptimizationLevel) -> None:
    for threads, spinning in product((1, 2), (False, True)):
        options = RuntimeOptions(threads=threads, optimization=level, spinning=spinning)
        here, there = session_options(options), worker._session_options(msgspec.to_builtins(options))
        for name in (
            "intra_op_num_threads",
            "inter_op_num_threads",
            "graph_optimization_level",
            "execution_mode",
            "log_severity_level",
            "enable_mem_pattern",
            "enable_cpu_mem_arena",
        ):
            assert getattr(here, name) == getattr(there, name), name
        entry = "session.intra_op.allow_spinning"
        assert here.get_session_config_entry(entry) == there.get_session_config_entry(entry)
