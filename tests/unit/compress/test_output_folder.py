"""The output folder: whole files or none, nobody else's files touched."""

from pathlib import Path

import pytest

from edgewright.compress.output_folder import JOURNAL_FILE, OutputFolder, open_folder, write_file
from edgewright.contract.errors import InputError, OutputError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_replaces_the_one_before_it(tmp_path: Path) -> None:
    write_file(tmp_path / "new" / "file", b"one")
    assert write_file(tmp_path / "new" / "file", b"two").read_bytes() == b"two"
    assert names(tmp_path / "new") == ["file"]


def test_a_full_disk_leaves_the_old_file_and_no_part_of_the_new(full_disk: Path) -> None:
    write_file(full_disk / "file", b"old")
    with pytest.raises(OutputError, match=r"file cannot be written \(1000000 bytes\): No space left") as raised:
        write_file(full_disk / "file", bytes(1_000_000))
    assert raised.value.exit_code == 1
    assert "Free space" in raised.value.remedy
    assert (full_disk / "file").read_bytes() == b"old"
    assert names(full_disk) == ["file"]


def test_an_unwritable_folder_is_named(unwritable: Path) -> None:
    with pytest.raises(OutputError, match=str(unwritable)) as raised:
        open_folder(unwritable, resume=False)
    assert raised.value.exit_code == 1
    assert "--out" in raised.value.remedy


def test_a_folder_is_made_with_its_parents_and_left_empty(tmp_path: Path) -> None:
    folder = open_folder(tmp_path / "a" / "b", resume=False)
    assert names(folder.path) == []


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(InputError, match="is a file"):
        open_folder(tmp_path / "out", resume=False)
    assert (tmp_path / "out").read_text() == "mine"


def test_a_folder_of_somebody_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    (tmp_path / "model.onnx").write_text("the only copy")
    with pytest.raises(InputError, match="no run of edgewright") as raised:
        open_folder(tmp_path, resume=False)
    assert raised.value.exit_code == 2
    assert names(tmp_path) == ["model.onnx", "thesis.tex"]


def test_an_earlier_run_is_removed_only_when_told_and_with_it_nothing_else(tmp_path: Path) -> None:
    for name in (JOURNAL_FILE, f"{JOURNAL_FILE}.lock", "report.json", "report.html", "model.onnx", "notes.txt"):
        (tmp_path / name).write_text(name)
    folder = OutputFolder(tmp_path)
    folder.store_candidate(b"candidate")
    opened = open_folder(tmp_path, resume=False)
    assert "model.onnx" in names(tmp_path)  # until the new run is sure to begin
    opened.delete_earlier_run()
    assert names(tmp_path) == ["notes.txt"]


def test_there_must_be_a_search_to_resume(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no search to resume"):
        open_folder(tmp_path, resume=True)
    with pytest.raises(InputError, match="no search to resume"):
        open_folder(tmp_path / "new", resume=True)
    assert names(tmp_path) == []


def test_a_resumed_run_keeps_everything_but_the_lock_of_the_killed_one(tmp_path: Path) -> None:
    (tmp_path / JOURNAL_FILE).write_text("")
    (tmp_path / f"{JOURNAL_FILE}.lock").symlink_to("nowhere")
    folder = open_folder(tmp_path, resume=True)
    folder.store_candidate(b"candidate")
    assert names(open_folder(tmp_path, resume=True).path) == ["candidates", JOURNAL_FILE]


def test_candidates_are_stored_by_content_and_swept(tmp_path: Path) -> None:
    folder = OutputFolder(tmp_path)
    first, path = folder.store_candidate(b"one")
    second, other = folder.store_candidate(b"two")
    assert folder.store_candidate(b"one") == (first, path)
    folder.delete_candidates_except({second})
    assert not path.exists()
    assert other.read_bytes() == b"two"
