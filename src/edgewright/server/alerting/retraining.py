"""Running what the local project file names as retraining: one at a time, for so long, with what it says in a file.

What is run comes from the project file alone; nothing of an alert is in its command line. A lock on a file is held
by the process that runs and all that it starts, so after a restart of the server a second one waits for the first.
"""

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from edgewright.contract.config.fleet import RetrainingConfig
from edgewright.contract.errors import OutputError

__all__ = ["Retrainer", "RetrainingResult"]

_CALL = "import importlib, sys; getattr(importlib.import_module(sys.argv[1]), sys.argv[2])()"
_HEAD_BYTES, _TAIL_BYTES, _CHUNK = 1 << 20, 1 << 16, 1 << 12
_GRACE_SECONDS = 5.0
_LOGS = 20


@dataclass(frozen=True, slots=True)
class RetrainingResult:
    """What came of a run.

    Attributes:
        action_id: Name of what set it off.
        exit_code: Exit code; negative for the signal that ended it.
        seconds: That it took.
        timed_out: Whether it was ended for that.
        log_file: Name of the file with what it said.
    """

    action_id: str
    exit_code: int
    seconds: float
    timed_out: bool
    log_file: str


@dataclass(slots=True)
class Retrainer:
    """Runs it.

    Attributes:
        retraining: Of the project file.
        project: Folder that it runs in.
        folder: For what it says, and the lock.
        hidden: Variables of the environment that it does not see: the server's secrets.
    """

    retraining: RetrainingConfig
    project: Path
    folder: Path
    hidden: Collection[str] = ()
    running: str = ""
    _process: subprocess.Popen[bytes] | None = None
    _ended: list[RetrainingResult] = field(default_factory=list)
    _thread: threading.Thread | None = None

    def start(self, act: str) -> bool:
        """Begin a run, and return whether it began; not while one is under way, of an earlier server either.

        Raises:
            OutputError: The folder cannot be written.
            WorkError: There is no such program.
        """
        if self.running:
            return False
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise OutputError(
                f"{self.folder} cannot be written: {error.strerror}", remedy="Permit writing there."
            ) from error
        try:
            if not _locked(lock):
                return False
            self._begin(act, lock)
        finally:
            os.close(lock)
        return True

    def is_free(self) -> bool:
        """Whether nothing runs, of an earlier server either."""
        if self.running:
            return False
        try:
            lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return True
        try:
            return _locked(lock)
        finally:
            os.close(lock)

    def poll(self) -> RetrainingResult | None:
        """Return what came of a run that has ended since, once."""
        if self._ended and self._thread is not None:
            self._thread.join()
            self.running, self._process, self._thread = "", None, None
            return self._ended.pop()
        return None

    def stop(self) -> None:
        """End what runs."""
        if self._process is not None and self._process.poll() is None:
            _end(self._process)
        if self._thread is not None:
            self._thread.join()

    def _begin(self, act: str, lock: int) -> None:
        module, _, function = self.retraining.function.partition(":")
        log = self.folder / f"{act}.log"
        command = list(self.retraining.command) or [sys.executable, "-c", _CALL, module, function]
        try:
            log.write_bytes(b"")
            process = subprocess.Popen(
                command,
                cwd=self.project,
                env={name: value for name, value in os.environ.items() if name not in self.hidden},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(lock,),
                start_new_session=True,
            )
        except OSError as error:
            raise OutputError(
                f"retraining cannot begin: {error.strerror} ({command[0]})",
                remedy="See [retraining] of the project.",
            ) from error
        for old in sorted(self.folder.glob("*.log"), key=lambda path: path.stat().st_mtime)[:-_LOGS]:
            old.unlink(missing_ok=True)
        self.running, self._process = act, process
        self._thread = threading.Thread(target=self._watch, args=(act, process, log), daemon=True)
        self._thread.start()

    def _watch(self, act: str, process: subprocess.Popen[bytes], log: Path) -> None:
        begun, timed_out = time.monotonic(), False
        reader = threading.Thread(target=_copy, args=(process.stdout, log), daemon=True)
        reader.start()
        try:
            process.wait(self.retraining.timeout_seconds)
        except subprocess.TimeoutExpired:
            timed_out = True
        _end(process)  # and what it left behind
        reader.join(_GRACE_SECONDS)
        code = process.returncode
        self._ended.append(RetrainingResult(act, code, time.monotonic() - begun, timed_out, f"{act}.log"))


def _locked(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and all of its group, if need be hard."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, how)
            process.wait(_GRACE_SECONDS)
        except ProcessLookupError:
            break
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def _copy(source: IO[bytes], log: Path) -> None:
    """Write what comes, but no more than the beginning and the end of it."""
    left, tail, cut = _HEAD_BYTES, deque[bytes](maxlen=_TAIL_BYTES // _CHUNK), 0
    with source, log.open("wb") as stream:
        while part := source.read1(_CHUNK):  # type: ignore[attr-defined]
            if left > 0:
                stream.write(part[:left])
                stream.flush()
                left -= len(part)
            else:
                cut += len(part)
                tail.append(part)
        kept = b"".join(tail)
        if cut > len(kept):
            stream.write(f"\n… {cut - len(kept)} bytes were left out …\n".encode())
        stream.write(kept)
