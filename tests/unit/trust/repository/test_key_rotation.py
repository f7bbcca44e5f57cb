"""Key ceremonies: people who never meet sign, keys come and go, and what is broken off is finished."""

import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.unit.trust.conftest import PASSPHRASE, Place
from tuf.api.metadata import Metadata, Root, TargetFile

from edgewright.contract.errors import InputError
from edgewright.trust.keys.signing_keys import ONLINE_ROLES, KeyFolder, KeyRole
from edgewright.trust.publishing.publish import list_releases
from edgewright.trust.repository.bootstrap import TRUSTED_ROOT_FILE
from edgewright.trust.repository.key_rotation import change_keys, keys_by_role
from edgewright.trust.repository.metadata_rules import ROLLOUTS
from edgewright.trust.repository.repository import Repository, TrustError
from edgewright.trust.repository.staging import (
    ChangedMetadata,
    describe_changes,
    discard_staged,
    pending_signatures,
    publish_staged,
    sign_staged,
    stage_metadata,
    staged_metadata,
)
from edgewright.trust.repository_check import check_repository
from edgewright.trust.storage.storage import Storage

Make = Callable[..., Place]


def apart(place: Place) -> tuple[KeyFolder, KeyFolder, KeyFolder]:
    """Give each of two people a folder with one offline key of each role, and the online key a third."""
    folders = []
    for name, holds in (
        ("anna", ("root-1", "releases-1")),
        ("ben", ("root-2", "releases-2")),
        ("cron", ("online",)),
    ):
        folder = place.path / name
        folder.mkdir()
        shutil.copy(place.path / "keys" / TRUSTED_ROOT_FILE, folder)
        for key in holds:
            for kind in ("key", "pub"):
                shutil.copy(place.path / "keys" / f"{key}.{kind}.json", folder)
        folders.append(place.keys(name))
    anna, ben, cron = folders
    return anna, ben, cron


def restage(place: Place, changed: ChangedMetadata) -> None:
    """Write to the store as somebody who has no key and may write there."""
    place.store.delete("staged.json")
    stage_metadata(place.repository(), changed)


def signed_by(place: Place, role: str, *people: KeyFolder) -> list[int]:
    counts = []
    for person in people:
        repository = place.repository()
        left = sign_staged(repository, staged_metadata(repository), role, person)
        counts.append(len([part for part in left if not part.is_complete]))
    return counts


def landed(place: Place, online: KeyFolder, *, finishing: bool = False) -> bool:
    repository = place.repository(finishing=finishing)
    with repository.locked():
        return publish_staged(repository, online)


def versions(place: Place) -> list[str]:
    return [version for version, _ in list_releases(place.repository(), "m")]


def test_two_people_who_never_meet_publish_together(make: Make) -> None:
    place = make(offline=2, threshold=2)
    anna, ben, cron = apart(place)
    published = place.publish("1.0.0", keys=anna, only_stage=True)
    assert not published.published
    assert signed_by(place, "releases", anna) != [0]
    assert not landed(place, cron)
    assert versions(place) == []
    assert signed_by(place, "releases", ben) == [0]
    assert landed(place, cron)
    assert versions(place) == ["1.0.0"]
    assert check_repository(place.repository()).faults == []
    assert staged_metadata(place.repository()) == {}


def test_one_person_is_not_two(make: Make) -> None:
    place = make(offline=2, threshold=2)
    anna, _, cron = apart(place)
    place.publish("1.0.0", keys=anna, only_stage=True)
    assert 0 not in signed_by(place, "releases", anna, anna)
    assert not landed(place, cron)


def test_nothing_can_be_signed_with_the_wrong_folder(make: Make) -> None:
    place = make(offline=2, threshold=2)
    anna, _, cron = apart(place)
    repository = place.repository()
    with pytest.raises(InputError, match="nothing is staged"):
        sign_staged(repository, staged_metadata(repository), "releases", anna)
    place.publish("1.0.0", keys=anna, only_stage=True)
    with pytest.raises(InputError, match="no private key"):
        sign_staged(repository, staged_metadata(repository), "releases", cron)


