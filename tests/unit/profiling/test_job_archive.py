"""What comes as a job is a job, or nothing of it is written."""

import hashlib
import json
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewright.contract.errors import InputError
from edgewright.contract.refusal import RefusedError
from edgewright.profiling import job_archive, worker
from edgewright.profiling.job_archive import JobHeader, job_header, pack_job, unpack_job
from edgewright.profiling.latency import Workload
from edgewright.profiling.workload import pack_workloads

Make = Callable[..., Workload]
_MAGIC = b"edgewright.job.1\n"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _head(**changes: Any) -> dict[str, Any]:
    options = {"threads": 1, "optimization": "all", "spinning": False, "providers": ["CPUExecutionProvider"]}
    entry = {"model": "0/model.onnx", "inputs_file": "0.npz", "input_names": ["x"], "options": options}
    return {
        "request": {"action": "probe", "workloads": [entry], "seconds": 0.0, "seed": 0},
        "timeout_seconds": 60.0,
        "expires_after_seconds": 100.0,
        "files": {"0/model.onnx": _digest(b"model"), "0.npz": _digest(b"feed")},
        "contents": [[_digest(b"model"), 5], [_digest(b"feed"), 4]],
    } | changes


def _job(body: bytes = b"modelfeed", /, **changes: Any) -> bytes:
    encoded = json.dumps(_head(**changes)).encode()
    return _MAGIC + struct.pack(">I", len(encoded)) + encoded + body


def _entry(**changes: Any) -> dict[str, Any]:
    request = _head()["request"]
    request["workloads"][0].update(changes)
    return {"request": request}


def _options(**changes: Any) -> dict[str, Any]:
    request = _head()["request"]
    request["workloads"][0]["options"].update(changes)
    return {"request": request}


def _named(name: str) -> dict[str, Any]:
    head = _head()
    return {"files": head["files"] | {name: _digest(b"feed")}}


def _asked(**changes: Any) -> dict[str, Any]:
    return {"request": _head()["request"] | changes}


ATTACKS: dict[str, bytes] = {
    "nothing": b"",
    "another magic": b"PK\x03\x04" + bytes(40),
    "only magic": _MAGIC,
    "a head longer than the body": _MAGIC + struct.pack(">I", 1 << 19) + b"{}",
    "a head of 4 GB": _MAGIC + struct.pack(">I", 0xFFFFFFFF) + b"{}",
    "a head that is no JSON": _MAGIC + struct.pack(">I", 2) + b"{{",
    "a head nested deeply": _MAGIC + struct.pack(">I", 200_000) + b"[" * 200_000,
    "a head in another encoding": _MAGIC + struct.pack(">I", 2) + b"\xff\xfe",
    "absolute": _job(**_named("/etc/passwd")),
    "parent": _job(**_named("../escape")),
    "parent inside": _job(**_named("0/../../escape")),
    "dot": _job(**_named("./0.npz")),
    "empty name": _job(**_named("")),
    "empty part": _job(**_named("0//a")),
    "folder": _job(**_named("0/")),
    "backslash": _job(**_named("..\\escape")),
    "nul": _job(**_named("a\0b")),
    "newline": _job(**_named("a\nb")),
    "half a letter": _job(**_named("a\ud800b")),
    "a name too long": _job(**_named("a" * 300)),
    "a path too long": _job(**_named("/".join(["a" * 100] * 6))),
    "a file that is a folder": _job(**_named("0")),
    "a folder that is a file": _job(**_named("0.npz/x")),
    "too many files": _job(files={f"{n}.npz": _digest(b"feed") for n in range(5000)}),
    "a file without content": _job(files=_head()["files"] | {"a": _digest(b"other")}),
    "a content without file": _job(b"modelfeedx", contents=[*_head()["contents"], [_digest(b"x"), 1]]),
    "a content twice": _job(b"modelfeedfeed", contents=[*_head()["contents"], [_digest(b"feed"), 4]]),
    "a digest that is none": _job(
        files={"0/model.onnx": "m", "0.npz": _digest(b"feed")}, contents=[["m", 5], [_digest(b"feed"), 4]]
    ),
    "a negative size": _job(contents=[[_digest(b"model"), 14], [_digest(b"feed"), -5]]),
    "a size of a terabyte": _job(contents=[[_digest(b"model"), 1 << 40], [_digest(b"feed"), 4]]),
    "a size that wraps": _job(contents=[[_digest(b"model"), 1 << 64], [_digest(b"feed"), 4]]),
    "more than is listed": _job(b"modelfeedmore"),
    "less than is listed": _job(b"modelfee"),
    "changed content": _job(b"modelFEED"),
    "swapped sizes": _job(contents=[[_digest(b"model"), 4], [_digest(b"feed"), 5]]),
    "no timeout": _job(timeout_seconds=0.0),
    "a timeout of a day": _job(timeout_seconds=86400.0),
    "not wanted": _job(wanted_seconds=-1.0),
    "another field": _job(command="rm"),
    "a field of the worker's own tests": _job(**_asked(sysfs="/etc")),
    "limits of its own": _job(**_asked(limits={})),
    "an unknown action": _job(**_asked(action="system")),
    "no models": _job(**_asked(workloads=[])),
    "seconds of a day": _job(**_asked(seconds=86400.0)),
    "seconds that are no number": _job(**_asked(seconds=float("nan"))),
    "a model that did not come": _job(**_entry(model="1/model.onnx")),
    "a model of this device": _job(**_entry(model="/var/lib/model.onnx")),
    "inputs that did not come": _job(**_entry(feed="1.npz")),
    "a model of another form": _job(
        **_entry(model="0.ort"), files={"0.ort": _digest(b"model"), "0.npz": _digest(b"feed")}
    ),
    "a library of operators": _job(**_options(custom_ops_library="x.so")),
    "options of a provider": _job(**_options(providers=[["CPUExecutionProvider", {"path": "x"}]])),
    "a provider that is a path": _job(**_options(providers=["../x.soExecutionProvider"])),
    "no threads": _job(**_options(threads=0)),
    "a million threads": _job(**_options(threads=1_000_000)),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_is_no_job_is_refused_and_writes_nothing(attack: str, tmp_path: Path) -> None:
    folder = tmp_path / "outer" / "inner"
    folder.mkdir(parents=True)
    with pytest.raises(RefusedError):
        unpack_job(ATTACKS[attack], folder)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_the_job_that_the_attacks_change_is_sound(tmp_path: Path) -> None:
    _, paths = unpack_job(_job(), tmp_path)
    assert {name: path.read_bytes() for name, path in paths.items()} == {"0/model.onnx": b"model", "0.npz": b"feed"}


def test_every_job_cut_off_anywhere_or_with_a_flipped_bit_is_refused(tmp_path: Path) -> None:
    body = _job()
    for at in range(len(body)):
        with pytest.raises(RefusedError):
            unpack_job(body[:at], tmp_path)
    # In the contents every bit counts; in the head some words may become others that are as good.
    for at in range(len(body) - 9, len(body)):
        with pytest.raises(RefusedError):
            unpack_job(body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :], tmp_path)


