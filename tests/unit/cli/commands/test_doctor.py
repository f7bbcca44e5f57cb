import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgewright.cli.commands import doctor
from edgewright.cli.main import main


def test_one_json_document_names_every_topic(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    diagnosis = json.loads(capsys.readouterr().out)
    assert diagnosis["schema"] == 2
    assert diagnosis["machine"]["runtime"]
    assert {check["topic"] for check in diagnosis["checks"]} == {
        "runtime",
        "cpu",
        "sensors",
        "disk",
        "packages",
        "ssh",
    }


def test_people_get_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    assert "onnxruntime" in capsys.readouterr().out


def test_a_meter_without_permission_comes_with_the_way_to_allow_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "class/powercap/intel-rapl:0"
    folder.mkdir(parents=True)
    (folder / "name").write_text("package-0")
    (folder / "energy_uj").write_text("1")
    monkeypatch.setattr("os.access", lambda path, mode: False)
    checks = {check.name: check for check in doctor._sensors(tmp_path)}
    assert "may not be read" in checks["energy rapl package-0"].detail
    assert "chmod" in checks["energy"].remedy


def test_sensors_that_are_there_are_found(tmp_path: Path) -> None:
    for name in ("class/thermal/thermal_zone0/temp", "devices/system/cpu/cpu0/cpufreq/scaling_cur_freq"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("40000")
    checks = {check.name: check.state for check in doctor._sensors(tmp_path)}
    assert checks == {"energy": "absent", "clock": "ok", "temperature": "ok"}


def test_a_missing_ssh_client_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    check = doctor._ssh()
    assert (check.state, "openssh-client" in check.remedy) == ("absent", True)


def test_a_folder_that_cannot_be_written_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert {check.state for check in doctor._disks()} == {"broken"}


@pytest.mark.parametrize("form", [["--json"], []])
def test_works_where_only_the_agent_is_installed(form: list[str]) -> None:
    program = (
        "import sys\n"
        "for name in ('rich', 'onnx', 'scipy', 'torch', 'pyarrow', 'jinja2', 'optuna', "
        "'PIL'): sys.modules[name] = None\n"
        "from edgewright.cli.main import main\n"
        f"sys.exit(main({['doctor', *form]!r}))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    assert "onnxruntime" in ended.stdout
