"""What is packaged beside the code: its commands are ones that exist, and its wheel holds all files."""

import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path
from unittest import mock

import pytest

from edgewright.cli import main

ROOT = Path(__file__).parents[2]
PACKAGING = ROOT / "packaging"

pytestmark = pytest.mark.skipif(not PACKAGING.is_dir(), reason="there is no packaging folder in this installation")


def commands() -> list[str]:
    found = []
    for path in PACKAGING.glob("*.service"):
        found += re.findall(r"^ExecStart=/usr/bin/env edgewright (.+)$", path.read_text("utf-8"), re.MULTILINE)
    container = (PACKAGING / "Containerfile").read_text("utf-8")
    found += [" ".join(re.findall(r'"([^"]+)"', line)) for line in re.findall(r"^CMD (.+)$", container, re.M)]
    return found


def test_there_are_commands_to_check() -> None:
    assert len(commands()) == 3


@pytest.mark.parametrize("command", commands())
def test_each_packaged_command_is_one_that_edgewright_understands(command: str) -> None:
    with mock.patch.object(main, "run_guarded", return_value=0) as run:
        assert main.main(shlex.split(command)) == 0
    run.assert_called_once()


@pytest.mark.parametrize("path", sorted(PACKAGING.glob("*.service")), ids=lambda path: path.name)
def test_units_hold_only_known_sections_and_pairs(path: Path) -> None:
    lines = [line for line in path.read_text("utf-8").splitlines() if line and not line.startswith("#")]
    for line in lines:
        assert re.fullmatch(r"\[(Unit|Service|Install)\]|[A-Z][A-Za-z]+=.*", line), line


def test_the_wheel_holds_every_file_and_the_compiled_part(tmp_path: Path) -> None:
    source = tmp_path / "source"
    subprocess.run(["git", "clone", "-q", "--depth", "1", f"file://{ROOT}", source], check=True)
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--disable-pip-version-check", "--no-deps", "."]
    subprocess.run([*build, "-w", tmp_path], cwd=source, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert "-cp311-abi3-" in wheel.name, "one wheel for each platform, whatever the Python"
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = {
        path.relative_to(source / "src").as_posix()
        for path in (source / "src").rglob("*")
        if path.is_file() and path.suffix != ".c" and ".egg-info" not in path.as_posix()
    }
    assert files <= held | {name for name in files if name.endswith(".so")}
    assert any(re.search(r"stats/_input_stats.*\.so$", name) for name in held)