def test_a_body_that_is_too_large_is_refused_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    body = _job()
    monkeypatch.setattr(job_archive, "MAX_JOB_BYTES", len(body) - 1)
    with pytest.raises(RefusedError) as refused:
        job_header(body)
    assert refused.value.refusal.code == "oversized"


def test_one_content_under_many_names_takes_the_disk_once(tmp_path: Path) -> None:
    names = [f"{number}/weights.bin" for number in range(500)]
    body = _job(files=_head()["files"] | dict.fromkeys(names, _digest(b"feed")))
    _, paths = unpack_job(body, tmp_path)
    assert all(paths[name].read_bytes() == b"feed" for name in names)
    assert len({paths[name].stat().st_ino for name in names}) == 1
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))


def test_a_subject_comes_out_as_it_went_in_and_the_bytes_are_always_the_same(
    subject: Make, external: Path, tmp_path: Path
) -> None:
    subjects = [subject(16), subject(32), subject(16, "again")]
    subjects.append(Workload("external", external, subjects[0].options, subject(64).inputs))
    bodies = []
    for _ in range(2):
        with pack_workloads(subjects) as bundle:
            request = {"action": "latency", "workloads": bundle.workloads, "seconds": 1.0, "seed": 3}
            bodies.append(pack_job(request, bundle.files, timeout_seconds=60.0, expires_after_seconds=90.0))
            expected = {name: path.read_bytes() for name, path in bundle.files.items()}
    assert bodies[0] == bodies[1]
    head, paths = unpack_job(bodies[0], tmp_path / "job")
    assert {name: path.read_bytes() for name, path in paths.items()} == expected
    assert "3/weights.bin" in paths
    assert msgspec.to_builtins(head.request.workloads[0].options)["threads"] == 1
    assert len(head.contents) < len(head.files)  # the first and the third are one model


def test_what_is_too_large_is_told_before_it_is_sent(tmp_path: Path) -> None:
    large = tmp_path / "model.onnx"
    with large.open("wb") as file:
        file.truncate(job_archive.MAX_JOB_BYTES + 1)
    with pytest.raises(
        InputError, match=f"have {job_archive.MAX_JOB_BYTES + 1} bytes, a bench device takes 67108864"
    ):
        pack_job({"action": "machine"}, {"0/model.onnx": large}, timeout_seconds=1.0, expires_after_seconds=1.0)


def test_a_measurement_that_no_bench_does_is_told_before_it_is_sent() -> None:
    with pytest.raises(InputError, match="cannot be measured on a bench device"):
        pack_job({"action": "energy", "sysfs": "/etc"}, {}, timeout_seconds=1.0, expires_after_seconds=1.0)


def test_a_job_may_ask_for_all_that_the_worker_does() -> None:
    assert set(get_args(job_archive.WorkerAction)) == set(worker._ACTIONS)


_NAMES = st.text(
    st.characters(codec="utf-8", categories=("L", "N"), include_characters="._-"), min_size=1, max_size=9
)


@given(st.dictionaries(_NAMES.filter(lambda name: name not in (".", "..")), st.binary(max_size=99), max_size=9))
def test_all_files_come_out_as_they_went_in(files: dict[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        here, there = Path(folder, "here"), Path(folder, "there")
        here.mkdir()
        for number, content in enumerate(files.values()):
            (here / str(number)).write_bytes(content)
        listed = {name: here / str(number) for number, name in enumerate(files)}
        body = pack_job({"action": "machine"}, listed, timeout_seconds=1.0, expires_after_seconds=1.0)
        head, paths = unpack_job(body, there)
        assert isinstance(head, JobHeader)
        assert {name: path.read_bytes() for name, path in paths.items()} == files


@given(st.binary(max_size=300))
def test_random_bytes_are_never_a_job(content: bytes) -> None:
    for body in (content, _MAGIC + content):
        with pytest.raises(RefusedError):
            job_header(body)
