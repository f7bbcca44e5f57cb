"""Key folders: what is offline is encrypted, and a damaged file is no key."""

import json
from pathlib import Path

import pytest
from tests.unit.trust.conftest import PASSPHRASE, Place

from edgewright.contract.errors import InputError
from edgewright.trust.keys.signing_keys import KeyFolder, read_public_key


def test_an_offline_key_opens_with_its_passphrase_only(empty: Place) -> None:
    public = empty.keys().create("root-1", ["root"], passphrase=PASSPHRASE)
    (signer,) = empty.keys().signers([public.keyid])
    assert signer.public_key.keyid == public.keyid
    with pytest.raises(InputError, match="passphrase does not open"):
        KeyFolder(empty.path / "keys", lambda _: "wrong").signers([public.keyid])


def test_the_private_half_is_not_in_the_file(empty: Place) -> None:
    empty.keys().create("root-1", ["root"], passphrase=PASSPHRASE)
    described = json.loads((empty.path / "keys/root-1.key.json").read_text())
    assert "plain" not in described
    assert (empty.path / "keys/root-1.key.json").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("roles", "passphrase"),
    [
        (["root"], None),
        (["releases"], ""),
        (["root", "snapshot"], PASSPHRASE),
        (["releases", "rollouts"], PASSPHRASE),
    ],
)
def test_an_offline_key_is_encrypted_and_not_online_as_well(
    empty: Place, roles: list[str], passphrase: str | None
) -> None:
    with pytest.raises(InputError, match="must be encrypted"):
        empty.keys().create("key", roles, passphrase=passphrase)  # type: ignore[arg-type]
    assert not list((empty.path / "keys").glob("*")) if (empty.path / "keys").exists() else True


def test_a_name_is_taken_once(empty: Place) -> None:
    empty.keys().create("online", ["snapshot"], passphrase=None)
    with pytest.raises(InputError, match="exists already"):
        empty.keys().create("online", ["snapshot"], passphrase=None)


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden"])
def test_a_name_that_is_a_path_is_none(empty: Place, name: str) -> None:
    with pytest.raises(InputError):
        empty.keys().create(name, ["snapshot"], passphrase=None)


def damaged(document: dict[str, object], change: str) -> object:
    if change == "format":
        return {**document, "format": "other"}
    if change == "short":
        return {**document, "public": "00"}
    if change == "role":
        return {**document, "roles": ["king"]}
    if change == "list":
        return []
    return {name: value for name, value in document.items() if name != change}


@pytest.mark.parametrize("change", ["format", "short", "role", "list", "public", "roles", "name"])
def test_a_damaged_file_is_no_key(empty: Place, change: str) -> None:
    empty.keys().create("online", ["snapshot"], passphrase=None)
    path = empty.path / "keys/online.pub.json"
    path.write_text(json.dumps(damaged(json.loads(path.read_text()), change)))
    with pytest.raises(InputError):
        read_public_key(path)


def test_a_file_that_asks_for_much_memory_is_refused(empty: Place) -> None:
    public = empty.keys().create("root-1", ["root"], passphrase=PASSPHRASE)
    path = empty.path / "keys/root-1.key.json"
    document = json.loads(path.read_text())
    document["scrypt"]["n"] = 2**40
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match="too much memory"):
        empty.keys().signers([public.keyid])


def test_a_file_with_another_private_half_is_refused(empty: Place) -> None:
    public = empty.keys().create("one", ["snapshot"], passphrase=None)
    empty.keys().create("two", ["snapshot"], passphrase=None)
    one, two = (empty.path / f"keys/{name}.key.json" for name in ("one", "two"))
    document = json.loads(one.read_text())
    document["plain"] = json.loads(two.read_text())["plain"]
    one.write_text(json.dumps(document))
    with pytest.raises(InputError, match="another key"):
        empty.keys().signers([public.keyid])


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_public_key(tmp_path / "none.pub.json")
