"""Processes of the control plane, each `edgewright serve`, that are killed at random and started again."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report import ROOT

__all__ = ["Process", "kill_at_random", "started"]

_STARTS_SECONDS = 60.0


@dataclass(slots=True)
class Process:
    """One of the processes.

    Attributes:
        name: Of its folder.
        command: Starts it.
        folder: For its output.
        port: That it listens on; None for the controller.
        kills: How often it was killed.
    """

    name: str
    command: Sequence[str]
    folder: Path
    port: int | None
    kills: int = 0
    _running: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        """Start it."""
        with (self.folder / f"{self.name}.log").open("ab") as log:
            self._running = subprocess.Popen(
                [sys.executable, "-m", "edgewright", *self.command],
                cwd=self.folder,
                stdout=subprocess.DEVNULL,
                stderr=log,
                env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
            )

    def kill(self) -> None:
        """Kill it with SIGKILL and start it again."""
        self.stop(signal.SIGKILL)
        self.kills += 1
        self.start()

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Stop it, in order or by another signal."""
        if self._running is not None:
            self._running.send_signal(how)
            try:
                self._running.wait(30)
            except subprocess.TimeoutExpired:
                self._running.kill()
                self._running.wait()
            self._running = None

    def await_answer(self) -> None:
        """Wait until it takes connections.

        Raises:
            RuntimeError: It ended instead.
        """
        ends = time.monotonic() + _STARTS_SECONDS
        while self.port is not None:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                if time.monotonic() > ends or self._running is None or self._running.poll() is not None:
                    said = (self.folder / f"{self.name}.log").read_text()[-1500:]
                    raise RuntimeError(f"{self.name} did not start: {said}") from None
                time.sleep(0.1)


@contextmanager
def started(processes: Sequence[Process]) -> Iterator[None]:
    """Start processes, and stop them at the end."""
    try:
        for each in processes:
            each.start()
        for each in processes:
            each.await_answer()
        yield
    finally:
        for each in processes:
            each.stop()


def kill_at_random(processes: Sequence[Process], seconds: float, pause_seconds: tuple[float, float]) -> None:
    """Kill one after the other, any of them, with pauses of a random length."""
    ends = time.monotonic() + seconds
    while True:
        time.sleep(random.uniform(*pause_seconds))  # noqa: S311 (no secret)
        if time.monotonic() > ends:
            return
        random.choice(processes).kill()  # noqa: S311
