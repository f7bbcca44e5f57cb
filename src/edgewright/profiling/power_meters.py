"""Energy meters that Linux shows in sysfs: RAPL counters, power sensors, batteries.

Standard library only and Python 3.9 syntax: `worker.py` loads this file on the target itself.

Formats: Documentation/power/powercap, Documentation/hwmon/sysfs-interface and
Documentation/ABI/testing/sysfs-class-power of the Linux kernel.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Meter", "chosen_meters", "find_meters", "joules_between", "read_meter"]

# hwmon drivers whose figure is the power of the board or the processor, not of a disk or a graphics card.
_HWMON_DRIVERS = ("ina", "amd_energy", "power_meter", "fam15h_power", "scmi_sensors")
# Labels of the rail that feeds the whole board, on boards that show partial rails beside it.
_TOTAL_RAILS = ("VDD_IN", "POM_5V_IN", "VIN_SYS_5V0")


@dataclass(frozen=True)
class Meter:
    """One sensor.

    Attributes:
        kind: "rapl", "hwmon" or "battery".
        name: For people, e.g. "package-0".
        paths: The file to read; two files (current, voltage) are multiplied.
        scale: Joules or watts per unit of the file, or of the product of the files.
        counter: Whether it counts energy; otherwise it shows power at this moment.
        wraps_at: Joules after which a counter starts again at zero, 0 if it never does.
        problem: Why it cannot be used now, empty if it can.
    """

    kind: str
    name: str
    paths: tuple[str, ...]
    scale: float
    counter: bool
    wraps_at: float = 0.0
    problem: str = ""


def find_meters(root: Path = Path("/sys")) -> list[Meter]:
    """Return every meter below `root`, best first, also those that cannot be used now."""
    return _rapl(root) + _hwmon(root) + _batteries(root)


def chosen_meters(meters: list[Meter]) -> list[Meter]:
    """Return the meters whose sum is the power of this machine; none counts the same joule twice."""
    usable = [meter for meter in meters if not meter.problem]
    for kind in ("rapl", "hwmon", "battery"):
        group = [meter for meter in usable if meter.kind == kind]
        totals = [meter for meter in group if meter.name.rsplit(" ", 1)[-1] in _TOTAL_RAILS]
        packages = [meter for meter in group if meter.name.startswith("package")]
        if group:
            return totals[:1] or packages or group
    return []


def read_meter(meter: Meter) -> float:
    """Return joules since some moment for a counter, otherwise watts now; power is never negative.

    Raises:
        OSError: The file vanished or cannot be read.
        ValueError: It holds no number.
    """
    value = meter.scale
    for path in meter.paths:
        value *= float(Path(path).read_text())
    # Some batteries show a discharge as a negative figure.
    return value if meter.counter else abs(value)


def joules_between(meter: Meter, before: float, after: float, elapsed_s: float) -> float:
    """Return the energy between two readings, over at most one wrap-around of a counter.

    >>> counter = Meter("rapl", "package-0", ("energy_uj",), 1e-6, True, wraps_at=100.0)
    >>> joules_between(counter, 99.0, 1.5, elapsed_s=1.0)
    2.5
    """
    if not meter.counter:
        return (before + after) / 2 * elapsed_s
    return after - before + (meter.wraps_at if after < before else 0.0)


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _problem(*paths: Path) -> str:
    for path in paths:
        if not os.access(path, os.R_OK):
            return f"{path} may not be read by this user"
        try:
            float(path.read_text())
        except (OSError, ValueError):
            return f"{path} holds no number"
    return ""


def _rapl(root: Path) -> list[Meter]:
    """Top-level RAPL domains; the subdomains (core, dram) are parts of them."""
    found = []
    for folder in sorted((root / "class/powercap").glob("*-rapl:*")):
        counter = folder / "energy_uj"
        name = _text(folder / "name")
        # intel-rapl-mmio counts the same package again.
        if folder.name.count(":") > 1 or "mmio" in folder.name or not counter.exists():
            continue
        limit = _text(folder / "max_energy_range_uj")
        wraps_at = float(limit) * 1e-6 if limit.isdigit() else 0.0
        found.append(Meter("rapl", name or folder.name, (str(counter),), 1e-6, True, wraps_at, _problem(counter)))
    return found


def _hwmon(root: Path) -> list[Meter]:
    """Sensors of the hwmon class: energy in uJ, power in uW, or current in mA times voltage in mV."""
    found = []
    for folder in sorted((root / "class/hwmon").glob("hwmon*")):
        driver = _text(folder / "name")
        if not driver.startswith(_HWMON_DRIVERS):
            continue
        for stem, counter in (("energy", True), ("power", False)):
            for path in sorted(folder.glob(f"{stem}*_input")):
                label = _text(path.with_name(path.name.replace("_input", "_label")))
                name = f"{driver} {label or path.name[:-6]}"
                found.append(Meter("hwmon", name, (str(path),), 1e-6, counter, problem=_problem(path)))
        if not any(meter.paths[0].startswith(str(folder) + os.sep) for meter in found):
            for current in sorted(folder.glob("curr*_input")):
                channel = current.name[4:-6]
                voltage = folder / f"in{channel}_input"
                if voltage.exists():
                    name = f"{driver} {_text(folder / f'in{channel}_label') or f'channel {channel}'}"
                    paths = (str(current), str(voltage))
                    found.append(Meter("hwmon", name, paths, 1e-6, False, problem=_problem(current, voltage)))
    return found


def _batteries(root: Path) -> list[Meter]:
    """Batteries: power in uW, or current in uA times voltage in uV."""
    found = []
    for folder in sorted((root / "class/power_supply").glob("*")):
        if _text(folder / "type") != "Battery" or _text(folder / "scope") == "Device":
            continue
        power, current, voltage = folder / "power_now", folder / "current_now", folder / "voltage_now"
        if power.exists():
            files, scale = [power], 1e-6
        elif current.exists() and voltage.exists():
            files, scale = [current, voltage], 1e-12
        else:
            continue
        status = _text(folder / "status")
        problem = _problem(*files) or ("" if status == "Discharging" else f"the battery is {status or 'idle'}")
        found.append(Meter("battery", folder.name, tuple(map(str, files)), scale, False, problem=problem))
    return found
