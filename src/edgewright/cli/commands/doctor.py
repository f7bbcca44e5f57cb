"""`edgewright doctor`: what this machine can do, and what is missing."""

import argparse
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

import edgewright
from edgewright.cli.console import SCHEMA_VERSION, print_json
from edgewright.contract.errors import TargetError
from edgewright.contract.units import format_quantity
from edgewright.profiling.power_meters import find_meters, select_meters
from edgewright.profiling.target import Machine, open_target, query_machine

__all__ = ["DoctorCheck", "DoctorReport", "register", "run"]

# Instructions for dot products of bytes: with one of them int8 can be faster than float.
_DOT_PRODUCTS = ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")
_MIN_FREE_BYTES = 500_000_000

_EPILOG = """\
examples:
  edgewright doctor
  edgewright doctor --json

Ends with 1 if something is missing that Edgewright cannot work without.
"""


class DoctorCheck(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One finding.

    Attributes:
        topic: runtime, cpu, sensors, disk, packages or ssh.
        name: What was looked at.
        state: `ok`, `absent` (something optional is not there) or `broken` (Edgewright cannot work).
        detail: What was found.
        remedy: What to do, empty if nothing.
    """

    topic: str
    name: str
    state: Literal["ok", "absent", "broken"]
    detail: str
    remedy: str = ""


class DoctorReport(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All findings."""

    schema: int
    version: str
    machine: Machine | None
    checks: tuple[DoctorCheck, ...]


def register(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the verb."""
    parser = verbs.add_parser(
        "doctor",
        help="show the runtime, CPU features, sensors and disk of this machine",
        description="Show the runtime, CPU features, sensors, disk, optional packages and the ssh client.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Look and print; returns 1 if something needed is missing."""
    machine: Machine | None = None
    checks: list[DoctorCheck] = []
    try:
        machine = query_machine(open_target("local"))
        checks += _runtime_and_cpu(machine)
    except TargetError as error:
        checks.append(DoctorCheck("runtime", "worker", "broken", error.message, error.remedy))
    checks += [*_sensors(Path("/sys")), *_disks(), *_packages(), _ssh()]
    diagnosis = DoctorReport(SCHEMA_VERSION, edgewright.__version__, machine, tuple(checks))
    if arguments.json:
        print_json(diagnosis)
    else:
        _print(diagnosis)
    return 1 if any(check.state == "broken" for check in checks) else 0


def _runtime_and_cpu(machine: Machine) -> Iterator[DoctorCheck]:
    yield DoctorCheck("runtime", "python", "ok", f"{machine.python} at {sys.executable}")
    yield DoctorCheck("runtime", "onnxruntime", "ok", f"{machine.runtime}: {', '.join(machine.providers)}")
    yield DoctorCheck("cpu", "processor", "ok", f"{machine.cpu}, {machine.cores} cores, {machine.arch}")
    yield DoctorCheck("cpu", "memory", "ok", format_quantity(machine.memory_bytes, "size"))
    found = [name for name in _DOT_PRODUCTS if name in machine.features]
    if found:
        yield DoctorCheck("cpu", "int8 dot products", "ok", ", ".join(found))
    else:
        yield DoctorCheck(
            "cpu",
            "int8 dot products",
            "absent",
            "none",
            "int8 may be slower than float here; size is still gained.",
        )


def _sensors(root: Path) -> Iterator[DoctorCheck]:
    meters = find_meters(root)
    chosen = select_meters(meters)
    for meter in meters:
        state: Literal["ok", "absent"] = "ok" if meter in chosen else "absent"
        detail = meter.problem or ("used" if meter in chosen else "a better one is used")
        yield DoctorCheck("sensors", f"energy {meter.kind} {meter.name}", state, detail)
    if not chosen:
        remedy = "Energy will be estimated from CPU time and labelled so."
        if any("may not be read" in meter.problem for meter in meters):
            remedy += " To measure it, allow reading: sudo chmod a+r /sys/class/powercap/*/energy_uj."
        yield DoctorCheck("sensors", "energy", "absent", "no meter can be used", remedy)
    shown = {
        "clock": sorted((root / "devices/system/cpu").glob("cpu*/cpufreq/scaling_cur_freq")),
        "temperature": sorted((root / "class/thermal").glob("thermal_zone*/temp")),
    }
    for name, paths in shown.items():
        if paths:
            yield DoctorCheck("sensors", name, "ok", f"{len(paths)} in sysfs")
        else:
            yield DoctorCheck("sensors", name, "absent", "not in sysfs", "Throttling is judged without it.")


def _disks() -> Iterator[DoctorCheck]:
    for name, folder in (("this folder", Path.cwd()), ("temporary files", Path(tempfile.gettempdir()))):
        free = shutil.disk_usage(folder).free
        detail = f"{format_quantity(free, 'size')} free in {folder}"
        if not os.access(folder, os.W_OK):
            yield DoctorCheck(
                "disk", name, "broken", f"{folder} cannot be written", "Change its permissions, or go elsewhere."
            )
        elif free < _MIN_FREE_BYTES:
            yield DoctorCheck("disk", name, "absent", detail, "Free some space before compressing.")
        else:
            yield DoctorCheck("disk", name, "ok", detail)


def _packages() -> Iterator[DoctorCheck]:
    """Look at what the package's own extras ask for."""
    for requirement in importlib.metadata.requires("edgewright") or []:
        match = re.match(r"([A-Za-z0-9_.-]+).*extra\s*==\s*['\"]([\w-]+)['\"]", requirement)
        if match is None:
            continue
        package, extra = match.groups()
        try:
            yield DoctorCheck("packages", package, "ok", importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            yield DoctorCheck("packages", package, "absent", "not installed", f"pip install 'edgewright[{extra}]'")


def _ssh() -> DoctorCheck:
    client = shutil.which("ssh")
    if client is None:
        remedy = "Install it to measure on other machines: apt install openssh-client."
        return DoctorCheck("ssh", "client", "absent", "not found", remedy)
    shown = subprocess.run([client, "-V"], capture_output=True, text=True, check=False)
    return DoctorCheck("ssh", "client", "ok", shown.stderr.strip() or client)


def _print(diagnosis: DoctorReport) -> None:
    """Print a table; `rich` may be absent where only the agent is installed."""
    wide = max(40, shutil.get_terminal_size((100, 24)).columns)
    topics = max(len(check.topic) for check in diagnosis.checks)
    names = max(len(check.name) for check in diagnosis.checks)
    print(f"edgewright {diagnosis.version}\n")
    for check in diagnosis.checks:
        start = f"{check.topic:{topics}}  {check.name:{names}}  {check.state:6}  "
        room = max(20, wide - len(start))
        texts = [*textwrap.wrap(check.detail, room), *textwrap.wrap(check.remedy, room)]
        print(start + f"\n{' ' * len(start)}".join(texts))
