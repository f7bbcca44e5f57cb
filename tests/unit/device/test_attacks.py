"""Attacks between publisher and device, one row each: refused with the reason, the proven model serving."""

import json
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
import zstandard
from onnx import TensorProto
from tests.unit.device.conftest import World, answer, digest
from tuf.api.metadata import Metadata, TargetFile, Targets

from edgewright.contract.errors import InputError
from edgewright.contract.release import DeviceRequirement, StoredFile
from edgewright.trust.delta import CODECS
from edgewright.trust.keys.signing_keys import KeyFolder
from edgewright.trust.publishing.publish import current_policy, set_policy
from edgewright.trust.repository.key_rotation import change_keys
from edgewright.trust.repository.metadata_rules import ROLLOUTS
from edgewright.trust.repository.repository import Repository
from edgewright.trust.repository.staging import draft_metadata, online_signers
from edgewright.trust.target_paths import blob_name, plan_path, policy_path


def newer(world: World, **more: Any) -> None:
    """Publish and roll out version 1.1.0."""
    world.publish("1.1.0", 2.0, **more)
    world.start("1.1.0")


def changed_json(change: Callable[[dict[str, Any]], None]) -> Callable[[bytes], bytes]:
    def changed(content: bytes) -> bytes:
        document = json.loads(content)
        change(document)
        return json.dumps(document).encode()

    return changed


def flipped(content: bytes) -> bytes:
    return content[:-20] + bytes([content[-20] ^ 1]) + content[-19:]


def names(world: World, pattern: str) -> list[str]:
    return [path.relative_to(world.repo).as_posix() for path in sorted(world.repo.glob(pattern)) if path.is_file()]


def tampered_artifact(world: World) -> None:
    before = set(names(world, "blobs/*/*"))
    newer(world)
    for name in set(names(world, "blobs/*/*")) - before:
        world.served[name] = flipped


def tampered_timestamp(world: World) -> None:
    newer(world)
    world.served["metadata/timestamp.json"] = changed_json(lambda d: d["signed"].update(version=99))


def tampered_snapshot(world: World) -> None:
    newer(world)
    newest = max(names(world, "metadata/*.snapshot.json"), key=lambda name: int(name.split("/")[1].split(".")[0]))
    world.served[newest] = flipped


def tampered_plan(world: World) -> None:
    newer(world)
    newest = max(names(world, "metadata/*.rollouts.json"), key=lambda name: int(name.split("/")[1].split(".")[0]))
    world.served[newest] = changed_json(lambda d: d["signed"].update(expires="2099-01-01T00:00:00Z"))


def tampered_manifest(world: World) -> None:
    newer(world)
    (name,) = [name for name in names(world, "targets/releases/m/*") if name.endswith("1.1.0.json")]
    world.served[name] = flipped


def old_metadata(world: World) -> None:
    old = (world.repo / "metadata/timestamp.json").read_bytes()
    newer(world)
    world.agent().check_for_update()
    world.clock.turn(hours=1)
    world.served["metadata/timestamp.json"] = lambda _: old


def frozen(world: World) -> None:
    world.clock.turn(days=2)


def clock_far_ahead(world: World) -> None:
    newer(world)
    world.clock.turn(days=365 * 70)


def endless_metadata(world: World) -> None:
    world.served["metadata/timestamp.json"] = lambda content: content + b" " * 10_000_000


def endless_artifact(world: World) -> None:
    before = set(names(world, "blobs/*/*"))
    newer(world)
    for name in set(names(world, "blobs/*/*")) - before:
        world.served[name] = lambda content: content + bytes(1_000_000)


def missing_artifact(world: World) -> None:
    before = set(names(world, "blobs/*/*"))
    newer(world)
    for name in set(names(world, "blobs/*/*")) - before:
        world.served[name] = None


def mixed_and_matched(world: World) -> None:
    """An old snapshot under a new timestamp."""
    old = (world.repo / names(world, "metadata/*.snapshot.json")[-1]).read_bytes()
    newer(world)
    newest = max(names(world, "metadata/*.snapshot.json"), key=lambda name: int(name.split("/")[1].split(".")[0]))
    world.served[newest] = lambda _: old


def unsigned_metadata(world: World) -> None:
    newer(world)
    world.served["metadata/timestamp.json"] = changed_json(lambda d: d.update(signatures=[]))


