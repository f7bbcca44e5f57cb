"""Records of another schema version are refused, and the message names both versions."""

import msgspec
import pytest

from edgewright.contract.api.device_status import DeviceStatus
from edgewright.contract.query.permit import LiveQueries, QueryPermit
from edgewright.contract.query.query import Query
from edgewright.contract.release import Manifest
from edgewright.contract.rollout.plan import RolloutPlan
from edgewright.contract.schema import SCHEMA_VERSION, decode_record

VERSIONED = (Manifest, QueryPermit, RolloutPlan, Query, LiveQueries, DeviceStatus)


@pytest.mark.parametrize("record", VERSIONED)
@pytest.mark.parametrize(
    ("version", "advice"), [(0, "create it anew"), (1, "create it anew"), (3, "update Edgewright")]
)
def test_another_version_is_refused_by_name(record: type[msgspec.Struct], version: int, advice: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=rf"schema version {version}, .* version 2: {advice}"):
        decode_record(msgspec.json.encode({"schema": version}), type=record)


@pytest.mark.parametrize("record", [record for record in VERSIONED if record is not DeviceStatus])
@pytest.mark.parametrize("content", [b'{"schema": 2}', b'{"schema": "2"}', b"{}", b"[]"])
def test_what_is_wrong_in_another_way_says_so(record: type[msgspec.Struct], content: bytes) -> None:
    with pytest.raises(msgspec.ValidationError) as raised:
        decode_record(content, type=record)
    assert "schema version" not in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff"])
def test_what_is_no_json_is_refused(content: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_record(content, type=RolloutPlan)


def test_the_version_is_2() -> None:
    assert SCHEMA_VERSION == 2