def test_a_second_change_waits_for_the_first(make: Make) -> None:
    place = make(offline=2, threshold=2)
    anna, _, _ = apart(place)
    place.publish("1.0.0", keys=anna, only_stage=True)
    with pytest.raises(InputError, match="wait for signatures already"):
        place.publish("1.1.0", keys=anna, only_stage=True)
    assert discard_staged(place.repository()) > 0
    place.publish("1.1.0", keys=anna, only_stage=True)


ROLES: list[tuple[str, tuple[KeyRole, ...]]] = [
    ("root", ("root",)),
    ("releases", ("releases",)),
    ("online", ONLINE_ROLES),
]


@pytest.mark.parametrize(("who", "roles"), ROLES)
def test_a_key_is_replaced(place: Place, who: str, roles: tuple[KeyRole, ...]) -> None:
    place.publish("1.0.0")
    keys = place.keys()
    (old,), _ = keys_by_role(place.repository())[who]
    new = keys.create("new", roles, passphrase=None if who == "online" else PASSPHRASE)
    assert change_keys(place.repository(), keys, who, add=new, remove=[old])
    repository = place.repository()
    assert keys_by_role(repository)[who] == ([new.keyid], 1)
    assert repository.root.signed.version == 2
    assert check_repository(repository).faults == []
    (place.path / "keys" / ("online.key.json" if who == "online" else f"{who}-1.key.json")).unlink()
    place.publish("1.1.0")  # with the new one alone
    assert versions(place) == ["1.0.0", "1.1.0"]


@pytest.mark.parametrize(("who", "roles"), ROLES[:2])
def test_a_key_is_added_and_the_threshold_raised(place: Place, who: str, roles: tuple[KeyRole, ...]) -> None:
    place.publish("1.0.0")
    keys = place.keys()
    new = keys.create("new", roles, passphrase=PASSPHRASE)
    assert change_keys(place.repository(), keys, who, add=new, threshold=2)
    assert keys_by_role(place.repository())[who][1] == 2
    assert check_repository(place.repository()).faults == []
    place.publish("1.1.0")
    assert versions(place) == ["1.0.0", "1.1.0"]


def test_a_new_key_that_one_person_signs_alone_does_not_count(make: Make) -> None:
    place = make(offline=2, threshold=2)
    anna, _, cron = apart(place)
    own = anna.create("own", ["releases"], passphrase=PASSPHRASE)
    assert not change_keys(place.repository(), anna, "releases", add=own, threshold=1)
    assert not landed(place, cron)
    read = describe_changes(place.repository(), staged_metadata(place.repository()))
    assert "releases: 1 keys must sign, before 2" in read  # ben reads it, and does not sign
    assert discard_staged(place.repository()) > 0
    assert keys_by_role(place.repository())["releases"][1] == 2


def test_the_key_for_rollouts_signs_only_what_it_signed_before(place: Place) -> None:
    """Somebody who can write to the store stages rollouts of his own with a change of keys."""
    keys = place.keys()
    (old,), _ = keys_by_role(place.repository())["online"]
    new = keys.create("new", ONLINE_ROLES, passphrase=None)
    change_keys(place.repository(), keys, "online", add=new, remove=[old], only_stage=True)
    planted = staged_metadata(place.repository())
    planted[ROLLOUTS].signed.unrecognized_fields["planted"] = True
    restage(place, planted)
    signed_by(place, "root", keys)
    signed_by(place, "releases", keys)
    assert landed(place, keys)
    role = place.repository().role(ROLLOUTS)
    assert role is not None
    assert "planted" not in role.signed.unrecognized_fields


class BrokenError(Exception):
    """The publisher is killed."""


