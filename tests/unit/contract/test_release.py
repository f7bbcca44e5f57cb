"""Records that come from outside: what is no name, digest, share or version is none."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewright.contract.errors import InputError
from edgewright.contract.names import checked_name, checked_version, next_version, version_key
from edgewright.contract.release import (
    DeviceRequirement,
    EncryptedFile,
    FileDelta,
    Manifest,
    SelfTest,
    StoredFile,
    Variant,
    stored_form,
)
from edgewright.contract.rollout.plan import (
    HealthRule,
    InstallHours,
    RolloutArm,
    RolloutPlan,
    RolloutPolicy,
    RolloutStage,
    policy_violations,
)

DIGEST = "0" * 64
FILE = StoredFile("model.onnx", DIGEST, 10)
SALT = "0" * 32

WRONG: dict[str, Callable[[], Any]] = {
    "file: a path": lambda: StoredFile("../model.onnx", DIGEST, 10),
    "file: a folder": lambda: StoredFile("a/model.onnx", DIGEST, 10),
    "file: no digest": lambda: StoredFile("model.onnx", "0" * 63, 10),
    "file: capitals": lambda: StoredFile("model.onnx", "A" * 64, 10),
    "file: a size below 0": lambda: StoredFile("model.onnx", DIGEST, -1),
    "file: a size of a disk": lambda: StoredFile("model.onnx", DIGEST, 1 << 50),
    "sealed: no digest": lambda: EncryptedFile("", 1, "fleet"),
    "delta: no base": lambda: FileDelta("x", "zstd", DIGEST, 1),
    "self-test: without samples": lambda: SelfTest("golden.npz", 0.1, 0),
    "self-test: that anything passes": lambda: SelfTest("golden.npz", 1.0, 8),
    "requirement: no version": lambda: DeviceRequirement(min_runtime_version="newest"),
    "variant: without files": lambda: Variant("default", ()),
    "variant: twice the same file": lambda: Variant("default", (FILE, FILE)),
    "variant: a self-test that is not there": lambda: Variant(
        "default", (FILE,), self_test=SelfTest("golden.npz", 0.1, 8)
    ),
    "manifest: without variants": lambda: Manifest("m", "1", "model", ()),
    "manifest: twice for one class": lambda: Manifest(
        "m", "1", "model", (Variant("default", (FILE,)), Variant("default", (FILE,)))
    ),
    "manifest: a version of words": lambda: Manifest("m", "one", "model", (Variant("default", (FILE,)),)),
    "policy: a salt that can be guessed": lambda: RolloutPolicy("m", "default", 1, "0"),
    "policy: revision 0": lambda: RolloutPolicy("m", "default", 0, SALT),
    "policy: a holdback above 1": lambda: RolloutPolicy("m", "default", 1, SALT, holdout_fraction=1.5),
    "policy: no step": lambda: RolloutPolicy("m", "default", 1, SALT, max_stage_step=0.0),
    "policy: time without end": lambda: RolloutPolicy("m", "default", 1, SALT, min_stage_seconds=float("inf")),
    "policy: a channel that is a path": lambda: RolloutPolicy(
        "m", "default", 1, SALT, channel_ceilings={"../x": "1"}
    ),
    "policy: a denied word": lambda: RolloutPolicy("m", "default", 1, SALT, denied_manifests=("all",)),
    "stage: more than all": lambda: RolloutStage(1.1),
    "stage: not a number": lambda: RolloutStage(float("nan")),
    "arm: without weight": lambda: RolloutArm("1", DIGEST, 0.0),
    "hours: none": lambda: InstallHours(3, 3),
    "hours: of no day": lambda: InstallHours(0, 25),
    "rule: of an unknown metric": lambda: HealthRule("beauty", 0.1),
    "rule: that holds always": lambda: HealthRule("crash", 1.0),
    "plan: without arms": lambda: RolloutPlan("m", "default", "r", 1, 1, (), (RolloutStage(1.0),)),
    "plan: fractions that fall": lambda: RolloutPlan(
        "m", "default", "r", 1, 1, (RolloutArm("1", DIGEST),), (RolloutStage(0.5), RolloutStage(0.1))
    ),
    "plan: beyond its stages": lambda: RolloutPlan(
        "m", "default", "r", 1, 1, (RolloutArm("1", DIGEST),), (RolloutStage(1.0),), stage=1
    ),
    "plan: counter 0": lambda: RolloutPlan(
        "m", "default", "r", 1, 0, (RolloutArm("1", DIGEST),), (RolloutStage(1.0),)
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_cannot_be_is_refused_with_a_next_step(wrong: str) -> None:
    with pytest.raises(InputError) as caught:
        WRONG[wrong]()
    assert caught.value.remedy


def test_records_come_back_as_they_were_and_unknown_fields_are_refused() -> None:
    manifest = Manifest("m", "1.0.0", "model", (Variant("default", (FILE,)),))
    content = msgspec.json.encode(manifest)
    assert msgspec.json.decode(content, type=Manifest) == manifest
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(content[:-1] + b',"run":"rm"}', type=Manifest)


def test_what_lies_in_the_repository_is_the_sealed_form() -> None:
    sealed = EncryptedFile("1" * 64, 99, "fleet")
    assert stored_form(FILE) == (DIGEST, 10)
    assert stored_form(msgspec.structs.replace(FILE, encrypted=sealed)) == ("1" * 64, 99)


@given(st.text(max_size=80))
def test_no_name_leads_anywhere(name: str) -> None:
    try:
        checked_name("file", name)
    except InputError:
        return
    assert "/" not in name
    assert "\\" not in name
    assert ".." not in name
    assert not name.startswith((".", "-"))
    assert name.isprintable()


NUMBERS = st.lists(st.integers(0, 999_999_999), min_size=1, max_size=4)


@given(NUMBERS, NUMBERS)
def test_versions_are_ordered_as_their_numbers(one: list[int], other: list[int]) -> None:
    first, second = (".".join(map(str, numbers)) for numbers in (one, other))
    padded = [numbers + [0] * (4 - len(numbers)) for numbers in (one, other)]
    assert (version_key(first) < version_key(second)) == (padded[0] < padded[1])


@given(st.lists(st.integers(0, 99_999_999), min_size=1, max_size=4))
def test_the_next_version_is_higher(numbers: list[int]) -> None:
    version = ".".join(map(str, numbers))
    assert version_key(next_version(version)) > version_key(version)


@pytest.mark.parametrize("version", ["", "1.", ".1", "01", "1.2.3.4.5", "v1", "1 ", "1\n", "٣", "1000000000"])
def test_what_is_no_version_is_refused(version: str) -> None:
    with pytest.raises(InputError):
        checked_version(version)


def test_a_plan_that_keeps_its_policy_has_nothing_against_it() -> None:
    policy = RolloutPolicy(
        "m", "default", 1, SALT, min_version="1.0.0", channel_ceilings={"": "2.0.0"}, max_stage_step=0.5
    )
    plan = RolloutPlan(
        "m", "default", "r", 1, 1, (RolloutArm("1.5.0", DIGEST),), (RolloutStage(0.5), RolloutStage(1.0))
    )
    assert policy_violations(plan, policy) == []
    assert policy_violations(msgspec.structs.replace(plan, model="other"), policy)
    assert policy_violations(msgspec.structs.replace(plan, device_class="other"), policy)
