"""A private sum by the commands: permitted offline, asked online, answered by devices, opened with a helper."""

import datetime
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from tests.unit.cli.commands.test_shipping_commands import Places, Run, places, run, url  # noqa: F401 - fixtures

from edgewright.cli.main import main
from edgewright.contract.query.query import Query, record_digest

DEVICES = 3
LATER = (datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=30)).isoformat()
LIMITS = {
    "rho_per_period": 1e6,
    "period_seconds": 86400.0,
    "min_cohort": 3,
    "max_bytes": 1 << 20,
    "max_queries": 9,
}


@pytest.fixture
def fleet(run: Run, places: Places, tmp_path: Path, digits_npz: Path, digits_model: Path) -> list[Path]:  # noqa: F811
    """Devices that run a release with a reference profile, and permit themselves to be asked."""
    given = ("publish", digits_model, "--name", "digits", "--version", "2.0.0", "--reference", digits_npz)
    run(*given, *places.signing)
    run("rollout", "start", "digits==2.0.0", "--fraction", "1.0", "--replace", *places.signing)
    (tmp_path / "limits.json").write_text(json.dumps(LIMITS))
    known = run("device", "status", "--state", places.state)
    assert known["version"] is None
    settings = json.loads((places.state / "settings.json").read_text())
    states, keys = [], []
    for number in range(DEVICES):
        state = tmp_path / f"device{number}"
        enrolled = run(
            *("device", "enrol", "--repo", settings["repository_url"], "--root", places.root, "--state", state),
            *("--limits", tmp_path / "limits.json"),
        )
        keys.append(enrolled["public_key"])
        run("device", "run", "--once", "--state", state)
        states.append(state)
    (tmp_path / "devices.txt").write_text("# all of them\n" + "\n".join(keys) + "\n")
    return states


@pytest.fixture
def helper(fleet: list[Path], tmp_path: Path) -> Iterator[dict[str, Any]]:
    """The second operator, a process of its own."""
    command = [sys.executable, "-m", "edgewright", "helper", "--state", str(tmp_path / "helper"), "--floor", "3"]
    command += ["--enrolled", str(tmp_path / "devices.txt"), "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = ""
        while "}" not in said:
            line = process.stdout.readline()
            assert line, "the helper ended"
            said += line
        yield json.loads(said)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def free_port() -> int:
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def asked(run: Run, places: Places, server: str, key: str, *more: object) -> dict[str, Any]:  # noqa: F811
    run(
        *(
            "query",
            "permit",
            "digits",
            "--signals",
            "2.0.0",
            "--server",
            server,
            *(("--helper", key) if key else ()),
            *("--secagg", "--outcome", "wrong"),
        ),
        *("--least-cohort", 3, "--dearest", 1e6, *places.signing),
    )
    times = ("--start", "2026-01-01T00", "--end", "2026-01-01T05", "--deadline", LATER)
    given = ("query", "ask", "digits", "--release", "2.0.0", "--id", "q1", *times, "--epsilon", 10)
    return run(*given, "--largest", 10, *more, *places.signing)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["helper", "secagg"])
