"""The words of `make`: what the README promises, what CI runs, what a commit is checked with."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    not (ROOT / "Makefile").is_file(), reason="there is no Makefile in this installation"
)


def read(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def words() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))


def test_the_readme_names_exactly_two_commands_and_both_exist() -> None:
    named = re.findall(r"^make (\w+)$", read("README.md"), re.MULTILINE)
    assert named == ["demo", "test"]
    assert set(named) <= words()


def test_ci_runs_the_same_words() -> None:
    lines = read(".ci/run").splitlines()
    assert [line for line in lines if line.startswith("make ")] == ["make check", "make test"]


def test_the_menu_and_the_contributors_page_show_every_word() -> None:
    shown = subprocess.run(
        ["make", "--silent", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert {line.split()[0] for line in shown.splitlines()} == words()
    described = set(re.findall(r"^\| `make ([\w-]+)", read("CONTRIBUTING.md"), re.MULTILINE))
    assert described == words() - {"help", "clean"}


def test_a_commit_is_checked_with_the_tools_of_make_check_and_downloads_nothing() -> None:
    hooks = read(".pre-commit-config.yaml")
    assert set(re.findall(r"repo: (\S+)", hooks)) == {"local"}
    tools = re.findall(r"entry: .*?\.venv/bin/(\S+)", hooks)
    recipe = read("Makefile").split("\ncheck:")[1].split("\n\n")[0]
    assert set(tools) == set(re.findall(r"\$\(BIN\)/(\S+)", recipe))


def test_constraints_pin_every_requirement() -> None:
    pinned = set(re.findall(r"^([\w.-]+)==", read("constraints.txt"), re.MULTILINE))
    asked = set(re.findall(r'^ +"([\w-]+)>=', read("pyproject.toml"), re.MULTILINE))
    assert asked
    assert asked <= pinned
