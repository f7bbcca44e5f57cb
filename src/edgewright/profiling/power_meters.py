"""Energy meters that Linux shows in sysfs: RAPL counters, power sensors, batteries.

Standard library only and Python 3.9 syntax: `worker.py` loads this file on the target itself.

Formats: Documentation/power/powercap, Documentation/hwmon/sysfs-interface and
Documentation/ABI/testing/sysfs-class-power of the Linux kernel.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PowerMeter", "find_meters", "joules_between", "read_meter", "select_meters"]

# hwmon drivers whose figure is the power of the board or the processor, not of a disk or a graphics card.
_HWMON_DRIVERS = ("ina", "amd_energy", "power_meter", "fam15h_power", "scmi_sensors")
# Labels of the rail that feeds the whole board, on boards that show partial rails beside it.
_TOTAL_RAILS = ("VDD_IN", "POM_5V_IN", "VIN_SYS_5V0")


@dataclass(frozen=True)
class PowerMeter:
    """One sensor.

    Attributes:
        kind: "rapl", "hwmon" or "battery".
        name: For people, e.g. "package-0".
        paths: The file to read; two files (current, voltage) are multiplied.
        scale: Joules or watts per unit of the file, or of the product of the files.
        is_counter: Whether it counts energy; otherwise it shows power at this moment.
        wraps_at_joules: Joules after which a counter starts again at zero, 0 if it never does.
        problem: Why it cannot be used now, empty if it can.
    """

    kind: str
    name: str
    paths: tuple[str, ...]
    scale: float
    is_counter: bool
    wraps_at_joules: float = 0.0
    problem: str = ""


def find_meters(root: Path = Path("/sys")) -> list[PowerMeter]:
    """Return every meter below `root`, best first, also those that cannot be used now."""
    return _rapl(root) + _hwmon(root) + _batteries(root)


def select_meters(meters: list[PowerMeter]) -> list[PowerMeter]:
    """Return the meters whose sum is the power of this machine; none counts the same joule twice."""
    usable = [meter for meter in meters if not meter.problem]
    for kind in ("rapl", "hwmon", "battery"):
        group = [meter for meter in usable if meter.kind == kind]
        totals = [meter for meter in group if meter.name.rsplit(" ", 1)[-1] in _TOTAL_RAILS]
        packages = [meter for meter in group if meter.name.startswith("package")]
        if group:
            return totals[:1] or packages or group
    return []


def read_meter(meter: PowerMeter) -> float:
    """Return joules since some moment for a counter, otherwise watts now; power is never negative.

    Raises:
        OSError: The file vanished or cannot be read.
        ValueError: It holds no number.
    """
    value = meter.scale
    for path in meter.paths:
        value *= float(Path(path).read_text())
    # Some batteries show a discharge as a negative figure.
    return value if meter.is_counter else abs(value)


def joules_between(meter: PowerMeter, before: float, after: float, elapsed_seconds: float) -> float:
    """Return the energy between two readings, over at most one wrap-around of a counter.

    >>> counter = PowerMeter("rapl", "package-0", ("energy_uj",), 1e-6, True, wraps_at_joules=100.0)
    >>> joules_between(counter, 99.0, 1.5, elapsed_seconds=1.0)
    2.5
    """
    if not meter.is_counter:
        return (before + after) / 2 * elapsed_seconds
    return after - before + (meter.wraps_at_joules if after < before else 0.0)


def _read_text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _access_problem(*paths: Path) -> str:
    for path in paths:
        if not os.access(path, os.R_OK):
            return f"{path} may not be read by this user"
        try:
            float(path.read_text())
        except (OSError, ValueError):
            return f"{path} holds no number"
    return ""


def _rapl(root: Path) -> list[PowerMeter]:
    """Top-level RAPL domains; the subdomains (core, dram) are parts of them."""
    found = []
    for folder in sorted((root / "class/powercap").glob("*-rapl:*")):
        counter = folder / "energy_uj"
        name = _read_text(folder / "name")
        # intel-rapl-mmio counts the same package again.
        if folder.name.count(":") > 1 or "mmio" in folder.name or not counter.exists():
            continue
        limit = _read_text(folder / "max_energy_range_uj")
        wraps_at = float(limit) * 1e-6 if limit.isdigit() else 0.0
        found.append(
            PowerMeter("rapl", name or folder.name, (str(counter),), 1e-6, True, wraps_at, _access_problem(counter))
        )
    return found


def _hwmon(root: Path) -> list[PowerMeter]:
    """Sensors of the hwmon class: energy in uJ, power in uW, or current in mA times voltage in mV."""
    found = []
    for folder in sorted((root / "class/hwmon").glob("hwmon*")):
        driver = _read_text(folder / "name")
        if not driver.startswith(_HWMON_DRIVERS):
            continue
        for stem, counter in (("energy", True), ("power", False)):
            for path in sorted(folder.glob(f"{stem}*_input")):
                label = _read_text(path.with_name(path.name.replace("_input", "_label")))
                name = f"{driver} {label or path.name[:-6]}"
                found.append(PowerMeter("hwmon", name, (str(path),), 1e-6, counter, problem=_access_problem(path)))
        if not any(meter.paths[0].startswith(str(folder) + os.sep) for meter in found):
            for current in sorted(folder.glob("curr*_input")):
                channel = current.name[4:-6]
                voltage = folder / f"in{channel}_input"
                if voltage.exists():
                    name = f"{driver} {_read_text(folder / f'in{channel}_label') or f'channel {channel}'}"
                    paths = (str(current), str(voltage))
                    found.append(
                        PowerMeter("hwmon", name, paths, 1e-6, False, problem=_access_problem(current, voltage))
                    )
    return found


def _batteries(root: Path) -> list[PowerMeter]:
    """Batteries: power in uW, or current in uA times voltage in uV."""
    found = []
    for folder in sorted((root / "class/power_supply").glob("*")):
        if _read_text(folder / "type") != "Battery" or _read_text(folder / "scope") == "Device":
            continue
        power, current, voltage = folder / "power_now", folder / "current_now", folder / "voltage_now"
        if power.exists():
            files, scale = [power], 1e-6
        elif current.exists() and voltage.exists():
            files, scale = [current, voltage], 1e-12
        else:
            continue
        status = _read_text(folder / "status")
        problem = _access_problem(*files) or (
            "" if status == "Discharging" else f"the battery is {status or 'idle'}"
        )
        found.append(PowerMeter("battery", folder.name, tuple(map(str, files)), scale, False, problem=problem))
    return found
