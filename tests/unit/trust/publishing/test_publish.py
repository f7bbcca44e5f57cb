"""Publishing: what is signed is there, nothing is laxer than its policy, and two at once do no harm."""

import json
import threading
from collections.abc import Callable

import msgspec
import numpy as np
import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from tests.unit.trust.conftest import Place

from edgewright.contract.certificate import Certificate
from edgewright.contract.errors import EdgewrightError, InputError, WorkError
from edgewright.contract.measurement import Measurement, MeasurementOrigin
from edgewright.contract.release import Lineage, Manifest, ReleaseEvidence
from edgewright.contract.rollout.plan import RolloutArm, RolloutPlan, RolloutStage
from edgewright.trust.keys.keystore import create_key_file
from edgewright.trust.publishing.publish import (
    current_plan,
    current_policy,
    list_releases,
    publish_plan,
    publish_release,
    republish,
    set_policy,
)
from edgewright.trust.publishing.release_documents import bill_of_materials, model_card
from edgewright.trust.repository.metadata_renewal import renew_metadata
from edgewright.trust.repository.repository import Repository, TrustError
from edgewright.trust.repository_check import check_repository
from edgewright.trust.storage.storage import Storage
from edgewright.trust.target_paths import blob_name


def plan_for(place: Place, version: str, **changes: object) -> RolloutPlan:
    digest = dict(list_releases(place.repository(), "m"))[version]
    given: dict[str, object] = {
        "counter": 1,
        "stages": (RolloutStage(1.0),),
        "arms": (RolloutArm(version, digest),),
    } | changes
    return RolloutPlan("m", "default", "r", 1, **given)  # type: ignore[arg-type]


def test_a_release_is_whole_once_it_is_seen(place: Place) -> None:
    published = place.publish("1.0.0")
    assert published.published
    found = check_repository(place.repository())
    assert (found.faults, found.releases, found.files) == ([], 1, 1)
    assert list_releases(place.repository(), "m") == [("1.0.0", published.digest)]


def test_a_release_never_changes(place: Place) -> None:
    place.publish("1.0.0")
    with pytest.raises(InputError, match="published already"):
        place.publish("1.0.0", b"other")


@pytest.mark.parametrize(
    ("policy", "plan", "message"),
    [
        ({"min_version": "1.1.0"}, {}, "below the floor 1.1.0"),
        ({"max_stage_step": 0.5}, {}, "raises the fraction by 1"),
        ({"min_stage_seconds": 60.0}, {"stages": (RolloutStage(0.1), RolloutStage(1.0))}, "lasts 0 s"),
        ({"channel_ceilings": {"": "0.9"}}, {}, "above 0.9"),
        ({"epoch": 2}, {}, "of epoch 1"),
    ],
)
def test_a_plan_that_is_laxer_than_its_policy_is_not_signed(
    place: Place, policy: dict[str, object], plan: dict[str, object], message: str
) -> None:
    place.publish("1.0.0")
    known = current_policy(place.repository(), "m", "default")
    assert known is not None
    stricter = msgspec.structs.replace(known, revision=2, **policy)
    assert set_policy(place.repository(), place.keys(), stricter)
    with pytest.raises(InputError, match=message):
        publish_plan(place.repository(), place.keys(), plan_for(place, "1.0.0", **plan))
    assert current_plan(place.repository(), "m", "default") is None


def test_a_denied_release_is_not_rolled_out(place: Place) -> None:
    digest = place.publish("1.0.0").digest
    known = current_policy(place.repository(), "m", "default")
    assert known is not None
    set_policy(
        place.repository(), place.keys(), msgspec.structs.replace(known, revision=2, denied_manifests=(digest,))
    )
    with pytest.raises(InputError, match="is denied"):
        publish_plan(place.repository(), place.keys(), plan_for(place, "1.0.0"))


def test_policies_and_plans_only_rise(place: Place) -> None:
    place.publish("1.0.0")
    known = current_policy(place.repository(), "m", "default")
    assert known is not None
    with pytest.raises(InputError, match="revision 1"):
        set_policy(place.repository(), place.keys(), known)
    publish_plan(place.repository(), place.keys(), plan_for(place, "1.0.0", counter=2))
    with pytest.raises(InputError, match="counter 2"):
        publish_plan(place.repository(), place.keys(), plan_for(place, "1.0.0", counter=2))


