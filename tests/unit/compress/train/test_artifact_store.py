"""What training keeps survives a kill, and what is damaged is not used."""

import hashlib
import re
from pathlib import Path

import onnx
import pytest

from edgewright.compress.train.artifact_store import TrainingStore
from edgewright.compress.train.config import default_training_config
from edgewright.compress.train.training_session import PlannedJob
from edgewright.contract.errors import CandidateError
from edgewright.contract.training_report import CurvePoint, TrainedNetwork

NETWORK = TrainedNetwork(
    network_sha256="ab" * 32,
    title="plain cnn",
    origin="fresh",
    parent_sha256="cd" * 32,
    search_round=1,
    training_rows=500,
    distilled=True,
    parameters=100,
    latency_ratio=0.4,
    validation_metric=0.9,
    drop=None,
    training_seconds=1.5,
    learning_curve=(
        CurvePoint(0, 0, None, 2.3, 0.1, 0.0, 0.0),
        CurvePoint(
            epoch=1,
            training_rows=500,
            train_loss=1.0,
            validation_loss=0.9,
            validation_metric=0.9,
            learning_rate=1e-3,
            elapsed_seconds=1.5,
            note="good",
        ),
    ),
)


@pytest.fixture
def store(tmp_path: Path) -> TrainingStore:
    return TrainingStore(tmp_path)


def test_a_network_comes_back_by_its_digest(store: TrainingStore, digits_proto: onnx.ModelProto) -> None:
    digest = store.store_network(digits_proto)
    assert hashlib.sha256(store.network_bytes(digest)).hexdigest() == digest
    assert store.load_network(digest) == digits_proto
    assert store.store_network(digits_proto) == store.store_network(store.network_bytes(digest)) == digest
    assert len(list((store.path / "networks").iterdir())) == 1


@pytest.mark.parametrize("damage", [b"", b"not a network"])
def test_a_damaged_network_is_never_used(store: TrainingStore, damage: bytes) -> None:
    digest = store.store_network(b"a network")
    path = store.path / "networks" / f"{digest[:16]}.onnx"
    path.write_bytes(damage)
    with pytest.raises(CandidateError, match=re.escape(str(path))) as raised:
        store.network_bytes(digest)
    assert "--resume" in raised.value.remedy


def test_a_network_that_is_damaged_is_kept_anew_when_it_is_trained_again(store: TrainingStore) -> None:
    digest = store.store_network(b"a network")
    (store.path / "networks" / f"{digest[:16]}.onnx").write_bytes(b"torn")
    assert store.store_network(b"a network") == digest
    assert store.network_bytes(digest) == b"a network"


def test_a_missing_network_is_named(store: TrainingStore) -> None:
    with pytest.raises(CandidateError, match="missing"):
        store.load_network("0" * 64)


def test_records_come_back_as_they_were(store: TrainingStore) -> None:
    tasks = [
        PlannedJob(
            NETWORK, "ef" * 32, default_training_config(1000, "fresh", epochs=4, teacher=True), keep_zeros=True
        )
    ]
    store.save_record("round-1", tasks)
    store.save_record("outcomes/0123", NETWORK)
    store.save_record("views", 7)
    again = TrainingStore(store.path)
    assert again.load_record("round-1", list[PlannedJob]) == tasks
    assert again.load_record("outcomes/0123", TrainedNetwork) == NETWORK
    assert again.load_record("views", int) == 7
    assert again.load_record("round-2", list[PlannedJob]) is None


@pytest.mark.parametrize("content", [b"", b"{", b'{"network": "x", "beauty": 1}', b"[1, 2]"])
def test_a_record_of_another_version_counts_as_none(store: TrainingStore, content: bytes) -> None:
    store.save_record("outcomes/0123", NETWORK)
    (store.work / "outcomes" / "0123.json").write_bytes(content)
    assert store.load_record("outcomes/0123", TrainedNetwork) is None
