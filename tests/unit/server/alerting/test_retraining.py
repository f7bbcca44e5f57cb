"""Retraining: what the project file names, one at a time, for so long."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgewright.contract.config.fleet import RetrainingConfig
from edgewright.contract.errors import OutputError
from edgewright.server.alerting.retraining import Retrainer, RetrainingResult

Make = Callable[..., Retrainer]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[Retrainer] = []

    def run(
        script: str = "", *, function: str = "", timeout_seconds: float = 30.0, hidden: tuple[str, ...] = ()
    ) -> Retrainer:
        command = () if function else (sys.executable, "-c", script)
        (tmp_path / "project").mkdir(exist_ok=True)
        retraining = RetrainingConfig(command, function, timeout_seconds)
        made.append(Retrainer(retraining, tmp_path / "project", tmp_path / "state", hidden))
        return made[-1]

    yield run
    for each in made:
        each.stop()


def ended(retrainer: Retrainer) -> RetrainingResult:
    for _ in range(1500):
        if (found := retrainer.poll()) is not None:
            return found
        time.sleep(0.01)
    raise AssertionError("it goes on")


def test_a_command_runs_in_the_project_and_what_it_says_is_kept(make: Make, tmp_path: Path) -> None:
    retrainer = make("import os, sys; print(os.getcwd()); print('bad', file=sys.stderr); sys.exit(3)")
    assert retrainer.start("7-retrain")
    found = ended(retrainer)
    assert (found.action_id, found.exit_code, found.timed_out, found.log_file) == (
        "7-retrain",
        3,
        False,
        "7-retrain.log",
    )
    said = (tmp_path / "state" / found.log_file).read_text()
    assert sorted(said.split()) == sorted([str(tmp_path / "project"), "bad"])
    assert retrainer.poll() is None
    assert retrainer.start("8-retrain")
    ended(retrainer)


def test_a_function_of_the_project_is_called(make: Make, tmp_path: Path) -> None:
    retrainer = make(function="mine.training:again")
    (tmp_path / "project" / "mine").mkdir()
    (tmp_path / "project" / "mine" / "training.py").write_text("def again():\n    print('again')\n")
    assert retrainer.start("a")
    assert ended(retrainer).exit_code == 0
    assert (tmp_path / "state" / "a.log").read_text() == "again\n"


def test_it_does_not_see_the_servers_secrets(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK", "a secret")
    monkeypatch.setenv("OTHER", "no secret")
    retrainer = make("import os; print(os.environ.get('HOOK'), os.environ.get('OTHER'))", hidden=("HOOK",))
    assert retrainer.start("a")
    ended(retrainer)
    assert (tmp_path / "state" / "a.log").read_text() == "None no secret\n"


def test_it_is_ended_after_its_time_with_all_that_it_began(make: Make, tmp_path: Path) -> None:
    child = "import time, pathlib, os; pathlib.Path('child').write_text(str(os.getpid())); time.sleep(60)"
    script = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    retrainer = make(script, timeout_seconds=1.0)
    assert retrainer.start("a")
    found = ended(retrainer)
    assert found.timed_out
    assert found.exit_code < 0
    assert found.seconds < 10
    pid = (tmp_path / "project" / "child").read_text()
    assert not _runs(int(pid))


def test_only_one_runs_also_after_the_server_was_killed(make: Make, tmp_path: Path) -> None:
    one, other = make("import time; time.sleep(30)"), make("")
    assert one.start("a")
    assert not one.start("b")
    assert not other.start("b")
    assert not other.is_free()
    one.stop()
    assert other.is_free()
    # A server of its own, killed while what it began goes on.
    code = (
        "import os, signal, sys; from pathlib import Path; "
        "from edgewright.contract.config.fleet import RetrainingConfig; "
        "from edgewright.server.alerting.retraining import Retrainer; "
        "made = Retrainer(RetrainingConfig((sys.executable, '-c', 'import time; time.sleep(3)')), Path(sys.argv[1]), "
        "Path(sys.argv[2])); assert made.start('c'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    place = (str(tmp_path / "project"), str(tmp_path / "state"))
    assert subprocess.run([sys.executable, "-c", code, *place], check=False).returncode == -9
    assert not other.start("d")
    for _ in range(500):
        if other.is_free():
            break
        time.sleep(0.02)
    assert other.start("d")
    ended(other)


def test_endless_words_leave_a_file_of_bounded_size_with_its_beginning_and_end(make: Make, tmp_path: Path) -> None:
    retrainer = make("print('first'); [print('x' * 99) for _ in range(60_000)]; print('last')")
    assert retrainer.start("a")
    ended(retrainer)
    said = (tmp_path / "state" / "a.log").read_text()
    assert len(said) < 1_200_000
    assert said.startswith("first\n")
    assert said.endswith("last\n")
    assert "bytes were left out" in said


def test_old_logs_go(make: Make, tmp_path: Path) -> None:
    retrainer = make("")
    (tmp_path / "state").mkdir()
    for number in range(30):
        path = tmp_path / "state" / f"{number}.log"
        path.write_text("")
        os.utime(path, (number, number))
    assert retrainer.start("new")
    ended(retrainer)
    left = {path.stem for path in (tmp_path / "state").glob("*.log")}
    assert left == {"new", *(str(number) for number in range(11, 30))}


def test_a_program_that_is_not_there_is_told(tmp_path: Path) -> None:
    retrainer = Retrainer(RetrainingConfig(("no-such-program",)), tmp_path, tmp_path / "state")
    with pytest.raises(OutputError, match="no-such-program"):
        retrainer.start("a")
    assert retrainer.is_free()


def _runs(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"