class Breaks:
    """A store whose user is killed at the n-th change."""

    def __init__(self, store: Storage, at: int) -> None:
        self.store, self.left = store, at

    def __getattr__(self, name: str) -> object:
        if name not in ("create", "replace", "delete"):
            return getattr(self.store, name)

        def act(*arguments: object) -> object:
            self.left -= 1
            if self.left < 0:
                raise BrokenError
            return getattr(self.store, name)(*arguments)

        return act


def test_a_change_of_keys_that_is_killed_anywhere_can_be_finished(make: Make) -> None:
    place = make()
    place.publish("1.0.0")
    for who, roles in ROLES:
        for at in range(100):
            copy = Place(place.path / f"{who}-{at}")
            shutil.copytree(place.path / "repo", copy.path / "repo")
            shutil.copytree(place.path / "keys", copy.path / "keys")
            (old,), _ = keys_by_role(copy.repository())[who]
            new = copy.keys().create("new", roles, passphrase=None if who == "online" else PASSPHRASE)
            repository = copy.repository()
            repository.store = Breaks(copy.store, at)  # type: ignore[assignment]
            try:
                change_keys(repository, copy.keys(), who, add=new, remove=[old])
            except BrokenError:
                copy.store.delete("lock.json")
                _finish(copy)
                assert keys_by_role(copy.repository())[who][0] in ([old], [new.keyid])
                assert check_repository(copy.repository()).faults == []
                shutil.rmtree(copy.path)
            else:
                assert at > 3
                break
        else:
            raise AssertionError("it never ended")


def _finish(place: Place) -> None:
    repository = place.repository(finishing=True)
    changed = staged_metadata(repository)
    for role in ("root", "releases"):
        if any(part.role == role and not part.is_complete for part in pending_signatures(repository, changed)):
            sign_staged(repository, changed, role, place.keys())
    try:
        whole = landed(place, place.keys(), finishing=True)
    except TrustError:  # not everything was staged when it was killed
        whole = False
    if not whole:
        discard_staged(place.repository())


