"""The journal: what was remembered is remembered, whatever happened to one copy."""

from pathlib import Path

import msgspec
import pytest

from edgewright.device.filesystem import FileSystem
from edgewright.device.update.journal import Journal, JournalRecord


def test_the_latest_record_comes_back(tmp_path: Path) -> None:
    journal = Journal(tmp_path, FileSystem())
    assert journal.record == JournalRecord()
    for number in range(5):
        journal.write(msgspec.structs.replace(journal.record, served_inferences=number))
    again = Journal(tmp_path, FileSystem())
    assert again.record == journal.record
    assert (again.record.served_inferences, again.record.sequence, again.torn_copies) == (4, 5, ())


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-1], lambda b: b"", lambda b: b[:80] + b"x" + b[81:], lambda b: b[3:]]
)
def test_a_damaged_copy_costs_one_record_at_most(tmp_path: Path, damage: object) -> None:
    journal = Journal(tmp_path, FileSystem())
    for number in range(4):
        journal.write(msgspec.structs.replace(journal.record, served_inferences=number))
    newest = tmp_path / "journal.0"
    newest.write_bytes(damage(newest.read_bytes()))  # type: ignore[operator]
    again = Journal(tmp_path, FileSystem())
    assert (again.record.served_inferences, again.torn_copies) == (2, ("journal.0",))
    again.write(msgspec.structs.replace(again.record, served_inferences=9))
    assert Journal(tmp_path, FileSystem()).record.served_inferences == 9