def wrong_key(world: World) -> None:
    """Signed, by a key that counts for nothing."""
    newer(world)
    stranger = KeyFolder(world.path / "stranger", lambda _: "")
    public = stranger.create("stranger", ["timestamp"], passphrase=None)

    def signed(content: bytes) -> bytes:
        metadata = Metadata.from_bytes(content)
        metadata.signed.version += 1
        (signer,) = stranger.signers([public.keyid])
        metadata.sign(signer)
        return metadata.to_bytes()

    world.served["metadata/timestamp.json"] = signed


def by_the_rollouts_key(world: World, change: Callable[[Targets], None]) -> None:
    """Let whoever has stolen the online keys sign what he likes."""
    repository, keys = world.repository(), world.keys
    metadata = draft_metadata(repository, ROLLOUTS)
    change(metadata.signed)
    for signer in keys.signers(repository.delegator(ROLLOUTS).get_delegated_role(ROLLOUTS).keyids):
        metadata.sign(signer, append=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Repository, "faults", lambda *_: [])  # a thief has tools of his own
        repository.commit({ROLLOUTS: metadata}, online_signers(repository.root, keys))


def with_plan(targets: Targets, change: Callable[[dict[str, Any]], None]) -> None:
    path = plan_path("m", "default")
    record = json.loads(targets.targets[path].custom["record"])
    change(record)
    record["counter"] += 1
    content = json.dumps(record)
    target = TargetFile.from_data(path, content.encode(), ["sha256"])
    target.unrecognized_fields["custom"] = {"record": content}
    targets.targets[path] = target


def plan_of_an_unsigned_release(world: World) -> None:
    by_the_rollouts_key(
        world,
        lambda t: with_plan(
            t, lambda plan: plan.update(arms=[{"version": "6.6.6", "manifest_sha256": "a" * 64, "weight": 1.0}])
        ),
    )


def plan_of_another_manifest(world: World) -> None:
    newer(world)
    by_the_rollouts_key(
        world,
        lambda t: with_plan(
            t, lambda plan: plan.update(arms=[{"version": "1.1.0", "manifest_sha256": "a" * 64, "weight": 1.0}])
        ),
    )


def rollouts_key_signs_a_release(world: World) -> None:
    """It puts a manifest under the releases' path into its own role, and a plan that points at it."""
    source = next((world.repo / "targets/releases/m").glob("*.1.0.0.json"))
    content = source.read_bytes().replace(b'"1.0.0"', b'"6.6.6"')
    (world.repo / f"targets/releases/m/{digest(content)}.6.6.6.json").write_bytes(content)

    def change(targets: Targets) -> None:
        targets.targets["releases/m/6.6.6.json"] = TargetFile.from_data(
            "releases/m/6.6.6.json", content, ["sha256"]
        )
        arms = [{"version": "6.6.6", "manifest_sha256": digest(content), "weight": 1.0}]
        with_plan(targets, lambda plan: plan.update(arms=arms))

    by_the_rollouts_key(world, change)


def rollouts_key_takes_a_plan_back(world: World) -> None:
    """An older plan is signed anew, as if it were the newest."""
    newer(world)
    world.agent().check_for_update()
    world.clock.turn(hours=1)
    by_the_rollouts_key(world, lambda t: with_plan(t, lambda plan: plan.update(counter=0)))


def releases_take_a_policy_back(world: World) -> None:
    """An older policy is signed by the right keys and in newer metadata: what a device has believed stays."""
    policy = current_policy(world.repository(), "m", "default")
    assert policy is not None
    set_policy(world.repository(), world.keys, msgspec.structs.replace(policy, revision=3))
    world.agent().check_for_update()
    repository = world.repository()
    path = policy_path("m", "default")
    role = repository.bin_of(path)
    metadata = draft_metadata(repository, role)
    content = msgspec.json.encode(policy)
    target = TargetFile.from_data(path, content, ["sha256"])
    target.unrecognized_fields["custom"] = {"record": content.decode()}
    metadata.signed.targets[path] = target
    for signer in world.keys.signers(repository.delegator(role).get_delegated_role(role).keyids):
        metadata.sign(signer, append=True)
    repository.commit({role: metadata}, online_signers(repository.root, world.keys))


def plan_with_a_path(world: World) -> None:
    by_the_rollouts_key(
        world,
        lambda t: with_plan(
            t, lambda plan: plan.update(arms=[{"version": "../../x", "manifest_sha256": "a" * 64, "weight": 1.0}])
        ),
    )


def for_another_class(world: World) -> None:
    """A release without a variant for this device, and a plan that sends it there nevertheless."""
    world.publish("1.1.0", 2.0, device_class="camera")
    world.start("1.1.0")


