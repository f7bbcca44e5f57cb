"""What training keeps survives a kill, and what is damaged is not used."""

import hashlib
import re
from pathlib import Path

import onnx
import pytest

from edgewright.compress.train.artifact_store import TrainingStore
from edgewright.compress.train.config import usual_training
from edgewright.compress.train.training_session import Task
from edgewright.contract.errors import CandidateError
from edgewright.contract.training_report import CurvePoint, TrainedNetwork

NETWORK = TrainedNetwork(
    network="ab" * 32,
    title="plain cnn",
    origin="fresh",
    parent="cd" * 32,
    round=1,
    rows=500,
    distilled=True,
    parameters=100,
    latency_ratio=0.4,
    validation_metric=0.9,
    drop=None,
    seconds=1.5,
    curve=(
        CurvePoint(0, 0, None, 2.3, 0.1, 0.0, 0.0),
        CurvePoint(
            epoch=1,
            rows=500,
            train_loss=1.0,
            validation_loss=0.9,
            validation_metric=0.9,
            rate=1e-3,
            seconds=1.5,
            note="good",
        ),
    ),
)


@pytest.fixture
def store(tmp_path: Path) -> TrainingStore:
    return TrainingStore(tmp_path)


def test_a_network_comes_back_by_its_digest(store: TrainingStore, digits_proto: onnx.ModelProto) -> None:
    digest = store.put(digits_proto)
    assert hashlib.sha256(store.content(digest)).hexdigest() == digest
    assert store.network(digest) == digits_proto
    assert store.put(digits_proto) == store.put(store.content(digest)) == digest
    assert len(list((store.path / "networks").iterdir())) == 1


@pytest.mark.parametrize("damage", [b"", b"not a network"])
def test_a_damaged_network_is_never_used(store: TrainingStore, damage: bytes) -> None:
    digest = store.put(b"a network")
    path = store.path / "networks" / f"{digest[:16]}.onnx"
    path.write_bytes(damage)
    with pytest.raises(CandidateError, match=re.escape(str(path))) as raised:
        store.content(digest)
    assert "--resume" in raised.value.remedy


def test_a_network_that_is_damaged_is_kept_anew_when_it_is_trained_again(store: TrainingStore) -> None:
    digest = store.put(b"a network")
    (store.path / "networks" / f"{digest[:16]}.onnx").write_bytes(b"torn")
    assert store.put(b"a network") == digest
    assert store.content(digest) == b"a network"


def test_a_missing_network_is_named(store: TrainingStore) -> None:
    with pytest.raises(CandidateError, match="missing"):
        store.network("0" * 64)


def test_records_come_back_as_they_were(store: TrainingStore) -> None:
    tasks = [Task(NETWORK, "ef" * 32, usual_training(1000, "fresh", epochs=4, teacher=True), hold=True)]
    store.save("round-1", tasks)
    store.save("outcomes/0123", NETWORK)
    store.save("views", 7)
    again = TrainingStore(store.path)
    assert again.load("round-1", list[Task]) == tasks
    assert again.load("outcomes/0123", TrainedNetwork) == NETWORK
    assert again.load("views", int) == 7
    assert again.load("round-2", list[Task]) is None


@pytest.mark.parametrize("content", [b"", b"{", b'{"network": "x", "beauty": 1}', b"[1, 2]"])
def test_a_record_of_another_version_counts_as_none(store: TrainingStore, content: bytes) -> None:
    store.save("outcomes/0123", NETWORK)
    (store.work / "outcomes" / "0123.json").write_bytes(content)
    assert store.load("outcomes/0123", TrainedNetwork) is None
