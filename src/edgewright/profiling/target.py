"""The machine that measures: this one, another over ssh, or a bench device that the control plane reaches.

A target takes a request with the files that it names, runs `worker.py` there in a fresh process, and returns its
reply. Nothing stays behind: the folder on the target is removed however the run ends, also when the connection is
lost, because the worker ends when its standard input does.
"""

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import msgspec

from edgewright.contract.errors import CandidateError, EdgewrightError, InputError, TargetError
from edgewright.profiling.bench_target import PROFILING_DEVICE, ProfilingDeviceTarget

__all__ = [
    "FREE_SPACE_ADVICE",
    "LocalTarget",
    "Machine",
    "MeasurementTarget",
    "SshTarget",
    "open_target",
    "parse_machine",
    "query_machine",
]

FREE_SPACE_ADVICE = "Free space in the folder for temporary files, or set TMPDIR to another one."

_WORKER_FILES = ("worker.py", "power_meters.py")
_SSH_ADDRESS = re.compile(
    r"ssh://(?:(?P<user>[A-Za-z0-9_.][\w.-]*)@)?(?P<host>[A-Za-z0-9][\w.-]*|\[[0-9A-Fa-f:]+\])(?::(?P<port>\d+))?/?"
)
# Exit codes of the shell script that is run on the far side.
_NO_FOLDER, _NO_PYTHON, _NOT_UNPACKED = 90, 91, 92
_CONNECTION_LOST = 75