def test_a_plan_points_at_a_signed_release(place: Place) -> None:
    place.publish("1.0.0")
    with pytest.raises(InputError, match="no signed release of that digest"):
        publish_plan(
            place.repository(), place.keys(), plan_for(place, "1.0.0", arms=(RolloutArm("1.0.0", "0" * 64),))
        )


def test_a_return_is_a_higher_version_with_old_bytes(place: Place) -> None:
    first = place.publish("1.0.0", b"old bytes")
    place.publish("1.1.0", b"new bytes")
    back = republish(place.repository(), place.keys(), "m", "1.0.0")
    assert (back.manifest.version, back.published, back.uploaded_bytes) == ("1.1.1", True, 0)
    assert back.manifest.lineage.republished_from == "1.0.0"
    assert back.manifest.variants[0].files == first.manifest.variants[0].files
    assert check_repository(place.repository()).faults == []


@pytest.mark.parametrize(
    ("version", "as_version", "message"),
    [("0.9.0", "", "not published"), ("1.0.0", "1.1.0", "not above 1.1.0"), ("0.5.0", "", "is retired")],
)
def test_nobody_returns_to_what_is_not_there(place: Place, version: str, as_version: str, message: str) -> None:
    place.publish("0.5.0", b"x", end_of_life="2026-11-20T00:00:00+00:00")
    place.publish("1.0.0")
    place.publish("1.1.0", b"b")
    with pytest.raises(InputError, match=message):
        republish(place.repository(), place.keys(), "m", version, as_version=as_version)


def test_a_retired_release_is_named(place: Place) -> None:
    place.publish("1.0.0", end_of_life="2027-01-01T00:00:00+00:00")
    assert check_repository(place.repository()).warnings == []
    place.turn(days=60)
    found = check_repository(place.repository())
    assert any("1.0.0 is retired" in warning for warning in found.warnings)


def test_what_expires_is_renewed_with_the_online_key_alone(place: Place) -> None:
    place.publish("1.0.0")
    for _ in range(12):
        place.turn(days=5)
        assert "timestamp" in " ".join(check_repository(place.repository()).faults)
        renew_metadata(place.repository(), place.keys())
        assert check_repository(place.repository()).faults == []
    place.turn(days=20)
    renew_metadata(place.repository(), place.keys())
    assert any("it needs the offline keys" in warning for warning in check_repository(place.repository()).warnings)


