"""What `edgewright fleet` prints for people, made of the records that the server sends."""

from typing import Any

import msgspec
import pytest

pytest.importorskip("sqlalchemy", reason="the extra server is not installed")

from edgewright.cli.commands import fleet
from edgewright.cli.main import main
from edgewright.contract.api.device_status import DeviceStatus
from edgewright.contract.refusal import Refusal
from edgewright.server import read_models
from edgewright.server.store.records import DeviceGroupCount

GROUP = DeviceGroupCount("camera", "digits", "1.1.0", "", "idle", "disk", 40)
ROLLOUT = read_models.RolloutSummary(
    model="digits",
    device_class="camera",
    rollout="autumn",
    versions=("1.1.0",),
    state="running",
    stage=0,
    stages=3,
    fraction=0.1,
    verdict="hold",
    decided_at=60.0,
)
STATUS = DeviceStatus("digits", "1.1.0", state="idle", refusal=Refusal("disk", "", "full"))
ANSWERS: dict[str, Any] = {
    "fleet": read_models.FleetSummary(120.0, 41, 1, 7200.0, (GROUP,), (ROLLOUT,), 2, 3),
    "devices": [
        read_models.DeviceSummary("d1", "ab", "camera", 0.0, 60.0, {"site": "b"}, "", False, "1.1.0", STATUS, None)
    ],
    "alerts": [read_models.AlertSummary("slow", "camera", "firing", 0.0, 0.0, "20 ms is much", None, None)],
    "approvals": [read_models.PendingAction("w1", "pause", "digits/camera/autumn", "slow fires", 0.0)],
}


class _Server:
    def get(self, path: str, _kind: type, _query: object = None) -> Any:
        return msgspec.json.decode(msgspec.json.encode(ANSWERS[path]))


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("status", 0, ["41 devices, 1 of them offline", "2 alerts fire, 3 actions", "stage 1 of 3", "hold"]),
        ("devices", 0, ["d1", "site=b", "1.1.0", "disk"]),
        ("alerts", 1, ["firing: slow camera: 20 ms is much"]),
        ("approvals", 0, ["w1: pause digits/camera/autumn: slow fires"]),
    ],
)
def test_people_read_what_the_server_says(
    command: str, code: int, said: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fleet, "_remote", lambda _: _Server())
    assert main(["fleet", command]) == code
    shown = " ".join(capsys.readouterr().out.split())
    assert [one for one in said if one not in shown] == []