def test_a_fleet_is_asked_and_answers(
    backend: str,
    run: Run,  # noqa: F811
    places: Places,  # noqa: F811
    fleet: list[Path],
    helper: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    port = free_port()
    made = asked(run, places, f"http://127.0.0.1:{port}", helper["public_key"], "--backend", backend)
    assert made["price"]["cost"]["epsilon"] > 0
    assert run("repo", "check", *places.signing)["check"]["faults"] == []
    repo = ("--root", places.root, "--repo", places.signing[3])
    collect = [sys.executable, "-m", "edgewright", "query", "collect", "digits", "--id", "q1", "--port", str(port)]
    collect += ["--enrolled", str(tmp_path / "devices.txt"), "--state", str(tmp_path / "collected")]
    collect += ["--helper-url", helper["url"], "--wait", "60", "--step", "20", *map(str, repo), "--json"]
    with subprocess.Popen(collect, stdout=subprocess.PIPE, text=True) as server:
        for _ in range(30):
            for state in fleet:
                run("device", "run", "--once", "--state", state)
            if server.poll() is not None:
                break
        assert server.stdout is not None
        found = json.loads(server.stdout.read())
    assert found["device_count"] == DEVICES
    assert found["query_digest"] == record_digest(msgspec.convert(made["query"], Query))
    assert found["release"] == made["query"]["release"]
    assert len(found["sums"]["outcome.wrong"]) == 2
    assert len(found["sums"]["calibration.wrong"]) == 20
    (tmp_path / "sum.json").write_text(json.dumps(found))
    judge = ("query", "judge", "digits", "--sum", tmp_path / "sum.json", "--release")
    said = run(*judge, "2.0.0", *repo)
    assert "too few" in said["signals"]["mean"]["says"]
    (tmp_path / "sum.json").write_text(json.dumps(found | {"release": "0" * 64}))
    assert "about another release" in run(*judge, "2.0.0", *repo, code=2)["error"]["message"]
    sums = found["sums"]
    assert {"mean", "confidence", "class", "latency", "rejected"} <= set(sums)
    assert len(sums["class"]) == 11
    # Nothing was counted then: what comes out is noise.
    assert np.abs(np.concatenate(list(sums.values()))).max() < 8 * found["noise_sd"] + 1
    shown = run("device", "privacy", "--state", fleet[0])
    assert [entry["query_id"] for entry in shown["answers"]] == ["q1"]
    assert shown["answers"][0]["local_epsilon"] >= shown["answers"][0]["epsilon"] > 0
    for told, words in (("privacy", "it has answered 1 times"), ("monitor", "observations)")):
        assert main(["device", told, "--state", str(fleet[0])]) == 0
        assert words in capsys.readouterr().out


def test_what_is_not_permitted_cannot_be_asked(
    run: Run,  # noqa: F811
    places: Places,  # noqa: F811
    fleet: list[Path],
    tmp_path: Path,
) -> None:
    times = ("--start", "2026-01-01T00", "--end", "2026-01-01T05")
    given = ("query", "ask", "digits", "--release", "2.0.0", "--id", "q1", *times, *places.signing)
    assert "no template signals is permitted" in run(*given, code=2)["error"]["message"]
    permit = ("query", "permit", "digits", "--signals", "2.0.0", "--server", "http://s", "--least-cohort", 1000)
    assert "neither a helper" in run(*permit, *places.signing, code=2)["error"]["message"]
    helped = run(*permit, "--helper", "ab" * 32, *places.signing)["permit"]["templates"][0]
    assert helped["backends"] == ["helper"]
    assert "not among helper" in run(*given, "--backend", "secagg", code=2)["error"]["message"]
    helped["backends"] = ["secagg"]
    (tmp_path / "template.json").write_text(json.dumps(helped))
    sly = (*permit[:3], "--template", tmp_path / "template.json", "--server", "http://s", *places.signing)
    assert "permits secagg" in run(*sly, code=2)["error"]["message"]
    run(*permit, "--secagg", *places.signing)
    few = run(*given, "--cohort", 3, "--backend", "secagg", code=2)["error"]["message"]
    assert "cohort of 3 is below" in few
    assert "no whole hour" in run(*given, "--start", "2026-01-01T00:30", code=2)["error"]["message"]
    assert "epsilon" in run(*given, "--epsilon", 1e-9, "--backend", "secagg", code=2)["error"]["message"]


def test_a_device_with_limits_of_its_own_does_not_answer(
    run: Run,  # noqa: F811
    places: Places,  # noqa: F811
    fleet: list[Path],
    tmp_path: Path,
) -> None:
    asked(run, places, "http://127.0.0.1:1", "ab" * 32)
    settings = json.loads((fleet[0] / "settings.json").read_text())
    settings["query_limits"]["min_cohort"] = 50
    (fleet[0] / "settings.json").write_text(json.dumps(settings))
    run("device", "run", "--once", "--state", fleet[0])
    shown = run("device", "privacy", "--state", fleet[0])
    assert shown["answers"] == []
    assert shown["total_rho"] == 0