def external_data(world: World) -> None:
    secret = world.path / "secret"
    secret.write_bytes(np.ones(1, np.float32).tobytes())

    def change(variant: Any, contents: dict[str, bytes]) -> Any:
        model = onnx.load_from_string(contents["model.onnx"])
        tensor = next(t for t in model.graph.initializer if t.name == "factor")
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=str(secret))
        content = model.SerializeToString()
        return with_file(variant, contents, "model.onnx", content)

    newer(world, change=change)


def with_file(variant: Any, contents: dict[str, bytes], name: str, content: bytes) -> Any:
    files = tuple(
        StoredFile(name, digest(content), len(content)) if file.name == name else file for file in variant.files
    )
    return msgspec.structs.replace(variant, files=files), {**contents, name: content}


def no_model_at_all(world: World) -> None:
    newer(world, change=lambda v, c: with_file(v, c, "model.onnx", b"\x00\x01no model"))


def needs_a_newer_runtime(world: World) -> None:
    need = DeviceRequirement(min_runtime_version="99.0.0")
    newer(world, change=lambda v, c: (msgspec.structs.replace(v, requirement=need), c))


def needs_another_provider(world: World) -> None:
    need = DeviceRequirement(providers=("NoSuchExecutionProvider",))
    newer(world, change=lambda v, c: (msgspec.structs.replace(v, requirement=need), c))


def under_the_threshold(world: World) -> None:
    """Two of the releases' keys must sign; the server takes one signature of everything away."""
    new = world.keys.create("second", ["releases"], passphrase=world.keys.ask_passphrase(""))
    change_keys(world.repository(), world.keys, "releases", add=new, threshold=2)
    newer(world)
    for name in names(world, "metadata/*.bin*.json"):
        world.served[name] = changed_json(lambda d: d.update(signatures=d["signatures"][:1]))


def slow_server(world: World) -> None:
    """A server that gives a few bytes now and then, and so keeps a device busy for ever."""
    newer(world)

    def drop_by_drop(content: bytes) -> bytes:
        time.sleep(3)  # longer than the fetcher's patience with a offline server
        return content

    world.served["metadata/timestamp.json"] = drop_by_drop


def keys_rotated_mid_flight(world: World) -> None:
    """The releases' key was stolen and replaced; the thief still serves what he signed with it."""
    old = world.repository()
    stolen = world.keys.signers(old.root.signed.roles["targets"].keyids)
    (keyid,) = old.root.signed.roles["targets"].keyids
    new = world.keys.create("new", ["releases"], passphrase=world.keys.ask_passphrase(""))
    change_keys(world.repository(), world.keys, "releases", add=new, remove=[keyid])
    newer(world)
    repository = world.repository()
    name = repository.bin_of("releases/m/1.1.0.json")
    signed = draft_metadata(repository, name)
    signed.signatures.clear()
    for signer in stolen:
        signed.sign(signer)
    current = repository.role(name)
    assert current is not None
    world.served[f"metadata/{current.signed.version}.{name}.json"] = partial(_always, signed.to_bytes())


def bomb_in_a_delta(world: World) -> None:
    """A delta and a whole file that are not what was signed; the delta would unpack to gigabytes."""
    newer(world)
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 26))
    manifest = json.loads(next((world.repo / "targets/releases/m").glob("*.1.1.0.json")).read_bytes())
    for file in manifest["variants"][0]["files"]:
        for part in (file, *file["deltas"]):
            size = part["size_bytes"]
            world.served[blob_name(part["sha256"])] = partial(_always, bomb[:size].ljust(size, b"\0"))


def link_in_the_repository(world: World) -> None:
    """Whoever can write to the store puts a link to a secret of the server's where a blob was."""
    before = set(names(world, "blobs/*/*"))
    newer(world)
    secret = world.path / "secret"
    secret.write_bytes(b"secret" * 10_000)
    for name in set(names(world, "blobs/*/*")) - before:
        (world.repo / name).unlink()
        (world.repo / name).symlink_to(secret)


def server_gone(world: World) -> None:
    for name in names(world, "metadata/*"):
        world.served[name] = None