def test_two_publishers_at_once_do_no_harm(place: Place) -> None:
    """Some are told to wait; whoever is not is published, and the repository is whole."""
    place.publish("1.0.0", b"0")
    done: list[str] = []
    told: list[EdgewrightError] = []

    def publish(number: int) -> None:
        try:
            place.publish(f"1.{number}.0", str(number).encode())
            done.append(f"1.{number}.0")
        except EdgewrightError as error:
            told.append(error)

    threads = [threading.Thread(target=publish, args=(number,)) for number in range(1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) + len(told) == 6
    assert done
    assert all(isinstance(error, WorkError | InputError) for error in told)
    assert {version for version, _ in list_releases(place.repository(), "m")} == {"1.0.0", *done}
    assert check_repository(place.repository()).faults == []


def test_a_lock_that_is_left_over_is_named_and_removed(place: Place) -> None:
    repository = place.repository()
    with repository.locked(), pytest.raises(WorkError, match="has been publishing here since"):
        place.publish("1.0.0")
    place.store.create("lock.json", b"{}")
    with pytest.raises(WorkError, match="repo unlock"):
        place.publish("1.0.0")
    place.repository().unlock()
    place.publish("1.0.0")


class Reader:
    """Reads as a device does after each change of the store."""

    def __init__(self, place: Place) -> None:
        self.place, self.store = place, place.store

    def __getattr__(self, name: str) -> object:
        act: Callable[..., object] = getattr(self.store, name)
        if name not in ("create", "replace", "delete"):
            return act

        def watched(*arguments: object) -> object:
            done = act(*arguments)
            assert check_repository(self.place.repository()).faults == []
            return done

        return watched


def test_a_reader_never_sees_metadata_that_points_at_missing_bytes(place: Place) -> None:
    watched: Storage = Reader(place)  # type: ignore[assignment]
    repository = place.repository()
    repository.store = watched
    place.publish("1.0.0", b"first")
    content = b"second"
    manifest = msgspec.structs.replace(place.publish("1.1.0", content).manifest, version="1.2.0")
    publish_release(repository, place.keys(), manifest, {"default": {"image": content}})
    publish_plan(repository, place.keys(), plan_for(place, "1.2.0"))
    assert [version for version, _ in list_releases(place.repository(), "m")] == ["1.0.0", "1.1.0", "1.2.0"]


def test_an_upload_that_was_broken_off_is_gone_on_with(place: Place) -> None:
    first = place.publish("1.0.0", b"a" * 1000)
    assert first.uploaded_bytes >= 1000
    place.store.replace(blob_name(first.manifest.variants[0].files[0].sha256), b"a" * 10)  # cut off
    again = place.publish("1.1.0", b"a" * 1000)
    assert again.uploaded_bytes >= 1000
    assert check_repository(place.repository()).faults == []


def test_files_are_encrypted_to_the_fleet(place: Place) -> None:
    fleet = create_key_file(place.path / "fleet.key")
    secret = bytes(range(256)) * 40
    published = place.publish("1.0.0", secret)
    manifest = msgspec.structs.replace(published.manifest, version="1.1.0")
    sealed = publish_release(
        place.repository(), place.keys(), manifest, {"default": {"image": secret}}, fleet=("fleet", fleet)
    )
    (file,) = sealed.manifest.variants[0].files
    assert file.encrypted is not None
    stored = place.store.read(blob_name(file.encrypted.sha256))
    assert stored is not None
    assert secret[:64] not in stored


def test_deltas_come_from_the_last_releases(place: Place) -> None:
    base = np.random.default_rng(0).integers(0, 255, 20_000, np.uint8)
    for number in range(5):
        changed = base.copy()
        changed[number] ^= 1
        published = place.publish(f"1.{number}.0", changed.tobytes())
    (file,) = published.manifest.variants[0].files
    assert len(file.deltas) == 3
    assert all(delta.size_bytes < 0.1 * file.size_bytes for delta in file.deltas)


def test_a_repository_somebody_else_wrote_to_is_not_signed_on_top_of(place: Place) -> None:
    place.publish("1.0.0")
    meta = place.repository().timestamp
    assert meta is not None
    name = f"metadata/{meta.signed.snapshot_meta.version}.snapshot.json"
    document = json.loads(place.store.read(name) or b"")
    document["signed"]["version"] += 1
    place.store.replace(name, json.dumps(document).encode())
    with pytest.raises(TrustError):
        Repository(place.store, place.repository().trusted_root, place.now)


def test_what_is_missing_or_changed_is_a_fault(place: Place) -> None:
    published = place.publish("1.0.0")
    (file,) = published.manifest.variants[0].files
    place.store.replace(blob_name(file.sha256), b"other")
    assert any("not what was signed" in fault for fault in check_repository(place.repository()).faults)
    place.store.delete(blob_name(file.sha256))
    assert any("is missing" in fault for fault in check_repository(place.repository()).faults)


def test_card_and_bill_say_what_the_manifest_says(place: Place) -> None:
    manifest: Manifest = place.publish("1.0.0").manifest
    card = model_card(manifest)
    assert card.startswith("# m 1.0.0\n")
    (file,) = manifest.variants[0].files
    assert file.sha256 in card
    assert place.store.read("cards/m/1.0.0.md") == card.encode()
    bill = bill_of_materials(manifest)
    assert json.loads(place.store.read("cards/m/1.0.0.cdx.json") or b"") == bill
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(bill)) is None
    assert bill["components"][0]["components"][0]["hashes"][0]["content"] == file.sha256
    assert bill == bill_of_materials(manifest)


def test_a_bill_with_evidence_and_lineage_keeps_the_schema(place: Place) -> None:
    origin = MeasurementOrigin(kind="measured", machine="a machine", method="a method")
    evidence = ReleaseEvidence(
        Certificate(
            *("certified", "accuracy", 0.97, 0.96, 0.01, 0.018, 0.002, 0.95, 930, 0.02, "exact", 1, 0.95),
            *(None, None, "it holds", "a" * 64, "b" * 64),
        ),
        {"latency_p50_ms": Measurement(0.2, "ms", origin, 0.19, 0.21)},
    )
    manifest: Manifest = place.publish("1.0.0").manifest
    (variant,) = manifest.variants
    full = msgspec.structs.replace(
        manifest,
        kind="model",
        created_at="2026-11-21T10:00:00+00:00",
        licence="Apache-2.0",
        variants=(msgspec.structs.replace(variant, evidence=evidence),),
        lineage=Lineage(
            data={"held back": "c" * 64}, original_sha256="d" * 64, environment={"onnxruntime": "1.24.0"}
        ),
    )
    bill = json.dumps(bill_of_materials(full))
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(bill) is None
    assert "lowerBound" in bill
