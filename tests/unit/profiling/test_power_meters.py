"""Readers on trees as the kernel shows them, recorded from its documentation and from real boards."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from edgewright.profiling.power_meters import PowerMeter, find_meters, joules_between, read_meter, select_meters

Tree = Callable[[Mapping[str, str]], Path]

# Intel laptop: Documentation/power/powercap/powercap.rst; psys and mmio count the package again.
RAPL = {
    "class/powercap/intel-rapl:0/name": "package-0\n",
    "class/powercap/intel-rapl:0/energy_uj": "262142000000\n",
    "class/powercap/intel-rapl:0/max_energy_range_uj": "262143328850\n",
    "class/powercap/intel-rapl:0:0/name": "core\n",
    "class/powercap/intel-rapl:0:0/energy_uj": "111\n",
    "class/powercap/intel-rapl:1/name": "psys\n",
    "class/powercap/intel-rapl:1/energy_uj": "999\n",
    "class/powercap/intel-rapl-mmio:0/name": "package-0\n",
    "class/powercap/intel-rapl-mmio:0/energy_uj": "5\n",
    "class/powercap/dtpm/name": "dtpm\n",
}
# Laptop on battery that shows power; Documentation/ABI/testing/sysfs-class-power.
POWER_BATTERY = {
    "class/power_supply/AC/type": "Mains\n",
    "class/power_supply/BAT0/type": "Battery\n",
    "class/power_supply/BAT0/status": "Discharging\n",
    "class/power_supply/BAT0/power_now": "7540000\n",
    "class/power_supply/hidpp_battery_0/type": "Battery\n",
    "class/power_supply/hidpp_battery_0/scope": "Device\n",
    "class/power_supply/hidpp_battery_0/power_now": "1\n",
}
# Phone that shows current (negative while it discharges) and voltage.
CURRENT_BATTERY = {
    "class/power_supply/battery/type": "Battery\n",
    "class/power_supply/battery/status": "Discharging\n",
    "class/power_supply/battery/current_now": "-500000\n",
    "class/power_supply/battery/voltage_now": "3800000\n",
}
# INA219 beside a disk and a graphics card, which are not the processor.
INA219 = {
    "class/hwmon/hwmon0/name": "nvme\n",
    "class/hwmon/hwmon0/power1_input": "5000000\n",
    "class/hwmon/hwmon1/name": "amdgpu\n",
    "class/hwmon/hwmon1/power1_input": "9000000\n",
    "class/hwmon/hwmon2/name": "ina219\n",
    "class/hwmon/hwmon2/power1_input": "2360000\n",
    "class/hwmon/hwmon2/curr1_input": "472\n",
    "class/hwmon/hwmon2/in1_input": "5000\n",
}
# Jetson Orin: three rails of an INA3221, of which VDD_IN feeds the others.
INA3221 = {
    "class/hwmon/hwmon1/name": "ina3221\n",
    **{
        f"class/hwmon/hwmon1/in{i}_label": f"{label}\n"
        for i, label in enumerate(("VDD_IN", "VDD_CPU", "VDD_SOC"), 1)
    },
    **{f"class/hwmon/hwmon1/in{i}_input": "5000\n" for i in (1, 2, 3)},
    **{f"class/hwmon/hwmon1/curr{i}_input": f"{current}\n" for i, current in enumerate((900, 300, 200), 1)},
}
AMD_ENERGY = {
    "class/hwmon/hwmon4/name": "amd_energy\n",
    "class/hwmon/hwmon4/energy1_input": "123456789\n",
    "class/hwmon/hwmon4/energy1_label": "Esocket0\n",
}


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    def make(files: Mapping[str, str]) -> Path:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return make


def _chosen(root: Path) -> list[PowerMeter]:
    return select_meters(find_meters(root))


def test_only_the_package_counts_of_rapl(tree: Tree) -> None:
    (meter,) = _chosen(tree(RAPL))
    assert (meter.kind, meter.name, meter.is_counter) == ("rapl", "package-0", True)
    assert read_meter(meter) == pytest.approx(262142.0)
    assert meter.wraps_at_joules == pytest.approx(262143.32885)


def test_two_sockets_are_added(tree: Tree) -> None:
    second = {"class/powercap/intel-rapl:2/name": "package-1\n", "class/powercap/intel-rapl:2/energy_uj": "1\n"}
    assert [meter.name for meter in _chosen(tree({**RAPL, **second}))] == ["package-0", "package-1"]


def test_a_counter_that_wraps_loses_no_energy(tree: Tree) -> None:
    root = tree(RAPL)
    (meter,) = _chosen(root)
    before = read_meter(meter)
    (root / "class/powercap/intel-rapl:0/energy_uj").write_text("2000000\n")
    assert joules_between(meter, before, read_meter(meter), 1.0) == pytest.approx(262143.32885 - 262142 + 2)


def test_power_is_integrated_over_time() -> None:
    meter = PowerMeter("hwmon", "ina219", ("power1_input",), 1e-6, is_counter=False)
    assert joules_between(meter, 2.0, 4.0, elapsed_seconds=0.5) == pytest.approx(1.5)


def test_a_battery_that_shows_power_is_read(tree: Tree) -> None:
    (meter,) = _chosen(tree(POWER_BATTERY))
    assert (meter.kind, meter.name) == ("battery", "BAT0")
    assert read_meter(meter) == pytest.approx(7.54)


def test_current_times_voltage_is_power_whatever_its_sign(tree: Tree) -> None:
    (meter,) = _chosen(tree(CURRENT_BATTERY))
    assert read_meter(meter) == pytest.approx(1.9)


@pytest.mark.parametrize("status", ["Charging", "Full", "Not charging"])
def test_a_battery_that_does_not_discharge_measures_nothing(tree: Tree, status: str) -> None:
    root = tree({**POWER_BATTERY, "class/power_supply/BAT0/status": status})
    assert _chosen(root) == []
    assert status in find_meters(root)[0].problem


def test_the_board_is_read_and_not_the_disk_or_the_graphics_card(tree: Tree) -> None:
    (meter,) = _chosen(tree(INA219))
    assert meter.name == "ina219 power1"
    assert read_meter(meter) == pytest.approx(2.36)


def test_partial_rails_are_not_added_to_the_total(tree: Tree) -> None:
    root = tree(INA3221)
    assert [meter.name for meter in find_meters(root)] == ["ina3221 VDD_IN", "ina3221 VDD_CPU", "ina3221 VDD_SOC"]
    (meter,) = _chosen(root)
    assert read_meter(meter) == pytest.approx(4.5)


def test_energy_counters_of_hwmon_are_read(tree: Tree) -> None:
    (meter,) = _chosen(tree(AMD_ENERGY))
    assert (meter.name, meter.is_counter) == ("amd_energy Esocket0", True)
    assert read_meter(meter) == pytest.approx(123.456789)


def test_the_processors_own_counter_is_preferred(tree: Tree) -> None:
    assert [meter.kind for meter in _chosen(tree({**INA219, **RAPL, **POWER_BATTERY}))] == ["rapl"]


def test_a_counter_that_may_not_be_read_is_named_and_not_used(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tree(RAPL)
    # As for anybody but root since Linux 5.10; root would be let through.
    monkeypatch.setattr(os, "access", lambda path, mode: "energy_uj" not in str(path))
    assert _chosen(root) == []
    assert "may not be read" in find_meters(root)[0].problem


def test_nonsense_in_a_file_is_a_problem_and_not_a_crash(tree: Tree) -> None:
    root = tree({**INA219, "class/hwmon/hwmon2/power1_input": "N/A\n"})
    assert _chosen(root) == []
    assert "holds no number" in find_meters(root)[0].problem


def test_a_machine_without_meters_has_none(tmp_path: Path) -> None:
    assert find_meters(tmp_path) == []
