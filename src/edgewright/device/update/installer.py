"""Handing an image to what the platform has for it: a firmware, or the agent itself.

Edgewright proves that an image may be installed and brings its bytes; which slot it goes to and how the device
boots is the platform's business. An image is on trial from the next start on, and confirmed after its probation.
"""

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from edgewright.contract.errors import WorkError

__all__ = ["CommandInstaller", "Installer", "InstallerError", "RaucInstaller", "open_installer"]

_COMMAND_TIMEOUT_SECONDS = 3600.0


class InstallerError(WorkError):
    """The platform's installer failed."""

    code = "installer_failed"


class Installer(Protocol):
    """What installs images on a platform with two slots."""

    def install(self, image: Path, version: str) -> None:
        """Write an image to the slot that does not run, and have the next start use it.

        Raises:
            InstallerError: The platform refuses it.
        """

    def running_image(self) -> str:
        """Return what runs now, in the platform's words; it changes when another image was started.

        Raises:
            InstallerError: The platform does not say.
        """

    def confirm(self) -> None:
        """Make what runs now the one to start from now on.

        Raises:
            InstallerError: The platform refuses.
        """

    def keep_current(self) -> None:
        """Have the next start use what runs now.

        Raises:
            InstallerError: The platform refuses.
        """

    def revert(self) -> None:
        """Have the next start use the other slot.

        Raises:
            InstallerError: The platform refuses.
        """


@dataclass(frozen=True, slots=True)
class RaucInstaller:
    """RAUC by its command line (https://rauc.readthedocs.io/en/latest/reference.html#command-line-tool).

    Attributes:
        command: Its path or name.
    """

    command: str = "rauc"

    def install(self, image: Path, version: str) -> None:  # noqa: ARG002 - a bundle has its own version
        """See `Installer`; RAUC checks the bundle's own signature as well."""
        _run_command([self.command, "install", str(image)])

    def running_image(self) -> str:
        """See `Installer`."""
        answer = _run_command([self.command, "status", "--output-format=json"])
        try:
            status: dict[str, Any] = json.loads(answer)
            return str(status["booted"])
        except (ValueError, KeyError, TypeError) as error:
            raise InstallerError(
                f"{self.command} status says {answer[:80]!r}", remedy="Check that RAUC knows its slots."
            ) from error

    def confirm(self) -> None:
        """See `Installer`."""
        _run_command([self.command, "status", "mark-good", "booted"])

    def keep_current(self) -> None:
        """See `Installer`."""
        _run_command([self.command, "status", "mark-active", "booted"])

    def revert(self) -> None:
        """See `Installer`."""
        _run_command([self.command, "status", "mark-active", "other"])


@dataclass(frozen=True, slots=True)
class CommandInstaller:
    """A command of the platform.

    It is called with `install IMAGE VERSION`, `running_image`, `confirm`, `keep_current` or `revert`.

    Attributes:
        command: And what always comes before.
    """

    command: Sequence[str]

    def install(self, image: Path, version: str) -> None:
        """See `Installer`."""
        _run_command([*self.command, "install", str(image), version])

    def running_image(self) -> str:
        """See `Installer`."""
        return _run_command([*self.command, "running"]).strip()

    def confirm(self) -> None:
        """See `Installer`."""
        _run_command([*self.command, "confirm"])

    def keep_current(self) -> None:
        """See `Installer`."""
        _run_command([*self.command, "keep"])

    def revert(self) -> None:
        """See `Installer`."""
        _run_command([*self.command, "revert"])


def open_installer(command: Sequence[str]) -> Installer | None:
    """Return what an enrolment names: nothing, `rauc`, or a command."""
    if not command:
        return None
    if len(command) == 1 and Path(command[0]).name == "rauc":
        return RaucInstaller(command[0])
    return CommandInstaller(tuple(command))


def _run_command(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(
            list(command),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_COMMAND_TIMEOUT_SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InstallerError(
            f"{command[0]} cannot be run: {error}", remedy="Check the installer's command."
        ) from error
    if done.returncode:
        reason = " ".join(done.stderr.split())[-300:] or f"exit code {done.returncode}"
        raise InstallerError(f"{' '.join(command[:2])} failed: {reason}", remedy="See the platform's log.")
    return done.stdout