class Machine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a target is, as it says itself.

    Attributes:
        cpu: Model name.
        cores: Cores that the worker may use.
        arch: e.g. "x86_64", "aarch64".
        features: Instructions that matter for quantised inference, as Linux names them.
        memory_bytes: Installed memory, 0 if unknown.
        os: Kernel and its release.
        python: Version.
        runtime: Version of onnxruntime.
        providers: Execution providers of that build.
        runtime_bytes: Size of the runtime's libraries on disk.
        meters: Names of the energy meters that can be read there.
    """

    cpu: str
    cores: int
    arch: str
    features: tuple[str, ...]
    memory_bytes: int
    os: str
    python: str
    runtime: str
    providers: tuple[str, ...]
    runtime_bytes: int
    meters: tuple[str, ...]

    @property
    def summary(self) -> str:
        """One line for the origin of a figure, e.g. "AMD EPYC, 2 cores, x86_64, avx512_vnni"."""
        order = ("amx_int8", "avx512_vnni", "avx_vnni", "i8mm", "asimddp", "avx512f", "avx2", "asimd", "neon")
        best = [name for name in order if name in self.features][:1]
        cores = f"{self.cores} core{'s' if self.cores != 1 else ''}"
        return ", ".join([self.cpu, cores, self.arch, *best])


class MeasurementTarget(Protocol):
    """A machine that can measure."""

    @property
    def name(self) -> str:
        """As given to `open_target`."""

    def run(
        self, request: Mapping[str, Any], files: Mapping[str, Path], *, timeout_seconds: float
    ) -> dict[str, Any]:
        """Run the worker once.

        Args:
            request: For the worker; a subject's "model" and "inputs_file" are names in `files`.
            files: Names on the target, relative, and where the files are here.
            timeout_seconds: After which the run is ended.

        Returns:
            The worker's reply.

        Raises:
            TargetError: The machine cannot be reached, lacks something, was lost, or took too long.
            CandidateError: The worker itself failed: the model does not load, does not run, or crashes the runtime.
        """


def open_target(spec: str) -> MeasurementTarget:
    """Return the target that a specification names; no connection is made yet.

    Raises:
        InputError: It is neither "local" nor "ssh://[user@]host[:port]" nor "bench:NAME".

    >>> open_target("ssh://pi@camera.example:2222").name
    'ssh://pi@camera.example:2222'
    """
    if spec == "local":
        return LocalTarget()
    if bench := PROFILING_DEVICE.fullmatch(spec):
        return ProfilingDeviceTarget(name=spec, device_selector=bench["device"])
    match = _SSH_ADDRESS.fullmatch(spec)
    if match is None or not 0 < int(match["port"] or 22) < 65536:
        raise InputError(
            f"{spec!r} is not a target",
            remedy='Write "local", "bench:NAME", or "ssh://user@host" with an optional :port from 1 to 65535.',
        )
    port = int(match["port"]) if match["port"] else None
    return SshTarget(name=spec, user=match["user"], host=match["host"].strip("[]"), port=port)


def query_machine(target: MeasurementTarget) -> Machine:
    """Ask a target what it is.

    Raises:
        TargetError: It cannot be reached or lacks something.
    """
    return parse_machine(target.run({"action": "machine"}, {}, timeout_seconds=60))


def parse_machine(reply: Mapping[str, Any]) -> Machine:
    """Return the machine that every reply of the worker describes."""
    return msgspec.convert(reply["machine"], Machine)


@dataclass(frozen=True, slots=True)
class LocalTarget:
    """This machine."""

    name: str = "local"

    def run(
        self, request: Mapping[str, Any], files: Mapping[str, Path], *, timeout_seconds: float
    ) -> dict[str, Any]:
        """Run the worker in a subprocess; see `Target.run`."""
        try:
            with tempfile.TemporaryDirectory(prefix="edgewright-") as folder:
                # The files are used where they are: onnxruntime refuses external data behind a link.
                Path(folder, "request.json").write_text(json.dumps(_with_local_paths(request, files)))
                worker = str(Path(__file__).with_name("worker.py"))
                command = [sys.executable, worker, str(Path(folder, "request.json"))]
                environment = {**os.environ, "TMPDIR": folder}
                code, out, err = _run_command(command, None, timeout_seconds, self.name, environment)
        except OSError as error:
            raise TargetError(
                f"{self.name}: the worker could not be started: {error}",
                remedy=FREE_SPACE_ADVICE,
            ) from error
        return _parse_reply(self.name, code, out, err)


def _with_local_paths(value: Any, files: Mapping[str, Path]) -> Any:
    """Return a request with the names of files replaced by their paths on this machine."""
    if isinstance(value, Mapping):
        return {
            key: str(files[each].absolute()) if key in ("model", "inputs_file") else _with_local_paths(each, files)
            for key, each in value.items()
        }
    if isinstance(value, list):
        return [_with_local_paths(each, files) for each in value]
    return value


@dataclass(frozen=True, slots=True)
class SshTarget:
    """Another machine, reached with the OpenSSH client and its configuration.

    EDGEWRIGHT_SSH_OPTIONS adds options to the client's command line, EDGEWRIGHT_SSH_PYTHON names the Python there.
    """

    name: str
    host: str
    user: str | None = None
    port: int | None = None

    def run(
        self, request: Mapping[str, Any], files: Mapping[str, Path], *, timeout_seconds: float
    ) -> dict[str, Any]:
        """Send the worker with its files through ssh and run it; see `Target.run`."""
        with tempfile.TemporaryFile() as bundle:
            try:
                _pack_archive(bundle, request, files)
            except OSError as error:
                raise TargetError(
                    f"{self.name}: the files to send could not be packed here: {error}",
                    remedy=FREE_SPACE_ADVICE,
                ) from error
            size = bundle.tell()
            bundle.seek(0)
            python = os.environ.get("EDGEWRIGHT_SSH_PYTHON", "python3")
            try:
                code, out, err = _run_command(
                    [*self._client(), _remote_script(python, size)], bundle, timeout_seconds, self.name
                )
            except FileNotFoundError as error:
                raise TargetError(
                    "the OpenSSH client is missing on this machine",
                    remedy="Install it, for example with: apt install openssh-client.",
                ) from error
        problem = _ssh_problem(self.name, self.host, python, code, err)
        if problem is not None:
            raise problem
        return _parse_reply(self.name, code, out, err)

    def _client(self) -> list[str]:
        command = ["ssh", *shlex.split(os.environ.get("EDGEWRIGHT_SSH_OPTIONS", ""))]
        for option in ("BatchMode=yes", "ConnectTimeout=10", "ServerAliveInterval=5", "ServerAliveCountMax=3"):
            command += ["-o", option]
        command += ["-T"]
        if self.port is not None:
            command += ["-p", str(self.port)]
        if self.user is not None:
            command += ["-l", self.user]
        return [*command, "--", self.host]


def _pack_archive(bundle: IO[bytes], request: Mapping[str, Any], files: Mapping[str, Path]) -> None:
    """Write worker, request and files as a tar archive."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(dict(request), file)
        file.flush()
        with tarfile.open(fileobj=bundle, mode="w", dereference=True) as archive:
            for name in _WORKER_FILES:
                archive.add(Path(__file__).with_name(name), name)
            archive.add(file.name, "request.json")
            for name, path in files.items():
                archive.add(path, name)


def _remote_script(python: str, archive_size: int) -> str:
    """Return the command line for the far side's login shell, whichever shell that is.

    Standard input is the archive and then stays open for as long as the connection lives.
    Whatever a library leaves in TMPDIR goes with the folder.
    """
    lines = [
        'd=$(mktemp -d "${TMPDIR:-/tmp}/edgewright.XXXXXX") || exit ' + str(_NO_FOLDER),
        "trap 'rm -rf \"$d\"' EXIT",
        "trap 'exit 129' HUP INT TERM PIPE",
        f"command -v {shlex.quote(python)} >/dev/null || exit {_NO_PYTHON}",
        f'head -c {archive_size} | (cd "$d" && tar xf -) || exit {_NOT_UNPACKED}',
        "exec 3<&0",
        f'TMPDIR="$d" {shlex.quote(python)} "$d/worker.py" "$d/request.json" <&3 & p=$!',
        "trap 'kill $p 2>/dev/null; exit 129' HUP INT TERM PIPE",
        "wait $p; exit $?",
    ]
    return "exec sh -c " + shlex.quote("\n".join(lines))


