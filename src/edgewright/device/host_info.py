"""What this device is: its processor's features, its runtime, its battery, and which start of it this is."""

import platform
from pathlib import Path

from edgewright.contract.names import version_key
from edgewright.contract.release import Variant

__all__ = ["battery_level", "boot_id", "missing_requirements"]

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_POWER_SUPPLIES = Path("/sys/class/power_supply")


def boot_id() -> str:
    """Return what differs between two starts of the platform, "" where it does not say."""
    return _read_text(_BOOT_ID)


def missing_requirements(variant: Variant) -> str:
    """Return in words what this device lacks to run a variant, "" if nothing."""
    import onnxruntime as ort

    need = variant.requirement
    if need.runtime != "onnxruntime":
        return f"it needs {need.runtime}, this device has onnxruntime"
    have = ".".join(part for part in ort.__version__.split(".")[:3] if part.isdigit())
    if version_key(have) < version_key(need.min_runtime_version):
        return f"it needs onnxruntime {need.min_runtime_version}, this device has {have}"
    available = ort.get_available_providers()
    if need.providers and not set(need.providers) & set(available):
        return f"it needs one of {', '.join(need.providers)}, this device has {', '.join(available)}"
    features = _cpu_features() if need.features else frozenset()
    missing = [feature for feature in need.features if feature not in features]
    return f"it needs {', '.join(missing)}, which this {platform.machine()} lacks" if missing else ""


def _cpu_features() -> frozenset[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    words = (line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features")))
    return frozenset(word for line in words for word in line)


def battery_level() -> float | None:
    """Return the state of charge, 0 to 1; None on mains or without a battery.

    Source: the kernel's Documentation/ABI/testing/sysfs-class-power.
    """
    charge = None
    for supply in sorted(_POWER_SUPPLIES.glob("*")):
        kind = _read_text(supply / "type")
        if kind in ("Mains", "USB") and _read_text(supply / "online") == "1":
            return None
        capacity = _read_text(supply / "capacity")
        if kind == "Battery" and capacity.isdigit():
            charge = min(100, int(capacity)) / 100
    return charge


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
