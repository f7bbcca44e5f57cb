"""The journal: what was remembered is remembered, whatever happened to one copy."""

from pathlib import Path

import msgspec
import pytest

from edgewright.device.filesystem import Files
from edgewright.device.update.journal import Journal, Record


def test_the_latest_record_comes_back(tmp_path: Path) -> None:
    journal = Journal(tmp_path, Files())
    assert journal.record == Record()
    for number in range(5):
        journal.write(msgspec.structs.replace(journal.record, served=number))
    again = Journal(tmp_path, Files())
    assert again.record == journal.record
    assert (again.record.served, again.record.sequence, again.torn) == (4, 5, ())


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-1], lambda b: b"", lambda b: b[:80] + b"x" + b[81:], lambda b: b[3:]]
)
def test_a_damaged_copy_costs_one_record_at_most(tmp_path: Path, damage: object) -> None:
    journal = Journal(tmp_path, Files())
    for number in range(4):
        journal.write(msgspec.structs.replace(journal.record, served=number))
    newest = tmp_path / "journal.0"
    newest.write_bytes(damage(newest.read_bytes()))  # type: ignore[operator]
    again = Journal(tmp_path, Files())
    assert (again.record.served, again.torn) == (2, ("journal.0",))
    again.write(msgspec.structs.replace(again.record, served=9))
    assert Journal(tmp_path, Files()).record.served == 9