def _run_command(
    command: Sequence[str],
    stdin_file: IO[bytes] | None,
    timeout_seconds: float,
    name: str,
    environment: Mapping[str, str] | None = None,
) -> tuple[int, bytes, str]:
    """Run a command whose standard input stays open until it ends; return its code, output and errors."""
    with (
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out, stderr=err, env=environment) as process,
    ):
        timed_out = threading.Event()

        def end() -> None:
            timed_out.set()
            process.kill()

        timer = threading.Timer(timeout_seconds, end)
        timer.daemon = True
        timer.start()
        assert process.stdin is not None  # noqa: S101 (asked for above)
        try:
            with contextlib.suppress(BrokenPipeError):  # the exit code says why
                while stdin_file is not None and (block := stdin_file.read(1 << 18)):
                    process.stdin.write(block)
                process.stdin.flush()
            code = process.wait()
        finally:
            timer.cancel()
            process.kill()
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        if timed_out.is_set():
            raise TargetError(
                f"{name}: the measurement took longer than {timeout_seconds:.0f} s and was ended",
                remedy="Check the machine's load and connection, or measure a smaller model first.",
            )
        out.seek(0)
        err.seek(0)
        return code, out.read(), err.read().decode(errors="replace").strip()


def _parse_reply(name: str, code: int, out: bytes, err: str) -> dict[str, Any]:
    """Return the worker's reply, the last line of its output."""
    last = err.splitlines()[-1] if err else ""
    try:
        reply = json.loads(out.strip().splitlines()[-1])
    except (IndexError, ValueError):
        reply = None
    if not isinstance(reply, dict):
        signal = -code if code < 0 else code - 128
        if code == _CONNECTION_LOST:
            raise TargetError(f"{name}: the worker lost its connection", remedy="Try again.")
        if 0 < signal < 65:
            raise CandidateError(
                f"{name}: the runtime was ended by signal {signal} while it loaded or ran the model",
                remedy="Out of memory ends a process with signal 9; otherwise try another onnxruntime version.",
            )
        raise TargetError(
            f"{name}: the worker ended with code {code} and no reply: {last}",
            remedy="Python 3.9 or newer with numpy and onnxruntime is needed there.",
        )
    if "error" in reply:
        raise _worker_problem(name, reply["error"]["kind"], reply["error"]["message"])
    return reply


def _worker_problem(name: str, kind: str, message: str) -> EdgewrightError:
    if kind == "missing":
        return TargetError(
            f"{name}: a library is missing: {message}",
            remedy="Install what the worker needs there: python3 -m pip install numpy onnxruntime.",
        )
    if kind == "disk":
        return TargetError(f"{name}: {message}", remedy="Free space on that machine, or set its TMPDIR elsewhere.")
    if kind == "system":
        return TargetError(f"{name}: {message}", remedy="Check permissions and limits on that machine.")
    return CandidateError(
        f"{name}: {message}", remedy="Check that the model loads in the onnxruntime of that machine."
    )


_SSH_HINTS = {
    "Connection refused": "Check the port, and that sshd runs there.",
    "Host key verification failed": "Connect once by hand with ssh and confirm the host key.",
    "Permission denied": "Put your key into authorized_keys there (ssh-copy-id) and load it into the agent.",
    "Could not resolve hostname": "Check the host name.",
    "timed out": "Check that the machine is switched on and reachable.",
    "No route to host": "Check that the machine is switched on and reachable.",
}


def _ssh_problem(name: str, host: str, python: str, code: int, err: str) -> TargetError | None:
    """Return what went wrong before the worker ran, or None."""
    last = err.splitlines()[-1].strip() if err else ""
    if code == 255:
        remedy = next((text for sign, text in _SSH_HINTS.items() if sign in err), None)
        if remedy is None:
            return TargetError(
                f"{name}: the connection was lost: {last}" if last else f"{name}: the connection was lost",
                remedy=f"Check that 'ssh {host} true' works, then try again.",
            )
        return TargetError(f"{name}: {last}", remedy=remedy)
    if code == _NO_PYTHON:
        return TargetError(
            f"{name}: {python} was not found there",
            remedy="Install Python 3.9 or newer, or name it in EDGEWRIGHT_SSH_PYTHON.",
        )
    if code in (_NO_FOLDER, _NOT_UNPACKED):
        full = "No space left" in err or "quota" in err.lower()
        what = "the disk is full there" if full else "the files could not be unpacked there"
        return TargetError(
            f"{name}: {what}: {last}", remedy="Free space there, or set its TMPDIR to another folder."
        )
    return None