def test_a_timestamp_of_the_former_keys_counts_only_for_who_finishes(place: Place) -> None:
    """A stolen online key must not be of use once it was replaced."""
    keys = place.keys()
    stolen = place.store.read("metadata/timestamp.json") or b""
    (old,), _ = keys_by_role(place.repository())["online"]
    change_keys(
        place.repository(), keys, "online", add=keys.create("new", ONLINE_ROLES, passphrase=None), remove=[old]
    )
    place.store.replace("metadata/timestamp.json", stolen)
    with pytest.raises(TrustError, match="refresh --finish"):
        place.repository()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"remove": ["00"]}, "no key 00 counts"),
        ({"threshold": 2}, "2 of 1 keys"),
        ({"threshold": 0}, "0 of 1 keys"),
    ],
)
def test_what_cannot_be_is_refused(place: Place, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        change_keys(place.repository(), place.keys(), "releases", **arguments)  # type: ignore[arg-type]
    assert staged_metadata(place.repository()) == {}


def test_a_key_counts_only_for_what_it_was_made_for(place: Place) -> None:
    keys = place.keys()
    for_root = keys.create("other", ["root"], passphrase=PASSPHRASE)
    with pytest.raises(InputError, match="made for root, not for releases"):
        change_keys(place.repository(), keys, "releases", add=for_root)


def test_a_root_that_skips_a_version_is_not_believed(place: Place) -> None:
    root: Metadata[Root] = Metadata.from_bytes(place.store.read("metadata/1.root.json") or b"")
    root.signed.version = 5
    place.store.create("metadata/2.root.json", root.to_bytes())
    with pytest.raises(TrustError):
        place.repository()


def test_the_repository_is_that_of_the_anchor(place: Place, tmp_path: Path) -> None:
    """Another repository under the same address, made by somebody else, is not signed on top of."""
    other = Place(tmp_path / "other")
    from edgewright.trust.repository.bootstrap import create_repository

    create_repository(other.store, other.keys(), passphrase=PASSPHRASE, bits=2, now=other.now)
    with pytest.raises(TrustError):
        Repository(other.store, (place.path / "keys" / TRUSTED_ROOT_FILE).read_bytes(), place.now)


def one_of_mine(changed: dict[str, Any], place: Place) -> None:
    """Have a key of the attacker's count for what the bins hold."""
    mine = place.keys("thief").create("mine", ["releases"], passphrase=PASSPHRASE)
    bins = changed["bins"].signed.delegations
    bins.keys[mine.keyid] = mine.for_metadata()
    bins.succinct_roles.keyids, bins.succinct_roles.threshold = [mine.keyid], 1


def releases_for_the_online_key(changed: dict[str, Any], place: Place) -> None:
    changed["targets"].signed.delegations.roles["rollouts"].paths = ["releases/*/*"]


def lower_threshold(changed: dict[str, Any], place: Place) -> None:
    changed["targets"].signed.delegations.roles["bins"].threshold = 1


def another_key_under_its_name(changed: dict[str, Any], place: Place) -> None:
    mine = place.keys("thief").create("mine", ["releases"], passphrase=PASSPHRASE)
    for key in changed["root"].signed.keys.values():
        key.keyval["public"] = mine.value


def for_a_hundred_years(changed: dict[str, Any], place: Place) -> None:
    changed["root"].signed.expires += timedelta(days=36_500)


def a_release_in_targets(changed: dict[str, Any], place: Place) -> None:
    target = TargetFile.from_data("releases/m/9.json", b"{}", ["sha256"])
    changed["targets"].signed.targets["releases/m/9.json"] = target


def a_version_left_out(changed: dict[str, Any], place: Place) -> None:
    changed["root"].signed.version += 5


PLANTED = [
    one_of_mine,
    releases_for_the_online_key,
    lower_threshold,
    another_key_under_its_name,
    for_a_hundred_years,
    a_release_in_targets,
    a_version_left_out,
]


@pytest.mark.parametrize("plant", PLANTED)
def test_nobody_signs_more_than_was_shown(make: Make, plant: Callable[[dict[str, Any], Place], None]) -> None:
    """An honest change of keys waits, and somebody who can write to the store adds a little to it."""
    place = make(offline=2, threshold=2)
    anna, ben, cron = apart(place)
    new = anna.create("releases-9", ["releases"], passphrase=PASSPHRASE)
    change_keys(place.repository(), anna, "releases", add=new, only_stage=True)
    planted = staged_metadata(place.repository())
    plant(planted, place)
    restage(place, planted)
    for person in (anna, ben):
        repository = place.repository()
        with pytest.raises(TrustError):
            sign_staged(repository, staged_metadata(repository), "releases", person)
    assert not landed(place, cron)
    assert place.repository().root.signed.version == 1


def test_old_metadata_does_not_land_again(place: Place) -> None:
    """It is signed, for it once was true."""
    place.publish("1.0.0")
    role = place.repository().bin_of("releases/m/1.0.0.json")
    old = place.repository().role(role)
    assert old is not None
    same = [f"1.{n}.0" for n in range(1, 99) if place.repository().bin_of(f"releases/m/1.{n}.0.json") == role]
    place.publish(same[0])
    stage_metadata(place.repository(), {role: old})
    with pytest.raises(TrustError, match="does not follow"):
        landed(place, place.keys())
    assert versions(place) == ["1.0.0", same[0]]


def test_what_changed_since_it_was_read_is_not_signed(make: Make) -> None:
    place = make(offline=2, threshold=2)
    anna, _, _ = apart(place)
    place.publish("1.0.0", keys=anna, only_stage=True)
    repository = place.repository()
    read = staged_metadata(repository)
    discard_staged(repository)
    place.publish("1.1.0", keys=anna, only_stage=True)
    with pytest.raises(TrustError, match="changed since it was read"):
        sign_staged(repository, read, "releases", anna)
