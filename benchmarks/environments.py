"""The environments that trainers and peers run in, made from pinned requirements, and what a run in them costs."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

__all__ = ["CACHE", "PEERS", "Run", "digest", "environment", "timed"]

_HERE = Path(__file__).resolve().parent
CACHE = _HERE / ".cache"
PEERS = _HERE / "peers"

# A run's peak memory is asked of a small process between, since Linux counts the memory of whoever started a
# process as the process's own.
_LAUNCHER = """
import json, resource, subprocess, sys, time
began = time.monotonic()
code = subprocess.call(sys.argv[2:])
used = resource.getrusage(resource.RUSAGE_CHILDREN)
figures = [code, time.monotonic() - began, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024]
open(sys.argv[1], "w").write(json.dumps(figures))
"""


class Run(msgspec.Struct, frozen=True):
    """What a command did and cost.

    Attributes:
        code: Exit code; None if it was ended for taking too long.
        stdout: All of it.
        error: The last lines of stderr.
        wall_seconds: From start to end.
        cpu_seconds: Of the command and its children.
        peak_bytes: Greatest resident memory of any one of its processes.
    """

    code: int | None
    stdout: str
    error: str
    wall_seconds: float
    cpu_seconds: float
    peak_bytes: int


def digest(*parts: bytes | memoryview | str | Path) -> str:
    """Return a short digest of texts, bytes and files' contents."""
    total = hashlib.sha256()
    for part in parts:
        content = part.read_bytes() if isinstance(part, Path) else part.encode() if isinstance(part, str) else part
        total.update(hashlib.sha256(content).digest())
    return total.hexdigest()[:20]


def environment(name: str) -> Path:
    """Return the interpreter of a peer's environment, made from `peers/requirements-NAME.txt` if it is not there.

    What stands in `peers/requirements-NAME-alone.txt` is installed without its dependencies.

    Raises:
        RuntimeError: pip failed; the message holds its last lines.
    """
    requirements, alone = PEERS / f"requirements-{name}.txt", PEERS / f"requirements-{name}-alone.txt"
    files = [file for file in (requirements, alone) if file.exists()]
    folder = CACHE / f"venv-{name}"
    python, marker = folder / "bin" / "python", folder / "made-from"
    wanted = digest(sys.version, *files)
    if marker.exists() and marker.read_text() == wanted:
        return python
    print(f"making the environment of {name} (once)", file=sys.stderr, flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    commands = [[sys.executable, "-m", "venv", str(folder)]]
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    commands += [[*pip, *(["--no-deps"] if file == alone else []), "-r", str(file)] for file in files]
    for command in commands:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            raise RuntimeError(f"{' '.join(command[:4])} failed: {result.stderr[-600:]}")
    marker.write_text(wanted)
    return python


def timed(command: Sequence[str], *, timeout_seconds: float, variables: Mapping[str, str] | None = None) -> Run:
    """Run a command and measure it."""
    quiet = {"OLIVE_DISABLE_TELEMETRY": "1", "CI": "true", "PYTHONWARNINGS": "ignore"}
    with tempfile.TemporaryDirectory() as folder:
        figures, out, error = (Path(folder, name) for name in ("figures", "out", "error"))
        with out.open("wb") as stdout, error.open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(figures), *command],
                stdout=stdout,
                stderr=stderr,
                env={**os.environ, **quiet, **(variables or {})},
                start_new_session=True,
            )
            try:
                process.wait(timeout_seconds)
            except BaseException as reason:  # also Ctrl-C: the command is in a session of its own
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                if not isinstance(reason, subprocess.TimeoutExpired):
                    raise
        said = error.read_text(errors="replace")
        last = "\n".join(said.strip().splitlines()[-8:])[-1500:]
        if not figures.exists():
            return Run(None, "", f"ended after {timeout_seconds:.0f} s\n{last}", timeout_seconds, 0.0, 0)
        code, wall_seconds, cpu_seconds, peak_bytes = msgspec.json.decode(
            figures.read_bytes(), type=tuple[int, float, float, int]
        )
        return Run(code, out.read_text(errors="replace"), last, wall_seconds, cpu_seconds, peak_bytes)