ATTACKS: dict[str, tuple[Callable[[World], None], str]] = {
    "tampered artifact": (tampered_artifact, "tampered"),
    "tampered timestamp": (tampered_timestamp, "unsigned"),
    "tampered snapshot": (tampered_snapshot, "tampered"),
    "tampered plan": (tampered_plan, "unsigned"),
    "tampered manifest": (tampered_manifest, "tampered"),
    "rollback to old metadata": (old_metadata, "rollback"),
    "freeze": (frozen, "expired"),
    "clock far ahead": (clock_far_ahead, "expired"),
    "endless metadata": (endless_metadata, "oversized"),
    "endless artifact": (endless_artifact, "oversized"),
    "missing artifact": (missing_artifact, "missing"),
    "mix-and-match": (mixed_and_matched, "tampered"),
    "no signature": (unsigned_metadata, "unsigned"),
    "signed by a wrong key": (wrong_key, "unsigned"),
    "under the threshold": (under_the_threshold, "unsigned"),
    "rollouts key points at an unsigned release": (plan_of_an_unsigned_release, "unsigned"),
    "rollouts key points at another manifest": (plan_of_another_manifest, "tampered"),
    "rollouts key signs outside of its paths": (rollouts_key_signs_a_release, "unsigned"),
    "rollouts key takes a plan back": (rollouts_key_takes_a_plan_back, "rollback"),
    "releases take a policy back": (releases_take_a_policy_back, "rollback"),
    "path traversal in a version": (plan_with_a_path, "tampered"),
    "a bundle for another device class": (for_another_class, "wrong class"),
    "external data that leaves the folder": (external_data, "external data"),
    "no model at all": (no_model_at_all, "external data"),
    "runtime requirement not met": (needs_a_newer_runtime, "requirement"),
    "provider not there": (needs_another_provider, "requirement"),
    "slow retrieval": (slow_server, "slow"),
    "keys replaced, the old ones still sign": (keys_rotated_mid_flight, "unsigned"),
    "a bomb in a delta": (bomb_in_a_delta, "tampered"),
    "a link in the store": (link_in_the_repository, "oversized"),
    "no server": (server_gone, "missing"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_ends_in_refusal_with_the_proven_model_serving(running: World, attack: str) -> None:
    act, code = ATTACKS[attack]
    act(running)
    before = answer(running.agent())
    agent = running.agent()
    record = agent.check_for_update()
    assert record.last_refusal is not None, "nothing was refused"
    assert (record.last_refusal.code, bool(record.last_refusal.reason)) == (code, True), record.last_refusal
    assert answer(agent) == before
    assert answer(running.agent()) == before  # after a restart as well


def test_a_clock_set_back_brings_no_old_metadata_to_life(running: World) -> None:
    """The lowest believable time is the latest that was signed."""
    old = {name: (running.repo / name).read_bytes() for name in names(running, "metadata/*")}
    running.clock.turn(days=1.5)
    newer(running)  # signed a day and a half later
    running.agent().check_for_update()
    running.clock.at -= timedelta(days=2)
    for name, content in old.items():
        running.served[name] = partial(_always, content)
    agent = running.agent()
    record = agent.check_for_update()
    assert record.last_refusal is not None
    assert record.last_refusal.code in ("rollback", "expired")


def _always(content: bytes, _: bytes) -> bytes:
    return content


def test_expired_metadata_ends_installations_and_not_inference(running: World) -> None:
    newer(running)
    running.clock.turn(days=400)
    agent = running.agent()
    assert agent.check_for_update().last_refusal is not None
    assert answer(agent) == 1.0


@pytest.mark.parametrize("name", ["../x", "a/b", "..", "", "a" * 65, ".hidden", "x\0y", "x\\y", "CON:"])
def test_a_name_that_is_a_path_is_none(world: World, name: str) -> None:
    with pytest.raises(InputError):
        world.enrol("other", device_class=name)


def test_a_symlink_in_the_state_is_not_followed_to_other_bytes(running: World) -> None:
    (path,) = (running.path / "device/releases").glob("*/model.onnx")
    outside = running.path / "outside"
    outside.write_bytes(b"other")
    path.unlink()
    path.symlink_to(outside)
    agent = running.agent()
    assert answer(agent) is None
    agent.check_for_update()
    assert answer(agent) == 1.0
    assert outside.read_bytes() == b"other"


def test_a_delta_that_lies_costs_only_the_whole_file(running: World) -> None:
    """Signed by the publisher or not, a delta that gives other bytes is not believed."""
    running.publish("1.1.0", 2.0)
    running.start("1.1.0")
    manifest = json.loads(next((running.repo / "targets/releases/m").glob("*.1.1.0.json")).read_bytes())
    deltas = [delta for file in manifest["variants"][0]["files"] for delta in file["deltas"]]
    assert {delta["codec"] for delta in deltas} <= set(CODECS)
    assert deltas
    for delta in deltas:
        running.served[blob_name(delta["sha256"])] = flipped
    agent = running.agent()
    assert agent.check_for_update().last_refusal is None
    assert answer(agent) == 2.0
